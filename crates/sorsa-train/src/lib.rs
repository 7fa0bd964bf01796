//! Training: the step, optimizers, schedules, checkpoints and resume, metrics.

mod checkpoint;
mod config;
mod divergence;
mod gamma;
mod gradients;
mod learning_rate;
pub mod metrics;
mod optimizer;
mod repair;
mod run_length;
pub mod schedule;
pub mod tensorboard;
mod trainable;
mod trainer;
mod weight_gradients;

pub use checkpoint::{Best, CheckpointError, Checkpoints, RunState};
pub use config::{
    Coupling, GammaSchedule, GroupOverride, LossNormalization, OptimizerConfig, PeakRates, RegularizerConfig,
    ScheduleConfig, TrainConfig,
};
pub use divergence::{Divergence, DivergenceWatch};
pub use gamma::GammaController;
pub use learning_rate::LearningRate;
pub use optimizer::{Decoupled, Optimizer, OptimizerKind, StepRates, UpdateRule};
pub use repair::Repair;
pub use run_length::{LastStep, steps_of_equal_epochs, total_steps};
pub use trainable::{BatchSource, TrainableModel, TrainingBatch};
pub use trainer::{
    Observer, RateDoubt, RateRange, RateSearch, RunOutcome, TrainError, Trainer, TriedRate, mean_loss, multiple,
};
pub use weight_gradients::BatchGradients;
