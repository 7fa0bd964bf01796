//! Generations of many prompts, several of each if asked for, through the slots of one batch.

use std::collections::HashSet;
use std::ops::ControlFlow;

use sorsa_data::Encoder;
use sorsa_models::{CausalLm, Finish, GenerateOptions, Requests, Sampling};

use crate::exit::OrBadInput;
use crate::progress::{Progress, Style};

/// How prompts are continued.
#[derive(Debug, Clone)]
pub struct Continuing {
    pub slots: usize,
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Generations of each prompt.
    pub samples: usize,
    pub stops: Vec<u32>,
}

/// One generation.
pub struct Sampled {
    /// Index of the prompt.
    pub index: usize,
    /// Number of the generation among the prompt's.
    pub sample: usize,
    pub text: String,
    pub tokens: usize,
    /// Whether the model ended it.
    pub finished: bool,
}

impl Continuing {
    /// Continues the prompts, except those generations `(index, sample)` that are `done`. Each generation is the same in
    /// whatever company and order it is made.
    pub fn run(
        &self,
        (model, encoder): (&CausalLm, &Encoder),
        prompts: &[Vec<u32>],
        done: &HashSet<(usize, usize)>,
        style: Style,
        mut on_sampled: impl FnMut(Sampled) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut wanted: Vec<(usize, usize)> = (0..prompts.len())
            .flat_map(|index| (0..self.samples).map(move |sample| (index, sample)))
            .filter(|generation| !done.contains(generation))
            .collect();
        // Prompts of similar length together: less padding.
        wanted.sort_by_key(|(index, _)| prompts[*index].len());
        let rows: Vec<Vec<u32>> = wanted.iter().map(|(index, _)| prompts[*index].clone()).collect();
        let streams: Vec<u64> = wanted.iter().map(|(index, sample)| (index * self.samples + sample) as u64).collect();
        let requests = Requests { prompts: &rows, streams: &streams, slots: self.slots };
        let options =
            GenerateOptions { max_new_tokens: self.max_new_tokens, sampling: self.sampling, stop: self.stops.clone() };
        let progress = Progress::new("answers", (prompts.len() * self.samples) as u64, style);
        let started = std::time::Instant::now();
        let (mut finished, mut tokens, mut failure) = (done.len() as u64, 0, None);
        let on_finished = |row: usize, generation: sorsa_models::Generation| {
            let (index, sample) = wanted[row];
            let told = encoder.tokenizer().decode(&generation.ids).map_err(anyhow::Error::from).and_then(|text| {
                let (tokens, finished) = (generation.ids.len(), generation.finish == Finish::Stop);
                on_sampled(Sampled { index, sample, text, tokens, finished })
            });
            finished += 1;
            tokens += generation.ids.len();
            progress.set(finished, &format!("{:.0} tokens/s", tokens as f64 / started.elapsed().as_secs_f64()));
            match told {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        model.generate_queue(requests, &options, on_finished).or_bad_input()?;
        progress.finish();
        failure.map_or(Ok(()), Err)
    }
}
