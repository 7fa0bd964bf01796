//! One batch of token sequences, as the model takes it.

use burn::prelude::*;
use sorsa_ops::AttentionMask;

use crate::transformer::near;

/// Token sequences, right padded, all arrays `[rows * len]` in row-major order.
#[derive(Debug, Clone, Copy)]
pub struct ModelInput<'a> {
    /// Sequences (or packs of sequences).
    pub rows: usize,
    /// Length of a row.
    pub len: usize,
    /// Token ids.
    pub input_ids: &'a [i32],
    /// Position of each token in its sequence.
    pub positions: &'a [i32],
    /// Number of each token's sequence within its row, from 1; 0 is padding. Tokens see their own sequence only.
    pub segments: &'a [i32],
}

impl ModelInput<'_> {
    /// Whether a row holds more than one sequence.
    pub(crate) fn is_packed(&self) -> bool {
        self.segments.iter().any(|segment| *segment > 1)
    }

    /// Causal, within segments and the window. One mask serves all rows where none holds two sequences: padding on
    /// the right is never seen by what comes before it.
    pub(crate) fn mask(&self, window: Option<usize>, device: &Device) -> AttentionMask {
        let packed = self.is_packed();
        let rows = if packed { self.rows } else { 1 };
        let segment = |row: usize, index: usize| self.segments[row * self.len + index];
        let visible =
            |row, query, key| near(window, query, key) && (!packed || segment(row, query) == segment(row, key));
        AttentionMask::from_rule([rows, self.len, self.len], visible, device)
    }
}
