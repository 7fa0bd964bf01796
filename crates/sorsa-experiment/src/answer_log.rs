//! The answers of an evaluation, written to a file line by line as they are made: an evaluation that was ended is resumed.
//! The first line holds the settings; an evaluation with other settings refuses the file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use sorsa_files::{FileLock, LockError, write_atomic};

use crate::error::ExperimentError;
use crate::run_dir::{create_folder, json_lines};

/// Answers, those of an earlier evaluation among them.
pub struct AnswerLog<T> {
    rows: Vec<T>,
    file: Option<LogFile>,
}

impl<T: Serialize + DeserializeOwned> AnswerLog<T> {
    /// Answers that no file keeps.
    pub fn in_memory() -> Self {
        Self { rows: Vec::new(), file: None }
    }

    /// Opens the file at `path`, or begins it.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::OtherSettings`] if the file was begun with other settings; files that cannot be read or written.
    pub fn open(path: &Path, settings: &Map<String, Value>) -> Result<Self, ExperimentError> {
        let (file, rows) = LogFile::open(path, settings)?;
        Ok(Self { rows, file: Some(file) })
    }

    /// The answers so far.
    pub fn rows(&self) -> &[T] {
        &self.rows
    }

    /// Adds a row, to the file first.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Write`].
    pub fn push(&mut self, row: T) -> Result<(), ExperimentError> {
        if let Some(file) = &mut self.file {
            file.push(&row)?;
        }
        self.rows.push(row);
        Ok(())
    }

    /// Sorts all rows by `key`, and writes the file anew in that order.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::File`].
    pub fn conclude<K: Ord>(mut self, key: impl FnMut(&T) -> K) -> Result<Vec<T>, ExperimentError> {
        self.rows.sort_by_key(key);
        if let Some(file) = self.file {
            file.conclude(&self.rows)?;
        }
        Ok(self.rows)
    }
}

/// The file, open for more.
struct LogFile {
    path: PathBuf,
    file: File,
    settings: Value,
    /// Two processes that write to one file would mix their answers.
    _lock: FileLock,
}

impl LogFile {
    /// Opens or begins the file, and reads the rows it has.
    fn open<T: Serialize + DeserializeOwned>(
        path: &Path,
        settings: &Map<String, Value>,
    ) -> Result<(Self, Vec<T>), ExperimentError> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            create_folder(folder)?;
        }
        let settings = json!({ "settings": settings });
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let lock = FileLock::acquire(&path.with_file_name(format!(".{name}.lock"))).map_err(|error| match error {
            LockError::Held { process, .. } => ExperimentError::AnswersInUse { path: path.to_owned(), process },
            LockError::File(error) => error.into(),
        })?;
        let rows = match std::fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => read(path, &text, &settings)?,
            Ok(_) => Vec::new(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(ExperimentError::Read { path: path.to_owned(), source }),
        };
        // Written anew: a line that was cut short is gone.
        write_atomic(path, format!("{settings}\n{}", json_lines(&rows)?))?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(|source| ExperimentError::Write { path: path.to_owned(), source })?;
        Ok((Self { path: path.to_owned(), file, settings, _lock: lock }, rows))
    }

    fn push(&mut self, row: &impl Serialize) -> Result<(), ExperimentError> {
        let line = serde_json::to_string(row)? + "\n";
        self.file
            .write_all(line.as_bytes())
            .map_err(|source| ExperimentError::Write { path: self.path.clone(), source })
    }

    fn conclude(self, rows: &[impl Serialize]) -> Result<(), ExperimentError> {
        Ok(write_atomic(&self.path, format!("{}\n{}", self.settings, json_lines(rows)?))?)
    }
}

/// FNV-1a of a text, the same on every machine: tells problems and programs apart. Contents have a better hash,
/// [`sorsa_files::ContentHash`]; this one is in the first line of every file of answers, and such files of earlier builds are
/// resumed.
pub fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The rows of a file whose settings are the same.
fn read<T: DeserializeOwned>(path: &Path, text: &str, settings: &Value) -> Result<Vec<T>, ExperimentError> {
    let mut lines = text.lines();
    let head: Option<Value> = lines.next().and_then(|line| serde_json::from_str(line).ok());
    let Some(found) = head.as_ref().and_then(|head| head["settings"].as_object()) else {
        return Err(ExperimentError::NoAnswerLog { path: path.to_owned() });
    };
    let asked = settings["settings"].as_object().cloned().unwrap_or_default();
    let mut names: Vec<&String> = asked.keys().chain(found.keys()).collect();
    names.sort();
    names.dedup();
    let shown = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    let differences: Vec<String> = names
        .into_iter()
        .filter(|name| asked.get(*name) != found.get(*name))
        .map(|name| format!("{name} is {} there and {} here", shown(found.get(name)), shown(asked.get(name))))
        .collect();
    if !differences.is_empty() {
        return Err(ExperimentError::OtherSettings { path: path.to_owned(), differences });
    }
    let rest: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let mut rows = Vec::new();
    for (index, line) in rest.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(row) => rows.push(row),
            // A process that is killed can cut short the last line only.
            Err(_) if index + 1 == rest.len() && !text.ends_with('\n') => {}
            Err(source) => {
                return Err(ExperimentError::MalformedAnswer { path: path.to_owned(), line: index + 2, source });
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(model: &str) -> Map<String, Value> {
        json!({ "model": model, "samples": 2 }).as_object().cloned().unwrap()
    }

    fn open(path: &Path, model: &str) -> Result<AnswerLog<u32>, ExperimentError> {
        AnswerLog::open(path, &settings(model))
    }

    #[test]
    fn a_file_is_resumed_after_a_line_that_was_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/answers.jsonl");
        let mut answers = open(&path, "a").unwrap();
        assert!(answers.rows().is_empty());
        answers.push(7).unwrap();
        let error = open(&path, "a").err().unwrap();
        assert!(matches!(error, ExperimentError::AnswersInUse { .. }) && error.is_bad_input(), "{error}");
        answers.file.as_mut().unwrap().file.write_all(b"{\"cut").unwrap();
        drop(answers);
        let mut answers = open(&path, "a").unwrap();
        assert_eq!(answers.rows(), [7]);
        answers.push(3).unwrap();
        assert_eq!(answers.conclude(|row| *row).unwrap(), [3, 7]);
        assert_eq!(open(&path, "a").unwrap().rows(), [3, 7]);
    }

    #[test]
    fn other_settings_are_an_error_that_names_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        open(&path, "a").unwrap();
        let error = open(&path, "b").err().unwrap().to_string();
        assert!(error.contains("model is \"a\" there and \"b\" here"), "{error}");
        std::fs::write(&path, "{\"row\": 1}\n").unwrap();
        let error = open(&path, "a").err().unwrap().to_string();
        assert!(error.contains("is no file of an evaluation"), "{error}");
    }
}
