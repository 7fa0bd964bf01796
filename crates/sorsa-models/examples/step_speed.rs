//! Speed and memory of the training step of a random Llama, with the fused operations of `sorsa-ops` or without.
//!
//! ```text
//! cargo run --release --workspace --example step_speed -- [S|S8|L] [sorsa|lora|full] [fused|plain] [steps] [f32|bf16]
//! ```
//!
//! One configuration a process, since the peak of memory is the process's; one line of JSON on standard output. CPU
//! seconds and peak are of the timed steps, and of Linux; elsewhere they are null. Compare runs that alternate on a quiet machine.

use std::time::Instant;

use burn::module::{ModuleMapper, Param};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::prelude::*;
use burn::tensor::FloatDType;
use serde_json::{Value, json};
use sorsa_adapter::{AdapterConfig, Method, RegularizerForm, add_regularizer};
use sorsa_models::{CausalLm, ModelConfig, ModelInput};

/// What the binary allocates with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Steps that are not timed.
const WARM_UP: usize = 3;
const SEQ: usize = 256;
const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Width, layers, heads, width of the feed-forward layers, vocabulary, sequences of a batch.
fn sizes(shape: &str) -> [usize; 6] {
    match shape {
        "S" => [288, 6, 6, 768, 32_000, 4],
        "S8" => [288, 6, 6, 768, 8192, 4],
        "L" => [768, 12, 12, 2048, 32_000, 1],
        other => panic!("unknown shape {other}: S, S8 or L"),
    }
}

/// Matrices in bf16.
struct Narrow;

impl ModuleMapper for Narrow {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if D == 2 { param.map(|weight| weight.cast(FloatDType::BF16)) } else { param }
    }
}

fn model([width, layers, heads, ffn, vocabulary, _]: [usize; 6], device: &Device) -> CausalLm {
    let config = json!({
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": SEQ,
        "rms_norm_eps": 1e-5,
    });
    let config = ModelConfig::parse(config.as_object().expect("an object").clone()).expect("a configuration");
    CausalLm::init(&config, device)
}

/// CPU seconds of this process so far, user and system: fields 14 and 15, in hundredths of a second.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: Option<Vec<f64>> = fields.split_whitespace().skip(11).take(2).map(|field| field.parse().ok()).collect();
    Some(ticks?.iter().sum::<f64>() / 100.0)
}

fn peak_megabytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?;
    Some((kib.parse::<f64>().ok()? * 1.024e-3).round())
}

fn run(shape: &str, method: Method, steps: usize, bf16: bool) -> Value {
    let sizes = sizes(shape);
    let [_, _, _, _, vocabulary, batch] = sizes;
    let device = Device::flex().autodiff();
    device.seed(1);
    let config = AdapterConfig::new(method, 16, &TARGETS);
    let base = model(sizes, &device);
    let base = if bf16 { base.map(&mut Narrow) } else { base };
    let attached = config.attach(base, &Default::default()).unwrap();
    let (mut model, trainable) = (attached.model, attached.trainable);
    let mut optimizer: ModuleOptimizer = AdamWConfig::new().with_weight_decay(0.0).init();

    let tokens = batch * SEQ;
    let ids: Vec<i32> = (0..tokens).map(|i| (i * 7919 % vocabulary) as i32).collect();
    let targets: Vec<i32> = (1..=tokens).map(|i| (i * 7919 % vocabulary) as i32).collect();
    let positions: Vec<i32> = (0..tokens).map(|i| (i % SEQ) as i32).collect();
    let segments = vec![1; tokens];
    let input = ModelInput { rows: batch, len: SEQ, input_ids: &ids, positions: &positions, segments: &segments };

    let mut losses = Vec::new();
    let mut start = (Instant::now(), cpu_seconds());
    let mut before_peak = None;
    for step in 0..WARM_UP + steps {
        if step == WARM_UP {
            before_peak = peak_megabytes();
            // The peak so far may be that of making the weights; Linux can be told to begin anew.
            let _ = std::fs::write("/proc/self/clear_refs", "5");
            start = (Instant::now(), cpu_seconds());
        }
        let loss = model.loss_sum(&input, &targets).unwrap() / tokens as f64;
        losses.push(loss.clone().into_scalar::<f32>());
        let mut gradients = GradientsParams::from_grads(loss.backward(), &model);
        if method == Method::Sorsa {
            add_regularizer(&model, &trainable, RegularizerForm::Paper, 1e-4, &mut gradients);
        }
        model = optimizer.step(1e-4, model, gradients);
    }
    let seconds = start.0.elapsed().as_secs_f64();
    let cpu = start.1.zip(cpu_seconds()).map(|(start, end)| (end - start) / steps as f64);
    let rounded = |value: f64, digits: f64| (value * digits).round() / digits;
    json!({
        "shape": shape,
        "method": method.to_string(),
        "tokens_per_s": rounded((tokens * steps) as f64 / seconds, 1.0),
        "cpu_seconds_per_step": cpu.map(|cpu| rounded(cpu, 1000.0)),
        "peak_megabytes": peak_megabytes(),
        "peak_megabytes_before": before_peak,
        "steps": steps,
        "first_loss": losses[0],
        "last_loss": losses[losses.len() - 1],
    })
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, default: &'static str| arguments.get(index).map_or(default, String::as_str);
    let (shape, form) = (argument(0, "S"), argument(2, "fused"));
    let method: Method = argument(1, "sorsa").parse().unwrap();
    let steps: usize = argument(3, "10").parse().unwrap();
    let bf16 = match argument(4, "f32") {
        "f32" => false,
        "bf16" => true,
        other => panic!("unknown dtype {other}: f32 or bf16"),
    };
    let mut line = match form {
        "fused" => run(shape, method, steps, bf16),
        "plain" => sorsa_ops::without_fused(|| run(shape, method, steps, bf16)),
        other => panic!("unknown form {other}: fused or plain"),
    };
    line["form"] = json!(form);
    line["weights"] = json!(argument(4, "f32"));
    println!("{line}");
}
