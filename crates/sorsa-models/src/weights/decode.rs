//! The bytes of a tensor as numbers: little-endian, unaligned, in the order stored or transposed.

use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// Numbers that one task decodes or scans.
const CHUNK: usize = 1 << 16;
/// Side of the square that is transposed inside the first-level cache.
const TILE: usize = 64;

/// Decodes bytes, as many as there are numbers to fill.
type Decode<T> = fn(&[u8], &mut [T]);

/// A type that weights are read into.
pub(super) trait Number: Copy + Default + Send + Sync {
    /// Zeros, from pages that the system clears when they are first touched.
    fn zeros(len: usize) -> Vec<Self>;
    /// How to read the type `dtype`; nothing for integers and formats with scales.
    fn decoder(dtype: Dtype) -> Option<Decode<Self>>;
}

impl Number for f32 {
    fn zeros(len: usize) -> Vec<Self> {
        in_large_pages(vec![0.0; len])
    }

    fn decoder(dtype: Dtype) -> Option<Decode<Self>> {
        Some(match dtype {
            Dtype::F32 => |bytes, out| each(bytes, out, f32::from_le_bytes),
            Dtype::BF16 => |bytes, out| each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => f16_to_f32,
            Dtype::F64 => |bytes, out| each(bytes, out, |b| f64::from_le_bytes(b) as f32),
            _ => return None,
        })
    }
}

impl Number for bf16 {
    fn zeros(len: usize) -> Vec<Self> {
        in_large_pages(vec![0u16; len]).reinterpret_into()
    }

    fn decoder(dtype: Dtype) -> Option<Decode<Self>> {
        Some(match dtype {
            Dtype::F32 => |bytes, out| each(bytes, out, |b| bf16::from_f32(f32::from_le_bytes(b))),
            Dtype::BF16 => |bytes, out| each(bytes, out, bf16::from_le_bytes),
            Dtype::F16 => |bytes, out| each(bytes, out, |b| bf16::from_f32(f16::from_le_bytes(b).to_f32())),
            Dtype::F64 => |bytes, out| each(bytes, out, |b| bf16::from_f64(f64::from_le_bytes(b))),
            _ => return None,
        })
    }
}

/// Asks Linux to clear and map by large pages what nobody has touched yet: with pages of 4 KiB that is most of loading.
#[cfg_attr(target_os = "linux", allow(unsafe_code))]
fn in_large_pages<T>(values: Vec<T>) -> Vec<T> {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::mman::{MmapAdvise, madvise};

        /// Of any processor, so that the first and the last one have no neighbour of the buffer on them.
        const LARGEST_SMALL_PAGE: usize = 1 << 16;
        /// Below this a buffer may not hold one large page.
        const LEAST: usize = 4 << 20;
        let std::ops::Range { start, end } = values.as_ptr_range();
        let skipped = start.addr().next_multiple_of(LARGEST_SMALL_PAGE) - start.addr();
        let length = (end.addr() - start.addr()).saturating_sub(skipped) / LARGEST_SMALL_PAGE * LARGEST_SMALL_PAGE;
        if let (LEAST.., Some(first)) = (length, std::ptr::NonNull::new(start.wrapping_byte_add(skipped).cast_mut())) {
            // SAFETY: whole pages inside a buffer that lives on; the advice changes nothing of what they hold. It may fail
            // without harm.
            let _ = unsafe { madvise(first.cast(), length, MmapAdvise::MADV_HUGEPAGE) };
        }
    }
    values
}

fn each<T, const N: usize>(bytes: &[u8], out: &mut [T], read: impl Fn([u8; N]) -> T) {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *value = read(*bytes);
    }
}

/// By slices, because `half` then looks for the processor's instruction once and not for each number.
fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
    let mut halves = [f16::ZERO; TILE];
    for (bytes, out) in bytes.chunks(2 * TILE).zip(out.chunks_mut(TILE)) {
        let halves = &mut halves[..out.len()];
        each(bytes, halves, f16::from_le_bytes);
        halves.convert_to_f32_slice(out);
    }
}

/// All numbers of `bytes` in the order stored.
pub(super) fn decode<T: Number>(bytes: &[u8], size: usize, read: Decode<T>) -> Vec<T> {
    let mut out = T::zeros(bytes.len() / size);
    out.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * size)).for_each(|(out, bytes)| read(bytes, out));
    out
}

/// The matrix `[rows, cols]` in `bytes`, of `size` bytes a number, as `[cols, rows]`.
///
/// Each task fills a band of rows of the result, tile by tile: a tile is decoded row by row into a buffer that stays
/// in the first-level cache, and leaves it in whole cache lines.
pub(super) fn decode_transposed<T: Number>(
    bytes: &[u8],
    size: usize,
    [rows, cols]: [usize; 2],
    read: Decode<T>,
) -> Vec<T> {
    let mut out = T::zeros(rows * cols);
    if out.is_empty() {
        return out;
    }
    out.par_chunks_mut(TILE * rows).enumerate().for_each(|(band, out)| {
        let (col, width) = (band * TILE, out.len() / rows);
        let mut tile = [[T::default(); TILE]; TILE];
        for row in (0..rows).step_by(TILE) {
            let height = TILE.min(rows - row);
            for (i, line) in tile[..height].iter_mut().enumerate() {
                let start = ((row + i) * cols + col) * size;
                read(&bytes[start..start + width * size], &mut line[..width]);
            }
            for (j, line) in out.chunks_exact_mut(rows).enumerate() {
                for (value, column) in line[row..row + height].iter_mut().zip(&tile) {
                    *value = column[j];
                }
            }
        }
    });
    out
}

/// Position and value of the first number that is infinite or not a number.
///
/// ```
/// use sorsa_models::weights::first_non_finite;
///
/// assert_eq!(first_non_finite(&[1.0, -2.0]), None);
/// assert_eq!(first_non_finite(&[1.0, f32::INFINITY]), Some((1, f32::INFINITY)));
/// ```
pub fn first_non_finite(values: &[f32]) -> Option<(usize, f32)> {
    values.par_chunks(CHUNK).enumerate().find_map_first(|(chunk, values)| {
        // Without an early exit the scan runs at the speed of memory; only a chunk that fails is searched.
        if values.iter().fold(true, |finite, v| finite & v.is_finite()) {
            return None;
        }
        let index = values.iter().position(|v| !v.is_finite())?;
        Some((chunk * CHUNK + index, values[index]))
    })
}
