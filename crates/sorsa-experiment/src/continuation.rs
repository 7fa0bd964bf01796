//! Continues many prompts, several times each if asked to, through the slots of one batch.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::Instant;

use sorsa_data::TextTokenizer;
use sorsa_models::{CausalLm, Finish, GenerateOptions, Generation, Requests, Sampling};

use crate::error::ExperimentError;
use crate::model::Stops;
use crate::observer::{Event, Observer};

/// How a model answers.
#[derive(Debug, Clone)]
pub struct AnswerOptions {
    /// Problems that are answered together.
    pub batch_size: usize,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Answers to each problem.
    pub samples: usize,
    /// What ends an answer.
    pub stop: Stops,
}

/// One continuation of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// Index of the prompt.
    pub index: usize,
    /// Number of the continuation among the prompt's.
    pub sample: usize,
    /// The text that its tokens add to the prompt's.
    pub text: String,
    /// Its tokens.
    pub tokens: usize,
    /// Whether the model ended it.
    pub finished: bool,
}

/// Prompts to continue.
pub struct Prompts<'a> {
    /// Their tokens.
    pub tokens: &'a [Vec<u32>],
    /// The `(index, sample)` of continuations that are there already.
    pub done: HashSet<(usize, usize)>,
    /// Makes text of tokens.
    pub tokenizer: &'a TextTokenizer,
}

impl Prompts<'_> {
    /// Continues every prompt, and hands each continuation to `on_continuation` as soon as it ends. Each is the same
    /// in any batch.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Generate`] for a prompt that cannot be continued, and errors of `on_continuation`.
    pub fn continue_all(
        &self,
        model: &CausalLm,
        options: &AnswerOptions,
        observer: &mut dyn Observer,
        on_continuation: &mut dyn FnMut(Continuation) -> Result<(), ExperimentError>,
    ) -> Result<(), ExperimentError> {
        let samples = options.samples;
        let mut wanted: Vec<(usize, usize)> = (0..self.tokens.len())
            .flat_map(|index| (0..samples).map(move |sample| (index, sample)))
            .filter(|continuation| !self.done.contains(continuation))
            .collect();
        // Prompts of similar length together: less padding.
        wanted.sort_by_key(|(index, _)| self.tokens[*index].len());
        let rows: Vec<Vec<u32>> = wanted.iter().map(|(index, _)| self.tokens[*index].clone()).collect();
        let streams: Vec<u64> = wanted.iter().map(|(index, sample)| (index * samples + sample) as u64).collect();
        let requests = Requests { prompts: &rows, streams: &streams, slots: options.batch_size };
        let generate = GenerateOptions {
            max_new_tokens: options.max_new_tokens,
            sampling: options.sampling,
            stop: options.stop.tokens.clone(),
        };
        let (total, started) = (self.tokens.len() * samples, Instant::now());
        let (mut done, mut tokens, mut failure) = (self.done.len(), 0, None);
        observer.on_event(Event::Answering { done, total, tokens, seconds: 0.0 });
        let on_token = |_: usize, ids: &[u32]| match options.stop.complete(self.tokenizer, ids) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let on_finished = |row: usize, generation: Generation| {
            let (index, sample) = wanted[row];
            let text = self.tokenizer.continuation(&rows[row], &generation.ids);
            let kept = text.map_err(ExperimentError::from).and_then(|text| {
                let text = options.stop.cut(&text).to_owned();
                let (tokens, finished) = (generation.ids.len(), generation.finish == Finish::Stop);
                on_continuation(Continuation { index, sample, text, tokens, finished })
            });
            done += 1;
            tokens += generation.ids.len();
            observer.on_event(Event::Answering { done, total, tokens, seconds: started.elapsed().as_secs_f64() });
            match kept {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        model.generate_queue(requests, &generate, on_token, on_finished)?;
        observer.on_event(Event::Answered);
        failure.map_or(Ok(()), Err)
    }
}
