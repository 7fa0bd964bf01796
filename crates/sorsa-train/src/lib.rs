//! Training of language models: the step, the optimizer, schedules, checkpoints and resume, metrics.

mod checkpoint;
mod config;
mod gradients;
pub mod metrics;
mod optimizer;
pub mod schedule;
pub mod tensorboard;
mod trainer;

pub use checkpoint::{Best, CheckpointError, Checkpoints, RunState};
pub use config::{
    Coupling, GroupOverride, LossNormalization, OptimizerConfig, RegularizerConfig, ScheduleConfig, TrainConfig,
};
pub use optimizer::{AdamW, Decoupled};
pub use trainer::{Observer, Outcome, TrainError, Trainer, mean_loss, total_steps};
