//! `y = f(gate) up` in one pass forward and one backward; nothing but the inputs is kept, in f32 or bf16, not even for the
//! map that follows.

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use rayon::prelude::*;

use super::again::{self, Again};
use super::rounded::{self, Numbers};
use super::simd::{exp, wide};
use super::storage::{Tracked, Values, contiguous, into_vec, shape, tensor};
use crate::gated::Activation;

/// Elements of one task.
const ELEMENTS: usize = 16_384;
/// Elements of which a task holds f32 copies.
const BLOCK: usize = 1024;

/// `f(x)` and `f'(x)`.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let sigmoid = 1.0 / (1.0 + exp(-x));
    (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
}

/// `f(x)` and `f'(x)` of `x (1 + tanh(c (x + 0.044715 x^3))) / 2`, `c = sqrt(2 / pi)`.
#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    const C: f32 = 0.797_884_6;
    const CUBE: f32 = 0.044_715;
    // (1 + tanh(z)) / 2 is the sigmoid of 2 z.
    let sigmoid = 1.0 / (1.0 + exp(-2.0 * C * (x + CUBE * x * x * x)));
    let inner = 2.0 * C * (1.0 + 3.0 * CUBE * x * x);
    // Far out the sigmoid is 0 or 1 to the last bit, or its product with x^2 below any normal number.
    (x * sigmoid, sigmoid + x * sigmoid * (1.0 - sigmoid) * inner)
}

#[inline(always)]
fn map(y: &mut [f32], gate: &[f32], up: &[f32], f: impl Fn(f32) -> (f32, f32)) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = f(*gate).0 * up;
    }
}

/// Leaves `d up` in `dy`.
#[inline(always)]
fn map_back(d_gate: &mut [f32], dy: &mut [f32], gate: &[f32], up: &[f32], f: impl Fn(f32) -> (f32, f32)) {
    for (((d_gate, dy), gate), up) in d_gate.iter_mut().zip(dy).zip(gate).zip(up) {
        let (value, slope) = f(*gate);
        *d_gate = *dy * up * slope;
        *dy *= value;
    }
}

pub(super) fn forward(gate: Values, up: Values, activation: Activation) -> Values {
    let (gate, up) = (contiguous(gate), contiguous(up));
    let (g, u) = (Numbers::of(&gate), Numbers::of(&up));
    let mut y = vec![0.0; g.len()];
    y.par_chunks_mut(ELEMENTS).enumerate().for_each(|(task, y)| {
        wide(
            #[inline(always)]
            || {
                let (mut g_block, mut u_block) = ([0.0; BLOCK], [0.0; BLOCK]);
                for (y, at) in y.chunks_mut(BLOCK).zip((task * ELEMENTS..).step_by(BLOCK)) {
                    let (g, u) = (g.read(at, y.len(), &mut g_block), u.read(at, y.len(), &mut u_block));
                    match activation {
                        Activation::Silu => map(y, g, u, silu),
                        Activation::GeluTanh => map(y, g, u, gelu),
                    }
                }
            },
        );
    });
    tensor(y, shape(&gate))
}

#[derive(Debug)]
struct Gated;

impl Backward<Flex, 2> for Gated {
    type State = (Values, Values, Activation);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let mut d_up = into_vec(gradients.consume::<Flex>(&ops.node));
        let (gate, up, activation) = ops.state;
        let (gate, up) = (contiguous(gate), contiguous(up));
        let (g, u) = (Numbers::of(&gate), Numbers::of(&up));
        let mut d_gate = vec![0.0; g.len()];
        let outputs = d_gate.par_chunks_mut(ELEMENTS).zip(d_up.par_chunks_mut(ELEMENTS));
        outputs.enumerate().for_each(|(task, (d_gate, dy))| {
            wide(
                #[inline(always)]
                || {
                    let blocks = d_gate.chunks_mut(BLOCK).zip(dy.chunks_mut(BLOCK));
                    let (mut g_block, mut u_block) = ([0.0; BLOCK], [0.0; BLOCK]);
                    for ((d_gate, dy), at) in blocks.zip((task * ELEMENTS..).step_by(BLOCK)) {
                        let (g, u) = (g.read(at, dy.len(), &mut g_block), u.read(at, dy.len(), &mut u_block));
                        match activation {
                            Activation::Silu => map_back(d_gate, dy, g, u, silu),
                            Activation::GeluTanh => map_back(d_gate, dy, g, u, gelu),
                        }
                    }
                },
            );
        });
        let [gate_node, up_node] = ops.parents;
        if let Some(node) = gate_node {
            gradients.register::<Flex>(node.id, tensor(d_gate, shape(&gate)));
        }
        if let Some(node) = up_node {
            gradients.register::<Flex>(node.id, tensor(d_up, shape(&gate)));
        }
    }
}

impl Again for Activation {
    fn forward(&self, gate: Values, up: Values) -> Values {
        forward(gate, up, *self)
    }
}

pub(super) fn tracked(gate: Tracked, up: Tracked, activation: Activation, rounded: bool) -> Tracked {
    let y = forward(gate.primitive().clone(), up.primitive().clone(), activation);
    let kept = if rounded { [gate, up].map(rounded::tracked) } else { [gate, up] };
    match again::prepare(Gated, kept.each_ref(), activation) {
        OpsKind::Tracked(prepared) => {
            let [gate, up] = kept.map(|t| t.into_primitive());
            prepared.finish((gate, up, activation), y)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_and_slopes_equal_their_formulas_in_f64() {
        for i in -400..=400 {
            let x = f64::from(i) * 0.25;
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            let gelu_exact =
                |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
            let silu_exact = |x: f64| x * sigmoid(x);
            let slope = |f: &dyn Fn(f64) -> f64| (f(x + 1e-5) - f(x - 1e-5)) / 2e-5;
            let near = |a: f32, b: f64| (f64::from(a) - b).abs() <= 1e-6 * (1.0 + b.abs());
            let (value, derivative) = silu(x as f32);
            assert!(near(value, silu_exact(x)) && near(derivative, slope(&silu_exact)), "silu at {x}");
            let (value, derivative) = gelu(x as f32);
            assert!(near(value, gelu_exact(x)) && near(derivative, slope(&gelu_exact)), "gelu at {x}");
        }
    }
}
