//! The SVD of burn tensors, on the host and on their device.

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use faer::{Mat, MatRef};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sorsa_linalg::tensor::{self, Placement};
use sorsa_linalg::{Algorithm, LinalgError, SvdOptions, faer, truncated_svd};

fn gaussian(rows: usize, cols: usize, seed: u64) -> Mat<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Columns decay, so that the iteration converges.
    Mat::from_fn(rows, cols, |_, j| {
        let x: f32 = StandardNormal.sample(&mut rng);
        x * 0.98f32.powi(j as i32)
    })
}

fn tensor_of(a: &Mat<f32>) -> Tensor<2> {
    let values: Vec<f32> = a.row_iter().flat_map(|row| row.iter().copied()).collect();
    Tensor::from_data(TensorData::new(values, [a.nrows(), a.ncols()]), (&Device::flex(), DType::F32))
}

#[test]
fn a_tensor_decomposes_alike_on_its_device_and_on_the_host() {
    use Algorithm::{Auto, BlockKrylov, Gram};
    for (rows, cols, algorithm, ran) in
        [(290, 310, Auto, BlockKrylov), (310, 290, Auto, BlockKrylov), (290, 310, Gram, Gram), (310, 290, Gram, Gram)]
    {
        let a = gaussian(rows, cols, 3);
        let options = SvdOptions { algorithm, ..SvdOptions::default() };
        let host = truncated_svd("w", a.as_ref(), 6, &options).unwrap();
        assert_eq!(host.report.algorithm, ran);
        for placement in [Placement::Host, Placement::Device] {
            let svd = tensor::truncated_svd("w", tensor_of(&a), 6, &options, placement).unwrap();
            assert_eq!((svd.report.algorithm, svd.report.columns), (ran, host.report.columns));
            let u = svd.u.try_into_vec_as::<f32>().unwrap();
            let s = svd.s.try_into_vec_as::<f32>().unwrap();
            let vt = svd.vt.try_into_vec_as::<f32>().unwrap();
            assert!((MatRef::from_row_major_slice(&u, rows, 6) - &host.u).norm_max() < 1e-4);
            assert!((MatRef::from_row_major_slice(&vt, 6, cols) - host.v.transpose()).norm_max() < 1e-4);
            assert!(s.iter().zip(&host.s).all(|(a, b)| (a / b - 1.0).abs() < 1e-6));
        }
    }
}

#[test]
fn a_tensor_with_a_flat_spectrum_leaves_the_iteration_on_its_device_too() {
    for (rows, cols) in [(290, 310), (310, 290)] {
        let a = gaussian(rows, cols, 3);
        let exact = SvdOptions { algorithm: Algorithm::Exact, ..SvdOptions::default() };
        // Half of the stable rank, which is 20.
        let exact = truncated_svd("w", a.as_ref(), 10, &exact).unwrap();
        for placement in [Placement::Host, Placement::Device] {
            let svd = tensor::truncated_svd("w", tensor_of(&a), 10, &SvdOptions::default(), placement).unwrap();
            assert_eq!(svd.report.algorithm, Algorithm::Gram);
            let s = svd.s.try_into_vec_as::<f32>().unwrap();
            assert!(s.iter().zip(&exact.s).all(|(a, b)| (a / b - 1.0).abs() < 3e-6));
        }
    }
}

#[test]
fn a_half_precision_tensor_gives_f32_factors_of_the_rounded_weight() {
    let w = tensor_of(&gaussian(40, 30, 4)).cast(FloatDType::BF16);
    let svd = tensor::truncated_svd("w", w.clone(), 30, &SvdOptions::default(), Placement::Device).unwrap();
    assert_eq!(svd.u.dtype(), DType::F32);
    let rebuilt = (svd.u * svd.s.unsqueeze_dim(0)).matmul(svd.vt);
    let missing = (rebuilt - w.cast(FloatDType::F32)).abs().max().try_into_vec_as::<f32>().unwrap();
    assert!(missing[0] < 1e-4, "{missing:?}");
}

#[test]
fn a_tensor_that_is_not_finite_says_where() {
    let mut a = gaussian(290, 310, 5);
    a[(7, 11)] = f32::NAN;
    for placement in [Placement::Host, Placement::Device] {
        let error = tensor::truncated_svd("w", tensor_of(&a), 6, &SvdOptions::default(), placement).unwrap_err();
        assert!(matches!(error, LinalgError::NotFinite { row: 7, col: 11, count: 1, .. }), "{error}");
    }
}
