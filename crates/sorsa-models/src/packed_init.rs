//! Fresh models with packed linear layers.

use burn::module::{ModuleMapper, Param};
use burn::prelude::*;
use burn::tensor::DType;
use sorsa_adapter::{PackedMatrix, PackedWeight, Precision, placeholder};
use sorsa_checkpoint::{ModelConfig, PackingFormats, WeightFormat};

use crate::layers::Packing;
use crate::model::CausalLm;
use crate::model_files::{ModelError, Walk, float_dtype, precision};

impl CausalLm {
    /// [`init`](Self::init) with matrices packed in `packed`, like those of a checkpoint are packed while it is read: the norms stay dense,
    /// and matrices without a format, in `format`. One matrix at a time is dense in memory.
    ///
    /// # Errors
    ///
    /// [`ModelError::NotComputed`] of a format that models do not compute with; [`ModelError::Packing`] of the first matrix that does not fit
    /// the packed format.
    pub fn init_packed(
        config: &ModelConfig,
        packed: impl Into<PackingFormats>,
        format: WeightFormat,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let precision = precision(format).ok_or(ModelError::NotComputed { format })?;
        let packed = packed.into();
        let mut pack = Pack { walk: Walk::default(), packed, precision, format, words: None, error: None };
        let model = Self::with_packing(config, Packing::Possible, device).map(&mut pack);
        match pack.error {
            Some(error) => Err(error),
            None => Ok(model),
        }
    }
}

/// Packs the weights of linear layers when it passes them.
struct Pack {
    walk: Walk,
    packed: PackingFormats,
    precision: Precision,
    format: WeightFormat,
    /// The packed matrix of the weight that became a placeholder: its parameter of words comes next.
    words: Option<PackedMatrix>,
    error: Option<ModelError>,
}

impl ModuleMapper for Pack {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.walk.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.walk.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.walk.name();
        let is_head = matches!(name.as_str(), "lm_head.weight" | "head.weight");
        let packed = match (self.walk.is_linear_weight(), self.walk.is_weight()) {
            _ if self.error.is_some() => None,
            (true, _) if !is_head => Some(self.packed.linear),
            (_, true) if name.ends_with(".weight") => self.packed.head,
            _ => None,
        };
        let format = self.format;
        let Some(packed) = packed else {
            let dtype = float_dtype(format).filter(|_| D == 2);
            return param.map(|values| match dtype {
                Some(dtype) => values.cast(dtype),
                None => values,
            });
        };
        let (id, device, shape) = (param.id, param.lazy_device(), param.lazy_shape().dims::<D>());
        let values = param.val().without_autodiff().reshape([shape[0], shape[D - 1]]);
        // Linear layers are stored transposed.
        let values = if self.walk.is_linear_weight() { values.transpose() } else { values };
        let stored = values.dims();
        let values = values.cast(DType::F32).into_data().try_into_vec::<f32>().expect("converted to f32");
        match PackedMatrix::pack(packed, stored, &values) {
            Ok(matrix) => {
                self.words = Some(matrix.with_precision(self.precision));
                Param::initialized(id, placeholder(shape, self.precision, &device))
            }
            Err(source) => {
                self.error = Some(ModelError::Packing { name, source });
                param
            }
        }
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let Some(matrix) = self.words.take() else { return param };
        let words = PackedWeight::new(&matrix, &param.lazy_device()).words();
        let shape = std::array::from_fn::<usize, D, _>(|_| words.dims()[0]);
        Param::initialized(param.id, words.reshape(shape))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sorsa_adapter::PackedFormat;

    use super::*;

    fn config(width: usize) -> ModelConfig {
        let fields = json!({
            "model_type": "llama", "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": 50,
        });
        ModelConfig::parse(fields.as_object().unwrap().clone()).unwrap()
    }

    #[test]
    fn linear_layers_but_the_head_are_packed_and_the_rest_is_dense() {
        let (device, nf4) = (Device::flex(), "nf4".parse::<PackedFormat>().unwrap());
        let model = CausalLm::init_packed(&config(32), nf4, WeightFormat::Bf16, &device).unwrap();
        let tensors = model.tensors();
        for tensor in tensors.expected() {
            let is_packed = tensor.name.ends_with("_proj.weight");
            assert_eq!(
                tensors.packed(&tensor.name).map(|matrix| matrix.format()),
                is_packed.then_some(nf4),
                "{}",
                tensor.name
            );
            let values = match tensors.packed(&tensor.name) {
                Some(matrix) => matrix.to_f32(),
                None => tensors.values(&tensor.name).unwrap(),
            };
            assert_eq!(values.len(), tensor.shape.iter().product::<usize>());
            assert!(values.iter().all(|value| value.is_finite()), "{}", tensor.name);
        }
    }

    #[test]
    fn the_embedding_and_the_head_are_packed_in_a_format_of_their_own() {
        let model = CausalLm::init_packed(
            &config(32),
            "nf4+q8_0".parse::<PackingFormats>().unwrap(),
            WeightFormat::Bf16,
            &Device::flex(),
        );
        let tensors = model.unwrap().tensors();
        let format = |name: &str| tensors.packed(name).map(|matrix| matrix.format().name());
        for (name, expected) in [
            ("model.embed_tokens.weight", Some("q8_0")),
            ("lm_head.weight", Some("q8_0")),
            ("model.layers.1.mlp.up_proj.weight", Some("nf4")),
            ("model.norm.weight", None),
        ] {
            assert_eq!(format(name), expected, "{name}");
        }
        assert_eq!(tensors.values("model.embed_tokens.weight").unwrap().len(), 50 * 32);
    }

    #[test]
    fn a_matrix_that_does_not_fit_the_format_is_named() {
        let error = CausalLm::init_packed(
            &config(24),
            "q4_k".parse::<PackedFormat>().unwrap(),
            WeightFormat::F32,
            &Device::flex(),
        );
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("`model.layers.0.self_attn.q_proj.weight`: "), "{text}");
    }
}
