//! `sorsa inspect`: shows what a recipe would train. Reads `config.json`, no weights.

use std::path::Path;

use sorsa_experiment::model::{computed_dtype, load_adapter, model_folder};
use sorsa_experiment::{Recipe, TrainingShape};
use sorsa_models::{CausalLm, ModelConfig};

use crate::args::FinetuneArgs;
use crate::exit::OrBadInput;
use crate::format::{Format, print, print_json};
use crate::progress::Style;
use crate::recipe;
use crate::session;

pub fn run(args: &FinetuneArgs) -> anyhow::Result<()> {
    let shape = shape(&recipe::of(args)?, args)?;
    match args.format {
        Format::Table => print(shape.table().trim_end()),
        Format::Json => print_json(&shape),
    }
}

/// Modules, shapes, counts and memory of a recipe.
pub fn shape(recipe: &Recipe, args: &FinetuneArgs) -> anyhow::Result<TrainingShape> {
    let host = session::host(&args.device, Style::choose(args.quiet))?;
    let folder = model_folder(&recipe.model.path, &host.sources.with_config(&recipe.model.config))?;
    let config = ModelConfig::read(&folder).or_bad_input()?;
    let Some(adapter) = &recipe.model.adapter else { return Ok(TrainingShape::new(recipe, &config, &host)?) };
    // Only a decomposition would need weights.
    let model = CausalLm::load(&folder, computed_dtype(recipe.model.dtype)?, &host.device).or_bad_input()?;
    let mut recipe = recipe.clone();
    recipe.start_from(&load_adapter(&model, Path::new(adapter))?)?;
    Ok(TrainingShape::new(&recipe, &config, &host)?)
}
