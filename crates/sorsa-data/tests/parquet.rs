//! Parquet files of pyarrow (`tests/golden/make_parquet.py`): one table in every codec, page version and encoding has the rows
//! that pyarrow reads.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sorsa_data::{DataError, LoadOptions, load, read_rows};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/parquet")
}

fn values(path: &Path) -> Vec<Value> {
    let read = read_rows(path, usize::MAX).unwrap_or_else(|error| panic!("{error}"));
    read.rows.into_iter().map(|(_, row)| row.expect("a row")).collect()
}

#[test]
fn every_codec_page_and_encoding_has_the_rows_of_the_reference() {
    let expected: Vec<Value> =
        serde_json::from_slice(&std::fs::read(golden().join("rows.json")).expect("rows.json")).expect("JSON");
    let mut files = 0;
    for entry in std::fs::read_dir(golden()).expect("the folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if name == "many" || name == "rows" {
            continue;
        }
        let found = values(&path);
        assert_eq!(found.len(), expected.len(), "{name}");
        for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
            for (column, value) in expected.as_object().expect("a row") {
                assert_eq!(&found[column], value, "{name}, row {}, {column}", number + 1);
            }
        }
        files += 1;
    }
    assert!(files >= 16, "{files} files");
}

#[test]
fn rows_stay_together_over_pages_and_groups() {
    let rows = values(&golden().join("many.parquet"));
    assert_eq!(rows.len(), 3000);
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row["prompt"], format!("question {number}"));
        assert_eq!(row["tags"].as_array().map(Vec::len), Some(number % 4), "{row}");
        assert_eq!(row["completion"].is_null(), number % 3 == 0, "{row}");
    }
    let error = load(golden().join("many.parquet"), &LoadOptions::default()).expect_err("nulls").to_string();
    assert!(error.contains("1000 of 3000 rows") && error.contains("row 1: `completion` should be text, found null"));
    let options = LoadOptions { skip_bad_rows: true, ..LoadOptions::default() };
    let loaded = load(golden().join("many.parquet"), &options).expect("the good rows");
    assert_eq!((loaded.records.len(), loaded.skipped.count, loaded.skipped.first[1].row), (2000, 1000, 4));
}

#[test]
fn bytes_that_are_no_text_are_said_to_be_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bytes.parquet");
    let mut file = std::fs::read(golden().join("plain.parquet")).expect("the file");
    // Two values of the column `bytes`, each after its length: the second is no longer UTF-8.
    let values = b"plain\x02\0\0\0\xC3\xA9";
    let at = file.windows(values.len()).position(|window| window == values).expect("the values");
    file[at + 10] = b'(';
    std::fs::write(&path, &file).expect("written");
    let rows = self::values(&path);
    assert!(rows[0]["bytes"] == "plain" && rows[1]["bytes"].is_object());
    let error = load(&path, &LoadOptions { format: Some(sorsa_data::Format::Text), ..LoadOptions::default() });
    assert!(error.expect_err("empty texts").to_string().contains("`text` is empty"));
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("damaged.parquet");
    let mut state = 7u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut refused = 0;
    for name in ["zstd", "gzip-v2", "lz4", "brotli", "snappy", "delta", "index"].repeat(60) {
        let mut file = std::fs::read(golden().join(format!("{name}.parquet"))).expect("the file");
        for _ in 0..=random(6) {
            let at = 4 + random(file.len() - 12);
            match random(4) {
                0 => file[at] = [0, 1, 0x7F, 0x80, 0xFF][random(5)],
                1 => drop(file.remove(at)),
                _ => file[at] = random(256) as u8,
            }
        }
        std::fs::write(&path, &file).expect("written");
        match read_rows(&path, 100) {
            Ok(_) => {}
            Err(DataError::Malformed { .. } | DataError::UnknownFile { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 100, "only {refused} refused");
}
