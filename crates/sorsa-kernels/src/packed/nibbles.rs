//! Values of 4-bit codes without AVX-512: a table of the values of all 16 codes is looked up, eight codes at a time if the processor has AVX2.

#[cfg(target_arch = "x86_64")]
use pulp::x86::V3;

/// Which half of a byte holds the first of its two codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstCode {
    Lower,
    Upper,
}

impl FirstCode {
    /// How far to the right the first and the second code are shifted.
    fn shifts(self) -> [u32; 2] {
        match self {
            Self::Lower => [0, 4],
            Self::Upper => [4, 0],
        }
    }
}

/// The values `table[code]` of the codes from number `first` on.
///
/// # Panics
///
/// Panics if `codes` end before the last value.
pub(super) fn look_up(table: &[f32; 16], codes: &[u8], first_code: FirstCode, first: usize, values: &mut [f32]) {
    let value = |byte: u8, place: usize| table[usize::from(byte >> first_code.shifts()[place] & 15)];
    let (odd, values) = values.split_at_mut(values.len().min(first % 2));
    for out in &mut *odd {
        *out = value(codes[first / 2], 1);
    }
    let codes = &codes[(first + odd.len()) / 2..][..values.len().div_ceil(2)];
    let done = look_up_eights(table, codes, first_code, values);
    let (pairs, last) = values[done..].as_chunks_mut::<2>();
    let codes = &codes[done / 2..];
    for (pair, byte) in pairs.iter_mut().zip(codes) {
        *pair = [value(*byte, 0), value(*byte, 1)];
    }
    if let [out] = last {
        *out = value(codes[pairs.len()], 0);
    }
}

/// Looks up the first values, in whole eights; returns their number. The first code of each byte is the first of two.
#[cfg(target_arch = "x86_64")]
fn look_up_eights(table: &[f32; 16], codes: &[u8], first_code: FirstCode, values: &mut [f32]) -> usize {
    let Some(simd) = V3::try_new() else { return 0 };
    let [even, odd] = first_code.shifts().map(u32::cast_signed);
    let eights = values.as_chunks_mut::<8>().0;
    let done = 8 * eights.len();
    simd.vectorize(
        #[inline(always)]
        || {
            let (lower, upper) = table.split_at(8);
            let half = |half: &[f32]| pulp::cast(<[f32; 8]>::try_from(half).expect("half of a table"));
            let (lower, upper) = (half(lower), half(upper));
            let shifts: [i32; 8] = std::array::from_fn(|i| 8 * (i as i32 / 2) + if i % 2 == 0 { even } else { odd });
            let shifts = pulp::cast(shifts);
            for (out, bytes) in eights.iter_mut().zip(codes.as_chunks::<4>().0) {
                let all = simd.avx._mm256_set1_epi32(i32::from_le_bytes(*bytes));
                let codes = simd.avx2._mm256_srlv_epi32(all, shifts);
                // A lookup takes the lower three bits of a code; the fourth, as a sign, chooses the table.
                let high = pulp::cast(simd.avx2._mm256_slli_epi32::<28>(codes));
                let low = simd.avx2._mm256_permutevar8x32_ps(lower, codes);
                *out =
                    pulp::cast(simd.avx._mm256_blendv_ps(low, simd.avx2._mm256_permutevar8x32_ps(upper, codes), high));
            }
        },
    );
    done
}

/// Nothing is looked up in eights.
#[cfg(not(target_arch = "x86_64"))]
fn look_up_eights(_: &[f32; 16], _: &[u8], _: FirstCode, _: &mut [f32]) -> usize {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_of_codes_has_the_values_of_the_table() {
        let table: [f32; 16] = std::array::from_fn(|code| code as f32 * 1.5 - 7.0);
        let codes: Vec<u8> = (0..40u32).map(|i| (i * 73 % 251) as u8).collect();
        for first_code in [FirstCode::Lower, FirstCode::Upper] {
            for (first, count) in [(0, 0), (0, 80), (1, 79), (1, 1), (3, 2), (7, 30), (8, 16), (5, 9), (78, 2), (79, 1)]
            {
                let mut values = vec![0.0; count];
                look_up(&table, &codes, first_code, first, &mut values);
                let code = |index: usize| {
                    let byte = codes[index / 2];
                    let is_lower = index.is_multiple_of(2) == (first_code == FirstCode::Lower);
                    usize::from(if is_lower { byte & 15 } else { byte >> 4 })
                };
                let expected: Vec<f32> = (first..first + count).map(|index| table[code(index)]).collect();
                assert_eq!(values, expected, "{first_code:?} {first} {count}");
            }
        }
    }
}
