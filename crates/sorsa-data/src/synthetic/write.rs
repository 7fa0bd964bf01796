//! Writing the artefacts as files.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use sorsa_files::{FileError, at, write_atomic_with};

use super::{Problem, TaskSplits, corpus, task};

/// What can go wrong when an artefact is made and written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyntheticError {
    /// A file or its folder could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The tokenizer library refused the settings or the texts.
    #[error("cannot train the tokenizer")]
    Tokenizer {
        /// What the library said.
        source: tokenizers::Error,
    },
}

#[derive(Serialize)]
struct Document {
    text: String,
}

/// Writes the first `documents` documents of [`corpus`]`(seed)` to `path`, as JSON lines of `{"text": ..}`.
///
/// # Errors
/// [`SyntheticError::File`] if the file or its folder cannot be written.
pub fn write_corpus(path: &Path, seed: u64, documents: usize) -> Result<(), SyntheticError> {
    write_lines(path, corpus(seed).take(documents).map(|text| Document { text }))
}

/// Writes [`task`]`(seed)` into `folder`: `train.jsonl`, `validation.jsonl` and `test.jsonl`, rows of
/// `{"type": .., "query": .., "response": ..}`.
///
/// # Errors
/// [`SyntheticError::File`] if a file or the folder cannot be written.
pub fn write_task(folder: &Path, seed: u64) -> Result<(), SyntheticError> {
    let TaskSplits { train, validation, test } = task(seed);
    let write = |name: &str, split: &[Problem]| write_lines(&folder.join(name), split);
    write("train.jsonl", &train)?;
    write("validation.jsonl", &validation)?;
    write("test.jsonl", &test)
}

fn write_lines<T: Serialize>(path: &Path, rows: impl IntoIterator<Item = T>) -> Result<(), SyntheticError> {
    write_whole(path, |out| {
        for row in rows {
            serde_json::to_writer(&mut *out, &row)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Writes a file as a whole, in a folder that is made if need be.
pub(super) fn write_whole(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), SyntheticError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(at("write", path))?;
    }
    Ok(write_atomic_with(path, content)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_files_hold_the_rows_and_leave_nothing_beside_them() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_task(folder.path(), 1).expect("the task is written");
        write_corpus(&folder.path().join("corpus.jsonl"), 1, 20).expect("the corpus is written");

        let lines = |name: &str| -> Vec<serde_json::Value> {
            let text = fs::read_to_string(folder.path().join(name)).expect(name);
            text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
        };
        for (row, problem) in lines("test.jsonl").iter().zip(task(1).test) {
            assert_eq!(row["query"], problem.query);
            assert_eq!(row["response"], problem.response);
            assert_eq!(row["type"], problem.template);
        }
        let texts: Vec<serde_json::Value> = corpus(1).take(20).map(Into::into).collect();
        assert_eq!(lines("corpus.jsonl").iter().map(|row| row["text"].clone()).collect::<Vec<_>>(), texts);
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 4);
    }

    #[test]
    fn an_unwritable_place_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").expect("a file");
        let error = write_corpus(&blocked.join("corpus.jsonl"), 1, 1).expect_err("a file is no folder");
        assert!(error.to_string().contains("corpus.jsonl"), "{error}");
    }
}
