//! `sorsa inspect`: what would be trained. Reads `config.json`, no weights.

use std::path::Path;

use sorsa_models::{CausalLm, ModelConfig};

use crate::args::FinetuneArgs;
use crate::device;
use crate::exit::OrBadInput;
use crate::format::{Format, print, print_json};
use crate::plan::TrainingShape;
use crate::progress::Style;
use crate::recipe::Recipe;
use crate::session::{dtype, load_saved, model_folder};

pub fn run(args: &FinetuneArgs) -> anyhow::Result<()> {
    let shape = shape(&Recipe::of(args)?, args)?;
    match args.format {
        Format::Table => print(shape.table().trim_end()),
        Format::Json => print_json(&shape),
    }
}

/// Modules, shapes, counts and memory of a recipe.
pub fn shape(recipe: &Recipe, args: &FinetuneArgs) -> anyhow::Result<TrainingShape> {
    let device = device::open(args.device.backend, args.device.device)?;
    let folder = model_folder(&recipe.model.path, Style::choose(args.quiet))?;
    let config = ModelConfig::read(&folder).or_bad_input()?;
    let Some(adapter) = &recipe.model.adapter else { return TrainingShape::new(recipe, &config, &device) };
    // Only a decomposition would need weights.
    let model = CausalLm::load(&folder, dtype(&recipe.model.dtype)?, &device).or_bad_input()?;
    let mut recipe = recipe.clone();
    recipe.start_from(&load_saved(&model, Path::new(adapter))?)?;
    TrainingShape::new(&recipe, &config, &device)
}
