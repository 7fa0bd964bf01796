//! `sorsa merge`: writes a model with its adapter merged, as a Hugging Face folder.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use burn::prelude::Device;
use sorsa_checkpoint::weights::{
    CHAT_TEMPLATES, Checkpoint, GENERATION_CONFIG, ModelFolder, TOKENIZER_FILES, WeightsError,
};
use sorsa_checkpoint::{TensorFormats, WeightFormat};
use sorsa_models::CausalLm;

use crate::args::MergeArgs;
use crate::device;
use crate::exit::{OrBadInput, bad_input};
use crate::format::print;
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
    write_merged(&model, Some(&args.adapter), &args.out, args.dtype, &device)?;
    print(format_args!("merged model in {}", args.out.display()))
}

/// Writes the model `name`, merged with `adapter` if there is one, and the files that a runtime needs beside it, as the folder
/// `out`. Without a `dtype`, each tensor is stored like in the model's files. An older model there is replaced as a whole.
pub fn write_merged(
    name: &str,
    adapter: Option<&Path>,
    out: &Path,
    dtype: Option<WeightFormat>,
    device: &Device,
) -> anyhow::Result<()> {
    // Before the work, and again after it.
    ModelFolder::check(out).or_bad_input()?;
    let named = NamedModel::load(name, device)?;
    if is_same_folder(&named.folder, out) {
        return Err(bad_input(format!("--out {} is the model's own folder", out.display())));
    }
    let formats = match dtype {
        Some(format) => format.into(),
        None => TensorFormats::stored_in(&Checkpoint::open(&named.folder).or_bad_input()?),
    };
    let merged = Merged::of(named, adapter)?;
    let new = ModelFolder::create(out).or_bad_input()?;
    let loss = merged.save(new.path(), &formats, |name, values, _| match formats.of(name) {
        WeightFormat::F32 => None,
        format => Some(format.rounded(values)),
    })?;
    new.commit()?;
    warn_of_loss(loss, formats.usual.name());
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

    /// Writes the model into the folder `out`, with copies of the files that a runtime needs. `round` gives the numbers of a
    /// tensor, by its name and shape, as they are stored in the end, if that is not f32. Returns which part of the adapter's
    /// change is lost by that, in the Frobenius norm.
    pub fn save(
        &self,
        out: &Path,
        formats: &TensorFormats,
        round: impl Fn(&str, &[f32], &[usize]) -> Option<Vec<f32>>,
    ) -> anyhow::Result<f64> {
        let (mut lost, mut change) = (0.0, 0.0);
        self.model.save_watched(out, formats.clone(), |name, merged| -> Result<(), WeightsError> {
            let Some(info) = self.base.info(name).filter(|_| self.changed.contains(name)) else { return Ok(()) };
            let Some(rounded) = round(name, merged, &info.shape) else { return Ok(()) };
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
        copy_chat_templates(&folder.join(CHAT_TEMPLATES), &out.join(CHAT_TEMPLATES))?;
        Ok(if change == 0.0 { 0.0 } else { (lost / change).sqrt() })
    }
}

/// Copies the templates of a model that has more than one.
fn copy_chat_templates(from: &Path, to: &Path) -> anyhow::Result<()> {
    let Ok(entries) = std::fs::read_dir(from) else { return Ok(()) };
    std::fs::create_dir(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", from.display()))?.path();
        if let Some(name) = path.file_name()
            && path.extension().is_some_and(|extension| extension == "jinja")
            && path.is_file()
        {
            std::fs::copy(&path, to.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
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
