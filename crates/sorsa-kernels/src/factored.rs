//! The linear map of a weight with an adapter: three products into one output, and a backward pass without temporaries of the
//! size of its input or output. With `h = x_a A`, `t = scale s` and a gradient `dY`:
//!
//! ```text
//! Y = X W + (h * t) B + bias
//! dB = (h * t)^T dY      e = dY B^T      ds = scale colsum(e * h)      dA = X_a^T (e * t)
//! dX = dY W^T            dX_a = (e * t) A^T                            dW = X^T dY if W is trained
//! ```

use crate::linear::add_bias;
use crate::matrix::Matrix;
use crate::product::{Product, Update};
use crate::simd::{scale, wide};
use crate::sums::{Summand, sums};
use crate::weight::Weight;

/// The operands of both passes.
///
/// # Shapes
///
/// - `x`, `adapter_input`: `[rows, d_in]`
/// - `weight`: `[d_in, d_out]`
/// - `bias`: `[d_out]`
/// - `a`: `[d_in, rank]`
/// - `s`: `[rank]`
/// - `b`: `[rank, d_out]`
#[derive(Debug, Clone, Copy)]
pub struct FactoredLinear<'a> {
    /// The input of the weight.
    pub x: Matrix<'a>,
    /// The weight, in any storage format.
    pub weight: Weight<'a>,
    /// Added to each row.
    pub bias: Option<&'a [f32]>,
    /// The input of the factors, if it is not `x`.
    pub adapter_input: Option<Matrix<'a>>,
    /// The first factor.
    pub a: Matrix<'a>,
    /// Scales the rank dimensions; all ones if absent.
    pub s: Option<&'a [f32]>,
    /// The second factor.
    pub b: Matrix<'a>,
    /// Multiplies the product of the factors.
    pub scale: f32,
}

/// The result of the forward pass.
#[derive(Debug)]
pub struct Output {
    /// `[rows, d_out]`.
    pub y: Vec<f32>,
    /// `h = x_a A`, `[rows, rank]`; the backward pass needs it.
    pub h: Vec<f32>,
}

impl<'a> FactoredLinear<'a> {
    /// The forward pass. Rows of `x` must be contiguous.
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit each other.
    pub fn forward(&self) -> Output {
        let (rows, rank, d_out) = (self.x.rows(), self.a.columns(), self.weight.columns());
        assert!(self.s.is_none_or(|s| s.len() == rank), "there are not as many singular values as the rank");
        let mut h = vec![0.0; rows * rank];
        Product::new(self.adapter_input(), self.a).compute(&mut h, Update::Overwrite);
        let scaled = self.scaled(&h);
        let mut y = sum(vec![
            Summand::of_weight(self.x, self.weight),
            Summand::of_factor(Matrix::new(&scaled, rows, rank), self.b),
        ]);
        if let Some(bias) = self.bias {
            add_bias(&mut y, bias, d_out);
        }
        Output { y, h }
    }

    /// Begins the backward pass for the gradient `d_y` `[rows, d_out]` of the output, with `h` of the forward pass.
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit each other.
    pub fn backward(self, h: &'a [f32], d_y: &'a [f32]) -> Backward<'a> {
        let (rows, rank) = (self.x.rows(), self.a.columns());
        let d_y = Matrix::new(d_y, rows, self.weight.columns());
        let mut e = vec![0.0; rows * rank];
        Product::new(d_y, self.b.transposed()).compute(&mut e, Update::Overwrite);
        let d_h = self.scaled(&e);
        Backward { operands: self, h, d_y, e, d_h }
    }

    fn adapter_input(&self) -> Matrix<'a> {
        self.adapter_input.unwrap_or(self.x)
    }

    /// `h * scale s`.
    fn scaled(&self, h: &[f32]) -> Vec<f32> {
        let mut scaled = h.to_vec();
        wide(
            #[inline(always)]
            || {
                scale(&mut scaled, self.scale);
                if let Some(s) = self.s {
                    for row in scaled.chunks_exact_mut(s.len()) {
                        row.iter_mut().zip(s).for_each(|(h, s)| *h *= s);
                    }
                }
            },
        );
        scaled
    }
}

/// The backward pass. Each function computes one gradient, in the shape of its operand and row-major.
#[derive(Debug)]
pub struct Backward<'a> {
    operands: FactoredLinear<'a>,
    h: &'a [f32],
    d_y: Matrix<'a>,
    /// `dY B^T`, `[rows, rank]`.
    e: Vec<f32>,
    /// `e * t`, `[rows, rank]`.
    d_h: Vec<f32>,
}

impl Backward<'_> {
    /// The gradient of the input of the weight; if there is no adapter input, it includes the gradient through the factors.
    pub fn x(&self) -> Vec<f32> {
        let mut list = vec![Summand::of_weight(self.d_y, self.operands.weight.transposed())];
        if self.operands.adapter_input.is_none() {
            list.push(Summand::of_factor(self.d_h(), self.operands.a.transposed()));
        }
        sum(list)
    }

    /// The gradient of the weight.
    pub fn weight(&self) -> Vec<f32> {
        product(self.operands.x.transposed(), self.d_y)
    }

    /// The gradient of the bias.
    pub fn bias(&self) -> Vec<f32> {
        let ones = vec![1.0; self.d_y.rows()];
        product(Matrix::new(&ones, 1, ones.len()), self.d_y)
    }

    /// The gradient of the input of the factors.
    pub fn adapter_input(&self) -> Vec<f32> {
        product(self.d_h(), self.operands.a.transposed())
    }

    /// The gradient of the first factor.
    pub fn a(&self) -> Vec<f32> {
        product(self.operands.adapter_input().transposed(), self.d_h())
    }

    /// The gradient of the scales of the rank dimensions.
    pub fn s(&self) -> Vec<f32> {
        let rank = self.operands.a.columns();
        let factor = self.operands.scale;
        let mut ds = vec![0.0; rank];
        wide(
            #[inline(always)]
            || {
                for (e, h) in self.e.chunks_exact(rank).zip(self.h.chunks_exact(rank)) {
                    for ((ds, e), h) in ds.iter_mut().zip(e).zip(h) {
                        *ds += e * h * factor;
                    }
                }
            },
        );
        ds
    }

    /// The gradient of the second factor.
    pub fn b(&self) -> Vec<f32> {
        let scaled = self.operands.scaled(self.h);
        let (rows, rank) = (self.operands.x.rows(), self.operands.a.columns());
        product(Matrix::new(&scaled, rows, rank).transposed(), self.d_y)
    }

    fn d_h(&self) -> Matrix<'_> {
        Matrix::new(&self.d_h, self.operands.x.rows(), self.operands.a.columns())
    }
}

/// The sum of at least one product.
fn sum(list: Vec<Summand<'_>>) -> Vec<f32> {
    let rows = list[0].rows();
    sums(rows, &[list]).into_iter().next().unwrap_or_default()
}

fn product(lhs: Matrix<'_>, rhs: Matrix<'_>) -> Vec<f32> {
    let mut out = vec![0.0; lhs.rows() * rhs.columns()];
    Product::new(lhs, rhs).compute(&mut out, Update::Overwrite);
    out
}
