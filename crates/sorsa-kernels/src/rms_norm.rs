//! RMSNorm in one pass forward and one backward; the result is not kept for what follows. With `r = 1 / sqrt(mean(x^2) + eps)` of a row,
//!
//! ```text
//! y = x r w        dx = r (w dy - x r^2 mean(w dy x))        dw = sum over rows of dy x r
//! ```

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use rayon::prelude::*;

use super::again::{self, Again};
use super::simd::{add_scaled, dot, wide};
use super::storage::{Tracked, Values, contiguous, floats, rows_and_width, shape, tensor};

/// Rows of one task. Sums over rows are taken task by task, so they do not depend on the number of threads.
const ROWS: usize = 32;

/// The normalised rows, and `r` of each.
pub(super) fn forward(x: Values, weight: Values, epsilon: f64) -> (Values, Vec<f32>) {
    let (x, weight) = (contiguous(x), contiguous(weight));
    let [rows, width] = rows_and_width(&x);
    let (mut y, mut scales) = (vec![0.0; rows * width], vec![0.0; rows]);
    assert_eq!(floats(&weight).len(), width, "the weight has another width than x");
    if rows * width > 0 {
        let weight = floats(&weight);
        let tasks = y.par_chunks_mut(ROWS * width).zip(scales.par_chunks_mut(ROWS));
        tasks.zip(floats(&x).par_chunks(ROWS * width)).for_each(|((y, scales), x)| {
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
    (tensor(y, shape(&x)), scales)
}

#[derive(Debug)]
struct RmsNorm;

impl Backward<Flex, 2> for RmsNorm {
    /// `x`, `weight`, `r`.
    type State = (Values, Values, Vec<f32>);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(gradients.consume::<Flex>(&ops.node));
        let (x, weight, scales) = ops.state;
        let (x, weight) = (contiguous(x), contiguous(weight));
        let [x_node, weight_node] = ops.parents;
        let [rows, width] = rows_and_width(&x);
        let mut dx = vec![0.0; if x_node.is_some() { rows * width } else { 0 }];
        let mut dw = vec![0.0; width];
        if rows * width > 0 {
            let (x, dy, weight) = (floats(&x), floats(&dy), floats(&weight));
            if x_node.is_some() {
                let tasks = dx.par_chunks_mut(ROWS * width).zip(scales.par_chunks(ROWS));
                let inputs = x.par_chunks(ROWS * width).zip(dy.par_chunks(ROWS * width));
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
            }
            if weight_node.is_some() {
                let inputs = x.par_chunks(ROWS * width).zip(dy.par_chunks(ROWS * width)).zip(scales.par_chunks(ROWS));
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
            }
        }
        if let Some(node) = x_node {
            gradients.register::<Flex>(node.id, tensor(dx, shape(&x)));
        }
        if let Some(node) = weight_node {
            gradients.register::<Flex>(node.id, tensor(dw, [width]));
        }
    }
}

#[derive(Debug)]
struct Normalised {
    epsilon: f64,
}

impl Again for Normalised {
    fn forward(&self, x: Values, weight: Values) -> Values {
        forward(x, weight, self.epsilon).0
    }
}

pub(super) fn tracked(x: Tracked, weight: Tracked, epsilon: f64) -> Tracked {
    let prepared = again::prepare(RmsNorm, [&x, &weight], Normalised { epsilon });
    let (x, weight) = (x.into_primitive(), weight.into_primitive());
    match prepared {
        OpsKind::Tracked(prepared) => {
            let (y, scales) = forward(x.clone(), weight.clone(), epsilon);
            prepared.finish((x, weight, scales), y)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(forward(x, weight, epsilon).0),
    }
}
