//! Gradients with respect to dense weights beside those of PyTorch, of the Llama in `tests/golden/llama`.

use std::path::Path;
use std::sync::Arc;

use burn::prelude::*;
use safetensors::SafeTensors;
use sorsa_adapter::{AdapterConfig, AttachOptions, LoraGaConfig, Method, WeightGradients};
use sorsa_data::{BatchOptions, Batcher, Example};
use sorsa_models::{CausalLm, WeightFormat};
use sorsa_train::BatchGradients;

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama")
}

fn model() -> CausalLm {
    CausalLm::load(&folder().join("checkpoint"), WeightFormat::F32, &Device::flex()).unwrap()
}

/// The rows of the batch, in a batch of its own each.
fn data() -> Batcher {
    let bytes = std::fs::read(folder().join("io.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ints = |name: &str| -> Vec<i64> {
        file.tensor(name).unwrap().data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
    };
    let (ids, mask, labels) = (ints("input_ids"), ints("attention_mask"), ints("labels"));
    let row = |row: usize| {
        let visible: Vec<usize> = (9 * row..9 * (row + 1)).filter(|index| mask[*index] == 1).collect();
        Example {
            ids: visible.iter().map(|index| ids[*index] as u32).collect(),
            target_mask: visible.iter().map(|index| labels[*index] >= 0).collect(),
            row,
            truncated: false,
        }
    };
    let options = BatchOptions { batch_size: 1, shuffle: false, ..BatchOptions::default() };
    Batcher::new(Arc::new((0..2).map(row).collect()), options).unwrap()
}

#[test]
fn the_gradient_of_every_linear_weight_is_that_of_pytorch_and_none_is_left_out() {
    let (model, data) = (model(), data());
    let expected = std::fs::read(folder().join("grads.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let targets = AdapterConfig::new(Method::LoraGa, 2, &["all-linear"]).targets(&model).unwrap();
    for checkpoint_blocks in [false, true] {
        let gradients = BatchGradients { model: &model, data: &data, checkpoint_blocks };
        let found = gradients.mean(&targets, 2).unwrap();
        assert_eq!(found.len(), 14);
        for (path, found) in &found {
            let view = expected.tensor(&format!("{path}.weight")).unwrap();
            let values: Vec<f32> = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let [d_in, d_out] = found.shape[..] else { panic!("{path}: {:?}", found.shape) };
            assert_eq!(view.shape(), [d_out, d_in], "{path}");
            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (i, value) in found.values.iter().enumerate() {
                let expected = values[i % d_out * d_in + i / d_out];
                assert!((value - expected).abs() <= 1e-4 * largest, "{path} {i}: {value}, expected {expected}");
            }
        }
    }
}

#[test]
fn a_language_model_starts_from_its_gradients_and_keeps_its_loss() {
    let (model, data) = (model(), data());
    let loss = |model: &CausalLm| sorsa_train::mean_loss(model, &data);
    let before = loss(&model);
    let gradients = BatchGradients { model: &model, data: &data, checkpoint_blocks: false };
    let options = AttachOptions { gradients: Some(&gradients), ..AttachOptions::default() };
    let config = AdapterConfig::new(LoraGaConfig::default(), 4, &["all-linear"]).with_alpha(8.0);
    let attached = config.attach(model.clone(), &options).unwrap();
    assert!((loss(&attached.model) - before).abs() < 1e-5, "{before}");
    assert_eq!(attached.trainable.len(), 28);
}
