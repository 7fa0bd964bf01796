//! Many prompts through a few slots: a sequence that ends gives its place to the next prompt, so that the batch stays
//! full to the end of the queue.
//!
//! New prompts are taken in by a pass of their own, whose cache is then joined with that of the sequences under way.
//! That costs a copy of the cache, so places are filled once an eighth of them is free.

use std::ops::ControlFlow;

use crate::generate::{Finish, GenerateError, GenerateOptions, Generation, Sequence};
use crate::layers::index_tensor;
use crate::model::{Cache, CausalLm};

/// Prompts to continue.
#[derive(Debug, Clone, Copy)]
pub struct Requests<'a> {
    /// The prompts.
    pub prompts: &'a [Vec<u32>],
    /// The stream of random numbers of each, by which it is sampled alike in any company. Greedy choice needs none.
    pub streams: &'a [u64],
    /// How many are continued at the same time.
    pub slots: usize,
}

impl CausalLm {
    /// Continues each prompt, in their order, `slots` at a time. `on_token(row, ids)` is called for every new token, with all new
    /// tokens of its row; `Break` ends the row there. `on_finished(row, generation)` is called as each row ends, in the order in
    /// which they end; `Break` ends all.
    ///
    /// Each sequence gets what [`generate`](Self::generate) gives it alone, by the same choice and, sampled, the same
    /// stream. Put prompts of similar length together: less padding. Call it on a model without autodiff.
    ///
    /// # Errors
    ///
    /// [`GenerateError`] for the first prompt that is empty, too long or holds an unknown token, and if logits are not
    /// finite.
    ///
    /// # Panics
    ///
    /// Panics if there are not as many streams as prompts.
    pub fn generate_queue(
        &self,
        requests: Requests<'_>,
        options: &GenerateOptions,
        mut on_token: impl FnMut(usize, &[u32]) -> ControlFlow<()>,
        mut on_finished: impl FnMut(usize, Generation) -> ControlFlow<()>,
    ) -> Result<(), GenerateError> {
        let Requests { prompts, streams, slots } = requests;
        assert_eq!(prompts.len(), streams.len(), "one stream for each prompt");
        self.check_prompts(prompts)?;
        let slots = slots.max(1);
        let context = self.config().context_length().unwrap_or(usize::MAX);
        let room = options.max_new_tokens.min(context);
        let device = self.device().without_autodiff();
        if options.max_new_tokens == 0 {
            for row in 0..prompts.len() {
                if on_finished(row, Generation { ids: Vec::new(), finish: Finish::Length }).is_break() {
                    break;
                }
            }
            return Ok(());
        }
        let mut ids: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];

        // Takes in the token that was chosen for a sequence; `Break` if the caller has had enough.
        let mut settle = |sequence: &mut Sequence| {
            let (row, ids) = (sequence.row, &mut ids[sequence.row]);
            let mut stopped = options.stop.contains(&sequence.next);
            if !stopped {
                ids.push(sequence.next);
                stopped = on_token(row, ids).is_break();
            }
            let full = ids.len() == options.max_new_tokens || prompts[row].len() + ids.len() >= context;
            sequence.done = stopped || full;
            if !sequence.done {
                return ControlFlow::Continue(());
            }
            let finish = if stopped { Finish::Stop } else { Finish::Length };
            on_finished(row, Generation { ids: std::mem::take(ids), finish })
        };

        let mut active: Vec<Sequence> = Vec::new();
        let mut cache: Option<Cache> = None;
        let mut next = 0;
        loop {
            // Sequences that have ended are carried along until they are worth a copy of the cache.
            let waiting = prompts.len() - next;
            let unfinished: Vec<usize> = (0..active.len()).filter(|index| !active[*index].done).collect();
            let worth = if waiting > 0 { slots.div_ceil(8) } else { active.len().div_ceil(2) };
            if active.len() - unfinished.len() >= worth {
                match &mut cache {
                    Some(cache) if !unfinished.is_empty() => {
                        let rows = index_tensor(unfinished.iter().map(|row| *row as i32).collect(), &device);
                        cache.select_rows(&unfinished, &rows);
                    }
                    _ => cache = None,
                }
                active.retain(|sequence| !sequence.done);
            }
            let free = slots - active.len();
            if waiting > 0 && (free >= worth || active.is_empty()) {
                let rows = next..next + free.min(waiting);
                next = rows.end;
                let (hidden, taken_in) = self.prefill(&prompts[rows.clone()], room);
                let mut fresh: Vec<Sequence> =
                    rows.map(|row| Sequence::new(row, options.sampling, streams[row])).collect();
                self.choose(hidden, &mut fresh, options.sampling)?;
                if fresh.iter_mut().try_for_each(&mut settle).is_break() {
                    return Ok(());
                }
                active.extend(fresh);
                cache = Some(match cache.take() {
                    Some(cache) => cache.joined(taken_in, room),
                    None => taken_in,
                });
                continue;
            }
            let Some(cache) = &mut cache else { return Ok(()) };
            let last: Vec<i32> = active.iter().map(|sequence| sequence.next as i32).collect();
            let hidden = self.advance(&last, cache);
            self.choose(hidden, &mut active, options.sampling)?;
            if active.iter_mut().filter(|sequence| !sequence.done).try_for_each(&mut settle).is_break() {
                return Ok(());
            }
        }
    }
}
