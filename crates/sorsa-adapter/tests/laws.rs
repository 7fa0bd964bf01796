//! What must hold of every method, on any burn module and any backend.

mod common;

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::{Distribution, FloatDType};
use sorsa_adapter::{
    Adapter, AdapterConfig, AdapterError, AlphaConvention, Attached, Method, SavedAdapter, Scaling, export_trainable,
    project,
};

use common::device;

/// Largest difference allowed, relative to the largest value: f32 products in another order.
const TOLERANCE: f32 = 1e-4;
const FACTORED: [Method; 3] = [Method::Sorsa, Method::Pissa, Method::Lora];

#[derive(Module, Debug)]
struct Net {
    first: Linear,
    second: Linear,
}

impl Net {
    /// Always the same weights: burn's own initialisation is lazy, and its generator is shared by all tests.
    fn new(device: &Device) -> Self {
        let mut first = LinearConfig::new(12, 20).init(device);
        first.weight = Param::from_tensor(noise(1, [12, 20], device));
        first.bias = Some(Param::from_tensor(noise(2, [1, 20], device).squeeze_dim(0)));
        let mut second = LinearConfig::new(20, 9).with_bias(false).init(device);
        second.weight = Param::from_tensor(noise(3, [20, 9], device));
        Self { first, second }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        project(&self.second, project(&self.first, x).tanh())
    }

    /// The route that forms the dense weight, by burn alone.
    fn forward_dense(&self, x: Tensor<2>) -> Tensor<2> {
        self.second.forward(self.first.forward(x).tanh())
    }
}

/// Uniform numbers in -0.5..0.5 from a linear congruential generator.
fn noise(seed: u64, shape: [usize; 2], device: &Device) -> Tensor<2> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let values = (0..shape[0] * shape[1]).map(next).collect();
    Tensor::from_data(TensorData::new::<f32, _>(values, shape), device)
}

fn input(device: &Device) -> Tensor<2> {
    noise(4, [5, 12], device) * 4.0
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec::<f32>().unwrap()
}

#[track_caller]
fn assert_near<const D: usize>(a: Tensor<D>, b: Tensor<D>, what: &str) {
    let (a, b) = (values(a), values(b));
    let largest = b.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let difference = a.iter().zip(&b).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(difference <= TOLERANCE * largest, "{what}: differs by {difference}, largest {largest}");
}

fn config(method: Method) -> AdapterConfig {
    AdapterConfig::new(method, 4, &["first", "second"])
}

fn attach(config: &AdapterConfig, device: &Device) -> Attached<Net> {
    config.attach(Net::new(device), &Default::default()).unwrap()
}

/// The same net with every trained number moved by noise.
fn disturbed(mut attached: Attached<Net>) -> Attached<Net> {
    struct Noise(Vec<burn::module::ParamId>);
    impl ModuleMapper for Noise {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if !self.0.contains(&param.id) {
                return param;
            }
            param.map(|value| value.clone() + value.random_like(Distribution::Normal(0.0, 0.2)))
        }
    }
    let ids = attached.trainable.iter().map(|parameter| parameter.id).collect();
    attached.model = attached.model.map(&mut Noise(ids));
    attached
}

/// Every method with scale absent, 1 and not 1.
fn variants() -> Vec<AdapterConfig> {
    let mut variants = Vec::new();
    for method in Method::ALL {
        variants.push(config(method));
        if method.is_factored() {
            variants.push(config(method).with_alpha(4.0));
            variants.push(config(method).with_alpha(10.0));
            variants.push(AdapterConfig { scaling: Scaling::RankStabilized, ..config(method).with_alpha(10.0) });
            let convention = AlphaConvention::Author;
            variants.push(AdapterConfig { alpha_convention: convention, ..config(method).with_alpha(8.0) });
        }
    }
    variants
}

#[test]
fn attaching_preserves_the_output() {
    let device = device();
    let before = Net::new(&device).forward_dense(input(&device));
    for config in variants() {
        let after = attach(&config, &device).model.forward(input(&device));
        assert_near(after, before.clone(), &format!("{config:?}"));
    }
}

#[test]
fn factored_dense_and_merged_outputs_agree() {
    let device = device();
    for config in variants() {
        let adapted = disturbed(attach(&config, &device));
        let factored = adapted.model.forward(input(&device));
        assert_near(adapted.model.forward_dense(input(&device)), factored.clone(), &format!("dense {config:?}"));
        let (merged, _) = adapted.merge();
        assert!(merged.first.weight.reparameterization::<Adapter>().is_none());
        assert_near(merged.forward(input(&device)), factored, &format!("merged {config:?}"));
    }
}

#[test]
fn merging_and_unmerging_restores_the_adapter() {
    let device = device();
    for method in FACTORED {
        let adapted = disturbed(attach(&config(method).with_alpha(6.0), &device));
        let (before, factors) = (adapted.model.forward(input(&device)), adapted.snapshot().trained);
        let (merged, adapter) = adapted.merge();
        let again = adapter.unmerge(merged).unwrap();
        assert_eq!(again.snapshot().trained, factors);
        assert_near(again.model.forward(input(&device)), before, &method.to_string());
    }
}

#[test]
fn a_saved_adapter_loads_onto_the_original_model() {
    let device = device();
    for config in variants() {
        let folder = tempfile::tempdir().unwrap();
        let adapted = disturbed(attach(&config, &device));
        adapted.snapshot().save(folder.path()).unwrap();
        let loaded = SavedAdapter::load(folder.path()).unwrap().attach(Net::new(&device)).unwrap();
        let (x, y) = (loaded.model.forward(input(&device)), adapted.model.forward(input(&device)));
        assert_eq!(values(x), values(y), "{config:?}");
        assert_eq!(loaded.state, adapted.state);
    }
}

#[test]
fn only_the_adapter_gets_gradients() {
    let device = device();
    for method in Method::ALL {
        let mut adapted = disturbed(attach(&config(method), &device));
        adapted.model = adapted.model.train();
        let x = Tensor::from_inner(input(&device));
        let gradients = adapted.model.forward(x).square().sum().backward();
        let base = adapted.model.first.weight.base();
        assert_eq!(base.grad(&gradients).is_some(), !method.is_factored(), "{method}");
        let bias = adapted.model.first.bias.as_ref().unwrap().val();
        assert_eq!(bias.grad(&gradients).is_some(), method == Method::Full, "{method}");
        if let Some(adapter) = adapted.model.first.weight.reparameterization::<Adapter>() {
            let (a, s, b) = adapter.parts();
            assert!(a.grad(&gradients).is_some() && b.grad(&gradients).is_some(), "{method}");
            assert_eq!(s.map(|s| s.grad(&gradients).is_some()), (method == Method::Sorsa).then_some(true));
        }
    }
}

#[test]
fn trainable_parameters_have_their_closed_form() {
    let device = device();
    let count = |method| attach(&config(method), &device).trainable_parameters();
    let pairs = 4 * (12 + 20) + 4 * (20 + 9);
    assert_eq!(count(Method::Sorsa), pairs + 4 + 4);
    assert_eq!(count(Method::Pissa), pairs);
    assert_eq!(count(Method::Lora), pairs);
    assert_eq!(count(Method::Partial), 12 * 20 + 20 * 9);
    assert_eq!(count(Method::Full), 12 * 20 + 20 + 20 * 9);
}

#[test]
fn the_base_keeps_what_the_principal_part_does_not() {
    let device = device();
    let weight = Net::new(&device).first.weight.val();
    for method in [Method::Sorsa, Method::Pissa] {
        let adapted = attach(&config(method).with_alpha(8.0), &device).model.first;
        let adapter = adapted.weight.reparameterization::<Adapter>().unwrap();
        assert_near(adapted.weight.base() + adapter.delta(), weight.clone(), &method.to_string());
    }
}

#[test]
fn dropout_acts_on_the_adapter_while_training_only() {
    let device = device();
    let adapted = disturbed(attach(&config(Method::Sorsa).with_dropout(0.5), &device));
    let x = input(&device);
    let evaluated = adapted.model.forward(x.clone());
    assert_near(adapted.model.forward_dense(x.clone()), evaluated.clone(), "evaluation");
    let training = adapted.model.train();
    let dropped = training.forward(Tensor::from_inner(x)).inner();
    let difference = (dropped - evaluated).abs().max().into_scalar::<f32>();
    assert!(difference > 1e-3, "dropout changed nothing");
}

#[test]
fn a_narrow_base_gets_a_rounded_residual_and_reports_it() {
    let device = device();
    if !device.supports_dtype(FloatDType::BF16) {
        return;
    }
    struct Narrow;
    impl ModuleMapper for Narrow {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|value| value.cast(FloatDType::BF16))
        }
    }
    let net = Net::new(&device).map(&mut Narrow);
    let adapted = config(Method::Sorsa).attach(net, &Default::default()).unwrap();
    for module in &adapted.modules {
        let rounding = module.rounding.unwrap();
        assert!(rounding > 1e-5 && rounding < 4e-3, "{rounding}");
    }
    let trained = export_trainable(&adapted.model, &adapted.trainable);
    assert_eq!(trained.len(), 6);
}

#[test]
fn a_second_start_takes_the_svd_from_the_cache_even_past_a_corrupt_entry() {
    let device = device();
    let folder = tempfile::tempdir().unwrap();
    let attach = || {
        let options = sorsa_adapter::AttachOptions { cache: Some(folder.path().into()), ..Default::default() };
        config(Method::Sorsa).attach(Net::new(&device), &options).unwrap()
    };
    let cached = |attached: &Attached<Net>| attached.modules.iter().filter(|module| module.cached).count();
    let first = attach();
    let second = attach();
    assert_eq!((cached(&first), cached(&second)), (0, 2));
    assert_eq!(first.snapshot().trained, second.snapshot().trained);
    let entry = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    std::fs::write(entry, b"not a safetensors file").unwrap();
    let third = attach();
    assert_eq!(cached(&third), 1);
    assert_eq!(first.snapshot().trained, third.snapshot().trained);
}

#[test]
fn everything_wrong_with_targets_is_reported_at_once() {
    let device = device();
    let mut config = AdapterConfig::new(Method::Sorsa, 10, &["first", "second", "third", "re:.*fourth"]);
    config.rank_pattern.insert("first".into(), 13);
    let error = config.attach(Net::new(&device), &Default::default()).unwrap_err();
    let AdapterError::Targets { faults } = &error else { panic!("{error}") };
    assert_eq!(faults.len(), 4, "{error}");
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let device = device();
    let mut net = Net::new(&device);
    net.second.weight = net.second.weight.map(|weight| weight.slice_fill([3..4, 2..3], f32::NAN));
    let error = config(Method::Pissa).attach(net, &Default::default()).unwrap_err();
    assert!(matches!(error, AdapterError::Decomposition { .. }), "{error}");
    assert!(error.to_string().contains("`second`") && !error.to_string().contains("`first`"), "{error}");
}

#[test]
fn an_adapter_for_another_model_is_refused_with_every_reason() {
    let device = device();
    let saved = attach(&config(Method::Sorsa), &device).snapshot();
    let mut other = Net::new(&device);
    other.first.weight = other.first.weight.map(|weight| weight * 1.5);
    other.second = LinearConfig::new(20, 8).with_bias(false).init(&device);
    let AdapterError::Mismatch { faults, .. } = saved.attach(other).unwrap_err() else { panic!("accepted") };
    assert_eq!(faults.len(), 1, "{faults:?}");
    let mut foreign = Net::new(&device);
    foreign.first.weight = foreign.first.weight.map(|weight| weight * 1.5);
    foreign.second.weight = foreign.second.weight.map(|weight| weight * 1.5);
    let AdapterError::Mismatch { faults, .. } = saved.attach(foreign).unwrap_err() else { panic!("accepted") };
    assert_eq!(faults.len(), 2, "{faults:?}");
}

#[test]
fn loras_start_depends_on_seed_and_path_only() {
    let device = device();
    let start = |seed, targets: &[&str]| {
        let config = AdapterConfig { seed, ..AdapterConfig::new(Method::Lora, 4, targets) };
        attach(&config, &device).snapshot().trained["first.lora.a"].clone()
    };
    assert_eq!(start(1, &["first"]), start(1, &["second", "first"]));
    assert_ne!(start(1, &["first"]), start(2, &["first"]));
}
