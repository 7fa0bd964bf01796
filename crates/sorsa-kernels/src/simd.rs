//! Loops compiled for AVX-512, for AVX2 and for the portable baseline; the processor decides at run time. On Arm the baseline
//! has NEON.

use pulp::Arch;

use crate::instructions::Instructions;

/// Runs a closure with the widest vector instructions that the kernels use. Mark the closure `#[inline(always)]`: the
/// compiler uses the baseline's instructions for whatever it does not inline.
pub(crate) fn wide<R>(body: impl FnOnce() -> R) -> R {
    arch().dispatch(body)
}

fn arch() -> Arch {
    match Instructions::used() {
        Instructions::Portable if cfg!(target_arch = "x86_64") => Arch::Scalar,
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => pulp::x86::V3::try_new().map_or_else(Arch::new, Arch::V3),
        _ => Arch::new(),
    }
}

const LANES: usize = 16;

/// `e^x`, relative error below 2e-7 if the result is a normal number. Otherwise the result is the smallest or the largest normal
/// number, never 0 or infinite. NaN stays NaN.
///
/// `x = n ln 2 + r`: the polynomial of Cephes' `expf` gives `e^r`, and `n` goes into the exponent's bits. The function has
/// no branch and no call, so the compiler turns a loop over it into vector instructions.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const ROUND_TO_INTEGER: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has few bits, so that its product with n is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.7 { 88.7 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND_TO_INTEGER;
    let n = shifted - ROUND_TO_INTEGER;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// The largest element, ignoring NaN; minus infinity of an empty slice.
pub(crate) fn largest(values: &[f32]) -> f32 {
    wide(
        #[inline(always)]
        || {
            let mut lanes = [f32::NEG_INFINITY; LANES];
            let chunks = values.chunks_exact(LANES);
            let rest = chunks.remainder();
            for chunk in chunks {
                for (lane, value) in lanes.iter_mut().zip(chunk) {
                    *lane = if *value > *lane { *value } else { *lane };
                }
            }
            lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max)
        },
    )
}

/// Replaces each value by `e^(value - offset)`; returns the sum of the results.
pub(crate) fn exp_in_place(values: &mut [f32], offset: f32) -> f32 {
    wide(
        #[inline(always)]
        || {
            let mut lanes = [0.0; LANES];
            let mut chunks = values.chunks_exact_mut(LANES);
            for chunk in &mut chunks {
                for (lane, value) in lanes.iter_mut().zip(chunk) {
                    *value = exp(*value - offset);
                    *lane += *value;
                }
            }
            let mut sum: f32 = lanes.into_iter().sum();
            for value in chunks.into_remainder() {
                *value = exp(*value - offset);
                sum += *value;
            }
            sum
        },
    )
}

/// The sum of `e^(value - offset)`.
pub(crate) fn exp_sum(values: &[f32], offset: f32) -> f32 {
    wide(
        #[inline(always)]
        || {
            let mut lanes = [0.0; LANES];
            let chunks = values.chunks_exact(LANES);
            let rest = chunks.remainder();
            for chunk in chunks {
                for (lane, value) in lanes.iter_mut().zip(chunk) {
                    *lane += exp(*value - offset);
                }
            }
            lanes.into_iter().chain(rest.iter().map(|value| exp(*value - offset))).sum()
        },
    )
}

/// Inner product.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a.zip(b) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += x * y;
        }
    }
    lanes.into_iter().sum::<f32>() + rest
}

/// `out += factor * x`.
#[inline(always)]
pub(crate) fn add_scaled(out: &mut [f32], x: &[f32], factor: f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += factor * x;
    }
}

/// `out *= factor`.
#[inline(always)]
pub(crate) fn scale(out: &mut [f32], factor: f32) {
    for out in out {
        *out *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_two_units_in_the_last_place() {
        let mut values: Vec<f32> = (-873_000..887_000).map(|i| i as f32 * 1e-4).collect();
        values.extend([0.0, -0.0, f32::MIN_POSITIVE, 1e-10]);
        let exact: Vec<f64> = values.iter().map(|x| f64::from(*x).exp()).collect();
        exp_in_place(&mut values, 0.0);
        let worst = values.iter().zip(&exact).map(|(y, e)| (f64::from(*y) - e).abs() / e).fold(0.0, f64::max);
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
    }

    #[test]
    fn exp_saturates_and_keeps_nan() {
        assert!(exp(-1e30) < 1.3e-38 && exp(-1e30) >= 0.0);
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38);
        assert!(exp(1e30) > 3e38 && exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_equal_their_definitions_at_any_length() {
        for length in [0, 1, 15, 16, 17, 100] {
            let values: Vec<f32> = (0..length).map(|i| ((i * 37 % 23) as f32 - 11.0) / 4.0).collect();
            assert_eq!(largest(&values), values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let sum: f64 = values.iter().map(|x| f64::from(*x - 0.5).exp()).sum();
            assert!((f64::from(exp_sum(&values, 0.5)) - sum).abs() <= 1e-5 * sum);
            let square: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
            assert!((f64::from(dot(&values, &values)) - square).abs() <= 1e-5 * square);
        }
    }
}
