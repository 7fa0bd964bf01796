//! Products with f32 and bf16 weights by every set of instructions that the processor has, in GFLOP/s (divan calls them items).
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo bench --workspace --bench instructions
//! ```

use divan::counter::ItemsCount;
use divan::{Bencher, Divan};
use half::bf16;
use sorsa_kernels::rounding::rounded_to_bf16;
use sorsa_kernels::{Bf16Matrix, Instructions, Matrix, Update, Weight};

fn main() {
    Divan::default().sample_count(9).sample_size(1).config_with_args().main();
}

/// Rows, `d_in`, `d_out`.
const SHAPES: [[usize; 3]; 3] = [[256, 768, 2048], [1024, 576, 1536], [1, 2048, 5632]];

/// A product and the instructions that compute it.
#[derive(Debug)]
struct Case {
    instructions: Instructions,
    shape: [usize; 3],
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [rows, d_in, d_out] = self.shape;
        write!(f, "{rows} x {d_in} x {d_out}, {}", self.instructions)
    }
}

fn cases() -> impl Iterator<Item = Case> {
    SHAPES.into_iter().flat_map(|shape| Instructions::available().map(move |instructions| Case { instructions, shape }))
}

/// Numbers of about the size of weights.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|index| (index * 7919 % 1009) as f32 / 10_090.0 - 0.05).collect()
}

fn time(bencher: Bencher<'_, '_>, case: &Case, weight: Weight<'_>) {
    case.instructions.choose().expect("available instructions");
    let (rows, k, n) = (case.shape[0], weight.rows(), weight.columns());
    let x = numbers(rows * k);
    let mut out = vec![0.0; rows * n];
    bencher.counter(ItemsCount::new(2 * rows * k * n)).bench_local(|| weight.multiply(&mut out, &x, Update::Overwrite));
}

fn f32_weight(shape: [usize; 3]) -> Vec<f32> {
    numbers(shape[1] * shape[2])
}

fn bf16_weight(shape: [usize; 3]) -> Vec<bf16> {
    rounded_to_bf16(&f32_weight(shape))
}

#[divan::bench(args = cases())]
fn forward_f32(bencher: Bencher<'_, '_>, case: &Case) {
    let weight = f32_weight(case.shape);
    time(bencher, case, Weight::F32(Matrix::new(&weight, case.shape[2], case.shape[1]).transposed()));
}

#[divan::bench(args = cases())]
fn backward_f32(bencher: Bencher<'_, '_>, case: &Case) {
    let weight = f32_weight(case.shape);
    time(bencher, case, Weight::F32(Matrix::new(&weight, case.shape[2], case.shape[1])));
}

#[divan::bench(args = cases())]
fn forward_bf16(bencher: Bencher<'_, '_>, case: &Case) {
    let weight = bf16_weight(case.shape);
    time(bencher, case, Weight::Bf16(Bf16Matrix::new(&weight, case.shape[2], case.shape[1]).transposed()));
}

#[divan::bench(args = cases())]
fn backward_bf16(bencher: Bencher<'_, '_>, case: &Case) {
    let weight = bf16_weight(case.shape);
    time(bencher, case, Weight::Bf16(Bf16Matrix::new(&weight, case.shape[2], case.shape[1])));
}
