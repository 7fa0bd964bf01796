//! Writing a GGUF file, one tensor in memory at a time.
//!
//! Header, metadata and the list of tensors come first, then the tensors, each at a multiple of 32 bytes. Source: the
//! [specification](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), version 3.

use std::collections::HashSet;
use std::path::Path;

use sorsa_files::AtomicFile;
use sorsa_kernels::packed::PackedMatrix;

use super::value::encode_string;
use super::{GgufError, GgufType, Value};
use crate::TensorContent;
use crate::weights::first_non_finite;

/// The first four bytes.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
pub(super) const VERSION: u32 = 3;
/// Where tensors begin is a multiple of this, unless the metadata says otherwise.
pub(super) const ALIGNMENT: usize = 32;
/// ggml's limit on axes.
pub(super) const MAX_AXES: usize = 4;

/// Name, shape and type of a tensor to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name in the file, as in `blk.0.attn_q.weight`.
    pub name: String,
    /// Row-major shape, as PyTorch has it; the file lists the axes in reverse.
    pub shape: Vec<usize>,
    /// Type in the file.
    pub dtype: GgufType,
}

impl GgufTensor {
    /// A tensor of this name, row-major shape and type.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, dtype: GgufType) -> Self {
        Self { name: name.into(), shape: shape.into(), dtype }
    }

    fn bytes(&self) -> Result<usize, GgufError> {
        let allowed = (1..=MAX_AXES).contains(&self.shape.len());
        self.dtype.bytes(&self.shape).filter(|_| allowed).ok_or_else(|| GgufError::Shape {
            name: self.name.clone(),
            shape: self.shape.clone(),
            dtype: self.dtype,
        })
    }
}

/// Gathers metadata, then writes the file.
///
/// ```
/// use sorsa_checkpoint::gguf::{GgufError, GgufFile, GgufTensor, GgufType, GgufWriter};
///
/// # fn main() -> Result<(), GgufError> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.gguf");
/// let tensors = [GgufTensor::new("output.weight", [2, 3], GgufType::F16)];
/// GgufWriter::new()
///     .with("general.architecture", "llama")
///     .with("llama.block_count", 1u32)
///     .write(&path, &tensors, |_| Ok::<_, GgufError>(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))?;
///
/// let file = GgufFile::open(&path)?;
/// assert_eq!(file.get("llama.block_count").and_then(|value| value.as_u64()), Some(1));
/// assert_eq!(file.to_f32("output.weight")?, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct GgufWriter {
    metadata: Vec<(String, Value)>,
}

impl GgufWriter {
    /// A file without metadata.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value.
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    /// Adds all values of a list.
    pub fn with_all(mut self, metadata: impl IntoIterator<Item = (String, Value)>) -> Self {
        self.metadata.extend(metadata);
        self
    }

    /// Writes `tensors` in their order and returns the size of the file in bytes. `produce` is called once for each, in
    /// that order, and gives its values row-major; they are written before the next is asked for.
    ///
    /// The file is written under a temporary name beside `path` and renamed when all of it is on the disk.
    ///
    /// # Errors
    ///
    /// [`GgufError::NamedTwice`], [`GgufError::Shape`], [`GgufError::WrongLength`], [`GgufError::NotFinite`],
    /// [`GgufError::TooLarge`], what `produce` returns, and [`GgufError::Weights`] with the file that cannot be written.
    pub fn write<C, E>(
        &self,
        path: &Path,
        tensors: &[GgufTensor],
        produce: impl FnMut(&GgufTensor) -> Result<C, E>,
    ) -> Result<u64, GgufError>
    where
        C: Into<TensorContent>,
        GgufError: From<E>,
    {
        self.write_watched(path, tensors, produce, |_, _, _| ())
    }

    /// [`write`](Self::write), and shows the numbers of each tensor that is not packed already beside the bytes that they became.
    ///
    /// # Errors
    ///
    /// Those of [`write`](Self::write).
    pub fn write_watched<C, E>(
        &self,
        path: &Path,
        tensors: &[GgufTensor],
        mut produce: impl FnMut(&GgufTensor) -> Result<C, E>,
        mut watch: impl FnMut(&GgufTensor, &[f32], &[u8]),
    ) -> Result<u64, GgufError>
    where
        C: Into<TensorContent>,
        GgufError: From<E>,
    {
        let header = self.header(tensors)?;
        let mut written = header.len() as u64;
        let mut file = AtomicFile::create(path)?;
        file.write(&header)?;
        drop(header);
        let mut buffer = Vec::new();
        for tensor in tensors {
            match produce(tensor)?.into() {
                TensorContent::Values(values) => {
                    check(tensor, &values)?;
                    tensor.dtype.encode(&values, &mut buffer).map_err(|index| GgufError::TooLarge {
                        name: tensor.name.clone(),
                        index,
                        value: values[index],
                        dtype: tensor.dtype,
                    })?;
                    watch(tensor, &values, &buffer);
                }
                TensorContent::Packed(matrix) => {
                    let fits = matrix.shape().as_slice() == tensor.shape;
                    match matrix.blocks() {
                        Some((format, bytes)) if fits && tensor.dtype == GgufType::Blocks(format) => {
                            buffer.clear();
                            buffer.extend_from_slice(bytes);
                        }
                        _ => return Err(wrong_matrix(tensor, &matrix)),
                    }
                }
            }
            buffer.resize(buffer.len().next_multiple_of(ALIGNMENT), 0);
            written += buffer.len() as u64;
            file.write(&buffer)?;
        }
        file.commit()?;
        Ok(written)
    }

    /// All that comes before the first tensor.
    fn header(&self, tensors: &[GgufTensor]) -> Result<Vec<u8>, GgufError> {
        let mut seen = HashSet::new();
        let keys = self.metadata.iter().map(|(key, _)| key);
        let mut names: Vec<String> = keys.filter(|key| !seen.insert(*key)).cloned().collect();
        seen.clear();
        names.extend(tensors.iter().map(|tensor| &tensor.name).filter(|name| !seen.insert(*name)).cloned());
        if !names.is_empty() {
            return Err(GgufError::NamedTwice { names });
        }
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            encode_string(key, &mut header);
            header.extend_from_slice(&value.id().to_le_bytes());
            value.encode(&mut header);
        }
        let mut offset = 0u64;
        for tensor in tensors {
            let bytes = tensor.bytes()?;
            encode_string(&tensor.name, &mut header);
            header.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
            for axis in tensor.shape.iter().rev() {
                header.extend_from_slice(&(*axis as u64).to_le_bytes());
            }
            header.extend_from_slice(&tensor.dtype.id().to_le_bytes());
            header.extend_from_slice(&offset.to_le_bytes());
            offset += bytes.next_multiple_of(ALIGNMENT) as u64;
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
        Ok(header)
    }
}

pub(super) fn wrong_matrix(tensor: &GgufTensor, found: &PackedMatrix) -> GgufError {
    GgufError::WrongMatrix {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        found: found.format(),
        found_shape: found.shape(),
    }
}

fn check(tensor: &GgufTensor, values: &[f32]) -> Result<(), GgufError> {
    let name = || tensor.name.clone();
    if values.len() != tensor.shape.iter().product::<usize>() {
        return Err(GgufError::WrongLength { name: name(), shape: tensor.shape.clone(), found: values.len() });
    }
    match first_non_finite(values) {
        Some((index, value)) => Err(GgufError::NotFinite { name: name(), index, value }),
        None => Ok(()),
    }
}
