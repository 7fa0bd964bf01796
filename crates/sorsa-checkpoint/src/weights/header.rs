//! The header of one safetensors file: eight bytes of length, JSON, then the tensors without gaps.
//!
//! The file is not trusted. Lengths are compared before anything is allocated, offsets and shapes are checked by
//! the `safetensors` crate, and nothing here indexes beyond the file.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;
use safetensors::tensor::Metadata;

use super::Problem;

/// The limit that the reference implementation sets.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;
const LENGTH_BYTES: u64 = 8;

/// A mapped file with a valid header.
pub(super) struct MappedFile {
    pub file: File,
    pub map: Mmap,
    pub metadata: Metadata,
    /// Where the tensors begin, in bytes.
    pub data_start: usize,
}

impl MappedFile {
    /// Maps `dir/file` and checks its header against its size.
    pub fn open(dir: &Path, file: &str) -> Result<Self, Problem> {
        let (opened, map) = File::open(dir.join(file))
            .and_then(|opened| map(&opened).map(|map| (opened, map)))
            .map_err(|source| Problem::Unreadable { file: file.to_owned(), source })?;
        let (metadata, data_start) = parse(&map, file)?;
        Ok(Self { file: opened, map, metadata, data_start })
    }
}

#[allow(unsafe_code)]
pub(crate) fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only, and weights are files that nobody changes in place: they are written under a
    // temporary name and renamed, which leaves an existing map as it was.
    unsafe { Mmap::map(file) }
}

/// The header of a whole file in memory, and the position of the first tensor.
fn parse(bytes: &[u8], file: &str) -> Result<(Metadata, usize), Problem> {
    let found = bytes.len() as u64;
    let too_short = |expected| Problem::Size { file: file.to_owned(), expected, found };
    let (length, rest) = bytes.split_first_chunk().ok_or_else(|| too_short(LENGTH_BYTES))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(Problem::HeaderTooLarge { file: file.to_owned(), found: length, limit: MAX_HEADER_BYTES });
    }
    let data_start = LENGTH_BYTES + length;
    let header = rest.get(..length as usize).ok_or_else(|| too_short(data_start))?;
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|source| Problem::Json { file: file.to_owned(), source })?;
    let expected = data_start.saturating_add(metadata.data_len() as u64);
    if expected != found {
        return Err(too_short(expected));
    }
    Ok((metadata, data_start as usize))
}
