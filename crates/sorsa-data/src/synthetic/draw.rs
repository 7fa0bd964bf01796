//! Integer draws that are the same on every platform and with every version of `rand`.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A seeded source of small integers. It uses no floats and does not depend on the width of `usize`.
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// An integer of `0..bound`. The bias of the multiplication is at most `bound / 2^32`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u64::from(self.0.next_u32()) * bound as u64) >> 32) as usize
    }

    /// An integer of `low..=high`, or `low` if the range is empty.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low).max(0) as usize + 1) as i64
    }

    /// True once in `n` draws.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn one_of<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.below(choices.len())]
    }

    /// Distinct choices, in random order.
    pub fn some_of<T: Copy, const N: usize>(&mut self, choices: &[T]) -> [T; N] {
        let mut rest = choices.to_vec();
        std::array::from_fn(|_| rest.swap_remove(self.below(rest.len())))
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
