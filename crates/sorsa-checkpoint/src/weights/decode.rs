//! The bytes of a tensor in a file as numbers: little-endian, in the order stored or transposed.

use std::fmt::Display;
use std::fs::File;
use std::io;

use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use sorsa_kernels::packed::PackedMatrix;

/// Numbers that one task decodes or scans.
const CHUNK: usize = 1 << 16;
/// Rows of a matrix that are read, and then transposed, at a time: two cache lines of f32.
const STRIP: usize = 32;
/// Columns of them that are transposed inside the first-level cache.
const TILE: usize = 256;
/// Halves that are widened at a time.
const HALVES: usize = 64;

/// Decodes bytes, as many as there are numbers to fill.
pub type Decode<T> = fn(&[u8], &mut [T]);

/// A type that weights are read into.
pub trait Number: Copy + Default + Display + Send + Sync {
    /// Zeros, from pages that the system clears when they are first touched.
    fn zeros(len: usize) -> Vec<Self>;
    /// Whether it is neither infinite nor not a number.
    fn is_finite(self) -> bool;
    /// The nearest number.
    fn from_f32(value: f32) -> Self;
    /// How to read the type `dtype`; nothing for integers and formats with scales.
    fn decoder(dtype: Dtype) -> Option<Decode<Self>>;
}

impl Number for f32 {
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }

    fn zeros(len: usize) -> Vec<Self> {
        in_large_pages(vec![0.0; len])
    }

    fn from_f32(value: f32) -> Self {
        value
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
    fn is_finite(self) -> bool {
        bf16::is_finite(self)
    }

    fn zeros(len: usize) -> Vec<Self> {
        in_large_pages(vec![0u16; len]).reinterpret_into()
    }

    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
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

        /// Of x86-64, and of Arm with small pages of 4 KiB.
        const LARGE_PAGE: usize = 2 << 20;
        let std::ops::Range { start, end } = values.as_ptr_range();
        // Buffers lie side by side: the page that two of them share is large too.
        let before = start.addr() % LARGE_PAGE;
        let length = (before + end.addr() - start.addr()).next_multiple_of(LARGE_PAGE);
        let first = std::ptr::NonNull::new(start.wrapping_byte_sub(before).cast_mut());
        if let (Some(first), true) = (first, size_of_val(values.as_slice()) >= 2 * LARGE_PAGE) {
            // SAFETY: this advice changes of no memory what it holds, whoever it belongs to. It may fail without harm.
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
    let mut halves = [f16::ZERO; HALVES];
    for (bytes, out) in bytes.chunks(2 * HALVES).zip(out.chunks_mut(HALVES)) {
        let halves = &mut halves[..out.len()];
        each(bytes, halves, f16::from_le_bytes);
        halves.convert_to_f32_slice(out);
    }
}

/// The numbers of a tensor. Those in a file are read, not mapped: what is mapped is touched page by page, counts as memory
/// of this process until it is given back, and a file that someone cuts short ends the process.
pub(crate) struct Section<'a> {
    pub bytes: Bytes<'a>,
    /// Bytes of a number.
    pub size: usize,
}

/// Where the bytes of a tensor are.
pub(crate) enum Bytes<'a> {
    File {
        file: &'a File,
        /// The first byte.
        start: u64,
    },
    Memory(&'a [u8]),
}

impl Section<'_> {
    /// Numbers from `first` on, as bytes; those of a file are read into `buffer`.
    fn read<'b>(&'b self, first: usize, count: usize, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
        let (first, length) = (first * self.size, count * self.size);
        match self.bytes {
            Bytes::Memory(bytes) => bytes.get(first..first + length).ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
            Bytes::File { file, start } => {
                buffer.resize(length, 0);
                read_exact_at(file, buffer, start + first as u64)?;
                Ok(buffer)
            }
        }
    }
}

#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => (buffer, offset) = (&mut buffer[count..], offset + count as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A tensor that was read.
pub struct Numbers<T> {
    /// All of them.
    pub values: Vec<T>,
    /// Whether none of them is infinite or not a number.
    pub all_finite: bool,
}

impl<T: Number> Numbers<T> {
    /// Position and value of the first that is not finite.
    pub fn first_non_finite(&self) -> Option<(usize, T)> {
        let index = if self.all_finite { None } else { self.values.iter().position(|value| !value.is_finite()) }?;
        Some((index, self.values[index]))
    }
}

/// Without an early exit, at the speed of memory.
fn all_finite<T: Number>(values: &[T]) -> bool {
    values.iter().fold(true, |finite, value| finite & value.is_finite())
}

/// All numbers, `count` of them, in the order stored.
pub(crate) fn decode<T: Number>(section: &Section<'_>, count: usize, decode: Decode<T>) -> io::Result<Numbers<T>> {
    let mut values = T::zeros(count);
    let finite: io::Result<Vec<bool>> = values
        .par_chunks_mut(CHUNK)
        .enumerate()
        .map_init(Vec::new, |buffer, (chunk, values)| {
            decode(section.read(chunk * CHUNK, values.len(), buffer)?, values);
            Ok(all_finite(values))
        })
        .collect();
    Ok(Numbers { values, all_finite: finite?.into_iter().all(|finite| finite) })
}

/// A matrix `[rows, cols]` as `[cols, rows]`, on the thread of the caller.
///
/// A strip of rows is read in one go and stays in the second-level cache. From there it leaves tile by tile, in whole
/// cache lines.
pub(crate) fn decode_transposed<T: Number>(
    section: &Section<'_>,
    [rows, cols]: [usize; 2],
    decode: Decode<T>,
) -> io::Result<Numbers<T>> {
    let mut values = T::zeros(rows * cols);
    let mut finite = true;
    if values.is_empty() {
        return Ok(Numbers { values, all_finite: true });
    }
    let mut buffer = Vec::new();
    for first in (0..rows).step_by(STRIP) {
        let height = STRIP.min(rows - first);
        let strip = section.read(first * cols, height * cols, &mut buffer)?;
        let mut tile = [[T::default(); TILE]; STRIP];
        for (band, out) in values.chunks_mut(TILE * rows).enumerate() {
            let width = out.len() / rows;
            for (line, row) in tile.iter_mut().zip(strip.chunks_exact(cols * section.size)) {
                decode(&row[band * TILE * section.size..][..width * section.size], &mut line[..width]);
                finite &= all_finite(&line[..width]);
            }
            for (j, out) in out.chunks_exact_mut(rows).enumerate() {
                for (value, line) in out[first..first + height].iter_mut().zip(&tile) {
                    *value = line[j];
                }
            }
        }
    }
    Ok(Numbers { values, all_finite: finite })
}

/// A packed matrix `[rows, columns]`, widened, in the order stored.
pub(crate) fn widened<T: Number>(matrix: &PackedMatrix) -> Numbers<T> {
    let [rows, columns] = matrix.shape();
    let mut values = T::zeros(rows * columns);
    let step = (CHUNK / columns.max(1)).max(1);
    let finite: Vec<bool> = values
        .par_chunks_mut((step * columns).max(1))
        .enumerate()
        .map_init(Vec::new, |wide: &mut Vec<f32>, (chunk, values)| {
            wide.resize(values.len(), 0.0);
            let first = chunk * step;
            matrix.widen(first..first + values.len() / columns, 0..columns, wide);
            for (value, wide) in values.iter_mut().zip(wide) {
                *value = T::from_f32(*wide);
            }
            all_finite(values)
        })
        .collect();
    Numbers { values, all_finite: finite.into_iter().all(|finite| finite) }
}

/// A packed matrix `[rows, columns]`, widened, as `[columns, rows]`, on the thread of the caller.
pub(crate) fn widened_transposed<T: Number>(matrix: &PackedMatrix) -> Numbers<T> {
    let [rows, columns] = matrix.shape();
    let mut values = T::zeros(rows * columns);
    let mut wide = vec![0.0; STRIP * columns];
    let mut finite = true;
    for first in (0..rows).step_by(STRIP) {
        let height = STRIP.min(rows - first);
        let wide = &mut wide[..height * columns];
        matrix.widen(first..first + height, 0..columns, wide);
        finite &= all_finite(wide);
        for (column, values) in values.chunks_exact_mut(rows).enumerate() {
            for (value, row) in values[first..first + height].iter_mut().zip(wide.chunks_exact(columns)) {
                *value = T::from_f32(row[column]);
            }
        }
    }
    Numbers { values, all_finite: finite }
}

/// Position and value of the first number that is infinite or not a number.
///
/// ```
/// use sorsa_checkpoint::weights::first_non_finite;
///
/// assert_eq!(first_non_finite(&[1.0, -2.0]), None);
/// assert_eq!(first_non_finite(&[1.0, f32::INFINITY]), Some((1, f32::INFINITY)));
/// ```
pub fn first_non_finite(values: &[f32]) -> Option<(usize, f32)> {
    values.par_chunks(CHUNK).enumerate().find_map_first(|(chunk, values)| {
        // Only a chunk that fails is searched.
        if all_finite(values) {
            return None;
        }
        let index = values.iter().position(|v| !v.is_finite())?;
        Some((chunk * CHUNK + index, values[index]))
    })
}
