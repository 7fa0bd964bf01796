//! What a recipe comes to: data encoded, model loaded, targets chosen.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::Device;
use serde::Serialize;
use sorsa_adapter::Method;
use sorsa_data::{BatchOptions, Batcher, EncodeOptions, EncodedSet, Encoder, Example, Loaded, Record, TextTokenizer};
use sorsa_eval::report::bytes;
use sorsa_models::{CausalLm, ModelConfig};

use crate::device;
use crate::embedded::{self, EMBEDDED};
use crate::estimate::{MemoryEstimate, Step, grouped};
use crate::exit::{OrBadInput, bad_input};
use crate::progress::Style;
use crate::recipe::Recipe;
use crate::session::{self, Session, load_records};
use crate::task::{Problems, answer_kind};

/// Everything a run needs but the adapter.
pub struct Plan {
    pub model: CausalLm,
    pub train: Batcher,
    pub validation: Option<Batcher>,
    pub task: Task,
}

/// What accuracy is measured on, and what is said of the data.
pub struct Task {
    pub encoder: Encoder,
    pub problems: Option<Problems>,
    pub stops: Vec<u32>,
    pub data: DataReport,
}

/// What the data files held.
#[derive(Debug, Clone, Serialize)]
pub struct DataReport {
    pub format: String,
    pub train_examples: usize,
    pub train_tokens: usize,
    pub target_tokens: usize,
    pub dropped: usize,
    pub truncated: usize,
    pub skipped: usize,
    pub validation_examples: usize,
    pub problems: usize,
}

/// A data file by its name in a recipe.
pub fn data_file(name: &str, split: &str) -> anyhow::Result<PathBuf> {
    if name == EMBEDDED { embedded::task(split) } else { Ok(PathBuf::from(name)) }
}

impl Plan {
    pub fn new(recipe: &Recipe, device: &Device, style: Style) -> anyhow::Result<Self> {
        let session = Session::load(&recipe.model.path, session::dtype(&recipe.model.dtype)?, device, style)?;
        let Inputs { train, validation, task } =
            Inputs::new(recipe, &session.tokenizer, session.model.config(), style)?;
        Ok(Self { model: session.model, train, validation, task })
    }
}

/// What a run reads beside the model's weights.
pub struct Inputs {
    pub train: Batcher,
    pub validation: Option<Batcher>,
    pub task: Task,
}

impl Inputs {
    pub fn new(
        recipe: &Recipe,
        tokenizer: &Arc<TextTokenizer>,
        config: &ModelConfig,
        style: Style,
    ) -> anyhow::Result<Self> {
        let context = config.max_position_embeddings;
        let max_length = recipe.data.max_length.min(context);
        let options = EncodeOptions {
            max_length,
            truncation: recipe.truncation()?,
            train_on_prompt: recipe.data.train_on_prompt,
            append_eos: true,
            prompt_suffix: recipe.eval.prompt_suffix.clone(),
        };
        let encoder = session::encoder(tokenizer, &recipe.data.template, options, config.vocab_size)?;

        let load = |name: &str, split: &str, limit: Option<usize>| -> anyhow::Result<(PathBuf, Loaded)> {
            let path = data_file(name, split)?;
            let options = sorsa_data::LoadOptions { limit, ..recipe.load_options()? };
            let loaded = load_records(&path, &options, style)?;
            Ok((path, loaded))
        };
        let (path, loaded) = load(&recipe.data.train, "train", recipe.data.limit)?;
        let (format, skipped) = (loaded.format.to_string(), loaded.skipped.count);
        let (train, validation_set) = match &recipe.data.validation {
            Some(name) => {
                let (path, validation) = load(name, "validation", None)?;
                (loaded.records, encode(&path, &encoder, &validation.records, max_length)?)
            }
            None => {
                let (train, validation) = hold_out(&path, loaded.records, recipe)?;
                (train, encoder.encode_all(&validation).or_bad_input_in(&path)?)
            }
        };
        let train_set = encode(&path, &encoder, &train, max_length)?;
        let problems = match &recipe.data.test {
            Some(name) if recipe.eval.problems > 0 => {
                let (path, loaded) = load(name, "test", Some(recipe.eval.problems))?;
                let kind = answer_kind(loaded.format);
                Some(Problems::new(&path, loaded.records, kind, &encoder, context)?)
            }
            _ => None,
        };
        let data = DataReport {
            format,
            train_examples: train_set.examples.len(),
            train_tokens: train_set.tokens,
            target_tokens: train_set.target_tokens,
            dropped: train_set.dropped,
            truncated: train_set.truncated,
            skipped,
            validation_examples: validation_set.examples.len(),
            problems: problems.as_ref().map_or(0, Problems::len),
        };
        let pad_id = tokenizer.pad(config.vocab_size);
        let batcher = |examples: Vec<Example>, shuffle: bool| {
            let options = BatchOptions {
                batch_size: recipe.train.batch_size,
                shuffle,
                seed: recipe.train.seed,
                bucket: recipe.data.bucket,
                packing: recipe.data.packing && shuffle,
                max_length,
                pad_id,
                pad_multiple: 1,
                drop_last: false,
            };
            Batcher::new(Arc::new(examples), options).or_bad_input()
        };
        let validation = match validation_set.examples.is_empty() {
            true => None,
            false => Some(batcher(validation_set.examples, false)?),
        };
        let train = batcher(train_set.examples, true)?;
        let task = Task { encoder, problems, stops: session::stops(tokenizer, config), data };
        Ok(Self { train, validation, task })
    }
}

/// Encodes the records of a file; none left is an error that says why.
fn encode(path: &Path, encoder: &Encoder, records: &[Record], max_length: usize) -> anyhow::Result<EncodedSet> {
    let set = encoder.encode_all(records).or_bad_input_in(path)?;
    if set.examples.is_empty() {
        return Err(bad_input(format!(
            "{}: no row fits in {max_length} tokens, the smaller of data.max_length and the model's context",
            path.display()
        )));
    }
    Ok(set)
}

fn hold_out(path: &Path, records: Vec<Record>, recipe: &Recipe) -> anyhow::Result<(Vec<Record>, Vec<Record>)> {
    // A small file keeps nine tenths for training.
    let rows = recipe.data.validation_rows.min(records.len() / 10);
    if rows == 0 {
        return Ok((records, Vec::new()));
    }
    let split = sorsa_data::split(records, rows, recipe.train.seed).or_bad_input_in(path)?;
    Ok((split.train, split.validation))
}

/// What would be trained: needs no weights, only `config.json`.
#[derive(Debug, Serialize)]
pub struct TrainingShape {
    pub method: Method,
    pub parameters: u64,
    pub trainable_parameters: u64,
    pub modules: Vec<ModuleShape>,
    pub memory: MemoryEstimate,
    pub memory_total: u64,
    /// The most steps, where the recipe says them; otherwise the data do.
    pub steps: Option<u64>,
}

/// Linear layers of one shape.
#[derive(Debug, Serialize)]
pub struct ModuleShape {
    /// Last component of the path.
    pub name: String,
    pub count: usize,
    pub d_in: usize,
    pub d_out: usize,
    pub rank: Option<usize>,
    pub trainable_parameters: u64,
}

impl TrainingShape {
    pub fn new(recipe: &Recipe, config: &ModelConfig, device: &Device) -> anyhow::Result<Self> {
        let model = CausalLm::init(config, device);
        let method = recipe.adapter.method;
        let mut modules: Vec<ModuleShape> = Vec::new();
        let (mut kept, mut adapted_head) = (0, false);
        for target in recipe.adapter.targets(&model).or_bad_input()? {
            let name = target.path.rsplit('.').next().unwrap_or(&target.path).to_owned();
            let rank = method.is_factored().then_some(target.rank);
            let trained = target.trainable_parameters(method) as u64;
            kept += target.kept_per_token(method) as u64;
            adapted_head |= method.is_factored() && matches!(target.path.as_str(), "lm_head" | "head");
            let same = |module: &&mut ModuleShape| {
                module.name == name && [module.d_in, module.d_out] == target.shape && module.rank == rank
            };
            match modules.iter_mut().find(same) {
                Some(module) => {
                    module.count += 1;
                    module.trainable_parameters += trained;
                }
                None => modules.push(ModuleShape {
                    name,
                    count: 1,
                    d_in: target.shape[0],
                    d_out: target.shape[1],
                    rank,
                    trainable_parameters: trained,
                }),
            }
        }
        let parameters = config.num_parameters() as u64;
        let trainable_parameters = match method {
            Method::Full => parameters,
            _ => {
                let whole = recipe.adapter.whole_parameters(&model) as u64;
                whole + modules.iter().map(|module| module.trainable_parameters).sum::<u64>()
            }
        };
        let weight_bytes = if recipe.model.dtype == "bf16" { 2 } else { 4 };
        let len = recipe.data.max_length.min(config.max_position_embeddings);
        let memory = MemoryEstimate::new(&Step {
            config,
            trained: trainable_parameters,
            dense: !method.is_factored(),
            kept,
            weight_bytes,
            rows: recipe.train.batch_size,
            len,
            fused: device::is_flex(device),
            adapted_head,
        });
        let (memory_total, steps) = (memory.total(), recipe.most_steps());
        Ok(Self { method, parameters, trainable_parameters, modules, memory, memory_total, steps })
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{}: {} of {} parameters trained ({:.2} %)\n",
            self.method,
            grouped(self.trainable_parameters),
            grouped(self.parameters),
            100.0 * self.trainable_parameters as f64 / self.parameters as f64
        );
        if !self.modules.is_empty() {
            text.push_str("  module        count     d_in  x  d_out   rank    trained\n");
        }
        for module in &self.modules {
            let rank = module.rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string());
            text.push_str(&format!(
                "  {:<12} {:>6} {:>8}  x {:>6} {:>6} {:>10}\n",
                module.name,
                module.count,
                module.d_in,
                module.d_out,
                rank,
                grouped(module.trainable_parameters)
            ));
        }
        let memory = &self.memory;
        text.push_str(&format!(
            "memory: weights {}, adapter {}, gradients {}, optimizer {}, activations about {}, workspace about {}; together about {}\n",
            bytes(memory.weights),
            bytes(memory.adapter),
            bytes(memory.gradients),
            bytes(memory.optimizer),
            bytes(memory.activations),
            bytes(memory.workspace),
            bytes(self.memory_total)
        ));
        if let Some(steps) = self.steps {
            text.push_str(&format!("steps: at most {}\n", grouped(steps)));
        }
        text
    }
}
