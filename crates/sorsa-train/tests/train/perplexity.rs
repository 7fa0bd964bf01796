//! Perplexities of two small trained models on real stories. Runs if `SORSA_DATA` names the folder that holds
//! `models/` and `text/`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use sorsa_data::{BatchOptions, Batcher, Example, TextTokenizer};
use sorsa_models::{CausalLm, WeightFormat};
use sorsa_train::mean_loss;

/// Per token over the first stories, each after the begin token and cut to the context. The known numbers are of 200.
fn perplexity(data: &Path, name: &str, stories: usize) -> f64 {
    let folder = data.join("models").join(name);
    let model = CausalLm::load(&folder, WeightFormat::F32, &Device::flex()).unwrap();
    let tokenizer = TextTokenizer::from_dir(&folder).unwrap();
    let text = std::fs::read_to_string(data.join("text/tinystories_sample.jsonl")).unwrap();
    let example = |(row, line): (usize, &str)| {
        let story: serde_json::Value = serde_json::from_str(line).unwrap();
        let mut ids = vec![tokenizer.bos().unwrap()];
        ids.extend(tokenizer.encode(story["text"].as_str().unwrap()).unwrap());
        ids.truncate(model.config().max_position_embeddings);
        Example { target_mask: vec![true; ids.len()], ids, row, truncated: false }
    };
    let examples: Vec<Example> = text.lines().take(stories).enumerate().map(example).collect();
    let options = BatchOptions { batch_size: 16, shuffle: false, bucket: stories, ..BatchOptions::default() };
    mean_loss(&model, &Batcher::new(Arc::new(examples), options).unwrap()).exp()
}

#[test]
fn perplexities_are_the_known_ones_to_one_per_cent() {
    let Some(data) = std::env::var_os("SORSA_DATA").map(PathBuf::from) else {
        eprintln!("SORSA_DATA is not set: no models to try");
        return;
    };
    for (name, expected) in [("stories260K", 4.38), ("babyllama105", 2.12)] {
        let found = perplexity(&data, name, 200);
        assert!((found / expected - 1.0).abs() < 0.01, "{name}: {found}, expected {expected}");
    }
}
