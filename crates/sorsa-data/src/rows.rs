//! Reads the rows of a file as JSON values, for tasks whose rows are not a [`Record`](crate::Record).

use std::fs::File;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde::Deserializer;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;

use crate::DataError;

/// Reads the first `limit` rows of a file of JSON lines, a JSON array or a parquet file. Each row has its number, from 1: the
/// line of a text file, otherwise the element or row.
///
/// # Errors
///
/// [`DataError::Read`] if the file cannot be read, [`DataError::Malformed`] if it is not valid JSON or parquet.
pub fn read_rows(path: impl AsRef<Path>, limit: usize) -> Result<Vec<(usize, Value)>, DataError> {
    let path = path.as_ref();
    let read = |source| DataError::Read { path: path.to_owned(), source };
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet")) {
        return parquet_rows(path, limit);
    }
    let bytes = std::fs::read(path).map_err(read)?;
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    let malformed = |reason: String| DataError::Malformed { path: path.to_owned(), kind: "JSON", reason };
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        return json.deserialize_seq(FirstElements { limit }).map_err(|error| malformed(error.to_string()));
    }
    let lines = (1..).zip(bytes.split(|&byte| byte == b'\n'));
    let lines = lines.filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace)).take(limit);
    let row = |(number, line): (usize, &[u8])| match serde_json::from_slice(line) {
        Ok(value) => Ok((number, value)),
        Err(error) => Err(malformed(format!("line {number}: {error}"))),
    };
    lines.map(row).collect()
}

fn parquet_rows(path: &Path, limit: usize) -> Result<Vec<(usize, Value)>, DataError> {
    let malformed = |error: parquet::errors::ParquetError| DataError::Malformed {
        path: path.to_owned(),
        kind: "parquet",
        reason: error.to_string(),
    };
    let file = File::open(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    let reader = SerializedFileReader::new(file).map_err(malformed)?;
    let rows = (1..).zip(reader.get_row_iter(None).map_err(malformed)?).take(limit);
    rows.map(|(number, row)| Ok((number, row.map_err(malformed)?.to_json_value()))).collect()
}

/// Collects the first elements of an array. It reads the rest and drops it.
struct FirstElements {
    limit: usize,
}

impl<'de> Visitor<'de> for FirstElements {
    type Value = Vec<(usize, Value)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut rows = Vec::new();
        while rows.len() < self.limit {
            match elements.next_element()? {
                Some(value) => rows.push((rows.len() + 1, value)),
                None => return Ok(rows),
            }
        }
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_with_their_numbers_from_lines_and_arrays() {
        let folder = tempfile::tempdir().unwrap();
        let rows = |name: &str, text: &str, limit: usize| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            read_rows(path, limit)
                .map(|rows| rows.into_iter().map(|(n, row)| (n, row["a"].as_u64().unwrap())).collect())
        };
        let found: Vec<(usize, u64)> = rows("a.jsonl", "{\"a\": 1}\n\n{\"a\": 2}\n{\"a\": 3}\n", 2).unwrap();
        assert_eq!(found, [(1, 1), (3, 2)]);
        let found: Vec<(usize, u64)> = rows("a.json", "[{\"a\": 1}, {\"a\": 2}]", 1).unwrap();
        assert_eq!(found, [(1, 1)]);
        let fault: Result<Vec<(usize, u64)>, _> = rows("b.jsonl", "{\"a\": 1}\nnonsense\n", 9);
        assert!(fault.unwrap_err().to_string().contains("line 2"));
    }
}
