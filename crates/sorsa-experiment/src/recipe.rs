//! A recipe: everything that decides what a run does. It is read from TOML, written
//! in full to the run directory, and runs again unchanged.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sorsa_adapter::{
    AdapterConfig, Algorithm, Band, HandOverDefaults, Method, PackedFormat, SavedAdapter, SvdOptions, method_of,
};
use sorsa_checkpoint::{ModelConfig, PackingFormats, WeightFormat, gguf_file_of};
use sorsa_data::{AnswerStyle, Format, LoadOptions, TemplateName, Truncation};
use sorsa_models::float_dtype;
use sorsa_train::{LearningRate, OptimizerKind, TrainConfig, steps_of_equal_epochs};
use toml::{Table, Value};

use crate::adapter::adapter_folder;
use crate::embedded::EMBEDDED;
use crate::error::ExperimentError;
use crate::model::model_of_run_or_embedded;
use crate::packed_format;

/// Everything that decides what a run does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// The model to start from.
    pub model: ModelRecipe,
    /// The data, and what becomes of it.
    pub data: DataRecipe,
    /// What is trained.
    pub adapter: AdapterConfig,
    /// How weights are decomposed.
    pub svd: SvdRecipe,
    /// How it is trained.
    pub train: TrainConfig,
    /// How accuracy is measured.
    pub eval: EvalRecipe,
}

/// `[model]`

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelRecipe {
    /// Folder, GGUF file, hub id, or `embedded`.
    pub path: String,
    /// dtype of the frozen weights: f32 or bf16.
    pub dtype: WeightFormat,
    /// Format that the linear layers of a dense model are packed in while it is read: nf4, fp4, q8_0, q4_0 and others; absent, they stay
    /// dense. Like `nf4+q8_0`, it names that of the embedding and the head too.
    #[serde(with = "packed_format", skip_serializing_if = "Option::is_none")]
    pub quantize: Option<PackingFormats>,
    /// Folder of an adapter to start from; it decides all of `[adapter]` but the dropout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Folder of an adapter whose weights a new adapter by `[adapter]` starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continue_from: Option<String>,
    /// Fields of the model's `config.json` that are to have other values.
    #[serde(skip_serializing_if = "Table::is_empty")]
    pub config: Table,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataRecipe {
    /// Training file, or `embedded`.
    pub train: String,
    /// Validation file; absent, `validation_rows` of the training data are held out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<String>,
    /// Rows that are held out if there is no validation file.
    pub validation_rows: usize,
    /// Problems for accuracy; absent, none is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
    /// Format of the rows; absent, recognised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// First rows used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Leave out rows that are malformed, too long, or refused by the template, and count them.
    pub skip_bad_rows: bool,
    /// alpaca, code, question, raw or chat.
    pub template: TemplateName,
    /// Name of the chat template, if the tokenizer's folder has several; absent: `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Longest sequence, in tokens.
    pub max_length: usize,
    /// error, drop-row, keep-end or author-each.
    pub truncation: Truncation,
    /// Take the loss on the prompt too.
    pub train_on_prompt: bool,
    /// Let GSM8K and MATH answers end in `The answer is: N`.
    pub the_answer_is: bool,
    /// Batches whose rows are sorted by length, for batches of similar length; 0: off.
    pub bucket: usize,
    /// Several short sequences in one row, each seeing itself only.
    pub packing: bool,
}

/// `[svd]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SvdRecipe {
    /// auto, exact, block-krylov or gram.
    pub algorithm: Algorithm,
    /// Largest residual of a triplet, relative to the largest singular value.
    pub tolerance: f64,
    /// Keep decomposed weights for the next start.
    pub cache: bool,
    /// Which singular triplets the adapter starts from: principal, middle, minor, or the number of larger ones. It is `adapter.band`, for
    /// every method that has one.
    #[serde(skip_serializing_if = "Band::is_principal")]
    pub band: Band,
}

/// `[eval]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalRecipe {
    /// Problems for accuracy, the first of the test file; 0: none.
    pub problems: usize,
    /// Prompts that are answered together.
    pub batch_size: usize,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Text after every prompt at test time.
    pub prompt_suffix: String,
    /// Run the programs that the model writes, if the test asks for programs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_code_execution: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Self::defaults(Method::Sorsa, OptimizerKind::AdamW)
    }
}

impl Default for ModelRecipe {
    fn default() -> Self {
        Self {
            path: EMBEDDED.to_owned(),
            dtype: WeightFormat::F32,
            quantize: None,
            adapter: None,
            continue_from: None,
            config: Table::new(),
        }
    }
}

impl Default for DataRecipe {
    fn default() -> Self {
        Self {
            train: EMBEDDED.to_owned(),
            validation: None,
            validation_rows: 200,
            test: None,
            format: None,
            limit: None,
            skip_bad_rows: false,
            template: TemplateName::Alpaca,
            chat_template: None,
            max_length: 512,
            truncation: Truncation::DropRow,
            train_on_prompt: false,
            the_answer_is: true,
            bucket: 16,
            packing: false,
        }
    }
}

impl Default for SvdRecipe {
    fn default() -> Self {
        Self { algorithm: Algorithm::Auto, tolerance: 1e-5, cache: true, band: Band::Principal }
    }
}

impl Default for EvalRecipe {
    fn default() -> Self {
        Self {
            problems: 200,
            batch_size: 50,
            max_new_tokens: 128,
            prompt_suffix: String::new(),
            allow_code_execution: false,
        }
    }
}

impl Recipe {
    /// The defaults: the embedded model and task.
    fn defaults(method: Method, optimizer: OptimizerKind) -> Self {
        let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let mut train = TrainConfig { batch_size: 16, epochs: 1.0, ..TrainConfig::default() };
        train.optimizer = optimizer.defaults();
        train.optimizer.learning_rate = (embedded_learning_rate(method) * optimizer.relative_rate()).into();
        Self {
            model: ModelRecipe::default(),
            data: DataRecipe::default(),
            adapter: AdapterConfig::new(method, 16, &targets),
            svd: SvdRecipe::default(),
            train,
            eval: EvalRecipe::default(),
        }
    }

    /// The recipe of an earlier run, or one that a person wrote.
    ///
    /// # Errors
    ///
    /// As [`from_table`](Self::from_table); [`ExperimentError::ReadRecipe`], [`ExperimentError::RecipeSyntax`].
    pub fn read(path: &Path) -> Result<Self, ExperimentError> {
        Self::from_table(read_table(path)?, &path.display().to_string())
    }

    /// The recipe with the fields of `typed`, and the defaults of its method for all others. `name` is named in errors.
    ///
    /// # Errors
    ///
    /// Unknown fields, fields of another type; all values that make no sense in one [`ExperimentError::RecipeValues`].
    pub fn from_table(mut typed: Table, name: &str) -> Result<Self, ExperimentError> {
        let of_model = |field: &str| typed.get("model").and_then(|model| model.get(field));
        let source = of_model("continue_from").or(of_model("adapter")).cloned();
        if let (None, Some(Value::String(adapter))) = (of_model("path"), &source) {
            // An adapter of a run is trained further on the model of that run.
            let model = model_of_run_or_embedded(Path::new(adapter))?;
            set_field(&mut typed, "model.path", Value::String(model))?;
        }
        let method = match typed.get("adapter").and_then(|adapter| adapter.get("method")) {
            Some(Value::String(method)) => method.parse().map_err(ExperimentError::UnknownName)?,
            _ => match &source {
                Some(Value::String(folder)) => method_of(&adapter_folder(Path::new(folder))?)?,
                _ => Method::Sorsa,
            },
        };
        if method.setting_names().contains(&"band") {
            copy_band(&mut typed)?;
        }
        let optimizer = typed.get("train").and_then(|train| train.get("optimizer"));
        let names_rate = optimizer.is_some_and(|optimizer| optimizer.get("learning_rate").is_some());
        let optimizer = match optimizer.and_then(|optimizer| optimizer.get("kind")) {
            Some(Value::String(kind)) => {
                kind.parse().map_err(|error| ExperimentError::UnknownName(format!("{name}: {error}")))?
            }
            _ => OptimizerKind::AdamW,
        };
        let mut defaults = Self::defaults(method, optimizer);
        if let Some(Value::String(folder)) = typed.get("model").and_then(|model| model.get("continue_from")) {
            defaults.hold_change_of(Path::new(folder), typed.get("adapter"))?;
        }
        let mut table = Table::try_from(defaults)?;
        merge(&mut table, typed);
        let unknown = take_unknown_names(&mut table);
        let mut recipe: Self = table.try_into().map_err(|error: toml::de::Error| ExperimentError::RecipeField {
            name: name.to_owned(),
            message: error.to_string().trim().replace('\n', " "),
        })?;
        if !names_rate && recipe.model.path != EMBEDDED {
            recipe.train.optimizer.learning_rate = LearningRate::Auto;
        }
        recipe.fill_embedded();
        let faults = recipe.faults(unknown);
        if faults.is_empty() {
            Ok(recipe)
        } else {
            Err(ExperimentError::RecipeValues { name: name.to_owned(), faults })
        }
    }

    /// Rank and targets of an adapter that goes on with the one in `folder`, where `given` names none.
    fn hold_change_of(&mut self, folder: &Path, given: Option<&Value>) -> Result<(), ExperimentError> {
        let names = |field: &str| given.is_some_and(|given| given.get(field).is_some());
        if names("rank") && names("target_modules") {
            return Ok(());
        }
        let held = HandOverDefaults::of(&adapter_folder(folder)?, self.adapter.method())?;
        if !names("rank") && !names("rank_pattern") {
            self.adapter.rank = held.rank;
            self.adapter.rank_pattern = held.rank_pattern;
        }
        if !names("target_modules") {
            self.adapter.target_modules = held.target_modules;
        }
        Ok(())
    }

    /// Replaces `[adapter]` by the settings of the adapter to start from. Fields that differ from the defaults must agree.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::OtherAdapter`].
    pub fn start_from(&mut self, saved: &SavedAdapter) -> Result<(), ExperimentError> {
        let (own, defaults) = (&self.adapter, Self::defaults(self.adapter.method(), OptimizerKind::AdamW).adapter);
        let dropout = if own.dropout == defaults.dropout { saved.state.config.dropout } else { own.dropout };
        let config = AdapterConfig { dropout, seed: own.seed, ..saved.state.config.clone() };
        let silent = *own == AdapterConfig { dropout: own.dropout, seed: own.seed, ..defaults };
        let own = AdapterConfig { dropout, ..own.clone() };
        if !silent && own != config {
            return Err(ExperimentError::OtherAdapter {
                method: config.method().to_string(),
                rank: config.rank,
                targets: config.target_modules.join(", "),
            });
        }
        self.adapter = config;
        Ok(())
    }

    /// The embedded task brings its validation and test problems along.
    fn fill_embedded(&mut self) {
        if self.data.train == EMBEDDED {
            self.data.validation.get_or_insert_with(|| EMBEDDED.to_owned());
            self.data.test.get_or_insert_with(|| EMBEDDED.to_owned());
        }
    }

    /// Every value that makes no sense, `unknown` names among them.
    fn faults(&self, unknown: Vec<String>) -> Vec<String> {
        let mut faults = self.train.faults();
        if let Err(error) = self.adapter.validate() {
            faults.push(error.to_string());
        }
        if self.train.regularizer.orthogonal_gamma > 0.0
            && let Some(fault) = self.adapter.methods().into_iter().find_map(Method::orthogonality_fault)
        {
            faults.push(format!("train.regularizer.orthogonal_gamma must be 0: {fault}"));
        }
        let factors = self.adapter.method().factor_names();
        for name in self.train.optimizer.factor_rates.keys().filter(|name| !factors.contains(&name.as_str())) {
            faults.push(match factors.as_slice() {
                [] => format!("train.optimizer.factor_rates.{name}: {} trains no factors", self.adapter.method()),
                _ => format!(
                    "train.optimizer.factor_rates.{name}: {} has no such factor, it has {}",
                    self.adapter.method(),
                    factors.join(", ")
                ),
            });
        }
        faults.extend(self.band_faults());
        if let (Some(name), TemplateName::Alpaca | TemplateName::Code | TemplateName::Question | TemplateName::Raw) =
            (&self.data.chat_template, self.data.template)
        {
            faults.push(format!(
                "data.chat_template = \"{name}\" needs data.template = \"chat\", found {}",
                self.data.template
            ));
        }
        if self.model.adapter.is_some() && self.model.continue_from.is_some() {
            faults.push(
                "model.adapter trains an adapter further, model.continue_from starts a new one: give one of them"
                    .to_owned(),
            );
        }
        faults.extend(unknown);
        if !(self.svd.tolerance > 0.0 && self.svd.tolerance.is_finite()) {
            faults.push("svd.tolerance must be positive".to_owned());
        }
        if self.eval.batch_size == 0 {
            faults.push("eval.batch_size must be at least 1".to_owned());
        }
        faults
    }

    /// A line for each setting that does not fit the band of singular triplets.
    fn band_faults(&self) -> Vec<String> {
        let (band, method, svd, mut faults) =
            (self.adapter.method.band(), self.adapter.method(), &self.svd, Vec::new());
        if !svd.band.is_principal() && !method.setting_names().contains(&"band") {
            let methods = Method::ALL.into_iter().filter(|method| method.setting_names().contains(&"band"));
            let methods = methods.map(Method::name).collect::<Vec<_>>().join(", ");
            faults.push(format!(
                "svd.band = {} is for {methods}, which split a weight's triplets, not for {method}",
                svd.band
            ));
        } else if !svd.band.is_principal() && svd.band != band {
            faults.push(format!("svd.band is {}, but adapter.band, which is the same setting, is {band}", svd.band));
        }
        if !band.is_principal() && !matches!(svd.algorithm, Algorithm::Auto | Algorithm::Exact) {
            faults.push(format!("svd.algorithm must be auto or exact with band {band}: others find leading triplets"));
        }
        faults
    }

    /// The learning rate that the search for one begins with: what published runs have, or the rate of the embedded model.
    pub fn learning_rate_guess(&self) -> f64 {
        let method = self.adapter.method();
        let rate = match self.model.path.as_str() {
            EMBEDDED => embedded_learning_rate(method),
            path => published_learning_rate(method, self.adapter.rank, hidden_size(Path::new(path))),
        };
        rate * self.train.optimizer.kind.relative_rate()
    }

    /// How data files are read.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            format: self.data.format,
            skip_bad_rows: self.data.skip_bad_rows,
            limit: None,
            answer_style: if self.data.the_answer_is { AnswerStyle::TheAnswerIs } else { AnswerStyle::AsIs },
        }
    }

    /// How weights are decomposed.
    pub fn svd_options(&self) -> SvdOptions {
        SvdOptions { algorithm: self.svd.algorithm, tolerance: self.svd.tolerance, ..SvdOptions::default() }
    }

    /// The most steps that the recipe allows by itself; fewer if rows are left out. `None` if the length of the data decides.
    pub fn most_steps(&self) -> Option<u64> {
        let train = &self.train;
        let by_rows = self.data.limit.map(|rows| steps_of_equal_epochs(train, rows.div_ceil(train.batch_size)));
        match (by_rows, train.max_steps) {
            (Some(rows), Some(most)) => Some(rows.min(most)),
            (rows, most) => rows.or(most),
        }
    }

    /// The recipe as TOML.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Toml`] of a value that TOML cannot hold, such as an integer beyond 64 bits.
    pub fn to_toml(&self) -> Result<String, ExperimentError> {
        Ok(toml::to_string(self)?)
    }
}

/// The learning rate for the embedded model of 836,736 parameters. Factors split from the weight, factors that start
/// from nothing, and whole weights have the rates that suit SORSA and PiSSA, LoRA, and full fine-tuning there. A model of
/// millions of parameters is ruined by them.
fn embedded_learning_rate(method: Method) -> f64 {
    match method {
        _ if method.splits_weight() => 2e-3,
        _ if method.is_factored() => 4e-3,
        _ => 1e-3,
    }
}

/// A learning rate for any other model, near which the search begins.
///
/// Factors split from the weight: 3e-5, as published for SORSA with rank 128 on a width of 4096 (arXiv 2409.00055, PiSSA
/// 2e-5), rising with the fourth root of a smaller `rank * width` up to 1e-4. Factors that start from nothing: 2e-4, as
/// QLoRA's runs (arXiv 2305.14314). Whole weights: 2e-5, as Alpaca's.
fn published_learning_rate(method: Method, rank: usize, width: Option<usize>) -> f64 {
    if !method.is_factored() {
        return 2e-5;
    }
    if !method.splits_weight() {
        return 2e-4;
    }
    let published = (128 * 4096) as f64;
    let size = width.map_or(published, |width| (rank.max(1) * width) as f64);
    let rate = 3e-5 * (published / size).powf(0.25);
    // One digit: a rate is told and typed again.
    let rounded = (rate * 1e5).round() / 1e5;
    rounded.clamp(3e-5, 1e-4)
}

/// `hidden_size` of the model in a folder or a GGUF file, if there is one that says it.
fn hidden_size(path: &Path) -> Option<usize> {
    if gguf_file_of(path).is_ok_and(|file| file.is_some()) {
        return Some(ModelConfig::read(path).ok()?.hidden_size);
    }
    let config = std::fs::read(path.join("config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&config).ok()?;
    config.get("hidden_size")?.as_u64().map(|width| width as usize)
}

/// The fields of a TOML file.
///
/// # Errors
///
/// [`ExperimentError::ReadRecipe`], [`ExperimentError::RecipeSyntax`].
pub fn read_table(path: &Path) -> Result<Table, ExperimentError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ExperimentError::ReadRecipe { path: path.to_owned(), source })?;
    text.parse().map_err(|error: toml::de::Error| ExperimentError::RecipeSyntax {
        name: path.display().to_string(),
        line: error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1),
        message: error.message().to_owned(),
    })
}

/// Sets a dotted field.
///
/// # Errors
///
/// [`ExperimentError::NotATable`].
pub fn set_field(table: &mut Table, field: &str, value: Value) -> Result<(), ExperimentError> {
    match field.split_once('.') {
        None => {
            table.insert(field.to_owned(), value);
            Ok(())
        }
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            match inner.as_table_mut() {
                Some(inner) => set_field(inner, rest, value),
                None => Err(ExperimentError::NotATable { table: first.to_owned(), field: field.to_owned() }),
            }
        }
    }
}

/// Replaces fields of `base` by those of `over`, table by table. Lists are replaced whole.
fn merge(base: &mut Table, over: Table) {
    for (field, value) in over {
        match (base.get_mut(&field), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(field, value);
            }
        }
    }
}

/// Sets `adapter.band` to `svd.band`, if that is given alone.
fn copy_band(table: &mut Table) -> Result<(), ExperimentError> {
    let given = |section: &str| table.get(section).and_then(|section| section.get("band")).cloned();
    match (given("svd"), given("adapter")) {
        (Some(band), None) if is_a::<Band>(&band) => set_field(table, "adapter.band", band),
        _ => Ok(()),
    }
}

/// Removes each unknown name, so that the other fields can be checked too. Returns a line for each.
fn take_unknown_names(table: &mut Table) -> Vec<String> {
    let formats = Format::ALL.map(Format::as_str).join(", ");
    let templates = TemplateName::ALL.map(TemplateName::as_str).join(", ");
    let mut faults = Vec::new();
    let mut take = |section: &str, field: &str, called: &str, expected: &str, is_known: fn(&Value) -> bool| {
        let Some(Value::Table(section)) = table.get_mut(section) else { return };
        match section.get(field) {
            Some(Value::String(found)) if !is_known(&section[field]) => {
                faults.push(format!("unknown {called} `{found}`, expected {expected}"));
                section.remove(field);
            }
            _ => {}
        }
    };
    take("data", "format", "format", &formats, is_a::<Format>);
    take("data", "truncation", "data.truncation", "error, drop-row, keep-end or author-each", is_a::<Truncation>);
    take("svd", "algorithm", "svd.algorithm", "auto, exact, block-krylov or gram", is_a::<Algorithm>);
    take("svd", "band", "svd.band", "principal, middle, minor or the number of larger triplets", is_a::<Band>);
    take("model", "dtype", "dtype", "f32 or bf16", is_computed_with);
    let packed = PackedFormat::packable().map(PackedFormat::name).collect::<Vec<_>>().join(", ");
    let packed = format!("one of {packed}, or two with a plus, the second for the embedding and the head");
    take("model", "quantize", "format", &packed, is_packable);
    take("data", "template", "data.template", &templates, is_a::<TemplateName>);
    faults
}

/// Whether weights can be packed in the format of this name.
fn is_packable(value: &Value) -> bool {
    let formats = value.as_str().and_then(|name| name.parse::<PackingFormats>().ok());
    formats.is_some_and(|formats| formats.not_packable().is_none())
}

/// Whether a model computes with weights in the format of this name.
fn is_computed_with(value: &Value) -> bool {
    value.clone().try_into::<WeightFormat>().is_ok_and(|format| float_dtype(format).is_some())
}

fn is_a<T: DeserializeOwned>(value: &Value) -> bool {
    value.clone().try_into::<T>().is_ok()
}

#[cfg(test)]
mod tests;
