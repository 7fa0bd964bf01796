//! ggml's formats of packed numbers, as GGUF files hold them: blocks of a row that share scales.
//!
//! Values are equal to the bit to those of `gguf.quants` (the reference in Python), which names the layouts too: every product and
//! every sum is rounded to f32 in the same order. `tests/golden/ggml_blocks` holds its results.

mod encode;
mod fit;
mod k_quants;
mod single_scale;

use std::fmt;

use crate::simd::wide;

#[cfg(target_arch = "x86_64")]
pub(crate) use k_quants::scale_and_minimum_at;

/// A format of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 32 values `d (q - 8)` of 4 bits.
    Q4_0,
    /// 32 values `d q + m` of 4 bits.
    Q4_1,
    /// 32 values `d (q - 16)` of 5 bits.
    Q5_0,
    /// 32 values `d q + m` of 5 bits.
    Q5_1,
    /// 32 values `d q` of 8 bits.
    Q8_0,
    /// 256 values `d s q - e m` of 4 bits; each 32 have a scale `s` and a minimum `m` of 6 bits.
    Q4K,
    /// 256 values `d s q - e m` of 5 bits; each 32 have a scale `s` and a minimum `m` of 6 bits.
    Q5K,
    /// 256 values `d s (q - 32)` of 6 bits; each 16 have a scale `s` of 8 bits.
    Q6K,
}

impl BlockFormat {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q8_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// The name of the format in ggml, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Values of one block.
    pub const fn block_values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => single_scale::VALUES,
            Self::Q4K | Self::Q5K | Self::Q6K => k_quants::VALUES,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of `values` numbers; `None` if they are not whole blocks or the product overflows.
    pub fn bytes(self, values: usize) -> Option<usize> {
        if values.is_multiple_of(self.block_values()) {
            (values / self.block_values()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }

    /// Widens whole blocks to f32.
    ///
    /// # Panics
    ///
    /// Panics if `bytes` are not the whole blocks of `values`.
    pub fn decode(self, bytes: &[u8], values: &mut [f32]) {
        assert_eq!(Some(bytes.len()), self.bytes(values.len()), "{} values of {self}", values.len());
        match self {
            Self::Q4_0 => each(bytes, values, single_scale::decode_q4_0),
            Self::Q4_1 => each(bytes, values, single_scale::decode_q4_1),
            Self::Q5_0 => each(bytes, values, single_scale::decode_q5_0),
            Self::Q5_1 => each(bytes, values, single_scale::decode_q5_1),
            Self::Q8_0 => each(bytes, values, single_scale::decode_q8_0),
            Self::Q4K => each(bytes, values, k_quants::decode_q4_k),
            Self::Q5K => each(bytes, values, k_quants::decode_q5_k),
            Self::Q6K => each(bytes, values, k_quants::decode_q6_k),
        }
    }

    /// Widens the values of a row of whole blocks from number `first` on.
    ///
    /// # Panics
    ///
    /// Panics if the row ends before the last value.
    pub(crate) fn decode_part(self, row: &[u8], first: usize, values: &mut [f32]) {
        let (block_values, block_bytes) = (self.block_values(), self.block_bytes());
        let mut block = first / block_values;
        let mut rest = values;
        let mut whole = [0.0; 256];
        let whole = &mut whole[..block_values];
        let skipped = first % block_values;
        if skipped > 0 {
            let (part, later) = rest.split_at_mut(rest.len().min(block_values - skipped));
            self.decode(&row[block * block_bytes..][..block_bytes], whole);
            part.copy_from_slice(&whole[skipped..][..part.len()]);
            (block, rest) = (block + 1, later);
        }
        let blocks = rest.len() / block_values;
        let (values, last) = rest.split_at_mut(blocks * block_values);
        self.decode(&row[block * block_bytes..][..blocks * block_bytes], values);
        if !last.is_empty() {
            self.decode(&row[(block + blocks) * block_bytes..][..block_bytes], whole);
            last.copy_from_slice(&whole[..last.len()]);
        }
    }

    /// Packs finite values into whole blocks.
    ///
    /// # Panics
    ///
    /// Panics if `bytes` are not the whole blocks of `values`.
    pub fn encode(self, values: &[f32], bytes: &mut [u8]) {
        assert_eq!(Some(bytes.len()), self.bytes(values.len()), "{} values of {self}", values.len());
        match self {
            Self::Q4_0 => each_packed(values, bytes, encode::q4_0),
            Self::Q4_1 => each_packed(values, bytes, encode::q4_1),
            Self::Q5_0 => each_packed(values, bytes, encode::q5_0),
            Self::Q5_1 => each_packed(values, bytes, encode::q5_1),
            Self::Q8_0 => each_packed(values, bytes, encode::q8_0),
            Self::Q4K => each_packed(values, bytes, k_quants::encode_q4_k),
            Self::Q5K => each_packed(values, bytes, k_quants::encode_q5_k),
            Self::Q6K => each_packed(values, bytes, k_quants::encode_q6_k),
        }
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn each<const B: usize, const V: usize>(bytes: &[u8], values: &mut [f32], decode: impl Fn(&[u8; B], &mut [f32; V])) {
    wide(
        #[inline(always)]
        || {
            for (block, values) in bytes.as_chunks().0.iter().zip(values.as_chunks_mut().0) {
                decode(block, values);
            }
        },
    );
}

fn each_packed<const B: usize, const V: usize>(
    values: &[f32],
    bytes: &mut [u8],
    encode: impl Fn(&[f32; V]) -> [u8; B],
) {
    for (values, block) in values.as_chunks().0.iter().zip(bytes.as_chunks_mut().0) {
        *block = encode(values);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A file of `tests/golden/ggml_blocks`.
    fn golden(name: &str) -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/ggml_blocks").join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    fn decoded(format: BlockFormat, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / format.block_bytes() * format.block_values()];
        format.decode(bytes, &mut values);
        values
    }

    fn encoded(format: BlockFormat, values: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; format.bytes(values.len()).unwrap()];
        format.encode(values, &mut bytes);
        bytes
    }

    /// The error relative to the norm of the values.
    fn relative_error(format: BlockFormat, values: &[f32]) -> f64 {
        let squares = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|number| number * number).sum::<f64>();
        let packed = decoded(format, &encoded(format, values));
        let error = squares(&mut values.iter().zip(&packed).map(|(a, b)| f64::from(a - b)));
        (error / squares(&mut values.iter().map(|value| f64::from(*value)))).sqrt()
    }

    #[test]
    fn values_of_every_format_are_those_of_the_reference_to_the_bit() {
        for format in BlockFormat::ALL {
            let blocks = golden(&format!("{format}.bytes"));
            let expected = floats(&golden(&format!("{format}.f32")));
            let found = decoded(format, &blocks);
            assert_eq!(found.len(), expected.len(), "{format}");
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(
                    found.to_bits(),
                    expected.to_bits(),
                    "{format}: value {index}: {found}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn blocks_of_single_scales_are_those_of_the_reference_to_the_bit() {
        let values = floats(&golden("values.f32"));
        for format in [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q5_0, BlockFormat::Q5_1, BlockFormat::Q8_0] {
            assert_eq!(encoded(format, &values), golden(&format!("{format}.packed")), "{format}");
        }
    }

    #[test]
    fn what_the_formats_with_sub_blocks_lose_is_what_llama_cpp_loses_or_less() {
        let values = floats(&golden("values.f32"));
        // Errors of llama.cpp's own `quantize` of the same values, from the golden script: see tests/golden/README.md.
        for format in [BlockFormat::Q4K, BlockFormat::Q5K, BlockFormat::Q6K] {
            let bound = floats(&golden(&format!("{format}.error")))[0];
            let found = relative_error(format, &values);
            assert!(found <= f64::from(bound) * 1.02, "{format}: {found}, llama.cpp {bound}");
        }
    }

    #[test]
    fn zeros_equal_values_and_tiny_values_survive_every_format() {
        for format in BlockFormat::ALL {
            let count = format.block_values();
            assert_eq!(decoded(format, &encoded(format, &vec![0.0; count])), vec![0.0; count], "{format}");
            for value in [1.0f32, -1.0, 1e-30, -1e-40, 60000.0] {
                let packed = decoded(format, &encoded(format, &vec![value; count]));
                let near = |packed: &f32| (packed - value).abs() <= 1e-2 * value.abs().max(1e-4);
                assert!(packed.iter().all(near), "{format}: {value} became {}", packed[0]);
            }
        }
    }

    #[test]
    fn more_bits_lose_less() {
        let values = floats(&golden("values.f32"));
        use BlockFormat::*;
        let errors = [Q4_0, Q4_1, Q4K, Q5_1, Q5K, Q6K, Q8_0].map(|format| relative_error(format, &values));
        assert!(errors.is_sorted_by(|a, b| a > b), "{errors:?}");
    }
}
