//! Measures CPU seconds and accuracy of the leading singular triplets: the exact algorithm, block Krylov, the automatic
//! choice, and plain randomized power iteration (4 iterations, 16 extra columns). The spectra decay slowly, like those of
//! trained weights, or are flat, like those of random weights.
//!
//! `cargo run --release --example svd_speed -- [size ..]`, by default 1024 2048. One thread; rank 128.

use std::time::Instant;

use faer::{Mat, MatRef, Par};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sorsa_linalg::{Algorithm, SvdOptions, faer, truncated_svd};

const RANK: usize = 128;

fn main() {
    let given: Vec<usize> = std::env::args().skip(1).map(|size| size.parse().expect("a size")).collect();
    let sizes = if given.is_empty() { vec![1024, 2048] } else { given };
    faer::set_global_parallelism(Par::Seq);
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    one_thread.install(|| {
        println!("| size, spectrum | algorithm | CPU s | residual / s_1 | error, top 128 | top 64 | columns |");
        println!("|---|---|---|---|---|---|---|");
        for n in sizes {
            let (a, s) = slowly_decaying(n);
            compare(&format!("{n}, decaying"), a.as_ref(), &s);
            let a = gaussian(n, n, &mut ChaCha8Rng::seed_from_u64(3));
            compare(&format!("{n}, flat"), a.as_ref(), &[]);
        }
    });
}

/// Prints a row for each algorithm. `exact` holds the singular values if they are known, otherwise nothing.
fn compare(name: &str, a: MatRef<'_, f32>, exact: &[f64]) {
    for algorithm in [Algorithm::Exact, Algorithm::BlockKrylov, Algorithm::Auto] {
        if algorithm == Algorithm::Exact && a.nrows() > 3000 {
            continue;
        }
        let options = SvdOptions { algorithm, ..SvdOptions::default() };
        let start = Clock::start();
        let svd = truncated_svd("a", a, RANK, &options).expect("converges");
        let seconds = start.seconds();
        let columns = svd.report.columns.to_string();
        let ran = match algorithm {
            Algorithm::Auto => format!("Auto: {:?}", svd.report.algorithm),
            algorithm => format!("{algorithm:?}"),
        };
        row(name, &ran, seconds, svd.report.residual, &svd.s, exact, &columns);
    }
    let start = Clock::start();
    let (u, values, v) = power_iteration(a, RANK, 16, 4);
    let seconds = start.seconds();
    let columns = (10 * (RANK + 16)).to_string();
    row(name, "power iteration", seconds, residual(a, &u, &values, &v), &values, exact, &columns);
}

/// CPU time of this thread if the system reports it (Linux), otherwise wall time.
struct Clock(Instant, Option<f64>);

impl Clock {
    fn start() -> Self {
        Clock(Instant::now(), Self::cpu())
    }

    fn seconds(&self) -> f64 {
        match (self.1, Self::cpu()) {
            (Some(start), Some(now)) => now - start,
            _ => self.0.elapsed().as_secs_f64(),
        }
    }

    fn cpu() -> Option<f64> {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        Some(text.split_whitespace().next()?.parse::<f64>().ok()? * 1e-9)
    }
}

fn row(name: &str, algorithm: &str, seconds: f64, residual: f64, found: &[f32], exact: &[f64], columns: &str) {
    let error = |k: usize| {
        let worst = found.iter().zip(exact).take(k).map(|(f, e)| (f64::from(*f) / e - 1.0).abs()).reduce(f64::max);
        worst.map_or_else(|| "-".to_owned(), |worst| format!("{worst:.1e}"))
    };
    let (all, half) = (error(RANK), error(64));
    println!("| {name} | {algorithm} | {seconds:.3} | {residual:.1e} | {all} | {half} | {columns} |");
}

/// `Q_1 diag(s) Q_2` in f32, with its singular values `s_i = (1 + i)^-0.35`.
fn slowly_decaying(n: usize) -> (Mat<f32>, Vec<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (mut left, right) = (orth(&gaussian(n, n, &mut rng)), orth(&gaussian(n, n, &mut rng)));
    let s: Vec<f64> = (0..n).map(|i| (1.0 + i as f64).powf(-0.35)).collect();
    for (j, s) in s.iter().enumerate() {
        left.col_as_slice_mut(j).iter_mut().for_each(|x| *x *= *s as f32);
    }
    (left * right, s)
}

fn gaussian(rows: usize, cols: usize, rng: &mut ChaCha8Rng) -> Mat<f32> {
    Mat::from_fn(rows, cols, |_, _| StandardNormal.sample(rng))
}

fn orth(a: &Mat<f32>) -> Mat<f32> {
    a.qr().compute_thin_Q()
}

fn power_iteration(a: MatRef<'_, f32>, rank: usize, extra: usize, iterations: usize) -> (Mat<f32>, Vec<f32>, Mat<f32>) {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut q = orth(&(a * gaussian(a.ncols(), rank + extra, &mut rng)));
    for _ in 0..iterations {
        q = orth(&(a.transpose() * q));
        q = orth(&(a * q));
    }
    let small = (q.transpose() * a).thin_svd().expect("converges");
    let values = small.S().column_vector().iter().copied().take(rank).collect();
    (q * small.U().subcols(0, rank), values, small.V().subcols(0, rank).to_owned())
}

fn residual(a: MatRef<'_, f32>, u: &Mat<f32>, s: &[f32], v: &Mat<f32>) -> f64 {
    let image = a * v;
    let worst = (0..s.len()).map(|j| (image.col(j) - u.col(j) * faer::Scale(s[j])).norm_l2()).fold(0.0, f32::max);
    f64::from(worst / s[0])
}
