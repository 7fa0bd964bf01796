//! `sorsa inspect`: what would be trained. Reads `config.json`, no weights.

use sorsa_models::ModelConfig;

use crate::args::FinetuneArgs;
use crate::device;
use crate::exit::OrBadInput;
use crate::format::Format;
use crate::plan::TrainingShape;
use crate::progress::Style;
use crate::recipe::Recipe;
use crate::session::model_folder;

pub fn run(args: &FinetuneArgs) -> anyhow::Result<()> {
    print_shape(&Recipe::of(args)?, args)
}

/// Prints modules, shapes, counts and memory of a recipe.
pub fn print_shape(recipe: &Recipe, args: &FinetuneArgs) -> anyhow::Result<()> {
    let device = device::open(args.device.backend, args.device.device)?;
    let folder = model_folder(&recipe.model.path, Style::choose(args.quiet))?;
    let config = ModelConfig::read(&folder).or_bad_input()?;
    let shape = TrainingShape::new(recipe, &config, &device)?;
    match args.format {
        Format::Table => print!("{}", shape.table()),
        Format::Json => println!("{}", serde_json::to_string_pretty(&shape)?),
    }
    Ok(())
}
