//! `sorsa merge`: writes a model with its adapter merged, as a Hugging Face folder.

use std::path::Path;

use anyhow::Context;
use burn::prelude::Device;
use burn::tensor::FloatDType;
use sorsa_checkpoint::WeightFormat;
use sorsa_checkpoint::weights::{Checkpoint, Dtype, ModelFolder};
use sorsa_models::CausalLm;

use crate::args::MergeArgs;
use crate::device;
use crate::exit::{OrBadInput, bad_input};
use crate::format::print;
use crate::progress::Style;
use crate::session::{self, attach_saved, model_folder, model_of_run};

/// Files beside the weights that a runtime needs.
const COMPANIONS: [&str; 6] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
];

pub fn run(args: &MergeArgs) -> anyhow::Result<()> {
    let device = device::open(args.device.backend, args.device.device)?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => model_of_run(&args.adapter)?,
    };
    session::set_config(&args.config, Some(&args.adapter))?;
    session::check_asked(args.model.as_deref(), &model)?;
    let folder = model_folder(&model, Style::choose(false))?;
    write_merged(&folder, Some(&args.adapter), &args.out, args.dtype.as_deref(), &device)?;
    print(format_args!("merged model in {}", args.out.display()))
}

/// Writes the model in `folder`, merged with `adapter` if there is one, and the files that a runtime needs beside it, as the
/// folder `out`. An older model there is replaced as a whole.
pub fn write_merged(
    folder: &Path,
    adapter: Option<&Path>,
    out: &Path,
    dtype: Option<&str>,
    device: &Device,
) -> anyhow::Result<()> {
    let format = match dtype {
        Some(name) => name.parse().or_bad_input()?,
        None => stored_format(folder)?,
    };
    if is_same_folder(folder, out) {
        return Err(bad_input(format!("--out {} is the model's own folder", out.display())));
    }
    // Before the work, and again after it.
    ModelFolder::check(out).or_bad_input()?;
    let model = load_merged(folder, adapter, device)?;
    let new = ModelFolder::create(out).or_bad_input()?;
    save_with_companions(&model, folder, new.path(), format)?;
    Ok(new.commit()?)
}

/// Loads the model in `folder`, merged with `adapter` if there is one, in f32.
pub fn load_merged(folder: &Path, adapter: Option<&Path>, device: &Device) -> anyhow::Result<CausalLm> {
    let base = CausalLm::load(folder, FloatDType::F32, device).or_bad_input()?;
    match adapter {
        Some(adapter) => Ok(attach_saved(base, adapter)?.merge().0),
        None => Ok(base),
    }
}

/// Writes `model` into the folder `out`, and copies of the files beside the weights in `folder` that a runtime needs.
pub fn save_with_companions(model: &CausalLm, folder: &Path, out: &Path, format: WeightFormat) -> anyhow::Result<()> {
    model.save(out, format)?;
    for name in COMPANIONS {
        let from = folder.join(name);
        if from.exists() {
            std::fs::copy(&from, out.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}

/// The format of the largest tensor of a checkpoint.
fn stored_format(folder: &Path) -> anyhow::Result<WeightFormat> {
    let checkpoint = Checkpoint::open(folder).or_bad_input()?;
    let largest = checkpoint
        .names()
        .filter_map(|name| checkpoint.info(name))
        .max_by_key(|info| info.shape.iter().product::<usize>());
    Ok(match largest.map(|info| info.dtype) {
        Some(Dtype::BF16) => WeightFormat::Bf16,
        Some(Dtype::F16) => WeightFormat::F16,
        _ => WeightFormat::F32,
    })
}

fn is_same_folder(a: &Path, b: &Path) -> bool {
    let is_same = |a: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    // A model with another configuration is a folder of links.
    is_same(a) || a.join("tokenizer.json").canonicalize().is_ok_and(|file| file.parent().is_some_and(is_same))
}
