//! The settings of a training run, as a recipe spells them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sorsa_adapter::{ParameterGroup, Probes, Regularizer, RegularizerForm};
use sorsa_models::{ActivationFormat, MatmulPrecision};

use crate::learning_rate::LearningRate;
use crate::optimizer::OptimizerKind;
use crate::schedule::{Schedule, ScheduleKind};

/// Length, evaluation, checkpoints, optimizer and regularizer of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Sequences (or packs) of one micro-batch.
    pub batch_size: usize,
    /// Micro-batches of one optimizer step.
    pub accumulation: usize,
    /// Passes over the training data.
    pub epochs: f64,
    /// Ends the run after this many steps if `epochs` gives more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Evaluate every so many steps, and at the end; 0: at the end only.
    pub eval_every: u64,
    /// Checkpoint every so many steps, and at the end; 0: at the end only.
    pub checkpoint_every: u64,
    /// Checkpoints kept besides the best one.
    pub keep_checkpoints: usize,
    /// Stop after so many evaluations in a row without a lower loss; 0: never.
    pub early_stopping: usize,
    /// Ends the run with a checkpoint if its training loss diverges; see [`Divergence`](crate::Divergence).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stop_on_divergence: bool,
    /// What the summed loss of a step is divided by.
    pub loss_normalization: LossNormalization,
    /// Largest global norm of the task's gradient; 0: no clipping.
    pub clip_norm: f64,
    /// Largest magnitude of a number of the task's gradient; 0: no clipping. It comes before the global norm's.
    #[serde(skip_serializing_if = "is_zero")]
    pub clip_value: f64,
    /// Measure condition numbers and defects every so many steps, before the first one and at the end; 0: never.
    #[serde(skip_serializing_if = "is_default")]
    pub watch_every: u64,
    /// Weights of each kind of module whose condition number is measured whole, each by all of its singular values.
    #[serde(skip_serializing_if = "is_one")]
    pub watch_weights: usize,
    /// Keep only the inputs of each block for the backward pass, and run each block twice: less memory, more time.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub checkpoint_blocks: bool,
    /// Format in which the backward pass gets activations: `"bf16"` takes half of their memory and rounds gradients.
    #[serde(skip_serializing_if = "is_default")]
    pub activations: ActivationFormat,
    /// The precision of products with weights in f32, on the CPU; see [`MatmulPrecision`].
    #[serde(skip_serializing_if = "is_default")]
    pub matmul_precision: MatmulPrecision,
    /// Seed of data order and dropout.
    pub seed: u64,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The schedule of learning rate and gamma.
    pub schedule: ScheduleConfig,
    /// The regularizer of the factors' vectors.
    pub regularizer: RegularizerConfig,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            batch_size: 16,
            accumulation: 1,
            epochs: 1.0,
            max_steps: None,
            eval_every: 100,
            checkpoint_every: 100,
            keep_checkpoints: 2,
            early_stopping: 0,
            stop_on_divergence: false,
            loss_normalization: LossNormalization::Step,
            clip_norm: 1.0,
            clip_value: 0.0,
            watch_every: 0,
            watch_weights: 1,
            checkpoint_blocks: false,
            activations: ActivationFormat::F32,
            matmul_precision: MatmulPrecision::default(),
            seed: 42,
            optimizer: OptimizerConfig::default(),
            schedule: ScheduleConfig::default(),
            regularizer: RegularizerConfig::default(),
        }
    }
}

/// What the loss of an optimizer step is averaged over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossNormalization {
    /// All target tokens of the step: accumulation gives the gradient of the large batch.
    Step,
    /// The micro-batches' means (the author's trainer).
    MicroBatch,
}

/// The optimizer, with settings by kind of parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "OptimizerFields")]
pub struct OptimizerConfig {
    /// Which optimizer: AdamW if a recipe names none.
    #[serde(skip_serializing_if = "is_adamw")]
    pub kind: OptimizerKind,
    /// Peak learning rate, or `"auto"`.
    pub learning_rate: LearningRate,
    /// Decoupled weight decay; in SGD and RMSprop a part of the gradient.
    pub weight_decay: f64,
    /// Decay of the gradients' running mean; the momentum in SGD, RMSprop and Muon.
    pub beta1: f64,
    /// Decay of the running mean of squared gradients; of the running mean itself in Lion.
    pub beta2: f64,
    /// Added to the root of the mean square; unused by Lion and SGD.
    pub epsilon: f64,
    /// Other settings for the singular values of SORSA.
    pub singular_values: GroupOverride,
    /// Other settings for the magnitudes of DoRA.
    pub magnitudes: GroupOverride,
    /// Multiples of the learning rate by the name of a factor. `{ b = 16.0 }` is LoRA+ (arXiv 2402.12354).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub factor_rates: BTreeMap<String, f64>,
}

/// Settings that replace the optimizer's for one kind of parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupOverride {
    /// Peak learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Decoupled weight decay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerKind::default().defaults()
    }
}

/// The fields of an [`OptimizerConfig`] that a file names. An absent field takes the default of the optimizer `kind`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct OptimizerFields {
    kind: OptimizerKind,
    learning_rate: Option<LearningRate>,
    weight_decay: Option<f64>,
    beta1: Option<f64>,
    beta2: Option<f64>,
    epsilon: Option<f64>,
    singular_values: GroupOverride,
    magnitudes: GroupOverride,
    factor_rates: BTreeMap<String, f64>,
}

impl From<OptimizerFields> for OptimizerConfig {
    fn from(fields: OptimizerFields) -> Self {
        let defaults = fields.kind.defaults();
        Self {
            kind: fields.kind,
            learning_rate: fields.learning_rate.unwrap_or(defaults.learning_rate),
            weight_decay: fields.weight_decay.unwrap_or(defaults.weight_decay),
            beta1: fields.beta1.unwrap_or(defaults.beta1),
            beta2: fields.beta2.unwrap_or(defaults.beta2),
            epsilon: fields.epsilon.unwrap_or(defaults.epsilon),
            singular_values: fields.singular_values,
            magnitudes: fields.magnitudes,
            factor_rates: fields.factor_rates,
        }
    }
}

/// Recipes of the first version have no such field.
fn is_adamw(kind: &OptimizerKind) -> bool {
    *kind == OptimizerKind::AdamW
}

impl OptimizerConfig {
    /// The rates, without the settings of the update rule.
    ///
    /// # Panics
    ///
    /// If the learning rate is `auto`: the caller finds its number first.
    pub fn rates(&self) -> PeakRates {
        let learning_rate = self.learning_rate.number().expect("the learning rate is still to be found");
        PeakRates {
            learning_rate,
            weight_decay: self.weight_decay,
            singular_values: self.singular_values,
            magnitudes: self.magnitudes,
        }
    }
}

/// Peak learning rate and weight decay, by kind of parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PeakRates {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Other rates for the singular values of SORSA.
    pub singular_values: GroupOverride,
    /// Other rates for the magnitudes of DoRA.
    pub magnitudes: GroupOverride,
}

impl PeakRates {
    /// Peak learning rate and weight decay of a kind of parameter.
    pub fn of(&self, group: ParameterGroup) -> (f64, f64) {
        let other = match group {
            ParameterGroup::SingularValues => self.singular_values,
            ParameterGroup::Magnitude => self.magnitudes,
            ParameterGroup::Factor | ParameterGroup::Dense => GroupOverride::default(),
        };
        (other.learning_rate.unwrap_or(self.learning_rate), other.weight_decay.unwrap_or(self.weight_decay))
    }
}

/// Shape of the schedule. The run sets its length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Cosine, linear or constant.
    pub kind: ScheduleKind,
    /// Fraction of the steps in which the rate rises from 0 to its peak; their number is rounded up.
    pub warmup_ratio: f64,
    /// The end of a decaying schedule, as a share of the peak.
    pub min_ratio: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::Cosine, warmup_ratio: 0.03, min_ratio: 0.0 }
    }
}

impl ScheduleConfig {
    /// The schedule over `total_steps`.
    pub fn over(&self, total_steps: u64) -> Schedule {
        let warmup_steps = (self.warmup_ratio * total_steps as f64).ceil() as u64;
        Schedule { kind: self.kind, warmup_steps, total_steps, min_ratio: self.min_ratio }
    }
}

/// How the regularizer enters the update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coupling {
    /// `(gamma / eta_max) grad L_reg` joins the gradient after clipping and goes through Adam (the author's trainer).
    Gradient,
    /// `U <- U - gamma_t grad L_reg` beside Adam's step (the paper's equation).
    Decoupled,
}

/// How the weight of the regularizer changes in a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GammaSchedule {
    /// It follows the learning rate: `gamma_t = gamma eta_t / eta_max` (the paper).
    #[default]
    LearningRate,
    /// It stays: `gamma_t = gamma`.
    Constant,
}

/// The regularizer of the factors' vectors: orthonormal ones in SORSA, orthogonal ones in other methods.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegularizerConfig {
    /// Its weight in SORSA.
    pub gamma: f64,
    /// Its weight in a method that has no regularizer of its own (PiSSA, LoRA, DoRA, OLoRA); 0: none. A recipe of an
    /// earlier build has a `gamma` for every method and means none, so that this is another field.
    #[serde(skip_serializing_if = "is_zero")]
    pub orthogonal_gamma: f64,
    /// Sum of norms, mean of norms, sum of squares, or sum of spectral or nuclear norms.
    pub form: RegularizerForm,
    /// How it enters the update.
    pub coupling: Coupling,
    /// Divides gamma by the number of micro-batches, as the author's published runs did.
    pub author_accumulation: bool,
    /// Whether the weight follows the learning rate.
    #[serde(skip_serializing_if = "is_default")]
    pub schedule: GammaSchedule,
    /// Computes it in every so many steps, with so many times the weight.
    #[serde(skip_serializing_if = "is_one")]
    pub every: u64,
    /// Estimates it with so many random vectors; 0: computes it.
    #[serde(skip_serializing_if = "is_default")]
    pub probes: usize,
    /// Adapts the weight so that the measured mean defect becomes this one: [`GammaController`](crate::GammaController).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_defect: Option<f64>,
}

impl RegularizerConfig {
    /// What is computed in a step whose random numbers have the seed `seed`.
    pub fn regularizer(&self, seed: u64) -> Regularizer {
        let probes = match self.probes {
            0 => None,
            count => Some(Probes { count, seed }),
        };
        Regularizer { form: self.form, probes }
    }
}

impl Default for RegularizerConfig {
    fn default() -> Self {
        Self {
            gamma: 4e-4,
            orthogonal_gamma: 0.0,
            form: RegularizerForm::Paper,
            coupling: Coupling::Gradient,
            author_accumulation: false,
            schedule: GammaSchedule::LearningRate,
            every: 1,
            probes: 0,
            target_defect: None,
        }
    }
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// Recipes of earlier builds lack the fields that are left out at their defaults.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_one<T: From<u8> + PartialEq>(value: &T) -> bool {
    *value == T::from(1)
}

impl TrainConfig {
    /// Lists every invalid setting in words.
    pub fn faults(&self) -> Vec<String> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        let mut faults = Vec::new();
        let mut check = |holds: bool, text: &str| {
            if !holds {
                faults.push(text.to_owned());
            }
        };
        check(self.batch_size > 0, "train.batch_size must be at least 1");
        check(self.accumulation > 0, "train.accumulation must be at least 1");
        check(positive(self.epochs), "train.epochs must be positive");
        check(self.max_steps != Some(0), "train.max_steps must be at least 1");
        check(not_negative(self.clip_norm), "train.clip_norm must be 0 or more");
        check(not_negative(self.clip_value), "train.clip_value must be 0 or more");
        check(
            self.optimizer.learning_rate.number().is_none_or(positive),
            "train.optimizer.learning_rate must be positive",
        );
        check(not_negative(self.optimizer.weight_decay), "train.optimizer.weight_decay must be 0 or more");
        for (holds, text) in self.optimizer.kind.checks(&self.optimizer) {
            check(holds, text);
        }
        check((0.0..=1.0).contains(&self.schedule.warmup_ratio), "train.schedule.warmup_ratio must be in [0, 1]");
        check((0.0..=1.0).contains(&self.schedule.min_ratio), "train.schedule.min_ratio must be in [0, 1]");
        check(not_negative(self.regularizer.gamma), "train.regularizer.gamma must be 0 or more");
        let orthogonal_gamma = self.regularizer.orthogonal_gamma;
        check(not_negative(orthogonal_gamma), "train.regularizer.orthogonal_gamma must be 0 or more");
        check(self.regularizer.target_defect.is_none_or(positive), "train.regularizer.target_defect must be positive");
        check(self.regularizer.every > 0, "train.regularizer.every must be at least 1");
        check(
            self.regularizer.probes == 0 || self.regularizer.form.has_probes(),
            "train.regularizer.probes must be 0 with the forms spectral and nuclear, which have no estimate",
        );
        for (factor, rate) in &self.optimizer.factor_rates {
            let text = format!("train.optimizer.factor_rates.{factor} must be 0 or more");
            check(not_negative(*rate), &text);
        }
        let groups = [("singular_values", self.optimizer.singular_values), ("magnitudes", self.optimizer.magnitudes)];
        for (name, group) in groups {
            // A rate of 0 keeps a kind of parameter as it is.
            let rates = [("learning_rate", group.learning_rate), ("weight_decay", group.weight_decay)];
            for (field, rate) in rates {
                let holds = rate.is_none_or(not_negative);
                check(holds, &format!("train.optimizer.{name}.{field} must be 0 or more"));
            }
        }
        for (name, value) in self.numbers_of_f32() {
            // Other values than these have a fault already.
            if positive(value) && !(value as f32).is_normal() {
                let range = format!("{:e} to {:e}", f32::MIN_POSITIVE, f32::MAX);
                check(false, &format!("{name} must be in the range of f32, {range}, found {value:e}"));
            }
        }
        faults
    }

    /// The settings that updates compute with as f32, by name, if they are not 0.
    fn numbers_of_f32(&self) -> Vec<(&'static str, f64)> {
        let (optimizer, regularizer) = (&self.optimizer, &self.regularizer);
        let mut numbers = vec![
            ("train.optimizer.weight_decay", optimizer.weight_decay),
            ("train.optimizer.epsilon", optimizer.epsilon),
            ("train.regularizer.gamma", regularizer.gamma),
            ("train.regularizer.orthogonal_gamma", regularizer.orthogonal_gamma),
            ("train.clip_value", self.clip_value),
        ];
        let others = [
            ("train.optimizer.learning_rate", optimizer.learning_rate.number()),
            ("train.regularizer.target_defect", regularizer.target_defect),
            ("train.optimizer.singular_values.learning_rate", optimizer.singular_values.learning_rate),
            ("train.optimizer.singular_values.weight_decay", optimizer.singular_values.weight_decay),
            ("train.optimizer.magnitudes.learning_rate", optimizer.magnitudes.learning_rate),
            ("train.optimizer.magnitudes.weight_decay", optimizer.magnitudes.weight_decay),
        ];
        numbers.extend(others.into_iter().filter_map(|(name, value)| Some((name, value?))));
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_field_takes_the_default_of_the_named_optimizer() {
        for kind in OptimizerKind::ALL {
            let read = toml::from_str::<OptimizerConfig>(&format!("kind = \"{kind}\"")).unwrap();
            assert_eq!(read, kind.defaults());
            let read = toml::from_str::<OptimizerConfig>(&format!("beta2 = 0.5\nkind = \"{kind}\"")).unwrap();
            assert_eq!(read, OptimizerConfig { beta2: 0.5, ..kind.defaults() });
            let written = toml::to_string(&kind.defaults()).unwrap();
            assert_eq!(toml::from_str::<OptimizerConfig>(&written).unwrap(), kind.defaults());
            assert_eq!(written.contains("kind"), kind != OptimizerKind::AdamW);
        }
        assert_eq!(toml::from_str::<OptimizerConfig>("").unwrap(), OptimizerConfig::default());
        assert!(toml::from_str::<OptimizerConfig>("beta3 = 0.5").is_err());
    }

    #[test]
    fn a_setting_is_checked_by_the_optimizer_that_uses_it() {
        let faults = |kind| {
            toml::from_str::<TrainConfig>(&format!("optimizer = {{ kind = \"{kind}\", epsilon = 0.0, beta1 = 1.0 }}"))
                .unwrap()
                .faults()
        };
        let beta1 = "train.optimizer.beta1 must be in [0, 1)";
        assert_eq!(faults("adamw"), ["train.optimizer.epsilon must be positive", beta1]);
        assert_eq!(faults("lion"), [beta1]);
    }

    #[test]
    fn a_number_that_is_0_or_infinite_in_f32_is_a_fault() {
        for setting in [
            "optimizer.epsilon = 1e-46",
            "optimizer.learning_rate = 1e-300",
            "optimizer.learning_rate = 1e300",
            "optimizer.weight_decay = 1e39",
            "optimizer.singular_values.learning_rate = 1e-39",
            "regularizer.gamma = 1e300",
            "regularizer.orthogonal_gamma = 1e300",
            "regularizer.target_defect = 1e-50",
        ] {
            let faults = toml::from_str::<TrainConfig>(setting).unwrap().faults();
            let (name, value) = setting.split_once(" = ").unwrap();
            let range = "must be in the range of f32, 1.1754944e-38 to 3.4028235e38, found";
            assert_eq!(faults, [format!("train.{name} {range} {value}")]);
        }
    }

    #[test]
    fn a_warmup_ratio_rounds_up() {
        let with = |warmup_ratio, total_steps| ScheduleConfig { warmup_ratio, ..Default::default() }.over(total_steps);
        assert_eq!(with(0.03, 782).warmup_steps, 24);
        assert_eq!(with(0.03, 1).warmup_steps, 1);
        assert_eq!(with(0.0, 782).warmup_steps, 0);
        assert_eq!(with(0.0, 782).factor(0), 1.0);
    }

    #[test]
    fn every_setting_that_makes_no_sense_is_named() {
        assert_eq!(TrainConfig::default().faults(), [""; 0]);
        let settings = [
            ("clip_norm = inf", "train.clip_norm"),
            ("epochs = nan", "train.epochs"),
            ("optimizer.learning_rate = inf", "train.optimizer.learning_rate"),
            ("optimizer.weight_decay = -1.0", "train.optimizer.weight_decay"),
            ("optimizer.epsilon = 0.0", "train.optimizer.epsilon"),
            ("optimizer.beta2 = 1.0", "train.optimizer.beta2"),
            ("optimizer.singular_values.learning_rate = -1e-3", "train.optimizer.singular_values.learning_rate"),
            ("optimizer.magnitudes.weight_decay = nan", "train.optimizer.magnitudes.weight_decay"),
            ("regularizer.gamma = inf", "train.regularizer.gamma"),
            ("regularizer.orthogonal_gamma = -1e-4", "train.regularizer.orthogonal_gamma"),
            ("regularizer.target_defect = 0.0", "train.regularizer.target_defect"),
        ];
        for (setting, name) in settings {
            let faults = toml::from_str::<TrainConfig>(setting).unwrap().faults();
            assert!(faults.len() == 1 && faults[0].starts_with(&format!("{name} must ")), "{setting}: {faults:?}");
        }
    }
}
