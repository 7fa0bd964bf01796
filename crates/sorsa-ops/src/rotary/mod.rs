//! Rotary position embedding (Su et al., 2021) in the layout of Hugging Face checkpoints: a rotated plane pairs a coordinate of a
//! head's first half with one of its second half ("rotate half"), not two neighbours.

mod flex;
mod plain;
#[cfg(test)]
mod tests;

use burn::prelude::*;

use crate::form::{fused_form_applies, operand};
use crate::memory::OperationMemory;

/// Cosines and sines of the positions of one batch, `[batch or 1, 1, seq, head_dim / 2]`, f32.
#[derive(Debug, Clone)]
pub struct RotaryAngles {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl RotaryAngles {
    /// The angles of `positions` for the inverse frequencies of `head_dim / 2` planes. `amplitude` multiplies sines and cosines; it
    /// is 1 except for scalings that change the attention's temperature.
    ///
    /// # Shapes
    ///
    /// - `positions`: `[rows, seq]`
    ///
    /// # Panics
    ///
    /// Panics if `positions` does not have `rows * seq` elements.
    pub fn new(
        inverse_frequencies: &[f64],
        amplitude: f64,
        positions: &[i32],
        [rows, seq]: [usize; 2],
        device: &Device,
    ) -> Self {
        assert_eq!(positions.len(), rows * seq, "positions of {rows} rows of {seq}");
        // Frequency and angle are rounded to f32, like in the reference implementation, so that long positions agree.
        let angles: Vec<f64> = positions
            .iter()
            .flat_map(|position| inverse_frequencies.iter().map(|f| f64::from(*position as f32 * *f as f32)))
            .collect();
        let table = |function: fn(f64) -> f64| {
            let values = angles.iter().map(|angle| (function(*angle) * amplitude) as f32).collect();
            let data = TensorData::new::<f32, _>(values, [rows, 1, seq, inverse_frequencies.len()]);
            Tensor::from_data(data, device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// Cosines and sines.
    pub(crate) fn tables(&self) -> (Tensor<4>, Tensor<4>) {
        (self.cos.clone(), self.sin.clone())
    }

    /// Whether the fused form rotates `x` `[batch, heads, seq, head_dim]` by these angles.
    pub(crate) fn fits(&self, x: &Tensor<4>) -> bool {
        let [batch, _, seq, head_dim] = x.dims();
        let [rows, _, positions, planes] = self.cos.dims();
        let shape = positions == seq && (rows == 1 || rows == batch) && 2 * planes <= head_dim;
        shape && fused_form_applies([operand(&self.cos)])
    }
}

/// Rotates `x` by `angles`; the result has the dtype of `x`.
///
/// # Shapes
///
/// - `x`, output: `[batch, heads, seq, head_dim]`
pub fn rotate_half(x: Tensor<4>, angles: &RotaryAngles) -> Tensor<4> {
    if !x.device().is_autodiff() && angles.fits(&x) && fused_form_applies([operand(&x)]) {
        flex::rotate_half(x, angles.tables())
    } else {
        plain::rotate_half(x, angles.tables())
    }
}

/// The memory of [`rotate_half`] of so many elements in a training step: one tensor of that size. With gradients there is no fused form.
pub fn rotate_half_memory(elements: usize) -> OperationMemory {
    OperationMemory::keeping(elements)
}
