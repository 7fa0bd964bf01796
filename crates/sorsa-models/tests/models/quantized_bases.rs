//! Logits of models whose weights are packed in their files, beside those of Transformers on the widened weights: `tests/golden/quantized_bases`.

use std::path::{Path, PathBuf};

use burn::module::{ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use serde_json::Value;
use sorsa_adapter::{AdapterConfig, Method};
use sorsa_models::{ActivationFormat, CausalLm, ModelInput, Pass, WeightFormat};
use sorsa_ops::without_fused;

fn numbers<T>(list: &Value, number: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    list.as_array().unwrap().iter().map(|value| number(value).unwrap()).collect()
}

/// The folder or file of a model.
fn golden(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quantized_bases");
    let path = folder.join(name);
    if path.exists() { path } else { folder.join(format!("{name}.gguf")) }
}

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(golden("expected.json")).unwrap()).unwrap()
}

/// The largest difference of a logit, and the largest logit.
fn largest_difference(path: &Path, expected: &Value, format: WeightFormat) -> [f32; 2] {
    let model = CausalLm::load(path, format, &Device::flex()).unwrap();
    let input_ids: Vec<i32> =
        numbers(&expected["input_ids"], |id| id.as_i64()).into_iter().map(|id| id as i32).collect();
    let len = input_ids.len();
    let positions: Vec<i32> = (0..len as i32).collect();
    let segments = vec![1; len];
    let input = ModelInput { rows: 1, len, input_ids: &input_ids, positions: &positions, segments: &segments };
    let found = model.logits(model.hidden(&input)).into_data().try_into_vec::<f32>().unwrap();
    let expected: Vec<f64> =
        expected["logits"].as_array().unwrap().iter().flat_map(|row| numbers(row, Value::as_f64)).collect();
    assert_eq!(found.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0f64, f64::max) as f32;
    let difference = largest(&mut found.iter().zip(&expected).map(|(a, b)| {
        assert!(a.is_finite());
        (f64::from(*a) - b).abs()
    }));
    [difference, largest(&mut expected.iter().map(|logit| logit.abs()))]
}

#[test]
fn logits_of_packed_models_are_those_of_transformers() {
    for (name, expected) in expected().as_object().unwrap() {
        let path = golden(name);
        let [difference, largest] = largest_difference(&path, expected, WeightFormat::F32);
        assert!(difference <= 1e-5 * largest.max(1.0), "{name}: {difference}, the largest logit is {largest}");
        let [difference, _] = largest_difference(&path, expected, WeightFormat::Bf16);
        assert!(difference <= 3e-2 * largest.max(1.0), "{name} in bf16: {difference}, the largest logit is {largest}");
    }
}

/// The loss, and the gradients in the order of the parameters.
fn loss_and_gradients(model: &CausalLm) -> (f32, Vec<f32>) {
    struct OnHost<'a>(&'a GradientsParams, Vec<f32>);
    impl ModuleVisitor for OnHost<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let gradient = self.0.get::<D>(param.id);
            self.1.extend(gradient.into_iter().flat_map(|found| found.into_data().try_into_vec::<f32>().unwrap()));
        }
    }
    let (ids, positions, targets) = ([1, 5, 2, 7, 3, 1], [0, 1, 2, 3, 4, 5], [5, 2, 7, -100, 1, 4]);
    let input = ModelInput { rows: 1, len: 6, input_ids: &ids, positions: &positions, segments: &[1; 6] };
    let pass = Pass { divisor: 5.0, seed: 1, checkpoint_blocks: false, activations: ActivationFormat::F32 };
    let (loss, gradients) = model.loss_gradients(&input, &targets, &pass).unwrap();
    let mut found = OnHost(&gradients, Vec::new());
    model.visit(&mut found);
    (loss.into_scalar::<f32>(), found.1)
}

#[test]
fn plain_forms_train_beside_packed_weights_like_fused_ones() {
    for name in expected().as_object().unwrap().keys() {
        let base = CausalLm::load(&golden(name), WeightFormat::F32, &Device::flex()).unwrap();
        let adapter = AdapterConfig::new(Method::Pissa, 2, &["o_proj", "down_proj"]);
        let model = adapter.attach(base, &Default::default()).unwrap().model.train();
        let (loss, gradients) = loss_and_gradients(&model);
        let (plain_loss, plain) = without_fused(|| loss_and_gradients(&model));
        assert!((loss - plain_loss).abs() < 1e-5 * loss, "{name}: {loss} and {plain_loss}");
        let size = gradients.iter().fold(0f32, |size, value| size.max(value.abs()));
        assert!(gradients.len() == plain.len() && size > 0.0, "{name}");
        let far = gradients.iter().zip(&plain).fold(0f32, |far, (a, b)| far.max((a - b).abs()));
        assert!(far < 1e-4 * size, "{name}: {far} of {size}");
    }
}
