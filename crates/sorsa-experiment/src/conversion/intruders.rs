//! Intruder dimensions of tuned weights (arXiv 2410.21228): how many there are, and a correction that scales them.

use serde::Serialize;
use sorsa_adapter::{HostTensor, HostTensorExt, WeightChange};
use sorsa_linalg::LinalgError;
use sorsa_linalg::intruder::{ComparedTriplet, OutputVectors};

use super::Difference;
use super::convert::sum;
use super::kinds::Kinds;
use crate::error::ExperimentError;
use crate::observer::{Event, Observer};

/// Which singular vectors are intruders.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IntruderOptions {
    /// Leading triplets of a tuned weight that are compared (the paper's `k`).
    pub leading: usize,
    /// An intruder has no cosine of this size with any singular vector of the base (the paper's epsilon).
    pub threshold: f64,
}

impl Default for IntruderOptions {
    fn default() -> Self {
        Self { leading: 10, threshold: 0.5 }
    }
}

/// Intruder dimensions by kind of module.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IntruderTable {
    /// Leading triplets that were compared.
    pub leading: usize,
    /// Largest cosine of an intruder.
    pub threshold: f64,
    /// By kind of module.
    pub kinds: Vec<KindIntruders>,
    /// All modules together.
    pub all: KindIntruders,
}

/// Intruder dimensions of modules together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KindIntruders {
    /// Last component of the modules' paths, or `all`.
    pub name: String,
    /// How many modules were compared.
    pub modules: usize,
    /// How many of them have an intruder.
    pub with_intruders: usize,
    /// How many intruders there are.
    pub intruders: usize,
    /// The smallest cosine of a leading vector with its nearest one of the base.
    pub smallest_cosine: f64,
    /// `s_j / s_1` of the largest intruder; 0 without one.
    pub largest: f64,
}

/// The leading triplets of one tuned weight.
pub(super) struct Intruders {
    before: OutputVectors,
    compared: Vec<ComparedTriplet>,
    threshold: f64,
}

impl Intruders {
    /// Compares the weight `[d_in, d_out]` with a change to the same weight without it.
    pub fn find(
        path: &str,
        original: &HostTensor,
        change: &WeightChange,
        options: &IntruderOptions,
    ) -> Result<Self, LinalgError> {
        let before = OutputVectors::of(path, original.matrix())?;
        let compared = before.compare(sum(original, change).matrix(), options.leading)?;
        Ok(Self { before, compared, threshold: options.threshold })
    }

    fn intruders(&self) -> impl Iterator<Item = &ComparedTriplet> {
        self.compared.iter().filter(|triplet| triplet.cosine < self.threshold)
    }

    pub fn count(&self) -> usize {
        self.intruders().count()
    }

    /// `sum_j (factor - 1) s_j u_j v_j^T` over the intruders, which scales them by `factor`; absent without any.
    pub fn correction(&self, factor: f64) -> Option<WeightChange> {
        let found: Vec<&ComparedTriplet> = self.intruders().collect();
        let first = found.first()?;
        let (d_in, d_out, count) = (first.u.len(), first.v.len(), found.len());
        let mut a = Vec::with_capacity(d_in * count);
        for i in 0..d_in {
            a.extend(found.iter().map(|triplet| (factor - 1.0) as f32 * triplet.s * triplet.u[i]));
        }
        let b = found.iter().flat_map(|triplet| triplet.v.iter().copied()).collect();
        Some(WeightChange::Product { a: HostTensor::new([d_in, count], a), b: HostTensor::new([count, d_out], b) })
    }

    /// The intruders of the weight with another change.
    pub fn count_again(
        &self,
        original: &HostTensor,
        change: &WeightChange,
        options: &IntruderOptions,
    ) -> Result<usize, LinalgError> {
        let compared = self.before.compare(sum(original, change).matrix(), options.leading)?;
        Ok(compared.iter().filter(|triplet| triplet.cosine < self.threshold).count())
    }
}

/// Counts over modules.
#[derive(Debug, Clone, Copy)]
struct Counts {
    modules: usize,
    with_intruders: usize,
    intruders: usize,
    smallest_cosine: f64,
    largest: f64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { modules: 0, with_intruders: 0, intruders: 0, smallest_cosine: 1.0, largest: 0.0 }
    }
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.modules += other.modules;
        self.with_intruders += other.with_intruders;
        self.intruders += other.intruders;
        self.smallest_cosine = self.smallest_cosine.min(other.smallest_cosine);
        self.largest = self.largest.max(other.largest);
    }

    fn row(&self, name: String) -> KindIntruders {
        let Self { modules, with_intruders, intruders, smallest_cosine, largest } = *self;
        KindIntruders { name, modules, with_intruders, intruders, smallest_cosine, largest }
    }
}

impl Difference {
    /// Compares every linear layer that differs with the base's.
    ///
    /// # Errors
    ///
    /// Those of [`convert`](Self::convert).
    pub fn intruders(
        &self,
        options: &IntruderOptions,
        observer: &mut dyn Observer,
    ) -> Result<IntruderTable, ExperimentError> {
        let (merged, total) = (self.merged(), self.linear.len());
        let mut kinds = Kinds::<Counts>::new();
        for (done, target) in self.linear.iter().enumerate() {
            observer.on_event(Event::Measuring { run: "intruders", done, total });
            let original = self.base_weight(&target.path)?;
            let Some(change) = self.change(target, &original, &merged)? else { continue };
            let found = Intruders::find(&target.path, &original, &change, options)
                .map_err(|fault| self.fault(vec![fault.to_string()]))?;
            let first = found.compared.first().map_or(1.0, |triplet| f64::from(triplet.s));
            let cosines = found.compared.iter().map(|triplet| triplet.cosine);
            kinds.of(&target.path).add(&Counts {
                modules: 1,
                with_intruders: usize::from(found.count() > 0),
                intruders: found.count(),
                smallest_cosine: cosines.fold(1.0, f64::min),
                largest: found.intruders().map(|triplet| f64::from(triplet.s) / first).fold(0.0, f64::max),
            });
        }
        observer.on_event(Event::Measured);
        let (mut all, mut rows) = (Counts::default(), Vec::new());
        for (name, counts) in kinds.into_iter() {
            all.add(&counts);
            rows.push(counts.row(name));
        }
        if rows.is_empty() {
            return Err(self.fault(vec!["no linear layer differs from the base".to_owned()]));
        }
        let IntruderOptions { leading, threshold } = *options;
        Ok(IntruderTable { leading, threshold, kinds: rows, all: all.row("all".to_owned()) })
    }
}
