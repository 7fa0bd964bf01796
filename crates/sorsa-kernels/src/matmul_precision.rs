//! The precision of products of f32 matrices, by PyTorch's words (`torch.set_float32_matmul_precision`).

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

use crate::instructions::Instructions;
use crate::matrix::Matrix;
use crate::product::{Product, Update};

/// The precision of the products of linear maps and of the output head with weights in f32, forward and backward. Norms, attention, the
/// factors of an adapter and products of few rows stay f32. Weights in other formats have a precision of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatmulPrecision {
    /// f32.
    #[default]
    Highest,
    /// At least three products of bf16 parts for each product of f32 numbers, `hi hi + hi lo + lo hi`. Computed in f32 by every set of
    /// [`Instructions`]: AVX-512 BF16 multiplies bf16 numbers at most twice as fast, so that three products would be slower.
    High,
    /// Operands rounded to bf16 and sums in f32, by AVX-512 BF16; f32 by other sets of instructions.
    Medium,
}

/// A name that is no precision's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown precision `{name}`, expected highest, high or medium")]
pub struct UnknownMatmulPrecision {
    /// The name.
    pub name: String,
}

/// The precision that [`MatmulPrecision::choose`] chose, as its index.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

impl MatmulPrecision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Highest, Self::High, Self::Medium];

    /// The name in recipes and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Self::Highest => "highest",
            Self::High => "high",
            Self::Medium => "medium",
        }
    }

    /// Makes the kernels of this process compute products in this precision.
    pub fn choose(self) {
        CHOSEN.store(self as u8, Ordering::Relaxed);
    }

    /// The precision of this process; the highest if nobody chose.
    #[inline]
    pub fn used() -> Self {
        Self::ALL[usize::from(CHOSEN.load(Ordering::Relaxed))]
    }

    /// What the kernels of this process compute products of this precision in.
    pub fn arithmetic(self) -> Arithmetic {
        match self {
            Self::Medium if Instructions::used() >= Instructions::Avx512Bf16 => Arithmetic::Bf16,
            _ => Arithmetic::F32,
        }
    }

    /// The error of a small product, measured against f64: the root of the sum of squared differences by that of the squared product.
    pub fn measured_error(self) -> f64 {
        const ROWS: usize = 48;
        const K: usize = 256;
        const COLUMNS: usize = 64;
        // A linear congruential generator: numbers between -1 and 1 without a pattern.
        let mut state = 1u32;
        let mut values = |count: usize| -> Vec<f32> {
            let next = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..count).map(next).collect()
        };
        let (x, w) = (values(ROWS * K), values(K * COLUMNS));
        let mut found = vec![0.0; ROWS * COLUMNS];
        let product = Product::new(Matrix::new(&x, ROWS, K), Matrix::new(&w, K, COLUMNS));
        product.at_precision(self).compute(&mut found, Update::Overwrite);
        let [mut difference, mut size] = [0.0; 2];
        for (index, found) in found.into_iter().enumerate() {
            let (row, column) = (index / COLUMNS, index % COLUMNS);
            let exact: f64 = (0..K).map(|i| f64::from(x[row * K + i]) * f64::from(w[i * COLUMNS + column])).sum();
            difference += (f64::from(found) - exact).powi(2);
            size += exact.powi(2);
        }
        (difference / size).sqrt()
    }
}

/// What products are computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// f32.
    F32,
    /// Operands in bf16, sums in f32.
    Bf16,
}

impl Arithmetic {
    /// The name of the operands' numbers.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl fmt::Display for MatmulPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for MatmulPrecision {
    type Err = UnknownMatmulPrecision;

    fn from_str(name: &str) -> Result<Self, UnknownMatmulPrecision> {
        let unknown = || UnknownMatmulPrecision { name: name.to_owned() };
        Self::ALL.into_iter().find(|precision| precision.name() == name).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_is_written_and_read_by_its_name() {
        for precision in MatmulPrecision::ALL {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
        let error = "low".parse::<MatmulPrecision>().unwrap_err().to_string();
        assert_eq!(error, "unknown precision `low`, expected highest, high or medium");
    }

    #[test]
    fn the_measured_error_is_that_of_the_arithmetic() {
        for precision in MatmulPrecision::ALL {
            let error = precision.measured_error();
            let bounds = match precision.arithmetic() {
                Arithmetic::F32 => 1e-9..1e-6,
                // The rounding of two operands to 8 bits, on average.
                Arithmetic::Bf16 => 5e-4..4e-3,
            };
            assert!(bounds.contains(&error), "{precision}: {error:e}");
        }
    }
}
