//! Results of PyTorch for one linear layer: files of tensors, read as they are and turned to burn's orientation.

use std::path::{Path, PathBuf};

use burn::module::{Module, Param, ParamId};
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use sorsa_adapter::{
    AdapterConfig, AdapterState, Attached, HostTensor, HostTensorExt, ModuleState, NamedTensors, SavedAdapter, Target,
    project,
};

use super::{assert_within, largest};

/// A model of one layer.
#[derive(Module, Debug)]
pub struct Layer {
    pub layer: Linear,
}

/// The tensors of one file.
pub struct Reference {
    path: PathBuf,
    tensors: NamedTensors,
}

impl Reference {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let one = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
            let values = match view.dtype() {
                Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
                Dtype::BF16 => {
                    let wide = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                    view.data().chunks_exact(2).map(wide).collect()
                }
                other => panic!("{}: {name} is {other}", path.display()),
            };
            (name.to_owned(), HostTensor::new(view.shape(), values))
        };
        let tensors = SafeTensors::deserialize(&bytes).unwrap().iter().map(one).collect();
        Self { path: path.to_owned(), tensors }
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn get(&self, name: &str) -> HostTensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no {name}", self.path.display())).clone()
    }

    /// A matrix that PyTorch keeps as `[out, in]`, as burn does: `[in, out]`.
    pub fn turned(&self, name: &str) -> HostTensor {
        let tensor = self.get(name);
        let [rows, cols] = tensor.shape[..] else { panic!("{name} is no matrix: {:?}", tensor.shape) };
        let values = (0..rows * cols).map(|i| tensor.values[i % rows * cols + i / rows]).collect();
        HostTensor::new([cols, rows], values)
    }

    /// A layer with the weight `W` and the bias `b`, where there is one.
    pub fn layer(&self, device: &Device) -> Layer {
        let weight = self.turned("W");
        let bias = self.has("b").then(|| self.get("b"));
        let mut layer = LinearConfig::new(weight.shape[0], weight.shape[1]).with_bias(bias.is_some()).init(device);
        layer.weight = Param::from_tensor(weight.to_tensor(device));
        layer.bias = bias.map(|bias| Param::from_tensor(bias.to_tensor(device)));
        Layer { layer }
    }
}

pub fn json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// The layer of `base` with the factors `trained`, where those of `initial` have left a weight that is split.
pub fn attach_given(
    config: &AdapterConfig,
    base: Layer,
    initial: &NamedTensors,
    trained: &NamedTensors,
) -> Attached<Layer> {
    let module = |target: Target| {
        let Target { path, shape, rank, scale } = target;
        ModuleState { path, shape, rank, scale, fingerprint: None, dtype: None, residual: None }
    };
    let modules = config.targets(&base).unwrap().into_iter().map(module).collect();
    let initial = if config.method().splits_weight() { initial.clone() } else { NamedTensors::new() };
    let state = AdapterState { config: config.clone(), modules, initial };
    SavedAdapter::new(state, trained.clone(), Path::new("reference")).attach(base).unwrap()
}

/// `y`, the loss `0.5 mean((y - t)^2)`, and its gradients: of the input, and of each trained parameter by its name.
pub struct Step {
    pub y: Tensor<2>,
    pub loss: f32,
    pub of_x: Tensor<2>,
    gradients: burn::tensor::Gradients,
    attached: Attached<Layer>,
}

impl Step {
    /// One step of `attached`, a model on a device with autodiff, by the factored route or the dense one.
    pub fn run(attached: Attached<Layer>, x: &HostTensor, t: &HostTensor, dense: bool) -> Self {
        let device = attached.model.layer.weight.base().device();
        let x = x.to_tensor::<2>(&device).require_grad();
        let layer = &attached.model.layer;
        let y = if dense { layer.forward(x.clone()) } else { project(layer, x.clone()) };
        let loss = (y.clone() - t.to_tensor(&device)).square().mean() * 0.5;
        let gradients = loss.clone().backward();
        let of_x = x.grad(&gradients).unwrap();
        Self { y: y.inner(), loss: loss.into_scalar::<f32>(), of_x, gradients, attached }
    }

    /// The gradient of a factor, by its short name.
    pub fn of<const D: usize>(&self, factor: &str) -> Tensor<D> {
        let named = |name: &str| name.rsplit('.').next() == Some(factor);
        let parameter = self.attached.trainable.iter().find(|parameter| named(&parameter.name)).unwrap();
        struct Find<'a, const D: usize> {
            id: ParamId,
            gradients: &'a burn::tensor::Gradients,
            found: Option<Tensor<D>>,
        }
        impl<const D: usize> burn::module::ModuleVisitor for Find<'_, D> {
            fn visit_float<const E: usize>(&mut self, param: &Param<Tensor<E>>) {
                if param.id == self.id {
                    let gradient = param.val().grad(self.gradients).expect("a gradient");
                    let shape: [usize; D] = gradient.dims().as_slice().try_into().expect("the axes of the factor");
                    self.found = Some(gradient.reshape(shape));
                }
            }
        }
        let mut find = Find { id: parameter.id, gradients: &self.gradients, found: None };
        self.attached.model.visit(&mut find);
        find.found.unwrap()
    }
}

/// Gradients are compared relative to the largest.
#[track_caller]
pub fn assert_gradient<const D: usize>(found: Tensor<D>, expected: &HostTensor, what: &str) {
    let expected = expected.to_tensor::<D>(&found.device());
    assert_within(found, expected.clone(), 1e-5 * largest(expected), what);
}

/// Everything else is compared as it is.
#[track_caller]
pub fn assert_same<const D: usize>(found: Tensor<D>, expected: &HostTensor, what: &str) {
    let expected = expected.to_tensor::<D>(&found.device());
    assert_within(found, expected, 1e-5, what);
}
