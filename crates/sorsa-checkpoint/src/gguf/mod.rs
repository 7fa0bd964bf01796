//! GGUF files for llama.cpp: models, low-rank adapters, and a small reader.
//!
//! A model is written from the files of its folder, not from modules in memory: what llama.cpp needs beside the weights
//! (names, the order of rows, the tokenizer) follows from `config.json` and `tokenizer.json`. Where llama.cpp computes
//! something in another way, the [`Report`] says so; what it cannot express at all is refused with one error. What llama.cpp
//! makes of a family is said in the family's own file.
//!
//! | family | llama.cpp's name | differences |
//! |---|---|---|
//! | Llama, Mistral | `llama` | rows of q and k reordered; a sliding window is ignored there |
//! | Qwen 2, Qwen 3 | `qwen2`, `qwen3` | |
//! | Gemma 1, 2, 3 (text) | `gemma`, `gemma2`, `gemma3` | one is added to the weights of norms |
//! | Phi 3 | `phi3` | a sliding window is ignored there |

mod adapter;
mod dtype;
mod error;
mod file_type;
mod import;
mod model;
mod packing_error;
pub(crate) mod parts;
mod reader;
mod tensors;
#[cfg(test)]
mod tests;
mod tokenizer;
mod translation;
mod value;
mod writer;

pub use adapter::{LoraModule, export_adapter};
pub use dtype::GgufType;
pub use error::GgufError;
pub use file_type::{FileType, Mixture};
pub use import::GgufModel;
pub use model::{ExportOptions, Fallback, ModelTensors, Report, export_model, export_tensors};
pub use packing_error::PackingError;
pub use reader::{GgufFile, GgufTensorInfo};
pub use value::{Array, Value};
pub use writer::{GgufTensor, GgufWriter};

pub(crate) use import::Import;
pub(crate) use translation::{Limits, LlamaCpp};
