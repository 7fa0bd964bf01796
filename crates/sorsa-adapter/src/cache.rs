//! A cache of principal triplets on disk. The key is the weight's content, the rank and the settings of the SVD.

use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use sorsa_files::{ContentHash, HostTensor, NamedTensors, read_tensors, write_tensors};
use sorsa_linalg::SvdOptions;

use crate::error::AdapterError;
use crate::factors::Principal;

/// A folder of decomposed weights. Entries are written atomically; one that cannot be read is computed again.
pub(crate) struct SvdCache {
    folder: PathBuf,
}

/// One decomposed weight.
pub(crate) struct CacheEntry {
    pub principal: Principal,
    pub residual: f64,
}

impl SvdCache {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn file(&self, fingerprint: &str, rank: usize, options: &SvdOptions) -> PathBuf {
        let mut key = ContentHash::new();
        key.update(format!("{fingerprint} {rank} {options:?}").as_bytes());
        self.folder.join(format!("{}.safetensors", key.hex()))
    }

    pub fn get(
        &self,
        fingerprint: &str,
        [d_in, d_out]: [usize; 2],
        rank: usize,
        options: &SvdOptions,
    ) -> Option<CacheEntry> {
        let mut tensors = read_tensors(&self.file(fingerprint, rank, options)).ok()?;
        let mut take = |name: &str, shape: &[usize]| {
            let whole = |tensor: &HostTensor| tensor.shape == shape && tensor.values.iter().all(|v| v.is_finite());
            tensors.remove(name).filter(whole)
        };
        let (u, vt) = (take("u", &[d_in, rank])?, take("vt", &[rank, d_out])?);
        let (s, residual) = (take("s", &[rank])?, take("residual", &[1])?);
        let principal = Principal { u, s: s.values, vt };
        Some(CacheEntry { principal, residual: f64::from(residual.values[0]) })
    }

    /// Writes an entry. The caller may ignore the error: without the entry, the SVD is computed again.
    pub fn put(
        &self,
        fingerprint: &str,
        rank: usize,
        options: &SvdOptions,
        entry: &CacheEntry,
    ) -> Result<(), AdapterError> {
        let io = |path: &Path, source| AdapterError::Io { path: path.to_owned(), source };
        std::fs::create_dir_all(&self.folder).map_err(|source| io(&self.folder, source))?;
        let Principal { u, s, vt } = &entry.principal;
        let tensors = NamedTensors::from([
            ("u".to_owned(), u.clone()),
            ("s".to_owned(), HostTensor::new([s.len()], s.clone())),
            ("vt".to_owned(), vt.clone()),
            ("residual".to_owned(), HostTensor::new([1], vec![entry.residual as f32])),
        ]);
        Ok(write_tensors(&self.file(fingerprint, rank, options), &tensors)?)
    }
}

/// A hash of a weight's shape and elements. Elements are hashed as f32, so that a weight has the same hash in bf16 and
/// after it was widened to f32.
pub(crate) fn fingerprint(weight: &Tensor<2>) -> String {
    /// Rows that are widened at a time.
    const ROWS: usize = 1024;
    let [rows, columns] = weight.dims();
    let mut hasher = ContentHash::new();
    hasher.update(format!("{:?} {:?}", DType::F32, [rows, columns]).as_bytes());
    if weight.dtype() == DType::F32 {
        hasher.update(weight.to_data().as_bytes());
    } else {
        for start in (0..rows).step_by(ROWS) {
            let part = weight.clone().narrow(0, start, ROWS.min(rows - start)).cast(FloatDType::F32);
            hasher.update(part.into_data().as_bytes());
        }
    }
    hasher.hex()
}
