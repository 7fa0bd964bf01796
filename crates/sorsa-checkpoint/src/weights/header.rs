//! The header of one safetensors file: eight bytes of length, JSON, then the tensors without gaps.
//!
//! The file is not trusted. Lengths are compared before anything is allocated, offsets and shapes are checked by
//! the `safetensors` crate, and nothing here indexes beyond the file.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use safetensors::tensor::Metadata;
use sorsa_files::open_regular;

use super::Problem;

/// The limit that the reference implementation sets.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;
const LENGTH_BYTES: u64 = 8;

/// A file with a valid header.
pub(super) struct OpenFile {
    pub file: File,
    pub metadata: Metadata,
    /// Where the tensors begin, in bytes.
    pub data_start: usize,
}

impl OpenFile {
    /// Opens `dir/file` and checks its header against its size.
    pub fn open(dir: &Path, file: &str) -> Result<Self, Problem> {
        let unreadable = |source| Problem::Unreadable { file: file.to_owned(), source };
        let opened = open_regular(&dir.join(file)).map_err(unreadable)?;
        let size = opened.metadata().map_err(unreadable)?.len();
        let (metadata, data_start) = parse(&opened, size, file)?;
        Ok(Self { file: opened, metadata, data_start })
    }
}

/// The header of a file of `found` bytes, and the position of the first tensor.
fn parse(mut source: impl Read, found: u64, file: &str) -> Result<(Metadata, usize), Problem> {
    let unreadable = |source: io::Error| Problem::Unreadable { file: file.to_owned(), source };
    let too_short = |expected| Problem::Size { file: file.to_owned(), expected, found };
    if found < LENGTH_BYTES {
        return Err(too_short(LENGTH_BYTES));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    source.read_exact(&mut length).map_err(unreadable)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(Problem::HeaderTooLarge { file: file.to_owned(), found: length, limit: MAX_HEADER_BYTES });
    }
    let data_start = LENGTH_BYTES + length;
    if data_start > found {
        return Err(too_short(data_start));
    }
    let mut header = vec![0; length as usize];
    source.read_exact(&mut header).map_err(unreadable)?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|source| Problem::Json { file: file.to_owned(), source })?;
    let expected = data_start.saturating_add(metadata.data_len() as u64);
    if expected != found {
        return Err(too_short(expected));
    }
    Ok((metadata, data_start as usize))
}
