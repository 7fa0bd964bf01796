//! The 4-bit formats of bitsandbytes: each value is an entry of a code book of 16 times the scale of its block.
//!
//! Blocks (of 64 values, usually) run over the ends of rows. The scale of a block is its largest magnitude; with double quantization the
//! scales less their mean are packed themselves, to 8 bits in blocks of 256. The first of two values is in the upper half of a byte.
//! NF4's book holds quantiles of a normal distribution (QLoRA, arXiv:2305.14314, section 3). Layout and rounding are those of bitsandbytes
//! 0.50, whose results are in `tests/golden/four_bit`.

/// Values that share a scale, unless a file says otherwise.
pub const BLOCK: usize = 64;
/// Scales that share a scale under double quantization.
pub const NESTED_BLOCK: usize = 256;
/// bitsandbytes' least scale.
const LEAST_SCALE: f32 = 1e-38;

/// One of the two code books.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeBook {
    /// Quantiles of the normal distribution.
    Nf4,
    /// Signed floats of two exponent bits and one mantissa bit.
    Fp4,
}

impl CodeBook {
    /// The value of each code.
    #[rustfmt::skip]
    pub const fn values(self) -> [f32; 16] {
        match self {
            Self::Nf4 => [
                -1.0, -0.6961928, -0.525_073_05, -0.394_917_5, -0.284_441_38, -0.184_773_43, -0.091_050_036, 0.0,
                0.079_580_3, 0.160_930_2, 0.246_112_3, 0.337_915_24, 0.440_709_83, 0.562_617, 0.722_956_84, 1.0,
            ],
            Self::Fp4 => [
                0.0, 0.005_208_333_4, 0.666_666_7, 1.0, 0.333_333_34, 0.5, 0.166_666_67, 0.25,
                -0.0, -0.005_208_333_4, -0.666_666_7, -1.0, -0.333_333_34, -0.5, -0.166_666_67, -0.25,
            ],
        }
    }

    /// The name that bitsandbytes gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }
}

/// Widens the values from number `first` on: `book[code] * scale`.
///
/// # Panics
///
/// Panics if `codes` or `scales` end before the last value.
pub fn decode(codes: &[u8], scales: &[f32], book: &[f32; 16], block: usize, first: usize, values: &mut [f32]) {
    for (index, value) in (first..).zip(values) {
        let byte = codes[index / 2];
        let code = if index % 2 == 0 { byte >> 4 } else { byte & 15 };
        *value = book[usize::from(code)] * scales[index / block];
    }
}

/// Packs finite values in blocks of `block`: the codes, and the scale of each block.
pub fn encode(values: &[f32], book: CodeBook, block: usize) -> (Vec<u8>, Vec<f32>) {
    let sorted = SortedBook::new(&book.values());
    let mut codes = vec![0; values.len().div_ceil(2)];
    let mut scales = Vec::with_capacity(values.len().div_ceil(block));
    for (number, values) in values.chunks(block).enumerate() {
        let scale = largest(values);
        for (index, value) in (number * block..).zip(values) {
            // bitsandbytes multiplies with the inverse, but divides the values of an incomplete block.
            let scaled = if values.len() == block {
                value * (1.0 / scale.max(LEAST_SCALE))
            } else {
                value / scale.max(LEAST_SCALE)
            };
            codes[index / 2] |= sorted.code(scaled.clamp(-1.0, 1.0)) << if index % 2 == 0 { 4 } else { 0 };
        }
        scales.push(scale);
    }
    if values.len() % 2 == 1 {
        // What a value of 0 becomes fills the last byte.
        codes[values.len() / 2] |= sorted.code(0.0);
    }
    (codes, scales)
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |largest, value| largest.max(value.abs()))
}

/// A code book in ascending order.
struct SortedBook<const N: usize> {
    /// Halfway between neighbours; the last is infinite.
    bounds: [f32; N],
    codes: [u8; N],
}

impl<const N: usize> SortedBook<N> {
    fn new(book: &[f32; N]) -> Self {
        let mut codes: [u8; N] = std::array::from_fn(|code| code as u8);
        codes
            .sort_by(|a, b| book[usize::from(*a)].partial_cmp(&book[usize::from(*b)]).expect("a code book of numbers"));
        let value = |rank: usize| book[usize::from(codes[rank])];
        let bound = |rank: usize| if rank + 1 < N { (value(rank) + value(rank + 1)) / 2.0 } else { f32::INFINITY };
        Self { bounds: std::array::from_fn(bound), codes }
    }

    /// The code nearest to `value`; the lower of two.
    fn code(&self, value: f32) -> u8 {
        self.codes[self.bounds.partition_point(|bound| *bound < value)]
    }
}

/// Scales of blocks that are packed to 8 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct NestedScales {
    /// One code for each scale.
    pub codes: Vec<u8>,
    /// The scale of each [`NESTED_BLOCK`] codes.
    pub scales: Vec<f32>,
    /// The value of each code, ascending.
    pub book: [f32; 256],
    /// The mean of the scales, which was subtracted before they were packed.
    pub offset: f32,
}

impl NestedScales {
    /// Packs scales.
    pub fn encode(scales: &[f32]) -> Self {
        let book = dynamic_book();
        let sorted = SortedBook::new(&book);
        let mean = scales.iter().map(|scale| f64::from(*scale)).sum::<f64>() / scales.len().max(1) as f64;
        let offset = mean as f32;
        let centred: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
        let blocks = centred.chunks(NESTED_BLOCK).map(|block| (block, largest(block)));
        let code = |(block, scale): (&[f32], f32)| {
            block.iter().map(|value| sorted.code(value / scale.max(LEAST_SCALE))).collect::<Vec<u8>>()
        };
        Self {
            codes: blocks.clone().flat_map(code).collect(),
            scales: blocks.map(|(_, scale)| scale).collect(),
            book,
            offset,
        }
    }

    /// The scales.
    ///
    /// # Panics
    ///
    /// Panics if there are fewer scales than the codes need.
    pub fn decode(&self) -> Vec<f32> {
        let scale = |(index, code): (usize, &u8)| {
            self.book[usize::from(*code)] * self.scales[index / NESTED_BLOCK] + self.offset
        };
        self.codes.iter().enumerate().map(scale).collect()
    }
}

/// The 8-bit code book of bitsandbytes' double quantization ("dynamic tree", arXiv:2110.02861): signed, seven decades, each divided evenly.
pub fn dynamic_book() -> [f32; 256] {
    const DECADES: i32 = 7;
    let mut values = vec![0.0, 1.0];
    for decade in 0..DECADES {
        let parts = 1usize << decade;
        // As in PyTorch's `linspace` of f32: from the nearer end.
        let step = 0.9f32 / parts as f32;
        let edge = |i: usize| {
            if i < parts.div_ceil(2) + usize::from(parts.is_multiple_of(2)) {
                0.1 + step * i as f32
            } else {
                1.0 - step * (parts - i) as f32
            }
        };
        let power = 10f64.powi(decade - DECADES + 1) as f32;
        for i in 0..parts {
            let mean = power * ((edge(i) + edge(i + 1)) / 2.0);
            values.extend([mean, -mean]);
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("2 + 2 (1 + 2 + .. + 64) values")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A file of `tests/golden/four_bit`.
    fn golden(name: &str) -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/four_bit").join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn floats(name: &str) -> Vec<f32> {
        golden(name).as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    #[test]
    fn code_books_are_those_of_bitsandbytes() {
        for book in [CodeBook::Nf4, CodeBook::Fp4] {
            assert_eq!(book.values().to_vec(), floats(&format!("{}.book", book.name())));
        }
        let expected = floats("dynamic.book");
        for (found, expected) in dynamic_book().iter().zip(&expected) {
            assert!((found - expected).abs() <= 2.0 * f32::EPSILON * expected.abs(), "{found}, expected {expected}");
        }
    }

    #[test]
    fn codes_and_values_are_those_of_bitsandbytes() {
        let values = floats("values.f32");
        for book in [CodeBook::Nf4, CodeBook::Fp4] {
            let name = book.name();
            let (codes, scales) = encode(&values, book, BLOCK);
            assert_eq!(scales, floats(&format!("{name}.scales")), "{name}");
            assert_eq!(codes, golden(&format!("{name}.codes")), "{name}");
            let mut decoded = vec![0.0; values.len()];
            decode(&codes, &scales, &book.values(), BLOCK, 0, &mut decoded);
            assert_eq!(decoded, floats(&format!("{name}.f32")), "{name}");
            let mut part = vec![0.0; 131];
            decode(&codes, &scales, &book.values(), BLOCK, 77, &mut part);
            assert_eq!(part, decoded[77..][..131]);
        }
    }

    #[test]
    fn nested_scales_are_those_of_bitsandbytes() {
        let nested = NestedScales {
            codes: golden("nested.codes"),
            scales: floats("nested.scales"),
            book: floats("dynamic.book").try_into().unwrap(),
            offset: floats("nested.offset")[0],
        };
        let expected = floats("nested.f32");
        assert_eq!(nested.decode(), expected);
        let own = NestedScales::encode(&floats("scales.f32"));
        assert!((own.offset - nested.offset).abs() <= 1e-6 * nested.offset.abs());
        let same = own.codes.iter().zip(&nested.codes).filter(|(a, b)| a == b).count();
        assert!(same * 100 >= own.codes.len() * 99, "{same} of {} codes", own.codes.len());
        let far = own.decode().iter().zip(&expected).fold(0f32, |far, (a, b)| far.max((a - b).abs()));
        assert!(far <= 0.02 * largest(&expected), "{far}");
    }

    #[test]
    fn zeros_stay_zeros() {
        let (codes, scales) = encode(&[0.0; 70], CodeBook::Nf4, BLOCK);
        let mut values = [1.0; 70];
        decode(&codes, &scales, &CodeBook::Nf4.values(), BLOCK, 0, &mut values);
        assert_eq!(values, [0.0; 70]);
    }
}
