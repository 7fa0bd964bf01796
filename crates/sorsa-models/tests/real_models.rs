//! Adapters on two small models that were trained. Runs where `SORSA_DATA` names the folder that holds them under
//! `models/`.

use std::path::PathBuf;

use burn::prelude::*;
use burn::tensor::{Distribution, FloatDType};
use sorsa_adapter::{AdapterConfig, HostTensor, Method, export_trainable, import_trainable};
use sorsa_models::{CausalLm, ModelInput};

/// Largest difference of a logit, relative to the largest logit.
const CLOSE: f32 = 1e-4;

fn models() -> Vec<PathBuf> {
    let Some(data) = std::env::var_os("SORSA_DATA") else {
        eprintln!("SORSA_DATA is not set: no models to try");
        return Vec::new();
    };
    ["stories260K", "babyllama105"].map(|name| PathBuf::from(&data).join("models").join(name)).to_vec()
}

/// Logits after 60 arbitrary tokens.
fn logits(model: &CausalLm) -> Vec<f32> {
    let len = 60;
    let input_ids: Vec<i32> = (0..len).map(|i| 3 + i * 37 % 101).collect();
    let (positions, segments) = ((0..len).collect::<Vec<i32>>(), vec![1; len as usize]);
    let input =
        ModelInput { rows: 1, len: len as usize, input_ids: &input_ids, positions: &positions, segments: &segments };
    model.logits(model.hidden(&input)).into_data().try_into_vec::<f32>().unwrap()
}

/// The largest difference, relative to the largest element.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    found.iter().zip(expected).fold(0f32, |worst, (f, e)| worst.max((f - e).abs())) / largest
}

#[test]
fn attaching_changes_no_logit_and_merging_keeps_those_of_trained_factors() {
    let device = Device::flex();
    for folder in models() {
        let load = || CausalLm::load(&folder, FloatDType::F32, &device).unwrap();
        let base = logits(&load());
        for method in Method::ALL {
            let config = AdapterConfig::new(method, 8, &["all-linear"]).with_alpha(12.0);
            let mut attached = config.attach(load(), &Default::default()).unwrap();
            let name = format!("{method} on {}", folder.display());
            let start = distance(&logits(&attached.model), &base);
            assert!(start <= CLOSE, "attaching {name}: {start}");

            let mut factors = export_trainable(&attached.model, &attached.trainable);
            for _ in 0..3 {
                for tensor in factors.values_mut() {
                    let noise = Tensor::<1>::random([tensor.values.len()], Distribution::Normal(0.0, 0.02), &device);
                    let noise = HostTensor::from_tensor(noise).values;
                    tensor.values.iter_mut().zip(noise).for_each(|(value, noise)| *value += noise);
                }
            }
            attached.model = import_trainable(attached.model, &attached.trainable, &factors, &folder).unwrap();
            let trained = logits(&attached.model);
            assert!(distance(&trained, &base) > 100.0 * CLOSE, "{name}: the factors do nothing");
            let (merged, _) = attached.merge();
            let end = distance(&logits(&merged), &trained);
            assert!(end <= CLOSE, "merging {name}: {end}");
        }
    }
}
