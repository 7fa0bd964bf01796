//! Files of tensors: safetensors, f32, written beside their place and renamed into it.

use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

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
pub fn write_tensors(path: &Path, tensors: &NamedTensors) -> Result<(), AdapterError> {
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
    let file = safetensors::serialize(views, None).map_err(|error| malformed(error.to_string()))?;
    write_atomic(path, &file)
}

/// Reads all tensors of a safetensors file, which must be f32.
pub fn read_tensors(path: &Path) -> Result<NamedTensors, AdapterError> {
    let malformed = |reason: String| AdapterError::Malformed { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|source| AdapterError::Io { path: path.to_owned(), source })?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| malformed(format!("not a whole safetensors file ({} bytes): {error}", bytes.len())))?;
    file.iter()
        .map(|(name, view)| {
            if view.dtype() != Dtype::F32 {
                return Err(malformed(format!("tensor `{name}` should be F32, found {:?}", view.dtype())));
            }
            let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            Ok((name.to_owned(), HostTensor::new(view.shape(), values)))
        })
        .collect()
}
