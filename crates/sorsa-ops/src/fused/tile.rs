//! What a product is made of on processors with AVX-512: tiles of the output that stay in registers, and operands packed
//! in the order in which a tile reads them.
//!
//! A tile is [`ROWS`] x [`COLUMNS`]: 24 of the 32 registers hold sums, and each step along the depth loads two vectors
//! of the right operand and twelve single elements of the left one for 24 multiply-adds.

use std::arch::x86_64::*;

/// Rows of a tile.
pub(super) const ROWS: usize = 12;
/// Columns of a tile.
pub(super) const COLUMNS: usize = 32;
/// Floats of a vector.
const LANES: usize = 16;
/// How far packing may write beyond the end of a panel of rows.
pub(super) const SPILL: usize = LANES;

/// Where an operand's element `(i, depth)` is: `i * stride + depth * depth_stride` behind the pointer.
#[derive(Clone, Copy)]
pub(super) struct Source {
    pub data: *const f32,
    pub stride: usize,
    pub depth_stride: usize,
}

impl Source {
    fn at(self, i: usize, depth: usize) -> *const f32 {
        self.data.wrapping_add(i * self.stride + depth * self.depth_stride)
    }
}

/// Whether this processor can run what is here.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
}

/// A mask of the first `count` lanes, all where there are more.
fn first(count: usize) -> __mmask16 {
    if count >= LANES { 0xFFFF } else { (1 << count) - 1 }
}

/// `out += a b`, or `out = a b` where not `accumulate`, for one tile of `rows` x `columns`. `a` is packed by
/// [`pack_rows`]; element `(depth, column)` of `b` is at `depth * b_stride + column`.
///
/// # Safety
///
/// The processor has AVX-512; `rows <= ROWS`, `columns <= COLUMNS`. `a` holds `depth * ROWS` elements; `b` holds
/// [`COLUMNS`] in each of `depth` rows, or [`LANES`] where `columns` are no more; `out` has `columns` elements in each of
/// `rows` rows that start `stride` apart, initialised where `accumulate`.
#[allow(unsafe_code, reason = "intrinsics on pointers; the caller keeps the bounds")]
#[allow(clippy::too_many_arguments, reason = "one product")]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn tile(
    depth: usize,
    a: *const f32,
    b: *const f32,
    b_stride: usize,
    out: *mut f32,
    stride: usize,
    (rows, columns): (usize, usize),
    accumulate: bool,
) {
    // SAFETY: as promised to this function.
    unsafe {
        match (rows > 4, columns > LANES) {
            (true, true) => tile_of::<12, 2>(depth, a, b, b_stride, out, stride, (rows, columns), accumulate),
            (true, false) => tile_of::<12, 1>(depth, a, b, b_stride, out, stride, (rows, columns), accumulate),
            (false, true) => tile_of::<4, 2>(depth, a, b, b_stride, out, stride, (rows, columns), accumulate),
            (false, false) => tile_of::<4, 1>(depth, a, b, b_stride, out, stride, (rows, columns), accumulate),
        }
    }
}

/// [`tile`] with at most `R` rows and `V` vectors of columns.
#[allow(unsafe_code, reason = "intrinsics on pointers; the caller keeps the bounds")]
#[allow(clippy::too_many_arguments, reason = "one product")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn tile_of<const R: usize, const V: usize>(
    depth: usize,
    mut a: *const f32,
    mut b: *const f32,
    b_stride: usize,
    out: *mut f32,
    stride: usize,
    (rows, columns): (usize, usize),
    accumulate: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let masks: [__mmask16; V] = std::array::from_fn(|v| first(columns - (v * LANES).min(columns)));
    // SAFETY: the loop reads `depth` rows of `b` and of packed `a`; `out` is read and written at rows below `rows` and
    // lanes below `columns` only.
    unsafe {
        for r in 0..R {
            // The rows of the output are fetched while the products are summed.
            if r < rows {
                _mm_prefetch::<_MM_HINT_T0>(out.wrapping_add(r * stride).cast());
            }
        }
        for _ in 0..depth {
            let vectors: [__m512; V] = std::array::from_fn(|v| _mm512_loadu_ps(b.add(v * LANES)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let factor = _mm512_set1_ps(*a.add(r));
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    *sum = _mm512_fmadd_ps(factor, vector, *sum);
                }
            }
            a = a.add(ROWS);
            b = b.wrapping_add(b_stride);
        }
        for (r, sums) in sums.into_iter().enumerate() {
            if r < rows {
                for (v, mut sum) in sums.into_iter().enumerate() {
                    let to = out.wrapping_add(r * stride + v * LANES);
                    if accumulate {
                        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(masks[v], to));
                    }
                    _mm512_mask_storeu_ps(to, masks[v], sum);
                }
            }
        }
    }
}

/// Packs `count <= ROWS` rows of the left operand, `depth` elements each: for each depth [`ROWS`] elements, those of
/// absent rows zero.
///
/// # Safety
///
/// The processor has AVX-512; every element of the source can be read; `to` has room for `depth * ROWS + SPILL`.
#[allow(unsafe_code, reason = "intrinsics on pointers; the caller keeps the bounds")]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn pack_rows(from: Source, count: usize, depth: usize, to: *mut f32) {
    // SAFETY: as promised to this function.
    unsafe { pack::<ROWS, 1>(from, count, depth, to) }
}

/// Packs `count <= COLUMNS` columns of the right operand likewise, [`COLUMNS`] elements for each depth.
///
/// # Safety
///
/// The processor has AVX-512; every element of the source can be read; `to` has room for `depth * COLUMNS`.
#[allow(unsafe_code, reason = "intrinsics on pointers; the caller keeps the bounds")]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn pack_columns(from: Source, count: usize, depth: usize, to: *mut f32) {
    // SAFETY: as promised to this function.
    unsafe { pack::<COLUMNS, 2>(from, count, depth, to) }
}

/// Writes `WIDTH` elements for each depth, in `V` vectors of which the last may spill over into the next depth, which is
/// written after it.
#[allow(unsafe_code, reason = "intrinsics on pointers; the caller keeps the bounds")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pack<const WIDTH: usize, const V: usize>(from: Source, count: usize, depth: usize, to: *mut f32) {
    let lanes = |v: usize| count.saturating_sub(v * LANES).min(LANES);
    // SAFETY: reads are of elements below `count` and `depth`; writes end at most `SPILL` beyond `depth * WIDTH` where
    // `WIDTH` is no multiple of a vector, and at its end otherwise.
    unsafe {
        if from.stride == 1 {
            for d in 0..depth {
                for v in 0..V {
                    let vector = _mm512_maskz_loadu_ps(first(lanes(v)), from.at(v * LANES, d));
                    _mm512_storeu_ps(to.add(d * WIDTH + v * LANES), vector);
                }
            }
            return;
        }
        let whole = if from.depth_stride == 1 { depth / LANES * LANES } else { 0 };
        for start in (0..whole).step_by(LANES) {
            for v in 0..V {
                let mut square = [_mm512_setzero_ps(); LANES];
                for (i, row) in square.iter_mut().enumerate().take(lanes(v)) {
                    *row = _mm512_loadu_ps(from.at(v * LANES + i, start));
                }
                for (d, column) in transposed(square).into_iter().enumerate() {
                    _mm512_storeu_ps(to.add((start + d) * WIDTH + v * LANES), column);
                }
            }
        }
        for d in whole..depth {
            for i in 0..WIDTH {
                *to.add(d * WIDTH + i) = if i < count { *from.at(i, d) } else { 0.0 };
            }
        }
    }
}

/// The transpose of 16 x 16 floats.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512; LANES]) -> [__m512; LANES] {
    let mut a = rows;
    let mut b = [_mm512_setzero_ps(); LANES];
    // Pairs of rows, then fours: each 128-bit lane is then a part of one column.
    for i in 0..8 {
        b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
    }
    let low = |x, y| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    let high = |x, y| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    for i in 0..4 {
        a[4 * i] = low(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = high(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = low(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = high(b[4 * i + 1], b[4 * i + 3]);
    }
    // Then the lanes themselves, as a 4 x 4 transpose.
    for i in 0..4 {
        b[i] = _mm512_shuffle_f32x4::<0x88>(a[i], a[4 + i]);
        b[4 + i] = _mm512_shuffle_f32x4::<0xDD>(a[i], a[4 + i]);
        b[8 + i] = _mm512_shuffle_f32x4::<0x88>(a[8 + i], a[12 + i]);
        b[12 + i] = _mm512_shuffle_f32x4::<0xDD>(a[8 + i], a[12 + i]);
    }
    for i in 0..4 {
        a[i] = _mm512_shuffle_f32x4::<0x88>(b[i], b[8 + i]);
        a[8 + i] = _mm512_shuffle_f32x4::<0xDD>(b[i], b[8 + i]);
        a[4 + i] = _mm512_shuffle_f32x4::<0x88>(b[4 + i], b[12 + i]);
        a[12 + i] = _mm512_shuffle_f32x4::<0xDD>(b[4 + i], b[12 + i]);
    }
    a
}
