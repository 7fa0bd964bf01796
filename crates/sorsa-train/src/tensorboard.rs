//! Scalars for TensorBoard: an event file of TFRecords, each a small protocol buffer.
//!
//! ```text
//! record    length u64 | masked crc32c of it u32 | data | masked crc32c of it u32          little-endian
//! Event     1 wall_time double, 2 step int64, 3 file_version string, 5 summary, 7 session_log
//! Summary   1 value, repeated: 1 tag string, 2 simple_value float
//! ```
//!
//! Sources: `tensorflow/core/lib/io/record_writer.h`, `tensorboard/compat/proto/{event,summary}.proto`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crc::{CRC_32_ISCSI, Crc};

use sorsa_files::{FileError, at};

/// Writes scalars to `<folder>/events.out.tfevents.<seconds>.<host>.<n>`. Each record is written at once, so
/// that TensorBoard can follow a running experiment.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts an event file in `folder` for a process whose first event is of step `first`. TensorBoard then ignores the
    /// events of that step and later ones in older files. `host` names the machine, if several write to one folder.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn create(folder: impl AsRef<Path>, host: &str, first: u64) -> Result<Self, FileError> {
        let folder = folder.as_ref();
        let mut earlier = None;
        for entry in std::fs::read_dir(folder).map_err(at("list", folder))? {
            let name = entry.map_err(at("list", folder))?.file_name();
            if let Some(rest) = name.to_string_lossy().strip_prefix(PREFIX) {
                let seconds = rest.split('.').next().and_then(|seconds| seconds.parse::<u64>().ok()).unwrap_or(0);
                earlier = earlier.max(Some(seconds));
            }
        }
        // TensorBoard reads the files of a folder in the order of their names: a clock that was set back must not change it.
        let seconds = (wall_time() as u64).max(earlier.unwrap_or(0));
        // A run may be resumed within the second.
        let mut names = (0..).map(|n| folder.join(format!("{PREFIX}{seconds:010}.{host}.{n}")));
        let path = names.find(|path| !path.exists()).expect("the numbers do not end");
        let file = File::create_new(&path).map_err(at("create", &path))?;
        let mut writer = Self { path, file };
        writer.write(&event(0, |event| bytes(event, 3, b"brain.Event:2")))?;
        if earlier.is_some() {
            // SessionLog { status: START }
            writer.write(&event(first, |event| bytes(event, 7, &[0x08, 1])))?;
        }
        Ok(writer)
    }

    /// Writes the values of some tags at one step.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<(), FileError> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut scalar = Vec::new();
            bytes(&mut scalar, 1, tag.as_bytes());
            key(&mut scalar, 2, FIXED32);
            scalar.extend((value as f32).to_le_bytes());
            bytes(&mut summary, 1, &scalar);
        }
        self.write(&event(step, |event| bytes(event, 5, &summary)))
    }

    /// Flushes the file to the disk.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(at("flush", &self.path))
    }

    fn write(&mut self, event: &[u8]) -> Result<(), FileError> {
        self.file.write_all(&record(event)).map_err(at("append to", &self.path))
    }
}

/// How the names of event files begin.
const PREFIX: &str = "events.out.tfevents.";

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn event(step: u64, content: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut event = Vec::new();
    key(&mut event, 1, FIXED64);
    event.extend(wall_time().to_le_bytes());
    key(&mut event, 2, VARINT);
    varint(&mut event, step);
    content(&mut event);
    event
}

// Protocol buffers: a field is its key, then its value in one of these wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

fn key(message: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(message, field << 3 | wire_type);
}

fn bytes(message: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(message, field, LENGTH_DELIMITED);
    varint(message, value.len() as u64);
    message.extend(value);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// TFRecord masks its checksums, since a crc of data that holds its own crc is a poor one.
fn masked_crc(data: &[u8]) -> u32 {
    static CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
    CRC32C.checksum(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits a file into its records' data, checking both checksums of each.
    fn records(mut file: &[u8]) -> Vec<&[u8]> {
        let mut records = Vec::new();
        while !file.is_empty() {
            let (header, rest) = file.split_at(12);
            let length = u64::from_le_bytes(header[..8].try_into().unwrap()) as usize;
            assert_eq!(header[8..], masked_crc(&header[..8]).to_le_bytes());
            let (data, rest) = rest.split_at(length);
            let (crc, rest) = rest.split_at(4);
            assert_eq!(crc, masked_crc(data).to_le_bytes());
            records.push(data);
            file = rest;
        }
        records
    }

    /// The fields of a message as `(number, raw value)`; numbers come as little-endian bytes.
    fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(message: &mut &[u8]) -> u64 {
            let length = message.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
            let (head, rest) = message.split_at(length);
            *message = rest;
            head.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
        }
        let mut fields = Vec::new();
        while !message.is_empty() {
            let key = varint(&mut message);
            let length = match key & 7 {
                VARINT => {
                    fields.push((key >> 3, varint(&mut message).to_le_bytes().to_vec()));
                    continue;
                }
                FIXED64 => 8,
                FIXED32 => 4,
                LENGTH_DELIMITED => varint(&mut message) as usize,
                other => panic!("wire type {other}"),
            };
            let (value, rest) = message.split_at(length);
            fields.push((key >> 3, value.to_vec()));
            message = rest;
        }
        fields
    }

    #[test]
    fn the_checksum_is_the_published_one() {
        // crc32c("123456789") = 0xe3069283, the check value of the polynomial.
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn scalars_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), "host", 0).unwrap();
        writer.scalars(1, [("loss", 2.5), ("learning_rate", 3e-5)]).unwrap();
        writer.scalars(300, [("loss", -0.5)]).unwrap();
        let name = writer.path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("events.out.tfevents.") && name.ends_with(".host.0"), "{name}");
        let file = std::fs::read(&writer.path).unwrap();
        let records = records(&file);
        assert_eq!(fields(records[0])[2], (3, b"brain.Event:2".to_vec()));
        let mut read = Vec::new();
        for record in &records[1..] {
            let event = fields(record);
            let step = u64::from_le_bytes(event[1].1.clone().try_into().unwrap());
            assert_eq!(event[2].0, 5);
            for (_, value) in fields(&event[2].1) {
                let value = fields(&value);
                let tag = String::from_utf8(value[0].1.clone()).unwrap();
                read.push((step, tag, f32::from_le_bytes(value[1].1.clone().try_into().unwrap())));
            }
        }
        let expected = [(1, "loss", 2.5), (1, "learning_rate", 3e-5), (300, "loss", -0.5)];
        assert_eq!(read, expected.map(|(step, tag, value)| (step, tag.to_owned(), value)));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_change_the_order_of_files() {
        let folder = tempfile::tempdir().unwrap();
        let later = wall_time() as u64 + 1000;
        let first = folder.path().join(format!("{PREFIX}{later:010}.host.0"));
        std::fs::write(&first, "").unwrap();
        let writer = EventWriter::create(folder.path(), "host", 1).unwrap();
        assert!(writer.path > first, "{}", writer.path.display());
    }

    #[test]
    fn a_run_that_goes_on_or_begins_again_voids_what_earlier_files_hold_from_there_on() {
        let folder = tempfile::tempdir().unwrap();
        let records_of = |first: u64| {
            let writer = EventWriter::create(folder.path(), "host", first).unwrap();
            let file = std::fs::read(&writer.path).unwrap();
            records(&file).into_iter().map(fields).collect::<Vec<_>>()
        };
        assert_eq!(records_of(0).len(), 1, "there is nothing to void");
        for first in [201u64, 1, 0] {
            let found = records_of(first);
            assert_eq!(found[1][1].1, first.to_le_bytes());
            assert_eq!(fields(&found[1][2].1), [(1, 1u64.to_le_bytes().to_vec())]);
        }
    }
}
