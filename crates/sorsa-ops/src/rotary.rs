//! Rotary position embedding (Su et al., 2021) in the layout of Hugging Face checkpoints: the two halves of a head
//! are the two coordinates of the rotated planes ("rotate half"), not neighbouring pairs.

use burn::prelude::*;
use burn::tensor::FloatDType;

/// Cosines and sines of every position up to a maximum, `[max_positions, head_dim / 2]`, f32.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

/// Cosines and sines of the positions of one batch, `[batch or 1, 1, seq, head_dim / 2]`.
#[derive(Debug, Clone)]
pub struct RotaryAngles {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl RotaryTable {
    /// A table from the inverse frequency of each plane (`head_dim / 2` of them), computed in f64 and kept in f32.
    /// `amplitude` multiplies both (1 except for scalings that change the attention's temperature).
    pub fn new(inverse_frequencies: &[f64], max_positions: usize, amplitude: f64, device: &Device) -> Self {
        let half = inverse_frequencies.len();
        let table = |function: fn(f64) -> f64| {
            let values = (0..max_positions)
                .flat_map(|position| {
                    // Frequencies and angles are f32 in the reference implementation; matching its rounding keeps
                    // long contexts equal.
                    inverse_frequencies
                        .iter()
                        .map(move |frequency| f64::from(position as f32 * *frequency as f32))
                })
                .map(|angle| (function(angle) * amplitude) as f32)
                .collect();
            Tensor::from_data(TensorData::new::<f32, _>(values, [max_positions, half]), device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// The largest position of the table plus one.
    pub fn max_positions(&self) -> usize {
        self.cos.dims()[0]
    }

    /// The angles of positions `[batch or 1, seq]`; each must be below [`max_positions`](Self::max_positions).
    pub fn at(&self, positions: Tensor<2, Int>) -> RotaryAngles {
        let [batch, seq] = positions.dims();
        let half = self.cos.dims()[1];
        let flat = positions.reshape([batch * seq]);
        let pick = |table: &Tensor<2>| table.clone().select(0, flat.clone()).reshape([batch, 1, seq, half]);
        RotaryAngles { cos: pick(&self.cos), sin: pick(&self.sin) }
    }
}

/// Rotates `x` `[batch, heads, seq, head_dim]` by `angles`; the result has the dtype of `x`.
pub fn rotate_half(x: Tensor<4>, angles: &RotaryAngles) -> Tensor<4> {
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

    #[test]
    fn rotation_keeps_lengths_and_depends_on_the_difference_of_positions() {
        let device = Device::flex();
        let table = RotaryTable::new(&[1.0, 0.1], 16, 1.0, &device);
        let at = |x: [f32; 4], position: i32| {
            let x = Tensor::<1>::from_floats(x, &device).reshape([1, 1, 1, 4]);
            let positions = Tensor::<2, Int>::from_ints([[position]], &device);
            rotate_half(x, &table.at(positions)).into_data().try_into_vec::<f32>().unwrap()
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
        let (q, k) = ([0.3, -1.0, 2.0, 0.7], [1.5, 0.2, -0.4, 1.0]);
        assert!((dot(&at(q, 5), &at(q, 5)) - dot(&q, &q)).abs() < 1e-5);
        assert!((dot(&at(q, 7), &at(k, 3)) - dot(&at(q, 13), &at(k, 9))).abs() < 1e-5);
    }

    #[test]
    fn planes_pair_the_first_half_with_the_second() {
        let device = Device::flex();
        let table = RotaryTable::new(&[1.0, 0.0], 2, 1.0, &device);
        let x = Tensor::<1>::from_floats([1.0, 0.0, 0.0, 0.0], &device).reshape([1, 1, 1, 4]);
        let y = rotate_half(x, &table.at(Tensor::from_ints([[1]], &device)));
        let y = y.into_data().try_into_vec::<f32>().unwrap();
        let expected = [1f32.cos(), 0.0, 1f32.sin(), 0.0];
        assert!(y.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{y:?}");
    }
}
