//! Hugging Face model folders on disk: `config.json` as a [`ModelConfig`], weights in and out, repositories of the hub, and
//! GGUF files for llama.cpp. Nothing here knows burn: tensors are names, shapes and numbers.
//!
//! ```
//! use sorsa_checkpoint::ModelConfig;
//!
//! let fields = serde_json::json!({
//!     "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
//!     "num_attention_heads": 32, "vocab_size": 32000,
//! });
//! let config = ModelConfig::parse(fields.as_object().unwrap().clone()).unwrap();
//! assert_eq!(config.num_parameters(), 6_738_415_616);
//! ```

mod config;
mod families;
mod fields;
pub mod gguf;
pub mod hub;
mod message;
mod rope;
mod source;
mod tensor_content;
mod weight_format;
pub mod weights;

pub use config::{
    Activation, Architecture, BlockNorms, ConfigError, LayerType, ModelConfig, RwkvConfig, RwkvVersion,
    TransformerConfig,
};
pub use families::Family;
pub use rope::{Frequencies, LongRope, Rope, RopeScaling, Yarn};
pub use source::{DenseMatrix, GGUF_FILE, ModelSource, NamedFile, PackingFormats, SourceError, Stored, gguf_file_of};
pub use tensor_content::TensorContent;
pub use weight_format::{FourBitFormat, TensorFormats, UnknownFormat, WeightFormat};
