//! Where the files of a model are: a folder in Hugging Face's layout, a GGUF file, or a folder with one.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ConfigError;
use crate::config::{CONFIG_FILE, read_object};
use crate::gguf::parts::PartName;
use crate::weights::{INDEX_FILE, SINGLE_FILE};

/// The field of a `config.json` that names a GGUF file of the same folder. The other fields replace those of that file.
pub const GGUF_FILE: &str = "gguf_file";

/// The files of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ModelPlace {
    /// A folder in Hugging Face's layout.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf {
        /// The file.
        file: PathBuf,
        /// Fields of `config.json` with other values than the file says.
        fields: Map<String, Value>,
    },
}

impl ModelPlace {
    /// Finds the files of the model at `path`. A folder with weights in safetensors is in Hugging Face's layout, whatever else it
    /// holds; otherwise its one GGUF file is the model.
    ///
    /// # Errors
    ///
    /// [`ConfigError::SeveralGgufFiles`]; [`ConfigError::Io`] of a folder that cannot be listed.
    pub fn find(path: &Path) -> Result<Self, ConfigError> {
        if path.is_file() {
            return Ok(Self::Gguf { file: path.to_owned(), fields: Map::new() });
        }
        if [SINGLE_FILE, INDEX_FILE].iter().any(|name| path.join(name).is_file()) {
            return Ok(Self::Folder(path.to_owned()));
        }
        let mut files = gguf_files(path)?;
        if files.is_empty() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let config = path.join(CONFIG_FILE);
        if config.is_file() {
            let mut fields = read_object(&config)?;
            if let Some(named) = fields.remove(GGUF_FILE) {
                let named = named.as_str().filter(|name| files.iter().any(|file| file == name));
                let expected = || format!("`{GGUF_FILE}` should be one of {}", files.join(", "));
                return match named {
                    Some(name) => Ok(Self::Gguf { file: path.join(name), fields }),
                    None => Err(ConfigError::Fields { path: config, faults: vec![expected()] }),
                };
            }
        }
        match files.pop() {
            Some(file) if files.is_empty() => Ok(Self::Gguf { file: path.join(file), fields: Map::new() }),
            last => {
                files.extend(last);
                Err(ConfigError::SeveralGgufFiles { folder: path.to_owned(), files })
            }
        }
    }
}

/// The names of the GGUF files in a folder, in order; none if there is no such folder.
fn gguf_files(folder: &Path) -> Result<Vec<String>, ConfigError> {
    let unreadable = |source| ConfigError::Io { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        // The error of the file that is missing then says more.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        if let (true, true, Some(name)) = (is_gguf, path.is_file(), path.file_name()) {
            files.push(name.to_string_lossy().into_owned());
        }
    }
    files.sort();
    // A model in several files is named by the first.
    let all = files.clone();
    files.retain(|name| match PartName::parse(name) {
        Some(part) => part.number == 1 || !all.contains(&part.of_part(1)),
        None => true,
    });
    Ok(files)
}
