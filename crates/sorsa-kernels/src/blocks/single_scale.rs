//! Formats of 32 values with one scale, and one minimum if their name ends in `_1`.
//!
//! A block starts with the scale `d` (f16), then the minimum `m` (f16) if it has one, then for 5 bits the highest bit of each value
//! (u32), then the lower four bits of each: byte `i` holds value `i` in its lower half and value `i + 16` in its upper half.

use half::f16;

/// Values of a block.
pub const VALUES: usize = 32;
const HALF: usize = VALUES / 2;

/// The f16 at byte `at`.
pub fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

#[inline(always)]
pub fn decode_q4_0(block: &[u8; 18], values: &mut [f32; VALUES]) {
    let d = half_at(block, 0);
    for (i, byte) in block[2..].iter().enumerate() {
        values[i] = d * (f32::from(byte & 15) - 8.0);
        values[i + HALF] = d * (f32::from(byte >> 4) - 8.0);
    }
}

#[inline(always)]
pub fn decode_q4_1(block: &[u8; 20], values: &mut [f32; VALUES]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, byte) in block[4..].iter().enumerate() {
        values[i] = d * f32::from(byte & 15) + m;
        values[i + HALF] = d * f32::from(byte >> 4) + m;
    }
}

#[inline(always)]
pub fn decode_q5_0(block: &[u8; 22], values: &mut [f32; VALUES]) {
    let d = half_at(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (i, byte) in block[6..].iter().enumerate() {
        values[i] = d * (f32::from(five_bits(byte & 15, high, i)) - 16.0);
        values[i + HALF] = d * (f32::from(five_bits(byte >> 4, high, i + HALF)) - 16.0);
    }
}

#[inline(always)]
pub fn decode_q5_1(block: &[u8; 24], values: &mut [f32; VALUES]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (i, byte) in block[8..].iter().enumerate() {
        values[i] = d * f32::from(five_bits(byte & 15, high, i)) + m;
        values[i + HALF] = d * f32::from(five_bits(byte >> 4, high, i + HALF)) + m;
    }
}

#[inline(always)]
pub fn decode_q8_0(block: &[u8; 34], values: &mut [f32; VALUES]) {
    let d = half_at(block, 0);
    for i in 0..VALUES {
        values[i] = f32::from(block[2 + i].cast_signed()) * d;
    }
}

/// Value `index`: its four lower bits, and its highest from `high`.
fn five_bits(low: u8, high: u32, index: usize) -> u8 {
    low | (((high >> index) & 1) as u8) << 4
}
