//! Rows that hold several sequences, taken apart: a recurrence cannot mask what came before, so that each sequence
//! becomes a row of its own.

use burn::prelude::*;

use crate::input::ModelInput;
use crate::layers::index_tensor;

/// Where each sequence of a packed batch lies.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pieces {
    /// Of each position of each piece (padded on the right to the longest), its place in the batch.
    taken_from: Vec<i32>,
    /// Of each position of the batch, its place in the pieces; 0 for padding.
    put_back: Vec<i32>,
    /// Pieces and their length.
    shape: [usize; 2],
    /// Rows of the batch and their length.
    packed_shape: [usize; 2],
}

impl Pieces {
    pub fn new(input: &ModelInput<'_>) -> Self {
        // Start and length of each sequence.
        let mut pieces: Vec<(usize, usize)> = Vec::new();
        for row in 0..input.rows {
            let segments = &input.segments[row * input.len..(row + 1) * input.len];
            let mut start = row * input.len;
            for run in segments.chunk_by(|a, b| a == b) {
                if run[0] > 0 {
                    pieces.push((start, run.len()));
                }
                start += run.len();
            }
        }
        let longest = pieces.iter().map(|(_, len)| *len).max().unwrap_or(0);
        let mut taken_from = vec![0; pieces.len() * longest];
        let mut put_back = vec![0; input.rows * input.len];
        for (piece, (start, len)) in pieces.iter().enumerate() {
            for offset in 0..*len {
                taken_from[piece * longest + offset] = (start + offset) as i32;
                put_back[start + offset] = (piece * longest + offset) as i32;
            }
        }
        Self { taken_from, put_back, shape: [pieces.len(), longest], packed_shape: [input.rows, input.len] }
    }

    /// `[rows, len, d]` as `[pieces, longest, d]`.
    pub fn unpack(&self, x: Tensor<3>, device: &Device) -> Tensor<3> {
        rearranged(x, &self.taken_from, self.shape, device)
    }

    /// `[pieces, longest, d]` as `[rows, len, d]`; what padding gets is of no meaning, and finite.
    pub fn pack(&self, x: Tensor<3>, device: &Device) -> Tensor<3> {
        rearranged(x, &self.put_back, self.packed_shape, device)
    }
}

fn rearranged(x: Tensor<3>, from: &[i32], [rows, len]: [usize; 2], device: &Device) -> Tensor<3> {
    let [old_rows, old_len, d] = x.dims();
    let flat = x.reshape([old_rows * old_len, d]).select(0, index_tensor(from.to_vec(), device));
    flat.reshape([rows, len, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_become_rows_and_go_back_to_their_places() {
        let segments = [1, 1, 2, 0, 1, 2, 2, 2];
        let ids: Vec<i32> = (0..8).collect();
        let input = ModelInput { rows: 2, len: 4, input_ids: &ids, positions: &ids, segments: &segments };
        let pieces = Pieces::new(&input);
        assert_eq!(pieces.shape, [4, 3]);
        assert_eq!(pieces.taken_from, [0, 1, 0, 2, 0, 0, 4, 0, 0, 5, 6, 7]);
        let device = Device::flex();
        let x = Tensor::<1>::from_floats([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], &device).reshape([2, 4, 1]);
        let back = pieces.pack(pieces.unpack(x, &device), &device);
        assert_eq!(back.into_data().try_into_vec::<f32>().unwrap(), [0.0, 1.0, 2.0, 0.0, 4.0, 5.0, 6.0, 7.0]);
    }
}
