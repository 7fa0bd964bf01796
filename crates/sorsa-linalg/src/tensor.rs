//! The truncated SVD of a burn tensor, on its device or on the host.
//!
//! The only large operations of a Krylov iteration are the products with the weight. [`Placement::Device`] runs them on the
//! weight's device and transfers panels of a few columns, so that a weight on a GPU stays there. [`Placement::Host`] copies
//! the weight once and computes everything in host memory.

use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use faer::{Mat, MatRef};

use crate::operator::Operator;
use crate::svd::{check_rank, exact_is_cheaper, projected_svd};
use crate::{Algorithm, LinalgError, SvdOptions, SvdReport, truncated_svd as host_svd};

/// The place of the products with the weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Host memory: best for tensors of a CPU backend.
    Host,
    /// The tensor's device: best for a GPU.
    Device,
}

/// The leading singular triplets of a tensor `[m, n]`, on its device, in f32.
#[derive(Debug, Clone)]
pub struct TensorSvd {
    /// Left singular vectors `[m, rank]`, orthonormal columns.
    pub u: Tensor<2>,
    /// Singular values `[rank]`, descending.
    pub s: Tensor<1>,
    /// Right singular vectors `[rank, n]`, orthonormal rows.
    pub vt: Tensor<2>,
    /// Algorithm, residual and work.
    pub report: SvdReport,
}

/// The `rank` leading singular triplets of `w [m, n]`, always computed in f32 and without gradient.
///
/// If the exact algorithm runs, even [`Placement::Device`] copies the matrix to the host.
///
/// # Errors
///
/// Those of [`truncated_svd`](crate::truncated_svd), and [`LinalgError::Device`] if the tensor cannot be read.
pub fn truncated_svd(
    name: &str,
    w: Tensor<2>,
    rank: usize,
    options: &SvdOptions,
    placement: Placement,
) -> Result<TensorSvd, LinalgError> {
    let w = w.inner().cast(FloatDType::F32);
    let (device, [rows, cols]) = (w.device(), w.dims());
    check_rank(name, (rows, cols), rank)?;
    let iterate = match options.algorithm {
        Algorithm::Auto => !exact_is_cheaper((rows, cols), rank),
        Algorithm::Exact => false,
        Algorithm::BlockKrylov | Algorithm::Gram => true,
    };
    let on_host = |options: &SvdOptions| {
        let data = read(name, w.clone())?;
        host_svd(name, MatRef::from_row_major_slice(&data, rows, cols), rank, options)
    };
    let svd = if placement == Placement::Host || !iterate || !all_finite(name, w.clone())? {
        // The host also finds the first entry that is not finite.
        on_host(options)?
    } else {
        let operator = OnDevice { name, w: w.clone() };
        match projected_svd(name, &operator, rank, options) {
            Err(LinalgError::NotConverged { .. }) if options.algorithm == Algorithm::Auto => {
                on_host(&SvdOptions { algorithm: Algorithm::Exact, ..options.clone() })?
            }
            done => done?,
        }
    };
    let tensor = |values: Vec<f32>, shape: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(values, shape), (&device, DType::F32))
    };
    Ok(TensorSvd {
        u: tensor(row_major(svd.u.as_ref()), [rows, rank]),
        s: Tensor::from_data(TensorData::new(svd.s, [rank]), (&device, DType::F32)),
        vt: tensor(row_major(svd.v.transpose()), [rank, cols]),
        report: svd.report,
    })
}

/// `A [m, n]` as a tensor. A panel `[width, k]` stored by columns is, byte for byte, a tensor `[k, width]`.
struct OnDevice<'a> {
    name: &'a str,
    w: Tensor<2>,
}

impl OnDevice<'_> {
    /// `M x` for each row `x` of the panel.
    fn product(&self, m: Tensor<2>, panel: MatRef<'_, f32>) -> Result<Mat<f32>, LinalgError> {
        let (width, length, rows) = (panel.nrows(), panel.ncols(), m.dims()[0]);
        let panel = TensorData::new(row_major(panel.transpose()), [length, width]);
        let panel = Tensor::<2>::from_data(panel, (&self.w.device(), DType::F32));
        let data = read(self.name, m.matmul(panel))?;
        Ok(MatRef::from_column_major_slice(&data, width, rows).to_owned())
    }
}

impl Operator<f32> for OnDevice<'_> {
    fn shape(&self) -> (usize, usize) {
        let [rows, cols] = self.w.dims();
        (rows, cols)
    }

    fn apply(&self, panel: MatRef<'_, f32>) -> Result<Mat<f32>, LinalgError> {
        self.product(self.w.clone(), panel)
    }

    fn apply_transpose(&self, panel: MatRef<'_, f32>) -> Result<Mat<f32>, LinalgError> {
        self.product(self.w.clone().transpose(), panel)
    }

    fn gram(&self, turned: bool) -> Result<Mat<f32>, LinalgError> {
        let w = if turned { self.w.clone().transpose() } else { self.w.clone() };
        let n = w.dims()[0];
        let data = read(self.name, w.clone().matmul(w.transpose()))?;
        Ok(MatRef::from_column_major_slice(&data, n, n).to_owned())
    }
}

fn all_finite(name: &str, w: Tensor<2>) -> Result<bool, LinalgError> {
    let all = w.is_finite().all().try_into_vec_as::<bool>().map_err(|source| device_error(name, source))?;
    Ok(all == [true])
}

fn read(name: &str, w: Tensor<2>) -> Result<Vec<f32>, LinalgError> {
    w.try_into_vec_as::<f32>().map_err(|source| device_error(name, source))
}

fn device_error(name: &str, source: impl std::error::Error + Send + Sync + 'static) -> LinalgError {
    LinalgError::Device { name: name.into(), source: Box::new(source) }
}

fn row_major(a: MatRef<'_, f32>) -> Vec<f32> {
    a.row_iter().flat_map(|row| row.iter().copied()).collect()
}
