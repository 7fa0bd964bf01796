//! Adapters of weights that are packed.

use burn::optim::GradientsParams;
use burn::prelude::*;
use sorsa_adapter::{
    AdapterConfig, Attached, HostTensor, HostTensorExt, Linear, LinearLayer, Method, PackedFormat, PackedMatrix,
    ResidualStorage, SavedAdapter, Trainable, export_trainable, import_trainable, project,
};

use crate::common::{assert_near, device, factored, largest, noise, with_setting};

/// Two layers, whose weights may be packed.
#[derive(Module, Debug)]
struct Net {
    first: Linear,
    second: Linear,
}

impl Net {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        project(&self.second, project(&self.first, x).tanh())
    }
}

fn matrix(seed: u64, shape: [usize; 2]) -> PackedMatrix {
    let values = noise(seed, shape[0] * shape[1]);
    PackedMatrix::pack(PackedFormat::NF4, shape, &values).unwrap()
}

/// The matrices `[d_out, d_in]` of both layers.
fn matrices() -> [PackedMatrix; 2] {
    [matrix(1, [40, 64]), matrix(2, [24, 40])]
}

fn dense(device: &Device) -> Net {
    let layer = |matrix: &PackedMatrix| {
        let weight = HostTensor::new(matrix.shape(), matrix.to_f32()).transposed();
        Linear { weight: weight.param(device), bias: None, packed: None }
    };
    let [first, second] = matrices();
    Net { first: layer(&first), second: layer(&second) }
}

fn packed(device: &Device) -> Net {
    let [first, second] = matrices();
    let net = dense(device);
    Net { first: net.first.with_packed(&first), second: net.second.with_packed(&second) }
}

fn input(device: &Device) -> Tensor<2> {
    HostTensor::new([5, 64], noise(7, 5 * 64)).to_tensor(device)
}

fn config(method: Method) -> AdapterConfig {
    AdapterConfig::new(method, 4, &["first", "second"])
}

/// The methods that can start beside packed weights: LoRA-GA takes gradients of dense ones.
fn beside_packed() -> impl Iterator<Item = Method> {
    factored().filter(|method| *method != Method::LoraGa)
}

fn attach(method: Method, net: Net) -> Attached<Net> {
    config(method).attach(net, &Default::default()).unwrap()
}

/// The adapter with other values, and what it was before.
fn disturbed(attached: Attached<Net>) -> Attached<Net> {
    let mut values = export_trainable(&attached.model, &attached.trainable);
    for (seed, tensor) in (20..).zip(values.values_mut()) {
        let count = tensor.values.len();
        tensor.values.iter_mut().zip(noise(seed, count)).for_each(|(value, noise)| *value += 0.1 * noise);
    }
    let model = import_trainable(attached.model, &attached.trainable, &values, "memory".as_ref()).unwrap();
    Attached { model, ..attached }
}

#[test]
fn a_packed_net_computes_like_the_widened_one() {
    let device = device();
    assert_near(packed(&device).forward(input(&device)), dense(&device).forward(input(&device)), "packed");
}

#[test]
fn a_method_that_leaves_the_weight_whole_trains_beside_packed_weights_like_beside_their_values() {
    let device = device();
    for method in beside_packed().filter(|method| !method.splits_weight()) {
        let run = |net: Net| output_and_gradients(disturbed(attach(method, net)));
        let (found, expected) = (run(packed(&device)), run(dense(&device)));
        assert_near(found.0, expected.0, &format!("{method}"));
        for (found, expected) in found.1.into_iter().zip(expected.1) {
            assert_near(found.unsqueeze::<2>(), expected.unsqueeze(), &format!("a gradient of {method}"));
        }
    }
}

/// The output, and the gradients of all trained parameters.
fn output_and_gradients(attached: Attached<Net>) -> (Tensor<2>, Vec<Tensor<1>>) {
    let device = device();
    let model = attached.model.train();
    let y = model.forward(input(&device).autodiff());
    let gradients = GradientsParams::from_grads(y.clone().square().sum().backward(), &model);
    let of = |parameter: &Trainable| match parameter.shape.len() {
        1 => gradients.get::<1>(parameter.id).unwrap(),
        _ => gradients.get::<2>(parameter.id).unwrap().flatten(0, 1),
    };
    (y.inner(), attached.trainable.iter().map(of).collect())
}

#[test]
fn an_exact_residual_leaves_the_packed_weight_and_the_output_as_they_are_and_trains_like_a_dense_one() {
    let device = device();
    let before = dense(&device).forward(input(&device));
    for method in beside_packed().filter(|method| method.splits_weight()) {
        let config = config(method).with_alpha(6.0);
        let attached = config.attach(packed(&device), &Default::default()).unwrap();
        assert_eq!(attached.model.first.packed().unwrap().matrix(), matrices()[0]);
        assert!(attached.state.modules.iter().all(|module| module.residual.is_none()));
        assert!(attached.modules.iter().all(|module| module.rounding.is_none()));
        let start = attached.model.forward(input(&device));
        assert!(largest(start - before.clone()) < 1e-5 * largest(before.clone()), "{method} is not the base");

        let trained = disturbed(attached);
        let saved = trained.snapshot();
        let beside_dense = saved.attach(dense(&device)).unwrap();
        let after = trained.model.forward(input(&device));
        let folder = tempfile::tempdir().unwrap();
        saved.save(folder.path()).unwrap();
        let loaded = SavedAdapter::load(folder.path()).unwrap().attach(packed(&device)).unwrap();
        assert_eq!(loaded.model.forward(input(&device)).to_data(), after.to_data(), "{method}");

        let (found, expected) = (output_and_gradients(loaded), output_and_gradients(beside_dense));
        assert_near(found.0, expected.0, &format!("{method}"));
        for (found, expected) in found.1.into_iter().zip(expected.1) {
            assert_near(found.unsqueeze::<2>(), expected.unsqueeze(), &format!("a gradient of {method}"));
        }
        let merged = trained.merged_weights().weight("first").unwrap().transposed().to_tensor::<2>(&device);
        let (merged_net, saved) = trained.merge();
        assert_near(merged, merged_net.first.weight.val(), &format!("a merged weight of {method}"));
        assert_near(merged_net.forward(input(&device)), after.clone(), &format!("{method}, merged"));
        let unmerged = saved.unmerge(merged_net).unwrap();
        assert_near(unmerged.model.forward(input(&device)), after, &format!("{method}, unmerged"));
    }
}

#[test]
fn what_an_adapter_beside_an_exact_residual_learned_is_handed_over_to_every_method() {
    let device = device();
    let old = disturbed(attach(Method::Sorsa, packed(&device)));
    let after = old.model.forward(input(&device));
    let (saved, net) = (old.snapshot(), packed(&device));
    for method in beside_packed().filter(|method| method.keeps_output()) {
        let mut new = config(method);
        if method == Method::Lora {
            new.rank = 8;
        }
        let start = saved.handed_over(&net, &new, &Default::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        start.save(folder.path()).unwrap();
        let attached = SavedAdapter::load(folder.path()).unwrap().attach(packed(&device)).unwrap();
        assert_eq!(attached.model.second.packed().unwrap().matrix(), matrices()[1]);
        assert_near(attached.model.forward(input(&device)), after.clone(), &format!("handed over to {method}"));
        let trained = disturbed(attached);
        let output = trained.model.forward(input(&device));
        let (merged, _) = trained.merge();
        assert_near(merged.forward(input(&device)), output, &format!("{method} after a hand-over, merged"));
    }
    let again = AdapterConfig { residual: Some(ResidualStorage::Packed), ..config(Method::Pissa) };
    let error = saved.handed_over(&net, &again, &Default::default()).unwrap_err().to_string();
    assert!(error.contains("take residual = \"exact\""), "{error}");
}

#[test]
fn the_residual_of_a_split_weight_is_packed_and_comes_back_to_the_bit() {
    let device = device();
    let before = dense(&device).forward(input(&device));
    for method in beside_packed().filter(|method| method.splits_weight()) {
        let config = AdapterConfig { residual: Some(ResidualStorage::Packed), ..config(method) };
        let attached = config.attach(packed(&device), &Default::default()).unwrap();
        assert!(
            attached.model.first.packed.is_some() && attached.modules.iter().all(|module| module.rounding.is_some())
        );
        let start = attached.model.forward(input(&device));
        assert!(
            largest(start.clone() - before.clone()) < 0.2 * largest(before.clone()),
            "{method} is far from the base"
        );
        let trained = disturbed(attached);
        let after = trained.model.forward(input(&device));
        let folder = tempfile::tempdir().unwrap();
        trained.snapshot().save(folder.path()).unwrap();
        let loaded = SavedAdapter::load(folder.path()).unwrap().attach(packed(&device)).unwrap();
        assert_eq!(loaded.model.forward(input(&device)).to_data(), after.to_data(), "{method}");
    }
}

#[test]
fn bands_and_fixed_factors_beside_packed_weights_come_back_to_the_bit() {
    let device = device();
    let before = dense(&device).forward(input(&device));
    for (name, value) in [("band", "minor"), ("band", "middle"), ("train", "vectors"), ("train", "singular-values")] {
        for (storage, far) in [(ResidualStorage::Packed, 0.2), (ResidualStorage::Exact, 1e-5)] {
            let config = with_setting(&config(Method::Sorsa).with_alpha(6.0), name, value);
            let config = AdapterConfig { residual: Some(storage), ..config };
            let attached = config.attach(packed(&device), &Default::default()).unwrap();
            let start = attached.model.forward(input(&device));
            assert!(largest(start - before.clone()) < far * largest(before.clone()), "{value} is far from the base");
            let trained = disturbed(attached);
            let after = trained.model.forward(input(&device));
            let folder = tempfile::tempdir().unwrap();
            trained.snapshot().save(folder.path()).unwrap();
            let loaded = SavedAdapter::load(folder.path()).unwrap().attach(packed(&device)).unwrap();
            assert_eq!(loaded.model.forward(input(&device)).to_data(), after.to_data(), "{value}");
            let (merged, _) = trained.merge();
            assert_near(merged.forward(input(&device)), after, value);
        }
    }
}

#[test]
fn a_merged_net_is_dense_and_gives_the_same_output() {
    let device = device();
    for method in beside_packed() {
        let adapted = disturbed(attach(method, packed(&device)));
        let output = adapted.model.forward(input(&device));
        let (merged, _) = adapted.merge();
        assert_near(merged.forward(input(&device)), output, &format!("{method}"));
    }
}

#[test]
fn code_that_takes_a_placeholder_for_the_weight_computes_nan() {
    let device = device();
    let net = packed(&device);
    assert_eq!(net.first.weight.val().dims(), [64, 40]);
    assert!(net.first.weight.val().sum().into_scalar::<f32>().is_nan());
}
