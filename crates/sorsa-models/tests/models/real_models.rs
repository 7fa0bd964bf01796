//! Two small trained Llamas. Runs where `SORSA_DATA` names the folder that holds `models/`.

use std::path::PathBuf;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::prelude::*;
use burn::tensor::Distribution;
use sorsa_adapter::{AdapterConfig, Method};
use sorsa_models::{CausalLm, GenerateOptions, ModelInput, Sampling, WeightFormat};
use tokenizers::Tokenizer;

use crate::common::larger::larger;

const MODELS: [&str; 2] = ["stories260K", "babyllama105"];

fn models() -> Option<PathBuf> {
    let folder = std::env::var_os("SORSA_DATA").map(|data| PathBuf::from(data).join("models"));
    if folder.is_none() {
        eprintln!("SORSA_DATA is not set: no models to try");
    }
    folder
}

fn load(folder: PathBuf) -> CausalLm {
    CausalLm::load(&folder, WeightFormat::F32, &Device::flex()).unwrap()
}

/// Logits of two rows of arbitrary tokens.
fn logits(model: &CausalLm) -> Vec<f32> {
    let (rows, len) = (2, 40);
    let input_ids: Vec<i32> = (0..rows * len).map(|i| (i * 37 % 100) as i32).collect();
    let positions: Vec<i32> = (0..rows * len).map(|i| (i % len) as i32).collect();
    let segments = vec![1; rows * len];
    let input = ModelInput { rows, len, input_ids: &input_ids, positions: &positions, segments: &segments };
    model.logits(model.hidden(&input)).into_data().try_into_vec::<f32>().unwrap()
}

#[track_caller]
fn assert_same(found: &[f32], expected: &[f32], what: &str) {
    let largest = expected.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
    let difference = found.iter().zip(expected).fold(0f32, |worst, (a, b)| larger(worst, (a - b).abs()));
    assert!(difference <= 1e-4 * largest, "{what}: logits differ by {difference}, the largest is {largest}");
}

#[test]
fn greedy_text_from_nothing_is_a_story() {
    let Some(models) = models() else { return };
    let folder = models.join("stories260K");
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let options = GenerateOptions { max_new_tokens: 40, sampling: Sampling::Greedy, stop: vec![] };
    let prompt = vec![tokenizer.token_to_id("<s>").unwrap()];
    let generated = load(folder).generate(&[prompt], &options, |_, _| ()).unwrap();
    let text = tokenizer.decode(&generated[0].ids, true).unwrap();
    let expected = "Once upon a time, there was a little girl named Lily. She loved to play outside";
    assert!(text.trim_start().starts_with(expected), "{text}");
}

#[test]
fn attaching_and_merging_change_no_logit() {
    struct Noise(Vec<ParamId>);
    impl ModuleMapper for Noise {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if !self.0.contains(&param.id) {
                return param;
            }
            param.map(|value| value.clone() + value.random_like(Distribution::Normal(0.0, 0.02)))
        }
    }
    let Some(models) = models() else { return };
    for name in MODELS {
        let before = logits(&load(models.join(name)));
        // Gradients need data, and a start that takes something away changes logits.
        let methods = Method::ALL.into_iter().filter(|method| !method.needs_gradients());
        for method in methods {
            let config = AdapterConfig::new(method, 8, &["all-linear"]).with_alpha(16.0);
            let mut attached = config.attach(load(models.join(name)), &Default::default()).unwrap();
            if method.keeps_output() {
                assert_same(&logits(&attached.model), &before, &format!("attached {method} to {name}"));
            }
            let ids = attached.trainable.iter().map(|parameter| parameter.id).collect();
            attached.model = attached.model.map(&mut Noise(ids));
            let trained = logits(&attached.model);
            assert!(trained != before, "{method}: the noise changed nothing");
            let (merged, _) = attached.merge();
            assert_same(&logits(&merged), &trained, &format!("merged {method} into {name}"));
        }
    }
}
