//! Reads the rows of a file as JSON values: JSON lines, a JSON array, parquet or CSV.

use std::ops::ControlFlow::{self, Break, Continue};
use std::path::{Path, PathBuf};

use serde::Deserializer;
use serde::de::{SeqAccess, Visitor};
use serde_json::{Value, json};

use crate::DataError;
use crate::csv_rows::for_each_csv_row;
use crate::data_file::{DataFile, MARK, malformed};
use crate::parquet_rows::for_each_parquet_row;

/// Takes a row: its number from 1, and its value or what is wrong with it. It breaks if it needs no more rows.
pub(crate) type TakeRow<'a> = dyn FnMut(usize, Result<Value, String>) -> ControlFlow<()> + 'a;

/// A file of rows, open.
pub(crate) struct RowFile {
    path: PathBuf,
    content: Content,
}

enum Content {
    Parquet(std::fs::File),
    Array(Vec<u8>),
    Lines(Vec<u8>),
    /// Cells that this byte parts.
    Cells(Vec<u8>, u8),
    /// One text.
    Text(Vec<u8>),
}

impl RowFile {
    /// Opens a file. The first bytes tell parquet, compression and a JSON array. The name tells plain text, .txt or .md;
    /// what is left is JSON lines, by its name or because its first character is a brace, or by its name CSV, .csv or .tsv.
    ///
    /// # Errors
    ///
    /// [`DataError::Empty`] if there is nothing in it, [`DataError::UnknownFile`] if it is nothing of the above, and errors of
    /// [`DataFile::open`].
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let extension = extension(path);
        let content = match DataFile::open(path)? {
            DataFile::Parquet(file) => Content::Parquet(file),
            DataFile::Bytes(bytes) => match (&*extension, bytes.iter().find(|byte| !byte.is_ascii_whitespace())) {
                (_, None) => return Err(DataError::Empty { path: path.to_owned() }),
                ("parquet", _) => {
                    let reason = "it does not begin with PAR1".to_owned();
                    return Err(malformed(path, "parquet", reason));
                }
                ("txt" | "md", _) => Content::Text(bytes),
                (_, Some(b'[')) => Content::Array(bytes),
                ("jsonl" | "ndjson" | "json", _) | (_, Some(b'{')) => Content::Lines(bytes),
                ("csv", _) => Content::Cells(bytes, b','),
                ("tsv", _) => Content::Cells(bytes, b'\t'),
                _ => return Err(DataError::UnknownFile { path: path.to_owned() }),
            },
        };
        Ok(Self { path: path.to_owned(), content })
    }

    /// What rows are called: `line` in files that are read by lines, otherwise `row`.
    pub fn unit(&self) -> &'static str {
        match self.content {
            Content::Lines(_) | Content::Cells(..) => "line",
            Content::Parquet(_) | Content::Array(_) | Content::Text(_) => "row",
        }
    }

    /// Hands the rows to `take`, in order. A text is one row with the field `text`.
    ///
    /// # Errors
    ///
    /// [`DataError::Malformed`] if the file as a whole is broken before `take` has enough.
    pub fn for_each(self, take: &mut TakeRow<'_>) -> Result<(), DataError> {
        match self.content {
            Content::Parquet(file) => {
                for_each_parquet_row(file, take).map_err(|reason| malformed(&self.path, "parquet", reason))
            }
            Content::Array(bytes) => for_each_element(&self.path, &bytes, take),
            Content::Lines(bytes) => {
                for_each_line(&bytes, take);
                Ok(())
            }
            Content::Cells(bytes, delimiter) => {
                for_each_csv_row(&bytes, delimiter, take).map_err(|reason| malformed(&self.path, "CSV", reason))
            }
            Content::Text(bytes) => {
                let _ = take(1, text(&bytes).map(|text| json!({ "text": text })));
                Ok(())
            }
        }
    }
}

/// The extension in lower case; that of a compressed file is the one before `.gz` or `.zst`.
fn extension(path: &Path) -> String {
    let of =
        |path: &Path| path.extension().map(|extension| extension.to_ascii_lowercase().to_string_lossy().into_owned());
    match of(path) {
        Some(compression) if compression == "gz" || compression == "zst" => of(&path.with_extension("")),
        extension => extension,
    }
    .unwrap_or_default()
}

/// The bytes as text, or which byte is none.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let (line, column) = (bytes[..at].split(|&byte| byte == b'\n').count(), at_in_line(bytes, at));
        let place = if line > 1 { format!("line {line}, column {column}") } else { format!("column {column}") };
        format!("not UTF-8: byte 0x{:02X} at {place}; convert the file to UTF-8", bytes[at])
    })
}

fn at_in_line(bytes: &[u8], at: usize) -> usize {
    1 + bytes[..at].iter().rev().take_while(|&&byte| byte != b'\n').count()
}

fn for_each_line(bytes: &[u8], take: &mut TakeRow<'_>) {
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        // Files that are put together have marks in the middle.
        let line = line.strip_prefix(MARK).unwrap_or(line);
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let value = text(line)
            .and_then(|line| serde_json::from_str(line).map_err(|error| format!("not JSON: {}", without_line(&error))));
        if take(index + 1, value).is_break() {
            return;
        }
    }
}

/// The error without `at line 1`, because serde_json counts lines within the one line that it reads.
fn without_line(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column", " at column")
}

fn for_each_element(path: &Path, bytes: &[u8], take: &mut TakeRow<'_>) -> Result<(), DataError> {
    let mut enough = false;
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = json.deserialize_seq(Elements { take, enough: &mut enough }).and_then(|()| json.end());
    match read {
        Err(error) if !enough => {
            let reason = text(bytes).err().unwrap_or_else(|| error.to_string());
            Err(malformed(path, "JSON", reason))
        }
        _ => Ok(()),
    }
}

/// Takes the elements one by one, so that the whole file is never in memory as a JSON tree.
struct Elements<'a, 'b> {
    take: &'a mut TakeRow<'b>,
    enough: &'a mut bool,
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let mut row = 0;
        while let Some(value) = elements.next_element()? {
            row += 1;
            match (self.take)(row, Ok(value)) {
                Continue(()) => {}
                Break(()) => {
                    *self.enough = true;
                    break;
                }
            }
        }
        Ok(())
    }
}
