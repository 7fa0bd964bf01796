//! The search for the learning rate of a run: where it begins, and the largest rate that it finds.

use sorsa_train::{Optimizer, OptimizerConfig, OptimizerKind, RateRange, RateSearch, Trainer};

use crate::error::ExperimentError;
use crate::observer::{Event, Observer};
use crate::recipe::Recipe;

/// The largest rate of AdamW that a search finds. A step moves a number by about the rate, and factors and weights are far smaller than 1:
/// a few rows of data that ask for more are learned by heart.
const LARGEST_RATE: f64 = 1.0;

/// The best rate of a short run of AdamW that trains whole weights, as a multiple of the best rate of a trial (`docs/experiments.md`). Rates at
/// which the loss rises in the first steps and then falls for long are good for it.
const MULTIPLE_OF_WHOLE_WEIGHTS: f64 = 2.5;

/// Finds the learning rate of a recipe that names none.
///
/// # Errors
///
/// The errors of the trials.
pub fn find_learning_rate(
    trainer: &mut Trainer,
    recipe: &Recipe,
    observer: &mut dyn Observer,
) -> Result<RateSearch, ExperimentError> {
    let with_rate = optimizer_with(recipe, trainer);
    observer.on_event(Event::FindingLearningRate { steps: 0 });
    let mut progress = |steps| observer.on_event(Event::FindingLearningRate { steps });
    let kind = recipe.train.optimizer.kind;
    let range = RateRange {
        guess: recipe.learning_rate_guess(),
        largest: LARGEST_RATE * kind.relative_rate(),
        multiple: match kind {
            OptimizerKind::AdamW if !recipe.adapter.method().is_factored() => MULTIPLE_OF_WHOLE_WEIGHTS,
            _ => 1.0,
        },
    };
    Ok(trainer.find_learning_rate(&with_rate, range, &mut progress)?)
}

/// Makes the optimizer of a recipe with a peak rate.
pub fn optimizer_with(recipe: &Recipe, trainer: &Trainer) -> impl Fn(f64) -> Optimizer + use<> {
    let (config, trainable) = (recipe.train.optimizer.clone(), trainer.trainable().to_vec());
    move |rate| Optimizer::new(OptimizerConfig { learning_rate: rate.into(), ..config.clone() }, &trainable)
}
