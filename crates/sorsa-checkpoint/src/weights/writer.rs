//! Writing a checkpoint as Hugging Face tools read it, one tensor in memory at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;
use sorsa_files::AtomicFile;

use super::{Expected, INDEX_FILE, Index, SINGLE_FILE, WeightsError};
use crate::TensorFormats;

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
                self.formats.of(&tensor.name).encode(&produced, &mut buffer);
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
        self.formats.of(&tensor.name).bytes(tensor.shape.iter().product()) as u64
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
            let info = TensorInfo {
                dtype: self.formats.of(&tensor.name).into(),
                shape: tensor.shape.clone(),
                data_offsets: (start, end),
            };
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
        let format = self.formats.of(&tensor.name);
        let limit = format.overflow();
        match values.par_iter().position_first(|value| value.is_finite() && value.abs() >= limit) {
            None => Ok(()),
            Some(index) => Err(WeightsError::TooLarge {
                name: tensor.name.clone(),
                index,
                value: values[index],
                dtype: format.into(),
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
