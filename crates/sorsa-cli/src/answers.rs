//! The generations of an evaluation, kept in a file line by line as they are made where one is named: an evaluation that
//! was ended goes on where it stopped. The first line holds the settings; with others the file is not gone on with.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use sorsa_files::write_atomic;

use crate::exit::bad_input;
use crate::run_dir::json_lines;
use crate::session::create_folder;

/// Generations, those of an earlier evaluation among them.
pub struct Answers<T> {
    rows: Vec<T>,
    file: Option<AnswersFile>,
}

impl<T: Serialize + DeserializeOwned> Answers<T> {
    /// Opens or begins the file at `path`, where there is one to keep.
    pub fn open(
        path: Option<&Path>,
        settings: impl FnOnce() -> anyhow::Result<Map<String, Value>>,
    ) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self { rows: Vec::new(), file: None }) };
        let (file, rows) = AnswersFile::open(path, &settings()?)?;
        Ok(Self { rows, file: Some(file) })
    }

    /// What is there so far.
    pub fn rows(&self) -> &[T] {
        &self.rows
    }

    /// Adds a row, to the file first.
    pub fn push(&mut self, row: T) -> anyhow::Result<()> {
        if let Some(file) = &mut self.file {
            file.push(&row)?;
        }
        self.rows.push(row);
        Ok(())
    }

    /// All rows in the order of `key`, in which the file is written anew.
    pub fn conclude<K: Ord>(mut self, key: impl FnMut(&T) -> K) -> anyhow::Result<Vec<T>> {
        self.rows.sort_by_key(key);
        if let Some(file) = self.file {
            file.conclude(&self.rows)?;
        }
        Ok(self.rows)
    }
}

/// A file of generations, open for more.
struct AnswersFile {
    path: PathBuf,
    file: File,
    settings: Value,
}

impl AnswersFile {
    /// Opens or begins the file; the rows it holds already.
    fn open<T: Serialize + DeserializeOwned>(
        path: &Path,
        settings: &Map<String, Value>,
    ) -> anyhow::Result<(Self, Vec<T>)> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            create_folder(folder)?;
        }
        let settings = json!({ "settings": settings });
        let rows = match std::fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => read(path, &text, &settings)?,
            Ok(_) => Vec::new(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        // Written anew: a line that was cut short is gone.
        write_atomic(path, format!("{settings}\n{}", json_lines(&rows)?))?;
        let file =
            OpenOptions::new().append(true).open(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok((Self { path: path.to_owned(), file, settings }, rows))
    }

    /// Adds a row.
    fn push(&mut self, row: &impl Serialize) -> anyhow::Result<()> {
        let line = serde_json::to_string(row)? + "\n";
        self.file.write_all(line.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Writes the file anew with all rows in order.
    fn conclude(self, rows: &[impl Serialize]) -> anyhow::Result<()> {
        Ok(write_atomic(&self.path, format!("{}\n{}", self.settings, json_lines(rows)?))?)
    }
}

/// A number that tells what was generated from apart: FNV-1a, the same on every machine.
pub fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The rows of a file whose settings are the same.
fn read<T: DeserializeOwned>(path: &Path, text: &str, settings: &Value) -> anyhow::Result<Vec<T>> {
    let mut lines = text.lines();
    let head: Option<Value> = lines.next().and_then(|line| serde_json::from_str(line).ok());
    let Some(found) = head.as_ref().and_then(|head| head["settings"].as_object()) else {
        return Err(bad_input(format!(
            "{} is no file of an evaluation: its first line holds no settings; name another file",
            path.display()
        )));
    };
    let asked = settings["settings"].as_object().cloned().unwrap_or_default();
    let mut names: Vec<&String> = asked.keys().chain(found.keys()).collect();
    names.sort();
    names.dedup();
    let differences: Vec<String> = names
        .into_iter()
        .filter(|name| asked.get(*name) != found.get(*name))
        .map(|name| {
            let shown = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
            format!("{name} is {} there and {} here", shown(found.get(name)), shown(asked.get(name)))
        })
        .collect();
    if !differences.is_empty() {
        return Err(bad_input(format!(
            "{} was begun with other settings ({}); name another file",
            path.display(),
            differences.join(", ")
        )));
    }
    let rest: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let mut rows = Vec::new();
    for (index, line) in rest.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(row) => rows.push(row),
            // Only the last line can have been cut short.
            Err(_) if index + 1 == rest.len() && !text.ends_with('\n') => {}
            Err(error) => return Err(bad_input(format!("{} line {}: {error}", path.display(), index + 2))),
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

    fn open(path: &Path, model: &str) -> anyhow::Result<Answers<u32>> {
        Answers::open(Some(path), || Ok(settings(model)))
    }

    #[test]
    fn a_file_is_gone_on_with_after_a_line_that_was_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/answers.jsonl");
        let mut answers = open(&path, "a").unwrap();
        assert!(answers.rows().is_empty());
        answers.push(7).unwrap();
        answers.file.unwrap().file.write_all(b"{\"cut").unwrap();
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
