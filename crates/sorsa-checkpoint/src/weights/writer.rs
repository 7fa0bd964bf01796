//! Writing a checkpoint as Hugging Face tools read it, one tensor in memory at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;
use sorsa_files::AtomicFile;

use super::{Expected, INDEX_FILE, Index, SINGLE_FILE, WeightsError};

/// The shard size of Transformers' `save_pretrained`, in bytes.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;
/// Numbers that one task encodes.
const CHUNK: usize = 1 << 16;

/// A type that weights are written in; f32 values are rounded to nearest even.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatDtype {
    /// 32 bits, as they are.
    F32,
    /// IEEE half precision: 11 bits of precision, up to 65504.
    F16,
    /// The upper half of an f32: 8 bits of precision, the range of f32.
    Bf16,
}

impl From<FloatDtype> for Dtype {
    fn from(dtype: FloatDtype) -> Self {
        match dtype {
            FloatDtype::F32 => Self::F32,
            FloatDtype::F16 => Self::F16,
            FloatDtype::Bf16 => Self::BF16,
        }
    }
}

impl FloatDtype {
    fn size(self) -> usize {
        Dtype::from(self).bitsize() / 8
    }

    /// The smallest f32 that rounds to infinity: half a unit above the largest finite value.
    fn overflow(self) -> f32 {
        match self {
            Self::F32 => f32::INFINITY,
            Self::F16 => 65520.0,
            Self::Bf16 => f32::from_bits(0x7F7F_8000),
        }
    }

    /// Fills `bytes` with `values`, little-endian.
    fn encode(self, values: &[f32], bytes: &mut Vec<u8>) {
        let size = self.size();
        bytes.resize(values.len() * size, 0);
        bytes.par_chunks_mut(CHUNK * size).zip(values.par_chunks(CHUNK)).for_each(|(bytes, values)| match self {
            Self::F32 => each(values, bytes, f32::to_le_bytes),
            Self::F16 => each(values, bytes, |value| f16::from_f32(value).to_le_bytes()),
            Self::Bf16 => each(values, bytes, |value| bf16::from_f32(value).to_le_bytes()),
        });
    }
}

fn each<const N: usize>(values: &[f32], bytes: &mut [u8], write: impl Fn(f32) -> [u8; N]) {
    for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = write(*value);
    }
}

/// Writes `model.safetensors`, or shards and their index where the weights are larger than one file should be.
#[derive(Debug, Clone)]
pub struct CheckpointWriter {
    dir: PathBuf,
    dtype: FloatDtype,
    max_shard_bytes: u64,
}

impl CheckpointWriter {
    /// Writes into `dir`, which is made if need be, all tensors as `dtype`, in shards of at most 5 GB.
    pub fn new(dir: impl Into<PathBuf>, dtype: FloatDtype) -> Self {
        Self { dir: dir.into(), dtype, max_shard_bytes: MAX_SHARD_BYTES }
    }

    /// Starts a new shard before the tensors of one exceed `bytes`. A tensor larger than that has a shard to itself.
    pub fn with_max_shard_bytes(mut self, bytes: u64) -> Self {
        self.max_shard_bytes = bytes;
        self
    }

    /// Writes `tensors` in their order and returns the files. `produce` is called once for each, in that order, and
    /// gives its values row-major; they are written before the next is asked for.
    ///
    /// Everything is written under temporary names, which take their places only when all of it is on the disk. An error
    /// before that leaves what was in the folder as it was; one between two renames leaves no checkpoint, never parts of
    /// two.
    ///
    /// # Errors
    /// [`WeightsError::NamedTwice`], [`WeightsError::Produce`], [`WeightsError::WrongLength`],
    /// [`WeightsError::TooLarge`] rather than writing an infinity that was none, and [`WeightsError::Io`].
    pub fn write<E>(
        &self,
        tensors: &[Expected],
        mut produce: impl FnMut(&Expected) -> Result<Vec<f32>, E>,
    ) -> Result<Vec<PathBuf>, WeightsError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut seen = HashSet::new();
        let names: Vec<_> =
            tensors.iter().map(|tensor| &tensor.name).filter(|name| !seen.insert(*name)).cloned().collect();
        if !names.is_empty() {
            return Err(WeightsError::NamedTwice { names });
        }
        std::fs::create_dir_all(&self.dir).map_err(WeightsError::io(&self.dir))?;

        let shards = self.shards(tensors);
        let (mut files, mut paths) = (Vec::new(), Vec::new());
        let mut buffer = Vec::new();
        for (i, shard) in shards.iter().enumerate() {
            let path = self.dir.join(shard_name(i, shards.len()));
            let mut file = AtomicFile::create(&path)?;
            file.write(&self.header(shard))?;
            for tensor in *shard {
                let produced = produce(tensor)
                    .map_err(|source| WeightsError::Produce { name: tensor.name.clone(), source: source.into() })?;
                self.check(tensor, &produced)?;
                self.dtype.encode(&produced, &mut buffer);
                drop(produced);
                file.write(&buffer)?;
            }
            paths.push(path);
            files.push(file);
        }
        if shards.len() > 1 {
            let path = self.dir.join(INDEX_FILE);
            let mut file = AtomicFile::create(&path)?;
            file.write(&self.index(&shards))?;
            paths.push(path);
            files.push(file);
        }
        files.iter_mut().try_for_each(AtomicFile::sync)?;
        if shards.len() > 1 {
            // An older one would call new and old shards of the same names a checkpoint.
            remove_if_there(&self.dir.join(INDEX_FILE))?;
        }
        // The index is last: until it is there, new shards are no checkpoint.
        files.into_iter().try_for_each(AtomicFile::commit)?;
        if shards.len() > 1 {
            remove_if_there(&self.dir.join(SINGLE_FILE))?;
        }
        Ok(paths)
    }

    fn bytes(&self, tensor: &Expected) -> u64 {
        (tensor.shape.iter().product::<usize>() * self.dtype.size()) as u64
    }

    /// Consecutive tensors that share a file; always at least one file.
    fn shards<'a>(&self, tensors: &'a [Expected]) -> Vec<&'a [Expected]> {
        let (mut shards, mut start, mut used) = (Vec::new(), 0, 0);
        for (i, tensor) in tensors.iter().enumerate() {
            let bytes = self.bytes(tensor);
            if i > start && used + bytes > self.max_shard_bytes {
                shards.push(&tensors[start..i]);
                (start, used) = (i, 0);
            }
            used += bytes;
        }
        shards.push(&tensors[start..]);
        shards
    }

    fn header(&self, tensors: &[Expected]) -> Vec<u8> {
        let mut end = 0;
        let infos = tensors.iter().map(|tensor| {
            let start = end;
            end += self.bytes(tensor) as usize;
            let info = TensorInfo { dtype: self.dtype.into(), shape: tensor.shape.clone(), data_offsets: (start, end) };
            (tensor.name.clone(), info)
        });
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let metadata = Metadata::new(Some(format), infos.collect()).expect("offsets follow from the shapes");
        let mut json = serde_json::to_vec(&metadata).expect("names and numbers are JSON");
        json.resize(json.len().next_multiple_of(8), b' ');
        [&(json.len() as u64).to_le_bytes(), json.as_slice()].concat()
    }

    fn index(&self, shards: &[&[Expected]]) -> Vec<u8> {
        let total: u64 = shards.iter().copied().flatten().map(|tensor| self.bytes(tensor)).sum();
        let mut weight_map = BTreeMap::new();
        for (i, shard) in shards.iter().enumerate() {
            weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), shard_name(i, shards.len()))));
        }
        let index = Index { metadata: json!({ "total_size": total }), weight_map };
        serde_json::to_vec_pretty(&index).expect("names and numbers are JSON")
    }

    fn check(&self, tensor: &Expected, values: &[f32]) -> Result<(), WeightsError> {
        if values.len() != tensor.shape.iter().product::<usize>() {
            return Err(WeightsError::WrongLength { tensor: tensor.clone(), found: values.len() });
        }
        let limit = self.dtype.overflow();
        match values.par_iter().position_first(|value| value.is_finite() && value.abs() >= limit) {
            None => Ok(()),
            Some(index) => Err(WeightsError::TooLarge {
                name: tensor.name.clone(),
                index,
                value: values[index],
                dtype: self.dtype.into(),
            }),
        }
    }
}

fn shard_name(i: usize, count: usize) -> String {
    if count == 1 { SINGLE_FILE.to_owned() } else { format!("model-{:05}-of-{count:05}.safetensors", i + 1) }
}

fn remove_if_there(path: &Path) -> Result<(), WeightsError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(WeightsError::io(path)(error)),
        _ => Ok(()),
    }
}
