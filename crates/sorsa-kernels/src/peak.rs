//! What the processor does at best, measured in registers and from memory: what the kernels' speed is compared with.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::simd::{dot, wide};

/// Time that a measurement takes.
const TIME: Duration = Duration::from_millis(40);
/// Numbers that the bandwidth is measured by; more than any cache holds.
const NUMBERS: usize = 48 << 20;

/// The most operations of one kind that a thread does in a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// The instructions, in words.
    pub name: &'static str,
    /// 10^9 floating point operations a second; a fused multiplication and addition is two, and `vdpbf16ps` does four in each lane.
    pub gflops: f64,
}

/// Measures every unit that this processor has, on one thread.
pub fn peaks() -> Vec<Peak> {
    #[cfg(target_arch = "x86_64")]
    {
        x86::peaks()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Vec::new()
    }
}

/// Bytes that one thread, and all threads together, read from memory in a second, in 10^9.
pub fn read_bandwidth() -> [f64; 2] {
    let numbers = vec![1.0f32; NUMBERS];
    let sum = |part: &[f32]| {
        wide(
            #[inline(always)]
            || part.chunks(1 << 14).map(|part| dot(part, part)).sum::<f32>(),
        )
    };
    let bytes = size_of_val(&numbers[..]) as f64;
    let best = |read: &dyn Fn() -> f32| {
        let seconds = (0..3).map(|_| {
            let start = Instant::now();
            std::hint::black_box(read());
            start.elapsed().as_secs_f64()
        });
        bytes / seconds.fold(f64::INFINITY, f64::min) * 1e-9
    };
    [best(&|| sum(&numbers)), best(&|| numbers.par_chunks(1 << 20).map(sum).sum())]
}

/// How many times as fast as f32 numbers the processor multiplies bf16 numbers, by units of 512 bits, of which both must be there.
#[cfg(target_arch = "x86_64")]
pub(crate) fn bf16_by_f32() -> f64 {
    x86::bf16_by_f32()
}

/// Operations a second of a function that does `operations`, in 10^9: the best of several turns.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "there are no kernels of the architecture"))]
fn gflops(operations: f64, turn: impl Fn() -> f32) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed() < TIME {
        let start = Instant::now();
        std::hint::black_box(turn());
        best = best.min(start.elapsed().as_secs_f64());
    }
    operations / best * 1e-9
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::time::Instant;

    use super::{Peak, gflops};
    use crate::instructions::Instructions;

    /// Rounds of one turn.
    const ROUNDS: usize = 20_000;

    pub fn peaks() -> Vec<Peak> {
        let mut peaks = Vec::new();
        let mut add =
            |instructions: Instructions, name, lanes: usize, operations: f64, turn: unsafe fn(usize) -> f32| {
                if instructions.is_available() {
                    let all = (SUMS * lanes * ROUNDS) as f64 * operations;
                    // SAFETY: the processor has the instructions.
                    #[allow(unsafe_code, reason = "functions compiled for instructions that the processor has")]
                    let turn = || unsafe { turn(std::hint::black_box(ROUNDS)) };
                    peaks.push(Peak { name, gflops: gflops(all, turn) });
                }
            };
        add(Instructions::Avx2, "f32 FMA, 256 bits", 8, 2.0, fma_256);
        add(Instructions::Avx512, "f32 FMA, 512 bits", 16, 2.0, fma_512);
        add(Instructions::Avx512Bf16, "vdpbf16ps, 512 bits", 16, 4.0, dp_512);
        peaks
    }

    /// See [`super::bf16_by_f32`].
    pub fn bf16_by_f32() -> f64 {
        const ROUNDS: usize = 400;
        const TURNS: usize = 24;
        assert!(Instructions::Avx512Bf16.is_available(), "the processor lacks the instructions");
        let seconds = |turn: unsafe fn(usize) -> f32| {
            let start = Instant::now();
            // SAFETY: the processor has the instructions.
            #[allow(unsafe_code, reason = "functions compiled for instructions that the processor has")]
            std::hint::black_box(unsafe { turn(std::hint::black_box(ROUNDS)) });
            start.elapsed().as_secs_f64()
        };
        // In turn, so that both meet the same load; the best of each.
        let mut best = [f64::INFINITY; 2];
        for _ in 0..TURNS {
            best = [best[0].min(seconds(fma_512)), best[1].min(seconds(dp_512))];
        }
        // An instruction for bf16 does twice the operations of one for f32.
        2.0 * best[0] / best[1]
    }

    /// Sums that do not wait for each other.
    const SUMS: usize = 12;

    #[target_feature(enable = "avx2,fma")]
    fn fma_256(rounds: usize) -> f32 {
        let (a, b) = (_mm256_set1_ps(0.5), _mm256_set1_ps(0.25));
        let mut sums = [_mm256_set1_ps(0.0); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        _mm256_cvtss_f32(sums.into_iter().reduce(|sum, other| _mm256_add_ps(sum, other)).unwrap_or(a))
    }

    #[target_feature(enable = "avx512f")]
    fn fma_512(rounds: usize) -> f32 {
        let (a, b) = (_mm512_set1_ps(0.5), _mm512_set1_ps(0.25));
        let mut sums = [_mm512_set1_ps(0.0); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        _mm512_cvtss_f32(sums.into_iter().reduce(|sum, other| _mm512_add_ps(sum, other)).unwrap_or(a))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn dp_512(rounds: usize) -> f32 {
        let a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5), _mm512_set1_ps(0.25));
        let mut sums = [_mm512_set1_ps(0.0); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, a);
            }
        }
        _mm512_cvtss_f32(sums.into_iter().reduce(|sum, other| _mm512_add_ps(sum, other)).unwrap_or(sums[0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_units_are_not_slower_and_memory_is_read() {
        let peaks = peaks();
        assert!(peaks.iter().all(|peak| peak.gflops > 0.1), "{peaks:?}");
        assert!(read_bandwidth().into_iter().all(|bandwidth| bandwidth > 0.01));
    }
}
