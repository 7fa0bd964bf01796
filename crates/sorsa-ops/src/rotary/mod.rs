//! Rotary position embedding (Su et al., 2021) in the layout of Hugging Face checkpoints: the two halves of a head
//! are the two coordinates of the rotated planes ("rotate half"), not neighbouring pairs.

use burn::prelude::*;
use burn::tensor::FloatDType;

use crate::fused;

/// Cosines and sines of the positions of one batch, `[batch or 1, 1, seq, head_dim / 2]`, f32.
#[derive(Debug, Clone)]
pub struct RotaryAngles {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl RotaryAngles {
    /// The angles of `positions` `[rows, seq]` (row-major) for the inverse frequencies of `head_dim / 2` planes.
    /// `amplitude` multiplies sines and cosines (1 except for scalings that change the attention's temperature).
    ///
    /// # Panics
    ///
    /// Panics where `positions` has not `rows * seq` elements.
    pub fn new(
        inverse_frequencies: &[f64],
        amplitude: f64,
        positions: &[i32],
        [rows, seq]: [usize; 2],
        device: &Device,
    ) -> Self {
        assert_eq!(positions.len(), rows * seq, "positions of {rows} rows of {seq}");
        // Frequency and angle are rounded to f32, as the reference implementation does: equal at long range too.
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

    /// Whether these are the angles of `x` `[batch, heads, seq, head_dim]` on a device of the same kind.
    pub(crate) fn fits(&self, x: &Tensor<4>) -> bool {
        let [batch, _, seq, head_dim] = x.dims();
        let [rows, _, positions, planes] = self.cos.dims();
        let shape = positions == seq && (rows == 1 || rows == batch) && 2 * planes <= head_dim;
        shape && fused::applies([fused::kind(&self.cos)])
    }
}

/// Rotates `x` `[batch, heads, seq, head_dim]` by `angles`; the result has the dtype of `x`.
pub fn rotate_half(x: Tensor<4>, angles: &RotaryAngles) -> Tensor<4> {
    if !x.device().is_autodiff() && angles.fits(&x) && fused::applies([fused::kind(&x)]) {
        return fused::rotate(x, angles.tables());
    }
    let half = x.dims()[3] / 2;
    let dtype = FloatDType::from(x.dtype());
    let (cos, sin) = (angles.cos.clone().cast(dtype), angles.sin.clone().cast(dtype));
    let first = x.clone().narrow(3, 0, half);
    let second = x.narrow(3, half, half);
    let rotated_first = first.clone() * cos.clone() - second.clone() * sin.clone();
    let rotated_second = second * cos + first * sin;
    Tensor::cat(vec![rotated_first, rotated_second], 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotated(x: [f32; 4], frequencies: &[f64], position: i32) -> Vec<f32> {
        let device = Device::flex();
        let x = Tensor::<1>::from_floats(x, &device).reshape([1, 1, 1, 4]);
        let angles = RotaryAngles::new(frequencies, 1.0, &[position], [1, 1], &device);
        rotate_half(x, &angles).into_data().try_into_vec::<f32>().unwrap()
    }

    #[test]
    fn rotation_keeps_lengths_and_depends_on_the_difference_of_positions() {
        let at = |x, position| rotated(x, &[1.0, 0.1], position);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
        let (q, k) = ([0.3, -1.0, 2.0, 0.7], [1.5, 0.2, -0.4, 1.0]);
        assert!((dot(&at(q, 5), &at(q, 5)) - dot(&q, &q)).abs() < 1e-5);
        assert!((dot(&at(q, 7), &at(k, 3)) - dot(&at(q, 13), &at(k, 9))).abs() < 1e-5);
    }

    #[test]
    fn planes_pair_the_first_half_with_the_second() {
        let y = rotated([1.0, 0.0, 0.0, 0.0], &[1.0, 0.0], 1);
        let expected = [1f32.cos(), 0.0, 1f32.sin(), 0.0];
        assert!(y.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{y:?}");
    }
}
