//! Logits of models whose weights are packed in their files, beside those of Transformers on the widened weights: `tests/golden/quantized_bases`.

use std::path::Path;

use burn::prelude::*;
use serde_json::Value;
use sorsa_models::{CausalLm, ModelInput, WeightFormat};

fn numbers<T>(list: &Value, number: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    list.as_array().unwrap().iter().map(|value| number(value).unwrap()).collect()
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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quantized_bases");
    let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    for (name, expected) in expected.as_object().unwrap() {
        let path = folder.join(name);
        let path = if path.is_dir() { path } else { folder.join(format!("{name}.gguf")) };
        let [difference, largest] = largest_difference(&path, expected, WeightFormat::F32);
        assert!(difference <= 1e-5 * largest.max(1.0), "{name}: {difference}, the largest logit is {largest}");
        let [difference, _] = largest_difference(&path, expected, WeightFormat::Bf16);
        assert!(difference <= 3e-2 * largest.max(1.0), "{name} in bf16: {difference}, the largest logit is {largest}");
    }
}
