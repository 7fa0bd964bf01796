//! Memory of a training step, part by part, from shapes alone: the sum of what its operations say.

use burn::tensor::FloatDType;
use serde::Serialize;
use sorsa_checkpoint::{Activation, Architecture, BlockNorms, ModelConfig, RwkvConfig, RwkvVersion, TransformerConfig};
use sorsa_models::ActivationFormat;
use sorsa_ops::{
    AttentionShape, Form, HeadLossShape, OperationMemory, attention_memory, gated_memory, head_loss_memory,
    layer_norm_memory, rms_norm_memory, rotate_half_memory, wkv4_memory, wkv6_memory,
};

/// Bytes of each part. Weights, adapter, initial factors, gradients and optimizer are exact; the rest is an estimate.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MemoryEstimate {
    /// The model.
    pub weights: u64,
    /// Factors beside it.
    pub adapter: u64,
    /// Factors at the start, which the adapter's files need.
    pub initial: u64,
    /// Gradients of what is trained.
    pub gradients: u64,
    /// The optimizer's buffers.
    pub optimizer: u64,
    /// The copy of the optimizer's buffers, or of the trained parameters, that becomes a checkpoint's file. There are no gradients then.
    pub checkpoint: u64,
    /// Copies of what is trained, and of the optimizer's buffers, that the search for a learning rate keeps beside its steps.
    pub search: u64,
    /// What the threads take that make the adapter's start, before there is an optimizer.
    pub start: u64,
    /// Kept from the forward pass for the backward pass.
    pub activations: u64,
    /// The largest temporaries of the step, and the program itself.
    pub workspace: u64,
}

/// A training step, by its sizes.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Trained parameters.
    pub trained: u64,
    /// Numbers in the optimizer's buffers, f32.
    pub optimizer_numbers: u64,
    /// Numbers of the factors beside the weights, trained or frozen.
    pub factors: u64,
    /// Numbers of the factors at the start that stay in memory beside those.
    pub initial: u64,
    /// Bytes of the copies that a search for a learning rate keeps; 0 if the rate is known.
    pub search: u64,
    /// Bytes that the threads take which make the adapter's start.
    pub start: u64,
    /// Whether the trained parameters are weights of the model, not factors beside them.
    pub dense: bool,
    /// What the adapters add to the forward and the backward pass.
    pub adapters: OperationMemory,
    /// Bytes of all weights.
    pub weights: u64,
    /// Whether weights are packed.
    pub packed: bool,
    /// The dtype in which gated units keep their operands for the backward pass.
    pub gated: FloatDType,
    /// The format in which the backward pass gets activations.
    pub activations: ActivationFormat,
    /// Whether each block runs again in the backward pass: then only its input is kept from the first time.
    pub checkpoint_blocks: bool,
    /// Sequences of a micro-batch.
    pub rows: usize,
    /// Tokens of a sequence.
    pub len: usize,
    /// The form of operations that have both.
    pub form: Form,
    /// Whether the output head has factors of its own; then its logits are those of a linear layer.
    pub adapted_head: bool,
}

/// The binary, its threads, and the buffers in which they pack operands of products.
const PROGRAM: u64 = 16_000_000;

impl MemoryEstimate {
    /// Sums the parts of a step.
    pub fn new(step: &Step<'_>) -> Self {
        let tokens = step.tokens() as u64;
        let head = step.head();
        let block = step.block();
        let count = step.config.num_hidden_layers as u64;
        let blocks = block * count;
        let widened = step.widened();
        let activations = match step.checkpoint_blocks || widened > 0 {
            // One block at a time keeps what it needs; of all, the input is kept.
            true => {
                4 * tokens * step.config.hidden_size as u64 * count + block.kept + step.adapters.kept / count.max(1)
            }
            false => blocks.kept + step.adapters.kept,
        };
        // Gradients on their way through a feed-forward layer: of gate and up, and of three hidden states.
        let passing = 4 * tokens * (2 * step.config.intermediate_size as u64 + 3 * step.config.hidden_size as u64);
        Self {
            weights: step.weights,
            adapter: step.factors * 4,
            initial: step.initial * 4,
            gradients: step.trained * 4,
            optimizer: step.optimizer_numbers * 4,
            checkpoint: 4 * step.optimizer_numbers.max(step.trained),
            search: step.search,
            start: step.start,
            activations: activations + head.kept + widened,
            workspace: PROGRAM + head.workspace.max(block.workspace).max(step.adapters.workspace).max(passing),
        }
    }

    /// The peak: that of the start, of a step, in the search for a learning rate if there is one, or of a checkpoint.
    pub fn total(&self) -> u64 {
        let factors = self.adapter + self.initial;
        let start = self.initial.max(self.adapter) + self.start + PROGRAM;
        let step = factors + self.optimizer + self.gradients + self.activations + self.workspace + self.search;
        let checkpoint = factors + self.optimizer + self.checkpoint + PROGRAM;
        self.weights + start.max(step).max(checkpoint)
    }
}

impl Step<'_> {
    fn tokens(&self) -> usize {
        self.rows * self.len
    }

    /// Bytes of the weights that plain forms widen and a tape keeps: those of one block, or of the head.
    fn widened(&self) -> u64 {
        if !self.packed || self.form == Form::Fused {
            return 0;
        }
        let head = self.config.vocab_size * self.config.hidden_size;
        let tables = if self.config.tie_word_embeddings { head } else { 2 * head };
        let block = self.config.num_parameters().saturating_sub(tables) / self.config.num_hidden_layers.max(1);
        4 * head.max(block) as u64
    }

    /// A tensor of the shape of the hidden states.
    fn hidden(&self) -> [usize; 2] {
        [self.tokens(), self.config.hidden_size]
    }

    /// One block, without its adapters.
    fn block(&self) -> OperationMemory {
        match &self.config.architecture {
            Architecture::Transformer(decoder) => self.transformer_block(decoder),
            Architecture::Rwkv(rwkv) => self.rwkv_block(rwkv),
        }
    }

    fn transformer_block(&self, decoder: &TransformerConfig) -> OperationMemory {
        let norms = match decoder.block_norms {
            BlockNorms::Before => 2,
            BlockNorms::BeforeAndAfter => 4,
        };
        let inner = self.tokens() * self.config.intermediate_size;
        let kept = self.gated;
        let feed_forward = match decoder.activation {
            // Without a gate, by burn's own operation.
            Activation::Gelu => gated_memory(Form::Plain, inner, FloatDType::F32),
            _ => gated_memory(self.form, inner, kept),
        };
        let others = rms_norm_memory(self.form, self.hidden()) * norms + self.attention(decoder);
        let rounded = self.form == Form::Fused
            && self.activations == ActivationFormat::Bf16
            && decoder.attention_soft_cap.is_none();
        let kept = if rounded { others.kept / 2 } else { others.kept };
        feed_forward + OperationMemory { kept, ..others }
    }

    fn attention(&self, decoder: &TransformerConfig) -> OperationMemory {
        let shape = AttentionShape {
            batch: self.rows,
            heads: decoder.num_attention_heads,
            kv_heads: decoder.num_key_value_heads,
            seq: self.len,
            head_dim: decoder.head_dim,
            soft_capped: decoder.attention_soft_cap.is_some(),
        };
        let mut memory = attention_memory(self.form, shape);
        // The plain form counts norms and rotation of queries and keys itself.
        if self.form == Form::Fused {
            let width = (decoder.num_attention_heads + decoder.num_key_value_heads) * decoder.head_dim;
            if decoder.query_key_norm {
                memory = memory + rms_norm_memory(Form::Fused, [self.tokens(), width]);
            }
            // A rotation of a part of a head happens before the operation.
            if decoder.rotary_dim() != decoder.head_dim {
                memory = memory + rotate_half_memory(self.tokens() * width);
            }
        }
        memory
    }

    fn rwkv_block(&self, rwkv: &RwkvConfig) -> OperationMemory {
        let [tokens, width] = self.hidden();
        let mixed = [self.rows, self.len, rwkv.attention_hidden_size];
        let wkv = match rwkv.version {
            RwkvVersion::V4 => wkv4_memory(mixed),
            RwkvVersion::V6 { .. } => wkv6_memory(mixed),
        };
        let blended = OperationMemory::keeping(16 * tokens * width);
        let channel_mixing = OperationMemory::keeping(5 * tokens * self.config.intermediate_size);
        layer_norm_memory(self.hidden()) * 2 + blended + channel_mixing + wkv
    }

    /// The final norm, the head and the loss.
    fn head(&self) -> OperationMemory {
        let [rows, width] = self.hidden();
        let vocabulary = self.config.vocab_size;
        let shape = HeadLossShape { rows, width, vocabulary, trained: self.dense };
        let soft_cap = self.config.transformer().is_some_and(|decoder| decoder.logit_soft_cap.is_some());
        if self.form == Form::Plain || soft_cap || self.adapted_head {
            return head_loss_memory(Form::Plain, shape);
        }
        // The norm's result, and the copy of its rows that have targets.
        let selected = OperationMemory::keeping(2 * rows * width);
        rms_norm_memory(Form::Fused, self.hidden()) + selected + head_loss_memory(Form::Fused, shape)
    }
}

/// `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::host::Host;
    use crate::recipe::Recipe;
    use crate::training_shape::TrainingShape;
    use sorsa_adapter::{AdapterConfig, Method};
    use sorsa_checkpoint::WeightFormat;

    /// The shapes of `examples/step_speed.rs` of `sorsa-models`: width, layers, heads, feed-forward, sequences of 256.
    fn shape(sizes: [usize; 5], method: Method) -> TrainingShape {
        shape_in(WeightFormat::F32, sizes, method)
    }

    fn shape_in(dtype: WeightFormat, [width, layers, heads, ffn, rows]: [usize; 5], method: Method) -> TrainingShape {
        let fields = json!({
            "model_type": "llama", "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers,
            "num_attention_heads": heads, "vocab_size": 32_000, "max_position_embeddings": 256,
        });
        estimated(&fields, rows, method, dtype)
    }

    fn estimated(fields: &Value, rows: usize, method: Method, dtype: WeightFormat) -> TrainingShape {
        let config = ModelConfig::parse(fields.as_object().unwrap().clone()).unwrap();
        let mut recipe = Recipe::default();
        let targets = recipe.adapter.target_modules.iter().map(String::as_str).collect::<Vec<_>>();
        recipe.adapter = AdapterConfig::new(method, 16, &targets);
        recipe.train.batch_size = rows;
        recipe.model.dtype = dtype;
        TrainingShape::new(&recipe, &config, &Host::cpu(burn::prelude::Device::flex())).unwrap()
    }

    const S: [usize; 5] = [288, 6, 6, 768, 4];
    const L: [usize; 5] = [768, 12, 12, 2048, 1];

    #[test]
    fn the_estimate_of_fused_steps_is_within_a_fifth_of_the_peaks_that_were_measured() {
        // `docs/performance.md`: peaks of the process, in megabytes.
        let embedded = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../datasets/base/config.json")).unwrap();
        let embedded = estimated(&serde_json::from_slice(&embedded).unwrap(), 16, Method::Sorsa, WeightFormat::F32);
        for (name, shape, measured) in [
            ("embedded", embedded, 149.0),
            ("S, LoRA", shape(S, Method::Lora), 239.0),
            ("S, SORSA", shape(S, Method::Sorsa), 253.0),
            ("L, LoRA", shape(L, Method::Lora), 762.0),
            ("L, SORSA", shape(L, Method::Sorsa), 811.0),
            ("L, LoRA, bf16", shape_in(WeightFormat::Bf16, L, Method::Lora), 502.0),
        ] {
            let estimate = shape.memory_total as f64 / 1e6;
            assert!((estimate / measured - 1.0).abs() < 0.2, "{name}: {estimate} MB, measured {measured}");
        }
    }

    #[test]
    fn every_part_of_the_estimate_of_a_fused_step_is_the_sum_of_what_is_kept() {
        let memory = shape(S, Method::Lora).memory;
        let (tokens, layers) = (4 * 256, 6);
        let parameters = 2 * 32_000 * 288 + layers * (4 * 288 * 288 + 3 * 288 * 768 + 2 * 288) + 288;
        let trained = layers * 16 * (4 * (288 + 288) + 3 * (288 + 768));
        assert_eq!((memory.weights, memory.adapter), (4 * parameters, 4 * trained));
        assert_eq!((memory.gradients, memory.optimizer), (4 * trained, 8 * trained));
        // What norms read 2 d, q, k, v and the output 4 d, gate and up 2 ffn, seven times the rank.
        let block = 2 * 288 + 4 * 288 + 2 * 768 + 7 * 16;
        assert_eq!(memory.activations, 4 * tokens * (layers * block + 4 * 288));
        // Gradients on their way through a feed-forward layer are more than 4 MiB of logits.
        assert_eq!(memory.workspace, 16_000_000 + 4 * tokens * (2 * 768 + 3 * 288));
    }

    #[test]
    fn a_search_for_a_learning_rate_keeps_copies_of_what_is_trained() {
        let fields = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 500, "max_position_embeddings": 128,
        });
        let config = ModelConfig::parse(fields.as_object().unwrap().clone()).unwrap();
        let of = |method: &str, dtype: &str, rate: &str| {
            let text = format!(
                "adapter.method = \"{method}\"\nmodel.dtype = \"{dtype}\"\ntrain.optimizer.learning_rate = {rate}"
            );
            let recipe = Recipe::from_table(text.parse().unwrap(), "test").unwrap();
            TrainingShape::new(&recipe, &config, &Host::cpu(burn::prelude::Device::flex())).unwrap()
        };
        for method in ["full", "partial", "lora", "sorsa"] {
            for (dtype, bytes) in [("f32", 4), ("bf16", 2)] {
                let (named, found) = (of(method, dtype, "1e-3"), of(method, dtype, "\"auto\""));
                let trained = named.trainable_parameters;
                // Whole weights: those at the start. Factors: those at the start and after the common steps, and AdamW's two buffers.
                let copies = if matches!(method, "full" | "partial") { bytes * trained } else { 4 * (2 + 2) * trained };
                assert_eq!((named.memory.search, found.memory.search), (0, copies), "{method} {dtype}");
                assert_eq!(found.memory_total, named.memory_total + copies, "{method} {dtype}");
            }
        }
    }

    #[test]
    fn the_peak_is_that_of_the_start_of_a_step_or_of_a_checkpoint() {
        let memory = shape(S, Method::Sorsa).memory;
        let factors = memory.adapter + memory.initial;
        assert_eq!((memory.initial, memory.checkpoint), (memory.adapter, memory.optimizer));
        let step =
            memory.weights + factors + memory.optimizer + memory.gradients + memory.activations + memory.workspace;
        assert_eq!(memory.total(), step);
        let writes = MemoryEstimate { activations: 0, checkpoint: 1 << 30, ..memory };
        assert_eq!(writes.total(), memory.weights + factors + memory.optimizer + (1 << 30) + PROGRAM);
        let starts = MemoryEstimate { start: 1 << 30, ..memory };
        assert_eq!(starts.total(), memory.weights + memory.initial + (1 << 30) + PROGRAM);
        assert_eq!(shape(S, Method::Lora).memory.initial, 0);
    }

    #[test]
    fn frozen_factors_are_memory_of_the_adapter_without_gradients_and_buffers() {
        let memory = shape(S, Method::LoraXs).memory;
        let (modules, layers, rank) = (7, 6, 16);
        let trained = layers * modules * rank * rank;
        let frozen = layers * rank * (4 * (288 + 288) + 3 * (288 + 768));
        assert_eq!(memory.adapter, 4 * (trained + frozen));
        assert_eq!((memory.gradients, memory.optimizer), (4 * trained, 8 * trained));
        let lora = shape(S, Method::Lora).memory;
        assert_eq!(memory.activations - lora.activations, 4 * 1024 * layers * modules * rank, "x A");
    }

    #[test]
    fn singular_values_cost_a_copy_of_x_a_in_the_plain_form_alone() {
        let kept = |form, has_s| {
            sorsa_ops::factored_linear_memory(form, sorsa_ops::FactoredLinearShape { rows: 5, rank: 3, has_s }).kept
        };
        assert_eq!([kept(Form::Fused, true), kept(Form::Plain, false), kept(Form::Plain, true)], [60, 60, 120]);
        assert_eq!(shape(S, Method::Sorsa).memory.activations, shape(S, Method::Lora).memory.activations);
    }

    #[test]
    fn beside_weights_in_bf16_gate_and_up_are_kept_in_bf16() {
        let (exact, narrow) = (shape(L, Method::Lora).memory, shape_in(WeightFormat::Bf16, L, Method::Lora).memory);
        assert_eq!(2 * narrow.weights, exact.weights);
        assert_eq!(exact.activations - narrow.activations, 256 * 12 * 2 * 2048 * 2);
    }

    #[test]
    fn activations_of_the_backward_pass_in_bf16_take_half() {
        let [exact, rounded] = [ActivationFormat::F32, ActivationFormat::Bf16].map(|activations| {
            let fields = json!({
                "model_type": "llama", "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6,
                "num_attention_heads": 6, "vocab_size": 32_000, "max_position_embeddings": 256,
            });
            let config = ModelConfig::parse(fields.as_object().unwrap().clone()).unwrap();
            let mut recipe = Recipe::default();
            recipe.train.activations = activations;
            let host = Host::cpu(burn::prelude::Device::flex());
            TrainingShape::new(&recipe, &config, &host).unwrap().memory
        });
        // What norms read 2 d, q, k, v and the input of the output projection 4 d, gate and up 2 ffn.
        let tokens = 16 * 256;
        assert_eq!(exact.activations - rounded.activations, 2 * tokens * 6 * (6 * 288 + 2 * 768));
        assert_eq!(exact.weights, rounded.weights);
    }

    #[test]
    fn plain_forms_keep_scores_and_logits() {
        let config = ModelConfig::parse(
            json!({"model_type": "llama", "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6,
                "num_attention_heads": 6, "vocab_size": 32_000})
            .as_object()
            .unwrap()
            .clone(),
        );
        let config = config.unwrap();
        let fused = Step {
            config: &config,
            trained: 525_312,
            optimizer_numbers: 2 * 525_312,
            factors: 525_312,
            initial: 0,
            search: 0,
            start: 0,
            dense: false,
            adapters: OperationMemory::keeping(672 * 1024),
            weights: 4 * config.num_parameters() as u64,
            packed: false,
            gated: FloatDType::F32,
            activations: ActivationFormat::F32,
            checkpoint_blocks: false,
            rows: 4,
            len: 256,
            form: Form::Fused,
            adapted_head: false,
        };
        let plain = MemoryEstimate::new(&Step { form: Form::Plain, ..fused });
        // Measured with `step_speed -- S lora plain`: 978 to 981 MB.
        assert!((plain.total() as f64 / 980e6 - 1.0).abs() < 0.1, "{}", plain.total());
        let head = MemoryEstimate::new(&Step { adapted_head: true, ..fused });
        let more = head.activations - MemoryEstimate::new(&fused).activations;
        assert_eq!(more, 4 * 1024 * (3 * 32_000 - 4 * 288));
        // Beside packed weights, the plain form goes block by block and keeps one block widened, or the head, which is larger here.
        assert_eq!(
            MemoryEstimate::new(&Step { packed: true, ..fused }).activations,
            MemoryEstimate::new(&fused).activations
        );
        let plain = Step { form: Form::Plain, ..fused };
        let by_blocks = MemoryEstimate::new(&Step { checkpoint_blocks: true, ..plain });
        let packed = MemoryEstimate::new(&Step { packed: true, ..plain });
        assert_eq!(packed.activations - by_blocks.activations, 4 * 32_000 * 288);
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234), "1,234");
        assert_eq!(grouped(6_738_415_616), "6,738,415,616");
    }
}
