//! GGUF files: of a model, of a model with its adapter merged, and of an adapter.

use std::path::Path;

use burn::prelude::Device;
use sorsa_adapter::HostTensor;
use sorsa_adapter::peft::PeftAdapter;
use sorsa_checkpoint::ModelSource;
use sorsa_checkpoint::gguf::{
    ExportOptions, FileType, GgufType, LoraModule, Report, export_adapter, export_model, export_tensors,
};
use sorsa_report::report::bytes;

use super::described::{DescribedFolder, is_dense_folder};
use crate::args::ExportArgs;
use crate::commands::merge::{Merged, warn_of_loss};
use crate::exit::{OrBadInput, bad_input};
use crate::format::print;
use crate::modelfile;
use crate::output_type::OutputType;
use crate::progress::Style;
use crate::session::{NamedModel, model_folder};

/// Writes the GGUF file of the model `name`, merged with the adapter if there is one, and a `Modelfile` beside it.
pub fn model(name: &str, args: &ExportArgs, device: &Device) -> anyhow::Result<()> {
    let file_type = args.dtype.map_or(Ok(GgufType::F16.into()), OutputType::of_gguf)?;
    let folder = model_folder(name, Style::choose(false))?;
    let source = ModelSource::open(&folder).or_bad_input()?;
    let described = DescribedFolder::of(&source, &args.out)?;
    let report = match &args.adapter {
        None if is_dense_folder(&source) && args.config.quantize.is_none() => {
            export_model(&folder, &args.out, file_type).or_bad_input()?
        }
        adapter => {
            let merged = Merged::of(NamedModel::load(name, device)?, adapter.as_deref())?;
            let name = args.out.file_stem().unwrap_or_default().to_string_lossy();
            let mut tensors = merged.tensors();
            let options = ExportOptions::new(file_type).with_name(name);
            let report = export_tensors(described.path(), &mut tensors, &args.out, options).or_bad_input()?;
            let lost = report.errors.iter().filter(|error| merged.is_changed(&error.source));
            warn_of_loss(tensors.loss(lost.map(|error| error.error_squares).sum()), &file_type.to_string());
            report
        }
    };
    let modelfile = modelfile::write(described.path(), &args.out)?;
    for note in report.notes.iter().chain(&modelfile.notes) {
        print(format_args!("note: {note}"))?;
    }
    print_fallbacks(&report)?;
    print_error(&report, file_type)?;
    let beside = if modelfile.file.is_some() { ", with a Modelfile for Ollama" } else { "" };
    print(format_args!("{} tensors, {} in {}{beside}", report.tensors, bytes(report.bytes), args.out.display()))
}

/// Says which matrices have another type than asked for.
fn print_fallbacks(report: &Report) -> anyhow::Result<()> {
    let mut counts: Vec<(GgufType, GgufType, &str, usize)> = Vec::new();
    for fallback in &report.fallbacks {
        match counts.iter_mut().find(|(asked, stored, ..)| (*asked, *stored) == (fallback.asked, fallback.stored)) {
            Some((.., count)) => *count += 1,
            None => counts.push((fallback.asked, fallback.stored, &fallback.tensor, 1)),
        }
    }
    for (asked, stored, first, count) in counts {
        let rows = "rows are not whole blocks";
        print(match count {
            1 => format!("note: {first} is {stored}: its {rows} of {asked}"),
            _ => format!("note: {count} tensors, {first} among them, are {stored}: their {rows} of {asked}"),
        })?;
    }
    Ok(())
}

/// Says what the types of the file lose.
fn print_error(report: &Report, file_type: FileType) -> anyhow::Result<()> {
    let Some(largest) = report.largest_error() else { return Ok(()) };
    print(format_args!(
        "{file_type} is off by {:.2e} of the weights (Frobenius norm of {} matrices), by {:.2e} at most, in {}",
        report.relative_error(),
        report.errors.len(),
        largest.largest,
        largest.tensor
    ))
}

/// Writes an adapter for llama.cpp's `--lora`.
pub fn adapter(folder: &Path, peft: &PeftAdapter, out: &Path, file_type: FileType) -> anyhow::Result<()> {
    let FileType::Uniform(dtype) = file_type else {
        return Err(bad_input(format!("adapters are f32 or f16, not {file_type}")));
    };
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
    let source = ModelSource::open(folder).or_bad_input()?;
    let described = DescribedFolder::of(&source, out)?;
    let module = |(path, a, b, scale): (&str, &HostTensor, &HostTensor, f64)| {
        let rank = a.shape[0];
        let alpha = scale * rank as f64;
        LoraModule { path: path.to_owned(), rank, a: a.values.clone(), b: b.values.clone(), alpha }
    };
    let modules: Vec<LoraModule> = peft.matrices().map(module).collect();
    export_adapter(described.path(), &modules, out, dtype).or_bad_input()?;
    Ok(())
}
