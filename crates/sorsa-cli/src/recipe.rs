//! A recipe: everything that decides what a run does. Read from TOML, overridden from the command line, written
//! beside the results in full, and run again as it stands.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sorsa_adapter::{AdapterConfig, Algorithm, Method, SavedAdapter, SvdOptions, method_of};
use sorsa_data::{AnswerStyle, Format, LoadOptions, TemplateName, Truncation};
use sorsa_train::{OptimizerKind, TrainConfig};
use toml::{Table, Value};

use crate::args::{FinetuneArgs, RecipeArgs};
use crate::embedded::EMBEDDED;
use crate::exit::{OrBadInput, bad_input};
use crate::session::{adapter_folder, model_or_of_run};

/// The fields of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    pub model: ModelRecipe,
    pub data: DataRecipe,
    pub adapter: AdapterConfig,
    pub svd: SvdRecipe,
    pub train: TrainConfig,
    pub eval: EvalRecipe,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelRecipe {
    /// Folder, hub id, or `embedded`.
    pub path: String,
    /// dtype of the frozen weights: f32 or bf16.
    pub dtype: String,
    /// Folder of an adapter to start from; it decides what `[adapter]` says, but for the dropout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataRecipe {
    /// Training file, or `embedded`.
    pub train: String,
    /// Validation file; absent, `validation_rows` of the training data are held out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<String>,
    pub validation_rows: usize,
    /// Problems for accuracy; absent, none is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
    /// Format of the rows; absent, recognised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// First rows used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    pub skip_bad_rows: bool,
    /// alpaca, code, question, raw or chat.
    pub template: String,
    /// Longest sequence, in tokens.
    pub max_length: usize,
    /// error, drop-row, keep-end or author-each.
    pub truncation: String,
    pub train_on_prompt: bool,
    /// Let GSM8K and MATH answers end in `The answer is: N`.
    pub the_answer_is: bool,
    /// Batches of similar length: windows of so many batches are sorted; 0: off.
    pub bucket: usize,
    /// Several short sequences in one row, each seeing itself only.
    pub packing: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SvdRecipe {
    /// auto, exact, block-krylov or gram.
    pub algorithm: String,
    /// Largest residual of a triplet, relative to the largest singular value.
    pub tolerance: f64,
    /// Keep decomposed weights for the next start.
    pub cache: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalRecipe {
    /// Problems for accuracy, the first of the test file; 0: none.
    pub problems: usize,
    pub batch_size: usize,
    pub max_new_tokens: usize,
    /// Text put after every prompt at test time.
    pub prompt_suffix: String,
}

impl Default for Recipe {
    fn default() -> Self {
        Self::defaults(Method::Sorsa, OptimizerKind::AdamW)
    }
}

impl Default for ModelRecipe {
    fn default() -> Self {
        Self { path: EMBEDDED.to_owned(), dtype: "f32".to_owned(), adapter: None }
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
            template: "alpaca".to_owned(),
            max_length: 512,
            truncation: "drop-row".to_owned(),
            train_on_prompt: false,
            the_answer_is: true,
            bucket: 16,
            packing: false,
        }
    }
}

impl Default for SvdRecipe {
    fn default() -> Self {
        Self { algorithm: "auto".to_owned(), tolerance: 1e-5, cache: true }
    }
}

impl Default for EvalRecipe {
    fn default() -> Self {
        Self { problems: 200, batch_size: 50, max_new_tokens: 128, prompt_suffix: String::new() }
    }
}

impl Recipe {
    /// The defaults: the embedded model and task.
    fn defaults(method: Method, optimizer: OptimizerKind) -> Self {
        let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let mut train = TrainConfig { batch_size: 16, epochs: 1.0, ..TrainConfig::default() };
        train.optimizer = optimizer.defaults();
        train.optimizer.learning_rate = embedded_learning_rate(method) * optimizer.relative_rate();
        Self {
            model: ModelRecipe::default(),
            data: DataRecipe::default(),
            adapter: AdapterConfig::new(method, 16, &targets),
            svd: SvdRecipe::default(),
            train,
            eval: EvalRecipe::default(),
        }
    }

    /// The recipe of a command line: that of the run to go on with, or a new one.
    pub fn of(args: &FinetuneArgs) -> anyhow::Result<Self> {
        match &args.resume {
            Some(_) if args.fields != RecipeArgs::default() => {
                Err(bad_input("--resume goes on with the recipe of its run, which no option can change any more"))
            }
            Some(run) => Self::read(&run.join("recipe.toml"))
                .map_err(|error| bad_input(format!("{} holds no run to go on with: {error}", run.display()))),
            None => Self::resolve(&args.fields),
        }
    }

    /// Defaults of the method, then the file, then the options.
    pub fn resolve(args: &RecipeArgs) -> anyhow::Result<Self> {
        let mut typed = Table::new();
        let name = match &args.recipe {
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|error| bad_input(format!("{}: {error}", path.display())))?;
                typed = text.parse().map_err(|error| syntax_fault(&path.display().to_string(), &text, &error))?;
                path.display().to_string()
            }
            None => "command line".to_owned(),
        };
        for (field, value) in overrides(args)? {
            set(&mut typed, &field, value)?;
        }
        let names = |field: &str| typed.get("model").and_then(|model| model.get(field));
        if let (None, Some(Value::String(adapter))) = (names("path"), names("adapter")) {
            // An adapter of a run goes on with the model it was trained on.
            let model = model_or_of_run(None, Some(Path::new(adapter)))?;
            set(&mut typed, "model.path", Value::String(model))?;
        }
        Self::from_typed(typed, &name)
    }

    /// The resolved recipe of an earlier run.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| bad_input(format!("{name}: {error}")))?;
        Self::from_typed(text.parse().map_err(|error| syntax_fault(&name, &text, &error))?, &name)
    }

    fn from_typed(typed: Table, name: &str) -> anyhow::Result<Self> {
        let method = match typed.get("adapter").and_then(|adapter| adapter.get("method")) {
            Some(Value::String(method)) => method.parse().map_err(bad_input)?,
            _ => match typed.get("model").and_then(|model| model.get("adapter")) {
                Some(Value::String(folder)) => method_of(&adapter_folder(Path::new(folder))?).or_bad_input()?,
                _ => Method::Sorsa,
            },
        };
        let optimizer = typed.get("train").and_then(|train| train.get("optimizer"));
        let names_rate = optimizer.is_some_and(|optimizer| optimizer.get("learning_rate").is_some());
        let optimizer = match optimizer.and_then(|optimizer| optimizer.get("kind")) {
            Some(Value::String(kind)) => kind.parse().map_err(|error| bad_input(format!("{name}: {error}")))?,
            _ => OptimizerKind::AdamW,
        };
        let mut table = Table::try_from(Self::defaults(method, optimizer)).or_bad_input()?;
        merge(&mut table, typed);
        let mut recipe: Self = table.try_into().map_err(|error| field_fault(name, &error))?;
        if !names_rate && recipe.model.path != EMBEDDED {
            let width = hidden_size(Path::new(&recipe.model.path));
            recipe.train.optimizer.learning_rate =
                published_learning_rate(method, recipe.adapter.rank, width) * optimizer.relative_rate();
        }
        recipe.fill_embedded();
        recipe.check(name)?;
        Ok(recipe)
    }

    /// Takes over what the adapter to start from is. Whatever `[adapter]` says beside defaults must agree.
    pub fn start_from(&mut self, saved: &SavedAdapter) -> anyhow::Result<()> {
        let (own, defaults) = (&self.adapter, Self::defaults(self.adapter.method, OptimizerKind::AdamW).adapter);
        let dropout = if own.dropout == defaults.dropout { saved.state.config.dropout } else { own.dropout };
        let config = AdapterConfig { dropout, seed: own.seed, ..saved.state.config.clone() };
        let silent = *own == AdapterConfig { dropout: own.dropout, seed: own.seed, ..defaults };
        let own = AdapterConfig { dropout, ..own.clone() };
        if !silent && own != config {
            return Err(bad_input(format!(
                "the adapter to start from is {} of rank {} on {}: [adapter] asks for another",
                config.method,
                config.rank,
                config.target_modules.join(", ")
            )));
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

    fn check(&self, name: &str) -> anyhow::Result<()> {
        let mut faults = self.train.faults();
        let mut note = |error: anyhow::Error| faults.push(format!("{error:#}"));
        if let Err(error) = self.adapter.validate() {
            note(error.into());
        }
        for result in [self.load_options().map(drop), self.truncation().map(drop), self.svd_options().map(drop)] {
            result.unwrap_or_else(&mut note);
        }
        crate::session::dtype(&self.model.dtype).map(drop).unwrap_or_else(&mut note);
        if !(self.svd.tolerance > 0.0 && self.svd.tolerance.is_finite()) {
            faults.push("svd.tolerance must be positive".to_owned());
        }
        if self.data.template.parse::<TemplateName>().is_err() {
            let (found, expected) = (&self.data.template, TemplateName::ALL.map(TemplateName::as_str).join(", "));
            faults.push(format!("unknown data.template `{found}`, expected {expected}"));
        }
        if self.eval.batch_size == 0 {
            faults.push("eval.batch_size must be at least 1".to_owned());
        }
        if faults.is_empty() { Ok(()) } else { Err(bad_input(format!("{name}: {}", faults.join("; ")))) }
    }

    /// How data files are read.
    pub fn load_options(&self) -> anyhow::Result<LoadOptions> {
        let format = match &self.data.format {
            None => None,
            Some(name) => Some(name.parse::<Format>().or_bad_input()?),
        };
        Ok(LoadOptions {
            format,
            skip_bad_rows: self.data.skip_bad_rows,
            limit: None,
            answer_style: if self.data.the_answer_is { AnswerStyle::TheAnswerIs } else { AnswerStyle::AsIs },
            ..LoadOptions::default()
        })
    }

    /// What becomes of records that are too long.
    pub fn truncation(&self) -> anyhow::Result<Truncation> {
        match self.data.truncation.as_str() {
            "error" => Ok(Truncation::Error),
            "drop-row" => Ok(Truncation::DropRow),
            "keep-end" => Ok(Truncation::KeepEnd),
            "author-each" => Ok(Truncation::AuthorEach),
            other => Err(bad_input(format!(
                "unknown data.truncation `{other}`, expected error, drop-row, keep-end or author-each"
            ))),
        }
    }

    /// How weights are decomposed.
    pub fn svd_options(&self) -> anyhow::Result<SvdOptions> {
        let algorithm = match self.svd.algorithm.as_str() {
            "auto" => Algorithm::Auto,
            "exact" => Algorithm::Exact,
            "block-krylov" => Algorithm::BlockKrylov,
            "gram" => Algorithm::Gram,
            other => {
                return Err(bad_input(format!(
                    "unknown svd.algorithm `{other}`, expected auto, exact, block-krylov or gram"
                )));
            }
        };
        Ok(SvdOptions { algorithm, tolerance: self.svd.tolerance, ..SvdOptions::default() })
    }

    /// The steps that the recipe says by itself: at most these, as rows may be left out. Nothing where the length of
    /// the data decides.
    pub fn most_steps(&self) -> Option<u64> {
        let train = &self.train;
        let by_rows = self.data.limit.map(|rows| {
            let batches = rows.div_ceil(train.batch_size) as f64 * train.epochs;
            (batches / train.accumulation as f64).ceil().max(1.0) as u64
        });
        match (by_rows, train.max_steps) {
            (Some(rows), Some(most)) => Some(rows.min(most)),
            (rows, most) => rows.or(most),
        }
    }

    /// The recipe as TOML.
    pub fn to_toml(&self) -> anyhow::Result<String> {
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

/// The learning rate for any other model, if the recipe names none.
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

/// `hidden_size` of the model in a folder, if there is one that says it.
fn hidden_size(folder: &Path) -> Option<usize> {
    let config = std::fs::read(folder.join("config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&config).ok()?;
    config.get("hidden_size")?.as_u64().map(|width| width as usize)
}

/// The options of the command line as fields of a recipe.
fn overrides(args: &RecipeArgs) -> anyhow::Result<Vec<(String, Value)>> {
    fn float(value: Option<f64>) -> Option<Value> {
        value.map(Value::Float)
    }
    fn text(value: Option<&String>) -> Option<Value> {
        value.cloned().map(Value::String)
    }
    let integer = |value: Option<u64>| value.map(|value| Value::Integer(i64::try_from(value).unwrap_or(i64::MAX)));
    let size = |value: Option<usize>| integer(value.map(|value| value as u64));
    let targets = args.target_modules.as_ref();
    let named = [
        ("model.path", text(args.model.as_ref())),
        ("model.dtype", text(args.dtype.as_ref())),
        ("model.adapter", text(args.adapter.as_ref())),
        ("data.train", text(args.data.as_ref())),
        ("data.validation", text(args.validation.as_ref())),
        ("data.test", text(args.test.as_ref())),
        ("data.limit", size(args.limit)),
        ("data.skip_bad_rows", args.skip_bad_rows.then_some(Value::Boolean(true))),
        ("data.max_length", size(args.max_length)),
        ("adapter.method", text(args.method.as_ref())),
        ("adapter.rank", size(args.rank)),
        ("adapter.alpha", float(args.alpha)),
        ("adapter.target_modules", targets.map(|t| Value::Array(t.iter().cloned().map(Value::String).collect()))),
        ("train.optimizer.learning_rate", float(args.lr)),
        ("train.regularizer.gamma", float(args.gamma)),
        ("train.epochs", float(args.epochs)),
        ("train.max_steps", integer(args.max_steps)),
        ("train.batch_size", size(args.batch_size)),
        ("train.accumulation", size(args.accumulation)),
        ("train.checkpoint_blocks", args.checkpoint_blocks.then_some(Value::Boolean(true))),
        ("train.seed", integer(args.seed)),
        ("adapter.seed", integer(args.seed)),
    ];
    let mut fields: Vec<(String, Value)> =
        named.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))).collect();
    for text in &args.set {
        let Some((field, value)) = text.split_once('=') else {
            return Err(bad_input(format!("--set {text}: expected FIELD=VALUE")));
        };
        // What is not TOML is a string: `--set data.template=raw` needs no quotes.
        let value = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
        let value = value.unwrap_or_else(|| Value::String(text[field.len() + 1..].to_owned()));
        fields.push((field.to_owned(), value));
    }
    Ok(fields)
}

/// Sets a dotted field.
fn set(table: &mut Table, field: &str, value: Value) -> anyhow::Result<()> {
    match field.split_once('.') {
        None => {
            table.insert(field.to_owned(), value);
            Ok(())
        }
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            match inner.as_table_mut() {
                Some(inner) => set(inner, rest, value),
                None => Err(bad_input(format!("`{first}` is not a table: `{field}` cannot be set"))),
            }
        }
    }
}

/// Puts the fields of `over` over those of `base`, table by table. Patterns replace each other as a whole.
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

/// What is wrong with the TOML of a file, with its line.
fn syntax_fault(name: &str, text: &str, error: &toml::de::Error) -> anyhow::Error {
    let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
    bad_input(format!("{name}, line {line}: {}", error.message()))
}

/// What is wrong with a field, with its name.
fn field_fault(name: &str, error: &toml::de::Error) -> anyhow::Error {
    bad_input(format!("{name}: {}", error.to_string().trim().replace('\n', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_without_a_rate_has_a_published_one_for_every_model_but_the_embedded() {
        let rate =
            |text: &str| Recipe::from_typed(text.parse().unwrap(), "test").unwrap().train.optimizer.learning_rate;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"hidden_size": 576}"#).unwrap();
        let model = format!("model.path = {:?}\n", folder.path());
        for (method, embedded, published) in [
            ("sorsa", 2e-3, 8e-5),
            ("pissa", 2e-3, 8e-5),
            ("olora", 2e-3, 8e-5),
            ("lora", 4e-3, 2e-4),
            ("dora", 4e-3, 2e-4),
            ("partial", 1e-3, 2e-5),
            ("full", 1e-3, 2e-5),
        ] {
            let method = format!("adapter.method = \"{method}\"\n");
            assert_eq!(rate(&method), embedded, "{method}");
            assert_eq!(rate(&format!("{model}{method}")), published, "{method}");
            assert_eq!(rate(&format!("{model}{method}train.optimizer.learning_rate = 5e-4")), 5e-4);
        }
        assert_eq!(rate("train.optimizer.kind = \"lion\""), 2e-4);
        let lion = Recipe::from_typed("train.optimizer.kind = \"lion\"".parse().unwrap(), "test").unwrap();
        assert_eq!((lion.train.optimizer.beta1, lion.train.optimizer.beta2), (0.9, 0.99));
        assert_eq!(rate(&format!("{model}adapter.rank = 128")), 5e-5);
        assert_eq!(rate(&format!("{model}adapter.rank = 1")), 1e-4);
        assert_eq!(rate("model.path = \"meta-llama/Llama-2-7b-hf\""), 3e-5, "no width is known before the download");
    }
}
