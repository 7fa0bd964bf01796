//! The length of a run: which batches of each epoch it reads, and how many optimizer steps that takes.
//!
//! A step takes `accumulation` batches, the last step of an epoch what is left. So no batch is read twice in an epoch, and
//! with `n` batches and `a` of them in a step, an epoch has `ceil(n / a)` steps. A run of 2.5 epochs reads two epochs and the
//! first half of the third.

use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::trainable::BatchSource;

/// What the last step of an epoch does if fewer batches are left than a step takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LastStep {
    /// It takes what is left.
    #[default]
    TakesTheRest,
    /// It takes batches of the next epoch too, like in runs of builds that did not write this field. Such a run is
    /// resumed with the steps that it was started with.
    TakesTheNextEpoch,
}

impl LastStep {
    /// What runs of earlier builds do, whose checkpoints do not say it.
    pub(crate) fn of_earlier_builds() -> Self {
        Self::TakesTheNextEpoch
    }
}

/// Which batches of each epoch a run reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunLength {
    last_step: LastStep,
    accumulation: usize,
    /// Epochs that are read whole.
    whole_epochs: u64,
    /// Batches of the epoch after them.
    rest: usize,
    /// Batches of the run, if all epochs are like the first.
    batches: f64,
    max_steps: u64,
}

impl RunLength {
    /// The length of a run whose first epoch has so many batches.
    pub fn new(config: &TrainConfig, first_epoch: usize, last_step: LastStep) -> Self {
        let (batches, whole_epochs) = (first_epoch as f64 * config.epochs, config.epochs.floor());
        Self {
            last_step,
            accumulation: config.accumulation.max(1),
            whole_epochs: whole_epochs as u64,
            rest: (batches.ceil() - first_epoch as f64 * whole_epochs) as usize,
            batches,
            max_steps: config.max_steps.unwrap_or(u64::MAX),
        }
    }

    /// How many batches of an epoch the run reads, of the `batches` that the epoch has.
    fn batches(&self, epoch: u64, batches: usize) -> usize {
        if epoch == self.whole_epochs { self.rest.min(batches) } else { batches }
    }

    /// How many batches the next step takes, if `done` of an epoch's `batches` are read, fewer than it has.
    pub fn batches_of_step(&self, epoch: u64, batches: usize, done: usize) -> usize {
        match self.last_step {
            LastStep::TakesTheNextEpoch => self.accumulation,
            LastStep::TakesTheRest => self.batches(epoch, batches).saturating_sub(done).clamp(1, self.accumulation),
        }
    }

    /// Optimizer steps of the run. `batches_of` gives the number of batches of an epoch.
    pub fn steps(&self, batches_of: impl Fn(u64) -> usize) -> u64 {
        if self.last_step == LastStep::TakesTheNextEpoch {
            let steps = (self.batches / self.accumulation as f64).ceil().max(1.0) as u64;
            return steps.min(self.max_steps);
        }
        let (mut steps, mut epoch) = (0, 0);
        while steps < self.max_steps && (epoch < self.whole_epochs || (epoch == self.whole_epochs && self.rest > 0)) {
            steps += self.batches(epoch, batches_of(epoch)).div_ceil(self.accumulation) as u64;
            epoch += 1;
        }
        steps.clamp(1, self.max_steps.max(1))
    }
}

/// Optimizer steps of a run over `train`.
pub fn total_steps(config: &TrainConfig, train: &impl BatchSource) -> u64 {
    let length = RunLength::new(config, train.batches_per_epoch(0), LastStep::default());
    length.steps(|epoch| train.batches_per_epoch(epoch))
}

/// Optimizer steps of a run each of whose epochs has so many batches.
pub fn steps_of_equal_epochs(config: &TrainConfig, batches_per_epoch: usize) -> u64 {
    RunLength::new(config, batches_per_epoch, LastStep::default()).steps(|_| batches_per_epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(accumulation: usize, epochs: f64, max_steps: Option<u64>) -> TrainConfig {
        TrainConfig { accumulation, epochs, max_steps, ..TrainConfig::default() }
    }

    /// The sizes of all steps, by walking through the run.
    fn walk(config: &TrainConfig, batches_of: &dyn Fn(u64) -> usize) -> Vec<(u64, usize)> {
        let length = RunLength::new(config, batches_of(0), LastStep::TakesTheRest);
        let (mut sizes, mut epoch, mut done) = (Vec::new(), 0, 0);
        for _ in 0..length.steps(batches_of) {
            if done >= batches_of(epoch) {
                (epoch, done) = (epoch + 1, 0);
            }
            let size = length.batches_of_step(epoch, batches_of(epoch), done);
            sizes.push((epoch, size));
            done += size;
        }
        sizes
    }

    #[test]
    fn the_last_step_of_an_epoch_takes_what_is_left() {
        let ten = |_| 10;
        let sizes = |accumulation, epochs| walk(&config(accumulation, epochs, None), &ten);
        assert_eq!(sizes(4, 1.0), [(0, 4), (0, 4), (0, 2)]);
        assert_eq!(sizes(4, 1.5), [(0, 4), (0, 4), (0, 2), (1, 4), (1, 1)]);
        assert_eq!(sizes(4, 0.5), [(0, 4), (0, 1)]);
        assert_eq!(sizes(64, 2.0), [(0, 10), (1, 10)]);
        assert_eq!(sizes(1, 0.5).len(), 5);
        assert_eq!(sizes(4, 1e-9), [(0, 1)]);
        // 0.1 and 1.1 are not exact: a run without accumulation has as many steps as it always had.
        for epochs in [0.1, 0.3, 1.1, 2.3, 3.4, 7.0] {
            assert_eq!(sizes(1, epochs).len(), (10.0 * epochs).ceil() as usize, "{epochs}");
        }
    }

    #[test]
    fn every_batch_of_a_whole_epoch_is_read_once_also_if_epochs_differ() {
        let batches_of = |epoch: u64| [7, 8, 6, 7][epoch as usize % 4];
        for accumulation in 1..12 {
            let sizes = walk(&config(accumulation, 4.0, None), &batches_of);
            for epoch in 0..4 {
                let read: usize = sizes.iter().filter(|size| size.0 == epoch).map(|size| size.1).sum();
                assert_eq!(read, batches_of(epoch), "accumulation {accumulation}, epoch {epoch}");
            }
        }
    }

    #[test]
    fn the_largest_number_of_steps_ends_a_run_of_any_number_of_epochs() {
        assert_eq!(steps_of_equal_epochs(&config(4, 1e300, Some(7)), 10), 7);
        assert_eq!(steps_of_equal_epochs(&config(4, 1.0, Some(7)), 10), 3);
        assert_eq!(steps_of_equal_epochs(&config(1, 1e-9, Some(7)), 10), 1);
    }

    #[test]
    fn a_run_of_an_earlier_build_has_the_steps_that_it_was_started_with() {
        let length = RunLength::new(&config(4, 1.0, None), 10, LastStep::of_earlier_builds());
        assert_eq!((length.steps(|_| 10), length.batches_of_step(0, 10, 8)), (3, 4));
        let length = RunLength::new(&config(4, 2.0, None), 10, LastStep::of_earlier_builds());
        assert_eq!(length.steps(|_| 10), 5);
    }
}
