//! Adapters for any burn module: SORSA, PiSSA, LoRA, DoRA, OLoRA, LoRA-XS, StelLA, KaSA, MiCA, SVFT, LoRA-GA and partial
//! fine-tuning.
//!
//! An adapter is a burn [`Reparameterization`](burn::module::Reparameterization): it attaches to the linear layers of
//! an unchanged model. To take the cheap route, a model calls [`project`] instead of `linear.forward`: then no dense
//! adapted weight is ever formed.
//!
//! ```
//! use burn::nn::{Linear, LinearConfig};
//! use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
//! use burn::prelude::*;
//! use sorsa_adapter::{AdapterConfig, Attached, Method, RegularizerForm, SavedAdapter, add_regularizer, project};
//!
//! #[derive(Module, Debug)]
//! struct Net { first: Linear, second: Linear }
//!
//! impl Net {
//!     fn forward(&self, x: Tensor<2>) -> Tensor<2> {
//!         project(&self.second, project(&self.first, x).tanh())
//!     }
//! }
//!
//! let difference = |a: Tensor<2>, b: Tensor<2>| (a - b).abs().max().into_scalar::<f32>();
//! let device = Device::flex();
//! let net = Net {
//!     first: LinearConfig::new(6, 8).init(&device),
//!     second: LinearConfig::new(8, 3).init(&device),
//! };
//! let x = Tensor::<2>::ones([1, 6], &device);
//! let before = net.forward(x.clone());
//!
//! // Rank 2 on the layer `first`: 2 * (6 + 8 + 1) trained numbers. Attaching changes nothing.
//! let config = AdapterConfig::new(Method::Sorsa, 2, &["first"]);
//! let adapted = config.attach(net.clone(), &Default::default())?;
//! assert_eq!(adapted.trainable_parameters(), 30);
//! assert!(difference(adapted.model.forward(x.clone()), before.clone()) < 1e-5);
//!
//! // A step of any optimizer, with the gradient of the regularizer added to that of the loss.
//! let Attached { model, state, trainable, modules } = adapted;
//! let (model, rate, gamma) = (model.train(), 1e-2, 4e-4);
//! let loss = model.forward(x.clone().autodiff()).square().mean();
//! let mut gradients = GradientsParams::from_grads(loss.backward(), &model);
//! add_regularizer(&model, &trainable, RegularizerForm::Paper, gamma / rate, &mut gradients);
//! let mut optimizer: ModuleOptimizer = AdamWConfig::new().init();
//! let model = optimizer.step(rate, model, gradients).valid();
//! let trained = Attached { model, state, trainable, modules };
//! let after = trained.model.forward(x.clone());
//! assert!(difference(after.clone(), before) > 1e-3);
//!
//! // Saved, loaded onto the original weights, and merged into a plain network.
//! let folder = tempfile::tempdir()?;
//! trained.snapshot().save(folder.path())?;
//! let loaded = SavedAdapter::load(folder.path())?.attach(net)?;
//! assert!(difference(loaded.model.forward(x.clone()), after.clone()) < 1e-6);
//! let (merged, _) = loaded.merge();
//! assert!(difference(merged.forward(x), after) < 1e-5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adapter;
mod attach;
mod auto_rank;
mod band;
mod cache;
mod changes;
mod config;
mod doubt;
mod error;
mod factors;
mod hand_over;
mod host_tensor;
mod install;
mod linear;
mod merged;
mod method;
mod methods;
mod packed;
mod packed_faults;
mod packed_residual;
mod parameters;
pub mod peft;
mod penalty;
mod quantization_errors;
mod quantized_start;
mod regularizer;
mod start;
mod start_memory;
mod state;
mod stiefel;
mod target;
mod watch;
mod weight_change;
mod weight_gradients;
mod weight_snapshot;

pub use adapter::{Adapter, project, project_each};
pub use attach::{AttachOptions, Attached, ModuleReport, Target};
pub use auto_rank::{RankEnergy, ResolvedRank, ResolvedRanks};
pub use band::Band;
pub use changes::TrainedPart;
pub use config::{AdapterConfig, Scaling};
pub use doubt::AdapterDoubt;
pub use error::AdapterError;
pub use hand_over::HandOverDefaults;
pub use host_tensor::HostTensorExt;
pub use linear::{Linear, LinearLayer, placeholder};
pub use merged::MergedWeights;
pub use methods::sorsa::author;
pub use methods::*;
pub use packed::{NothingPacked, OriginalWeights};
pub use packed_residual::{PackingTime, ResidualStorage};
pub use parameters::{ParameterGroup, Trainable, export_trainable, import_trainable};
pub use peft::method_of;
pub use penalty::add_penalties;
pub use quantization_errors::{ErrorNorms, QuantizationErrors, StartsToMeasure};
pub use quantized_start::StartError;
pub use regularizer::{Probes, Regularizer, RegularizerForm, RegularizerStats, add_regularizer, regularizer_gradients};
pub use sorsa_files::{HostTensor, NamedTensors, TensorFile};
pub use sorsa_linalg::tensor::Placement;
pub use sorsa_linalg::{Algorithm, SvdOptions};
pub use sorsa_ops::{PackedFormat, PackedMatrix, PackedWeight, Precision, WeightOperand};
pub use start::AlphaConvention;
pub use state::{AdapterState, ModuleState, SavedAdapter};
pub use stiefel::{Retraction, Stiefel, orthonormality_defect};
pub use watch::ModuleMeasures;
pub use weight_change::{KeptChange, KeptRank, WeightChange};
pub use weight_gradients::WeightGradients;
pub use weight_snapshot::{TrainedFactors, WeightSnapshot};
