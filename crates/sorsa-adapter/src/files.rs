//! Files of tensors: safetensors, f32, written beside their place and renamed into it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use burn::tensor::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView};

use crate::error::AdapterError;
use crate::factors::{HostTensor, NamedTensors};

/// Writes `bytes` to `path` so that a half-written file is never found there.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
    let io = |source| AdapterError::Io { path: path.to_owned(), source };
    // The thread too: two threads may write the same entry of a cache.
    let thread = format!("{:?}", std::thread::current().id()).replace(|c: char| !c.is_ascii_digit(), "");
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp-{}-{thread}", std::process::id()));
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        io(source)
    })
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
    let bytes: Vec<(&String, Vec<u8>, &Vec<usize>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            (name, tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect(), &tensor.shape)
        })
        .collect();
    let malformed = |reason: String| AdapterError::Malformed { path: path.to_owned(), reason };
    let views = bytes
        .iter()
        .map(|(name, bytes, shape)| Ok((*name, TensorView::new(Dtype::F32, (*shape).clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| malformed(error.to_string()))?;
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    let file = safetensors::serialize(views, metadata).map_err(|error| malformed(error.to_string()))?;
    write_atomic(path, &file)
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
