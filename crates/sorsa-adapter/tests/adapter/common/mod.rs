//! What all tests of this crate share: the device, a small network, numbers that are always the same.

pub mod reference;

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use sorsa_adapter::{
    AdapterConfig, AdapterError, AttachOptions, Attached, HostTensor, HostTensorExt, Method, NamedTensors, Target,
    WeightGradients, import_trainable, project,
};

/// Largest difference allowed, relative to the largest value: f32 products in another order.
pub const TOLERANCE: f32 = 1e-4;
/// The methods that have frozen factors of their own.
pub const FROZEN: [Method; 4] = [Method::LoraXs, Method::Kasa, Method::Mica, Method::Svft];
/// Rank of [`config`].
pub const RANK: usize = 4;

/// Where the tests run: the CPU, or what `SORSA_TEST_BACKEND` names.
pub fn device() -> Device {
    match std::env::var("SORSA_TEST_BACKEND").as_deref() {
        Ok("wgpu") => wgpu(),
        Ok("flex") | Err(_) => Device::flex(),
        Ok(other) => panic!("SORSA_TEST_BACKEND should be flex or wgpu, found {other}"),
    }
}

/// Whether equal operations give equal bits: on the CPU they do, a GPU may choose another kernel each time.
pub fn is_repeatable() -> bool {
    !matches!(std::env::var("SORSA_TEST_BACKEND").as_deref(), Ok("wgpu"))
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Device {
    // Software rasterisers are listed too, and welcome here.
    let devices = Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec();
    devices.into_iter().next().expect("a wgpu device, such as Mesa's software rasteriser")
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Device {
    panic!("the tests were built without the feature wgpu")
}

/// Two layers, neither square, one with a bias.
#[derive(Module, Debug)]
pub struct Net {
    pub first: Linear,
    pub second: Linear,
}

impl Net {
    /// Always the same weights: burn's own initialisation is lazy, and its generator is shared by all tests.
    pub fn new(device: &Device) -> Self {
        let bias = HostTensor::new([20], noise(2, 20));
        Self { first: linear(1, [12, 20], Some(bias), device), second: linear(3, [20, 9], None, device) }
    }

    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        project(&self.second, project(&self.first, x).tanh())
    }

    /// The route that forms the dense weight, by burn alone.
    pub fn forward_dense(&self, x: Tensor<2>) -> Tensor<2> {
        self.second.forward(self.first.forward(x).tanh())
    }
}

/// A layer with weights of noise.
pub fn linear(seed: u64, shape: [usize; 2], bias: Option<HostTensor>, device: &Device) -> Linear {
    let mut layer = LinearConfig::new(shape[0], shape[1]).with_bias(bias.is_some()).init(device);
    layer.weight = Param::from_tensor(tensor(seed, shape, device));
    layer.bias = bias.map(|bias| Param::from_tensor(bias.to_tensor(device)));
    layer
}

/// Uniform numbers in -0.5..0.5 from a linear congruential generator.
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(next).collect()
}

pub fn tensor(seed: u64, shape: [usize; 2], device: &Device) -> Tensor<2> {
    HostTensor::new(shape, noise(seed, shape[0] * shape[1])).to_tensor(device)
}

pub fn input(device: &Device) -> Tensor<2> {
    tensor(4, [5, 12], device) * 4.0
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    HostTensor::from_tensor(tensor).values
}

/// The larger of two numbers; NaN where one is, which `max` would pass over.
fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || b <= a { a } else { b }
}

pub fn largest<const D: usize>(tensor: Tensor<D>) -> f32 {
    values(tensor).into_iter().map(f32::abs).fold(0.0, larger)
}

#[track_caller]
pub fn assert_near<const D: usize>(a: Tensor<D>, b: Tensor<D>, what: &str) {
    assert_within(a, b.clone(), TOLERANCE * largest(b), what);
}

#[track_caller]
pub fn assert_within<const D: usize>(a: Tensor<D>, b: Tensor<D>, tolerance: f32, what: &str) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let pairs = values(a).into_iter().zip(values(b));
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, larger);
    assert!(worst <= tolerance, "{what}: differs by {worst}, {tolerance} allowed");
}

/// The methods that train factors beside a frozen weight.
pub fn factored() -> impl Iterator<Item = Method> {
    Method::ALL.into_iter().filter(|method| method.is_factored())
}

/// The same configuration with another value of a setting of its method, by way of the form in files.
pub fn with_setting(config: &AdapterConfig, name: &str, value: impl Into<serde_json::Value>) -> AdapterConfig {
    let mut json = serde_json::to_value(config).unwrap();
    json[name] = value.into();
    serde_json::from_value(json).unwrap()
}

pub fn config(method: Method) -> AdapterConfig {
    AdapterConfig::new(method, RANK, &["first", "second"])
}

pub fn attach(config: &AdapterConfig, device: &Device) -> Attached<Net> {
    config.attach(Net::new(device), &with_gradients()).unwrap()
}

/// Options with gradients, for the methods that start from them.
pub fn with_gradients() -> AttachOptions<'static> {
    AttachOptions { gradients: Some(&NoiseGradients), ..AttachOptions::default() }
}

/// Gradients of noise, always the same.
pub struct NoiseGradients;

impl WeightGradients for NoiseGradients {
    fn mean(&self, targets: &[Target], _batches: usize) -> Result<BTreeMap<String, HostTensor>, AdapterError> {
        let of = |target: &Target| {
            let count = target.shape[0] * target.shape[1];
            (target.path.clone(), HostTensor::new(target.shape, noise(count as u64, count)))
        };
        Ok(targets.iter().map(of).collect())
    }
}

/// The same net with every trained number moved.
pub fn disturbed(attached: Attached<Net>) -> Attached<Net> {
    let mut moved = attached.snapshot().trained;
    for (seed, tensor) in (10..).zip(moved.values_mut()) {
        let noise = noise(seed, tensor.values.len());
        tensor.values.iter_mut().zip(noise).for_each(|(value, noise)| *value += 0.5 * noise);
    }
    with_values(attached, &moved)
}

/// The same model with other trained values.
pub fn with_values<M: Module>(attached: Attached<M>, values: &NamedTensors) -> Attached<M> {
    let model = import_trainable(attached.model, &attached.trainable, values, Path::new("test")).unwrap();
    Attached { model, ..attached }
}

/// The adapter with every trained number moved a little.
pub fn disturbed_values(saved: sorsa_adapter::SavedAdapter) -> sorsa_adapter::SavedAdapter {
    let mut saved = saved;
    for (seed, tensor) in (20..).zip(saved.trained.values_mut()) {
        let noise = noise(seed, tensor.values.len());
        tensor.values.iter_mut().zip(noise).for_each(|(value, noise)| *value += 0.1 * noise);
    }
    saved
}
