//! RMSNorm in one pass forward and one backward. With `r = 1 / sqrt(mean(x^2) + eps)` of a row,
//!
//! ```text
//! y = x r w        dx = r (w dy - x r^2 mean(w dy x))        dw = sum over rows of dy x r
//! ```

use rayon::prelude::*;

use crate::simd::{add_scaled, dot, wide};

/// Rows of one task. Sums over rows are taken task by task, so they do not depend on the number of threads.
const ROWS: usize = 32;

/// The result of the forward pass.
#[derive(Debug)]
pub struct Output {
    /// The normalized rows.
    pub y: Vec<f32>,
    /// `r` of each row; the backward pass needs it.
    pub scales: Vec<f32>,
}

/// The forward pass.
///
/// # Shapes
///
/// - `x`, output: `[rows, width]`
/// - `weight`: `[width]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn forward(x: &[f32], [rows, width]: [usize; 2], weight: &[f32], epsilon: f64) -> Output {
    assert_eq!(weight.len(), width, "the weight has another width than x");
    assert_eq!(x.len(), rows * width, "{rows} rows of {width}");
    let (mut y, mut scales) = (vec![0.0; rows * width], vec![0.0; rows]);
    if rows * width > 0 {
        let tasks = y.par_chunks_mut(ROWS * width).zip(scales.par_chunks_mut(ROWS));
        tasks.zip(x.par_chunks(ROWS * width)).for_each(|((y, scales), x)| {
            wide(
                #[inline(always)]
                || {
                    for ((y, x), scale) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(scales) {
                        *scale = (f64::from(dot(x, x)) / width as f64 + epsilon).sqrt().recip() as f32;
                        for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                            *y = x * *scale * weight;
                        }
                    }
                },
            );
        });
    }
    Output { y, scales }
}

/// The operands of the backward pass.
///
/// # Shapes
///
/// - `x`, `d_y`: `[rows, width]`
/// - `weight`: `[width]`
/// - `scales`: `[rows]`
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// The input of the forward pass.
    pub x: &'a [f32],
    /// The weight of the forward pass.
    pub weight: &'a [f32],
    /// `r` of each row, from the forward pass.
    pub scales: &'a [f32],
    /// The gradient of the output.
    pub d_y: &'a [f32],
}

impl Backward<'_> {
    /// The gradient of the input, `[rows, width]`.
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit each other.
    pub fn input(&self) -> Vec<f32> {
        self.check();
        let Self { x, weight, scales, d_y } = *self;
        let width = weight.len();
        let mut dx = vec![0.0; x.len()];
        if x.is_empty() {
            return dx;
        }
        let tasks = dx.par_chunks_mut(ROWS * width).zip(scales.par_chunks(ROWS));
        let inputs = x.par_chunks(ROWS * width).zip(d_y.par_chunks(ROWS * width));
        tasks.zip(inputs).for_each(|((dx, scales), (x, dy))| {
            let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
            wide(
                #[inline(always)]
                || {
                    for ((dx, (x, dy)), scale) in dx.chunks_exact_mut(width).zip(rows).zip(scales) {
                        for ((dx, dy), weight) in dx.iter_mut().zip(dy).zip(weight) {
                            *dx = dy * weight;
                        }
                        let mean = dot(dx, x) / width as f32;
                        let along = scale * scale * mean;
                        for (dx, x) in dx.iter_mut().zip(x) {
                            *dx = scale * (*dx - x * along);
                        }
                    }
                },
            );
        });
        dx
    }

    /// The gradient of the weight, `[width]`.
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit each other.
    pub fn weight(&self) -> Vec<f32> {
        self.check();
        let Self { x, weight, scales, d_y } = *self;
        let width = weight.len();
        let mut dw = vec![0.0; width];
        if x.is_empty() {
            return dw;
        }
        let inputs = x.par_chunks(ROWS * width).zip(d_y.par_chunks(ROWS * width)).zip(scales.par_chunks(ROWS));
        let parts: Vec<Vec<f32>> = inputs
            .map(|((x, dy), scales)| {
                let mut part = vec![0.0; width];
                let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(scales);
                wide(
                    #[inline(always)]
                    || {
                        for ((x, dy), scale) in rows {
                            for ((part, x), dy) in part.iter_mut().zip(x).zip(dy) {
                                *part += dy * x * scale;
                            }
                        }
                    },
                );
                part
            })
            .collect();
        parts.iter().for_each(|part| add_scaled(&mut dw, part, 1.0));
        dw
    }

    fn check(&self) {
        assert_eq!(self.x.len(), self.scales.len() * self.weight.len(), "rows of the width of the weight");
        assert_eq!(self.d_y.len(), self.x.len(), "a gradient of the shape of the output");
    }
}
