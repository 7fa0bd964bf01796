//! `sorsa merge`: writes a model with its adapter merged, as a Hugging Face folder.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use burn::prelude::Device;
use sorsa_checkpoint::gguf::{self, GgufError};
use sorsa_checkpoint::weights::{Checkpoint, Expected, GENERATION_CONFIG, ModelFolder, TOKENIZER_FILES, WeightsError};
use sorsa_checkpoint::{TensorContent, TensorFormats};
use sorsa_kernels::BlockFormat;
use sorsa_kernels::packed::PackedFormat;
use sorsa_models::{CausalLm, ModelTensors};

use crate::args::MergeArgs;
use crate::device;
use crate::exit::{OrBadInput, bad_input};
use crate::format::print;
use crate::output_type::{FolderType, OutputType};
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
    let dtype = args.dtype.map(OutputType::of_folder).transpose()?;
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
    let stored =
        || Checkpoint::open(&named.folder).map(|checkpoint| TensorFormats::stored_in(&checkpoint)).or_bad_input();
    let formats = match dtype {
        Some(FolderType::Plain(format)) => format.into(),
        Some(FolderType::FourBit(format)) => {
            let tensors = named.model.tensors().expected().to_vec();
            stored()?.with_linear_layers_in_four_bit(tensors, format)
        }
        None => stored()?,
    };
    let merged = Merged::of(named, adapter)?;
    let new = ModelFolder::create(out).or_bad_input()?;
    let loss = merged.save(new.path(), &formats)?;
    new.commit()?;
    let format = match dtype {
        Some(FolderType::FourBit(format)) => PackedFormat::from(format).name(),
        Some(FolderType::Plain(_)) | None => formats.usual.name(),
    };
    warn_of_loss(loss, format);
    Ok(())
}

/// A model with its adapter merged.
pub struct Merged {
    /// The original, by its files.
    base: Checkpoint,
    /// The plain model.
    model: CausalLm,
    /// The tensors that the adapter changed.
    changed: BTreeSet<String>,
}

impl Merged {
    /// Merges `adapter` into the model, if there is one.
    pub fn of(named: NamedModel, adapter: Option<&Path>) -> anyhow::Result<Self> {
        let base = Checkpoint::open(&named.folder).or_bad_input()?;
        let Some(adapter) = adapter else {
            return Ok(Self { base, model: named.model, changed: BTreeSet::new() });
        };
        let attached = named.with_adapter(adapter)?;
        let adapted = attached.state.modules.iter().map(|module| format!("{}.weight", module.path));
        let whole = attached.trainable.iter().map(|parameter| parameter.name.clone());
        let changed = adapted.chain(whole).collect();
        Ok(Self { base, model: attached.merge().0, changed })
    }

    /// Whether the adapter changes the tensor.
    pub fn is_changed(&self, name: &str) -> bool {
        self.changed.contains(name)
    }

    /// The merged tensors, which are compared with the original ones while they are read.
    pub fn watched(&self) -> WatchedTensors<'_> {
        WatchedTensors { merged: self, tensors: self.model.tensors(), change: 0.0 }
    }

    /// Writes the model into the folder `out`, with copies of the files that a runtime needs. Returns which part of the adapter's
    /// change is lost by the formats, in the Frobenius norm.
    pub fn save(&self, out: &Path, formats: &TensorFormats) -> anyhow::Result<f64> {
        let (mut lost, mut change) = (0.0, 0.0);
        self.model.save_watched(out, formats.clone(), |name, merged| -> Result<(), WeightsError> {
            let Some(info) = self.base.info(name).filter(|_| self.is_changed(name)) else { return Ok(()) };
            let Some(rounded) = formats.rounded(name, merged, &info.shape) else { return Ok(()) };
            let before = self.base.to_f32(name)?;
            lost += squares(&rounded, merged);
            change += squares(merged, &before);
            Ok(())
        })?;
        let folder = self.base.dir();
        for name in [GENERATION_CONFIG].into_iter().chain(TOKENIZER_FILES) {
            let from = folder.join(name);
            if from.exists() {
                std::fs::copy(&from, out.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
            }
        }
        Ok(part(lost, change))
    }
}

/// The tensors of a merged model, one at a time.
pub struct WatchedTensors<'a> {
    merged: &'a Merged,
    tensors: ModelTensors,
    /// `||merged - original||^2` of those that were read.
    change: f64,
}

impl WatchedTensors<'_> {
    /// Which part of the adapter's change is lost, if the squares of the errors of the changed tensors add up to `lost`.
    pub fn loss(&self, lost: f64) -> f64 {
        part(lost, self.change)
    }
}

impl gguf::ModelTensors for WatchedTensors<'_> {
    fn ties_embeddings(&self) -> bool {
        self.merged.model.config().tie_word_embeddings
    }

    fn packed_format(&self, _name: &str) -> Option<BlockFormat> {
        None
    }

    fn content(&mut self, tensor: &Expected) -> Result<TensorContent, GgufError> {
        let name = &tensor.name;
        let Some(values) = self.tensors.values(name) else {
            let faults = vec![format!("there is no tensor `{name}`")];
            return Err(GgufError::Unsupported { folder: self.merged.base.dir().to_owned(), faults });
        };
        if tensor.shape.len() > 1 && self.merged.is_changed(name) {
            self.change += squares(&values, &self.merged.base.to_f32(name)?);
        }
        Ok(values.into())
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
