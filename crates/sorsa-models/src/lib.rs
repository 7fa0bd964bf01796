//! Language models on burn: modules that are filled from and saved as Hugging Face checkpoints, losses, cached and batched
//! generation. The families
//! are decoder-only transformers (Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3, Phi-3) and RWKV 4 and 6.
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

mod attention;
mod cache;
mod generate;
mod input;
mod layers;
mod mlp;
mod model;
mod model_files;
mod packed_init;
mod rwkv;
mod schedule;
mod training;
mod transformer;
mod transparent;

pub use attention::{Attention, FusedAttention, SeparateAttention};
pub use generate::{Finish, GenerateError, GenerateOptions, Generation, Sampling};
pub use input::ModelInput;
pub use layers::{Embedding, LayerNorm, RmsNorm};
pub use mlp::{FusedMlp, Mlp, SeparateMlp};
pub use model::CausalLm;
pub use model_files::{ModelError, ModelTensors, float_dtype, save_tensors};
pub use rwkv::{ChannelMix, ChannelMix4, ChannelMix6, Rwkv, RwkvBlock, RwkvModel, TimeMix, TimeMix4, TimeMix6};
pub use schedule::Requests;
// The two types of sorsa-checkpoint that `CausalLm` is made of and saved as.
pub use sorsa_checkpoint::{ModelConfig, TensorFormats, WeightFormat};
// The precision of a model's products.
pub use sorsa_ops::MatmulPrecision;
pub use training::{ActivationFormat, Pass, mixed_seed};
pub use transformer::{Block, Decoder, Transformer};
