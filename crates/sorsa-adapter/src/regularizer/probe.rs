//! The regularizer of one factor, estimated with random vectors `z_i` (Hutchinson 1990). With `Y = U Z` and `W = U^T Y - Z`,
//! whose columns are `G z_i`:
//!
//! ```text
//! 1/p ||W||_F^2      gradient 2/p (Y W^T + (U W) Z^T)
//! ```
//!
//! Free lengths have `G = A^T A - diag(A^T A)`, so that `W = A^T Y - diag(A^T A) Z`, and the gradient of the diagonal is
//! `-4/p A diag(rowsum(W Z))`, elements of `W` and `Z` multiplied. An estimate takes `10 d r p` operations, the computed form `4 d r^2`.

use burn::prelude::*;
use burn::tensor::FloatDType;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

use super::exact::two_over_norm;
use super::{Lengths, Regularized, RegularizerForm, Term};
use crate::factors::Vectors;

/// `count` vectors of numbers 1 and -1, `[rank, count]`.
pub(super) fn draw(rank: usize, count: usize, generator: &mut ChaCha8Rng, device: &Device) -> Tensor<2> {
    let sign = |_| if generator.next_u32() & 1 == 0 { 1.0f32 } else { -1.0 };
    let values: Vec<f32> = (0..rank * count).map(sign).collect();
    Tensor::from_data(TensorData::new(values, [rank, count]), device)
}

/// The term of a factor, estimated with the vectors `z` `[r, p]`.
pub(super) fn term(factor: Tensor<2>, regularized: Regularized, form: RegularizerForm, z: Tensor<2>) -> Term {
    let factor = factor.cast(FloatDType::F32);
    // Vectors in columns, `[d, r]`; a transposed tensor shares its memory.
    let columns = match regularized.vectors {
        Vectors::Columns => factor,
        Vectors::Rows => factor.transpose(),
    };
    let [rank, count] = z.dims();
    let y = columns.clone().matmul(z.clone());
    let turned = columns.clone().transpose();
    let (w, size) = match regularized.lengths {
        Lengths::One => (turned.matmul(y.clone()) - z.clone(), None),
        Lengths::Free => {
            let squares = columns.clone().square().sum_dim(0).transpose();
            let size = squares.clone().square().sum().sqrt();
            (turned.matmul(y.clone()) - z.clone() * squares, Some(size))
        }
    };
    let mut gradient =
        y.matmul(w.clone().transpose()) + columns.clone().matmul(w.clone()).matmul(z.clone().transpose());
    if regularized.lengths == Lengths::Free {
        let diagonal = (w.clone() * z).sum_dim(1).transpose();
        gradient = gradient - columns * diagonal * 2.0;
    }
    let norm = (w.square().sum() / count as f64).sqrt();
    let gradient = match form {
        RegularizerForm::Squared => gradient * (2.0 / count as f64),
        // The root of the estimate has the gradient of the estimate over twice the root.
        _ => gradient * (two_over_norm(&norm, &size, rank) / (2.0 * count as f64)).unsqueeze(),
    };
    let gradient = match regularized.vectors {
        Vectors::Columns => gradient,
        Vectors::Rows => gradient.transpose(),
    };
    Term { norm, size, gradient }
}

#[cfg(test)]
mod tests {
    use super::super::exact;
    use super::super::tests::{drawn, every_side};
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    fn z(seed: u64, rank: usize, count: usize) -> Tensor<2> {
        draw(rank, count, &mut ChaCha8Rng::seed_from_u64(seed), &Device::flex())
    }

    /// The gradient by burn's tape, of `||G Z||_F^2 / p` or its root, with the whole `G`.
    fn by_tape(factor: Tensor<2>, regularized: Regularized, form: RegularizerForm, z: Tensor<2>) -> Tensor<2> {
        let factor = Tensor::from_inner(factor).require_grad();
        let columns = match regularized.vectors {
            Vectors::Columns => factor.clone(),
            Vectors::Rows => factor.clone().transpose(),
        };
        let gram = columns.clone().transpose().matmul(columns);
        let identity = Tensor::<2>::eye(gram.dims()[0], &factor.device());
        let g = match regularized.lengths {
            Lengths::One => gram - identity,
            Lengths::Free => gram * (identity.ones_like() - identity),
        };
        let count = z.dims()[1] as f64;
        let estimate = g.matmul(Tensor::from_inner(z)).square().sum() / count;
        let loss = if form == RegularizerForm::Squared { estimate } else { estimate.sqrt() };
        factor.grad(&loss.backward()).unwrap()
    }

    #[test]
    fn the_gradient_of_an_estimate_equals_the_tape() {
        for (shape, regularized) in every_side() {
            let factor = drawn(shape, 3) * 0.5;
            for count in [1, 3] {
                let z = z(5, shape[0].min(shape[1]), count);
                for form in [RegularizerForm::Paper, RegularizerForm::Squared] {
                    let found = term(factor.clone(), regularized, form, z.clone()).gradient;
                    let expected = by_tape(factor.clone(), regularized, form, z.clone());
                    let difference = (found - expected).abs().max().into_scalar::<f32>();
                    assert!(difference < 2e-5, "{regularized:?} {form:?} {count}: {difference}");
                }
            }
        }
    }

    #[test]
    fn the_mean_of_many_estimates_is_the_squared_form_and_its_gradient() {
        for (shape, regularized) in every_side() {
            let factor = drawn(shape, 4) * 0.5;
            let exact = exact::term(factor.clone(), regularized, RegularizerForm::Squared);
            let many = 20_000;
            let z = z(6, shape[0].min(shape[1]), many);
            let estimate = term(factor.clone(), regularized, RegularizerForm::Squared, z);
            let square = |norm: Tensor<1>| norm.into_scalar::<f32>().powi(2);
            let (found, expected) = (square(estimate.norm), square(exact.norm));
            // The standard deviation of an estimate is about its mean; 20,000 of them leave 0.7 %.
            assert!((found / expected - 1.0).abs() < 0.03, "{regularized:?}: {found}, expected {expected}");
            let length = |x: Tensor<2>| x.square().sum().sqrt().into_scalar::<f32>();
            let difference = length(estimate.gradient - exact.gradient.clone()) / length(exact.gradient);
            assert!(difference < 0.05, "{regularized:?}: {difference}");
        }
    }
}
