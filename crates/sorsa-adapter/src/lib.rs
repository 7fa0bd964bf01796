//! Adapters for any burn module: SORSA, PiSSA, LoRA, DoRA, OLoRA and partial fine-tuning.
//!
//! An adapter is a burn [`Reparameterization`](burn::module::Reparameterization): it attaches to the linear layers of
//! a model that is not changed for it. One line of the model may change to take the cheap route: call [`project`]
//! instead of `linear.forward`, and no dense adapted weight is ever formed.
//!
//! ```
//! use burn::nn::{Linear, LinearConfig};
//! use burn::prelude::*;
//! use sorsa_adapter::{AdapterConfig, Method, project};
//!
//! #[derive(Module, Debug)]
//! struct Net { first: Linear, second: Linear }
//!
//! let device = Device::flex();
//! let net = Net {
//!     first: LinearConfig::new(6, 8).init(&device),
//!     second: LinearConfig::new(8, 3).init(&device),
//! };
//! let x = Tensor::<2>::ones([1, 6], &device);
//! let before = net.first.forward(x.clone());
//!
//! // Rank 2 on the layer `first`: 2 * (6 + 8 + 1) trained numbers.
//! let adapted = AdapterConfig::new(Method::Sorsa, 2, &["first"]).attach(net, &Default::default()).unwrap();
//! assert_eq!(adapted.trainable_parameters(), 30);
//!
//! // Attaching changes nothing, and both routes agree.
//! let factored = project(&adapted.model.first, x.clone());
//! let dense = adapted.model.first.forward(x);
//! assert!((factored.clone() - before).abs().max().into_scalar::<f32>() < 1e-5);
//! assert!((factored - dense).abs().max().into_scalar::<f32>() < 1e-5);
//! ```

mod adapter;
mod attach;
pub mod author;
mod cache;
mod config;
mod dora;
mod error;
mod factors;
mod files;
mod lora;
mod method;
mod moment;
mod olora;
mod parameters;
pub mod peft;
mod pissa;
mod regularizer;
mod sorsa;
mod start;
mod state;
mod target;

pub use adapter::project;
pub use attach::{AttachOptions, Attached, ModuleReport, Target};
pub use config::{AdapterConfig, AlphaConvention, Scaling};
pub use dora::Dora;
pub use error::AdapterError;
pub use factors::{HostTensor, NamedTensors};
pub use files::{TensorFile, read_tensors, write_tensors};
pub use lora::{Init, Lora};
pub use method::{Adapter, Method};
pub use moment::{Moment, TrainedFactors};
pub use olora::Olora;
pub use parameters::{ParameterGroup, Trainable, export_trainable, import_trainable};
pub use peft::method_of;
pub use pissa::Pissa;
pub use regularizer::{RegularizerForm, RegularizerStats, add_regularizer, regularizer_gradients};
pub use sorsa::Sorsa;
pub use sorsa_linalg::tensor::Placement;
pub use sorsa_linalg::{Algorithm, SvdOptions};
pub use state::{AdapterState, ModuleState, SavedAdapter};
