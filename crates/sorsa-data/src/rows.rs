//! Reads the rows of a file as JSON values, for tasks whose rows are not a [`Record`](crate::Record).

use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;

use serde_json::Value;

use crate::row_file::RowFile;
use crate::{BadRows, DataError};

/// The first rows of a file.
#[derive(Debug, Clone)]
pub struct Rows {
    /// What rows are called in messages: `line` or `row`.
    pub unit: &'static str,
    /// The number of each row, from 1 (the line of a text file, otherwise the element or row), and its value or why it has
    /// none.
    pub rows: Vec<(usize, Result<Value, String>)>,
}

impl Rows {
    /// Converts every row. The second part is the rows that have no value or that `convert` refuses.
    pub fn convert<T>(self, mut convert: impl FnMut(usize, Value) -> Result<T, String>) -> (Vec<T>, BadRows) {
        let (mut good, mut bad) = (Vec::with_capacity(self.rows.len()), BadRows::new(self.unit));
        for (number, value) in self.rows {
            match value.and_then(|value| convert(number, value)) {
                Ok(row) => good.push(row),
                Err(reason) => bad.push(number, reason),
            }
        }
        (good, bad)
    }
}

/// Reads the first `limit` rows of a file, like [`load`](crate::load) does: JSON lines, a JSON array or parquet, compressed
/// or not.
///
/// # Errors
///
/// [`DataError`] if the file cannot be read or is broken as a whole. A broken line is none: it has its reason in
/// [`Rows::rows`].
pub fn read_rows(path: impl AsRef<Path>, limit: usize) -> Result<Rows, DataError> {
    let file = RowFile::open(path.as_ref())?;
    let mut read = Rows { unit: file.unit(), rows: Vec::new() };
    if limit == 0 {
        return Ok(read);
    }
    file.for_each(&mut |number, value| {
        read.rows.push((number, value));
        if read.rows.len() < limit { Continue(()) } else { Break(()) }
    })?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row's number, and what it holds or why it cannot be read.
    type NumberedRow = (usize, Result<u64, String>);

    fn numbers(name: &str, text: &str, limit: usize) -> Result<Vec<NumberedRow>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let read = read_rows(path, limit).map_err(|error| error.to_string())?;
        Ok(read.rows.into_iter().map(|(n, row)| (n, row.map(|row| row["a"].as_u64().unwrap()))).collect())
    }

    #[test]
    fn rows_come_with_their_numbers_from_lines_and_arrays() {
        let found = numbers("a.jsonl", "{\"a\": 1}\n\n{\"a\": 2}\n{\"a\": 3}\n", 2).unwrap();
        assert_eq!(found, [(1, Ok(1)), (3, Ok(2))]);
        let found = numbers("a.json", "[{\"a\": 1}, {\"a\": 2}]", 1).unwrap();
        assert_eq!(found, [(1, Ok(1))]);
        let found = numbers("b.jsonl", "{\"a\": 1}\r\nnonsense\r\n\u{FEFF}{\"a\": 2}", 9).unwrap();
        assert_eq!(found[0], (1, Ok(1)));
        assert!(found[1].1.as_ref().unwrap_err().starts_with("not JSON"));
        assert_eq!(found[2], (3, Ok(2)));
        assert!(numbers("c.json", "[{\"a\": 1}", 9).unwrap_err().contains("is not valid JSON"));
    }
}
