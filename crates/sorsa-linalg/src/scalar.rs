//! The two types of matrix entries.

use faer::traits::RealField;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// `f32` or `f64`.
pub trait Scalar: RealField + Copy + Into<f64> + sealed::Sealed + 'static {
    /// The distance from 1 to the next larger number.
    const EPSILON: f64;
    /// The nearest number of this type.
    fn from_f64(x: f64) -> Self;
}

impl Scalar for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
    fn from_f64(x: f64) -> Self {
        x as f32
    }
}

impl Scalar for f64 {
    const EPSILON: f64 = f64::EPSILON;
    fn from_f64(x: f64) -> Self {
        x
    }
}
