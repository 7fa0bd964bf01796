//! Writing a checkpoint as Hugging Face tools read it, one tensor in memory at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;
use sorsa_files::AtomicFile;
use sorsa_kernels::packed::PackedMatrix;

use super::four_bit::{Part, parts};
use super::{Expected, INDEX_FILE, Index, SINGLE_FILE, WeightsError, first_non_finite};
use crate::{FourBitFormat, TensorContent, TensorFormats};

/// The shard size of Transformers' `save_pretrained`, in bytes.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Writes `model.safetensors`, or shards and their index if the weights are larger than one shard may be.
#[derive(Debug, Clone)]
pub struct CheckpointWriter {
    dir: PathBuf,
    formats: TensorFormats,
    max_shard_bytes: u64,
}

impl CheckpointWriter {
    /// Writes into `dir`, which is made if need be, each tensor in its format, in shards of at most 5 GB.
    pub fn new(dir: impl Into<PathBuf>, formats: impl Into<TensorFormats>) -> Self {
        Self { dir: dir.into(), formats: formats.into(), max_shard_bytes: MAX_SHARD_BYTES }
    }

    /// Starts a new shard before the tensors of one exceed `bytes`. A tensor larger than that has a shard to itself.
    pub fn with_max_shard_bytes(mut self, bytes: u64) -> Self {
        self.max_shard_bytes = bytes;
        self
    }

    /// Writes `tensors` in their order and returns the files. `produce` is called once for each, in that order, and
    /// gives its values row-major; they are written before the next is asked for. If there are matrices of 4 bits, f32 numbers come
    /// first in each file, then halves, then bytes; a matrix of 4 bits is asked for again for its bytes.
    ///
    /// Everything is written under temporary names, which take their places only when all of it is on the disk. An error
    /// before that leaves what was in the folder as it was; one between two renames leaves no checkpoint, never parts of
    /// two.
    ///
    /// # Errors
    /// [`WeightsError::NamedTwice`], [`WeightsError::Produce`], [`WeightsError::WrongLength`],
    /// [`WeightsError::NotFinite`] for a matrix of 4 bits, [`WeightsError::TooLarge`] rather than writing an infinity that was none,
    /// and [`WeightsError::Io`].
    pub fn write<C, E>(
        &self,
        tensors: &[Expected],
        mut produce: impl FnMut(&Expected) -> Result<C, E>,
    ) -> Result<Vec<PathBuf>, WeightsError>
    where
        C: Into<TensorContent>,
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
            let entries = self.entries(shard);
            file.write(&header(&entries))?;
            for parts in entries.chunk_by(|a, b| std::ptr::eq(a.tensor, b.tensor)) {
                let tensor = parts[0].tensor;
                let content = produce(tensor)
                    .map_err(|source| WeightsError::Produce { name: tensor.name.clone(), source: source.into() })?
                    .into();
                match self.formats.four_bit.get(&tensor.name) {
                    None => {
                        self.encode(tensor, content, &mut buffer)?;
                        file.write(&buffer)?;
                    }
                    Some(format) => {
                        let packed = packed(tensor, *format, content)?;
                        for part in parts.iter().filter_map(|entry| entry.part.as_ref()) {
                            file.write(&part.bytes(&packed))?;
                        }
                    }
                }
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

    /// The tensors of a file that hold `tensors`, in their order there.
    fn entries<'a>(&self, tensors: &'a [Expected]) -> Vec<Entry<'a>> {
        let mut entries: Vec<Entry<'_>> = tensors.iter().flat_map(|tensor| self.entries_of(tensor)).collect();
        if entries.iter().any(|entry| entry.part.is_some()) {
            // Numbers begin at a multiple of their size, whatever the number of bytes before them.
            entries.sort_by_key(|entry| std::cmp::Reverse(entry.dtype.bitsize()));
        }
        entries
    }

    fn entries_of<'a>(&self, tensor: &'a Expected) -> Vec<Entry<'a>> {
        match self.formats.four_bit.get(&tensor.name) {
            None => {
                let (dtype, shape) = (self.formats.of(&tensor.name).into(), tensor.shape.clone());
                vec![Entry { tensor, part: None, name: tensor.name.clone(), dtype, shape }]
            }
            Some(format) => {
                let entry = |part: Part| {
                    let (name, dtype, shape) = (part.name.clone(), part.dtype, part.shape.clone());
                    Entry { tensor, part: Some(part), name, dtype, shape }
                };
                parts(tensor, *format).into_iter().map(entry).collect()
            }
        }
    }

    fn bytes(&self, tensor: &Expected) -> u64 {
        self.entries_of(tensor).iter().map(|entry| entry.bytes() as u64).sum()
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

    fn index(&self, shards: &[&[Expected]]) -> Vec<u8> {
        let total: u64 = shards.iter().copied().flatten().map(|tensor| self.bytes(tensor)).sum();
        let mut weight_map = BTreeMap::new();
        for (i, shard) in shards.iter().enumerate() {
            let names = self.entries(shard).into_iter().map(|entry| entry.name);
            weight_map.extend(names.map(|name| (name, shard_name(i, shards.len()))));
        }
        let index = Index { metadata: json!({ "total_size": total }), weight_map };
        serde_json::to_vec_pretty(&index).expect("names and numbers are JSON")
    }

    /// Fills `buffer` with the numbers of a tensor that is not packed in the file.
    fn encode(&self, tensor: &Expected, content: TensorContent, buffer: &mut Vec<u8>) -> Result<(), WeightsError> {
        let values = match content {
            TensorContent::Values(values) => values,
            TensorContent::Packed(matrix) => matrix.to_f32(),
        };
        check_length(tensor, &values)?;
        let format = self.formats.of(&tensor.name);
        let limit = format.overflow();
        match values.par_iter().position_first(|value| value.is_finite() && value.abs() >= limit) {
            None => {
                format.encode(&values, buffer);
                Ok(())
            }
            Some(index) => Err(WeightsError::TooLarge {
                name: tensor.name.clone(),
                index,
                value: values[index],
                dtype: format.into(),
            }),
        }
    }
}

/// A tensor of a file.
struct Entry<'a> {
    /// The tensor of the model that it holds, or that it is a part of.
    tensor: &'a Expected,
    /// The part of a matrix of 4 bits.
    part: Option<Part>,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Entry<'_> {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

fn header(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut end = 0;
    let infos = entries.iter().map(|entry| {
        let start = end;
        end += entry.bytes();
        let info = TensorInfo { dtype: entry.dtype, shape: entry.shape.clone(), data_offsets: (start, end) };
        (entry.name.clone(), info)
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos.collect()).expect("offsets follow from the shapes");
    let mut json = serde_json::to_vec(&metadata).expect("names and numbers are JSON");
    json.resize(json.len().next_multiple_of(8), b' ');
    [&(json.len() as u64).to_le_bytes(), json.as_slice()].concat()
}

/// The matrix in 4 bits; one that is so already is taken as it is.
fn packed(tensor: &Expected, format: FourBitFormat, content: TensorContent) -> Result<PackedMatrix, WeightsError> {
    let values = match content {
        TensorContent::Packed(matrix) if format.is_of(&matrix) && matrix.shape().as_slice() == tensor.shape => {
            return Ok(matrix);
        }
        TensorContent::Packed(matrix) => matrix.to_f32(),
        TensorContent::Values(values) => values,
    };
    check_length(tensor, &values)?;
    if let Some((index, value)) = first_non_finite(&values) {
        return Err(WeightsError::NotFinite { name: tensor.name.clone(), index, value });
    }
    let wrong_length = || WeightsError::WrongLength { tensor: tensor.clone(), found: values.len() };
    let shape = tensor.shape.as_slice().try_into().map_err(|_| wrong_length())?;
    PackedMatrix::pack(format.into(), shape, &values).map_err(|_| wrong_length())
}

fn check_length(tensor: &Expected, values: &[f32]) -> Result<(), WeightsError> {
    match values.len() == tensor.shape.iter().product::<usize>() {
        true => Ok(()),
        false => Err(WeightsError::WrongLength { tensor: tensor.clone(), found: values.len() }),
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
