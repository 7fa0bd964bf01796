//! Singular value decompositions for adapters: the leading triplets of a large dense matrix, exact to working precision and
//! with a measured residual. Also measures of orthonormality and spectra.
//!
//! - [`truncated_svd`] decomposes a matrix in host memory;
//! - [`tensor::truncated_svd`] decomposes a burn tensor, on its device or on the host;
//! - [`svd_band`] gives any consecutive triplets, by the decomposition of the whole matrix;
//! - [`inverse_square_root`] and [`inverse_cholesky_factor`] make columns orthonormal, given their Gram matrix;
//! - [`squared_singular_values`] and [`rank_of_energy`] give the rank that holds a share of a matrix's energy;
//! - [`leading_qr`] gives the first columns and rows of a QR decomposition;
//! - [`product_svd`] decomposes a product of thin matrices without forming it;
//! - [`intruder`] finds singular vectors that training brought in;
//! - [`drift`] compares the singular triplets of a weight before and after training;
//! - [`spectral`] measures bases and singular values.
//!
//! ```
//! use sorsa_linalg::{SvdOptions, faer::Mat, spectral::orthonormality_defect, truncated_svd};
//!
//! let a = Mat::<f32>::from_fn(300, 500, |i, j| ((i * 7 + j * 3) % 11) as f32 - 5.0);
//! let svd = truncated_svd("a", a.as_ref(), 4, &SvdOptions::default())?;
//! assert!(svd.s.is_sorted_by(|a, b| a >= b));
//! assert!(svd.report.residual < 1e-5);
//! assert!(orthonormality_defect(svd.u.as_ref()) < 1e-5);
//! # Ok::<(), sorsa_linalg::LinalgError>(())
//! ```

mod assignment;
mod band;
mod basis;
mod cholesky;
pub mod drift;
mod eigen;
mod energy;
mod error;
mod exact;
mod gram;
mod gram_factor;
pub mod intruder;
mod krylov;
mod lanczos;
mod operator;
mod product;
mod qr;
mod ritz;
mod scalar;
pub mod spectral;
mod svd;
pub mod tensor;
mod tridiagonal;

pub use band::svd_band;
pub use energy::{rank_of_energy, squared_singular_values};
pub use error::LinalgError;
pub use faer;
pub use gram_factor::{inverse_cholesky_factor, inverse_square_root};
pub use lanczos::dominant_eigenpair;
pub use product::{ProductSvd, product_svd};
pub use qr::{LeadingQr, leading_qr};
pub use scalar::Scalar;
pub use svd::{Algorithm, Svd, SvdOptions, SvdReport, truncated_svd};
