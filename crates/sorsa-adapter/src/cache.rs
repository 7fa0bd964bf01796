//! A cache of principal triplets on disk. The key is the weight's content, the rank, the settings of the SVD and those of packing.

use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use sorsa_files::{ContentHash, HostTensor, NamedTensors, read_tensors, write_tensors};
use sorsa_linalg::SvdOptions;

use crate::error::AdapterError;
use crate::factors::Principal;
use crate::packed_residual::ResidualPacking;
use crate::quantized_start::FirstFactors;

/// A folder of decomposed weights. Entries are written atomically; one that cannot be read is computed again.
pub(crate) struct SvdCache {
    folder: PathBuf,
}

/// One decomposed weight.
pub(crate) struct CacheEntry {
    /// The triplets at the start.
    pub principal: Principal,
    /// The triplets that were subtracted before the last packing, if others than those at the start were.
    pub subtracted: Option<Principal>,
    pub residual: f64,
}

/// What decides an entry: the content of the weight, the rank, and how it is decomposed.
pub(crate) struct CacheKey(String);

impl CacheKey {
    pub fn new(fingerprint: &str, rank: usize, options: &SvdOptions) -> Self {
        Self(format!("{fingerprint} {rank} {options:?}"))
    }

    /// The key of the triplets at these indexes of all.
    pub fn of_indexes(self, indexes: &Range<usize>) -> Self {
        Self(format!("{} indexes {indexes:?}", self.0))
    }

    /// The key of the triplets after the `first` largest.
    pub fn of_band(self, first: usize) -> Self {
        // The key of the leading triplets is that of builds that had no others.
        if first == 0 { self } else { Self(format!("{} after {first}", self.0)) }
    }

    /// The key of triplets that are fitted to the error of packing; `form` says how the packed residual follows from them.
    pub fn of_fit(self, packing: ResidualPacking, first: FirstFactors, form: &str) -> Self {
        let ResidualPacking { format, rounds } = packing;
        Self(format!("{} {format} {rounds} {first:?} {form}", self.0))
    }
}

impl SvdCache {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn file(&self, key: &CacheKey) -> PathBuf {
        let mut hash = ContentHash::new();
        hash.update(key.0.as_bytes());
        self.folder.join(format!("{}.safetensors", hash.hex()))
    }

    pub fn get(&self, key: &CacheKey, [d_in, d_out]: [usize; 2], rank: usize) -> Option<CacheEntry> {
        let mut tensors = read_tensors(&self.file(key)).ok()?;
        let has_subtracted = tensors.contains_key("subtracted.u");
        let mut take = |name: String, shape: &[usize]| {
            let whole = |tensor: &HostTensor| tensor.shape == shape && tensor.values.iter().all(|v| v.is_finite());
            tensors.remove(&name).filter(whole)
        };
        let mut triplets = |prefix: &str| {
            let u = take(format!("{prefix}u"), &[d_in, rank])?;
            let s = take(format!("{prefix}s"), &[rank])?.values;
            Some(Principal { u, s, vt: take(format!("{prefix}vt"), &[rank, d_out])? })
        };
        let principal = triplets("")?;
        let subtracted = if has_subtracted { Some(triplets("subtracted.")?) } else { None };
        let residual = take("residual".to_owned(), &[1])?;
        Some(CacheEntry { principal, subtracted, residual: f64::from(residual.values[0]) })
    }

    /// Writes an entry. The caller may ignore the error: without the entry, the SVD is computed again.
    pub fn put(&self, key: &CacheKey, entry: &CacheEntry) -> Result<(), AdapterError> {
        let io = |path: &Path, source| AdapterError::Io { path: path.to_owned(), source };
        std::fs::create_dir_all(&self.folder).map_err(|source| io(&self.folder, source))?;
        let residual = HostTensor::new([1], vec![entry.residual as f32]);
        let mut tensors = NamedTensors::from([("residual".to_owned(), residual)]);
        let subtracted = entry.subtracted.iter().map(|triplets| ("subtracted.", triplets));
        for (prefix, Principal { u, s, vt }) in [("", &entry.principal)].into_iter().chain(subtracted) {
            tensors.insert(format!("{prefix}u"), u.clone());
            tensors.insert(format!("{prefix}s"), HostTensor::new([s.len()], s.clone()));
            tensors.insert(format!("{prefix}vt"), vt.clone());
        }
        Ok(write_tensors(&self.file(key), &tensors)?)
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
