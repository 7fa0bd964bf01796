//! A checkpoint folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::Dtype;

use super::decode::{Bytes, Number, Numbers, Section, decode, decode_transposed, read_exact_at};
use super::header::OpenFile;
use super::{INDEX_FILE, Index, Problem, SINGLE_FILE, WeightsError};

/// Formats that `torch.load` unpickles, and that can therefore run code.
const PICKLED: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];

/// Beginnings of the names of tensors that serve pictures alone.
const OF_PICTURES: [&str; 6] = [
    "vision_tower.",
    "multi_modal_projector.",
    "image_newline",
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "model.image_newline",
];

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
    files: Vec<File>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    info: TensorInfo,
    /// Position in `Checkpoint::files`.
    shard: usize,
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Opens the weights in `dir`: `model.safetensors`, else the shards of `model.safetensors.index.json`.
    ///
    /// # Errors
    /// [`WeightsError::NoWeights`]; [`WeightsError::Pickled`] if all weights are pickled, which are never read; and
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

        let mut checkpoint = Self { dir: dir.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        let mut problems = Vec::new();
        let mut unusable = Vec::new();
        for file in files {
            match OpenFile::open(dir, file) {
                Ok(opened) => checkpoint.add(file, opened, &mut problems),
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
        if !problems.is_empty() {
            return Err(WeightsError::Damaged { dir: dir.to_owned(), problems });
        }
        checkpoint.keep_text_part();
        Ok(checkpoint)
    }

    /// Of a model of text and pictures, keeps the text part, under the names that it has alone.
    fn keep_text_part(&mut self) {
        if self.tensors.keys().all(|name| name_in_text_part(name).is_none()) {
            return;
        }
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = tensors
            .filter(|(name, _)| !OF_PICTURES.iter().any(|prefix| name.starts_with(prefix)))
            .map(|(name, entry)| (name_in_text_part(&name).unwrap_or(name), entry))
            .collect();
    }

    fn add(&mut self, file: &str, opened: OpenFile, problems: &mut Vec<Problem>) {
        let path = self.dir.join(file);
        for (name, header) in opened.metadata.tensors() {
            if let Some(other) = self.tensors.get(&name) {
                let first = other.info.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                problems.push(Problem::Duplicate { tensor: name, first, second: file.to_owned() });
                continue;
            }
            let (start, end) = header.data_offsets;
            let info = TensorInfo { dtype: header.dtype, shape: header.shape.clone(), file: path.clone() };
            let bytes = opened.data_start + start..opened.data_start + end;
            self.tensors.insert(name, Entry { info, shard: self.files.len(), bytes });
        }
        self.files.push(opened.file);
    }

    /// The folder that was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All tensors, in order of name.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type, shape and file of the tensor of that name, if there is one.
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
    /// [`WeightsError::NoTensor`]; [`WeightsError::Io`] if the file cannot be read, or has become shorter.
    pub fn raw(&self, name: &str) -> Result<Vec<u8>, WeightsError> {
        self.raw_part(name, 0..self.size_in_bytes(name)?)
    }

    /// A part of the bytes of a tensor, which ends where the tensor does at the latest.
    ///
    /// # Errors
    /// As [`Checkpoint::raw`].
    pub fn raw_part(&self, name: &str, part: Range<usize>) -> Result<Vec<u8>, WeightsError> {
        let entry = self.entry(name)?;
        let end = part.end.min(entry.bytes.len());
        let mut bytes = vec![0; end.saturating_sub(part.start)];
        let read = read_exact_at(&self.files[entry.shard], &mut bytes, (entry.bytes.start + part.start) as u64);
        read.map_err(WeightsError::io(&entry.info.file))?;
        Ok(bytes)
    }

    /// Number of bytes of a tensor.
    ///
    /// # Errors
    /// [`WeightsError::NoTensor`].
    pub fn size_in_bytes(&self, name: &str) -> Result<usize, WeightsError> {
        Ok(self.entry(name)?.bytes.len())
    }

    /// The tensor as f32, in the order stored.
    ///
    /// # Errors
    /// [`WeightsError::NoTensor`]; [`WeightsError::NotFloat`] for anything but f32, f16, bf16 and f64;
    /// [`WeightsError::Io`] if the file cannot be read, or has become shorter.
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        Ok(self.numbers(name, false)?.values)
    }

    /// The tensor as bf16, rounded to nearest even, in the order stored.
    ///
    /// # Errors
    /// As [`Checkpoint::to_f32`].
    pub fn to_bf16(&self, name: &str) -> Result<Vec<bf16>, WeightsError> {
        Ok(self.numbers(name, false)?.values)
    }

    /// A matrix stored as `[d_out, d_in]` as the f32 matrix `[d_in, d_out]`.
    ///
    /// # Errors
    /// As [`Checkpoint::to_f32`], and [`WeightsError::NotMatrix`].
    pub fn to_f32_transposed(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        Ok(self.numbers(name, true)?.values)
    }

    /// A matrix stored as `[d_out, d_in]` as the bf16 matrix `[d_in, d_out]`, rounded to nearest even, without an f32
    /// copy of it on the way.
    ///
    /// # Errors
    /// As [`Checkpoint::to_f32_transposed`].
    pub fn to_bf16_transposed(&self, name: &str) -> Result<Vec<bf16>, WeightsError> {
        Ok(self.numbers(name, true)?.values)
    }

    /// The tensor in the order stored, or as the transposed matrix, and whether all of it is finite.
    ///
    /// # Errors
    /// As [`Checkpoint::to_f32`], and [`WeightsError::NotMatrix`].
    pub fn numbers<T: Number>(&self, name: &str, transposed: bool) -> Result<Numbers<T>, WeightsError> {
        let entry = self.entry(name)?;
        let TensorInfo { dtype, shape, file } = &entry.info;
        let read = T::decoder(*dtype).ok_or_else(|| not_float(name, &entry.info))?;
        let size = dtype.bitsize() / 8;
        let bytes = Bytes::File { file: &self.files[entry.shard], start: entry.bytes.start as u64 };
        let section = Section { bytes, size };
        let numbers = match (transposed, shape.as_slice()) {
            (false, _) => decode(&section, entry.bytes.len() / size, read),
            (true, &[rows, cols]) => decode_transposed(&section, [rows, cols], read),
            (true, found) => {
                let (name, found) = (name.to_owned(), found.to_vec());
                return Err(WeightsError::NotMatrix { name, file: file.clone(), found });
            }
        };
        numbers.map_err(WeightsError::io(file))
    }

    fn entry(&self, name: &str) -> Result<&Entry, WeightsError> {
        let missing = || WeightsError::NoTensor { name: name.to_owned(), dir: self.dir.clone() };
        self.tensors.get(name).ok_or_else(missing)
    }
}

/// The name that a tensor of the text part of a larger model has alone; nothing for a tensor of another part.
fn name_in_text_part(name: &str) -> Option<String> {
    match name.strip_prefix("model.language_model.") {
        Some(rest) => Some(format!("model.{rest}")),
        None => name.strip_prefix("language_model.").map(str::to_owned),
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
