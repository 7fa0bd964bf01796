//! What several files of tests need.

use std::path::Path;

use sorsa_adapter::Attached;
use sorsa_data::Batcher;
use sorsa_models::CausalLm;
use sorsa_train::{Optimizer, TrainConfig, TrainError, Trainer};

/// Starts a run with the optimizer of its configuration.
pub fn start(
    attached: Attached<CausalLm>,
    train: Batcher,
    validation: Option<Batcher>,
    config: TrainConfig,
    run: &Path,
) -> Result<Trainer, TrainError> {
    let optimizer = Optimizer::new(config.optimizer.clone(), &attached.trainable);
    Trainer::start(attached, optimizer, train, validation, config, run)
}

/// Resumes a run with the optimizer of its configuration.
pub fn resume(
    attached: Attached<CausalLm>,
    train: Batcher,
    validation: Option<Batcher>,
    config: TrainConfig,
    run: &Path,
) -> Result<Trainer, TrainError> {
    let optimizer = Optimizer::new(config.optimizer.clone(), &attached.trainable);
    Trainer::resume(attached, optimizer, train, validation, config, run)
}
