//! `sorsa merge`: writes a model with its adapter merged, as a Hugging Face folder.

use std::collections::BTreeSet;
use std::path::Path;

use burn::prelude::Device;
use sorsa_adapter::{Attached, MergedWeights};
use sorsa_checkpoint::gguf::{self, GgufError, GgufType};
use sorsa_checkpoint::weights::{Expected, ModelFolder, WeightsError};
use sorsa_checkpoint::{ModelSource, TensorContent, TensorFormats};
use sorsa_kernels::BlockFormat;
use sorsa_kernels::packed::PackedFormat;
use sorsa_models::{CausalLm, ModelConfig, ModelTensors, save_tensors};

use crate::args::MergeArgs;
use crate::device;
use crate::exit::{OrBadInput, bad_input};
use crate::format::print;
use crate::output_type::FolderType;
use crate::session::{self, NamedModel, model_of_run, warn};

/// The part of an adapter's change that may be lost in rounding without a word.
const UNNOTICED_LOSS: f64 = 0.3;

pub fn run(args: &MergeArgs) -> anyhow::Result<()> {
    let device = device::open(args.device.backend, args.device.device)?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => model_of_run(&args.adapter)?,
    };
    session::set_config(&args.config, Some(&args.adapter))?;
    session::check_asked(args.model.as_deref(), &model)?;
    let dtype = args.dtype.map(|dtype| dtype.of_folder("a merge")).transpose()?;
    write_merged(&model, Some(&args.adapter), &args.out, dtype, &device)?;
    print(format_args!("merged model in {}", args.out.display()))
}

/// Writes the model `name`, merged with `adapter` if there is one, and the files that a runtime needs beside it, as the folder
/// `out`. Without a `dtype`, each tensor is stored like in the model's files. An older model there is replaced as a whole.
pub fn write_merged(
    name: &str,
    adapter: Option<&Path>,
    out: &Path,
    dtype: Option<FolderType>,
    device: &Device,
) -> anyhow::Result<()> {
    // Before the work, and again after it.
    ModelFolder::check(out).or_bad_input()?;
    let named = NamedModel::load(name, device)?;
    if is_same_folder(&named.folder, out) {
        return Err(bad_input(format!("--out {} is the model's own folder", out.display())));
    }
    let merged = Merged::of(named, adapter)?;
    let stored = merged.base.dense_formats();
    let formats = match dtype {
        Some(FolderType::Plain(format)) => format.into(),
        Some(FolderType::FourBit(format)) => stored.with_linear_layers_in_four_bit(merged.expected.clone(), format),
        None => stored,
    };
    let new = ModelFolder::create(out).or_bad_input()?;
    let format = match dtype {
        Some(FolderType::FourBit(format)) => PackedFormat::from(format).name(),
        Some(FolderType::Plain(_)) | None => formats.usual.name(),
    };
    let loss = merged.save(new.path(), &formats)?;
    new.commit()?;
    warn_of_loss(loss, format);
    Ok(())
}

/// A model with its adapter merged.
pub struct Merged {
    /// The original, by its files.
    base: ModelSource,
    /// The weights that the adapter changes: the original ones, or packed like the run packed them.
    before: ModelSource,
    /// The model's configuration.
    config: ModelConfig,
    /// Names and shapes of all tensors.
    expected: Vec<Expected>,
    weights: Weights,
    /// The tensors that the adapter changed.
    changed: BTreeSet<String>,
}

/// Where the weights are.
#[allow(clippy::large_enum_variant, reason = "one a merge: a box would save nothing")]
enum Weights {
    /// In a plain model.
    Plain(CausalLm),
    /// In a model with packed weights beside an adapter: each is widened and merged when it is asked for.
    Attached(Attached<CausalLm>),
}

impl Merged {
    /// Merges `adapter` into the model, if there is one.
    pub fn of(named: NamedModel, adapter: Option<&Path>) -> anyhow::Result<Self> {
        let base = ModelSource::open(&named.folder).or_bad_input()?;
        let mut before = ModelSource::open(&named.folder).or_bad_input()?;
        let (weights, changed) = match adapter {
            None => (Weights::Plain(named.model), BTreeSet::new()),
            Some(adapter) => {
                let quantize = named.quantize;
                let attached = named.with_adapter(adapter)?;
                // Beside a residual, the factors at the start are a part of the original weight.
                let splits = attached.state.modules.iter().any(|module| module.fingerprint.is_some());
                if let Some(format) = quantize.filter(|_| !splits) {
                    before = before.with_packing(format).or_bad_input()?;
                }
                let adapted = attached.state.modules.iter().map(|module| format!("{}.weight", module.path));
                let whole = attached.trainable.iter().map(|parameter| parameter.name.clone());
                let changed: BTreeSet<String> = adapted.chain(whole).collect();
                let tensors = attached.model.tensors();
                match changed.iter().any(|name| tensors.packed(name).is_some()) {
                    true => (Weights::Attached(attached), changed),
                    false => (Weights::Plain(attached.merge().0), changed),
                }
            }
        };
        let model = match &weights {
            Weights::Plain(model) => model,
            Weights::Attached(attached) => &attached.model,
        };
        let (config, expected) = (model.config().clone(), model.tensors().expected().to_vec());
        Ok(Self { base, before, config, expected, weights, changed })
    }

    /// Whether the adapter changes the tensor.
    pub fn is_changed(&self, name: &str) -> bool {
        self.changed.contains(name)
    }

    /// The merged tensors, one at a time; those that changed are compared with the original ones when they are read.
    pub fn tensors(&self) -> MergedTensors<'_> {
        let (tensors, merged) = match &self.weights {
            Weights::Plain(model) => (model.tensors(), None),
            Weights::Attached(attached) => (attached.model.tensors(), Some(attached.merged_weights())),
        };
        MergedTensors { of: self, tensors, merged, compared: BTreeSet::new(), change: 0.0 }
    }

    /// Writes the model into the folder `out`, with copies of the files that a runtime needs. Returns which part of the adapter's
    /// change is lost by the formats, in the Frobenius norm.
    fn save(&self, out: &Path, formats: &TensorFormats) -> anyhow::Result<f64> {
        let mut tensors = self.tensors();
        let mut lost = 0.0;
        save_tensors(out, &self.config, formats.clone(), &self.expected, |tensor| {
            let is_first = self.is_changed(&tensor.name) && !tensors.compared.contains(&tensor.name);
            let content = tensors.content_of(tensor)?;
            if let (true, TensorContent::Values(merged)) = (is_first, &content) {
                let rounded = formats.rounded(&tensor.name, merged, &tensor.shape);
                lost += rounded.map_or(0.0, |rounded| squares(&rounded, merged));
            }
            Ok(content)
        })?;
        self.base.copy_side_files(out).or_bad_input()?;
        Ok(part(lost, tensors.change))
    }
}

/// The tensors of a merged model, one at a time.
pub struct MergedTensors<'a> {
    of: &'a Merged,
    tensors: ModelTensors,
    merged: Option<MergedWeights<'a, CausalLm>>,
    /// The changed tensors that were read.
    compared: BTreeSet<String>,
    /// `||merged - original||^2` of those.
    change: f64,
}

impl MergedTensors<'_> {
    /// Which part of the adapter's change is lost, if the squares of the errors of the changed tensors add up to `lost`.
    pub fn loss(&self, lost: f64) -> f64 {
        part(lost, self.change)
    }

    fn content_of(&mut self, tensor: &Expected) -> Result<TensorContent, WeightsError> {
        let name = tensor.name.as_str();
        let merged = name.strip_suffix(".weight").and_then(|path| self.merged.as_ref()?.weight(path));
        let content = match merged {
            Some(weight) => Some(weight.values.into()),
            None => self.tensors.content(name),
        };
        let Some(content) = content else {
            return Err(WeightsError::NoTensor { dir: self.of.base.path().to_owned(), name: name.to_owned() });
        };
        if let TensorContent::Values(values) = &content
            && self.of.is_changed(name)
            && self.of.base.stored(name).is_some()
            && self.compared.insert(name.to_owned())
        {
            let before = self.of.before.numbers::<f32>(name, false);
            let before =
                before.map_err(|source| WeightsError::Produce { name: name.to_owned(), source: source.into() })?;
            self.change += squares(values, &before.values);
        }
        Ok(content)
    }
}

impl gguf::ModelTensors for MergedTensors<'_> {
    fn ties_embeddings(&self) -> bool {
        self.of.config.tie_word_embeddings
    }

    /// A matrix that is in the type asked for already is not packed again.
    fn packed_format(&self, name: &str, asked: GgufType) -> Option<BlockFormat> {
        let matrix = self.tensors.packed(name).filter(|_| !self.of.is_changed(name))?;
        matrix.blocks().map(|(format, _)| format).filter(|format| GgufType::Blocks(*format) == asked)
    }

    fn content(&mut self, tensor: &Expected) -> Result<TensorContent, GgufError> {
        Ok(self.content_of(tensor)?)
    }
}

/// `sqrt(lost / change)`; 0 if nothing changed.
fn part(lost: f64, change: f64) -> f64 {
    if change == 0.0 { 0.0 } else { (lost / change).sqrt() }
}

/// `||a - b||^2`.
fn squares(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// Says if the change by the adapter was too small for the numbers that are stored.
pub fn warn_of_loss(loss: f64, format: &str) {
    if loss > 1.0 {
        warn(format_args!(
            "rounding the merged weights to {format} changes them {loss:.1} times as much as the adapter does: --dtype f32 keeps \
             what was trained"
        ));
    } else if loss >= UNNOTICED_LOSS {
        warn(format_args!(
            "rounding the merged weights to {format} loses {:.0} % of what the adapter changes, because the change is small \
             beside the steps of these numbers: --dtype f32 keeps it",
            100.0 * loss
        ));
    }
}

fn is_same_folder(a: &Path, b: &Path) -> bool {
    let is_same = |a: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    // A model with another configuration is a folder of links.
    is_same(a) || a.join("tokenizer.json").canonicalize().is_ok_and(|file| file.parent().is_some_and(is_same))
}
