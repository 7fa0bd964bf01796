//! Reading runs for their analysis: the base model, the start and every checkpoint, weight by weight.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use burn::prelude::*;
use rayon::prelude::*;
use sorsa_adapter::{AdapterConfig, AdapterState, HostTensor, Method, ModuleState, TensorFile};
use sorsa_experiment::analysis::{Measured, StartingWeight};
use sorsa_models::CausalLm;
use sorsa_report::analysis::{CheckpointAnalysis, RunAnalysis, Spectrum};
use sorsa_train::Checkpoints;

use crate::args::Triplets;
use crate::exit::{OrBadInput, bad_input};
use crate::progress::{Progress, Style};
use crate::recipe::Recipe;
use crate::session::{dtype, model_folder};

/// A run as its folder shows it, before anything large is read.
pub struct RunToAnalyze<'a> {
    folder: &'a Path,
    recipe: Recipe,
    steps: Vec<u64>,
    checkpoints: Checkpoints,
}

/// A base model, kept for the next run if that has the same.
pub struct Base {
    path: String,
    dtype: String,
    model: CausalLm,
}

impl<'a> RunToAnalyze<'a> {
    /// Reads the recipe and lists the checkpoints.
    pub fn open(folder: &'a Path) -> anyhow::Result<Self> {
        let path = folder.join("recipe.toml");
        if !path.is_file() {
            return Err(bad_input(format!("{} holds no run: there is no recipe.toml", folder.display())));
        }
        let recipe = Recipe::read(&path)?;
        let checkpoints = Checkpoints::of(folder);
        let steps = checkpoints.steps();
        if steps.is_empty() {
            return Err(bad_input(format!("{} has no checkpoints", folder.display())));
        }
        Ok(Self { folder, recipe, steps, checkpoints })
    }

    /// The method and what is special about its settings, as legends say it.
    pub fn name(&self) -> String {
        let adapter = &self.recipe.adapter;
        let method = match adapter.method {
            Method::Lora => "LoRA".to_owned(),
            Method::Dora => "DoRA".to_owned(),
            Method::Pissa => "PiSSA".to_owned(),
            Method::Olora => "OLoRA".to_owned(),
            Method::Sorsa => "SORSA".to_owned(),
            Method::Partial | Method::Full => adapter.method.to_string(),
        };
        if !adapter.method.is_regularized() {
            return method;
        }
        let regularizer = &self.recipe.train.regularizer;
        let gamma = regularizer.gamma;
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

    /// Loads the base model, unless `kept` is that model.
    pub fn base(&self, kept: Option<Base>, device: &Device, style: Style) -> anyhow::Result<Base> {
        let model = &self.recipe.model;
        if let Some(base) = kept.filter(|base| base.path == model.path && base.dtype == model.dtype) {
            return Ok(base);
        }
        let folder = model_folder(&model.path, style)?;
        let loaded = CausalLm::load(&folder, dtype(&model.dtype)?, device).or_bad_input()?;
        Ok(Base { path: model.path.clone(), dtype: model.dtype.clone(), model: loaded })
    }

    /// Measures every module at every checkpoint. One weight on each thread at a time; what is held of all is the base
    /// model and the start's factors.
    pub fn analyze(
        &self,
        name: String,
        base: &Base,
        modules: &[String],
        triplets: Triplets,
        style: Style,
    ) -> anyhow::Result<RunAnalysis> {
        let start = self.folder.join("start");
        let mut state = AdapterState::of_run(&self.recipe.adapter, &start, &base.model).or_bad_input()?;
        self.choose(&mut state, &base.model, modules)?;
        let originals = state.originals(&base.model);
        let files = self.steps.iter().map(|step| TensorFile::open(&self.checkpoints.parameters(*step)));
        let files: Vec<TensorFile> = files.collect::<Result<_, _>>().or_bad_input()?;

        let progress = Progress::new("decomposing weights", (state.modules.len() * files.len()) as u64, style);
        let done = AtomicU64::new(0);
        let one = |(module, original): (&ModuleState, &Tensor<2>)| -> anyhow::Result<(Spectrum, Vec<Measured>)> {
            let before = HostTensor::from_tensor(original.clone());
            let factors = state.start(module, &original.device());
            let count = (triplets == Triplets::R).then_some(module.rank);
            let start = StartingWeight::new(&module.path, &before, factors.as_ref(), module.rank, count)?;
            let mut measured = Vec::with_capacity(files.len());
            for file in &files {
                measured.push(start.measure(&state.moment(module, original, file)?)?);
                progress.set(done.fetch_add(1, Ordering::Relaxed) + 1, &name);
            }
            let after = measured.last().map_or_else(Vec::new, |last| last.spectrum.clone());
            Ok((Spectrum { module: module.path.clone(), before: start.spectrum().to_vec(), after }, measured))
        };
        let results: Vec<_> = state.modules.par_iter().zip(&originals).with_max_len(1).map(one).collect();
        progress.finish();
        let results: Vec<(Spectrum, Vec<Measured>)> = results
            .into_iter()
            .collect::<anyhow::Result<_>>()
            .with_context(|| format!("cannot analyze {}", self.folder.display()))
            .or_bad_input()?;

        let of_checkpoint = |(index, step): (usize, &u64)| CheckpointAnalysis {
            step: *step,
            modules: results.iter().map(|(spectrum, m)| (spectrum.module.clone(), m[index].measures)).collect(),
        };
        Ok(RunAnalysis {
            name,
            folder: self.folder.display().to_string(),
            model: self.recipe.model.path.clone(),
            method: self.recipe.adapter.method.to_string(),
            checkpoints: self.steps.iter().enumerate().map(of_checkpoint).collect(),
            spectra: results.into_iter().map(|(spectrum, _)| spectrum).collect(),
        })
    }

    /// Leaves only the modules that one of the patterns means; without patterns all that the run trained.
    fn choose(&self, state: &mut AdapterState, model: &CausalLm, patterns: &[String]) -> anyhow::Result<()> {
        if !patterns.is_empty() {
            let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
            let wanted = AdapterConfig::new(Method::Partial, 1, &patterns).targets(model).or_bad_input()?;
            state.modules.retain(|module| wanted.iter().any(|target| target.path == module.path));
        }
        if state.modules.is_empty() {
            return Err(bad_input(format!("{} trained none of the modules asked for", self.folder.display())));
        }
        Ok(())
    }
}
