//! A model's folder: `config.json`, weights; read tensor by tensor, written the same way.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use crate::config::{ConfigError, ModelConfig};
use crate::model::CausalLm;
use crate::weights::{
    Checkpoint, CheckpointWriter, Expected, FloatDtype, WeightsError, first_non_finite, ignorable, write_file,
};

/// Why a model could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
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
    /// Reads a model in the Hugging Face layout. Linear layers and embeddings are kept as `weights` (f32 or bf16),
    /// norms and other vectors as f32. One tensor at a time is converted: the model is never in memory twice.
    ///
    /// # Errors
    ///
    /// [`ModelError`]: unsupported fields, and missing, extra, misshapen or non-finite tensors, are each listed in
    /// one error.
    pub fn load(folder: &Path, weights: FloatDType, device: &Device) -> Result<Self, ModelError> {
        let config = ModelConfig::read(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        let model = Self::init(&config, device);
        checkpoint.check(&expected(&model), ignorable(config.tie_word_embeddings))?;
        let mut fill =
            Fill { walk: Walk::default(), checkpoint: &checkpoint, weights, error: None, faults: Vec::new() };
        let model = model.map(&mut fill);
        match (fill.error, fill.faults) {
            (Some(error), _) => Err(error.into()),
            (None, faults) if !faults.is_empty() => Err(ModelError::NotFinite { folder: folder.to_owned(), faults }),
            _ => Ok(model),
        }
    }

    /// Writes `model.safetensors` (or shards) and `config.json` into `folder`. The model must be plain: merged and
    /// without autodiff.
    ///
    /// # Errors
    ///
    /// [`WeightsError`] with the file.
    pub fn save(&self, folder: &Path, dtype: FloatDtype) -> Result<(), WeightsError> {
        let mut handles = Handles { walk: Walk::default(), found: BTreeMap::new() };
        self.visit(&mut handles);
        CheckpointWriter::new(folder, dtype)
            .write(&expected(self), |tensor| Ok::<_, WeightsError>(handles.found[&tensor.name].values()))?;
        let mut config = self.config().to_json();
        let name = match dtype {
            FloatDtype::F32 => "float32",
            FloatDtype::F16 => "float16",
            FloatDtype::Bf16 => "bfloat16",
        };
        config["torch_dtype"] = name.into();
        write_file(folder, "config.json", format!("{config:#}").as_bytes())
    }
}

/// Names and shapes in a checkpoint of this model.
fn expected(model: &CausalLm) -> Vec<Expected> {
    struct List {
        walk: Walk,
        found: Vec<Expected>,
    }
    impl ModuleVisitor for List {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.walk.enter(name, container_type);
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.walk.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let mut shape = param.lazy_shape().to_vec();
            if self.walk.is_linear_weight() {
                shape.reverse();
            }
            self.found.push(Expected::new(self.walk.name(), shape));
        }
    }
    let mut list = List { walk: Walk::default(), found: Vec::new() };
    model.visit(&mut list);
    list.found
}

/// Where a visitor is.
#[derive(Default)]
struct Walk {
    path: Vec<String>,
    container: String,
}

impl Walk {
    fn enter(&mut self, name: &str, container_type: &str) {
        self.path.push(name.to_owned());
        container_type.clone_into(&mut self.container);
    }

    fn exit(&mut self) {
        self.path.pop();
    }

    fn name(&self) -> String {
        self.path.join(".")
    }

    /// The dtype in which the parameter is kept where the model's weights are `weights`.
    fn parameter_dtype(&self, weights: FloatDType) -> DType {
        match self.container.as_str() {
            "Struct:Linear" | "Struct:Embedding" => DType::from(weights),
            _ => DType::F32,
        }
    }

    /// PyTorch keeps these as `[d_out, d_in]`: this is where the transpose happens.
    fn is_linear_weight(&self) -> bool {
        self.container == "Struct:Linear" && self.path.last().is_some_and(|name| name == "weight")
    }
}

/// Replaces lazy parameters by the checkpoint's tensors.
struct Fill<'a> {
    walk: Walk,
    checkpoint: &'a Checkpoint,
    weights: FloatDType,
    error: Option<WeightsError>,
    faults: Vec<String>,
}

impl ModuleMapper for Fill<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.walk.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.walk.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let name = self.walk.name();
        let dtype = self.walk.parameter_dtype(self.weights);
        let (device, shape) = (param.lazy_device(), param.lazy_shape());
        let transposed = self.walk.is_linear_weight();
        let data = if dtype == DType::BF16 {
            let values = match transposed {
                true => self.checkpoint.to_bf16_transposed(&name),
                false => self.checkpoint.to_bf16(&name),
            };
            values.map(|values| {
                let not_finite = values.iter().position(|value| !value.is_finite());
                self.faults.extend(not_finite.map(|index| format!("`{name}` element {index} is {}", values[index])));
                TensorData::new::<burn::tensor::bf16, _>(values, shape)
            })
        } else {
            let values = match transposed {
                true => self.checkpoint.to_f32_transposed(&name),
                false => self.checkpoint.to_f32(&name),
            };
            values.map(|values| {
                let not_finite = first_non_finite(&values);
                self.faults.extend(not_finite.map(|(index, value)| format!("`{name}` element {index} is {value}")));
                TensorData::new::<f32, _>(values, shape)
            })
        };
        match data {
            Ok(data) => Param::initialized(param.id, Tensor::from_data(data, (&device, dtype))),
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
}

impl Handle {
    /// The elements as the checkpoint has them, f32.
    fn values(&self) -> Vec<f32> {
        let data = match self {
            Self::Flat(tensor) => tensor.to_data(),
            Self::Linear(tensor) => tensor.clone().transpose().into_data(),
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
}
