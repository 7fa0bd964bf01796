//! `sorsa export`: a model or an adapter in the form of another program.

mod described;
mod gguf;
mod residual;

use std::path::{Path, PathBuf};

use anyhow::Context;
use burn::prelude::Device;
use sorsa_adapter::HostTensor;
use sorsa_adapter::author::AuthorExport;
use sorsa_adapter::peft::{PeftAdapter, PeftExport, PeftForm};
use sorsa_checkpoint::gguf::GgufType;
use sorsa_checkpoint::weights::{Checkpoint, CheckpointWriter, Expected, ModelFolder};
use sorsa_checkpoint::{ModelSource, PackingFormats, WeightFormat};
use sorsa_experiment::adapter::{LoadedAdapter, check_tied};
use sorsa_experiment::embedded::EMBEDDED;
use sorsa_files::write_atomic;

use self::described::is_dense_folder;
use self::residual::{Residual, whole_path};
use crate::args::{ExportArgs, ExportFormat};
use crate::commands::merge::write_merged;
use crate::device;
use crate::exit::{OrBadInput, bad_input};
use crate::format::print;
use crate::output_type::OutputType;
use crate::session::{self, DelayedWarnings, NamedModel, model_of_run, warn};

/// A model, its name, its files and an adapter of it.
struct Trained {
    name: String,
    folder: PathBuf,
    /// Format that the model's linear layers were packed in while it was read, if any.
    quantize: Option<PackingFormats>,
    adapter: LoadedAdapter,
}

impl Trained {
    fn load(name: &str, args: &ExportArgs, device: &Device) -> anyhow::Result<Self> {
        let adapter = args.adapter.as_deref().context("the form asks for an adapter")?;
        let named = NamedModel::load(name, device)?;
        let (folder, quantize) = (named.folder.clone(), named.quantize);
        let mut warnings = DelayedWarnings::default();
        let adapter = named.adapter(adapter, &mut warnings)?;
        if matches!(args.format, ExportFormat::Peft | ExportFormat::GgufLora) {
            check_tied(&adapter.model, &adapter.saved)?;
        }
        warnings.print();
        Ok(Self { name: name.to_owned(), folder, quantize, adapter })
    }
}

pub fn run(args: &ExportArgs) -> anyhow::Result<()> {
    check(args)?;
    let device = device::open(args.device.backend, args.device.device)?;
    let name = match (&args.model, &args.adapter) {
        (Some(model), _) => model.clone(),
        (None, Some(adapter)) => model_of_run(adapter)?,
        (None, None) => return Err(bad_input("name the model with --model")),
    };
    session::set_config(&args.config, args.adapter.as_deref())?;
    session::check_asked(args.model.as_deref(), &name)?;
    match args.format {
        ExportFormat::Hf => {
            let dtype = args.dtype.map(|dtype| dtype.of_folder("--format hf")).transpose()?;
            write_merged(&name, args.adapter.as_deref(), &args.out, dtype, &device)?;
            print(format_args!("model in {}", args.out.display()))
        }
        ExportFormat::Peft => {
            // Before the work.
            PeftAdapter::check_folder(&args.out).or_bad_input()?;
            let trained = Trained::load(&name, args, &device)?;
            let peft = peft(&trained, args)?;
            peft.save(&args.out)?;
            if is_part_of_a_larger_model(&trained.folder) {
                warn(format_args!(
                    "{name} is a text model within a larger one, in which PEFT would look for `model.language_model.layers`; this adapter \
                     names the modules of the text model alone: write that with `sorsa export --format hf --model {name} --out DIR`, and \
                     give DIR to PEFT as the base"
                ));
            }
            print(format_args!(
                "adapter of rank {} on {} modules in {}",
                peft.config.rank,
                peft.matrices().count(),
                args.out.display()
            ))?;
            if peft.config.base_model.is_none() {
                warn(
                    "other programs cannot find the embedded model by name, so `base_model_name_or_path` is null: write it \
                     with `sorsa export --format hf --model embedded --out DIR`, and give DIR to PEFT as the base",
                );
            }
            Ok(())
        }
        ExportFormat::Gguf => gguf::model(&name, args, &device),
        ExportFormat::GgufLora => {
            let dtype = args.dtype.map_or(Ok(GgufType::F32.into()), OutputType::of_gguf)?;
            let trained = Trained::load(&name, args, &device)?;
            gguf::adapter(&trained.folder, &peft(&trained, args)?, &args.out, dtype)?;
            print(format_args!("adapter in {}", args.out.display()))
        }
        ExportFormat::Author => {
            ModelFolder::check(&args.out).or_bad_input()?;
            author(&Trained::load(&name, args, &device)?, &args.out)?;
            print(format_args!("author's checkpoint in {}", args.out.display()))
        }
    }
}

/// Whether the folder holds the model of text and pictures that the text model is a part of.
fn is_part_of_a_larger_model(folder: &Path) -> bool {
    let Ok(config) = std::fs::read(folder.join("config.json")) else { return false };
    serde_json::from_slice::<serde_json::Value>(&config).is_ok_and(|config| config.get("text_config").is_some())
}

/// Options that the form does not have are an error, before anything is read.
fn check(args: &ExportArgs) -> anyhow::Result<()> {
    let takes = |option: &str, given: bool, forms: &[ExportFormat]| match given && !forms.contains(&args.format) {
        true => Err(bad_input(format!("{option} says nothing for this --format"))),
        false => Ok(()),
    };
    use ExportFormat::{Gguf, GgufLora, Hf, Peft};
    takes("--rank", args.rank.is_some(), &[Peft, GgufLora])?;
    takes("--as-trained", args.as_trained, &[Peft])?;
    takes("--residual", args.residual.is_some(), &[Peft, GgufLora])?;
    takes("--dtype", args.dtype.is_some(), &[Hf, Gguf, GgufLora])
}

/// The adapter in PEFT's form. Writes the residual that it belongs to if asked for. If the adapter is approximated, prints the error.
fn peft(trained: &Trained, args: &ExportArgs) -> anyhow::Result<PeftAdapter> {
    let LoadedAdapter { model, saved } = &trained.adapter;
    let residual = Residual::of(trained)?;
    Residual::check(residual.as_ref(), args)?;
    let mut form = if args.as_trained { PeftForm::AsTrained } else { PeftForm::Difference };
    let (mut base_model, mut revision) = base_for_others(&trained.name);
    if let (Some(residual), Some(out)) = (residual, &args.residual) {
        residual.write(out, args)?;
        form = PeftForm::OfResidual;
        (base_model, revision) = (Some(whole_path(out)?), None);
    }
    let options = PeftExport { form, rank: args.rank, base_model, revision };
    let (peft, truncations) = PeftAdapter::from_saved(saved, model, &options).or_bad_input()?;
    if let Some(worst) = truncations.iter().max_by(|a, b| a.relative_error.total_cmp(&b.relative_error)) {
        let squares: f64 = truncations.iter().map(|one| one.relative_error.powi(2)).sum();
        print(format_args!(
            "rank {} leaves out {:.2e} of what was trained (root mean square over {} modules), at most {:.2e}, in {}",
            peft.config.rank,
            (squares / truncations.len() as f64).sqrt(),
            truncations.len(),
            worst.relative_error,
            worst.path
        ))?;
    }
    Ok(peft)
}

/// The name and the revision by which other programs find the base: a repository of the hub, or the whole path of a folder or file.
/// They do not know the embedded model.
pub fn base_for_others(name: &str) -> (Option<String>, Option<String>) {
    if name == EMBEDDED {
        return (None, None);
    }
    // Not the folder that was read: with other fields of config.json, that is a temporary one.
    if Path::new(name).exists() {
        let path = Path::new(name).canonicalize().unwrap_or_else(|_| PathBuf::from(name));
        return (Some(path.display().to_string()), None);
    }
    match name.split_once('@') {
        Some((id, revision)) => (Some(id.to_owned()), Some(revision.to_owned())),
        None => (Some(name.to_owned()), None),
    }
}

/// Writes the author's checkpoint tensor by tensor, from the files of the original model.
fn author(trained: &Trained, out: &Path) -> anyhow::Result<()> {
    let LoadedAdapter { model, saved } = &trained.adapter;
    let export = AuthorExport::new(saved, model, Some(trained.name.clone())).or_bad_input()?;
    if !is_dense_folder(&ModelSource::open(&trained.folder).or_bad_input()?) {
        return Err(bad_input(
            "the author's form has no packed weights: `sorsa merge` writes the model with the adapter",
        ));
    }
    let base = Checkpoint::open(&trained.folder).or_bad_input()?;
    let mut expected = Vec::new();
    for name in base.names() {
        let shape = base.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        expected.push(Expected::new(format!("{}{name}", sorsa_adapter::author::PREFIX), shape));
        let module = name.strip_suffix(".weight").unwrap_or(name);
        expected.extend(export.beside(module).into_iter().map(|(name, shape)| Expected::new(name, shape)));
    }
    let new = ModelFolder::create(out).or_bad_input()?;
    CheckpointWriter::new(new.path(), WeightFormat::F32).write(&expected, |tensor| -> anyhow::Result<Vec<f32>> {
        let name = tensor.name.strip_prefix(sorsa_adapter::author::PREFIX).unwrap_or(&tensor.name);
        let original = match base.info(name) {
            Some(info) => Some(HostTensor::new(info.shape.clone(), base.to_f32(name)?)),
            None => None,
        };
        let tensor = export.tensor(&tensor.name, original).with_context(|| format!("no tensor `{}`", tensor.name))?;
        Ok(tensor.values)
    })?;
    write_atomic(new.path().join("config.json"), format!("{:#}\n", export.config.to_json()))?;
    Ok(new.commit()?)
}
