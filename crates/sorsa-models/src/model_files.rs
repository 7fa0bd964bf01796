//! A model's folder: `config.json`, weights; read tensor by tensor, written the same way.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::{Element, FloatDType, bf16};
use rayon::prelude::*;
use sorsa_adapter::{PackedMatrix, PackedWeight, Precision, placeholder};
use sorsa_checkpoint::weights::{CheckpointWriter, Expected, Number, WeightsError, ignorable};
use sorsa_checkpoint::{ModelConfig, ModelSource, SourceError, Stored, TensorContent, TensorFormats, WeightFormat};
use sorsa_files::write_atomic;
use sorsa_ops::PackedError;

use crate::layers::Packing;
use crate::model::CausalLm;

/// What products widen a packed weight to, beside frozen weights that are kept in `format`; nothing if models do not compute with such
/// weights.
pub(crate) fn precision(format: WeightFormat) -> Option<Precision> {
    match format {
        WeightFormat::F32 => Some(Precision::F32),
        WeightFormat::Bf16 => Some(Precision::Bf16),
        WeightFormat::F16 => None,
    }
}

/// The dtype in memory of frozen weights that are kept in `format`; nothing if models do not compute with such weights.
pub fn float_dtype(format: WeightFormat) -> Option<FloatDType> {
    match format {
        WeightFormat::F32 => Some(FloatDType::F32),
        WeightFormat::Bf16 => Some(FloatDType::BF16),
        WeightFormat::F16 => None,
    }
}

/// Why a model could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The files.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A format that models do not compute with.
    #[error("unknown dtype `{format}`, expected f32 or bf16")]
    NotComputed {
        /// The format.
        format: WeightFormat,
    },
    /// A fresh matrix that does not fit the format in which it is to be packed.
    #[error("`{name}`: {source}")]
    Packing {
        /// The tensor.
        name: String,
        /// The reason.
        source: PackedError,
    },
    /// Weights that are not numbers.
    #[error("{}: weights that are not finite: {}", folder.display(), faults.join("; "))]
    NotFinite {
        /// The model's folder.
        folder: std::path::PathBuf,
        /// One line for each tensor.
        faults: Vec<String>,
    },
}

impl CausalLm {
    /// Reads the model at `path`, which [`ModelSource::open`] takes. Linear layers and embeddings are kept in `format` (f32 or bf16),
    /// norms and other vectors as f32. Weights that are packed in the files stay packed, and products widen them to `format`. A few
    /// tensors at a time are converted, in parallel: the model is never in memory twice.
    ///
    /// # Errors
    ///
    /// [`ModelError`]: a format that models do not compute with; unsupported fields, and missing, extra, misshapen or non-finite
    /// tensors, are each listed in one error.
    pub fn load(path: &Path, format: WeightFormat, device: &Device) -> Result<Self, ModelError> {
        Self::load_from(&ModelSource::open(path)?, format, device)
    }

    /// [`load`](Self::load) of an opened source.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Self::load).
    pub fn load_from(source: &ModelSource, format: WeightFormat, device: &Device) -> Result<Self, ModelError> {
        let precision = precision(format).ok_or(ModelError::NotComputed { format })?;
        let is_packed = |tensor: &Expected| matches!(source.stored(&tensor.name), Some(Stored::Packed(_)));
        let packing = if source.tensors().iter().any(is_packed) { Packing::Possible } else { Packing::Dense };
        let model = Self::with_packing(source.config(), packing, device);
        let parameters = Parameter::all(&model);
        let expected: Vec<Expected> = parameters.iter().map(Parameter::expected).collect();
        source.check(&expected, ignorable(source.config().tie_word_embeddings))?;
        let mut fill = Fill {
            source,
            precision,
            parameters: &parameters,
            read: Vec::new().into_iter(),
            packed: None,
            error: None,
            faults: Vec::new(),
        };
        let model = model.map(&mut fill);
        match (fill.error, fill.faults) {
            (Some(error), _) => Err(error.into()),
            (None, faults) if !faults.is_empty() => {
                Err(ModelError::NotFinite { folder: source.path().to_owned(), faults })
            }
            _ => Ok(model),
        }
    }

    /// The tensors of the model as a checkpoint has them. Of a model with an adapter, they are those that the adapter is added to.
    pub fn tensors(&self) -> ModelTensors {
        let mut handles = Handles { walk: Walk::default(), found: BTreeMap::new() };
        self.visit(&mut handles);
        let all = Parameter::all(self);
        let own = all.iter().filter(|parameter| parameter.is_of_checkpoint());
        ModelTensors { expected: own.map(Parameter::expected).collect(), handles: handles.found }
    }

    /// Writes `model.safetensors` (or shards) and `config.json` into `folder`. The model must be plain: merged and
    /// without autodiff.
    ///
    /// # Errors
    ///
    /// [`WeightsError`] with the file.
    pub fn save(&self, folder: &Path, formats: impl Into<TensorFormats>) -> Result<(), WeightsError> {
        let tensors = self.tensors();
        save_tensors(folder, self.config(), formats.into(), tensors.expected(), |tensor| {
            Ok(tensors.content(&tensor.name).expect("a tensor of the model"))
        })
    }
}

/// Writes `model.safetensors` (or shards) and `config.json` into `folder`, with the content that `produce` gives each tensor, as
/// [`CheckpointWriter::write`] asks for it.
///
/// # Errors
///
/// [`WeightsError`] with the file, and those of `produce`.
pub fn save_tensors(
    folder: &Path,
    config: &ModelConfig,
    formats: TensorFormats,
    tensors: &[Expected],
    produce: impl FnMut(&Expected) -> Result<TensorContent, WeightsError>,
) -> Result<(), WeightsError> {
    let mut config = config.to_json();
    config["torch_dtype"] = formats.usual.torch_name().into();
    if let Some(quantization) = formats.quantization_config(tensors) {
        config["quantization_config"] = quantization;
    }
    CheckpointWriter::new(folder, formats).write(tensors, produce)?;
    Ok(write_atomic(folder.join("config.json"), format!("{config:#}"))?)
}

/// The tensors of a model as a checkpoint has them.
pub struct ModelTensors {
    expected: Vec<Expected>,
    handles: BTreeMap<String, Handle>,
}

impl ModelTensors {
    /// Names and shapes, in the order of a checkpoint.
    pub fn expected(&self) -> &[Expected] {
        &self.expected
    }

    /// The values of a tensor, row-major, f32; nothing if there is no such tensor.
    pub fn values(&self, name: &str) -> Option<Vec<f32>> {
        Some(self.handles.get(name)?.values())
    }

    /// The matrix, if the tensor is packed.
    pub fn packed(&self, name: &str) -> Option<PackedMatrix> {
        match self.handles.get(name)? {
            Handle::Packed(weight) => Some(weight.matrix()),
            Handle::Flat(_) | Handle::Linear(_) => None,
        }
    }

    /// The tensor as it is: packed, or its values; nothing if there is no such tensor.
    pub fn content(&self, name: &str) -> Option<TensorContent> {
        match self.packed(name) {
            Some(matrix) => Some(matrix.into()),
            None => Some(self.values(name)?.into()),
        }
    }
}

/// A parameter of a model, as a visitor comes by.
struct Parameter {
    name: String,
    /// As the model has it.
    shape: Vec<usize>,
    /// Whether the checkpoint has it transposed.
    is_linear_weight: bool,
    /// Whether it is kept in the dtype that was asked for, and not as f32.
    is_weight: bool,
}

impl Parameter {
    /// All of them, in the order of visitors and mappers.
    fn all(model: &CausalLm) -> Vec<Self> {
        struct List {
            walk: Walk,
            found: Vec<Parameter>,
        }
        impl ModuleVisitor for List {
            fn enter_module(&mut self, name: &str, container_type: &str) {
                self.walk.enter(name, container_type);
            }
            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.walk.exit();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.found.push(Parameter {
                    name: self.walk.name(),
                    shape: param.lazy_shape().to_vec(),
                    is_linear_weight: self.walk.is_linear_weight(),
                    is_weight: self.walk.is_weight(),
                });
            }
        }
        let mut list = List { walk: Walk::default(), found: Vec::new() };
        model.visit(&mut list);
        list.found
    }

    /// Whether it is a tensor of a checkpoint, and not of an adapter: the weight of a layer has nothing below it.
    fn is_of_checkpoint(&self) -> bool {
        !self.name.contains(".weight.")
    }

    /// Name and shape in a checkpoint.
    fn expected(&self) -> Expected {
        let mut shape = self.shape.clone();
        if self.is_linear_weight {
            shape.reverse();
        }
        Expected::new(&self.name, shape)
    }

    /// Its numbers, and what is wrong with the first that is not finite.
    fn read(&self, source: &ModelSource, precision: Precision) -> Result<Read, SourceError> {
        if let Some(matrix) = self.read_packed(source)? {
            return Ok(Read::Packed(matrix.with_precision(precision)));
        }
        match self.is_weight && precision == Precision::Bf16 {
            true => self.read_as::<bf16>(source),
            false => self.read_as::<f32>(source),
        }
    }

    /// Its matrix, if it is a weight that is packed.
    fn read_packed(&self, source: &ModelSource) -> Result<Option<PackedMatrix>, SourceError> {
        if self.is_weight && self.shape.len() == 2 { source.packed(&self.name) } else { Ok(None) }
    }

    fn read_as<T: Number + Element>(&self, source: &ModelSource) -> Result<Read, SourceError> {
        let numbers = source.numbers::<T>(&self.name, self.is_linear_weight)?;
        let fault = numbers.first_non_finite();
        let fault = fault.map(|(index, value)| format!("`{}` element {index} is {value}", self.name));
        Ok(Read::Dense { data: TensorData::new::<T, _>(numbers.values, self.shape.clone()), fault })
    }
}

/// What a parameter holds.
enum Read {
    /// Numbers, and what is wrong with them.
    Dense { data: TensorData, fault: Option<String> },
    /// A packed matrix.
    Packed(PackedMatrix),
}

/// Where a visitor is.
#[derive(Default)]
pub(crate) struct Walk {
    path: Vec<String>,
    container: String,
}

impl Walk {
    pub fn enter(&mut self, name: &str, container_type: &str) {
        self.path.push(name.to_owned());
        container_type.clone_into(&mut self.container);
    }

    pub fn exit(&mut self) {
        self.path.pop();
    }

    pub fn name(&self) -> String {
        self.path.join(".")
    }

    /// Whether the parameter is one of those that may be kept in half precision.
    pub fn is_weight(&self) -> bool {
        matches!(self.container.as_str(), "Struct:Linear" | "Struct:Embedding")
    }

    /// PyTorch keeps these as `[d_out, d_in]`: this is where the transpose happens.
    pub fn is_linear_weight(&self) -> bool {
        self.container == "Struct:Linear" && self.path.last().is_some_and(|name| name == "weight")
    }
}

/// Replaces lazy parameters by the checkpoint's tensors.
struct Fill<'a> {
    source: &'a ModelSource,
    precision: Precision,
    /// Those that were not read yet.
    parameters: &'a [Parameter],
    /// Those that were read, and not given out yet.
    read: std::vec::IntoIter<Read>,
    /// The packed matrix of the weight that was given a placeholder: its parameter of words comes next.
    packed: Option<PackedMatrix>,
    error: Option<SourceError>,
    faults: Vec<String>,
}

impl Fill<'_> {
    /// Numbers that are read at a time, each tensor by one thread.
    const AHEAD: usize = 1 << 26;

    fn next(&mut self) -> Result<Read, SourceError> {
        if self.read.as_slice().is_empty() {
            let mut numbers = 0;
            let some = self.parameters.iter().take_while(|parameter| {
                let fits = numbers < Self::AHEAD;
                numbers += parameter.shape.iter().product::<usize>();
                fits
            });
            let (some, rest) = self.parameters.split_at(some.count());
            let read: Result<Vec<_>, _> =
                some.par_iter().map(|parameter| parameter.read(self.source, self.precision)).collect();
            (self.read, self.parameters) = (read?.into_iter(), rest);
        }
        Ok(self.read.next().expect("mappers come by as many parameters as visitors"))
    }
}

impl ModuleMapper for Fill<'_> {
    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let Some(matrix) = self.packed.take() else { return param };
        let words = PackedWeight::new(&matrix, &param.lazy_device()).words();
        let shape = std::array::from_fn::<usize, D, _>(|_| words.dims()[0]);
        Param::initialized(param.id, words.reshape(shape))
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        match self.next() {
            Ok(Read::Dense { data, fault }) => {
                self.faults.extend(fault);
                let (device, dtype) = (param.lazy_device(), data.dtype());
                Param::initialized(param.id, Tensor::from_data(data, (&device, dtype)))
            }
            Ok(Read::Packed(matrix)) => {
                let shape = param.lazy_shape().dims::<D>();
                let placeholder = placeholder(shape, matrix.precision(), &param.lazy_device());
                self.packed = Some(matrix);
                Param::initialized(param.id, placeholder)
            }
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}

/// A parameter's tensor.
enum Handle {
    /// Its elements in the checkpoint's order.
    Flat(Tensor<1>),
    /// The weight of a linear layer.
    Linear(Tensor<2>),
    /// A packed weight.
    Packed(PackedWeight),
}

impl Handle {
    /// The elements as the checkpoint has them, f32.
    fn values(&self) -> Vec<f32> {
        let data = match self {
            Self::Flat(tensor) => tensor.to_data(),
            Self::Linear(tensor) => tensor.clone().transpose().into_data(),
            Self::Packed(weight) => return weight.matrix().to_f32(),
        };
        data.convert::<f32>().try_into_vec::<f32>().expect("converted to f32")
    }
}

/// Handles to all parameters, by name.
struct Handles {
    walk: Walk,
    found: BTreeMap<String, Handle>,
}

impl ModuleVisitor for Handles {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.walk.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.walk.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.base().without_autodiff();
        let handle = match *tensor.dims().as_slice() {
            [d_in, d_out] if self.walk.is_linear_weight() => Handle::Linear(tensor.reshape([d_in, d_out])),
            ref axes => Handle::Flat(tensor.reshape([axes.iter().product::<usize>()])),
        };
        self.found.insert(self.walk.name(), handle);
    }

    /// A packed weight is visited after its placeholder.
    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        let words = param.val();
        let count = words.dims().iter().product::<usize>();
        let name = self.walk.name();
        let Some(module) = name.strip_suffix(".packed") else { return };
        if let Some(weight) = PackedWeight::from_words(words.reshape([count])) {
            self.found.insert(format!("{module}.weight"), Handle::Packed(weight));
        }
    }
}
