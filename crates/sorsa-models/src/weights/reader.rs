//! A checkpoint folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::bf16;
use memmap2::Mmap;
use safetensors::Dtype;

use super::decode::{Number, Section, decode, decode_transposed};
use super::header::MappedFile;
use super::{INDEX_FILE, Index, Problem, SINGLE_FILE, WeightsError};

/// Formats that `torch.load` unpickles, and that can therefore run code.
const PICKLED: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];
/// Tensors from this size on are asked of the disk in one go before they are read, in bytes.
const PREFETCH_BYTES: usize = 1 << 20;

/// What a checkpoint says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of its numbers in the file.
    pub dtype: Dtype,
    /// Shape as PyTorch has it: a linear layer is `[d_out, d_in]`.
    pub shape: Vec<usize>,
    /// The file that holds it.
    pub file: PathBuf,
}

/// The tensors of `model.safetensors` or of all its shards. Opening reads headers only, and numbers are read when a
/// tensor is asked for, so a model is never in memory twice.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Shard {
    file: File,
    map: Mmap,
}

#[derive(Debug)]
struct Entry {
    info: TensorInfo,
    /// Position in `Checkpoint::shards`.
    shard: usize,
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Opens the weights in `dir`: `model.safetensors`, else the shards of `model.safetensors.index.json`.
    ///
    /// # Errors
    /// [`WeightsError::NoWeights`]; [`WeightsError::Pickled`] where all weights are pickled, which are never read; and
    /// [`WeightsError::Damaged`] with everything that is wrong with the files: shards that are missing, truncated or
    /// corrupt, and tensors that are listed but absent or that two shards hold.
    pub fn open(dir: &Path) -> Result<Self, WeightsError> {
        let listed = if dir.join(SINGLE_FILE).is_file() {
            None
        } else if dir.join(INDEX_FILE).is_file() {
            Some(Index::read(dir)?)
        } else {
            return Err(no_weights(dir));
        };
        let files = listed.as_ref().map_or_else(|| vec![SINGLE_FILE], |index| index.shards().into_iter().collect());

        let mut checkpoint = Self { dir: dir.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        let mut problems = Vec::new();
        let mut unusable = Vec::new();
        for file in files {
            match MappedFile::open(dir, file) {
                Ok(mapped) => checkpoint.add(file, mapped, &mut problems),
                Err(problem) => {
                    unusable.push(file);
                    problems.push(missing_shard(problem, listed.as_ref()));
                }
            }
        }
        for (tensor, file) in listed.iter().flat_map(|index| &index.weight_map) {
            let held = checkpoint.tensors.get(tensor).is_some_and(|entry| entry.info.file.ends_with(file));
            // A shard that cannot be read has been reported once, and not for each tensor in it.
            if !held && !unusable.contains(&file.as_str()) {
                problems.push(Problem::Absent { file: file.clone(), tensor: tensor.clone() });
            }
        }
        if problems.is_empty() { Ok(checkpoint) } else { Err(WeightsError::Damaged { dir: dir.to_owned(), problems }) }
    }

    fn add(&mut self, file: &str, mapped: MappedFile, problems: &mut Vec<Problem>) {
        let path = self.dir.join(file);
        for (name, header) in mapped.metadata.tensors() {
            if let Some(other) = self.tensors.get(&name) {
                let first = other.info.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                problems.push(Problem::Duplicate { tensor: name, first, second: file.to_owned() });
                continue;
            }
            let (start, end) = header.data_offsets;
            let info = TensorInfo { dtype: header.dtype, shape: header.shape.clone(), file: path.clone() };
            let bytes = mapped.data_start + start..mapped.data_start + end;
            self.tensors.insert(name, Entry { info, shard: self.shards.len(), bytes });
        }
        self.shards.push(Shard { file: mapped.file, map: mapped.map });
    }

    /// The folder that was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All tensors, in order of name.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type, shape and file of a tensor, where there is one of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|entry| &entry.info)
    }

    /// Size of all tensors, in bytes, as stored.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.bytes.len() as u64).sum()
    }

    /// The bytes of a tensor as they are in the file: little-endian, row-major, not aligned.
    ///
    /// # Errors
    /// [`WeightsError::NoTensor`].
    pub fn raw(&self, name: &str) -> Result<&[u8], WeightsError> {
        self.entry(name).map(|entry| self.bytes(entry))
    }

    /// The tensor as f32, in the order stored.
    ///
    /// # Errors
    /// [`WeightsError::NoTensor`]; [`WeightsError::NotFloat`] for anything but f32, f16, bf16 and f64;
    /// [`WeightsError::Io`] where the file cannot be read, or has become shorter.
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        self.read(name)
    }

    /// The tensor as bf16, rounded to nearest even, in the order stored.
    ///
    /// # Errors
    /// As [`Checkpoint::to_f32`].
    pub fn to_bf16(&self, name: &str) -> Result<Vec<bf16>, WeightsError> {
        self.read(name)
    }

    /// A matrix stored as `[d_out, d_in]` as the f32 matrix `[d_in, d_out]`.
    ///
    /// # Errors
    /// As [`Checkpoint::to_f32`], and [`WeightsError::NotMatrix`].
    pub fn to_f32_transposed(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        self.read_transposed(name)
    }

    /// A matrix stored as `[d_out, d_in]` as the bf16 matrix `[d_in, d_out]`, rounded to nearest even, without an f32
    /// copy of it on the way.
    ///
    /// # Errors
    /// As [`Checkpoint::to_f32_transposed`].
    pub fn to_bf16_transposed(&self, name: &str) -> Result<Vec<bf16>, WeightsError> {
        self.read_transposed(name)
    }

    fn read<T: Number>(&self, name: &str) -> Result<Vec<T>, WeightsError> {
        let entry = self.entry(name)?;
        let read = T::decoder(entry.info.dtype).ok_or_else(|| not_float(name, &entry.info))?;
        let (section, count) = self.section(entry);
        self.prefetch(entry);
        decode(&section, count, read).map_err(WeightsError::io(&entry.info.file))
    }

    fn read_transposed<T: Number>(&self, name: &str) -> Result<Vec<T>, WeightsError> {
        let entry = self.entry(name)?;
        let TensorInfo { dtype, shape, file } = &entry.info;
        let read = T::decoder(*dtype).ok_or_else(|| not_float(name, &entry.info))?;
        let &[rows, cols] = shape.as_slice() else {
            return Err(WeightsError::NotMatrix { name: name.to_owned(), file: file.clone(), found: shape.clone() });
        };
        let (section, _) = self.section(entry);
        self.prefetch(entry);
        decode_transposed(&section, [rows, cols], read).map_err(WeightsError::io(file))
    }

    fn entry(&self, name: &str) -> Result<&Entry, WeightsError> {
        let missing = || WeightsError::NoTensor { name: name.to_owned(), dir: self.dir.clone() };
        self.tensors.get(name).ok_or_else(missing)
    }

    /// Where the tensor's numbers are, and how many.
    fn section(&self, entry: &Entry) -> (Section<'_>, usize) {
        let size = entry.info.dtype.bitsize() / 8;
        let section = Section { file: &self.shards[entry.shard].file, start: entry.bytes.start as u64, size };
        (section, entry.bytes.len() / size)
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        self.prefetch(entry);
        &self.shards[entry.shard].map[entry.bytes.clone()]
    }

    /// Asks the disk for a tensor in one go: several are read at a time, which defeats its read-ahead. Advice may fail
    /// without harm.
    fn prefetch(&self, entry: &Entry) {
        #[cfg(unix)]
        if entry.bytes.len() >= PREFETCH_BYTES {
            let map = &self.shards[entry.shard].map;
            let _ = map.advise_range(memmap2::Advice::WillNeed, entry.bytes.start, entry.bytes.len());
        }
        #[cfg(not(unix))]
        let _ = entry;
    }
}

fn not_float(name: &str, info: &TensorInfo) -> WeightsError {
    WeightsError::NotFloat { name: name.to_owned(), file: info.file.clone(), found: info.dtype }
}

/// A shard that is not there is told apart from one that cannot be read, with what it should hold.
fn missing_shard(problem: Problem, index: Option<&Index>) -> Problem {
    match (problem, index) {
        (Problem::Unreadable { file, source }, Some(index)) if source.kind() == std::io::ErrorKind::NotFound => {
            let tensors = index.weight_map.values().filter(|shard| **shard == file).count();
            Problem::MissingShard { file, tensors }
        }
        (problem, _) => problem,
    }
}

fn no_weights(dir: &Path) -> WeightsError {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(source) => return WeightsError::Io { path: dir.to_owned(), source },
    };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let with = |extensions: &[&str]| -> Vec<String> {
        let matches = |name: &&String| extensions.iter().any(|e| name.rsplit_once('.').is_some_and(|(_, x)| x == *e));
        names.iter().filter(matches).cloned().collect()
    };
    let (dir, safetensors, pickled) = (dir.to_owned(), with(&["safetensors"]), with(&PICKLED));
    if safetensors.is_empty() && !pickled.is_empty() {
        WeightsError::Pickled { dir, found: pickled }
    } else {
        WeightsError::NoWeights { dir, found: safetensors }
    }
}
