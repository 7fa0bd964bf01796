//! The regularizer of one factor, computed: two small products.

use burn::prelude::*;
use burn::tensor::FloatDType;

use super::{FLOOR, Lengths, Regularized, RegularizerForm, Term};
use crate::factors::Vectors;

/// `G` of a factor.
pub(super) struct Gram {
    /// `G` `[r, r]`, f32.
    pub defect: Tensor<2>,
    /// `||diag(A^T A)||_F`, one element, if lengths are free.
    pub size: Option<Tensor<1>>,
}

/// `G` of an f32 factor.
pub(super) fn gram(factor: &Tensor<2>, regularized: Regularized) -> Gram {
    let factor = factor.clone();
    let gram = match regularized.vectors {
        Vectors::Columns => factor.clone().transpose().matmul(factor.clone()),
        Vectors::Rows => factor.clone().matmul(factor.clone().transpose()),
    };
    let identity = Tensor::<2>::eye(gram.dims()[0], &factor.device());
    match regularized.lengths {
        Lengths::One => Gram { defect: gram - identity, size: None },
        Lengths::Free => {
            let diagonal = gram.clone() * identity;
            Gram { defect: gram - diagonal.clone(), size: Some(diagonal.square().sum().sqrt()) }
        }
    }
}

/// `U M` for vectors in columns, `M V^T` for vectors in rows; `M` `[r, r]` is symmetric.
pub(super) fn combined(factor: Tensor<2>, vectors: Vectors, matrix: Tensor<2>) -> Tensor<2> {
    match vectors {
        Vectors::Columns => factor.matmul(matrix),
        Vectors::Rows => matrix.matmul(factor),
    }
}

/// `2 / norm`, one element, and 0 if the norm is rounding noise of `rank` vectors.
pub(super) fn two_over_norm(norm: &Tensor<1>, size: &Option<Tensor<1>>, rank: usize) -> Tensor<1> {
    let (below, divisor) = match size {
        None => {
            let floor = FLOOR * (rank as f64).sqrt();
            (norm.clone().lower_equal_elem(floor), norm.clone().clamp_min(floor))
        }
        Some(size) => {
            // A factor that is 0, like LoRA's B at the start, has a norm of 0 and a floor of 0.
            let below = norm.clone().lower_equal(size.clone() * FLOOR);
            (below.clone(), norm.clone().mask_fill(below, 1.0))
        }
    };
    (divisor.recip() * 2.0).mask_fill(below, 0.0)
}

/// The term of a factor in the form of a Frobenius norm or its square.
pub(super) fn term(factor: Tensor<2>, regularized: Regularized, form: RegularizerForm) -> Term {
    let factor = factor.cast(FloatDType::F32);
    let Gram { defect, size } = gram(&factor, regularized);
    let rank = defect.dims()[0];
    let product = combined(factor, regularized.vectors, defect.clone());
    let norm = defect.square().sum().sqrt();
    let gradient = match form {
        RegularizerForm::Squared => product * 4.0,
        _ => product * two_over_norm(&norm, &size, rank).unsqueeze(),
    };
    Term { norm, size, gradient }
}
