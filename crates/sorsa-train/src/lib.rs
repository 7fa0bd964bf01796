//! Training: the step, optimizers, schedules, checkpoints and resume, metrics.

mod checkpoint;
mod config;
mod gradients;
pub mod metrics;
mod optimizer;
mod repair;
pub mod schedule;
pub mod tensorboard;
mod trainable;
mod trainer;

pub use checkpoint::{Best, CheckpointError, Checkpoints, RunState};
pub use config::{
    Coupling, GroupOverride, LossNormalization, OptimizerConfig, RegularizerConfig, ScheduleConfig, TrainConfig,
};
pub use optimizer::{Decoupled, Optimizer, OptimizerKind, StepRates, UpdateRule};
pub use repair::Repair;
pub use trainable::{BatchSource, TrainableModel, TrainingBatch};
pub use trainer::{Observer, RunOutcome, TrainError, Trainer, mean_loss, total_steps};
