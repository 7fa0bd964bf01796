use super::*;
use crate::testing::values;

fn weights(count: usize, seed: u32) -> Vec<bf16> {
    values(count, seed).into_iter().map(bf16::from_f32).collect()
}

type Multiply = fn(&mut [f32], &[f32], Bf16Matrix<'_>, Update);

/// Whether a kernel rounds its activations to bf16.
#[derive(Clone, Copy, PartialEq)]
enum Activations {
    Exact,
    Rounded,
}

/// The largest difference from the exact product, in units of f32's rounding of the sum of absolute terms.
fn error(
    multiply: Multiply,
    [rows, k, n]: [usize; 3],
    transposed: bool,
    update: Update,
    activations: Activations,
) -> f64 {
    let (x, w) = (values(rows * k, 1), weights(k * n, 2));
    let weight = if transposed { Bf16Matrix::new(&w, n, k).transposed() } else { Bf16Matrix::new(&w, k, n) };
    let start = values(rows * n, 3);
    let mut out = start.clone();
    multiply(&mut out, &x, weight, update);
    let mut worst = 0f64;
    for (index, found) in out.iter().enumerate() {
        let (row, column) = (index / n, index % n);
        let before = if update == Update::Add { f64::from(start[index]) } else { 0.0 };
        let (mut exact, mut size) = (before, before.abs());
        for i in 0..k {
            let x = x[row * k + i];
            let x = if activations == Activations::Rounded { bf16::from_f32(x).to_f64() } else { f64::from(x) };
            let term = x * f64::from(weight.at(i, column));
            exact += term;
            size += term.abs();
        }
        worst = worst.max((f64::from(*found) - exact).abs() / (size * f64::from(f32::EPSILON)).max(1e-30));
    }
    worst
}

/// `[rows, k, columns]`: ones, odd numbers, and one more and one less than tiles, parts, panels and registers.
const SIZES: [[usize; 3]; 18] = [
    [1, 1, 1],
    [1, 2, 33],
    [1, 300, 1],
    [2, 31, 64],
    [3, 33, 31],
    [4, 64, 100],
    [5, 8, 129],
    [6, 17, 32],
    [7, 15, 16],
    [8, 400, 700],
    [9, 1, 40],
    [12, 256, 32],
    [13, 257, 65],
    [25, 255, 31],
    [37, 520, 130],
    [40, 3, 5],
    [130, 131, 129],
    [64, 1030, 96],
];

fn agrees(multiply: Multiply, activations: Activations) {
    for sizes in SIZES {
        for transposed in [false, true] {
            for update in [Update::Overwrite, Update::Add] {
                let error = error(multiply, sizes, transposed, update, activations);
                // Sums of k terms in f32, in some order: a few units of rounding, far below k of them.
                let bound = 2.0 + (sizes[1] as f64).sqrt();
                assert!(error < bound, "{sizes:?} transposed {transposed} {update:?}: {error} units");
            }
        }
    }
}

#[test]
fn the_portable_product_is_exact_to_the_sums_of_f32_at_any_size() {
    agrees(|out, x, weight, update| widened::multiply_portable(out, x, weight, update), Activations::Exact);
    agrees(|out, x, weight, update| widened::multiply(out, x, weight, update), Activations::Exact);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn products_of_a_widened_weight_are_exact_to_the_sums_of_f32_with_every_kernel() {
    use crate::f32_panels::multiply_widened;
    use crate::{Instructions, avx2::Avx2};
    if Instructions::Avx2.is_available() {
        agrees(|out, x, weight, update| multiply_widened::<Avx2>(out, x, weight, update), Activations::Exact);
    }
    if Instructions::Avx512.is_available() {
        agrees(|out, x, weight, update| multiply_widened::<avx512::Avx512>(out, x, weight, update), Activations::Exact);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_product_of_avx512_is_that_of_rounded_activations_at_any_size() {
    if !avx512::has_bf16() {
        eprintln!("no AVX-512 BF16 on this processor: nothing tested");
        return;
    }
    agrees(multiply, Activations::Rounded);
    // Few rows, too, by the kernel for many.
    agrees(avx512::multiply_bf16, Activations::Rounded);
}

#[test]
fn rounding_the_activations_costs_a_quarter_of_a_per_cent() {
    let [rows, k, n] = [20, 768, 64];
    let (x, w) = (values(rows * k, 5), weights(k * n, 6));
    let product = |multiply: Multiply| {
        let mut out = vec![0.0; rows * n];
        multiply(&mut out, &x, Bf16Matrix::new(&w, k, n), Update::Overwrite);
        out
    };
    let (found, exact) =
        (product(multiply), product(|out, x, weight, update| widened::multiply_portable(out, x, weight, update)));
    let norm = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let difference: Vec<f32> = found.iter().zip(&exact).map(|(a, b)| a - b).collect();
    assert!(norm(&difference) < 2.5e-3 * norm(&exact), "{} of {}", norm(&difference), norm(&exact));
}

#[test]
fn a_row_does_not_depend_on_the_other_rows() {
    let [k, n] = [300, 500];
    let w = weights(k * n, 8);
    let product = |x: &[f32], weight| {
        let mut out = vec![0.0; x.len() / k * n];
        multiply(&mut out, x, weight, Update::Overwrite);
        out
    };
    // By the kernel for few rows, and by the kernel for many.
    for weight in [Bf16Matrix::new(&w, k, n), Bf16Matrix::new(&w, n, k).transposed()] {
        let few = most_few_rows(weight.order());
        for (rows, some) in [(few, 1), (15 * (few + 1), few + 1)] {
            let x = values(rows * k, 7);
            let parts: Vec<f32> = x.chunks_exact(some * k).flat_map(|x| product(x, weight)).collect();
            assert_eq!(product(&x, weight), parts);
        }
    }
}

#[test]
fn nan_stays_in_its_row_and_infinity_in_its_column() {
    for rows in [2, 20] {
        let [k, n] = [35, 40];
        let (mut x, mut w) = (values(rows * k, 9), weights(k * n, 10));
        x[k + 3] = f32::NAN;
        x[5] = f32::INFINITY;
        w[7 * n + 11] = bf16::INFINITY;
        let mut out = vec![0.0; rows * n];
        multiply(&mut out, &x, Bf16Matrix::new(&w, k, n), Update::Overwrite);
        for (index, value) in out.iter().enumerate() {
            match (index / n, index % n) {
                (1, _) => assert!(value.is_nan(), "{rows} rows: {index} is {value}"),
                (0, _) => assert!(!value.is_finite(), "{rows} rows: {index} is {value}"),
                (_, 11) => assert!(value.is_infinite(), "{rows} rows: {index} is {value}"),
                _ => assert!(value.is_finite(), "{rows} rows: {index} is {value}"),
            }
        }
    }
}

#[test]
fn the_product_with_some_columns_is_that_part_of_the_whole() {
    let [rows, k, n] = [10, 40, 90];
    let (x, w) = (values(rows * k, 11), weights(k * n, 12));
    for weight in [Bf16Matrix::new(&w, k, n), Bf16Matrix::new(&w, n, k).transposed()] {
        let mut whole = vec![0.0; rows * n];
        multiply(&mut whole, &x, weight, Update::Overwrite);
        let mut some = vec![0.0; rows * 43];
        multiply(&mut some, &x, weight.column_range(32, 75), Update::Overwrite);
        for (whole, some) in whole.chunks_exact(n).zip(some.chunks_exact(43)) {
            assert_eq!(&whole[32..75], some);
        }
    }
}

#[test]
#[should_panic(expected = "reaches beyond")]
fn a_matrix_larger_than_its_slice_is_refused() {
    Bf16Matrix::new(&[bf16::ONE; 11], 3, 4);
}
