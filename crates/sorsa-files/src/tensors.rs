//! f32 tensors in memory, and safetensors files of them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, TensorInfo, View, serialize_to_file};

use crate::atomic::{AtomicFile, FileError};
use crate::regular::open_regular;

/// Bytes that hold the length of the header, in front of it.
const LENGTH_BYTES: u64 = 8;

/// An f32 tensor in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Axes.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub values: Vec<f32>,
}

/// Tensors by name.
pub type NamedTensors = BTreeMap<String, HostTensor>;

impl HostTensor {
    /// A tensor from its shape and elements.
    ///
    /// # Panics
    ///
    /// Panics if their number differs from the product of the shape.
    pub fn new(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), values.len(), "elements of a tensor of shape {shape:?}");
        Self { shape, values }
    }

    /// The transpose of a matrix.
    ///
    /// # Panics
    ///
    /// Panics if the tensor has not two axes.
    pub fn transposed(&self) -> Self {
        let [rows, columns] = self.shape[..] else { panic!("a matrix has two axes, not {:?}", self.shape) };
        let mut values = Vec::with_capacity(self.values.len());
        for column in 0..columns {
            values.extend((0..rows).map(|row| self.values[row * columns + column]));
        }
        Self { shape: vec![columns, rows], values }
    }
}

/// A line for each tensor that holds NaN or infinity, with how many.
pub fn not_finite(tensors: &NamedTensors) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, tensor) in tensors {
        match tensor.values.iter().filter(|value| !value.is_finite()).count() {
            0 => {}
            count => faults.push(format!("{count} of {} in `{name}`", tensor.values.len())),
        }
    }
    faults
}

/// A file of tensors could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// The operating system refused an operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason of the operating system.
        source: io::Error,
    },
    /// The content is not what was expected.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The expected and the found content.
        reason: String,
    },
}

impl From<FileError> for TensorError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io { path, source, .. } => Self::Io { path, source },
            FileError::Malformed { path, expected, found } => {
                Self::Malformed { path, reason: format!("not {expected}: {}", found.join("; ")) }
            }
        }
    }
}

/// Writes tensors as safetensors, and replaces what was at `path`.
///
/// # Errors
///
/// [`TensorError`] with the file, which is then as it was.
pub fn write_tensors(path: &Path, tensors: &NamedTensors) -> Result<(), TensorError> {
    write_tensors_with(path, tensors, &[])
}

/// Writes tensors as safetensors with metadata in the header.
///
/// # Errors
///
/// [`TensorError`] with the file, which is then as it was.
pub fn write_tensors_with(path: &Path, tensors: &NamedTensors, metadata: &[(&str, &str)]) -> Result<(), TensorError> {
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    let file = AtomicFile::create(path)?;
    let views = tensors.iter().map(|(name, tensor)| (name, F32View(tensor)));
    serialize_to_file(views, metadata, file.temporary_path()).map_err(|error| match error {
        SafeTensorError::IoError(source) => TensorError::Io { path: path.to_owned(), source },
        other => TensorError::Malformed { path: path.to_owned(), reason: other.to_string() },
    })?;
    Ok(file.commit()?)
}

/// Reads all tensors of a safetensors file, which must be f32.
///
/// # Errors
///
/// [`TensorError`] with the file.
pub fn read_tensors(path: &Path) -> Result<NamedTensors, TensorError> {
    TensorFile::open(path)?.read_all(&[Dtype::F32])
}

/// Reads all tensors of a safetensors file of f32, f16 or bf16, as f32.
///
/// # Errors
///
/// [`TensorError`] with the file.
pub fn read_float_tensors(path: &Path) -> Result<NamedTensors, TensorError> {
    TensorFile::open(path)?.read_all(&[Dtype::F32, Dtype::F16, Dtype::BF16])
}

/// A safetensors file from which single tensors are read. No more than one tensor's bytes are in memory beside the decoded values.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    header: Metadata,
    /// Where the tensors' bytes begin.
    start: u64,
}

impl TensorFile {
    /// Reads the names and places of the tensors, not their values.
    ///
    /// # Errors
    ///
    /// [`TensorError::Io`]; [`TensorError::Malformed`] if the tensors do not fill the file exactly.
    pub fn open(path: &Path) -> Result<Self, TensorError> {
        let io = |source| TensorError::Io { path: path.to_owned(), source };
        let mut file = open_regular(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let malformed = |error: SafeTensorError| TensorError::Malformed {
            path: path.to_owned(),
            reason: format!("not a whole safetensors file ({size} bytes): {error}"),
        };
        if size < LENGTH_BYTES {
            return Err(malformed(SafeTensorError::HeaderTooSmall));
        }
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        // A damaged length must not become an allocation.
        if length > size - LENGTH_BYTES {
            return Err(malformed(SafeTensorError::InvalidHeaderLength));
        }
        let mut json = vec![0; length as usize];
        file.read_exact(&mut json).map_err(io)?;
        let header: Metadata = serde_json::from_slice(&json)
            .map_err(|error| malformed(SafeTensorError::InvalidHeaderDeserialization(error)))?;
        let start = LENGTH_BYTES + length;
        if header.data_len() as u64 != size - start {
            return Err(malformed(SafeTensorError::MetadataIncompleteBuffer));
        }
        Ok(Self { path: path.to_owned(), header, start })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads one tensor of f32.
    ///
    /// # Errors
    ///
    /// [`TensorError::Io`]; [`TensorError::Malformed`] if it is missing or not f32.
    pub fn read(&self, name: &str) -> Result<HostTensor, TensorError> {
        let Some(info) = self.header.info(name) else {
            return Err(self.malformed(format!("tensor `{name}` is missing")));
        };
        let mut file = File::open(&self.path).map_err(|source| self.io(source))?;
        self.decode(&mut file, name, info, &[Dtype::F32])
    }

    fn read_all(&self, accepted: &[Dtype]) -> Result<NamedTensors, TensorError> {
        let mut file = File::open(&self.path).map_err(|source| self.io(source))?;
        let names = self.header.offset_keys();
        names
            .into_iter()
            .map(|name| {
                let info = self.header.info(&name).expect("the name is of this header");
                let tensor = self.decode(&mut file, &name, info, accepted)?;
                Ok((name, tensor))
            })
            .collect()
    }

    fn decode(
        &self,
        file: &mut File,
        name: &str,
        info: &TensorInfo,
        accepted: &[Dtype],
    ) -> Result<HostTensor, TensorError> {
        if !accepted.contains(&info.dtype) {
            let accepted = accepted.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(self.malformed(format!("tensor `{name}` should be {accepted}, found {}", info.dtype)));
        }
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        file.seek(SeekFrom::Start(self.start + from as u64)).map_err(|source| self.io(source))?;
        file.read_exact(&mut bytes).map_err(|source| self.io(source))?;
        let halves = || bytes.as_chunks::<2>().0.iter().copied();
        let values = match info.dtype {
            Dtype::F16 => halves().map(|half| f16::from_le_bytes(half).to_f32()).collect(),
            Dtype::BF16 => halves().map(|half| bf16::from_le_bytes(half).to_f32()).collect(),
            _ => bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect(),
        };
        Ok(HostTensor::new(info.shape.clone(), values))
    }

    fn io(&self, source: io::Error) -> TensorError {
        TensorError::Io { path: self.path.clone(), source }
    }

    fn malformed(&self, reason: String) -> TensorError {
        TensorError::Malformed { path: self.path.clone(), reason }
    }
}

/// A tensor whose bytes are made when the file asks for them: those of one tensor at a time are in memory.
struct F32View<'a>(&'a HostTensor);

impl View for F32View<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        bytes.extend(self.0.values.iter().flat_map(|value| value.to_le_bytes()));
        bytes.into()
    }

    fn data_len(&self) -> usize {
        4 * self.0.values.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one tensor of each float type, `[2]`, of 1.5 and -2.
    fn three_types() -> Vec<u8> {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},"c":{"dtype":"BF16","shape":[2],"data_offsets":[12,16]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([1.5f32, -2.0].iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend([1.5, -2.0].iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()));
        bytes.extend([1.5, -2.0].iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()));
        bytes
    }

    #[test]
    fn a_transpose_exchanges_rows_and_columns() {
        let matrix = HostTensor::new([2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let transposed = matrix.transposed();
        assert_eq!(transposed, HostTensor::new([3, 2], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
        assert_eq!(transposed.transposed(), matrix);
        assert_eq!(HostTensor::new([0, 3], vec![]).transposed(), HostTensor::new([3, 0], vec![]));
    }

    #[test]
    fn halves_are_widened_if_asked_for_and_refused_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.safetensors");
        std::fs::write(&file, three_types()).unwrap();
        let tensors = read_float_tensors(&file).unwrap();
        assert_eq!(tensors.len(), 3);
        assert!(tensors.values().all(|tensor| tensor.values == [1.5, -2.0] && tensor.shape == [2]));
        let error = read_tensors(&file).unwrap_err().to_string();
        assert!(error.ends_with("tensor `b` should be F32, found F16"), "{error}");
        assert_eq!(TensorFile::open(&file).unwrap().read("a").unwrap().values, [1.5, -2.0]);
    }

    #[test]
    fn a_file_cut_anywhere_or_longer_than_its_header_says_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.safetensors");
        let whole = three_types();
        for length in 0..whole.len() {
            std::fs::write(&file, &whole[..length]).unwrap();
            let error = read_float_tensors(&file).unwrap_err().to_string();
            assert!(error.contains(&format!("not a whole safetensors file ({length} bytes)")), "{error}");
        }
        std::fs::write(&file, [whole.as_slice(), &[0]].concat()).unwrap();
        assert!(matches!(TensorFile::open(&file), Err(TensorError::Malformed { .. })));
    }

    #[test]
    fn tensors_survive_a_file_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tensors.safetensors");
        let tensor = HostTensor::new([2, 2], vec![f32::MIN_POSITIVE / 2.0, -0.0, f32::MAX, 1.0 / 3.0]);
        let tensors = [("a.b".to_owned(), tensor), ("empty".to_owned(), HostTensor::new([0, 3], vec![]))].into();
        write_tensors(&file, &tensors).unwrap();
        let read = read_tensors(&file).unwrap();
        assert_eq!(read, tensors);
        assert_eq!(read["a.b"].values[1].to_bits(), (-0.0f32).to_bits());
        let nowhere = write_tensors(Path::new("/nonexistent/folder/x"), &tensors).unwrap_err().to_string();
        assert!(nowhere.contains("/nonexistent/folder/x"), "{nowhere}");
    }
}
