//! Speed of greedy generation, beside `tests/interop/generate_speed.py`, which does the same with Transformers.
//!
//! ```text
//! cargo run --release --workspace --example generate_speed -- [S|FOLDER] [batch] [f32|bf16] [new tokens] [prompt tokens]
//! ```
//!
//! `S` is a random Llama of width 288, 6 layers, 6 heads, feed-forward 768, vocabulary 32,000. One line of JSON: tokens/s of the
//! best of three runs, after one that is not counted, each with its prefill; CPU seconds are of all three, and of Linux.

use std::path::Path;
use std::time::Instant;

use burn::module::{Module, ModuleMapper, Param};
use burn::prelude::*;
use burn::tensor::FloatDType;
use serde_json::json;
use sorsa_models::{CausalLm, GenerateOptions, ModelConfig, Sampling, WeightFormat, float_dtype};

/// What the binary allocates with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RUNS: usize = 3;

/// Matrices in another dtype.
struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if D == 2 { param.map(|weight| weight.cast(self.0)) } else { param }
    }
}

fn model(name: &str, format: WeightFormat) -> CausalLm {
    let device = Device::flex();
    if name != "S" {
        return CausalLm::load(Path::new(name), format, &device).expect("a model");
    }
    let config = json!({
        "model_type": "llama",
        "hidden_size": 288,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    });
    let config = ModelConfig::parse(config.as_object().expect("an object").clone()).expect("a configuration");
    device.seed(1);
    CausalLm::init(&config, &device).map(&mut Cast(float_dtype(format).expect("a format that models compute with")))
}

/// CPU seconds of this process so far: fields 14 and 15, in hundredths of a second.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: Option<Vec<f64>> = fields.split_whitespace().skip(11).take(2).map(|field| field.parse().ok()).collect();
    Some(ticks?.iter().sum::<f64>() / 100.0)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, default: &'static str| arguments.get(index).map_or(default, String::as_str);
    let number = |index: usize, default| argument(index, default).parse::<usize>().expect("a number");
    let format = match argument(2, "f32") {
        "f32" => WeightFormat::F32,
        "bf16" => WeightFormat::Bf16,
        other => panic!("unknown dtype {other}: f32 or bf16"),
    };
    let (batch, new, prompt) = (number(1, "1"), number(3, "128"), number(4, "32"));
    let model = model(argument(0, "S"), format);
    let vocabulary = model.config().vocab_size;
    let prompts: Vec<Vec<u32>> = (0..batch)
        .map(|row| (0..prompt).map(|i| ((row * 31 + i * 7 + 1) * 7919 % vocabulary) as u32).collect())
        .collect();
    let options = GenerateOptions { max_new_tokens: new, sampling: Sampling::Greedy, stop: Vec::new() };
    let run = || {
        let start = Instant::now();
        let results = model.generate(&prompts, &options, |_, _| ()).expect("prompts that fit");
        let tokens: usize = results.iter().map(|result| result.ids.len()).sum();
        (tokens as f64 / start.elapsed().as_secs_f64(), tokens, results)
    };
    run();
    let start = cpu_seconds();
    let runs: Vec<_> = (0..RUNS).map(|_| run()).collect();
    let cpu = start.zip(cpu_seconds()).map(|(start, end)| end - start);
    let tokens: usize = runs.iter().map(|run| run.1).sum();
    println!(
        "{}",
        json!({
            "model": argument(0, "S"),
            "weights": argument(2, "f32"),
            "batch": batch,
            "new_tokens": new,
            "prompt_tokens": prompt,
            "tokens_per_s": runs.iter().map(|run| run.0).fold(0.0, f64::max).round(),
            "cpu_ms_per_token": cpu.map(|cpu| (cpu * 1e5 / tokens as f64).round() / 100.0),
            "first_ids": &runs[0].2[0].ids[..8.min(new)],
        })
    );
}
