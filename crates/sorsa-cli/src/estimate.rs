//! Memory of a training step, part by part, from shapes alone.

use serde::Serialize;
use sorsa_models::{Architecture, ModelConfig};

/// Bytes of each part. Weights, adapter, gradients and optimizer are exact; activations follow what the plain
/// operations keep for the backward pass, and are an estimate.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MemoryEstimate {
    pub weights: u64,
    pub adapter: u64,
    pub gradients: u64,
    pub optimizer: u64,
    pub activations: u64,
}

impl MemoryEstimate {
    /// `trained` parameters on a model whose frozen weights take `weight_bytes` each, for micro-batches of
    /// `rows` sequences of `len` tokens.
    pub fn new(config: &ModelConfig, trained: u64, dense: bool, weight_bytes: u64, rows: usize, len: usize) -> Self {
        let (rows, len) = (rows as u64, len as u64);
        let (d, ffn) = (config.hidden_size as u64, config.intermediate_size as u64);
        let tokens = rows * len;
        // Numbers kept per token and block: norms and residuals, gate, up and their product; and
        let mixing = match &config.architecture {
            // rotated q and k, v, and the scores before and after softmax;
            Architecture::Transformer(decoder) => {
                let heads = decoder.num_attention_heads as u64;
                let (q, kv) =
                    (heads * decoder.head_dim as u64, (decoder.num_key_value_heads * decoder.head_dim) as u64);
                4 * q + 5 * kv + 3 * heads * len
            }
            // or the blended inputs, what is made of them, and the weights of each pair of tokens within a chunk.
            Architecture::Rwkv(rwkv) => 16 * d + (8 + 3 * len.min(32)) * rwkv.attention_hidden_size as u64,
        };
        let per_token = 8 * d + 5 * ffn + mixing;
        let head = 3 * tokens * config.vocab_size as u64;
        Self {
            weights: config.num_parameters() as u64 * weight_bytes,
            adapter: if dense { 0 } else { trained * 4 },
            gradients: trained * 4,
            optimizer: trained * 8,
            activations: 4 * (config.num_hidden_layers as u64 * tokens * per_token + head),
        }
    }

    pub fn total(&self) -> u64 {
        self.weights + self.adapter + self.gradients + self.optimizer + self.activations
    }
}

/// `1.5 GB`, in decimal units.
pub fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        _ if count >= 1e9 => format!("{:.2} GB", count / 1e9),
        _ if count >= 1e6 => format!("{:.1} MB", count / 1e6),
        _ => format!("{:.1} kB", count / 1e3),
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
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234), "1,234");
        assert_eq!(grouped(6_738_415_616), "6,738,415,616");
    }
}
