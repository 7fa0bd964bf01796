//! A difference as a LoRA.

use std::collections::BTreeSet;

use serde::Serialize;
use sorsa_adapter::peft::ConvertedLora;
use sorsa_adapter::{HostTensor, KeptRank, WeightChange};
use sorsa_checkpoint::weights::ignorable;

use super::intruders::{IntruderOptions, Intruders};
use super::kinds::Kinds;
use super::{Difference, Tuned, tensor_of};
use crate::error::ExperimentError;
use crate::observer::{Event, Observer};

/// How a difference becomes a LoRA.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvertOptions {
    /// The rank of each module.
    pub rank: KeptRank,
    /// Intruder dimensions of the tuned weights to scale by a factor first, if any.
    pub intruders: Option<(IntruderOptions, f64)>,
}

/// A LoRA of a difference, and what it keeps of it.
#[derive(Debug)]
pub struct Conversion {
    /// The factors and the parameters that are replaced whole.
    pub lora: ConvertedLora,
    /// What they keep.
    pub table: ConversionTable,
}

/// What a LoRA keeps of a difference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConversionTable {
    /// By kind of module.
    pub kinds: Vec<KindConversion>,
    /// All modules together.
    pub all: KindConversion,
    /// Parameters that are no linear layers and are replaced whole.
    pub whole: Vec<String>,
    /// Parameters that differ and that the LoRA does not hold.
    pub left_out: Vec<String>,
}

/// What is kept of modules together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KindConversion {
    /// Last component of the modules' paths, or `all`.
    pub name: String,
    /// How many modules have factors.
    pub modules: usize,
    /// Smallest and largest rank.
    pub ranks: [usize; 2],
    /// `||D||_F / ||W||_F` of the difference `D` and the base `W`.
    pub change: f64,
    /// `||D_r||_F / ||D||_F` of the kept part `D_r`.
    pub kept: f64,
    /// `||D - D_r||_F / ||D||_F`.
    pub error: f64,
    /// Intruder dimensions before and after they were scaled, if they were.
    pub intruders: Option<[usize; 2]>,
    /// `||D' - D||_F / ||D||_F` of the difference `D'` with scaled intruder dimensions, if there are such.
    pub moved: Option<f64>,
}

/// Sums over modules.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    modules: usize,
    ranks: Option<[usize; 2]>,
    base: f64,
    /// Of the difference as it was.
    before: f64,
    /// Of the difference that was approximated.
    energy: f64,
    lost: f64,
    moved: f64,
    intruders: [usize; 2],
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.modules += other.modules;
        self.ranks = match (self.ranks, other.ranks) {
            (Some([low, high]), Some([one, two])) => Some([low.min(one), high.max(two)]),
            (own, other) => own.or(other),
        };
        self.base += other.base;
        self.before += other.before;
        self.energy += other.energy;
        self.lost += other.lost;
        self.moved += other.moved;
        self.intruders = [0, 1].map(|index| self.intruders[index] + other.intruders[index]);
    }

    fn row(&self, name: String, reduced: bool) -> KindConversion {
        let part = |a: f64, b: f64| if b > 0.0 { (a / b).max(0.0).sqrt() } else { 0.0 };
        KindConversion {
            name,
            modules: self.modules,
            ranks: self.ranks.unwrap_or_default(),
            change: part(self.before, self.base),
            kept: if self.energy > 0.0 { part(self.energy - self.lost, self.energy) } else { 1.0 },
            error: part(self.lost, self.energy),
            intruders: reduced.then_some(self.intruders),
            moved: reduced.then(|| part(self.moved, self.before)),
        }
    }
}

impl Difference {
    /// Makes a LoRA of the difference. Linear layers get factors; other parameters that differ are replaced whole where PEFT can do
    /// that, and are named otherwise.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Difference`] of numbers that are not finite, of a decomposition that fails, and if nothing differs.
    pub fn convert(
        &self,
        options: &ConvertOptions,
        observer: &mut dyn Observer,
    ) -> Result<Conversion, ExperimentError> {
        let mut lora = ConvertedLora::default();
        let mut kinds = Kinds::<Sums>::new();
        let (merged, total) = (self.merged(), self.linear.len());
        let whole_linear = self.whole_beside_factors();
        for (done, target) in self.linear.iter().enumerate() {
            observer.on_event(Event::Measuring { run: "changes", done, total });
            let path = target.path.as_str();
            let original = self.base_weight(path)?;
            let Some(change) = self.change(target, &original, &merged)? else { continue };
            if whole_linear.contains(path) {
                let now = sum(&original, &change);
                lora.add_whole(&format!("{path}.weight"), now.transposed());
                continue;
            }
            let failed = |fault: sorsa_linalg::LinalgError| self.fault(vec![fault.to_string()]);
            let mut sums = Sums { modules: 1, base: squares(&original.values), ..Sums::default() };
            let mut change = change;
            sums.before = energy_of(&change);
            if sums.before == 0.0 {
                continue;
            }
            if let Some((intruders, factor)) = &options.intruders {
                let found = Intruders::find(path, &original, &change, intruders).map_err(failed)?;
                if let Some(correction) = found.correction(*factor) {
                    sums.moved = energy_of(&correction);
                    change = change.plus(correction);
                }
                let left = found.count_again(&original, &change, intruders).map_err(failed)?;
                sums.intruders = [found.count(), left];
            }
            let smaller = target.shape[0].min(target.shape[1]);
            let rank = match options.rank {
                KeptRank::Rank(rank) => KeptRank::Rank(rank.min(smaller)),
                other => other,
            };
            let kept = change.kept(path, rank).map_err(failed)?;
            (sums.energy, sums.lost) = (kept.energy, kept.lost);
            sums.ranks = Some([kept.a.shape[1]; 2]);
            lora.add(path, &kept);
            kinds.of(path).add(&sums);
        }
        observer.on_event(Event::Measured);
        let (whole, left_out) = self.add_others(&mut lora)?;
        if lora.modules() == 0 {
            return Err(self.fault(vec!["no linear layer differs from the base".to_owned()]));
        }
        let reduced = options.intruders.is_some();
        let mut all = Sums::default();
        let mut rows = Vec::new();
        for (name, sums) in kinds.into_iter() {
            all.add(&sums);
            rows.push(sums.row(name, reduced));
        }
        Ok(Conversion {
            lora,
            table: ConversionTable { kinds: rows, all: all.row("all".to_owned(), reduced), whole, left_out },
        })
    }

    /// An error about the tuned weights.
    pub(super) fn fault(&self, faults: Vec<String>) -> ExperimentError {
        let path = self.terms.first().map_or_else(|| self.folder.clone(), |term| term.path.clone());
        ExperimentError::Difference { path, faults }
    }

    /// Paths of linear layers that an adapter trains whole beside its factors.
    fn whole_beside_factors(&self) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        for term in &self.terms {
            if let Tuned::Adapter(adapter) = &term.tuned
                && adapter.saved.state.config.method().is_factored()
            {
                found.extend(adapter.whole.iter().filter_map(|path| path.strip_suffix(".weight")));
            }
        }
        found
    }

    /// Adds the parameters that differ and are no weights of linear layers. Returns their names, and those of the parameters that
    /// cannot be added.
    fn add_others(&self, lora: &mut ConvertedLora) -> Result<(Vec<String>, Vec<String>), ExperimentError> {
        let is_linear = |module: &str| self.linear.iter().any(|target| target.path == module);
        let holds_linear = |module: &str| {
            let inside = format!("{module}.");
            self.linear.iter().any(|target| target.path.starts_with(&inside))
        };
        let ignorable = ignorable(self.tied.is_some());
        let (mut whole, mut left_out) = (Vec::new(), Vec::new());
        for tensor in self.base.tensors() {
            let name = &tensor.name;
            let (module, parameter) = name.rsplit_once('.').unwrap_or(("", name));
            if ignorable(name) || (parameter == "weight" && is_linear(module)) {
                continue;
            }
            let Some(now) = self.other_parameter(name)? else { continue };
            if module.is_empty() || is_linear(module) || holds_linear(module) || self.tied == Some(module) {
                left_out.push(name.clone());
            } else {
                lora.add_whole(name, now);
                whole.push(name.clone());
            }
        }
        Ok((whole, left_out))
    }

    /// The sum for a parameter that is no weight of a linear layer; absent if it is the base's.
    fn other_parameter(&self, name: &str) -> Result<Option<HostTensor>, ExperimentError> {
        let mut before: Option<HostTensor> = None;
        let mut now: Option<HostTensor> = None;
        for term in &self.terms {
            let tuned = match &term.tuned {
                Tuned::Model(tuned) => tensor_of(tuned, name, &term.path)?,
                Tuned::Adapter(adapter) => match adapter.saved.trained.get(name) {
                    Some(tensor) => tensor.clone(),
                    None => continue,
                },
            };
            let before = match &mut before {
                Some(before) => before,
                None => before.insert(tensor_of(&self.base, name, &self.folder)?),
            };
            if tuned.values == before.values {
                continue;
            }
            let sum = now.get_or_insert_with(|| before.clone());
            for ((sum, tuned), before) in sum.values.iter_mut().zip(&tuned.values).zip(&before.values) {
                *sum += (term.weight * f64::from(tuned - before)) as f32;
            }
        }
        Ok(now)
    }
}

/// `W + D`.
pub(super) fn sum(original: &HostTensor, change: &WeightChange) -> HostTensor {
    let dense = change.dense();
    let columns = original.shape[1];
    let added = |(index, value): (usize, &f32)| value + dense[(index / columns, index % columns)];
    HostTensor::new(original.shape.clone(), original.values.iter().enumerate().map(added).collect())
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum()
}

/// `||D||_F^2`.
fn energy_of(change: &WeightChange) -> f64 {
    match change {
        WeightChange::Dense(matrix) => squares(&matrix.values),
        // The dense product of a small adapter costs less than what follows.
        product => product.dense().squared_norm_l2().into(),
    }
}
