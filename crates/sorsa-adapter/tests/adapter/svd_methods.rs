//! KaSA and MiCA beside PEFT, SVFT and LoRA-GA beside PyTorch, on one linear layer; and all of them as LoRAs for PEFT. The files of
//! `tests/golden/svd_methods` are compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::optim::GradientsParams;
use burn::prelude::*;
use sorsa_adapter::peft::{PeftAdapter, PeftExport, PeftForm};
use sorsa_adapter::{
    Adapter, AdapterConfig, AdapterError, AttachOptions, Attached, HostTensor, HostTensorExt, KasaConfig, LoraGaConfig,
    Method, MethodConfig, NamedTensors, Target, WeightGradients, add_penalties,
};

use crate::common::reference::*;
use crate::common::*;

const RANK_OF_FILES: usize = 3;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/svd_methods").join(name)
}

fn base() -> Reference {
    Reference::read(&file("base.safetensors"))
}

fn layer_config(method: impl Into<MethodConfig>, rank: usize) -> AdapterConfig {
    // The files have the scale 7 / 3 whatever the rank.
    AdapterConfig::new(method, rank, &["layer"]).with_alpha(7.0 * rank as f64 / RANK_OF_FILES as f64)
}

fn attach_layer(config: &AdapterConfig) -> Attached<Layer> {
    config.attach(base().layer(&Device::flex().autodiff()), &AttachOptions::default()).unwrap()
}

/// The layer with these trained values by their short names.
fn with_factors(attached: Attached<Layer>, factors: &[(&str, HostTensor)]) -> Attached<Layer> {
    let method = attached.state.config.method();
    let named = factors.iter().map(|(name, tensor)| (format!("layer.{method}.{name}"), tensor.clone()));
    with_values(attached, &named.collect())
}

fn output(attached: &Attached<Layer>) -> Tensor<2> {
    let layer = &attached.model.layer;
    sorsa_adapter::project(layer, base().get("x").to_tensor(&layer.weight.base().device())).inner()
}

/// Output, loss, gradient of the input and merged weight of the layer with trained values are those of `file`.
fn assert_step(trained: &Attached<Layer>, file: &Reference, what: &str) -> [Step; 2] {
    let (x, t) = (base().get("x"), base().get("t"));
    let steps = [false, true].map(|dense| {
        let step = Step::run(Attached { modules: trained.modules.clone(), ..again(trained) }, &x, &t, dense);
        let what = format!("{what}, {}", if dense { "dense" } else { "factored" });
        assert_same(step.y.clone(), &file.get("y"), &format!("{what}: y"));
        assert!((step.loss - file.get("loss").values[0]).abs() < 1e-5, "{what}: loss {}", step.loss);
        assert_gradient(step.of_x.clone(), &file.get("grad_x"), &format!("{what}: gradient of x"));
        step
    });
    let (merged, _) = again(trained).merge();
    assert_same(merged.layer.weight.val().inner(), &file.turned("W_merged"), &format!("{what}: merged"));
    steps
}

fn again(attached: &Attached<Layer>) -> Attached<Layer> {
    let (state, trainable, modules) = (attached.state.clone(), attached.trainable.clone(), attached.modules.clone());
    Attached { model: attached.model.clone(), state, trainable, modules }
}

#[test]
fn kasa_is_that_of_peft() {
    let (file, meta) = (Reference::read(&file("kasa.safetensors")), json(&file("meta.json")));
    let weights = KasaConfig { beta: meta["beta"].as_f64().unwrap(), gamma: meta["gamma"].as_f64().unwrap() };
    let fresh = attach_layer(&layer_config(weights, RANK_OF_FILES));
    // PEFT decomposes in f32.
    assert_same(output(&fresh), &file.get("y_init"), "y at the start");
    let weight = &fresh.model.layer.weight;
    let truncated = weight.reparameterization::<Adapter>().unwrap().compose(weight.base()).inner();
    assert_same(truncated, &file.turned("W_base_after_init"), "the weight without its minor components");

    let factors = [("a", file.turned("A")), ("s", file.get("s")), ("b", file.turned("B"))];
    let trained = with_factors(fresh, &factors);
    for step in assert_step(&trained, &file, "KaSA") {
        assert_gradient(step.of::<2>("a"), &file.turned("grad_A"), "gradient of A");
        assert_gradient(step.of::<1>("s"), &file.get("grad_s"), "gradient of s");
        assert_gradient(step.of::<2>("b"), &file.turned("grad_B"), "gradient of B");
    }
    // The terms that KaSA adds to the loss.
    let mut gradients = GradientsParams::new();
    add_penalties(&trained.model, &trained.state.config, &trained.trainable, &mut gradients);
    assert_eq!(gradients.len(), 3);
    for parameter in &trained.trainable {
        let name = parameter.name.rsplit('.').next().unwrap();
        match name {
            "s" => assert_gradient(gradients.get::<1>(parameter.id).unwrap(), &file.get("penalty_grad_s"), name),
            _ => {
                let expected = file.turned(&format!("penalty_grad_{}", name.to_uppercase()));
                assert_gradient(gradients.get::<2>(parameter.id).unwrap(), &expected, name);
            }
        }
    }
}

#[test]
fn penalties_are_added_to_gradients_that_there_are_and_no_weight_means_none() {
    let none = attach_layer(&layer_config(KasaConfig { beta: 0.0, gamma: 0.0 }, RANK_OF_FILES));
    let mut gradients = GradientsParams::new();
    add_penalties(&none.model, &none.state.config, &none.trainable, &mut gradients);
    assert!(gradients.is_empty());
    let only = attach_layer(&layer_config(KasaConfig { beta: 0.5, gamma: 0.0 }, RANK_OF_FILES));
    let s = only.trainable.iter().find(|parameter| parameter.name.ends_with(".s")).unwrap();
    let value = only.snapshot().trained["layer.kasa.s"].to_tensor::<1>(&Device::flex());
    gradients.register::<1>(s.id, value.ones_like());
    add_penalties(&only.model, &only.state.config, &only.trainable, &mut gradients);
    assert_eq!(gradients.len(), 1);
    // 1 + 2 * 0.5 s.
    assert_near(gradients.get::<1>(s.id).unwrap(), value.clone() + 1.0, "sum");
    // B = 0 is no direction, and no NaN.
    let zero = attach_layer(&layer_config(KasaConfig { beta: 0.0, gamma: 1.0 }, RANK_OF_FILES));
    let mut gradients = GradientsParams::new();
    add_penalties(&zero.model, &zero.state.config, &zero.trainable, &mut gradients);
    let b = zero.trainable.iter().find(|parameter| parameter.name.ends_with(".b")).unwrap();
    assert_eq!(largest(gradients.get::<2>(b.id).unwrap()), 0.0);
    // Methods without terms of their own get none.
    for method in factored().filter(|method| *method != Method::Kasa) {
        let attached = attach(&config(method), &device());
        let mut gradients = GradientsParams::new();
        add_penalties(&attached.model, &attached.state.config, &attached.trainable, &mut gradients);
        assert!(gradients.is_empty(), "{method}");
    }
}

/// The sign that each row of `found` has beside the same row of `expected`, which is the same vector otherwise.
fn row_signs(found: &HostTensor, expected: &HostTensor, what: &str) -> Vec<f32> {
    assert_eq!(found.shape, expected.shape, "{what}");
    let width = found.shape[1];
    let pairs = found.values.chunks_exact(width).zip(expected.values.chunks_exact(width));
    let sign = |(found, expected): (&[f32], &[f32])| {
        let sign = found.iter().zip(expected).map(|(a, b)| a * b).sum::<f32>().signum();
        for (a, b) in found.iter().zip(expected) {
            assert!((a - sign * b).abs() < 1e-5, "{what}: {found:?}, expected {expected:?}");
        }
        sign
    };
    pairs.map(sign).collect()
}

/// A matrix with its columns multiplied by signs.
fn columns_times(matrix: &HostTensor, signs: &[f32]) -> HostTensor {
    let values = matrix.values.iter().enumerate().map(|(i, value)| value * signs[i % signs.len()]).collect();
    HostTensor::new(matrix.shape.clone(), values)
}

#[test]
fn mica_is_that_of_peft() {
    let file = Reference::read(&file("mica.safetensors"));
    let fresh = attach_layer(&layer_config(Method::Mica, RANK_OF_FILES));
    assert_same(output(&fresh), &file.get("y_init"), "y at the start");
    let (a, _, b) = fresh.model.layer.weight.reparameterization::<Adapter>().unwrap().parts();
    assert_eq!(largest(a), 0.0);
    let signs = row_signs(&HostTensor::from_tensor(b), &file.turned("B"), "the frozen factor");
    let trained = with_factors(fresh, &[("a", columns_times(&file.turned("A"), &signs))]);
    for step in assert_step(&trained, &file, "MiCA") {
        let expected = columns_times(&file.turned("grad_A"), &signs);
        assert_gradient(step.of::<2>("a"), &expected, "gradient of A");
    }
}

#[test]
fn svft_is_that_of_its_paper() {
    for diagonals in [1, 3, 4] {
        let file = Reference::read(&file(&format!("svft_{diagonals}.safetensors")));
        let fresh = attach_layer(&layer_config(Method::Svft, diagonals));
        assert_same(output(&fresh), &base().get("y_base"), "y at the start");
        // Burn's U is PyTorch's V.
        let saved = fresh.state.initial["layer.svft.vt"].clone();
        let signs = row_signs(&saved, &file.turned("U"), "the bases");
        let side = signs.len();
        let below = (diagonals - 1) / 2;
        // Row i of the diagonals has the elements of row i of M, which is the transpose of PyTorch's.
        let banded = |name: &str| {
            let (matrix, signs) = (file.turned(name), &signs);
            let element = |i: usize, index: usize| match (i + index).checked_sub(below) {
                Some(j) if j < side => matrix.values[i * side + j] * signs[i] * signs[j],
                _ => 0.0,
            };
            let values = (0..side).flat_map(|i| (0..diagonals).map(move |index| element(i, index)));
            HostTensor::new([side, diagonals], values.collect())
        };
        let trained = with_factors(fresh, &[("diagonals", banded("M"))]);
        for step in assert_step(&trained, &file, "SVFT") {
            assert_gradient(step.of::<2>("diagonals"), &banded("grad_M"), "gradient of M");
        }
    }
}

/// The gradient of the file.
struct GradientOfFile;

impl WeightGradients for GradientOfFile {
    fn mean(&self, targets: &[Target], batches: usize) -> Result<BTreeMap<String, HostTensor>, AdapterError> {
        assert_eq!((targets.len(), batches), (1, 5));
        let gradient = Reference::read(&file("lora_ga.safetensors")).turned("gradient");
        Ok([(targets[0].path.clone(), gradient)].into())
    }
}

#[test]
fn lora_ga_starts_like_its_paper_says() {
    let file = Reference::read(&file("lora_ga.safetensors"));
    let method = LoraGaConfig { gradient_batches: 5, ..LoraGaConfig::default() };
    let options = AttachOptions { gradients: Some(&GradientOfFile), ..AttachOptions::default() };
    let attached = layer_config(method, RANK_OF_FILES).attach(base().layer(&Device::flex()), &options).unwrap();
    assert_same(output(&attached), &base().get("y_base"), "y at the start");
    let (a, _, b) = attached.model.layer.weight.reparameterization::<Adapter>().unwrap().parts();
    let transposed = HostTensor::from_tensor(a.transpose());
    row_signs(&transposed, &file.get("A_init"), "A");
    row_signs(&HostTensor::from_tensor(b), &file.turned("B_init"), "B");
}

#[test]
fn every_factored_method_but_svft_is_an_exact_lora_for_peft() {
    let device = device();
    let export = PeftExport::default();
    for method in factored().filter(|method| *method != Method::Dora) {
        for config in [config(method), config(method).with_alpha(10.0)] {
            let adapted = disturbed(attach(&config, &device));
            let saved = adapted.snapshot();
            if method == Method::Svft {
                let error = PeftAdapter::from_saved(&saved, &Net::new(&device), &export).unwrap_err().to_string();
                assert!(error.contains("full rank") && error.contains("merge the adapter"), "{error}");
                let approximate = PeftExport { rank: Some(9), ..PeftExport::default() };
                let (_, lost) = PeftAdapter::from_saved(&saved, &Net::new(&device), &approximate).unwrap();
                assert!(lost[1].relative_error < 1e-5, "the smaller side is the whole rank");
                continue;
            }
            let (peft, _) = PeftAdapter::from_saved(&saved, &Net::new(&device), &export).unwrap();
            assert!([RANK, 2 * RANK].contains(&peft.config.rank), "{method}");
            let lora = peft.attachable(&Net::new(&device), &Default::default()).unwrap();
            let lora = lora.attach(Net::new(&device)).unwrap();
            assert_near(lora.model.forward(input(&device)), adapted.model.forward(input(&device)), &method.to_string());
        }
    }
}

#[test]
fn peft_cannot_make_the_start_of_lora_ga_again() {
    let saved = attach(&config(Method::LoraGa), &device()).snapshot();
    let as_trained = PeftExport { form: PeftForm::AsTrained, ..PeftExport::default() };
    let error = PeftAdapter::from_saved(&saved, &Net::new(&device()), &as_trained).unwrap_err().to_string();
    assert!(error.contains("PEFT knows no decomposition of the weights that gives the start again"), "{error}");
}

#[test]
fn the_methods_keep_their_frozen_parts_with_the_start_and_refuse_one_without() {
    let device = device();
    for (method, factor) in [(Method::Kasa, "minor_a"), (Method::Mica, "b"), (Method::Svft, "vt")] {
        let adapted = disturbed(attach(&config(method).with_alpha(6.0), &device));
        let mut saved = adapted.snapshot();
        let kept: &NamedTensors = &saved.state.initial;
        assert!(kept.keys().all(|name| !saved.trained.contains_key(name)), "{method}");
        let again = saved.attach(Net::new(&device)).unwrap();
        assert_near(again.model.forward(input(&device)), adapted.model.forward(input(&device)), &method.to_string());
        saved.state.initial.remove(&format!("second.{method}.{factor}"));
        let error = saved.attach(Net::new(&device)).unwrap_err().to_string();
        assert!(error.contains(&format!("at the start, `second.{method}.{factor}` is missing")), "{error}");
    }
}
