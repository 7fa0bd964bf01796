//! The truncated SVD against the exact one, on matrices of known spectrum and on the awkward ones.

use faer::{Mat, MatRef};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sorsa_linalg::spectral::orthonormality_defect;
use sorsa_linalg::{Algorithm, LinalgError, Scalar, Svd, SvdOptions, faer, truncated_svd};

fn krylov() -> SvdOptions {
    SvdOptions { algorithm: Algorithm::BlockKrylov, ..SvdOptions::default() }
}

/// `[m, n]` with the singular values `s`, padded with zeros.
fn with_spectrum(m: usize, n: usize, s: &[f64], seed: u64) -> Mat<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut orthonormal = |rows| {
        let gaussian = Mat::<f64>::from_fn(rows, s.len(), |_, _| StandardNormal.sample(&mut rng));
        gaussian.qr().compute_thin_Q()
    };
    let (left, right) = (orthonormal(m), orthonormal(n));
    Mat::from_fn(m, s.len(), |i, j| left[(i, j)] * s[j]) * right.transpose()
}

fn narrow(a: &Mat<f64>) -> Mat<f32> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] as f32)
}

/// The laws of every result: shapes, order, orthonormality, and both residuals, computed here in f64.
fn assert_laws<T: Scalar>(a: MatRef<'_, T>, svd: &Svd<T>, rank: usize, tolerance: f64) {
    assert_eq!(svd.u.shape(), (a.nrows(), rank));
    assert_eq!(svd.v.shape(), (a.ncols(), rank));
    assert_eq!(svd.s.len(), rank);
    assert!(svd.s.is_sorted_by(|a, b| a >= b));
    let orthonormal = if T::EPSILON > 1e-10 { 1e-5 } else { 1e-12 } * (rank as f64).sqrt();
    for basis in [&svd.u, &svd.v] {
        let defect = orthonormality_defect(basis.as_ref());
        assert!(defect < orthonormal, "defect {defect}");
    }
    let wide = |x: MatRef<'_, T>| Mat::<f64>::from_fn(x.nrows(), x.ncols(), |i, j| x[(i, j)].into());
    let (a, u, v) = (wide(a), wide(svd.u.as_ref()), wide(svd.v.as_ref()));
    let s: Vec<f64> = svd.s.iter().map(|&s| s.into()).collect();
    let scaled = |x: &Mat<f64>| Mat::from_fn(x.nrows(), rank, |i, j| x[(i, j)] * s[j]);
    for missing in [&a * &v - scaled(&u), a.transpose() * &u - scaled(&v)] {
        let worst = (0..rank).map(|j| missing.col(j).norm_l2()).fold(0.0, f64::max);
        assert!(worst <= tolerance * s[0].max(f64::MIN_POSITIVE), "residual {worst} for s_1 = {}", s[0]);
    }
}

fn assert_values<T: Scalar>(found: &[T], expected: &[f64], tolerance: f64) {
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let found: f64 = found.into();
        let scale = expected.max(1e-3 * tolerance);
        assert!((found - expected).abs() <= tolerance * scale.max(1e-2), "s_{i}: {found}, not {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn krylov_equals_exact_on_any_shape_rank_and_spectrum(
        m in 1usize..90, n in 1usize..90, share in 0.0f64..1.0, block in 0usize..20, decay in 0.0f64..3.0, seed: u64,
    ) {
        let k = m.min(n);
        let rank = 1 + (share * (k - 1) as f64) as usize;
        let s: Vec<f64> = (0..k).map(|i| (1.0 + i as f64).powf(-decay)).collect();
        let a = with_spectrum(m, n, &s, seed);
        let options = SvdOptions { block, seed, max_blocks: 90, tolerance: 1e-9, ..krylov() };
        let svd = truncated_svd("a", a.as_ref(), rank, &options).unwrap();
        assert_laws(a.as_ref(), &svd, rank, 1e-9);
        assert_values(&svd.s, &s, 1e-9);
        let a = narrow(&a);
        let options = SvdOptions { tolerance: 1e-5, ..options };
        let svd = truncated_svd("a", a.as_ref(), rank, &options).unwrap();
        assert_laws(a.as_ref(), &svd, rank, 1.1e-5);
        let exact = truncated_svd("a", a.as_ref(), rank, &SvdOptions { algorithm: Algorithm::Exact, ..options }).unwrap();
        assert_laws(a.as_ref(), &exact, rank, 1.1e-5);
        for (found, exact) in svd.s.iter().zip(&exact.s) {
            prop_assert!((found - exact).abs() < 3e-6);
        }
    }

    #[test]
    fn repeated_values_are_found_by_blocks_narrower_than_their_multiplicity(
        copies in prop::collection::vec(1usize..25, 1..4), share in 0.0f64..1.0, block in 1usize..7, seed: u64,
    ) {
        let s: Vec<f64> = copies.iter().enumerate().flat_map(|(i, &n)| vec![0.5f64.powi(i as i32); n]).collect();
        let rank = 1 + (share * (s.len() - 1) as f64) as usize;
        let a = with_spectrum(s.len() + 5, s.len() + 9, &s, seed);
        let options = SvdOptions { block, seed, max_blocks: 90, tolerance: 1e-9, ..krylov() };
        let svd = truncated_svd("a", a.as_ref(), rank, &options).unwrap();
        assert_laws(a.as_ref(), &svd, rank, 1e-9);
        assert_values(&svd.s, &s, 1e-9);
    }
}

#[test]
fn a_slowly_decaying_spectrum_is_exact_to_f32_without_seeing_the_whole_space() {
    for (m, n) in [(700, 600), (600, 900)] {
        let s: Vec<f64> = (0..600).map(|i| (1.0 + f64::from(i)).powf(-0.35)).collect();
        let a = narrow(&with_spectrum(m, n, &s, 5));
        let svd = truncated_svd("a", a.as_ref(), 32, &krylov()).unwrap();
        assert_laws(a.as_ref(), &svd, 32, 1.1e-5);
        assert_values(&svd.s, &s, 1e-6);
        assert_eq!(svd.report.algorithm, Algorithm::BlockKrylov);
        assert!(svd.report.columns < 2 * 400, "{:?}", svd.report);
    }
}

#[test]
fn values_repeated_more_often_than_a_block_is_wide_are_all_found() {
    let identity = Mat::<f32>::identity(300, 300);
    let svd = truncated_svd("identity", identity.as_ref(), 40, &SvdOptions { block: 8, ..krylov() }).unwrap();
    assert_laws(identity.as_ref(), &svd, 40, 1e-6);
    assert_values(&svd.s, &[1.0; 40], 1e-6);

    // 30 copies of 1 with a tail: from 8 columns the iteration alone sees 8 of the copies, all with residual 0.
    let mut diagonal = vec![1.0; 30];
    diagonal.extend((0..270).map(|i| 0.5 * (1.0 + f64::from(i)).powf(-0.5)));
    let a = Mat::<f64>::from_fn(300, 300, |i, j| if i == j { diagonal[i] } else { 0.0 });
    for rank in [12, 30, 34] {
        let options = SvdOptions { block: 8, tolerance: 1e-8, ..krylov() };
        let svd = truncated_svd("copies", a.as_ref(), rank, &options).unwrap();
        assert_laws(a.as_ref(), &svd, rank, 1e-8);
        assert_values(&svd.s, &diagonal, 1e-9);
    }
}

/// Found by proptest: a block of `A^T Q` whose first columns lie in the basis lost a part of those after them.
#[test]
fn columns_after_a_dependent_one_lose_nothing() {
    let mut s = vec![1.0; 19];
    s.push(0.5);
    let seed = 4_818_982_271_447_562_006;
    let a = with_spectrum(25, 29, &s, seed);
    let options = SvdOptions { block: 4, seed, max_blocks: 90, tolerance: 1e-9, ..krylov() };
    let svd = truncated_svd("a", a.as_ref(), 10, &options).unwrap();
    assert_laws(a.as_ref(), &svd, 10, 1e-9);
    assert_values(&svd.s, &s, 1e-9);
}

#[test]
fn matrices_of_deficient_rank_still_give_orthonormal_vectors() {
    let a = narrow(&with_spectrum(260, 330, &[4.0, 2.0, 1.0, 0.5, 0.25], 6));
    let svd = truncated_svd("deficient", a.as_ref(), 40, &krylov()).unwrap();
    assert_laws(a.as_ref(), &svd, 40, 1e-5);
    assert_values(&svd.s[..5], &[4.0, 2.0, 1.0, 0.5, 0.25], 1e-6);
    assert!(svd.s[5..].iter().all(|&s| s < 1e-5));

    let zero = Mat::<f32>::zeros(280, 300);
    for algorithm in [Algorithm::Exact, Algorithm::BlockKrylov] {
        let svd = truncated_svd("zero", zero.as_ref(), 20, &SvdOptions { algorithm, ..krylov() }).unwrap();
        assert_laws(zero.as_ref(), &svd, 20, 0.0);
        assert_eq!(svd.s, [0.0; 20]);
    }
}

#[test]
fn scales_near_the_limits_of_f32_are_no_obstacle() {
    let a = narrow(&with_spectrum(120, 100, &[3.0, 2.0, 1.0], 7));
    for scale in [1e30f32, 1e-30] {
        let scaled = Mat::from_fn(120, 100, |i, j| a[(i, j)] * scale);
        for algorithm in [Algorithm::Exact, Algorithm::BlockKrylov] {
            let svd = truncated_svd("scaled", scaled.as_ref(), 3, &SvdOptions { algorithm, ..krylov() }).unwrap();
            let values: Vec<f64> = svd.s.iter().map(|s| f64::from(s / scale)).collect();
            assert_values(&values, &[3.0, 2.0, 1.0], 1e-5);
        }
    }
}

#[test]
fn full_rank_and_single_rows_are_exact() {
    let s: Vec<f64> = (0..40).map(|i| 1.0 / (1.0 + f64::from(i))).collect();
    let a = with_spectrum(40, 70, &s, 8);
    let svd = truncated_svd("full", a.as_ref(), 40, &SvdOptions { tolerance: 1e-10, ..krylov() }).unwrap();
    assert_laws(a.as_ref(), &svd, 40, 1e-10);
    let row = Mat::<f64>::from_fn(1, 3, |_, j| [3.0, 0.0, -4.0][j]);
    for algorithm in [Algorithm::Auto, Algorithm::BlockKrylov] {
        let svd = truncated_svd("row", row.as_ref(), 1, &SvdOptions { algorithm, ..krylov() }).unwrap();
        assert_values(&svd.s, &[5.0], 1e-15);
        assert_eq!(svd.u[(0, 0)], 1.0);
        assert_laws(row.as_ref(), &svd, 1, 1e-15);
    }
}

#[test]
fn an_exact_part_of_a_small_f32_matrix_is_that_of_f64_though_its_last_value_has_a_near_neighbour() {
    let value = |i: i32| match i {
        0..8 => 1.0 - 0.1 * f64::from(i),
        8 => 0.299_95,
        _ => 0.2 / f64::from(i),
    };
    let s: Vec<f64> = (0..48).map(value).collect();
    let narrow = narrow(&with_spectrum(64, 48, &s, 11));
    let wide = Mat::<f64>::from_fn(64, 48, |i, j| narrow[(i, j)].into());
    let options = SvdOptions { algorithm: Algorithm::Exact, ..SvdOptions::default() };
    let found = truncated_svd("narrow", narrow.as_ref(), 8, &options).unwrap();
    let expected = truncated_svd("wide", wide.as_ref(), 8, &options).unwrap();
    let part = |i: usize, j: usize| -> f64 {
        (0..8).map(|k| f64::from(found.u[(i, k)]) * f64::from(found.s[k]) * f64::from(found.v[(j, k)])).sum()
    };
    let exact =
        |i: usize, j: usize| -> f64 { (0..8).map(|k| expected.u[(i, k)] * expected.s[k] * expected.v[(j, k)]).sum() };
    let worst = (0..64).flat_map(|i| (0..48).map(move |j| (i, j))).map(|(i, j)| (part(i, j) - exact(i, j)).abs());
    let worst = worst.fold(0.0, f64::max);
    assert!(worst < 1e-6, "differs by {worst}");
}

#[test]
fn the_same_seed_repeats_itself_and_another_agrees() {
    let s: Vec<f64> = (0..300).map(|i| 0.97f64.powi(i)).collect();
    let a = narrow(&with_spectrum(300, 300, &s, 9));
    let run = |seed| truncated_svd("a", a.as_ref(), 10, &SvdOptions { seed, ..krylov() }).unwrap();
    let (one, again, other) = (run(1), run(1), run(2));
    assert_eq!(one.u, again.u);
    assert_eq!(one.s, again.s);
    assert_ne!(one.u, other.u);
    assert!((&one.u - &other.u).norm_max() < 1e-3, "signs included");
}

#[test]
fn an_exact_part_that_f32_does_not_find_within_the_tolerance_comes_from_f64() {
    // What packing loses of a weight of SmolLM2 beside factors of rank 128 ended with a residual of 2.5e-4.
    let a = Mat::<f32>::from_fn(520, 540, |i, j| ((i * 541 + j * 7919 + i * j * 31) % 1009) as f32 / 1009.0 - 0.5);
    let exact = SvdOptions { algorithm: Algorithm::Exact, ..SvdOptions::default() };
    let loose = truncated_svd("a", a.as_ref(), 120, &exact).unwrap();
    let tight = SvdOptions { tolerance: loose.report.residual / 1.5, ..exact };
    let found = truncated_svd("a", a.as_ref(), 120, &tight).unwrap();
    assert!(found.report.residual < loose.report.residual / 1.5, "{:?} {:?}", found.report, loose.report);
}

#[test]
fn auto_falls_back_to_exact_where_the_iteration_does_not_pay() {
    let small = with_spectrum(60, 80, &[2.0, 1.0], 10);
    let svd = truncated_svd("small", small.as_ref(), 2, &SvdOptions::default()).unwrap();
    assert_eq!(svd.report.algorithm, Algorithm::Exact);
    // A flat spectrum with a wanted edge that no polynomial separates, and so few wanted that eigenvectors cost more.
    let flat: Vec<f64> = (0..300).map(|i| 1.0 - 1e-6 * f64::from(i)).collect();
    let flat = with_spectrum(300, 300, &flat, 11);
    let options = SvdOptions { tolerance: 1e-12, ..SvdOptions::default() };
    let svd = truncated_svd("flat", flat.as_ref(), 3, &options).unwrap();
    assert_eq!(svd.report.algorithm, Algorithm::Exact);
    let options = SvdOptions { max_blocks: 4, algorithm: Algorithm::BlockKrylov, ..options };
    let error = truncated_svd("flat", flat.as_ref(), 10, &options).unwrap_err();
    assert!(matches!(error, LinalgError::NotConverged { blocks: 4, residual, .. } if residual > 1e-12), "{error}");
}

#[test]
fn auto_takes_eigenvectors_of_the_gram_matrix_where_the_spectrum_is_flat_and_iterates_where_it_is_not() {
    let flat: Vec<f64> = (0..300).map(|i| 1.0 - 0.9 * f64::from(i) / 300.0).collect();
    let decaying: Vec<f64> = (0..300).map(|i| (1.0 + f64::from(i)).powf(-0.35)).collect();
    for (m, n) in [(300, 420), (420, 300)] {
        for (s, algorithm) in [(&flat, Algorithm::Gram), (&decaying, Algorithm::BlockKrylov)] {
            let a = narrow(&with_spectrum(m, n, s, 21));
            let svd = truncated_svd("a", a.as_ref(), 40, &SvdOptions::default()).unwrap();
            assert_eq!(svd.report.algorithm, algorithm);
            assert_laws(a.as_ref(), &svd, 40, 1.1e-5);
            assert_values(&svd.s, s, 1e-6);
        }
    }
}

#[test]
fn the_gram_matrix_alone_is_exact_to_rounding_times_the_span_of_the_wanted_values() {
    let gram = SvdOptions { algorithm: Algorithm::Gram, ..SvdOptions::default() };
    for last in [0.5f64, 0.1] {
        let s: Vec<f64> = (0..80).map(|i| last.powf(f64::from(i) / 15.0)).collect();
        let a = narrow(&with_spectrum(90, 80, &s, 22));
        let svd = truncated_svd("a", a.as_ref(), 16, &gram).unwrap();
        assert_laws(a.as_ref(), &svd, 16, 3e-6);
        assert_values(&svd.s, &s, 1e-6);
    }
    // Of values that differ by more than their squares can hold it says so.
    let s: Vec<f64> = (0..80).map(|i| 0.5f64.powi(i)).collect();
    let error = truncated_svd("steep", narrow(&with_spectrum(90, 80, &s, 23)).as_ref(), 20, &gram).unwrap_err();
    assert!(matches!(error, LinalgError::NotConverged { blocks: 0, .. }), "{error}");
    // All triplets, copies among them, of any shape.
    for (m, n) in [(1, 1), (1, 7), (5, 5), (40, 30)] {
        let copies = vec![2.0; m.min(n)];
        let a = with_spectrum(m, n, &copies, 24);
        let svd = truncated_svd("copies", a.as_ref(), copies.len(), &gram).unwrap();
        assert_laws(a.as_ref(), &svd, copies.len(), 1e-12);
        assert_values(&svd.s, &copies, 1e-12);
    }
}

#[test]
fn bad_input_is_an_error_that_names_the_matrix() {
    let mut a = Mat::<f32>::identity(4, 6);
    let run =
        |a: MatRef<'_, f32>, rank| truncated_svd("layer.q", a, rank, &SvdOptions::default()).unwrap_err().to_string();
    assert_eq!(run(a.as_ref(), 0), "rank 0 was asked for matrix `layer.q`, it must be at least 1");
    assert_eq!(run(a.as_ref(), 5), "rank 5 was asked for matrix `layer.q`, a 4 x 6 matrix has at most 4");
    assert_eq!(run(a.get(..0, ..), 1), "matrix `layer.q` is empty: 0 x 6");
    a[(2, 1)] = f32::NAN;
    a[(1, 5)] = f32::INFINITY;
    let expected = "matrix `layer.q` has 2 entries that are not finite, the first is NaN at row 2, column 1";
    assert_eq!(run(a.as_ref(), 1), expected);
    // Stored by rows, `inf` comes first, and is still found at its own place.
    let rows = a.transpose().to_owned();
    assert!(run(rows.transpose(), 1).ends_with("the first is inf at row 1, column 5"));
}

#[test]
fn every_algorithm_completes_the_triplets_of_a_matrix_of_smaller_rank() {
    for (rows, columns) in [(40, 60), (60, 40), (300, 280)] {
        let zero = Mat::<f64>::zeros(rows, columns);
        let single = with_spectrum(rows, columns, &[3.0], 1);
        let few = with_spectrum(rows, columns, &[3.0, 2.0, 1.0], 2);
        for (name, a) in [("zero", zero), ("rank 1", single), ("rank 3", few)] {
            for algorithm in [Algorithm::Auto, Algorithm::Exact, Algorithm::BlockKrylov, Algorithm::Gram] {
                let options = SvdOptions { algorithm, ..SvdOptions::default() };
                let narrow = narrow(&a);
                let svd = truncated_svd(name, narrow.as_ref(), 16, &options).unwrap();
                assert_laws(narrow.as_ref(), &svd, 16, 1e-5);
            }
        }
    }
}

#[test]
fn a_copy_of_the_leading_value_beyond_the_width_of_a_block_is_found() {
    // Five copies of 1, blocks of four: the fifth is only in the complement of what the blocks reach. The blocks meet the kernel too.
    let s: Vec<f64> = [(5, 1.0), (4, 0.5), (7, 0.25)].iter().flat_map(|(n, value)| vec![*value; *n]).collect();
    for seed in 0..200 {
        let a = with_spectrum(s.len() + 5, s.len() + 9, &s, seed);
        let options = SvdOptions { block: 4, seed: seed + 1, max_blocks: 90, tolerance: 1e-9, ..krylov() };
        let svd = truncated_svd("a", a.as_ref(), 5, &options).unwrap();
        assert!((svd.s[4] - 1.0).abs() < 1e-9, "seed {seed}: {:?} {:?}", svd.s, svd.report);
    }
}
