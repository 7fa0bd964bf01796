//! Training: the step, optimizers, schedules, checkpoints and resume, metrics.

mod checkpoint;
mod config;
mod gamma;
mod gradients;
pub mod metrics;
mod optimizer;
mod repair;
mod run_length;
pub mod schedule;
pub mod tensorboard;
mod trainable;
mod trainer;

pub use checkpoint::{Best, CheckpointError, Checkpoints, RunState};
pub use config::{
    Coupling, GammaSchedule, GroupOverride, LossNormalization, OptimizerConfig, PeakRates, RegularizerConfig,
    ScheduleConfig, TrainConfig,
};
pub use gamma::GammaController;
pub use optimizer::{Decoupled, Optimizer, OptimizerKind, StepRates, UpdateRule};
pub use repair::Repair;
pub use run_length::{LastStep, steps_of_equal_epochs, total_steps};
pub use trainable::{BatchSource, TrainableModel, TrainingBatch};
pub use trainer::{Observer, RunOutcome, TrainError, Trainer, mean_loss};
