//! The gated unit `y = f(gate) up` in one pass forward and one backward, from operands in f32 or bf16.

use rayon::prelude::*;

use crate::rounding::FloatSlice;
use crate::simd::{exp, wide};

/// Elements of one task.
const ELEMENTS: usize = 16_384;
/// Elements that a task widens to f32 at a time.
const BLOCK: usize = 1024;

/// The function of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// GELU in its approximation by tanh.
    GeluTanh,
}

/// `f(gate) up`.
///
/// # Shapes
///
/// - `gate`, `up`, output: the same number of elements
///
/// # Panics
///
/// Panics if `gate` and `up` differ in length.
pub fn forward(gate: FloatSlice<'_>, up: FloatSlice<'_>, activation: Activation) -> Vec<f32> {
    assert_eq!(gate.len(), up.len(), "a gate of the shape of its operand");
    let mut y = vec![0.0; gate.len()];
    y.par_chunks_mut(ELEMENTS).enumerate().for_each(|(task, y)| {
        wide(
            #[inline(always)]
            || {
                let (mut g_block, mut u_block) = ([0.0; BLOCK], [0.0; BLOCK]);
                for (y, at) in y.chunks_mut(BLOCK).zip((task * ELEMENTS..).step_by(BLOCK)) {
                    let (g, u) = (gate.read(at, y.len(), &mut g_block), up.read(at, y.len(), &mut u_block));
                    match activation {
                        Activation::Silu => map(y, g, u, silu),
                        Activation::GeluTanh => map(y, g, u, gelu),
                    }
                }
            },
        );
    });
    y
}

/// The gradients of the operands.
#[derive(Debug)]
pub struct Gradients {
    /// The gradient of the gate.
    pub gate: Vec<f32>,
    /// The gradient of `up`, in the memory of the output's gradient.
    pub up: Vec<f32>,
}

/// The gradients for the gradient `d_y` of the output, whose memory becomes a result.
///
/// # Shapes
///
/// - `gate`, `up`, `d_y`: the same number of elements
///
/// # Panics
///
/// Panics if the operands differ in length.
pub fn backward(gate: FloatSlice<'_>, up: FloatSlice<'_>, mut d_y: Vec<f32>, activation: Activation) -> Gradients {
    assert!(gate.len() == up.len() && up.len() == d_y.len(), "operands of one shape");
    let mut d_gate = vec![0.0; gate.len()];
    let outputs = d_gate.par_chunks_mut(ELEMENTS).zip(d_y.par_chunks_mut(ELEMENTS));
    outputs.enumerate().for_each(|(task, (d_gate, dy))| {
        wide(
            #[inline(always)]
            || {
                let blocks = d_gate.chunks_mut(BLOCK).zip(dy.chunks_mut(BLOCK));
                let (mut g_block, mut u_block) = ([0.0; BLOCK], [0.0; BLOCK]);
                for ((d_gate, dy), at) in blocks.zip((task * ELEMENTS..).step_by(BLOCK)) {
                    let (g, u) = (gate.read(at, dy.len(), &mut g_block), up.read(at, dy.len(), &mut u_block));
                    match activation {
                        Activation::Silu => map_back(d_gate, dy, g, u, silu),
                        Activation::GeluTanh => map_back(d_gate, dy, g, u, gelu),
                    }
                }
            },
        );
    });
    Gradients { gate: d_gate, up: d_y }
}

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
    // For large |x| the sigmoid is 0 or 1 to the last bit, or its product with x^2 is below any normal number.
    (x * sigmoid, sigmoid + x * sigmoid * (1.0 - sigmoid) * inner)
}

#[inline(always)]
fn map(y: &mut [f32], gate: &[f32], up: &[f32], f: impl Fn(f32) -> (f32, f32)) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = f(*gate).0 * up;
    }
}

/// Writes the gradient of the gate to `d_gate` and replaces `dy` by the gradient of `up`.
#[inline(always)]
fn map_back(d_gate: &mut [f32], dy: &mut [f32], gate: &[f32], up: &[f32], f: impl Fn(f32) -> (f32, f32)) {
    for (((d_gate, dy), gate), up) in d_gate.iter_mut().zip(dy).zip(gate).zip(up) {
        let (value, slope) = f(*gate);
        *d_gate = *dy * up * slope;
        *dy *= value;
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
