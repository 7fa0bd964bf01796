//! The hash of contents: of files, weights, settings.

use std::fs::File;
use std::path::Path;

use crate::atomic::{FileError, at};

/// A BLAKE3 hash that takes in bytes and files one after the other. A caller who takes in several texts separates them:
/// the hash does not know where one ends.
///
/// ```
/// use sorsa_files::ContentHash;
///
/// let mut hash = ContentHash::new();
/// hash.update(b"rank 8\n");
/// assert_eq!(hash.short(), hash.hex()[..16]);
/// ```
#[derive(Debug, Clone, Default)]
pub struct ContentHash(blake3::Hasher);

impl ContentHash {
    /// The hash of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Takes in the name, the length and the content of a file.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn update_file(&mut self, path: &Path) -> Result<(), FileError> {
        let mut file = File::open(path).map_err(at("read", path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let length = file.metadata().map_err(at("read", path))?.len();
        self.update(format!("{name} {length}\n").as_bytes());
        std::io::copy(&mut file, &mut self.0).map_err(at("read", path))?;
        Ok(())
    }

    /// Takes in the content of a file, whatever its name.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn update_content(&mut self, path: &Path) -> Result<(), FileError> {
        let mut file = File::open(path).map_err(at("read", path))?;
        std::io::copy(&mut file, &mut self.0).map_err(at("read", path))?;
        Ok(())
    }

    /// The 64 hexadecimal digits of the hash.
    pub fn hex(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }

    /// The first 16 of them: no two contents share these by accident.
    pub fn short(&self) -> String {
        self.hex()[..16].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_bytes_and_of_name_length_and_content_of_files() {
        // `b3sum` of the text "abc".
        let mut hash = ContentHash::new();
        hash.update(b"a");
        hash.update(b"bc");
        assert_eq!(hash.hex(), "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, "{}").unwrap();
        let (mut file, mut text) = (ContentHash::new(), ContentHash::new());
        file.update_file(&path).unwrap();
        text.update(b"config.json 2\n{}");
        assert_eq!(file.hex(), text.hex());
        let (mut content, mut text) = (ContentHash::new(), ContentHash::new());
        content.update_content(&path).unwrap();
        text.update(b"{}");
        assert_eq!(content.hex(), text.hex());
        let error = file.update_file(&folder.path().join("nothing")).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("nothing"), "{error}");
    }
}
