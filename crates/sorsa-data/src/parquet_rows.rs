//! The rows of a parquet file as JSON values.

use std::fs::File;
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::TreeBuilder;
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value};

use crate::expansion::Expansion;
use crate::panics::caught;
use crate::parquet_pages::{BoundedRowGroup, PageFile};
use crate::row_file::TakeRow;

/// Largest text of a row, all fields together.
const MAX_ROW_BYTES: usize = 64 << 20;

/// Name of the only field of the object that stands for bytes which are not text. No column has it: it holds a line feed.
pub(crate) const BYTES: &str = "bytes\n";

/// Hands the rows to `take`, in order, until it breaks. Damage that makes the `parquet` crate panic is an error like any other.
pub(crate) fn for_each_parquet_row(file: File, take: &mut TakeRow<'_>) -> Result<(), String> {
    let size = file.metadata().map_err(|error| error.to_string())?.len();
    let pages =
        Arc::new(PageFile::new(file.try_clone().map_err(|error| error.to_string())?, Arc::new(Expansion::new(size))));
    // Dictionaries repeat a text without an end of bytes: rows are counted apart from pages.
    let expansion = Expansion::new(size);
    let reader = caught(|| SerializedFileReader::new(file))?.map_err(|error| error.to_string())?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let mut number = 0;
    for metadata in reader.metadata().row_groups() {
        let group = BoundedRowGroup::new(Arc::clone(&pages), metadata);
        let rows = caught(|| TreeBuilder::new().as_iter(Arc::clone(&schema), &group))?;
        let mut rows = rows.map_err(|error| error.to_string())?;
        while let Some(row) = caught(|| rows.next())? {
            let row = row.map_err(|error| error.to_string())?;
            number += 1;
            let bytes = row_bytes(&row);
            // A row of nulls takes its time too.
            expansion.add(bytes.max(64) as u64)?;
            let value = match bytes > MAX_ROW_BYTES {
                true => Err(format!("{bytes} bytes, at most {MAX_ROW_BYTES} are read")),
                false => caught(|| object(&row)),
            };
            if take(number, value).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Bytes of the texts in a row.
fn row_bytes(row: &Row) -> usize {
    row.get_column_iter().map(|(_, field)| field_bytes(field)).sum()
}

fn field_bytes(field: &Field) -> usize {
    match field {
        Field::Str(text) => text.len(),
        Field::Bytes(bytes) => bytes.len(),
        Field::Group(row) => row_bytes(row),
        Field::ListInternal(list) => list.elements().iter().map(|field| 16 + field_bytes(field)).sum(),
        Field::MapInternal(map) => {
            map.entries().iter().map(|(key, value)| 32 + field_bytes(key) + field_bytes(value)).sum()
        }
        _ => 0,
    }
}

fn object(row: &Row) -> Value {
    Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), json(field))).collect())
}

/// A field as JSON. Bytes are text if they are UTF-8. Dates, times and decimals become their text.
fn json(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(*value),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float16(value) => float(f64::from(f32::from(*value))),
        // The shortest number that is this one in single precision: 0.1, not 0.10000000149011612.
        Field::Float(value) => float(value.to_string().parse().unwrap_or(f64::from(*value))),
        Field::Double(value) => float(*value),
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => Value::Object(Map::from_iter([(BYTES.to_owned(), Value::from(bytes.len()))])),
        },
        Field::Group(row) => object(row),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(json).collect()),
        Field::MapInternal(map) => {
            let name = |key: &Field| match json(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            Value::Object(map.entries().iter().map(|(key, value)| (name(key), json(value))).collect())
        }
        other => Value::String(other.to_string()),
    }
}

fn float(value: f64) -> Value {
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}
