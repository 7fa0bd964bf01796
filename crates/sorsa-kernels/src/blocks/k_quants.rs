//! Formats of 256 values in sub-blocks, whose scales are packed themselves.
//!
//! - Q4_K: `d`, `e` (f16), 12 bytes of eight scales and eight minima of 6 bits, 128 bytes of values. Byte `32 c + i` holds value `i` of
//!   sub-block `2 c` in its lower half and that of sub-block `2 c + 1` in its upper half.
//! - Q5_K: like Q4_K, with 32 bytes between scales and values: bit `s` of byte `i` is the highest bit of value `i` of sub-block `s`.
//! - Q6_K: 128 bytes of lower halves, 64 bytes of upper quarters, sixteen scales (i8), `d` (f16).

use half::f16;

use super::fit;
use super::single_scale::half_at;

/// Values of a block.
pub const VALUES: usize = 256;
/// Values that share a scale and a minimum.
const SUB: usize = 32;
/// Values that share a scale in Q6_K.
const SUB6: usize = 16;
/// Bytes of the scales and minima.
const SCALES: usize = 12;

#[inline(always)]
pub fn decode_q4_k(block: &[u8; 144], values: &mut [f32; VALUES]) {
    let (d, e) = (half_at(block, 0), half_at(block, 2));
    let (scales, minima) = unpack_scales(&block[4..4 + SCALES]);
    let bytes = &block[4 + SCALES..];
    for (s, values) in values.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
        let (scale, minimum) = (d * f32::from(scales[s]), e * f32::from(minima[s]));
        for (value, byte) in values.iter_mut().zip(&bytes[SUB * (s / 2)..][..SUB]) {
            let q = if s % 2 == 0 { byte & 15 } else { byte >> 4 };
            *value = scale * f32::from(q) - minimum;
        }
    }
}

#[inline(always)]
pub fn decode_q5_k(block: &[u8; 176], values: &mut [f32; VALUES]) {
    let (d, e) = (half_at(block, 0), half_at(block, 2));
    let (scales, minima) = unpack_scales(&block[4..4 + SCALES]);
    let (high, bytes) = block[4 + SCALES..].split_at(SUB);
    for (s, values) in values.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
        let (scale, minimum) = (d * f32::from(scales[s]), e * f32::from(minima[s]));
        for ((value, byte), high) in values.iter_mut().zip(&bytes[SUB * (s / 2)..][..SUB]).zip(high) {
            let q = if s % 2 == 0 { byte & 15 } else { byte >> 4 };
            *value = scale * f32::from(q | (high >> s & 1) << 4) - minimum;
        }
    }
}

#[inline(always)]
pub fn decode_q6_k(block: &[u8; 210], values: &mut [f32; VALUES]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = half_at(d, 0);
    for (s, values) in values.as_chunks_mut::<SUB6>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[s].cast_signed());
        let (low_at, low_shift, high_at, high_shift) = place_q6_k(SUB6 * s);
        let bytes = low[low_at..][..SUB6].iter().zip(&high[high_at..][..SUB6]);
        for (value, (low, high)) in values.iter_mut().zip(bytes) {
            let q = low >> low_shift & 15 | (high >> high_shift & 3) << 4;
            *value = scale * (f32::from(q) - 32.0);
        }
    }
}

pub fn encode_q4_k(values: &[f32; VALUES]) -> [u8; 144] {
    let packed = Levels::new(values, 15);
    let mut block = [0; 144];
    packed.write_header(&mut block);
    packed.write_low(&mut block[4 + SCALES..]);
    block
}

pub fn encode_q5_k(values: &[f32; VALUES]) -> [u8; 176] {
    let packed = Levels::new(values, 31);
    let mut block = [0; 176];
    packed.write_header(&mut block);
    for (index, q) in packed.levels.iter().enumerate() {
        block[4 + SCALES + index % SUB] |= (q >> 4) << (index / SUB);
    }
    packed.write_low(&mut block[4 + SCALES + SUB..]);
    block
}

/// Scales, minima and levels of a block of Q4_K or Q5_K.
struct Levels {
    d: f16,
    e: f16,
    scales: [u8; 8],
    minima: [u8; 8],
    levels: [u8; VALUES],
}

impl Levels {
    fn new(values: &[f32; VALUES], last: u8) -> Self {
        let sub_blocks = values.as_chunks::<SUB>().0;
        let fits: [(f32, f32); 8] = std::array::from_fn(|s| fit::scale_and_minimum(&sub_blocks[s], f32::from(last)));
        let largest = |of: fn(&(f32, f32)) -> f32| fits.iter().map(of).fold(0f32, f32::max);
        let (d, e) = (f16::from_f32(largest(|fit| fit.0) / 63.0), f16::from_f32(largest(|fit| fit.1) / 63.0));
        let (scales, minima) =
            (fits.map(|fit| six_bits(fit.0, d.to_f32())), fits.map(|fit| six_bits(fit.1, e.to_f32())));
        let level = |index: usize| {
            let (scale, minimum) = (f32::from(scales[index / SUB]), f32::from(minima[index / SUB]));
            nearest(values[index] + e.to_f32() * minimum, d.to_f32() * scale).clamp(0.0, f32::from(last)) as u8
        };
        Self { d, e, scales, minima, levels: std::array::from_fn(level) }
    }

    fn write_header(&self, block: &mut [u8]) {
        block[..2].copy_from_slice(&self.d.to_le_bytes());
        block[2..4].copy_from_slice(&self.e.to_le_bytes());
        block[4..4 + SCALES].copy_from_slice(&pack_scales(&self.scales, &self.minima));
    }

    /// The lower four bits of each level.
    fn write_low(&self, bytes: &mut [u8]) {
        for (index, q) in self.levels.iter().enumerate() {
            let (s, i) = (index / SUB, index % SUB);
            bytes[SUB * (s / 2) + i] |= (q & 15) << (4 * (s % 2));
        }
    }
}

/// `value / step` as a whole number; 0 if the step is 0.
fn nearest(value: f32, step: f32) -> f32 {
    if step == 0.0 { 0.0 } else { (value / step).round() }
}

fn six_bits(value: f32, step: f32) -> u8 {
    nearest(value, step).clamp(0.0, 63.0) as u8
}

pub fn encode_q6_k(values: &[f32; VALUES]) -> [u8; 210] {
    let sub_blocks = values.as_chunks::<SUB6>().0;
    let fits: [f32; 16] = std::array::from_fn(|s| fit::signed_scale(&sub_blocks[s]));
    let widest = fits.iter().copied().fold(0f32, |widest, fit| if fit.abs() > widest.abs() { fit } else { widest });
    let d = f16::from_f32(widest / -128.0);
    let scales = fits.map(|fit| nearest(fit, d.to_f32()).clamp(-128.0, 127.0));
    let mut block = [0; 210];
    for (index, value) in values.iter().enumerate() {
        let scale = d.to_f32() * scales[index / SUB6];
        let q = (nearest(*value, scale).clamp(-32.0, 31.0) + 32.0) as u8;
        let (low_at, low_shift, high_at, high_shift) = place_q6_k(index);
        block[low_at] |= (q & 15) << low_shift;
        block[128 + high_at] |= (q >> 4) << high_shift;
    }
    for (byte, scale) in block[192..208].iter_mut().zip(scales) {
        *byte = (scale as i8).cast_unsigned();
    }
    block[208..].copy_from_slice(&d.to_le_bytes());
    block
}

/// Byte and shift of the lower four bits of a value of Q6_K, byte and shift of its upper two.
fn place_q6_k(index: usize) -> (usize, usize, usize, usize) {
    let (half, within) = (index / 128, index % 128);
    let (quarter, lane) = (within / 32, within % 32);
    (64 * half + 32 * (quarter % 2) + lane, 4 * (quarter / 2), 32 * half + lane, 2 * quarter)
}

/// The eight scales and the eight minima.
fn unpack_scales(bytes: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for j in 0..8 {
        (scales[j], minima[j]) = scale_and_minimum_at(bytes, j);
    }
    (scales, minima)
}

/// The scale and the minimum of sub-block `j`.
#[inline(always)]
pub fn scale_and_minimum_at(bytes: &[u8], j: usize) -> (u8, u8) {
    let (d, m, both) = (bytes[j % 4], bytes[j % 4 + 4], bytes[j % 4 + 8]);
    if j < 4 { (d & 63, m & 63) } else { (both & 15 | d >> 2 & 48, both >> 4 | m >> 2 & 48) }
}

fn pack_scales(scales: &[u8; 8], minima: &[u8; 8]) -> [u8; SCALES] {
    let mut bytes = [0; SCALES];
    for j in 0..4 {
        bytes[j] = scales[j] | (scales[j + 4] >> 4) << 6;
        bytes[j + 4] = minima[j] | (minima[j + 4] >> 4) << 6;
        bytes[j + 8] = scales[j + 4] & 15 | (minima[j + 4] & 15) << 4;
    }
    bytes
}
