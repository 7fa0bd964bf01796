//! Many matrices at once, and tensors where they live.

use std::error::Error;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use faer::{Mat, MatRef};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sorsa_linalg::tensor::{self, Placement};
use sorsa_linalg::{Algorithm, Job, LinalgError, SvdOptions, decompose_all, faer, truncated_svd};

fn gaussian(rows: usize, cols: usize, seed: u64) -> Mat<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Columns decay, so that the iteration converges.
    Mat::from_fn(rows, cols, |_, j| {
        let x: f32 = StandardNormal.sample(&mut rng);
        x * 0.98f32.powi(j as i32)
    })
}

type Loaded = Result<Mat<f32>, Box<dyn Error + Send + Sync>>;

fn job<'a>(name: &str, rank: usize, load: impl FnOnce() -> Loaded + Send + 'a) -> Job<'a, f32> {
    Job { name: name.into(), rank, load: Box::new(load) }
}

#[test]
fn a_batch_equals_its_matrices_one_by_one_in_order() {
    let alive = AtomicUsize::new(0);
    let most = AtomicUsize::new(0);
    let seen = Mutex::new(Vec::new());
    let shapes = [(30, 40), (300, 280), (50, 20), (64, 64), (280, 300), (10, 90), (33, 32)];
    let jobs = shapes.iter().enumerate().map(|(i, &(m, n))| {
        let (alive, most) = (&alive, &most);
        job(&format!("w{i}"), 4, move || {
            most.fetch_max(alive.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            Ok(gaussian(m, n, i as u64))
        })
    });
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let results = pool.install(|| {
        decompose_all(jobs.collect(), &SvdOptions::default(), |progress| {
            alive.fetch_sub(1, Ordering::SeqCst);
            assert!(progress.outcome.is_ok());
            seen.lock().unwrap().push((progress.name.to_owned(), progress.done, progress.total));
        })
    });
    for (i, (svd, (m, n))) in results.unwrap().iter().zip(shapes).enumerate() {
        let alone = truncated_svd("w", gaussian(m, n, i as u64).as_ref(), 4, &SvdOptions::default()).unwrap();
        assert!((&svd.u - &alone.u).norm_max() < 1e-4);
        assert_eq!(svd.v.shape(), (n, 4));
    }
    assert!(most.into_inner() <= 2, "a matrix was loaded before its turn");
    let mut seen = seen.into_inner().unwrap();
    seen.sort_by_key(|&(_, done, _)| done);
    assert!(seen.iter().enumerate().all(|(i, &(_, done, total))| (done, total) == (i + 1, shapes.len())));
}

#[test]
fn a_batch_reports_every_failure() {
    let jobs = vec![
        job("good", 2, || Ok(gaussian(20, 20, 1))),
        job("greedy", 21, || Ok(gaussian(20, 20, 1))),
        job("absent", 2, || Err("no such file".into())),
    ];
    let error = decompose_all(jobs, &SvdOptions::default(), |_| ()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, LinalgError::Several(errors) if errors.len() == 2));
    assert!(text.contains("`greedy`") && text.contains("`absent` could not be loaded: no such file"), "{text}");
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
