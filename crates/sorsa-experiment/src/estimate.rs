//! Memory of a training step, part by part, from shapes alone.

use serde::Serialize;
use sorsa_models::{Activation, Architecture, BlockNorms, ModelConfig, TransformerConfig};

/// Bytes of each part. Weights, adapter, gradients and optimizer are exact; the rest follows what the operations keep for
/// the backward pass, and is an estimate.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MemoryEstimate {
    /// The model.
    pub weights: u64,
    /// Factors beside it.
    pub adapter: u64,
    /// Gradients of what is trained.
    pub gradients: u64,
    /// Moments of what is trained.
    pub optimizer: u64,
    /// What the forward pass keeps for the backward pass.
    pub activations: u64,
    /// What exists for a moment, at the worst one, and the program itself.
    pub workspace: u64,
}

/// A training step, by its sizes.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Trained parameters.
    pub trained: u64,
    /// Whether they are weights of the model, not factors beside them.
    pub dense: bool,
    /// Numbers that the adapters keep of each token.
    pub kept: u64,
    /// Bytes of a frozen weight.
    pub weight_bytes: u64,
    /// Sequences of a micro-batch.
    pub rows: usize,
    /// Their length.
    pub len: usize,
    /// Whether operations take the fused form of `sorsa-ops` where they have one.
    pub fused: bool,
    /// Whether the output head has factors of its own, so that its logits are formed as those of any linear layer.
    pub adapted_head: bool,
}

/// The binary, its threads, and the buffers in which they pack operands of products.
const PROGRAM: u64 = 16_000_000;
/// Logits that exist at one time where head and loss are one operation, `sorsa_ops::head_loss_sum`: of a frozen head, and
/// of one that may be trained.
const LOGITS_BLOCK: [u64; 2] = [4 << 20, 16 << 20];
/// Rows of such a block.
const LOGITS_ROWS: u64 = 2048;

impl MemoryEstimate {
    /// Sums the parts of a step.
    pub fn new(step: &Step<'_>) -> Self {
        let tokens = (step.rows * step.len) as u64;
        let (head, head_workspace) = step.head(tokens);
        let blocks = step.config.num_hidden_layers as u64 * step.kept_per_block();
        let passing = tokens * (2 * step.config.intermediate_size as u64 + 3 * step.config.hidden_size as u64);
        Self {
            weights: step.config.num_parameters() as u64 * step.weight_bytes,
            adapter: if step.dense { 0 } else { step.trained * 4 },
            gradients: step.trained * 4,
            optimizer: step.trained * 8,
            activations: 4 * (tokens * (blocks + step.kept) + head),
            workspace: PROGRAM + 4 * head_workspace.max(passing),
        }
    }

    /// All parts together.
    pub fn total(&self) -> u64 {
        self.weights + self.adapter + self.gradients + self.optimizer + self.activations + self.workspace
    }
}

impl Step<'_> {
    /// Numbers that a block keeps of each token.
    fn kept_per_block(&self) -> u64 {
        let (d, ffn) = (self.config.hidden_size as u64, self.config.intermediate_size as u64);
        match &self.config.architecture {
            Architecture::Transformer(decoder) if self.fused => {
                // What each norm reads, and gate and up. What the norms and the gated unit make of it is formed again.
                let norms = match decoder.block_norms {
                    BlockNorms::Before => 2 * d,
                    BlockNorms::BeforeAndAfter => 4 * d,
                };
                let feed_forward = match decoder.activation {
                    Activation::Gelu => 5 * ffn,
                    // In the dtype of the weights.
                    _ => 2 * ffn * self.weight_bytes.min(4) / 4,
                };
                norms + feed_forward + self.fused_attention(decoder)
            }
            // Norms and residuals, gate, up and their product; rotated q and k, v, and the scores before and after
            // softmax,
            Architecture::Transformer(decoder) => {
                let [q, kv] = widths(decoder);
                8 * d + 5 * ffn + 4 * q + 5 * kv + self.scores(decoder)
            }
            // or the blended inputs, what is made of them, and the weights of each pair of tokens within a chunk.
            Architecture::Rwkv(rwkv) => {
                let mixing = 16 * d + (8 + 3 * self.len.min(32) as u64) * rwkv.attention_hidden_size as u64;
                8 * d + 5 * ffn + mixing
            }
        }
    }

    /// q, k, v and the output; what is rotated or normalised apart from the operation is there twice.
    fn fused_attention(&self, decoder: &TransformerConfig) -> u64 {
        let [q, kv] = widths(decoder);
        let again = u64::from(decoder.query_key_norm) + u64::from(decoder.rotary_dim() != decoder.head_dim);
        // Soft caps have no fused form.
        let scores = decoder.attention_soft_cap.map_or(0, |_| q + kv + self.scores(decoder));
        2 * q + 2 * kv + again * (q + kv) + scores
    }

    /// Numbers kept of each token's scores where they are formed whole.
    fn scores(&self, decoder: &TransformerConfig) -> u64 {
        3 * (decoder.num_attention_heads * self.len) as u64
    }

    /// Numbers that the final norm, the head and the loss keep, and those that exist while they run.
    fn head(&self, tokens: u64) -> (u64, u64) {
        let (d, vocabulary) = (self.config.hidden_size as u64, self.config.vocab_size as u64);
        let soft_cap = self.config.transformer().is_some_and(|decoder| decoder.logit_soft_cap.is_some());
        if !self.fused || soft_cap || self.adapted_head {
            // Logits, their softmax and its logarithm; then their gradient.
            return (3 * tokens * vocabulary, tokens * vocabulary);
        }
        let rows = tokens.clamp(1, LOGITS_ROWS);
        let block = rows * (LOGITS_BLOCK[usize::from(self.dense)] / 4 / rows).max(64).min(vocabulary);
        // The norm's input and output, the rows that have targets, and their gradient.
        (4 * tokens * d, block)
    }
}

/// Widths of all query heads and of all key heads.
fn widths(decoder: &TransformerConfig) -> [u64; 2] {
    [decoder.num_attention_heads, decoder.num_key_value_heads].map(|heads| (heads * decoder.head_dim) as u64)
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
    use crate::recipe::{Recipe, WeightDtype};
    use crate::training_shape::TrainingShape;
    use sorsa_adapter::{AdapterConfig, Method};

    /// The shapes of `examples/step_speed.rs` of `sorsa-models`: width, layers, heads, feed-forward, sequences of 256.
    fn shape(sizes: [usize; 5], method: Method) -> TrainingShape {
        shape_in(WeightDtype::F32, sizes, method)
    }

    fn shape_in(dtype: WeightDtype, [width, layers, heads, ffn, rows]: [usize; 5], method: Method) -> TrainingShape {
        let fields = json!({
            "model_type": "llama", "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers,
            "num_attention_heads": heads, "vocab_size": 32_000, "max_position_embeddings": 256,
        });
        estimated(&fields, rows, method, dtype)
    }

    fn estimated(fields: &Value, rows: usize, method: Method, dtype: WeightDtype) -> TrainingShape {
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
        let embedded = estimated(&serde_json::from_slice(&embedded).unwrap(), 16, Method::Sorsa, WeightDtype::F32);
        for (name, shape, measured) in [
            ("embedded", embedded, 149.0),
            ("S, LoRA", shape(S, Method::Lora), 239.0),
            ("S, SORSA", shape(S, Method::Sorsa), 253.0),
            ("L, LoRA", shape(L, Method::Lora), 762.0),
            ("L, SORSA", shape(L, Method::Sorsa), 811.0),
            ("L, LoRA, bf16", shape_in(WeightDtype::Bf16, L, Method::Lora), 502.0),
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
    fn beside_weights_in_bf16_gate_and_up_are_kept_in_bf16() {
        let (exact, narrow) = (shape(L, Method::Lora).memory, shape_in(WeightDtype::Bf16, L, Method::Lora).memory);
        assert_eq!(2 * narrow.weights, exact.weights);
        assert_eq!(exact.activations - narrow.activations, 256 * 12 * 2 * 2048 * 2);
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
            dense: false,
            kept: 672,
            weight_bytes: 4,
            rows: 4,
            len: 256,
            fused: true,
            adapted_head: false,
        };
        let plain = MemoryEstimate::new(&Step { fused: false, ..fused });
        // Measured with `step_speed -- S lora plain`: 978 to 981 MB.
        assert!((plain.total() as f64 / 980e6 - 1.0).abs() < 0.1, "{}", plain.total());
        let head = MemoryEstimate::new(&Step { adapted_head: true, ..fused });
        let more = head.activations - MemoryEstimate::new(&fused).activations;
        assert_eq!(more, 4 * 1024 * (3 * 32_000 - 4 * 288));
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234), "1,234");
        assert_eq!(grouped(6_738_415_616), "6,738,415,616");
    }
}
