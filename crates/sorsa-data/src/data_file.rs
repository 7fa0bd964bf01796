//! Opens a data file: finds out by its first bytes what it is, decompresses it, and takes off the byte order mark.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use crate::DataError;
use crate::expansion::Expansion;

/// A data file that is open, by what it is.
pub(crate) enum DataFile {
    /// A parquet file.
    Parquet(File),
    /// Bytes of anything else, without compression and byte order mark.
    Bytes(Vec<u8>),
}

/// The byte order mark of UTF-8.
pub(crate) const MARK: &[u8] = b"\xEF\xBB\xBF";

/// Kinds of files that hold data in other programs and are not read: their first bytes, what they are, what to do.
const OTHERS: [(&[u8], &str, &str); 8] = [
    (b"BZh", "compressed by bzip2", "decompress it first"),
    (b"\xFD7zXZ\0", "compressed by xz", "decompress it first"),
    (b"\x04\x22\x4D\x18", "compressed by lz4", "decompress it first"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"7z\xBC\xAF\x27\x1C", "a 7z archive", "unpack it first"),
    (b"PARE", "an encrypted parquet file", "decrypt it first"),
    (b"ARROW1", "an Arrow file", "write it as parquet or JSON lines"),
    (b"\xFF\xFF\xFF\xFF", "an Arrow stream", "write it as parquet or JSON lines"),
];

impl DataFile {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// [`DataError::Folder`], [`DataError::NotAFile`] or [`DataError::Read`] if there is no file to read;
    /// [`DataError::OtherKind`] for a compression or encoding that is not read; [`DataError::Malformed`] if the compressed
    /// data are damaged or expand beyond all measure.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let read = |source| DataError::Read { path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(read)?;
        if metadata.is_dir() {
            return Err(DataError::Folder { path: path.to_owned() });
        }
        // A pipe or a device may have no end.
        if !metadata.is_file() {
            return Err(DataError::NotAFile { path: path.to_owned() });
        }
        let mut file = File::open(path).map_err(read)?;
        let mut first = Vec::new();
        (&mut file).take(8).read_to_end(&mut first).map_err(read)?;
        file.rewind().map_err(read)?;
        if first.starts_with(b"PAR1") {
            return Ok(Self::Parquet(file));
        }
        let other = |found, advice| DataError::OtherKind { path: path.to_owned(), found, advice };
        if let Some((_, found, advice)) = OTHERS.into_iter().find(|(magic, ..)| first.starts_with(magic)) {
            return Err(other(found, advice));
        }
        let expansion = Expansion::new(metadata.len());
        let (compression, expanded) = if first.starts_with(b"\x1F\x8B") {
            let decoder = flate2::read::MultiGzDecoder::new(std::io::BufReader::new(file));
            ("gzip", expand(decoder, expansion.limit()))
        } else if is_zstd(&first) {
            ("zstd", zstd(&read_all(file, metadata.len()).map_err(read)?, expansion.limit()))
        } else {
            ("", Ok(read_all(file, metadata.len()).map_err(read)?))
        };
        let mut bytes = expanded.map_err(|reason| malformed(path, compression, reason))?;
        if !compression.is_empty() {
            expansion.add(bytes.len() as u64).map_err(|reason| malformed(path, compression, reason))?;
        }
        if bytes.get(257..262) == Some(b"ustar") {
            return Err(other("a tar archive", "unpack it first"));
        }
        if let Some(encoding) = utf16(&bytes) {
            return Err(other(encoding, "convert it to UTF-8 first"));
        }
        if bytes.starts_with(MARK) {
            bytes.drain(..MARK.len());
        }
        Ok(Self::Bytes(bytes))
    }
}

pub(crate) fn malformed(path: &Path, kind: &'static str, reason: String) -> DataError {
    DataError::Malformed { path: path.to_owned(), kind, reason }
}

fn read_all(mut file: File, size: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a decoder to its end, or one byte beyond the limit.
fn expand(decoder: impl Read, limit: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    decoder.take(limit + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Whether a file begins with a frame of zstd or with a frame that zstd's readers skip.
fn is_zstd(first: &[u8]) -> bool {
    first.starts_with(b"\x28\xB5\x2F\xFD") || (first.get(1..4) == Some(b"\x2A\x4D\x18") && first[0] & 0xF0 == 0x50)
}

/// Decompresses all frames of zstd, up to one byte beyond the limit.
pub(crate) fn zstd(mut compressed: &[u8], limit: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while !compressed.is_empty() && bytes.len() as u64 <= limit {
        if !compressed.starts_with(b"\x28\xB5\x2F\xFD") && is_zstd(compressed) {
            let size = compressed.get(4..8).and_then(|size| size.try_into().ok()).map_or(u32::MAX, u32::from_le_bytes);
            compressed = compressed.get(8 + size as usize..).ok_or("a skipped frame is cut short")?;
            continue;
        }
        let left = limit + 1 - bytes.len() as u64;
        let decoder = ruzstd::decoding::StreamingDecoder::new(&mut compressed).map_err(|error| error.to_string())?;
        decoder.take(left).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    }
    Ok(bytes)
}

/// The name of the encoding if the bytes are UTF-16 or UTF-32: by their mark, or by the zero beside a first ASCII character.
fn utf16(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => Some("UTF-32 text"),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] | [b'{' | b'[', 0, ..] | [0, b'{' | b'[', ..] => Some("UTF-16 text"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn opened(name: &str, content: &[u8]) -> Result<Vec<u8>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        match DataFile::open(&path) {
            Ok(DataFile::Bytes(bytes)) => Ok(bytes),
            Ok(DataFile::Parquet(_)) => Err("parquet".into()),
            Err(error) => Err(error.to_string().replace(folder.path().to_str().unwrap(), "")),
        }
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd_of(content: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(content, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn compressed_files_are_told_by_their_first_bytes_and_read_to_the_end_of_all_parts() {
        let text = "{\"a\": 1}\n".repeat(1000).into_bytes();
        for compressed in [gzip(&text), zstd_of(&text)] {
            assert_eq!(opened("plain.jsonl", &compressed).unwrap(), text);
            let twice = [compressed.clone(), compressed.clone()].concat();
            assert_eq!(opened("plain.jsonl", &twice).unwrap(), [text.clone(), text.clone()].concat());
            let cut = opened("a.jsonl", &compressed[..compressed.len() / 2]).unwrap_err();
            assert!(cut.starts_with("/a.jsonl is not valid "), "{cut}");
        }
        let marked = [MARK, b"{}".as_slice()].concat();
        assert_eq!(opened("a", &gzip(&marked)).unwrap(), b"{}");
        let skipped = [b"\x50\x2A\x4D\x18\x02\0\0\0ab".to_vec(), zstd_of(&text)].concat();
        assert_eq!(opened("a.zst", &skipped).unwrap(), text);
    }

    #[test]
    fn what_is_not_read_is_named() {
        let cases: [(&[u8], &str); 6] = [
            (b"BZh91AY", "/f is compressed by bzip2; decompress it first"),
            (b"\xFD7zXZ\0\0", "/f is compressed by xz; decompress it first"),
            (b"PK\x03\x04", "/f is a zip archive; unpack it first"),
            (b"\xFF\xFE{\0", "/f is UTF-16 text; convert it to UTF-8 first"),
            (b"{\0\"\0", "/f is UTF-16 text; convert it to UTF-8 first"),
            (b"ARROW1\0\0", "/f is an Arrow file; write it as parquet or JSON lines"),
        ];
        for (content, expected) in cases {
            assert_eq!(opened("f", content).unwrap_err(), expected);
        }
    }

    #[test]
    fn a_small_file_that_expands_beyond_all_measure_is_refused() {
        // Zeros shrink a thousand times by gzip; a part that repeats itself makes a large file of a small one.
        let part = gzip(&vec![b' '; 32 << 20]);
        let error = opened("a.gz", &part.repeat(17)).unwrap_err();
        assert!(error.contains("expand to more than 512 MiB"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_are_refused() {
        for path in ["/dev/zero", "/dev/null"] {
            let error = DataFile::open(Path::new(path)).err().unwrap().to_string();
            assert!(error.contains("is not a regular file"), "{error}");
        }
    }
}
