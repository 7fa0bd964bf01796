//! Files of f32 tensors, as safetensors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use burn::tensor::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors, TensorView, View, serialize_to_file};
use sorsa_files::{AtomicFile, FileError};

use crate::error::AdapterError;
use crate::factors::{HostTensor, NamedTensors};

/// Writes `bytes` to `path`, replacing what was there.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
    Ok(sorsa_files::write_atomic(path, bytes)?)
}

impl From<FileError> for AdapterError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io { path, source, .. } => Self::Io { path, source },
            FileError::Malformed { ref path, .. } => Self::Malformed { path: path.clone(), reason: error.to_string() },
        }
    }
}

/// Writes tensors as safetensors.
///
/// # Errors
///
/// [`AdapterError::Io`] with the file.
pub fn write_tensors(path: &Path, tensors: &NamedTensors) -> Result<(), AdapterError> {
    write_tensors_with(path, tensors, &[])
}

/// Writes tensors as safetensors with metadata.
pub(crate) fn write_tensors_with(
    path: &Path,
    tensors: &NamedTensors,
    metadata: &[(&str, &str)],
) -> Result<(), AdapterError> {
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    let file = AtomicFile::create(path)?;
    let views = tensors.iter().map(|(name, tensor)| (name, F32View(tensor)));
    serialize_to_file(views, metadata, file.temporary_path()).map_err(|error| match error {
        SafeTensorError::IoError(source) => AdapterError::Io { path: path.to_owned(), source },
        other => AdapterError::Malformed { path: path.to_owned(), reason: other.to_string() },
    })?;
    Ok(file.commit()?)
}

/// A tensor whose bytes are made when the file asks for them: those of one tensor at a time are in memory.
struct F32View<'a>(&'a HostTensor);

impl View for F32View<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        bytes.extend(self.0.values.iter().flat_map(|value| value.to_le_bytes()));
        bytes.into()
    }

    fn data_len(&self) -> usize {
        4 * self.0.values.len()
    }
}

/// Reads all tensors of a safetensors file, which must be f32.
///
/// # Errors
///
/// [`AdapterError::Io`] or [`AdapterError::Malformed`] with the file.
pub fn read_tensors(path: &Path) -> Result<NamedTensors, AdapterError> {
    read(path, |dtype| dtype == Dtype::F32, "F32")
}

/// A safetensors file of f32 from which single tensors are read.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    header: Metadata,
    /// Where the tensors' bytes begin.
    start: u64,
}

impl TensorFile {
    /// Reads the names and places of the tensors, not their values.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Io`] or [`AdapterError::Malformed`] with the file.
    pub fn open(path: &Path) -> Result<Self, AdapterError> {
        let io = |source| AdapterError::Io { path: path.to_owned(), source };
        let malformed = |reason: String| AdapterError::Malformed { path: path.to_owned(), reason };
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        // A damaged length must not become an allocation.
        let start = length.checked_add(8).filter(|start| *start <= size);
        let start = start.ok_or_else(|| malformed(format!("not a whole safetensors file ({size} bytes)")))?;
        let mut json = vec![0; length as usize];
        file.read_exact(&mut json).map_err(io)?;
        let header = serde_json::from_slice(&json).map_err(|error| malformed(error.to_string()))?;
        Ok(Self { path: path.to_owned(), header, start })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads one tensor.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Io`]; [`AdapterError::Malformed`] where it is missing or not f32.
    pub fn read(&self, name: &str) -> Result<HostTensor, AdapterError> {
        let io = |source| AdapterError::Io { path: self.path.clone(), source };
        let malformed = |reason: String| AdapterError::Malformed { path: self.path.clone(), reason };
        let info = self.header.info(name).ok_or_else(|| malformed(format!("tensor `{name}` is missing")))?;
        if info.dtype != Dtype::F32 {
            return Err(malformed(format!("tensor `{name}` should be F32, found {:?}", info.dtype)));
        }
        let (from, to) = info.data_offsets;
        let mut file = File::open(&self.path).map_err(io)?;
        file.seek(SeekFrom::Start(self.start + from as u64)).map_err(io)?;
        let mut bytes = Vec::new();
        file.take((to - from) as u64).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() != to - from {
            return Err(malformed(format!("tensor `{name}` is cut off")));
        }
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(HostTensor::new(info.shape.clone(), values))
    }
}

/// Reads all tensors of a safetensors file of f32, f16 or bf16, as f32.
pub(crate) fn read_float_tensors(path: &Path) -> Result<NamedTensors, AdapterError> {
    read(path, |dtype| matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16), "F32, F16 or BF16")
}

fn read(path: &Path, accepted: impl Fn(Dtype) -> bool, names: &str) -> Result<NamedTensors, AdapterError> {
    let malformed = |reason: String| AdapterError::Malformed { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|source| AdapterError::Io { path: path.to_owned(), source })?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| malformed(format!("not a whole safetensors file ({} bytes): {error}", bytes.len())))?;
    file.iter()
        .map(|(name, view)| {
            if !accepted(view.dtype()) {
                return Err(malformed(format!("tensor `{name}` should be {names}, found {:?}", view.dtype())));
            }
            Ok((name.to_owned(), HostTensor::new(view.shape(), floats(&view))))
        })
        .collect()
}

/// The elements of an f32, f16 or bf16 tensor.
fn floats(view: &TensorView<'_>) -> Vec<f32> {
    let halves = || view.data().chunks_exact(2).map(|b| [b[0], b[1]]);
    match view.dtype() {
        Dtype::F16 => halves().map(|bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
        Dtype::BF16 => halves().map(|bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
        _ => view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}
