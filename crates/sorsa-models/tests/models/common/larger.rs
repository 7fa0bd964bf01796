//! A maximum in which a NaN is not lost, as it would be in `f32::max`.

/// The larger of two numbers; NaN where one is.
pub fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || b <= a { a } else { b }
}
