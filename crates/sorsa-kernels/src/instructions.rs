//! Which of the processor's instructions the kernels use: the best that it has, or fewer, to measure and to test.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// A set of instructions. Each one includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Instructions {
    /// Loops of the baseline, and products of the crate `gemm`, which picks its instructions itself.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F and BW. Weights in bf16 are widened to f32, and activations are not rounded.
    Avx512,
    /// AVX-512 BF16 too. Activations are rounded to bf16 beside weights in bf16.
    Avx512Bf16,
}

/// A set of instructions that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstructionsError {
    /// The processor lacks them.
    #[error("this processor has no {asked}; it has {}", list(Instructions::available()))]
    NotAvailable {
        /// The set.
        asked: Instructions,
    },
    /// The name is no set's.
    #[error("unknown instructions `{name}`, expected one of {}", list(Instructions::ALL))]
    Unknown {
        /// The name.
        name: String,
    },
}

fn list(sets: impl IntoIterator<Item = Instructions>) -> String {
    sets.into_iter().map(Instructions::name).collect::<Vec<_>>().join(", ")
}

/// The set that [`Instructions::choose`] chose, as its number and 1; 0 if nobody chose.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

impl Instructions {
    /// All sets.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// The name in arguments and variables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
        }
    }

    /// Whether this processor has them.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Portable => true,
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Avx512 => {
                Self::Avx2.is_available() && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
            }
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// The sets that this processor has.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|set| set.is_available())
    }

    /// The fastest set of this processor. AMD's processors with AVX-512 BF16 multiply bf16 numbers twice as fast as f32 numbers; Intel's are slower
    /// at it than at f32 (measured on Granite Rapids: 112 GFLOP/s by `vdpbf16ps`, 160 by FMA). So the two are measured once a process, in a
    /// fraction of a millisecond. A run records the set that it used, and a resumed run takes the same.
    pub fn preferred() -> Self {
        static PREFERRED: OnceLock<Instructions> = OnceLock::new();
        *PREFERRED.get_or_init(|| match Self::available().last() {
            Some(Self::Avx512Bf16) if !multiplies_bf16_fast() => Self::Avx512,
            Some(best) => best,
            None => Self::Portable,
        })
    }

    /// Makes the kernels of this process use this set and no more. Call it before the first product: results of one run then come from one
    /// set.
    ///
    /// # Errors
    ///
    /// [`InstructionsError::NotAvailable`].
    pub fn choose(self) -> Result<(), InstructionsError> {
        if !self.is_available() {
            return Err(InstructionsError::NotAvailable { asked: self });
        }
        CHOSEN.store(self as u8 + 1, Ordering::Relaxed);
        Ok(())
    }

    /// The set that [`choose`](Self::choose) chose; `None` if nobody chose.
    #[inline]
    pub fn chosen() -> Option<Self> {
        match CHOSEN.load(Ordering::Relaxed) {
            0 => None,
            number => Some(Self::ALL[usize::from(number) - 1]),
        }
    }

    /// The set that kernels use.
    #[inline]
    pub fn used() -> Self {
        match Self::chosen() {
            Some(chosen) => chosen,
            None => Self::preferred(),
        }
    }
}

/// Whether `vdpbf16ps` is faster than widening to f32, as measured.
fn multiplies_bf16_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        crate::peak::bf16_by_f32() > 1.2
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Instructions {
    type Err = InstructionsError;

    fn from_str(name: &str) -> Result<Self, InstructionsError> {
        let unknown = || InstructionsError::Unknown { name: name.to_owned() };
        Self::ALL.into_iter().find(|set| set.name() == name).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_written_and_read_by_its_name() {
        for set in Instructions::ALL {
            assert_eq!(set.to_string().parse(), Ok(set));
        }
        let error = "avx3".parse::<Instructions>().unwrap_err().to_string();
        assert_eq!(error, "unknown instructions `avx3`, expected one of portable, avx2, avx512, avx512-bf16");
    }

    #[test]
    fn the_preferred_set_is_available_and_used_if_nobody_chooses() {
        assert!(Instructions::preferred().is_available());
        assert_eq!(Instructions::used(), Instructions::preferred());
        assert!(Instructions::available().any(|set| set == Instructions::Portable));
    }
}
