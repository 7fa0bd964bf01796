//! `sorsa inspect`: shows what a recipe would train. Reads `config.json`, no weights.

use std::path::Path;

use sorsa_experiment::adapter::{BaseModel, LoadedAdapter};
use sorsa_experiment::model::model_folder;
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
    let sources = host.sources.for_model(&recipe.model);
    let folder = model_folder(&recipe.model.path, &sources)?;
    let config = ModelConfig::read(&folder).or_bad_input()?;
    let Some(adapter) = &recipe.model.adapter else { return Ok(TrainingShape::new(recipe, &config, &host)?) };
    // Only a decomposition would need weights.
    let model = CausalLm::load_from(&sources.open(&folder)?, recipe.model.dtype, &host.device).or_bad_input()?;
    let mut recipe = recipe.clone();
    let base = BaseModel { name: &recipe.model.path, folder: &folder };
    let loaded = LoadedAdapter::read(model, base, Path::new(adapter), &mut session::Warnings)?;
    recipe.start_from(&loaded.saved)?;
    Ok(TrainingShape::new(&recipe, loaded.model.config(), &host)?)
}
