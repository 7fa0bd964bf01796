//! The check of a device: every operation beside its plain form in f64, forward and back, and its speed. [`operations`] is the one list
//! of what is checked; it takes any device.
//!
//! ```
//! use burn::prelude::Device;
//! use sorsa_ops::check::{Timing, check};
//!
//! let checked = check(&Device::flex(), Timing::None);
//! assert!(checked.iter().all(|operation| operation.passes()));
//! ```

mod cases;
mod reference;

use std::time::{Duration, Instant};

use burn::prelude::*;

pub use cases::{Case, operations};

/// Whether speeds are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// Errors alone.
    None,
    /// Each pass runs again and again for this long, at the sizes of a model.
    For(Duration),
}

/// What the check found of one operation.
#[derive(Debug, Clone)]
pub struct CheckedOperation {
    /// The operation and the format of its weight.
    pub name: &'static str,
    /// The sizes at which it was timed.
    pub sizes: String,
    /// The forward pass.
    pub forward: CheckedPass,
    /// The backward pass.
    pub backward: CheckedPass,
}

/// What the check found of one pass.
#[derive(Debug, Clone, Copy)]
pub struct CheckedPass {
    /// The root of the sum of the squared differences from f64, by that of the squared values: of the worst result of the pass.
    pub error: f64,
    /// The largest error that is right.
    pub bound: f64,
    /// 10^9 floating point operations a second, those of the products alone; absent if it was not timed.
    pub gflops: Option<f64>,
}

impl CheckedPass {
    /// Whether the error is within its bound. An error that is NaN is not.
    pub fn passes(&self) -> bool {
        self.error <= self.bound
    }
}

impl CheckedOperation {
    /// Whether both passes are right.
    pub fn passes(&self) -> bool {
        self.forward.passes() && self.backward.passes()
    }
}

/// Checks every operation on a device.
pub fn check(device: &Device, timing: Timing) -> Vec<CheckedOperation> {
    operations().iter().map(|case| checked(case, device, timing)).collect()
}

fn checked(case: &Case, device: &Device, timing: Timing) -> CheckedOperation {
    let exact = case.exact();
    let found = case.run(device, case.small);
    let [forward, backward] = [0..1, 1..exact.len()].map(|results| worst(&found[results.clone()], &exact[results]));
    let [forward_speed, backward_speed] = match timing {
        Timing::None => [None; 2],
        Timing::For(duration) => case.speeds(device, duration).map(Some),
    };
    CheckedOperation {
        name: case.name,
        sizes: case.large.map(|size| size.to_string()).join(" x "),
        forward: CheckedPass { error: forward, bound: case.bound(device), gflops: forward_speed },
        backward: CheckedPass { error: backward, bound: case.bound(device), gflops: backward_speed },
    }
}

/// The largest error of several results.
fn worst(found: &[Vec<f32>], exact: &[Vec<f64>]) -> f64 {
    found.iter().zip(exact).map(distance).fold(0.0, worse)
}

/// The larger of two errors; NaN if one is.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

fn distance((found, exact): (&Vec<f32>, &Vec<f64>)) -> f64 {
    if found.len() != exact.len() {
        return f64::NAN;
    }
    let difference: f64 = found.iter().zip(exact).map(|(found, exact)| (f64::from(*found) - exact).powi(2)).sum();
    let size: f64 = exact.iter().map(|exact| exact.powi(2)).sum();
    (difference / size).sqrt()
}

/// Seconds of one turn: the best of as many as fit into `duration`, after one that is not counted.
fn seconds(duration: Duration, mut turn: impl FnMut()) -> f64 {
    turn();
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed() < duration || best.is_infinite() {
        let start = Instant::now();
        turn();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::form::without_fused;

    #[test]
    fn every_operation_is_right_in_both_forms() {
        let device = Device::flex();
        for checked in [check(&device, Timing::None), without_fused(|| check(&device, Timing::None))] {
            assert_eq!(checked.len(), operations().len());
            for operation in checked {
                assert!(operation.passes(), "{operation:?}");
            }
        }
    }

    #[test]
    fn a_wrong_or_missing_number_fails() {
        let pass = |error| CheckedPass { error, bound: 1e-5, gflops: None };
        assert!(pass(1e-6).passes() && !pass(1e-4).passes() && !pass(f64::NAN).passes());
        assert!(distance((&vec![1.0], &vec![1.0, 2.0])).is_nan());
        assert!(distance((&vec![f32::NAN], &vec![1.0])).is_nan());
        assert!(worse(0.5, worse(f64::NAN, 0.0)).is_nan() && worse(f64::NAN, 0.5).is_nan());
    }
}
