//! Reads files into records: JSON lines, a JSON array, parquet, CSV, plain text.

use std::ops::ControlFlow::{self, Break, Continue};
use std::path::Path;

use serde_json::Value;

use crate::formats::ConvertedRow;
use crate::row_file::RowFile;
use crate::{AnswerStyle, BadRows, DataError, Format, Record};

/// Options of [`load`].
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Format of the rows. If `None`, `load` recognises it by the fields of the first rows.
    pub format: Option<Format>,
    /// Skip bad rows and count them, instead of failing.
    pub skip_bad_rows: bool,
    /// Read the first `limit` rows only.
    pub limit: Option<usize>,
    /// How answers end.
    pub answer_style: AnswerStyle,
}

/// The records of a file.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Records of the good rows, in order.
    pub records: Vec<Record>,
    /// The bad rows; empty unless [`LoadOptions::skip_bad_rows`] is set.
    pub skipped: BadRows,
    /// Format of the rows, from [`LoadOptions::format`] or recognised.
    pub format: Format,
    /// Fields that change the meaning of a row and that the format does not use, with the number of rows that have them.
    pub unused_fields: Vec<(&'static str, usize)>,
}

/// Reads one file of records.
///
/// The content tells JSON: `[` opens an array; otherwise each line is one object, and blank lines are skipped. The first bytes
/// tell parquet, gzip and zstd; compressed JSON is read like any other. The first line of a .csv or .tsv file names its fields. A .txt
/// or .md file is one [`Format::Text`] record.
/// Texts are UTF-8, with or without a byte order mark.
///
/// # Errors
///
/// If the file cannot be read, has no known type or format, or has no good row. Bad rows are an error too, unless
/// [`LoadOptions::skip_bad_rows`] is set: the error counts all of them, and gives line (or row) and reason of the first
/// [`BadRows::SHOWN`].
pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Loaded, DataError> {
    let path = path.as_ref();
    let file = RowFile::open(path)?;
    let mut rows = RowConverter::new(file.unit(), options);
    file.for_each(&mut |row, value| rows.push(row, value))?;
    rows.finish(path)
}

/// Converts rows to records. It holds rows back until one of them shows the format.
struct RowConverter<'a> {
    options: &'a LoadOptions,
    format: Option<Format>,
    waiting: Vec<(usize, Value)>,
    records: Vec<Record>,
    bad: BadRows,
    read: usize,
    unused_fields: Vec<(&'static str, usize)>,
}

impl<'a> RowConverter<'a> {
    /// Number of rows without a known format after which `load` gives up.
    const MAX_UNKNOWN: usize = 20;

    fn new(unit: &'static str, options: &'a LoadOptions) -> Self {
        let (waiting, records) = (Vec::new(), Vec::new());
        let unused_fields = Vec::new();
        Self { options, format: options.format, waiting, records, bad: BadRows::new(unit), read: 0, unused_fields }
    }

    fn is_full(&self) -> bool {
        self.options.limit.is_some_and(|limit| self.read >= limit)
            || (self.format.is_none() && self.waiting.len() >= Self::MAX_UNKNOWN)
    }

    /// Takes the row with number `row`. It breaks if it needs no more rows.
    fn push(&mut self, row: usize, value: Result<Value, String>) -> ControlFlow<()> {
        if self.is_full() {
            return Break(());
        }
        self.read += 1;
        match (value, self.format) {
            (Err(reason), _) => self.bad.push(row, reason),
            (Ok(value), Some(format)) => self.convert(format, row, value),
            (Ok(value), None) => {
                self.format = Format::recognise(&value);
                self.waiting.push((row, value));
                if let Some(format) = self.format {
                    for (row, value) in std::mem::take(&mut self.waiting) {
                        self.convert(format, row, value);
                    }
                }
            }
        }
        if self.is_full() { Break(()) } else { Continue(()) }
    }

    fn convert(&mut self, format: Format, row: usize, value: Value) {
        match format.record(row, value, self.options) {
            Ok(ConvertedRow { record, unused_fields }) => {
                self.records.push(record);
                for field in unused_fields {
                    match self.unused_fields.iter_mut().find(|(known, _)| *known == field) {
                        Some((_, rows)) => *rows += 1,
                        None => self.unused_fields.push((field, 1)),
                    }
                }
            }
            Err(reason) => self.bad.push(row, reason),
        }
    }

    fn finish(mut self, path: &Path) -> Result<Loaded, DataError> {
        let path = path.to_owned();
        let Some(format) = self.format else {
            let fields = self.waiting.iter().find_map(|(_, value)| value.as_object());
            return Err(match fields {
                Some(fields) => DataError::UnknownFormat { path, found: fields.keys().cloned().collect() },
                None if self.read == 0 => DataError::Empty { path },
                None => {
                    for (row, _) in self.waiting {
                        self.bad.push(row, "not an object".to_owned());
                    }
                    let reason =
                        format!("none of its first {} rows is an object with named fields\n{}", self.read, self.bad);
                    DataError::Malformed { path, kind: "data", reason }
                }
            });
        };
        self.bad.first.sort_by_key(|bad| bad.row);
        let nothing_left = self.records.is_empty() && self.bad.count > 0;
        if nothing_left || (self.bad.count > 0 && !self.options.skip_bad_rows) {
            return Err(DataError::BadRows { path, format, rows_read: self.read, bad: self.bad });
        }
        if self.records.is_empty() {
            return Err(DataError::Empty { path });
        }
        Ok(Loaded { records: self.records, skipped: self.bad, format, unused_fields: self.unused_fields })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::Content;

    fn file(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    fn error(name: &str, content: impl AsRef<[u8]>) -> String {
        let (folder, path) = file(name, content);
        let error = load(path, &LoadOptions::default()).expect_err("it should fail").to_string();
        error.replace(folder.path().to_str().unwrap(), "")
    }

    const GOOD: &str = r#"{"query": "q", "response": "a"}"#;

    #[test]
    fn lines_and_an_array_of_the_same_rows_give_the_same_records() {
        let rows: Vec<String> = (0..50).map(|row| format!(r#"{{"query": "q{row}", "response": "é{row}"}}"#)).collect();
        let (_a, lines) = file("rows.jsonl", rows.join("\r\n"));
        let (_b, array) = file("rows.json", format!("\u{FEFF} [{}]", rows.join(",\n")));
        let options = LoadOptions::default();
        let (lines, array) = (load(lines, &options).unwrap(), load(array, &options).unwrap());
        assert_eq!((lines.format, lines.records.len()), (Format::MetaMathQa, 50));
        assert_eq!(lines.records, array.records);
        assert_eq!(lines.records[49].row, 50);
    }

    #[test]
    fn a_limit_stops_before_what_follows_is_looked_at() {
        let options = LoadOptions { limit: Some(2), ..LoadOptions::default() };
        let (_a, lines) = file("rows.jsonl", format!("{GOOD}\n{GOOD}\nbroken"));
        let (_b, array) = file("rows.json", format!("[{GOOD},{GOOD}, broken"));
        assert_eq!(load(lines, &options).unwrap().records.len(), 2);
        assert_eq!(load(array, &options).unwrap().records.len(), 2);
    }

    #[test]
    fn every_bad_line_is_named_with_its_reason() {
        let bad =
            format!("{GOOD}\n\n{{\"query\": \"q\"}}\n{GOOD}\nnonsense\n{{\"query\": \"q\", \"response\": \"\"}}\n7");
        insta::assert_snapshot!(error("rows.jsonl", bad), @r"
        /rows.jsonl: 4 of 6 rows cannot be used as metamathqa:
          line 3: no field `response` (found: query)
          line 5: not JSON: expected ident at column 2
          line 6: `response` is empty
          line 7: expected an object with named fields, found a number
        ");
    }

    #[test]
    fn bad_lines_beyond_twenty_are_counted() {
        let message = error("rows.jsonl", format!("{GOOD}\n{}", "x\n".repeat(25)));
        assert!(message.contains("25 of 26 rows") && message.contains("line 21: "), "{message}");
        assert!(message.ends_with("and 5 more") && !message.contains("line 22: "), "{message}");
    }

    #[test]
    fn bad_rows_can_be_skipped_and_are_counted() {
        let (_folder, path) = file("rows.jsonl", format!("{{\"query\": \"q\"}}\n{GOOD}\nnonsense"));
        let loaded = load(path, &LoadOptions { skip_bad_rows: true, ..LoadOptions::default() }).unwrap();
        assert_eq!(loaded.records.len(), 1);
        assert_eq!(loaded.skipped.first.iter().map(|bad| bad.row).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn a_text_file_is_one_record() {
        let (_folder, path) = file("play.txt", "[First]\n\nSecond.");
        let loaded = load(path, &LoadOptions::default()).unwrap();
        assert_eq!(loaded.format, Format::Text);
        assert_eq!(loaded.records, [Record::new(1, Content::Text("[First]\n\nSecond.".to_owned()))]);
    }

    #[test]
    fn parquet_gives_what_lines_give() {
        let schema = "message rows { required binary question (STRING); optional binary answer (STRING); required int64 extra; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let (_folder, path) = file("rows.parquet", "");
        let mut writer =
            SerializedFileWriter::new(File::create(&path).unwrap(), schema, WriterProperties::default().into())
                .unwrap();
        let mut group = writer.next_row_group().unwrap();
        let texts = |texts: [&str; 2]| texts.map(ByteArray::from);
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts(["é", "two"]), None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts(["1\n#### 1", ""])[..1], Some(&[1, 0]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[5, 6], None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();

        let first = load(&path, &LoadOptions { limit: Some(1), ..LoadOptions::default() }).unwrap();
        assert_eq!((first.format, first.records[0].answer()), (Format::Gsm8k, Some("1\n#### 1")));
        let error = load(&path, &LoadOptions::default()).unwrap_err().to_string();
        assert!(error.ends_with("row 2: `answer` should be text, found null"), "{error}");
    }

    #[test]
    fn a_csv_file_gives_what_lines_give() {
        let (_folder, path) = file("rows.csv", "\u{FEFF}question,answer\nq,\"a\n#### 1\"\nr,\"b\n#### 2\"\n");
        let first = load(&path, &LoadOptions { limit: Some(1), ..LoadOptions::default() }).unwrap();
        assert_eq!((first.format, first.records.len()), (Format::Gsm8k, 1));
        let both = load(&path, &LoadOptions::default()).unwrap();
        assert_eq!(both.records[1].answer(), Some("b\n#### 2"));
        let (_folder, path) =
            file("rows.tsv", "Body\tQuestion\tAnswer\nTom has 3.\tHow many?\t3\nNone.\tHow many?\t\n");
        let options = LoadOptions { skip_bad_rows: true, ..LoadOptions::default() };
        let loaded = load(&path, &options).unwrap();
        assert_eq!((loaded.format, loaded.records[0].answer(), loaded.skipped.count), (Format::Svamp, Some("3"), 1));
        let error = load(&path, &LoadOptions::default()).unwrap_err().to_string();
        assert!(error.ends_with("line 3: `Answer` should be text, found null"), "{error}");
    }

    #[test]
    fn files_that_are_not_data_are_told_apart() {
        insta::assert_snapshot!(error("rows.json", "[{\"query\": \"q\""), @"/rows.json is not valid JSON: EOF while parsing an object at line 1 column 14");
        insta::assert_snapshot!(error("rows.jsonl", "question,answer\n1,2"), @r"
        /rows.jsonl is not valid data: none of its first 2 rows is an object with named fields
          line 1: not JSON: expected value at column 1
          line 2: not JSON: trailing characters at column 2
        ");
        insta::assert_snapshot!(error("rows.jsonl", "\n \n"), @"/rows.jsonl holds no data");
        insta::assert_snapshot!(error("rows.json", "[]"), @"/rows.json holds no data");
        insta::assert_snapshot!(error("image.png", "\u{1}\u{2}"), @"/image.png is neither JSON lines, a JSON array, parquet, .csv, .tsv nor .txt");
        assert!(error("rows.parquet", "PAR1").starts_with("/rows.parquet is not valid parquet: "));
        insta::assert_snapshot!(error("rows.jsonl", r#"{"task_id": 1, "prompt": "p"}"#), @r"
        /rows.jsonl: no format has the fields of its first row (task_id, prompt); the formats are:
          messages          messages [{role, content}, ..] [, tools, system]
          sharegpt          conversations [{from, value}, ..] [, tools, system]
          metamathqa        query, response [, type]
          gsm8k             question, answer ending in `#### N`
          math              problem, solution [, answer, level, type]
          svamp             Body, Question, Answer [, Type]
          alpaca            instruction, output [, input, system, history]
          prompt-completion prompt, completion | prompt, response | query, answer | question, answer
          text              text
        ");
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(load(folder.path(), &LoadOptions::default()), Err(DataError::Folder { .. })));
        assert!(matches!(load(folder.path().join("none.jsonl"), &LoadOptions::default()), Err(DataError::Read { .. })));
    }
}
