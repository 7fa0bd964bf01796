//! Packs 32 values with one scale, bit for bit like `gguf.quants`: the scale is rounded to f16 after the values were divided by it.

use half::f16;

use super::single_scale::VALUES;

const HALF: usize = VALUES / 2;

pub fn q4_0(values: &[f32; VALUES]) -> [u8; 18] {
    let d = widest(values) / -8.0;
    let inverse = inverse(d);
    let q = values.map(|value| level(value * inverse + 8.5, 15));
    let mut block = [0; 18];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    block[2..].copy_from_slice(&nibbles(&q));
    block
}

pub fn q4_1(values: &[f32; VALUES]) -> [u8; 20] {
    let (minimum, d) = minimum_and_step(values, 15.0);
    let inverse = inverse(d);
    let q = values.map(|value| level((value - minimum) * inverse + 0.5, 15));
    let mut block = [0; 20];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    block[2..4].copy_from_slice(&f16::from_f32(minimum).to_le_bytes());
    block[4..].copy_from_slice(&nibbles(&q));
    block
}

pub fn q5_0(values: &[f32; VALUES]) -> [u8; 22] {
    let d = widest(values) / -16.0;
    let inverse = inverse(d);
    let q = values.map(|value| level(value * inverse + 16.5, 31));
    let mut block = [0; 22];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    block[2..6].copy_from_slice(&high_bits(&q).to_le_bytes());
    block[6..].copy_from_slice(&nibbles(&q));
    block
}

pub fn q5_1(values: &[f32; VALUES]) -> [u8; 24] {
    let (minimum, d) = minimum_and_step(values, 31.0);
    let inverse = inverse(d);
    let q = values.map(|value| level((value - minimum) * inverse + 0.5, 31));
    let mut block = [0; 24];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    block[2..4].copy_from_slice(&f16::from_f32(minimum).to_le_bytes());
    block[4..8].copy_from_slice(&high_bits(&q).to_le_bytes());
    block[8..].copy_from_slice(&nibbles(&q));
    block
}

pub fn q8_0(values: &[f32; VALUES]) -> [u8; 34] {
    let d = values.iter().fold(0f32, |largest, value| largest.max(value.abs())) / 127.0;
    let inverse = inverse(d);
    let mut block = [0; 34];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (byte, value) in block[2..].iter_mut().zip(values) {
        *byte = ((value * inverse).round() as i8).cast_unsigned();
    }
    block
}

/// The value that is farthest from zero; the first of several.
fn widest(values: &[f32; VALUES]) -> f32 {
    let mut widest = values[0];
    for value in values {
        if value.abs() > widest.abs() {
            widest = *value;
        }
    }
    widest
}

/// The least value, and the step between levels if the greatest value is level `last`.
fn minimum_and_step(values: &[f32; VALUES], last: f32) -> (f32, f32) {
    let minimum = values.iter().copied().fold(f32::INFINITY, f32::min);
    let maximum = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (minimum, (maximum - minimum) / last)
}

/// `1 / d`, and 0 if that is not finite: such a scale is 0 as f16.
fn inverse(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The whole part of a number, between 0 and `last`.
fn level(number: f32, last: u8) -> u8 {
    (number as u8).min(last)
}

fn nibbles(q: &[u8; VALUES]) -> [u8; HALF] {
    std::array::from_fn(|i| q[i] & 15 | (q[i + HALF] & 15) << 4)
}

fn high_bits(q: &[u8; VALUES]) -> u32 {
    q.iter().enumerate().fold(0, |bits, (i, q)| bits | u32::from(q >> 4) << i)
}
