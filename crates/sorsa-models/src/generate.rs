//! Text generation: batched, with a key-value cache, greedy or sampled.

use burn::prelude::*;
use burn::tensor::FloatDType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::layers::index_tensor;
use crate::model::CausalLm;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The most likely one.
    Greedy,
    /// Drawn from the distribution.
    Random {
        /// Divides the logits; small is close to greedy.
        temperature: f64,
        /// Only the k most likely tokens.
        top_k: Option<usize>,
        /// Only the smallest set of most likely tokens whose probability reaches p.
        top_p: Option<f64>,
        /// Seed; row `i` of a batch draws from its own stream.
        seed: u64,
    },
}

/// How a generation runs and ends.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Longest continuation, in tokens.
    pub max_new_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Tokens that end a sequence; they are not part of the result.
    pub stop: Vec<u32>,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token, or the caller.
    Stop,
    /// `max_new_tokens` or the model's context.
    Length,
}

/// One continuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The new tokens.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// A prompt that cannot be continued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// No tokens.
    #[error("prompt {row} is empty")]
    Empty {
        /// Index of the prompt.
        row: usize,
    },
    /// No room.
    #[error("prompt {row} has {tokens} tokens, the model's context is {context}")]
    TooLong {
        /// Index of the prompt.
        row: usize,
        /// Its length.
        tokens: usize,
        /// The longest that it can take, [`ModelConfig::context_length`](crate::ModelConfig::context_length).
        context: usize,
    },
    /// A token that the model does not have.
    #[error("prompt {row} holds the token {token}, the model's vocabulary has {vocabulary}")]
    UnknownToken {
        /// Index of the prompt.
        row: usize,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// Logits that say nothing about the next token.
    #[error(
        "prompt {row}: the model's logits are NaN or infinite. Its weights or its adapter are damaged, or training diverged"
    )]
    NotFinite {
        /// Index of the prompt.
        row: usize,
    },
}

/// A sequence being generated.
pub(crate) struct Sequence {
    pub row: usize,
    pub next: u32,
    pub done: bool,
    rng: ChaCha8Rng,
}

impl Sequence {
    /// The sequence of prompt `row`, which draws from the stream `stream`.
    pub fn new(row: usize, sampling: Sampling, stream: u64) -> Self {
        let seed = if let Sampling::Random { seed, .. } = sampling { seed } else { 0 };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self { row, next: 0, done: false, rng }
    }
}

impl CausalLm {
    /// Continues each prompt. `on_token(row, token)` is called for every new token in order.
    ///
    /// Prompts may be of unequal length: each sequence gets what it would get alone. (One exception, as in
    /// Transformers: with a dynamic scaling of the rotary embedding or a LongRoPE, past the context of the pretraining,
    /// the longest sequence of the batch counts for all.)
    /// Finished sequences leave the batch once they are half of it. Call it on a model without autodiff.
    ///
    /// # Errors
    ///
    /// [`GenerateError`] for the first prompt that is empty, too long or holds an unknown token, and if logits are not
    /// finite.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        mut on_token: impl FnMut(usize, u32),
    ) -> Result<Vec<Generation>, GenerateError> {
        self.check_prompts(prompts)?;
        let mut results = vec![Generation { ids: Vec::new(), finish: Finish::Length }; prompts.len()];
        let steps = options.max_new_tokens;
        if steps == 0 || prompts.is_empty() {
            return Ok(results);
        }
        let context = self.config().context_length().unwrap_or(usize::MAX);
        let device = self.device().without_autodiff();
        let mut active: Vec<Sequence> =
            (0..prompts.len()).map(|row| Sequence::new(row, options.sampling, row as u64)).collect();

        let (mut hidden, mut cache) = self.prefill(prompts, steps.min(context));
        loop {
            self.choose(hidden, &mut active, options.sampling)?;
            for sequence in active.iter_mut().filter(|sequence| !sequence.done) {
                let result = &mut results[sequence.row];
                if options.stop.contains(&sequence.next) {
                    result.finish = Finish::Stop;
                    sequence.done = true;
                    continue;
                }
                result.ids.push(sequence.next);
                on_token(sequence.row, sequence.next);
                let length = prompts[sequence.row].len() + result.ids.len();
                sequence.done = result.ids.len() == steps || length >= context;
            }
            let unfinished: Vec<usize> = (0..active.len()).filter(|index| !active[*index].done).collect();
            if unfinished.is_empty() {
                break;
            }
            // Sequences that have ended are carried along until they are half of the batch.
            if unfinished.len() * 2 <= active.len() {
                let rows = index_tensor(unfinished.iter().map(|row| *row as i32).collect(), &device);
                cache.select_rows(&unfinished, &rows);
                active.retain(|sequence| !sequence.done);
            }
            let ids: Vec<i32> = active.iter().map(|sequence| sequence.next as i32).collect();
            hidden = self.advance(&ids, &mut cache);
        }
        Ok(results)
    }

    pub(crate) fn check_prompts(&self, prompts: &[Vec<u32>]) -> Result<(), GenerateError> {
        let (context, vocabulary) = (self.config().context_length(), self.config().vocab_size);
        for (row, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(GenerateError::Empty { row });
            }
            if let Some(context) = context.filter(|context| prompt.len() >= *context) {
                return Err(GenerateError::TooLong { row, tokens: prompt.len(), context });
            }
            if let Some(token) = prompt.iter().find(|id| **id as usize >= vocabulary) {
                return Err(GenerateError::UnknownToken { row, token: *token, vocabulary });
            }
        }
        Ok(())
    }

    /// Chooses the next token of every active sequence from hidden states `[rows, 1, hidden_size]`. Fails if the logits of a
    /// sequence that has not ended are not finite.
    pub(crate) fn choose(
        &self,
        hidden: Tensor<3>,
        active: &mut [Sequence],
        sampling: Sampling,
    ) -> Result<(), GenerateError> {
        let logits = self.logits(hidden).squeeze_dim::<2>(1);
        let sums = logits.clone().cast(FloatDType::F32).sum_dim(1).into_data().try_into_vec::<f32>();
        let sums = sums.expect("cast to f32");
        if let Some((sequence, _)) = active.iter().zip(sums).find(|(sequence, sum)| !sequence.done && !sum.is_finite())
        {
            return Err(GenerateError::NotFinite { row: sequence.row });
        }
        match sampling {
            Sampling::Greedy => {
                let best = logits.argmax(1).into_data().convert::<i32>().try_into_vec::<i32>();
                let best = best.expect("converted to i32");
                active.iter_mut().zip(best).for_each(|(sequence, token)| sequence.next = token as u32);
            }
            Sampling::Random { temperature, top_k, top_p, .. } => {
                let vocabulary = self.config().vocab_size;
                let logits = logits.into_data().convert::<f32>().try_into_vec::<f32>().expect("converted to f32");
                for (sequence, row) in active.iter_mut().zip(logits.chunks_exact(vocabulary)) {
                    sequence.next = draw(row, temperature, top_k, top_p, &mut sequence.rng);
                }
            }
        }
        Ok(())
    }
}

/// One token from the distribution of `logits`.
fn draw(logits: &[f32], temperature: f64, top_k: Option<usize>, top_p: Option<f64>, rng: &mut impl Rng) -> u32 {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let score = |token: &u32| f64::from(logits[*token as usize]);
    order.sort_unstable_by(|a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
    order.truncate(top_k.unwrap_or(logits.len()).max(1));
    let largest = score(&order[0]);
    let weights: Vec<f64> =
        order.iter().map(|token| ((score(token) - largest) / temperature.max(1e-6)).exp()).collect();
    let total: f64 = weights.iter().sum();
    // The nucleus: up to and including the token that reaches p.
    let mut kept = 0;
    let mut mass = 0.0;
    while kept < weights.len() && (kept == 0 || mass < top_p.unwrap_or(1.0) * total) {
        mass += weights[kept];
        kept += 1;
    }
    let mut point = rng.random_range(0.0..1.0) * mass;
    for (token, weight) in order.iter().zip(&weights[..kept]) {
        point -= weight;
        if point < 0.0 {
            return *token;
        }
    }
    order[kept - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_k_one_and_a_tiny_nucleus_are_greedy() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let logits = [0.1, 2.0, 1.9, -1.0];
        for _ in 0..50 {
            assert_eq!(draw(&logits, 1.0, Some(1), None, &mut rng), 1);
            assert_eq!(draw(&logits, 1.0, None, Some(1e-9), &mut rng), 1);
            assert_eq!(draw(&logits, 1e-4, None, None, &mut rng), 1);
        }
    }

    #[test]
    fn draws_follow_the_distribution_within_the_nucleus() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let logits = [3f32.ln(), 1f32.ln(), -20.0];
        let first = (0..4000).filter(|_| draw(&logits, 1.0, None, Some(0.999), &mut rng) == 0).count();
        assert!((2880..3120).contains(&first), "{first} of 4000, expected 3000");
    }
}
