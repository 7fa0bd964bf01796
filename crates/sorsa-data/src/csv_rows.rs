//! The rows of a CSV file as JSON values (RFC 4180): the first line names the fields, and every cell is text. An empty cell is null.

use csv::{ByteRecord, Error, ErrorKind, ReaderBuilder};
use serde_json::{Map, Value};

use crate::data_file::MARK;
use crate::row_file::{TakeRow, text};

/// Largest text of a row, all cells together.
const MAX_ROW_BYTES: usize = 64 << 20;

/// Hands the rows to `take`, in order, until it breaks. The number of a row is that of the line on which it begins.
pub(crate) fn for_each_csv_row(bytes: &[u8], delimiter: u8, take: &mut TakeRow<'_>) -> Result<(), String> {
    let mut reader = ReaderBuilder::new().delimiter(delimiter).flexible(true).has_headers(false).from_reader(bytes);
    let mut record = ByteRecord::new();
    if !reader.read_byte_record(&mut record).map_err(|error| reason(&error))? {
        return Ok(());
    }
    let names = field_names(&record)?;
    // The reader ends a row before the second byte of a line's end, and so counts lines too late.
    let (mut counted, mut line) = (0, 1);
    while reader.read_byte_record(&mut record).map_err(|error| reason(&error))? {
        let is_last = reader.position().byte() as usize >= bytes.len();
        let read_from = record.position().map_or(0, |position| position.byte() as usize);
        let ends_of_lines = bytes[read_from..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let start = read_from + ends_of_lines;
        line += bytes[counted..start].iter().filter(|byte| **byte == b'\n').count();
        counted = start;
        if is_last && ends_in_quotes(&bytes[start..], delimiter) {
            return Err(format!("line {line}: a quote is not closed before the end of the file"));
        }
        if take(line, object(&names, &record)).is_break() {
            return Ok(());
        }
    }
    Ok(())
}

fn field_names(header: &ByteRecord) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    for cell in header {
        let name =
            text(cell.strip_prefix(MARK).unwrap_or(cell)).map_err(|reason| format!("its first line: {reason}"))?;
        let name = name.trim();
        if names.iter().any(|known| known == name) {
            return Err(format!("its first line names the field `{name}` twice"));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

fn object(names: &[String], record: &ByteRecord) -> Result<Value, String> {
    let bytes = record.as_slice().len();
    if bytes > MAX_ROW_BYTES {
        return Err(format!("{bytes} bytes, at most {MAX_ROW_BYTES} are read"));
    }
    if record.len() != names.len() {
        return Err(format!("{} cells, the first line names {} fields", record.len(), names.len()));
    }
    let mut fields = Map::new();
    for (name, cell) in names.iter().zip(record) {
        // The column of an index that other programs write has no name.
        if name.is_empty() {
            continue;
        }
        let value = match cell {
            [] => Value::Null,
            cell => Value::String(text(cell).map_err(|reason| format!("`{name}`: {reason}"))?.to_owned()),
        };
        fields.insert(name.clone(), value);
    }
    Ok(Value::Object(fields))
}

/// Whether the last row of a file ends inside quotes: the reader takes all that follows a quote for one cell, and says nothing.
fn ends_in_quotes(rows: &[u8], delimiter: u8) -> bool {
    let (mut starts_cell, mut quoted) = (true, false);
    let mut bytes = rows.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if quoted {
            // Two quotes are one that belongs to the cell.
            quoted = byte != b'"' || bytes.next_if_eq(&b'"').is_some();
            continue;
        }
        quoted = starts_cell && byte == b'"';
        starts_cell = byte == delimiter || byte == b'\n' || byte == b'\r';
    }
    quoted
}

fn reason(error: &Error) -> String {
    match error.kind() {
        ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow::{Break, Continue};

    use serde_json::json;

    use super::*;

    /// A row with its number.
    type Row = (usize, Result<Value, String>);

    /// Rows with their numbers, or the fault of the file.
    fn rows(text: &[u8], limit: usize) -> Result<Vec<Row>, String> {
        let mut rows = Vec::new();
        for_each_csv_row(text, b',', &mut |number, value| {
            rows.push((number, value));
            if rows.len() < limit { Continue(()) } else { Break(()) }
        })?;
        Ok(rows)
    }

    #[test]
    fn cells_are_texts_of_the_fields_in_the_first_line() {
        let text = "question,answer,\r\n\"What is 1, and \"\"2\"\"?\",\"One\nand two\",0\r\n\r\né,,1\r\n 5\" , x,2";
        let expected = [
            (2, Ok(json!({"question": "What is 1, and \"2\"?", "answer": "One\nand two"}))),
            (5, Ok(json!({"question": "é", "answer": null}))),
            (6, Ok(json!({"question": " 5\" ", "answer": " x"}))),
        ];
        assert_eq!(rows(text.as_bytes(), 9).unwrap(), expected);
        assert_eq!(rows(text.as_bytes(), 1).unwrap().len(), 1);
        assert_eq!(rows(b"a,b", 9).unwrap(), []);
    }

    #[test]
    fn a_bad_row_is_one_row_s_fault_and_a_bad_file_the_file_s() {
        let found = rows(b"a,b\n1\n1,2,3\n1,\xFF\n4,5", 9).unwrap();
        let faults: Vec<_> = found.iter().map(|(line, row)| (*line, row.as_ref().err().map(String::as_str))).collect();
        let expected = [
            (2, Some("1 cells, the first line names 2 fields")),
            (3, Some("3 cells, the first line names 2 fields")),
            (4, Some("`b`: not UTF-8: byte 0xFF at column 1; convert the file to UTF-8")),
            (5, None),
        ];
        assert_eq!(faults, expected);
        assert_eq!(rows(b"a,b,a\n", 9).unwrap_err(), "its first line names the field `a` twice");
        let open = rows(b"a,b\n1,2\n3,\"4\n5,6\n", 9).unwrap_err();
        assert_eq!(open, "line 3: a quote is not closed before the end of the file");
        for closed in ["a,b\n1,\"\"\"\"", "a,b\n1,2\"", "a,b\n\"1\",\"2\"\n", "a,b\n1,\"2\"x\"\n"] {
            assert!(rows(closed.as_bytes(), 9).is_ok(), "{closed}");
        }
    }
}
