//! Products with a packed weight beside those with a dense one, at shapes of SmolLM2-135M, TinyLlama and Llama 2 7B.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo bench --workspace --bench packed            # -- decode, to run the benches of that name only
//! ```

use std::sync::Mutex;

use divan::{Bencher, Divan};
use half::bf16;
use sorsa_kernels::packed::{PackedFormat, PackedMatrix, PackedView, Precision};
use sorsa_kernels::rounding::rounded_to_bf16;
use sorsa_kernels::{Bf16Matrix, Matrix, Update, Weight};

fn main() {
    Divan::default().sample_count(7).sample_size(1).config_with_args().main();
}

/// `[d_out, d_in]`.
const SHAPES: [[usize; 2]; 3] = [[1536, 576], [5632, 2048], [4096, 4096]];
/// The formats of 256 values do not divide rows of 576.
const FORMATS: [&str; 11] = ["f32", "bf16", "q4_0", "q4_1", "q5_0", "q8_0", "nf4", "nf4-single", "f16", "q4_k", "q6_k"];
/// Bytes of the weights that decoding reads in turn, so that no cache holds them.
const STREAMED: usize = 96 << 20;

/// Values of the weights that one sample of decoding reads.
const PRODUCTS: usize = 12 << 20;

/// A shape and a format.
#[derive(Debug, Clone)]
struct Case {
    shape: [usize; 2],
    format: &'static str,
    precision: Precision,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [d_out, d_in] = self.shape;
        write!(f, "{d_in}x{d_out} {:?} {}", self.precision, self.format)
    }
}

/// The packed formats in a precision, and the dense one of the same precision.
fn cases(precision: Precision) -> impl Iterator<Item = Case> {
    let dense = if precision == Precision::F32 { "bf16" } else { "f32" };
    let formats = FORMATS.into_iter().filter(move |format| *format != dense);
    let cases = SHAPES.into_iter().flat_map(move |shape| formats.clone().map(move |format| (shape, format)));
    let whole = |([_, columns], format): &([usize; 2], &str)| {
        format.parse::<PackedFormat>().map_or(true, |format| format.takes_columns(*columns))
    };
    cases.filter(whole).map(move |(shape, format)| Case { shape, format, precision })
}

/// A weight `[d_out, d_in]`.
#[derive(Clone)]
enum Stored {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Packed(PackedMatrix),
}

impl Case {
    fn stored(&self) -> Stored {
        /// Packing is slow: each matrix is packed once.
        static PACKED: Mutex<Vec<PackedMatrix>> = Mutex::new(Vec::new());
        let values = || numbers(self.shape[0] * self.shape[1]);
        let Ok(format) = self.format.parse::<PackedFormat>() else {
            return match self.format {
                "f32" => Stored::F32(values()),
                _ => Stored::Bf16(rounded_to_bf16(&values())),
            };
        };
        let mut packed = PACKED.lock().expect("no bench panics");
        let known = packed.iter().find(|matrix| matrix.shape() == self.shape && matrix.format() == format);
        if let Some(matrix) = known {
            return Stored::Packed(matrix.clone().with_precision(self.precision));
        }
        let matrix = PackedMatrix::pack(format, self.shape, &values()).expect("whole blocks");
        packed.push(matrix.clone());
        Stored::Packed(matrix.with_precision(self.precision))
    }

    /// A view `[d_in, d_out]`.
    fn view<'a>(&self, stored: &'a Stored) -> Weight<'a> {
        let [rows, columns] = self.shape;
        match stored {
            Stored::F32(values) => Weight::F32(Matrix::new(values, rows, columns).transposed()),
            Stored::Bf16(values) => Weight::Bf16(Bf16Matrix::new(values, rows, columns).transposed()),
            Stored::Packed(matrix) => Weight::Packed(PackedView::new(matrix)),
        }
    }
}

/// Numbers of about the size of weights.
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| 0.05 * next()).collect()
}

fn time(bencher: Bencher<'_, '_>, rows: usize, weight: Weight<'_>) {
    let x = numbers(rows * weight.rows());
    let mut out = vec![0.0; rows * weight.columns()];
    bencher.bench_local(|| weight.multiply(&mut out, &x, Update::Overwrite));
}

#[divan::bench(args = cases(Precision::Bf16))]
fn forward_512(bencher: Bencher<'_, '_>, case: &Case) {
    time(bencher, 512, case.view(&case.stored()));
}

#[divan::bench(args = cases(Precision::Bf16))]
fn backward_512(bencher: Bencher<'_, '_>, case: &Case) {
    time(bencher, 512, case.view(&case.stored()).transposed());
}

#[divan::bench(args = cases(Precision::Bf16))]
fn forward_1024(bencher: Bencher<'_, '_>, case: &Case) {
    time(bencher, 1024, case.view(&case.stored()));
}

#[divan::bench(args = cases(Precision::F32))]
fn forward_512_f32(bencher: Bencher<'_, '_>, case: &Case) {
    time(bencher, 512, case.view(&case.stored()));
}

#[divan::bench(args = cases(Precision::F32))]
fn backward_512_f32(bencher: Bencher<'_, '_>, case: &Case) {
    time(bencher, 512, case.view(&case.stored()).transposed());
}

/// One row by several weights in turn, like the layers of a model: all weights together are larger than the caches.
fn decode(bencher: Bencher<'_, '_>, case: &Case) {
    let stored = case.stored();
    let bytes = match &stored {
        Stored::F32(values) => 4 * values.len(),
        Stored::Bf16(values) => 2 * values.len(),
        Stored::Packed(matrix) => matrix.byte_count(),
    };
    let copies: Vec<Stored> = (0..STREAMED.div_ceil(bytes)).map(|_| stored.deep_clone()).collect();
    let x = numbers(case.shape[1]);
    let mut out = vec![0.0; case.shape[0]];
    let mut turn = 0;
    let products = (PRODUCTS / (case.shape[0] * case.shape[1])).max(1);
    bencher.bench_local(|| {
        for _ in 0..products {
            case.view(&copies[turn % copies.len()]).multiply(&mut out, &x, Update::Overwrite);
            turn += 1;
        }
    });
}

impl Stored {
    /// A copy with bytes of its own.
    fn deep_clone(&self) -> Self {
        match self {
            Self::Packed(matrix) => {
                let bytes: Vec<u8> = matrix.to_words().into_iter().flat_map(i32::to_le_bytes).collect();
                Self::Packed(PackedMatrix::from_words(bytes).expect("its words"))
            }
            dense => dense.clone(),
        }
    }
}

#[divan::bench(args = cases(Precision::Bf16))]
fn decode_bf16(bencher: Bencher<'_, '_>, case: &Case) {
    decode(bencher, case);
}

#[divan::bench(args = cases(Precision::F32))]
fn decode_f32(bencher: Bencher<'_, '_>, case: &Case) {
    decode(bencher, case);
}
