//! `sorsa inspect`: shows what a recipe would train, from `config.json` without the weights; or what packing loses of the weights.

use std::path::Path;

use sorsa_adapter::{AttachOptions, PackedFormat, StartsToMeasure};
use sorsa_checkpoint::SourceError;
use sorsa_checkpoint::weights::WeightsError;
use sorsa_experiment::adapter::{BaseModel, LoadedAdapter};
use sorsa_experiment::model::model_folder;
use sorsa_experiment::quantization_error::QuantizationErrorTable;
use sorsa_experiment::{ExperimentError, Recipe, TrainingShape};
use sorsa_models::{CausalLm, ModelConfig, WeightFormat};

use crate::args::{DeviceArgs, FinetuneArgs, InspectArgs};
use crate::device::Backend;
use crate::exit::OrBadInput;
use crate::format::{Format, print, print_json};
use crate::progress::{Progress, Style};
use crate::recipe;
use crate::session;

pub fn run(args: &InspectArgs) -> anyhow::Result<()> {
    if args.quantization_error {
        return quantization_error(args);
    }
    let args = &args.training;
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
    let source = match sources.open(&folder) {
        // A folder may hold `config.json` alone: then the weights are taken for dense.
        Err(ExperimentError::Source(SourceError::Weights(WeightsError::NoWeights { .. })))
            if recipe.model.adapter.is_none() =>
        {
            let config = ModelConfig::read(&folder).or_bad_input()?;
            return Ok(TrainingShape::new(recipe, &config, &host)?);
        }
        source => source?,
    };
    let is_open = recipe.adapter.rank_energy.is_some();
    if recipe.model.adapter.is_none() && !is_open {
        return Ok(TrainingShape::of_source(recipe, source.config(), &source, &host)?);
    }
    let model = CausalLm::load_from(&source, recipe.model.dtype, &host.device).or_bad_input()?;
    let mut recipe = recipe.clone();
    let Some(adapter) = &recipe.model.adapter else {
        // Weights decide the ranks.
        let ranks = recipe.adapter.with_resolved_ranks(&model, &AttachOptions::default()).or_bad_input()?;
        eprintln!("note: {ranks}");
        recipe.adapter = ranks.config;
        return Ok(TrainingShape::of_source(&recipe, source.config(), &source, &host)?);
    };
    // Only a decomposition would need weights.
    let base = BaseModel { name: &recipe.model.path, folder: &folder, quantize: recipe.model.quantize };
    let loaded = LoadedAdapter::read(model, base, Path::new(adapter), &mut session::Warnings)?;
    recipe.start_from(&loaded.saved)?;
    Ok(TrainingShape::of_source(&recipe, loaded.model.config(), &source, &host)?)
}

/// Rounds of the measured starts if the recipe names none, like in PiSSA's table.
const ROUNDS: usize = 5;

/// Prints the errors of packing.
fn quantization_error(args: &InspectArgs) -> anyhow::Result<()> {
    let InspectArgs { training, ranks, .. } = args;
    let (mut recipe, style) = (recipe::of(training)?, Style::choose(training.quiet));
    // The weights are measured as they are in their files.
    let format = recipe.model.quantize.take().map_or(PackedFormat::NF4, |formats| formats.linear);
    // The CPU decomposes, whichever device would train.
    let host = session::host(&DeviceArgs { backend: Backend::Flex, device: 0 }, style)?;
    let sources = host.sources.for_model(&recipe.model);
    let source = sources.open(&model_folder(&recipe.model.path, &sources)?)?;
    let model = CausalLm::load_from(&source, WeightFormat::F32, &host.device).or_bad_input()?;
    let starts = StartsToMeasure {
        format,
        ranks: ranks.iter().map(|rank| *rank as usize).collect(),
        rounds: recipe.adapter.quantization_rounds.unwrap_or(ROUNDS),
        svd: recipe.svd_options(),
    };
    let total = recipe.adapter.targets(&model)?.len();
    let progress = Progress::new("measuring weights", total as u64, style);
    let show = |done: usize, _total: usize| progress.set(done as u64, "");
    let table = QuantizationErrorTable::measure(&recipe, &model, &starts, &show)?;
    progress.finish();
    match training.format {
        Format::Table => print(table.text().trim_end()),
        Format::Json => print_json(&table),
    }
}
