//! `sorsa inspect`: what would be trained. Reads `config.json`, no weights.

use sorsa_models::ModelConfig;

use crate::args::FinetuneArgs;
use crate::device;
use crate::exit::OrBadInput;
use crate::format::{Format, print, print_json};
use crate::plan::TrainingShape;
use crate::progress::Style;
use crate::recipe::Recipe;
use crate::session::model_folder;

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
    TrainingShape::new(recipe, &config, &device)
}
