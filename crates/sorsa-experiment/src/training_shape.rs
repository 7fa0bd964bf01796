//! What a recipe would train, from `config.json` alone.

use burn::tensor::FloatDType;
use serde::Serialize;
use sorsa_adapter::{Method, PackingTime, Placement};
use sorsa_checkpoint::ModelSource;
use sorsa_models::{ActivationFormat, CausalLm, ModelConfig, WeightFormat};
use sorsa_ops::{Form, OperationMemory};
use sorsa_report::report::bytes;
use sorsa_train::LearningRate;

use crate::error::ExperimentError;
use crate::estimate::{MemoryEstimate, Step, grouped};
use crate::host::Host;
use crate::recipe::Recipe;

/// What a recipe would train, and what memory that would take.
#[derive(Debug, Serialize)]
pub struct TrainingShape {
    /// The method.
    pub method: Method,
    /// Numbers of the model.
    pub parameters: u64,
    /// Numbers that are trained.
    pub trainable_parameters: u64,
    /// The trained layers, one entry for each shape.
    pub modules: Vec<ModuleShape>,
    /// The memory of a step.
    pub memory: MemoryEstimate,
    /// Its sum.
    pub memory_total: u64,
    /// The most steps; absent if the length of the data decides.
    pub steps: Option<u64>,
}

/// Linear layers of one shape.
#[derive(Debug, Serialize)]
pub struct ModuleShape {
    /// Last component of the path.
    pub name: String,
    /// How many there are.
    pub count: usize,
    /// Inputs.
    pub d_in: usize,
    /// Outputs.
    pub d_out: usize,
    /// Rank of the factors, if the method has any.
    pub rank: Option<usize>,
    /// Their method, if the modules of the recipe have several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Numbers that are trained in all of them.
    pub trainable_parameters: u64,
}

/// A line of the table.
struct Line<'a> {
    module: &'a ModuleShape,
    count: usize,
    rank: String,
    trainable_parameters: u64,
}

impl TrainingShape {
    /// Counts what `recipe` would train of a dense model with this configuration. Reads no weights.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Adapter`] with every target that matches nothing and every rank that does not fit.
    pub fn new(recipe: &Recipe, config: &ModelConfig, host: &Host) -> Result<Self, ExperimentError> {
        Self::with_packed_bytes(recipe, config, None, host)
    }

    /// [`new`](Self::new) of the model in `source`, whose weights may be packed, with this configuration.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new).
    pub fn of_source(
        recipe: &Recipe,
        config: &ModelConfig,
        source: &ModelSource,
        host: &Host,
    ) -> Result<Self, ExperimentError> {
        Self::with_packed_bytes(recipe, config, source.packed_bytes(recipe.model.dtype), host)
    }

    /// `packed` are the bytes of all weights if some are packed.
    pub(crate) fn with_packed_bytes(
        recipe: &Recipe,
        config: &ModelConfig,
        packed: Option<u64>,
        host: &Host,
    ) -> Result<Self, ExperimentError> {
        let model = CausalLm::init(config, &host.device);
        let method = recipe.adapter.method();
        let mut modules: Vec<ModuleShape> = Vec::new();
        let len = recipe.data.max_length.min(config.max_position_embeddings);
        let tokens = recipe.train.batch_size * len;
        let form = if host.fused_operations { Form::Fused } else { Form::Plain };
        let (mut adapters, mut frozen, mut adapted_head) = (OperationMemory::default(), 0, false);
        let (mut initial, mut starts) = (0, Vec::new());
        let packed_when = packed.map(|_| match recipe.model.quantize {
            Some(_) => PackingTime::WhileRead,
            None => PackingTime::InFile,
        });
        let rule = recipe.train.optimizer.kind.rule(&recipe.train.optimizer);
        let numbers_for = |shape: &[usize]| (rule.buffers_of(shape).len() * shape.iter().product::<usize>()) as u64;
        let mut optimizer_numbers = 0;
        for target in recipe.adapter.targets(&model)? {
            let name = target.path.rsplit('.').next().unwrap_or(&target.path).to_owned();
            let method = recipe.adapter.method_at(&target.path);
            let rank = method.is_factored().then_some(target.rank);
            let trained = recipe.adapter.trained_parameters(&target) as u64;
            let shapes = recipe.adapter.trained_shapes(&target);
            optimizer_numbers += shapes.iter().map(|shape| numbers_for(shape)).sum::<u64>();
            adapters = adapters + target.memory(method, form, tokens);
            frozen += recipe.adapter.frozen_parameters(&target) as u64;
            initial += target.numbers_at_start(&recipe.adapter, packed_when) as u64;
            starts.push(target.start_bytes(&recipe.adapter, packed_when) as u64);
            adapted_head |= method.is_factored() && matches!(target.path.as_str(), "lm_head" | "head");
            // Nothing is said of the one method that all modules have.
            let shown = if recipe.adapter.method_pattern.is_empty() { None } else { Some(method) };
            let same = |module: &&mut ModuleShape| {
                module.name == name
                    && [module.d_in, module.d_out] == target.shape
                    && module.rank == rank
                    && module.method == shown
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
                    method: shown,
                    trainable_parameters: trained,
                }),
            }
        }
        let parameters = config.num_parameters() as u64;
        // What is trained whole beside the targets: nearly all of its numbers are in matrices.
        let whole = match method.has_targets() {
            true => recipe.adapter.whole_parameters(&model),
            false => config.num_parameters(),
        };
        optimizer_numbers += numbers_for(&[whole, 1]);
        let trainable_parameters = if method.has_targets() {
            whole as u64 + modules.iter().map(|module| module.trainable_parameters).sum::<u64>()
        } else {
            parameters
        };
        let factors = match method.is_factored() {
            true => frozen + modules.iter().map(|module| module.trainable_parameters).sum::<u64>(),
            false => 0,
        };
        let dense = !method.is_factored();
        // The search keeps what is trained as it was at the start, and for factors also where the common steps of its trials end.
        let search = match recipe.train.optimizer.learning_rate {
            LearningRate::Auto if dense => trainable_parameters * recipe.model.dtype.bytes(1) as u64,
            LearningRate::Auto => 4 * (2 * trainable_parameters + optimizer_numbers),
            LearningRate::Rate(_) => 0,
        };
        // The largest layers may be decomposed at the same time.
        starts.sort_unstable_by(|a, b| b.cmp(a));
        let at_once = match host.placement {
            Placement::Host => rayon::current_num_threads(),
            Placement::Device => 1,
        };
        let memory = MemoryEstimate::new(&Step {
            config,
            trained: trainable_parameters,
            optimizer_numbers,
            factors,
            initial,
            search,
            start: starts.iter().take(at_once).sum(),
            dense,
            adapters,
            packed: packed.is_some(),
            weights: packed.unwrap_or(config.num_parameters() as u64 * recipe.model.dtype.bytes(1) as u64),
            gated: match recipe.model.dtype {
                _ if recipe.train.activations == ActivationFormat::Bf16 => FloatDType::BF16,
                WeightFormat::Bf16 => FloatDType::BF16,
                _ => FloatDType::F32,
            },
            activations: recipe.train.activations,
            checkpoint_blocks: recipe.train.checkpoint_blocks,
            rows: recipe.train.batch_size,
            len,
            form,
            adapted_head,
        });
        let (memory_total, steps) = (memory.total(), recipe.most_steps());
        Ok(Self { method, parameters, trainable_parameters, modules, memory, memory_total, steps })
    }

    /// The lines of the table: one for each shape and rank, or one for each shape if it has many ranks.
    fn lines(&self) -> Vec<Line<'_>> {
        /// The most ranks of one shape that have a line each.
        const RANKS: usize = 4;
        let mut lines: Vec<Line<'_>> = Vec::new();
        for module in &self.modules {
            let is_same = |other: &&ModuleShape| {
                (&other.name, other.d_in, other.d_out, other.method)
                    == (&module.name, module.d_in, module.d_out, module.method)
            };
            let same: Vec<&ModuleShape> = self.modules.iter().filter(is_same).collect();
            if same.len() <= RANKS {
                let rank = module.rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string());
                let (count, trainable_parameters) = (module.count, module.trainable_parameters);
                lines.push(Line { module, count, rank, trainable_parameters });
            } else if std::ptr::eq(same[0], module) {
                let ranks = || same.iter().filter_map(|module| module.rank);
                lines.push(Line {
                    module,
                    count: same.iter().map(|module| module.count).sum(),
                    rank: format!("{}-{}", ranks().min().unwrap_or(0), ranks().max().unwrap_or(0)),
                    trainable_parameters: same.iter().map(|module| module.trainable_parameters).sum(),
                });
            }
        }
        lines
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
        for line in self.lines() {
            text.push_str(&format!(
                "  {:<12} {:>6} {:>8}  x {:>6} {:>6} {:>10}{}\n",
                line.module.name,
                line.count,
                line.module.d_in,
                line.module.d_out,
                line.rank,
                grouped(line.trainable_parameters),
                line.module.method.map_or_else(String::new, |method| format!("  {method}"))
            ));
        }
        let memory = &self.memory;
        let search = match memory.search {
            0 => String::new(),
            copies => format!(", search for a learning rate {}", bytes(copies)),
        };
        text.push_str(&format!(
            "memory: weights {}, adapter {}, its start {}, gradients {}, optimizer {}, activations about {}, workspace about {}{}; at \
             most about {}\n",
            bytes(memory.weights),
            bytes(memory.adapter),
            bytes(memory.initial),
            bytes(memory.gradients),
            bytes(memory.optimizer),
            bytes(memory.activations),
            bytes(memory.workspace),
            search,
            bytes(self.memory_total)
        ));
        if let Some(steps) = self.steps {
            text.push_str(&format!("steps: at most {}\n", grouped(steps)));
        }
        text
    }
}
