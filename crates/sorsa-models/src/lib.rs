//! Decoder-only transformers on burn: Hugging Face checkpoints in and out, losses, cached and batched generation.
//!
//! ```
//! use burn::prelude::*;
//! use sorsa_models::{CausalLm, GenerateOptions, ModelConfig, Sampling};
//!
//! let config = serde_json::json!({
//!     "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
//!     "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 64,
//! });
//! let config = ModelConfig::parse(config.as_object().unwrap().clone()).unwrap();
//! let model = CausalLm::init(&config, &Device::flex());
//!
//! // Together or alone, each prompt is continued in the same way.
//! let options = GenerateOptions { max_new_tokens: 5, sampling: Sampling::Greedy, stop: vec![] };
//! let prompts = [vec![1, 2, 3], vec![4]];
//! let together = model.generate(&prompts, &options, |_, _| ()).unwrap();
//! let alone = model.generate(&prompts[1..], &options, |_, _| ()).unwrap();
//! assert_eq!(together[1], alone[0]);
//! ```

mod cache;
mod config;
mod generate;
pub mod gguf;
pub mod hub;
mod input;
mod model_files;
mod rope;
mod transformer;
pub mod weights;

pub use config::{ConfigError, ModelConfig};
pub use generate::{Finish, GenerateError, GenerateOptions, Generation, Sampling};
pub use input::ModelInput;
pub use model_files::ModelError;
pub use rope::{Rope, RopeScaling};
pub use transformer::{Attention, Block, CausalLm, Decoder, Mlp, RmsNorm};
