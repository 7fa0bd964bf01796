//! The traits that the trainer needs of a model and its data, and their implementations for language models.

use burn::optim::GradientsParams;
use burn::prelude::*;
use sorsa_data::{Batch, Batcher, DataPosition};
use sorsa_models::{CausalLm, ModelInput, Pass};

/// A model that gives the loss of a batch, and its gradients.
pub trait TrainableModel: Module + Clone {
    /// The batches that the model is trained on.
    type Batch: TrainingBatch;

    /// The sum of the losses over the batch's targets divided by `pass.divisor`, one element without autodiff, and the
    /// gradients of all trained parameters. Returns nothing if the batch has no target. The model is on autodiff.
    fn batch_gradients(&self, batch: &Self::Batch, pass: &Pass) -> Option<(Tensor<1>, GradientsParams)>;

    /// The sum of the losses over the batch's targets, one element. Returns nothing if there is no target. The model is
    /// plain.
    fn batch_loss(&self, batch: &Self::Batch) -> Option<Tensor<1>>;

    /// The device of the parameters.
    fn parameter_device(&self) -> Device;
}

/// Sizes of a batch, for normalization and for the log.
pub trait TrainingBatch {
    /// Predictions that count in the loss.
    fn targets(&self) -> usize;

    /// Inputs, for tokens per second: tokens of a language model, rows of others.
    fn inputs(&self) -> usize;
}

/// Data in batches. A batch is a function of epoch and index, so that a run needs no generator's state to be resumed.
pub trait BatchSource {
    /// A batch for the model.
    type Batch;

    /// Number of batches in an epoch.
    fn batches_per_epoch(&self, epoch: u64) -> usize;

    /// Returns a batch by its number.
    fn batch(&self, epoch: u64, index: usize) -> Self::Batch;

    /// Returns the rows of the data file in a batch, for error messages.
    fn rows(&self, batch: &Self::Batch) -> Vec<usize>;

    /// Returns the batch at `position` and advances it. The next epoch follows the last batch of an epoch.
    fn next_batch(&self, position: &mut DataPosition) -> Self::Batch {
        if position.batch >= self.batches_per_epoch(position.epoch) {
            *position = DataPosition { epoch: position.epoch + 1, batch: 0 };
        }
        let batch = self.batch(position.epoch, position.batch);
        position.batch += 1;
        batch
    }
}

/// The model's view of a batch of tokens.
fn model_input(batch: &Batch) -> ModelInput<'_> {
    ModelInput {
        rows: batch.rows,
        len: batch.len,
        input_ids: &batch.input_ids,
        positions: &batch.positions,
        segments: &batch.segments,
    }
}

impl TrainableModel for CausalLm {
    type Batch = Batch;

    fn batch_gradients(&self, batch: &Batch, pass: &Pass) -> Option<(Tensor<1>, GradientsParams)> {
        self.loss_gradients(&model_input(batch), &batch.targets, pass)
    }

    fn batch_loss(&self, batch: &Batch) -> Option<Tensor<1>> {
        self.loss_sum(&model_input(batch), &batch.targets)
    }

    fn parameter_device(&self) -> Device {
        self.device()
    }
}

impl TrainingBatch for Batch {
    fn targets(&self) -> usize {
        self.target_tokens()
    }

    fn inputs(&self) -> usize {
        self.tokens()
    }
}

impl BatchSource for Batcher {
    type Batch = Batch;

    fn batches_per_epoch(&self, epoch: u64) -> usize {
        self.batches_per_epoch(epoch)
    }

    fn batch(&self, epoch: u64, index: usize) -> Batch {
        self.batch(epoch, index)
    }

    fn rows(&self, batch: &Batch) -> Vec<usize> {
        let examples = self.examples();
        batch.examples.iter().map(|index| examples[*index].row).collect()
    }
}
