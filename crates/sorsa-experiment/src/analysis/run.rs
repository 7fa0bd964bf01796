//! Reads runs for their analysis: the base model, the start and every checkpoint, weight by weight.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use burn::prelude::*;
use rayon::prelude::*;
use sorsa_adapter::{
    AdapterConfig, AdapterError, AdapterState, HostTensor, HostTensorExt, Method, ModuleState, TensorFile,
};
use sorsa_checkpoint::PackingFormats;
use sorsa_models::{CausalLm, WeightFormat};
use sorsa_report::analysis::{CheckpointAnalysis, RunAnalysis, Spectrum};
use sorsa_train::Checkpoints;

use super::{Measured, StartingWeight};
use crate::error::{ExperimentError, MeasureError};
use crate::host::Host;
use crate::model::model_folder;
use crate::observer::{Event, Observer};
use crate::packed_on_read::PackedOnRead;
use crate::recipe::{ModelRecipe, Recipe};
use crate::run_dir::RunDir;

/// Which singular triplets are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Triplets {
    /// As many as the weight has: what the paper's figure shows.
    #[default]
    All,
    /// The leading ones, as many as the run's rank.
    Rank,
}

/// A run by its recipe and its list of checkpoints; weights are read later.
pub struct RunToAnalyze<'a> {
    folder: &'a Path,
    recipe: Recipe,
    steps: Vec<u64>,
    checkpoints: Checkpoints,
}

/// A base model, which the next run may have too.
pub struct BaseModel {
    path: String,
    dtype: WeightFormat,
    quantize: Option<PackingFormats>,
    config: toml::Table,
    model: CausalLm,
    originals: PackedOnRead,
}

impl BaseModel {
    fn is_of(&self, recipe: &ModelRecipe) -> bool {
        let ModelRecipe { path, dtype, quantize, config, adapter: _, continue_from: _ } = recipe;
        self.path == *path && self.dtype == *dtype && self.quantize == *quantize && self.config == *config
    }
}

impl<'a> RunToAnalyze<'a> {
    /// Reads the recipe and lists the checkpoints.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::NoRecipe`], [`ExperimentError::NoCheckpoints`]; a recipe that cannot be read.
    pub fn open(folder: &'a Path) -> Result<Self, ExperimentError> {
        let path = folder.join(RunDir::RECIPE);
        if !path.is_file() {
            return Err(ExperimentError::NoRecipe { path: folder.to_owned() });
        }
        let recipe = Recipe::read(&path)?;
        let checkpoints = Checkpoints::of(folder);
        let steps = checkpoints.steps();
        if steps.is_empty() {
            return Err(ExperimentError::NoCheckpoints { path: folder.to_owned() });
        }
        Ok(Self { folder, recipe, steps, checkpoints })
    }

    /// The method and its own settings, for legends.
    pub fn name(&self) -> String {
        let adapter = &self.recipe.adapter;
        let method = adapter.method().label().to_owned();
        let regularizer = &self.recipe.train.regularizer;
        let gamma = match adapter.method.is_regularized() {
            true => regularizer.gamma,
            false if regularizer.orthogonal_gamma > 0.0 => regularizer.orthogonal_gamma,
            false => return method,
        };
        let gamma = if gamma == 0.0 { "0".to_owned() } else { format!("{gamma:e}") };
        match regularizer.target_defect {
            Some(target) => format!("{method}, gamma {gamma} to defect {target:e}"),
            None => format!("{method}, gamma {gamma}"),
        }
    }

    /// The run's own folder name.
    pub fn folder_name(&self) -> String {
        self.folder.file_name().map_or_else(|| self.folder.display().to_string(), |name| name.to_string_lossy().into())
    }

    /// The base model: `kept` if that is the same, or read from its folder.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the model's files.
    pub fn base(&self, kept: Option<BaseModel>, host: &Host) -> Result<BaseModel, ExperimentError> {
        let model = &self.recipe.model;
        match kept {
            Some(base) if base.is_of(model) => Ok(base),
            _ => {
                let sources = host.sources.for_model(model);
                let folder = model_folder(&model.path, &sources)?;
                let source = sources.open(&folder)?;
                let loaded = CausalLm::load_from(&source, model.dtype, &host.device)?;
                Ok(BaseModel {
                    path: model.path.clone(),
                    dtype: model.dtype,
                    quantize: model.quantize,
                    config: model.config.clone(),
                    model: loaded,
                    originals: PackedOnRead::open(&folder, model.quantize)?,
                })
            }
        }
    }

    /// Measures every module at every checkpoint, one weight on each thread at a time. Memory holds the base model and the
    /// factors at the start.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::NoModules`] if `modules` name none of the run's, [`ExperimentError::Analyze`].
    pub fn analyze(
        &self,
        name: String,
        base: &BaseModel,
        modules: &[String],
        triplets: Triplets,
        observer: &mut dyn Observer,
    ) -> Result<RunAnalysis, ExperimentError> {
        let start = self.folder.join(RunDir::START);
        let mut state = AdapterState::of_run(&self.recipe.adapter, &start, &base.model, &base.originals)?;
        self.choose(&mut state, &base.model, modules)?;
        let originals = state.originals(&base.model, &base.originals)?;
        let files = self.steps.iter().map(|step| TensorFile::open(&self.checkpoints.parameters(*step)));
        let files: Vec<TensorFile> = files.collect::<Result<_, _>>().map_err(AdapterError::from)?;

        let total = state.modules.len() * files.len();
        observer.on_event(Event::Measuring { run: &name, done: 0, total });
        let shared = Mutex::new((&mut *observer, 0));
        let one = |(module, original): (&ModuleState, &Tensor<2>)| -> Result<(Spectrum, Vec<Measured>), MeasureError> {
            let before = HostTensor::from_tensor(original.clone());
            let factors = state.start(module, &original.device());
            let count = if triplets == Triplets::Rank { Some(module.rank) } else { None };
            let start = StartingWeight::new(&module.path, &before, factors.as_ref(), module.rank, count)?;
            let mut measured = Vec::with_capacity(files.len());
            for file in &files {
                measured.push(start.measure(&state.weight_snapshot(module, original, file)?)?);
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                shared.1 += 1;
                let done = shared.1;
                shared.0.on_event(Event::Measuring { run: &name, done, total });
            }
            let after = measured.last().map_or_else(Vec::new, |last| last.spectrum.clone());
            Ok((Spectrum { module: module.path.clone(), before: start.spectrum().to_vec(), after }, measured))
        };
        let results: Vec<_> = state.modules.par_iter().zip(&originals).with_max_len(1).map(one).collect();
        observer.on_event(Event::Measured);
        let results: Vec<(Spectrum, Vec<Measured>)> = results
            .into_iter()
            .collect::<Result<_, MeasureError>>()
            .map_err(|source| ExperimentError::Analyze { path: self.folder.to_owned(), source })?;

        let of_checkpoint = |(index, step): (usize, &u64)| CheckpointAnalysis {
            step: *step,
            modules: results.iter().map(|(spectrum, m)| (spectrum.module.clone(), m[index].measures)).collect(),
        };
        Ok(RunAnalysis {
            name,
            folder: self.folder.display().to_string(),
            model: self.recipe.model.path.clone(),
            method: self.recipe.adapter.method().to_string(),
            checkpoints: self.steps.iter().enumerate().map(of_checkpoint).collect(),
            spectra: results.into_iter().map(|(spectrum, _)| spectrum).collect(),
        })
    }

    /// Keeps the modules that one of the patterns names; without patterns, all that the run trained.
    fn choose(&self, state: &mut AdapterState, model: &CausalLm, patterns: &[String]) -> Result<(), ExperimentError> {
        if !patterns.is_empty() {
            let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
            let wanted = AdapterConfig::new(Method::Partial, 1, &patterns).targets(model)?;
            state.modules.retain(|module| wanted.iter().any(|target| target.path == module.path));
        }
        if state.modules.is_empty() {
            return Err(ExperimentError::NoModules { path: self.folder.to_owned() });
        }
        Ok(())
    }
}
