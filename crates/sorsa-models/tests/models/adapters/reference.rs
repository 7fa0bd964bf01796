//! Results of Transformers, PEFT and the author's code for a small Llama, by our names and in burn's orientation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::larger::larger;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use sorsa_adapter::{
    AdapterConfig, AdapterState, Attached, HostTensor, HostTensorExt, Init, LoraConfig, Method, MethodConfig,
    ModuleState, NamedTensors, SavedAdapter, Scaling, Target,
};
use sorsa_models::{CausalLm, ModelInput, WeightFormat};

/// Where one model and what was computed with it lie.
pub struct Place {
    /// Folder of the base model's checkpoint.
    pub checkpoint: PathBuf,
    /// File of the batch.
    pub io: PathBuf,
}

pub fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&bytes(path)).unwrap()
}

/// The f32 tensors of a file, as they are.
pub fn tensors(path: &Path) -> NamedTensors {
    let bytes = bytes(path);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = file.iter().filter(|(_, view)| view.dtype() == Dtype::F32);
    let one = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (name.to_owned(), HostTensor::new(view.shape(), values))
    };
    floats.map(one).collect()
}

pub fn turned(tensor: &HostTensor) -> HostTensor {
    let [rows, cols] = tensor.shape[..] else { panic!("{:?} is not a matrix", tensor.shape) };
    HostTensor::new([cols, rows], (0..rows * cols).map(|i| tensor.values[i % rows * cols + i / rows]).collect())
}

/// Factors by our names, of a file of PEFT's or the author's, where A `[r, in]` and B `[out, r]` multiply from the other
/// side. Other tensors of the file are left out.
pub fn factors(file: &NamedTensors, method: Method) -> NamedTensors {
    let one = |(name, tensor): (&String, &HostTensor)| {
        let name = name.strip_prefix("base_model.model.").unwrap_or(name);
        let name = name.trim_end_matches(".weight").trim_end_matches(".default");
        let (module, factor) = name.rsplit_once('.')?;
        let factor = match (method, factor) {
            (Method::Sorsa, "sorsa_A") => "u",
            (Method::Sorsa, "sorsa_S") => "s",
            (Method::Sorsa, "sorsa_B") => "vt",
            (_, "lora_A") => "a",
            (_, "lora_B") => "b",
            (_, "lora_magnitude_vector") => "magnitude",
            _ => return None,
        };
        let tensor = if tensor.shape.len() == 2 { turned(tensor) } else { tensor.clone() };
        Some((format!("{module}.{method}.{factor}"), tensor))
    };
    file.iter().filter_map(one).collect()
}

/// PEFT's settings as ours.
pub fn peft_config(settings: &Value) -> AdapterConfig {
    let method: MethodConfig = match (settings["use_dora"].as_bool().unwrap(), settings["init_lora_weights"].as_str()) {
        (true, None) => Method::Dora.into(),
        (false, None) => Method::Lora.into(),
        (false, Some("orthogonal")) => LoraConfig { init: Init::Orthogonal }.into(),
        (false, Some("olora")) => Method::Olora.into(),
        (false, Some(name)) if name.starts_with("pissa") => Method::Pissa.into(),
        other => panic!("no method for {other:?}"),
    };
    let targets: Vec<&str> = settings["target_modules"].as_array().unwrap().iter().flat_map(Value::as_str).collect();
    let config = AdapterConfig::new(method, settings["r"].as_u64().unwrap() as usize, &targets)
        .with_alpha(settings["lora_alpha"].as_f64().unwrap());
    let pattern = |name: &str| settings[name].as_object().unwrap().clone().into_iter();
    AdapterConfig {
        scaling: if settings["use_rslora"] == true { Scaling::RankStabilized } else { Scaling::Standard },
        rank_pattern: pattern("rank_pattern").map(|(name, rank)| (name, rank.as_u64().unwrap() as usize)).collect(),
        alpha_pattern: pattern("alpha_pattern").map(|(name, alpha)| (name, alpha.as_f64().unwrap())).collect(),
        ..config
    }
}

impl Place {
    pub fn model(&self) -> CausalLm {
        CausalLm::load(&self.checkpoint, WeightFormat::F32, &Device::flex()).unwrap()
    }

    /// `model` with the factors `trained`, where those of `initial` have left a weight that is split.
    pub fn attach(
        &self,
        model: CausalLm,
        config: AdapterConfig,
        initial: &NamedTensors,
        trained: NamedTensors,
    ) -> Attached<CausalLm> {
        let module = |target: Target| {
            let Target { path, shape, rank, scale } = target;
            ModuleState { path, shape, rank, scale, fingerprint: None, dtype: None, residual: None }
        };
        let modules = config.targets(&model).unwrap().into_iter().map(module).collect();
        let initial = if config.method().splits_weight() { initial.clone() } else { NamedTensors::new() };
        let state = AdapterState { config, modules, initial };
        SavedAdapter::new(state, trained, Path::new("reference")).attach(model).unwrap()
    }

    pub fn batch(&self) -> Batch {
        Batch::read(&self.io)
    }
}

/// The batch that the results were computed on.
pub struct Batch {
    rows: usize,
    len: usize,
    input_ids: Vec<i32>,
    positions: Vec<i32>,
    mask: Vec<i32>,
    targets: Vec<i32>,
}

impl Batch {
    fn read(io: &Path) -> Self {
        let bytes = bytes(io);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let ints = |name: &str| {
            let view = file.tensor(name).unwrap();
            let values = view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as i32);
            (view.shape().to_vec(), values.collect::<Vec<_>>())
        };
        let (shape, input_ids) = ints("input_ids");
        let (rows, len) = (shape[0], shape[1]);
        let (_, mask) = ints("attention_mask");
        let (_, labels) = ints("labels");
        // Labels are not shifted in the reference: the target of a position is the label of the next.
        let targets = (0..rows * len).map(|i| if (i + 1) % len == 0 { -100 } else { labels[i + 1] }).collect();
        let positions = (0..rows).flat_map(|_| 0..len as i32).collect();
        Self { rows, len, input_ids, positions, mask, targets }
    }

    fn input(&self) -> ModelInput<'_> {
        let Self { rows, len, input_ids, positions, mask, .. } = self;
        ModelInput { rows: *rows, len: *len, input_ids, positions, segments: mask }
    }

    /// The mean loss of the targets.
    pub fn loss(&self, model: &CausalLm) -> Tensor<1> {
        let count = self.targets.iter().filter(|target| **target >= 0).count();
        model.loss_sum(&self.input(), &self.targets).unwrap() / count as f64
    }

    /// The logits `[rows, len, vocabulary]`.
    pub fn logits(&self, model: &CausalLm) -> HostTensor {
        HostTensor::from_tensor(model.logits(model.hidden(&self.input())))
    }

    /// Compares logits where there is no padding, to 1e-4, and the loss, to 2e-5.
    #[track_caller]
    pub fn assert_gives(&self, model: &CausalLm, expected: &NamedTensors, what: &str) {
        let logits = self.logits(model).values;
        let expected_logits = &expected["logits"].values;
        assert_eq!(logits.len(), expected_logits.len(), "{what}");
        let vocabulary = logits.len() / self.mask.len();
        let visible = logits.iter().zip(expected_logits).enumerate().filter(|(i, _)| self.mask[i / vocabulary] == 1);
        let worst = visible.map(|(_, (f, e))| (f - e).abs()).fold(0f32, larger);
        assert!(worst <= 1e-4, "{what}: logits differ by {worst}");
        let (loss, expected) = (self.loss(model).into_scalar::<f32>(), expected["loss"].values[0]);
        assert!((loss - expected).abs() <= 2e-5, "{what}: loss {loss}, expected {expected}");
    }

    /// The gradients of the loss, of the parameters in `names`.
    pub fn gradients(&self, model: &CausalLm, names: BTreeMap<ParamId, String>) -> NamedTensors {
        struct Collect {
            names: BTreeMap<ParamId, String>,
            gradients: GradientsParams,
            found: NamedTensors,
        }
        impl ModuleVisitor for Collect {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let Some(name) = self.names.get(&param.id) else { return };
                let gradient = self.gradients.get::<D>(param.id).unwrap_or_else(|| panic!("no gradient of {name}"));
                self.found.insert(name.clone(), HostTensor::from_tensor(gradient));
            }
        }
        let gradients = GradientsParams::from_grads(self.loss(model).backward(), model);
        let mut collect = Collect { names, gradients, found: NamedTensors::new() };
        model.visit(&mut collect);
        collect.found
    }
}

/// The trained parameters by name.
pub fn names<M>(attached: &Attached<M>) -> BTreeMap<ParamId, String> {
    attached.trainable.iter().map(|parameter| (parameter.id, parameter.name.clone())).collect()
}

/// Compares tensors by name, to `tolerance` of the largest number of each.
#[track_caller]
pub fn assert_gradients(found: &NamedTensors, expected: &NamedTensors, tolerance: f32, what: &str) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, expected) in expected {
        assert_eq!(found[name].shape, expected.shape, "{what}: {name}");
        let largest = expected.values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let differences = found[name].values.iter().zip(&expected.values).map(|(f, e)| (f - e).abs());
        let worst = differences.fold(0f32, larger);
        assert!(worst <= tolerance * largest, "{what}: {name} differs by {worst}, the largest is {largest}");
    }
}
