//! The plan of a comparison: its rows, sweeps, rates and seeds, and the recipe of each run. Making a plan checks the whole input before
//! anything is written.

use std::path::PathBuf;
use std::sync::Arc;

use sorsa_models::ModelConfig;
use sorsa_train::total_steps;
use toml::Table;

use super::arm::{Arm, ComparisonRow};
use super::base_recipe::BaseRecipe;
use super::defaults::FOUND_RATE_FACTORS;
use super::fields::{
    ADAPTER_SEED, FieldValue, LEARNING_RATE, METHOD, NAMED_FIELDS, RANK, TRAIN_SEED, label, named_field, takes_effect,
    value_for_name, value_of, value_text,
};
use super::identity::{Fingerprints, InputFiles, run_key, short_hash};
use super::question::Question;
use super::rate_grid::{RateGrid, rounded};
use super::request::{ComparisonRequest, RequestedRates};
use super::run_spec::{RateSearchSpec, RunSpec};
use super::sweep::{Sweep, SweepMode};
use crate::embedded::EMBEDDED;
use crate::model::{model_folder, read_tokenizer};
use crate::{ExperimentError, Host, Inputs, Observer, Recipe, TrainingShape, data_file};

/// Evaluations in a run: they show when the run reaches a loss, and take a few percent of its time.
pub(super) const EVALUATIONS: u64 = 10;

/// A checked comparison.
#[derive(Debug)]
pub struct ComparisonPlan {
    /// Folder of the runs and results.
    pub folder: PathBuf,
    /// The rows of the comparison: each arm at each searched value.
    pub rows: Vec<ComparisonRow>,
    /// The rates to begin with, one grid for each row.
    pub grids: Vec<RateGrid>,
    /// Name of the reference arm.
    pub reference: String,
    /// The seeds; the first one searches the learning rates.
    pub seeds: Vec<u64>,
    /// Sweeps at the best rate of their rows.
    pub sweeps: Vec<PlannedSweep>,
    /// The questions that the report answers.
    pub questions: Vec<Question>,
    /// How often a grid may be extended.
    pub extend: usize,
    /// How often a grid around a found rate may be extended.
    pub extend_found: usize,
    /// Optimizer steps of each run.
    pub steps: u64,
    /// Tokens of one pass over the training data.
    pub train_tokens: usize,
    /// Rows of the training data.
    pub train_examples: usize,
    /// Test problems; 0 if there is no test.
    pub problems: usize,
    /// Parameters of the model.
    pub parameters: u64,
    /// Data to train every chosen run on afterwards.
    pub then: Option<String>,
    /// The settings that all runs have in common.
    pub common: Recipe,
    /// Fingerprint of the test problems, if there are any.
    pub test: Option<String>,
    /// Fields that the arms and sweeps set, without those of [`NAMED_FIELDS`], the method and the learning rate.
    pub compared_fields: Vec<String>,
    base: BaseRecipe,
    files: InputFiles,
    /// Fingerprint of `then`.
    then_file: String,
    /// Name of the backend.
    pub backend: String,
    /// The machine, for reports.
    pub machine: String,
}

/// A sweep whose values run at the best rate of some rows.
#[derive(Debug)]
pub struct PlannedSweep {
    /// The sweep.
    pub sweep: Sweep,
    /// Indices of the swept rows, the first of each arm.
    pub rows: Vec<usize>,
}

impl PlannedSweep {
    /// The swept field at each of its values.
    pub fn fields(&self) -> Vec<FieldValue> {
        let field = |value: &toml::Value| FieldValue { field: self.sweep.field.clone(), value: value.clone() };
        self.sweep.values.iter().map(field).collect()
    }
}

impl ComparisonPlan {
    /// Checks a request. Reads everything that the runs will read, except the weights.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Comparison`] if the request contradicts itself; the errors of recipes, model, tokenizer and data.
    pub fn new(request: ComparisonRequest, host: &Host, observer: &mut dyn Observer) -> Result<Self, ExperimentError> {
        if let Some(fault) = request.fault() {
            return Err(ExperimentError::Comparison(fault));
        }
        let common = request.base.common()?;
        if common.model.adapter.is_some() || common.model.continue_from.is_some() {
            return Err(ExperimentError::Comparison(
                "a comparison starts from a model: model.adapter cannot be set".to_owned(),
            ));
        }
        let mut plan = Self {
            folder: request.folder,
            rows: Vec::new(),
            grids: Vec::new(),
            reference: request.reference,
            seeds: request.seeds,
            sweeps: Vec::new(),
            questions: request.questions,
            extend: request.extend,
            extend_found: request.extend_found,
            steps: 0,
            train_tokens: 0,
            train_examples: 0,
            problems: 0,
            parameters: 0,
            then: request.then,
            common,
            test: None,
            compared_fields: compared_fields(&request.arms, &request.sweeps),
            base: request.base,
            files: InputFiles { model: String::new(), train: String::new(), validation: None },
            then_file: String::new(),
            backend: host.backend.clone(),
            machine: host.machine.clone(),
        };
        plan.add_rows(&request.arms, &request.sweeps)?;
        for row in &plan.rows {
            let grid = plan.grid(row, &request.rates)?;
            plan.grids.push(grid);
        }
        plan.add_sweeps(&request.arms, request.sweeps)?;
        plan.read_inputs(host, observer, request.sets_eval_every, request.watches)?;
        Ok(plan)
    }

    /// Makes a row of each arm at each value of the sweeps in the mode [`SweepMode::SearchEach`]. The rank is always such a sweep: without
    /// a sweep of ranks, its only value is the rank of the recipe.
    fn add_rows(&mut self, arms: &[Arm], sweeps: &[Sweep]) -> Result<(), ExperimentError> {
        let mut searched: Vec<Sweep> =
            sweeps.iter().filter(|sweep| sweep.mode == SweepMode::SearchEach).cloned().collect();
        if sweeps.iter().all(|sweep| sweep.field != RANK) {
            let rank = match self.common.adapter.rank_energy {
                Some(energy) => toml::Value::String(energy.to_string()),
                None => toml::Value::Integer(i64::try_from(self.common.adapter.rank)?),
            };
            searched.insert(0, Sweep::new(RANK, vec![rank]));
            searched[0].optional = true;
        }
        for arm in arms {
            let recipe = self.base.with(&arm.fields)?;
            if let Some(field) = arm.fields.iter().find(|field| !takes_effect(&field.field, &recipe)) {
                let (name, field) = (&arm.name, &field.field);
                return Err(ExperimentError::Comparison(format!(
                    "the arm {name} sets {field}, which has no effect in it"
                )));
            }
            let rank = recipe.adapter.method().is_factored().then_some(recipe.adapter.rank);
            let mut rows = vec![ComparisonRow {
                name: arm.name.clone(),
                label: arm.name.clone(),
                arm: arm.name.clone(),
                rank,
                fields: arm.fields.clone(),
                swept: Vec::new(),
            }];
            for sweep in &searched {
                if sweeps_arm(sweep, arm, &recipe)? {
                    rows = rows.iter().flat_map(|row| sweep.values.iter().map(|value| row.at(sweep, value))).collect();
                }
            }
            for mut row in rows {
                if row.rank.is_some() {
                    row.rank = Some(self.base.with(&row.fields)?.adapter.rank);
                }
                self.rows.push(row);
            }
        }
        for sweep in searched {
            if !sweep.optional && self.rows.iter().all(|row| row.swept.iter().all(|swept| swept.field != sweep.field)) {
                return Err(no_arm(&sweep));
            }
        }
        Ok(())
    }

    /// Finds the rows of each sweep at the best rate: the first row of each of its arms.
    fn add_sweeps(&mut self, arms: &[Arm], sweeps: Vec<Sweep>) -> Result<(), ExperimentError> {
        for sweep in sweeps.into_iter().filter(|sweep| sweep.mode == SweepMode::AtBestRate) {
            let mut rows = Vec::new();
            for arm in arms {
                if sweeps_arm(&sweep, arm, &self.base.with(&arm.fields)?)? {
                    rows.extend(self.rows.iter().position(|row| row.arm == arm.name));
                }
            }
            if !rows.is_empty() {
                self.sweeps.push(PlannedSweep { sweep, rows });
            } else if !sweep.optional {
                return Err(no_arm(&sweep));
            }
        }
        Ok(())
    }

    /// The grid of a row: the request's rates for its arm, or the rate that the arm sets, or the request's rates for all arms, or multiples
    /// of the method's default.
    fn grid(&self, row: &ComparisonRow, rates: &RequestedRates) -> Result<RateGrid, ExperimentError> {
        let named: Vec<f64> = rates.by_arm.iter().filter(|(name, _)| *name == row.arm).map(|(_, rate)| *rate).collect();
        if !named.is_empty() {
            return Ok(RateGrid::new(named, self.extend));
        }
        let default = self.base.with(&row.fields)?.train.optimizer.learning_rate;
        if let (true, Some(rate)) = (row.fields.iter().any(|field| field.field == LEARNING_RATE), default.number()) {
            return Ok(RateGrid::new(vec![rate], self.extend));
        }
        if !rates.for_all.is_empty() {
            return Ok(RateGrid::new(rates.for_all.clone(), self.extend));
        }
        Ok(match default.number() {
            Some(rate) => {
                RateGrid::new(rates.factors.iter().map(|factor| rounded(rate * factor)).collect(), self.extend)
            }
            None => RateGrid::around_found_rate(&FOUND_RATE_FACTORS, self.extend_found),
        })
    }

    fn read_inputs(
        &mut self,
        host: &Host,
        observer: &mut dyn Observer,
        sets_eval_every: bool,
        watches: bool,
    ) -> Result<(), ExperimentError> {
        let folder = model_folder(&self.common.model.path, &host.sources.for_model(&self.common.model))?;
        let config = ModelConfig::read(&folder)?;
        for (index, row) in self.rows.iter().enumerate() {
            self.parameters = TrainingShape::new(&self.base.with(&row.fields)?, &config, host)?.parameters;
            for planned in self.sweeps.iter().filter(|planned| planned.rows.contains(&index)) {
                for field in planned.fields() {
                    let recipe = self.base.with(&[&row.fields[..], &[field]].concat())?;
                    TrainingShape::new(&recipe, &config, host)?;
                }
            }
        }
        let tokenizer = Arc::new(read_tokenizer(&folder)?);
        let inputs = Inputs::read(&self.common, &tokenizer, &config, host, observer)?;
        if inputs.validation.is_none() {
            return Err(ExperimentError::Comparison(
                "learning rates are chosen by the validation loss: there must be validation data".to_owned(),
            ));
        }
        self.steps = total_steps(&self.common.train, &inputs.train);
        let data = &inputs.data;
        (self.train_tokens, self.train_examples, self.problems) =
            (data.train_tokens, data.train_examples, data.problems);
        if !sets_eval_every {
            let eval_every = i64::try_from(self.steps.div_ceil(EVALUATIONS))?;
            self.base.set(FieldValue::new("train.eval_every", eval_every))?;
        }
        if watches && self.common.train.watch_every == 0 {
            let every = i64::try_from(self.base.common()?.train.eval_every)?;
            self.base.set(FieldValue::new("train.watch_every", every))?;
        }
        self.common = self.base.common()?;
        let mut fingerprints = Fingerprints::default();
        let mut of = |name: &str, split: &str| fingerprints.of(&data_file(name, split, &host.sources)?);
        let data = &self.common.data;
        self.files.train = of(&data.train, "train")?;
        self.files.validation = data.validation.as_ref().map(|name| of(name, "validation")).transpose()?;
        self.test = match &data.test {
            Some(name) if self.problems > 0 => Some(of(name, "test")?),
            _ => None,
        };
        self.files.model = fingerprints.of(&folder)?;
        if let Some(then) = self.then.clone() {
            self.then_file = fingerprints.of(&data_file(&then, "train", &host.sources)?)?;
            let recipe = second_task(&self.common, &then);
            let inputs = Inputs::read(&recipe, &tokenizer, &config, host, observer)?;
            if inputs.validation.is_none() {
                return Err(ExperimentError::Comparison(format!("{then}: no row is left to validate on")));
            }
        }
        Ok(())
    }

    /// A run of a row; `fields` replace the row's. If an earlier comparison in this folder made the same run, under any name, the run has
    /// that folder. Otherwise it has a new one.
    ///
    /// # Errors
    ///
    /// The errors of the recipe with these fields.
    pub fn run(
        &self,
        row: &ComparisonRow,
        fields: &[FieldValue],
        rate: f64,
        seed: u64,
    ) -> Result<RunSpec, ExperimentError> {
        let seed_value = i64::try_from(seed)?;
        let mut all = [&row.fields[..], fields].concat();
        all.push(FieldValue::new(LEARNING_RATE, rate));
        all.extend([TRAIN_SEED, ADAPTER_SEED].map(|field| FieldValue::new(field, seed_value)));
        let recipe = self.base.with(&all)?;
        let key = run_key(&recipe, &self.files, &self.backend)?;
        let name = format!("{}-lr{rate:e}-s{seed}-{key}", self.start_of_name(&recipe)?);
        let name =
            if self.runs_folder().join(&name).exists() { name } else { self.name_with_key(&key).unwrap_or(name) };
        let folder = self.runs_folder().join(&name);
        Ok(RunSpec { row: row.clone(), learning_rate: rate, seed, recipe, name, folder })
    }

    /// The run that trains what `first` has trained on the data [`then`](Self::then); none if there are no such data. Its adapter, or the weights, are
    /// those of `first` at its lowest validation loss, and its settings those of `first`.
    ///
    /// # Errors
    ///
    /// The errors of the recipe.
    pub fn run_then(&self, first: &RunSpec) -> Result<Option<RunSpec>, ExperimentError> {
        let Some(then) = &self.then else { return Ok(None) };
        let mut recipe = second_task(&first.recipe, then);
        // The name, not the folder, decides the key: the folder of the comparison may be moved.
        recipe.model.adapter = Some(first.name.clone());
        let files = InputFiles { train: self.then_file.clone(), validation: None, ..self.files.clone() };
        let key = run_key(&recipe, &files, &self.backend)?;
        recipe.model.adapter = Some(first.folder.to_string_lossy().into_owned());
        let (rate, seed) = (first.learning_rate, first.seed);
        let name = format!("{}-then-lr{rate:e}-s{seed}-{key}", self.start_of_name(&first.recipe)?);
        let folder = self.runs_folder().join(&name);
        Ok(Some(RunSpec { row: first.row.clone(), learning_rate: rate, seed, recipe, name, folder }))
    }

    /// The search for the learning rate of a row, with the first seed. If an earlier comparison in this folder made it, its result is there.
    ///
    /// # Errors
    ///
    /// The errors of the recipe.
    pub fn rate_search(&self, row: &ComparisonRow) -> Result<RateSearchSpec, ExperimentError> {
        let seed = i64::try_from(self.seeds[0])?;
        let mut all = row.fields.clone();
        all.push(FieldValue::new(LEARNING_RATE, "auto"));
        all.extend([TRAIN_SEED, ADAPTER_SEED].map(|field| FieldValue::new(field, seed)));
        let recipe = self.base.with(&all)?;
        let key = run_key(&recipe, &self.files, &self.backend)?;
        let name = format!("{}-lr-find-s{seed}-{key}", self.start_of_name(&recipe)?);
        let folder = self.folder.join("learning-rates").join(&name);
        Ok(RateSearchSpec { recipe, name, folder })
    }

    /// `sorsa-r16-g4e-4`: the method, the named fields that have an effect, and other compared fields that differ from the
    /// common recipe.
    fn start_of_name(&self, recipe: &Recipe) -> Result<String, ExperimentError> {
        let (table, common) = (Table::try_from(recipe)?, Table::try_from(&self.common)?);
        let mut name = value_of(&table, METHOD).map_or_else(String::new, |method| value_for_name(&method));
        for named in &NAMED_FIELDS {
            if let (true, Some(value)) = (takes_effect(named.field, recipe), value_of(&table, named.field)) {
                name.push_str(&format!("-{}{}", named.short, value_for_name(&value)));
            }
        }
        for field in &self.compared_fields {
            let value = value_of(&table, field);
            if value == value_of(&common, field) {
                continue;
            }
            if let Some(value) = value {
                name.push_str(&format!("-{}{}", label(field), value_for_name(&value)));
            }
        }
        Ok(name)
    }

    /// The folder of a run with this key.
    fn name_with_key(&self, key: &str) -> Option<String> {
        let end = format!("-{key}");
        for entry in std::fs::read_dir(self.runs_folder()).ok()?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(&end) {
                return Some(name);
            }
        }
        None
    }

    fn runs_folder(&self) -> PathBuf {
        self.folder.join("runs")
    }

    /// Identifies the test and its settings; `None` without test problems.
    pub fn test_key(&self) -> Option<String> {
        let eval = &self.common.eval;
        let setting = format!(
            "{} {} {} {:?} {}",
            self.test.as_ref()?,
            eval.problems,
            eval.max_new_tokens,
            eval.prompt_suffix,
            self.common.data.template
        );
        Some(short_hash(&setting))
    }

    /// Fingerprint of the model.
    pub fn model_key(&self) -> &str {
        &self.files.model
    }

    /// Whether the base model is the embedded one.
    pub fn is_embedded(&self) -> bool {
        self.common.model.path == EMBEDDED
    }

    /// Tokens of one optimizer step, on average.
    pub fn tokens_per_step(&self) -> f64 {
        let rows = self.common.train.batch_size * self.common.train.accumulation;
        rows as f64 * self.train_tokens as f64 / self.train_examples.max(1) as f64
    }

    /// Whether a sweep's value makes a run that is not the row's own.
    pub fn is_new(&self, row: usize, field: &FieldValue) -> bool {
        let own = &self.rows[row].fields;
        match (self.base.with(own), self.base.with(&[&own[..], std::slice::from_ref(field)].concat())) {
            (Ok(own), Ok(swept)) => own != swept,
            // The plan has resolved both.
            _ => true,
        }
    }
}

impl ComparisonRow {
    /// The row at one value of a sweep.
    fn at(&self, sweep: &Sweep, value: &toml::Value) -> Self {
        let mut row = self.clone();
        let field = FieldValue { field: sweep.field.clone(), value: value.clone() };
        let short = named_field(&sweep.field).map_or_else(|| label(&sweep.field), |named| named.short);
        let suffix = format!("-{short}{}", value_text(value));
        row.name.push_str(&suffix);
        // The rank has a column of its own.
        if sweep.field != RANK {
            row.label.push_str(&suffix);
        }
        row.fields.push(field.clone());
        row.swept.push(field);
        row
    }
}

/// The recipe of a second task with these data, some of which are held out.
fn second_task(recipe: &Recipe, data: &str) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.data.train = data.to_owned();
    recipe.data.validation = None;
    recipe.data.test = None;
    recipe.eval.problems = 0;
    recipe
}

/// Whether a sweep has values for an arm, whose recipe without the sweep is `recipe`.
fn sweeps_arm(sweep: &Sweep, arm: &Arm, recipe: &Recipe) -> Result<bool, ExperimentError> {
    let effect = takes_effect(&sweep.field, recipe);
    if sweep.arms.is_empty() {
        return Ok(effect && !arm.sets(&sweep.field));
    }
    let named = sweep.arms.contains(&arm.name);
    if named && !effect {
        let (field, name) = (&sweep.field, &arm.name);
        return Err(ExperimentError::Comparison(format!(
            "the sweep of {field} names {name}, in which {field} has no effect"
        )));
    }
    Ok(named)
}

fn no_arm(sweep: &Sweep) -> ExperimentError {
    let field = &sweep.field;
    ExperimentError::Comparison(format!(
        "the sweep of {field} has no arm: the field has no effect in the arms, or they set it themselves"
    ))
}

fn compared_fields(arms: &[Arm], sweeps: &[Sweep]) -> Vec<String> {
    let of_arms = arms.iter().flat_map(|arm| &arm.fields).map(|field| &field.field);
    let mut fields: Vec<String> = of_arms.chain(sweeps.iter().map(|sweep| &sweep.field)).cloned().collect();
    fields.retain(|field| named_field(field).is_none() && field != METHOD && field != LEARNING_RATE);
    fields.sort();
    fields.dedup();
    fields
}
