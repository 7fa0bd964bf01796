//! Reading a GGUF file: metadata, the list of tensors, and the tensors of the types that are written here.
//!
//! The file is not trusted. Every length is compared with what is left of the file before anything is allocated, so a
//! file cannot ask for more memory than a small multiple of its own size. It is read, not mapped: a file that becomes shorter
//! is an error then.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use sorsa_files::open_regular;

use super::value::{ARRAY, encode_string};
use super::writer::{ALIGNMENT, MAGIC, MAX_AXES, VERSION};
use super::{Array, GgufError, GgufType, Value, parts};
use crate::weights::read_exact_at;

/// Bytes that are read first; twice as many each time, while what is said before the tensors is longer.
const FIRST_READ: u64 = 1 << 20;
/// Arrays within arrays are read to this depth; no tool writes any.
const MAX_DEPTH: usize = 4;

/// Name, shape and type of a tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensorInfo {
    /// Name in the file.
    pub name: String,
    /// Row-major shape, as PyTorch has it.
    pub shape: Vec<usize>,
    /// ggml's number of the type.
    pub type_id: u32,
    /// Where its bytes begin in the file.
    pub offset: usize,
    /// Which file it is in, of a model in several: 0 for the first.
    pub part: usize,
}

impl GgufTensorInfo {
    /// The type, if it can be decoded here.
    pub fn dtype(&self) -> Option<GgufType> {
        GgufType::from_id(self.type_id)
    }
}

/// A GGUF file of version 3, or 2, which differs in nothing that is read here.
///
/// Of a model in several files, this is all of them, with the metadata of the first.
#[derive(Debug)]
pub struct GgufFile {
    /// At least one.
    parts: Vec<Part>,
    contents: Contents,
    /// Position of each tensor in the list of tensors.
    positions: HashMap<String, usize>,
}

/// One of the files.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: File,
}

/// All that is said before the first tensor.
#[derive(Debug, PartialEq)]
pub(super) struct Contents {
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<GgufTensorInfo>,
}

impl GgufFile {
    /// Opens a file and reads what is said before the tensors; their places are checked against the file's size. If it is the first part
    /// of a model in several files, it opens the others too.
    ///
    /// # Errors
    ///
    /// [`GgufError::Io`] and [`GgufError::Malformed`].
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let malformed = |path: &Path, reason: String| GgufError::Malformed { path: path.to_owned(), offset: 0, reason };
        let (file, mut contents) = open_one(path)?;
        let others = parts::others(path, &contents.metadata).map_err(|reason| malformed(path, reason))?;
        let mut positions: HashMap<String, usize> = HashMap::new();
        positions.extend(contents.tensors.iter().enumerate().map(|(position, tensor)| (tensor.name.clone(), position)));
        let count = 1 + others.len();
        let mut parts = vec![Part { path: path.to_owned(), file }];
        for path in others {
            let (file, part) = open_one(&path)?;
            if let Some(reason) = parts::fault(&part.metadata, parts.len(), count) {
                return Err(malformed(&path, reason));
            }
            for tensor in part.tensors {
                if positions.insert(tensor.name.clone(), contents.tensors.len()).is_some() {
                    return Err(malformed(&path, format!("the tensor `{}` is in another part too", tensor.name)));
                }
                contents.tensors.push(GgufTensorInfo { part: parts.len(), ..tensor });
            }
            parts.push(Part { path, file });
        }
        Ok(Self { parts, contents, positions })
    }

    /// The file, or the first of several.
    pub fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// All metadata, in the file's order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.contents.metadata
    }

    /// The value of a key, if the file has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.contents.metadata.iter().find(|(found, _)| found == key).map(|(_, value)| value)
    }

    /// The metadata that `chosen` accepts by its key, as in the file.
    pub fn metadata_bytes(&self, chosen: impl Fn(&str) -> bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, value) in self.contents.metadata.iter().filter(|(key, _)| chosen(key)) {
            encode_string(key, &mut bytes);
            bytes.extend_from_slice(&value.id().to_le_bytes());
            value.encode(&mut bytes);
        }
        bytes
    }

    /// All tensors, in the file's order.
    pub fn tensors(&self) -> &[GgufTensorInfo] {
        &self.contents.tensors
    }

    /// The tensor of that name, if the file has it.
    pub fn info(&self, name: &str) -> Option<&GgufTensorInfo> {
        Some(&self.contents.tensors[*self.positions.get(name)?])
    }

    /// The bytes of a tensor as they are in the file.
    ///
    /// # Errors
    ///
    /// [`GgufError::NoTensor`], also for a type whose size is not known here; [`GgufError::Io`].
    pub fn raw(&self, name: &str) -> Result<Vec<u8>, GgufError> {
        self.raw_part(name, 0..usize::MAX)
    }

    /// A part of the bytes of a tensor, which ends where the tensor does at the latest.
    ///
    /// # Errors
    ///
    /// As [`GgufFile::raw`].
    pub fn raw_part(&self, name: &str, part: Range<usize>) -> Result<Vec<u8>, GgufError> {
        let missing = || GgufError::NoTensor { path: self.path().to_owned(), name: name.to_owned() };
        let info = self.info(name).ok_or_else(missing)?;
        let range = range(info).ok_or_else(missing)?;
        let mut bytes = vec![0; part.end.min(range.len()).saturating_sub(part.start)];
        let start = range.start + part.start;
        let Part { path, file } = &self.parts[info.part];
        read_exact_at(file, &mut bytes, start as u64).map_err(GgufError::io(path))?;
        Ok(bytes)
    }

    /// The opened file of a tensor, for readers of parts.
    pub(super) fn handle(&self, tensor: &GgufTensorInfo) -> &File {
        &self.parts[tensor.part].file
    }

    /// The values of a tensor, row-major.
    ///
    /// # Errors
    ///
    /// [`GgufError::NoTensor`], [`GgufError::Io`].
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>, GgufError> {
        let bytes = self.raw(name)?;
        let dtype = self.info(name).and_then(GgufTensorInfo::dtype);
        Ok(dtype.map(|dtype| dtype.decode(&bytes)).unwrap_or_default())
    }
}

/// Opens one file and reads what is said before its tensors.
fn open_one(path: &Path) -> Result<(File, Contents), GgufError> {
    let file = open_regular(path).map_err(GgufError::io(path))?;
    let size = file.metadata().map_err(GgufError::io(path))?.len();
    let mut bytes = Vec::new();
    let contents = loop {
        let wanted = (2 * bytes.len() as u64).max(FIRST_READ) - bytes.len() as u64;
        let read = (&file).take(wanted).read_to_end(&mut bytes).map_err(GgufError::io(path))?;
        let missing = size.saturating_sub(bytes.len() as u64);
        match parse_start(&bytes, size) {
            Err(fault) if fault.is_end && missing > 0 && read > 0 => {}
            contents => break contents,
        }
    };
    let contents = contents.map_err(|fault| GgufError::Malformed {
        path: path.to_owned(),
        offset: fault.offset,
        reason: fault.reason,
    })?;
    Ok((file, contents))
}

/// Where the bytes of a tensor of a known type are in the file.
fn range(tensor: &GgufTensorInfo) -> Option<Range<usize>> {
    let bytes = tensor.dtype()?.bytes(&tensor.shape)?;
    Some(tensor.offset..tensor.offset.checked_add(bytes)?)
}

/// What is wrong, and where.
#[derive(Debug)]
pub(super) struct Fault {
    offset: usize,
    reason: String,
    /// Whether more bytes are needed, and nothing else is wrong.
    is_end: bool,
}

/// Reads everything before the first tensor of a whole file.
#[cfg(test)]
pub(super) fn parse(bytes: &[u8]) -> Result<Contents, Fault> {
    parse_start(bytes, bytes.len() as u64)
}

/// Reads everything before the first tensor of a file of `size` bytes, of which `bytes` are the first.
fn parse_start(bytes: &[u8], size: u64) -> Result<Contents, Fault> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let mut cursor = Cursor { bytes, size, at: 0 };
    let magic = cursor.take::<4>("the magic number")?;
    if magic != MAGIC {
        return Err(cursor.fault(format!("expected a file that begins with GGUF, found {magic:?}")));
    }
    let version = cursor.u32("the version")?;
    if !(2..=VERSION).contains(&version) {
        return Err(cursor.fault(format!("expected version 2 or 3, little-endian, found {version}")));
    }
    let tensor_count = cursor.u64("the number of tensors")?;
    let value_count = cursor.u64("the number of metadata values")?;
    // The smallest entries: an empty key, a type and one byte; an empty name, no axes, a type and an offset.
    cursor.fits(value_count, 13, "metadata values")?;
    cursor.fits(tensor_count, 24, "tensors")?;

    let mut metadata = Vec::new();
    let mut keys = HashSet::new();
    for _ in 0..value_count {
        let key = cursor.string()?;
        let id = cursor.u32("the type of a value")?;
        let value = if id == ARRAY { Value::Array(cursor.array(MAX_DEPTH)?) } else { cursor.value(id)? };
        if !keys.insert(key.clone()) {
            return Err(cursor.fault(format!("the key `{key}` is there twice")));
        }
        metadata.push((key, value));
    }
    let alignment = match metadata.iter().find(|(key, _)| key == "general.alignment") {
        None => ALIGNMENT,
        Some((_, Value::U32(alignment))) if alignment.is_power_of_two() => *alignment as usize,
        Some((_, other)) => {
            return Err(cursor.fault(format!("`general.alignment` should be a power of two, found {other:?}")));
        }
    };
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..tensor_count {
        let tensor = cursor.tensor()?;
        if !names.insert(tensor.name.clone()) {
            return Err(cursor.fault(format!("the tensor `{}` is there twice", tensor.name)));
        }
        tensors.push(tensor);
    }
    // A file without tensors may end before the padding.
    let start = cursor.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    for tensor in &mut tensors {
        let relative = tensor.offset;
        let place = start.checked_add(relative).filter(|_| relative.is_multiple_of(alignment));
        tensor.offset = place.unwrap_or(usize::MAX);
        let end = if tensor.dtype().is_some() { range(tensor).map(|range| range.end) } else { place };
        if end.is_none_or(|end| end > size) || place.is_none() {
            let GgufTensorInfo { name, shape, type_id, .. } = tensor;
            return Err(cursor.fault(format!(
                "tensor `{name}` {shape:?} of type {type_id} at {relative} is not aligned or not within the file"
            )));
        }
    }
    // What tensors share would be read again for each: a small file would fill the memory.
    let mut ranges: Vec<(Range<usize>, &str)> =
        tensors.iter().filter_map(|tensor| Some((range(tensor)?, tensor.name.as_str()))).collect();
    ranges.sort_by_key(|(range, _)| (range.start, range.end));
    if let Some(pair) = ranges.windows(2).find(|pair| pair[0].0.end > pair[1].0.start) {
        return Err(cursor.fault(format!("tensors `{}` and `{}` share bytes", pair[0].1, pair[1].1)));
    }
    Ok(Contents { metadata, tensors })
}

/// A place in the file.
struct Cursor<'a> {
    bytes: &'a [u8],
    /// Of the whole file.
    size: usize,
    at: usize,
}

macro_rules! numbers {
    ($($name:ident: $type:ty),*) => {
        $(fn $name(&mut self, what: &str) -> Result<$type, Fault> {
            self.take(what).map(<$type>::from_le_bytes)
        })*
    };
}

impl<'a> Cursor<'a> {
    fn fault(&self, reason: String) -> Fault {
        Fault { offset: self.at, reason, is_end: false }
    }

    fn end(&self, what: &str) -> Fault {
        Fault { is_end: true, ..self.fault(format!("the file ends within {what}")) }
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Fault> {
        let taken = self.rest().first_chunk::<N>().copied();
        let taken = taken.ok_or_else(|| self.end(what))?;
        self.at += N;
        Ok(taken)
    }

    numbers!(u8: u8, i8: i8, u16: u16, i16: i16, u32: u32, i32: i32, f32: f32, u64: u64, i64: i64, f64: f64);

    /// Checks that `count` things of at least `least` bytes can still come.
    fn fits(&self, count: u64, least: usize, what: &str) -> Result<usize, Fault> {
        let left = self.size.saturating_sub(self.at) / least;
        match usize::try_from(count).ok().filter(|count| *count <= left) {
            Some(count) => Ok(count),
            None => Err(self.fault(format!("{count} {what} are announced, the rest of the file can hold {left}"))),
        }
    }

    fn bool(&mut self, what: &str) -> Result<bool, Fault> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.fault(format!("expected 0 or 1 in {what}, found {other}"))),
        }
    }

    fn string(&mut self) -> Result<String, Fault> {
        let length = self.u64("the length of a text")?;
        let length = self.fits(length, 1, "bytes of text")?;
        let text = self.rest().get(..length).ok_or_else(|| self.end("a text"))?;
        let text = std::str::from_utf8(text).map_err(|error| self.fault(error.to_string()))?;
        self.at += length;
        Ok(text.to_owned())
    }

    fn value(&mut self, id: u32) -> Result<Value, Fault> {
        let what = "a value";
        Ok(match id {
            0 => self.u8(what)?.into(),
            1 => self.i8(what)?.into(),
            2 => self.u16(what)?.into(),
            3 => self.i16(what)?.into(),
            4 => self.u32(what)?.into(),
            5 => self.i32(what)?.into(),
            6 => self.f32(what)?.into(),
            7 => self.bool(what)?.into(),
            8 => self.string()?.into(),
            10 => self.u64(what)?.into(),
            11 => self.i64(what)?.into(),
            12 => self.f64(what)?.into(),
            other => return Err(self.fault(format!("{other} is no type of a value"))),
        })
    }

    fn array(&mut self, depth: usize) -> Result<Array, Fault> {
        let id = self.u32("the type of an array")?;
        let count = self.u64("the length of an array")?;
        Ok(match id {
            0 => Array::U8(self.list(count, 1, |cursor| cursor.u8("an array"))?),
            1 => Array::I8(self.list(count, 1, |cursor| cursor.i8("an array"))?),
            2 => Array::U16(self.list(count, 2, |cursor| cursor.u16("an array"))?),
            3 => Array::I16(self.list(count, 2, |cursor| cursor.i16("an array"))?),
            4 => Array::U32(self.list(count, 4, |cursor| cursor.u32("an array"))?),
            5 => Array::I32(self.list(count, 4, |cursor| cursor.i32("an array"))?),
            6 => Array::F32(self.list(count, 4, |cursor| cursor.f32("an array"))?),
            7 => Array::Bool(self.list(count, 1, |cursor| cursor.bool("an array"))?),
            8 => Array::String(self.list(count, 8, Self::string)?),
            ARRAY if depth > 0 => Array::Array(self.list(count, 12, |cursor| cursor.array(depth - 1))?),
            10 => Array::U64(self.list(count, 8, |cursor| cursor.u64("an array"))?),
            11 => Array::I64(self.list(count, 8, |cursor| cursor.i64("an array"))?),
            12 => Array::F64(self.list(count, 8, |cursor| cursor.f64("an array"))?),
            other => return Err(self.fault(format!("an array of type {other} is not supported"))),
        })
    }

    fn list<T>(
        &mut self,
        count: u64,
        least: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let count = self.fits(count, least, "elements")?;
        (0..count).map(|_| read(self)).collect()
    }

    /// The entry of a tensor, its offset still relative to the first.
    fn tensor(&mut self) -> Result<GgufTensorInfo, Fault> {
        let name = self.string()?;
        let axes = self.u32("the number of axes")? as usize;
        if axes > MAX_AXES {
            return Err(self.fault(format!("tensor `{name}` has {axes} axes, at most {MAX_AXES} are allowed")));
        }
        let mut shape = Vec::with_capacity(axes);
        for _ in 0..axes {
            let axis = self.u64("a shape")?;
            let axis = usize::try_from(axis).map_err(|_| self.fault(format!("an axis of length {axis}")))?;
            shape.insert(0, axis);
        }
        let type_id = self.u32("the type of a tensor")?;
        let offset = self.u64("the offset of a tensor")?;
        let offset = usize::try_from(offset).map_err(|_| self.fault(format!("an offset of {offset}")))?;
        Ok(GgufTensorInfo { name, shape, type_id, offset, part: 0 })
    }
}
