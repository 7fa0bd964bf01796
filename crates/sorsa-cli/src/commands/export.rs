//! `sorsa export`: a model or an adapter in the form of another program.

use std::path::Path;

use anyhow::Context;
use burn::prelude::Device;
use burn::tensor::FloatDType;
use sorsa_adapter::author::AuthorExport;
use sorsa_adapter::peft::{PeftAdapter, PeftExport, PeftForm};
use sorsa_adapter::{HostTensor, SavedAdapter};
use sorsa_checkpoint::WeightFormat;
use sorsa_checkpoint::gguf::{ExportOptions, GgufType, LoraModule, export_adapter, export_model};
use sorsa_checkpoint::weights::{Checkpoint, CheckpointWriter, Expected, ModelFolder};
use sorsa_files::{AtomicDir, write_atomic};
use sorsa_models::CausalLm;
use sorsa_report::report::bytes;

use crate::args::{ExportArgs, ExportFormat};
use crate::commands::merge::{load_merged, save_with_companions, write_merged};
use crate::device;
use crate::exit::{OrBadInput, bad_input};
use crate::format::print;
use crate::progress::Style;
use crate::session::{check_tied, load_saved, model_folder, model_of_run};

/// A model, its name and an adapter of it.
struct Trained {
    name: String,
    model: CausalLm,
    saved: SavedAdapter,
}

pub fn run(args: &ExportArgs) -> anyhow::Result<()> {
    check(args)?;
    let device = device::open(args.device.backend, args.device.device)?;
    let name = match (&args.model, &args.adapter) {
        (Some(model), _) => model.clone(),
        (None, Some(adapter)) => model_of_run(adapter)?,
        (None, None) => return Err(bad_input("name the model with --model")),
    };
    let folder = model_folder(&name, Style::choose(false))?;
    let trained = || -> anyhow::Result<Trained> {
        let model = CausalLm::load(&folder, FloatDType::F32, &device).or_bad_input()?;
        let adapter = args.adapter.as_deref().context("the form asks for an adapter")?;
        let saved = load_saved(&model, adapter)?;
        Ok(Trained { name: name.clone(), model, saved })
    };
    match args.format {
        ExportFormat::Hf => {
            write_merged(&folder, args.adapter.as_deref(), &args.out, args.dtype.as_deref(), &device)?;
            print(format_args!("model in {}", args.out.display()))
        }
        ExportFormat::Peft => {
            let peft = peft(&trained()?, args)?;
            peft.save(&args.out)?;
            print(format_args!(
                "adapter of rank {} on {} modules in {}",
                peft.config.rank,
                peft.matrices().count(),
                args.out.display()
            ))
        }
        ExportFormat::Gguf => gguf(&folder, args, &device),
        ExportFormat::GgufLora => {
            let peft = peft(&trained()?, args)?;
            let dtype = gguf_type(args.dtype.as_deref().unwrap_or("f32"))?;
            gguf_lora(&folder, &peft, &args.out, dtype)?;
            print(format_args!("adapter in {}", args.out.display()))
        }
        ExportFormat::Author => {
            author(&folder, &trained()?, &args.out)?;
            print(format_args!("author's checkpoint in {}", args.out.display()))
        }
    }
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
    takes("--dtype", args.dtype.is_some(), &[Hf, Gguf, GgufLora])
}

/// The adapter in PEFT's form; what an approximation leaves out is said.
fn peft(trained: &Trained, args: &ExportArgs) -> anyhow::Result<PeftAdapter> {
    check_tied(&trained.model, &trained.saved)?;
    let form = if args.as_trained { PeftForm::AsTrained } else { PeftForm::Difference };
    let options = PeftExport { form, rank: args.rank, base_model: Some(trained.name.clone()) };
    let (peft, truncations) = PeftAdapter::from_saved(&trained.saved, &trained.model, &options).or_bad_input()?;
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

fn gguf_type(name: &str) -> anyhow::Result<GgufType> {
    name.parse().map_err(bad_input)
}

/// Writes the GGUF file: of the model in `folder`, or, with an adapter, of a temporary folder with the merged model.
fn gguf(folder: &Path, args: &ExportArgs, device: &Device) -> anyhow::Result<()> {
    let dtype = gguf_type(args.dtype.as_deref().unwrap_or("f16"))?;
    let report = match &args.adapter {
        None => export_model(folder, &args.out, dtype).or_bad_input()?,
        Some(adapter) => {
            let model = load_merged(folder, Some(adapter), device)?;
            // Beside the file, and dropped without a commit, which removes it.
            let merged = AtomicDir::create(&args.out)?;
            save_with_companions(&model, folder, merged.path(), WeightFormat::F32)?;
            let name = args.out.file_stem().unwrap_or_default().to_string_lossy();
            export_model(merged.path(), &args.out, ExportOptions::new(dtype).with_name(name)).or_bad_input()?
        }
    };
    for note in report.notes.iter() {
        print(format_args!("note: {note}"))?;
    }
    for (name, found) in &report.fallbacks {
        print(format_args!("note: {name} is {found}: its rows are not whole blocks of {dtype}"))?;
    }
    print(format_args!("{} tensors, {} in {}", report.tensors, bytes(report.bytes), args.out.display()))
}

fn gguf_lora(folder: &Path, peft: &PeftAdapter, out: &Path, dtype: GgufType) -> anyhow::Result<()> {
    if peft.config.dora {
        return Err(bad_input("llama.cpp has no DoRA: merge it, or give a --rank to approximate it by"));
    }
    let whole = &peft.config.modules_to_save;
    if !whole.is_empty() {
        return Err(bad_input(format!(
            "a GGUF adapter cannot hold modules that were trained whole ({})",
            whole.join(", ")
        )));
    }
    let module = |(path, a, b, scale): (&str, &HostTensor, &HostTensor, f64)| {
        let rank = a.shape[0];
        let alpha = scale * rank as f64;
        LoraModule { path: path.to_owned(), rank, a: a.values.clone(), b: b.values.clone(), alpha }
    };
    let modules: Vec<LoraModule> = peft.matrices().map(module).collect();
    export_adapter(folder, &modules, out, dtype).or_bad_input()?;
    Ok(())
}

/// Writes the author's checkpoint tensor by tensor, from the files of the original model.
fn author(folder: &Path, trained: &Trained, out: &Path) -> anyhow::Result<()> {
    let export = AuthorExport::new(&trained.saved, &trained.model, Some(trained.name.clone())).or_bad_input()?;
    let base = Checkpoint::open(folder).or_bad_input()?;
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
