//! The difference between tuned weights and their base, whatever the tuned weights are: a model's folder, a fine-tuning run, an adapter of
//! this program or of PEFT, or a weighted sum of such. It becomes a LoRA ([`Difference::convert`]), and its intruder dimensions can be
//! counted ([`Difference::intruders`]). Weights are read one at a time.

mod convert;
mod intruders;
mod kinds;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::prelude::Device;
use sorsa_adapter::{AdapterConfig, Attached, HostTensor, MergedWeights, Method, SavedAdapter, Target, WeightChange};
use sorsa_checkpoint::weights::ignorable;
use sorsa_checkpoint::{ModelSource, PackingFormats};
use sorsa_models::{CausalLm, WeightFormat};

pub use self::convert::{Conversion, ConversionTable, ConvertOptions, KindConversion};
pub use self::intruders::{IntruderOptions, IntruderTable, KindIntruders};
use crate::adapter::{BaseModel, LoadedAdapter};
use crate::error::ExperimentError;
use crate::observer::Observer;
use crate::packed_on_read::PackedOnRead;

/// Weights of unrelated models have a cosine near 0, those of a fine-tuned model and its base one near 1.
const SMALLEST_COSINE: f64 = 0.5;

/// Tuned weights.
enum Tuned {
    /// A whole model.
    Model(Box<ModelSource>),
    /// An adapter of the base.
    Adapter(Box<TunedAdapter>),
}

struct TunedAdapter {
    saved: SavedAdapter,
    /// Parameters that the adapter trains whole, by path.
    whole: BTreeSet<String>,
    /// The model with the adapter, if its changes are no products of factors.
    attached: Option<Attached<CausalLm>>,
}

/// One of the tuned weights in a sum.
struct Term {
    weight: f64,
    path: PathBuf,
    tuned: Tuned,
}

/// A weighted sum of differences between tuned weights and their base.
pub struct Difference {
    base: ModelSource,
    folder: PathBuf,
    device: Device,
    linear: Vec<Target>,
    /// The embedding, if it is the head too.
    tied: Option<&'static str>,
    terms: Vec<Term>,
}

impl Difference {
    /// The difference of nothing to the base in `folder`. Models are loaded on `device`.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Source`] of a base that cannot be read.
    pub fn to_base(folder: &Path, device: &Device) -> Result<Self, ExperimentError> {
        let base = ModelSource::open(folder)?;
        let model = CausalLm::init(base.config(), device);
        let linear = AdapterConfig::new(Method::Partial, 1, &["re:.*"]).targets(&model)?;
        let tied = base.config().tie_word_embeddings.then(|| model.embedding_path());
        Ok(Self { base, folder: folder.to_owned(), device: device.clone(), linear, tied, terms: Vec::new() })
    }

    /// Adds `weight` times the change from the base to the model in `folder`.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Difference`] with every tensor that is missing or misshapen, or if the model is no tuned version of the base.
    pub fn add_model(&mut self, folder: &Path, weight: f64) -> Result<(), ExperimentError> {
        let tuned = ModelSource::open(folder)?;
        let faults = self.shape_faults(&tuned);
        let path = folder.to_owned();
        if !faults.is_empty() {
            return Err(ExperimentError::Difference { path, faults });
        }
        self.check_related(&tuned, &path)?;
        self.terms.push(Term { weight, path, tuned: Tuned::Model(Box::new(tuned)) });
        Ok(())
    }

    /// Adds `weight` times the change by the adapter in `folder`, or in the run there. `name` is the name of the base, `quantize` the
    /// format that it is packed in while it is read for the adapter.
    ///
    /// # Errors
    ///
    /// Those of [`LoadedAdapter::read`]; [`ExperimentError::Adapter`] of an adapter of other weights.
    pub fn add_adapter(
        &mut self,
        folder: &Path,
        weight: f64,
        (name, quantize): (&str, Option<PackingFormats>),
        observer: &mut dyn Observer,
    ) -> Result<(), ExperimentError> {
        let source = match quantize {
            Some(format) => ModelSource::open(&self.folder)?.with_packing(format)?,
            None => ModelSource::open(&self.folder)?,
        };
        let model = CausalLm::load_from(&source, WeightFormat::F32, &self.device)?;
        let base = BaseModel { name, folder: &self.folder, quantize };
        let LoadedAdapter { model, saved } = LoadedAdapter::read(model, base, folder, observer)?;
        let originals = PackedOnRead::open(&self.folder, quantize)?;
        saved.check_weights(&model, &originals)?;
        let whole = saved.whole_parameters(&model).into_iter().map(|(path, _)| path).collect();
        let attached = match saved.changes_by_products() {
            true => None,
            false => Some(saved.attach_with(model, &originals)?),
        };
        let tuned = Tuned::Adapter(Box::new(TunedAdapter { saved, whole, attached }));
        self.terms.push(Term { weight, path: folder.to_owned(), tuned });
        Ok(())
    }

    /// Whether all changes are products of factors, whose rank is small.
    pub fn is_of_low_rank(&self) -> bool {
        self.terms.iter().all(|term| match &term.tuned {
            Tuned::Model(_) => false,
            Tuned::Adapter(adapter) => adapter.attached.is_none() && adapter.saved.state.config.method().is_factored(),
        })
    }

    /// A line for each tensor that only one of the models has, or that has another shape.
    fn shape_faults(&self, tuned: &ModelSource) -> Vec<String> {
        let ignorable = ignorable(self.tied.is_some());
        let (mut faults, found) = (Vec::new(), tuned.tensors());
        let base = self.base.tensors();
        for tensor in base.iter().filter(|tensor| !ignorable(&tensor.name)) {
            match found.iter().find(|other| other.name == tensor.name) {
                None => faults.push(format!("`{}` of the base is missing", tensor.name)),
                Some(other) if other.shape != tensor.shape => {
                    let (name, expected, found) = (&tensor.name, &tensor.shape, &other.shape);
                    faults.push(format!("`{name}` should be {expected:?} like in the base, found {found:?}"));
                }
                Some(_) => {}
            }
        }
        for tensor in found.iter().filter(|tensor| !ignorable(&tensor.name)) {
            if !base.iter().any(|other| other.name == tensor.name) {
                faults.push(format!("`{}` is not in the base", tensor.name));
            }
        }
        faults
    }

    /// Refuses a model whose weights have nothing in common with the base's, by three of them.
    fn check_related(&self, tuned: &ModelSource, path: &Path) -> Result<(), ExperimentError> {
        let count = self.linear.len();
        let (mut inner, mut squares) = (0.0, [0.0, 0.0]);
        for index in BTreeSet::from([0, count / 2, count.saturating_sub(1)]) {
            let Some(target) = self.linear.get(index) else { continue };
            let before = self.base_weight(&target.path)?;
            let after = weight_of(tuned, &target.path, path)?;
            for (before, after) in before.values.iter().zip(&after.values) {
                let (before, after) = (f64::from(*before), f64::from(*after));
                inner += before * after;
                squares = [squares[0] + before * before, squares[1] + after * after];
            }
        }
        let cosine = inner / (squares[0] * squares[1]).sqrt();
        if cosine < SMALLEST_COSINE {
            let base = self.folder.display();
            let fault = format!(
                "no fine-tuned version of {base}: the cosine of their weights is {cosine:.2}, and should be near 1"
            );
            return Err(ExperimentError::Difference { path: path.to_owned(), faults: vec![fault] });
        }
        Ok(())
    }

    /// The weight `[d_in, d_out]` of a linear layer in the base.
    fn base_weight(&self, path: &str) -> Result<HostTensor, ExperimentError> {
        weight_of(&self.base, path, &self.folder)
    }

    /// The models with adapters whose changes are no products, in the order of the terms.
    fn merged(&self) -> Vec<Option<MergedWeights<'_, CausalLm>>> {
        let mut merged = Vec::with_capacity(self.terms.len());
        for term in &self.terms {
            merged.push(match &term.tuned {
                Tuned::Adapter(adapter) => adapter.attached.as_ref().map(Attached::merged_weights),
                Tuned::Model(_) => None,
            });
        }
        merged
    }

    /// The change of a linear layer's weight, of which `original` is the base's; absent if nothing touches it.
    fn change(
        &self,
        target: &Target,
        original: &HostTensor,
        merged: &[Option<MergedWeights<'_, CausalLm>>],
    ) -> Result<Option<WeightChange>, ExperimentError> {
        let mut sum: Option<WeightChange> = None;
        for (term, merged) in self.terms.iter().zip(merged) {
            let change = match (&term.tuned, merged) {
                (Tuned::Model(tuned), _) => Some(minus(weight_of(tuned, &target.path, &term.path)?, original)),
                (Tuned::Adapter(adapter), _) if !adapter.saved.touches(&target.path) => None,
                (Tuned::Adapter(adapter), merged) => match adapter.saved.weight_change(&target.path, original) {
                    Some(change) => Some(change),
                    None => merged
                        .as_ref()
                        .and_then(|merged| merged.weight(&target.path))
                        .map(|weight| minus(weight.transposed(), original)),
                },
            };
            if let Some(change) = change.map(|change| change.scaled(term.weight)) {
                sum = Some(match sum {
                    Some(sum) => sum.plus(change),
                    None => change,
                });
            }
        }
        Ok(sum)
    }
}

/// `tuned - original`.
fn minus(tuned: HostTensor, original: &HostTensor) -> WeightChange {
    let values = tuned.values.iter().zip(&original.values).map(|(now, before)| now - before).collect();
    WeightChange::Dense(HostTensor::new(tuned.shape, values))
}

/// The weight `[d_in, d_out]` of the linear layer at `path`.
fn weight_of(source: &ModelSource, path: &str, file: &Path) -> Result<HostTensor, ExperimentError> {
    let stored = tensor_of(source, &format!("{path}.weight"), file)?;
    Ok(stored.transposed())
}

/// A tensor in the order stored.
fn tensor_of(source: &ModelSource, name: &str, file: &Path) -> Result<HostTensor, ExperimentError> {
    let numbers = source.numbers::<f32>(name, false)?;
    let shape = source.tensors().into_iter().find(|tensor| tensor.name == name).map(|tensor| tensor.shape);
    match (numbers.all_finite, shape) {
        (true, Some(shape)) => Ok(HostTensor::new(shape, numbers.values)),
        _ => {
            let count = numbers.values.iter().filter(|value| !value.is_finite()).count();
            let fault = format!("{count} of {} numbers in `{name}` are not finite", numbers.values.len());
            Err(ExperimentError::Difference { path: file.to_owned(), faults: vec![fault] })
        }
    }
}
