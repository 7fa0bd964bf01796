//! Measures one configuration in this process: the trainer's step on a random Llama and random tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use burn::module::{ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::FloatDType;
use serde::Serialize;
use sorsa_adapter::{AdapterConfig, AttachOptions, Attached, Method, Regularizer, add_regularizer};
use sorsa_data::{BatchOptions, Batcher, Example};
use sorsa_experiment::private_folder;
use sorsa_files::{cpu_seconds, peak_memory_bytes};
use sorsa_kernels::Instructions;
use sorsa_models::{ActivationFormat, CausalLm, WeightFormat, float_dtype};
use sorsa_train::{Optimizer, OptimizerConfig, TrainConfig, Trainer};

use super::args::{Sizes, SpeedArgs};
use super::orthonormality::{regularizer_cpu_seconds, retraction_cpu_seconds};
use crate::device::Backend;
use crate::exit::OrBadInput;

const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Measurements of one process. The fields have the names of those of the PyTorch program that it is compared with.
#[derive(Debug, Serialize)]
pub struct Measurement {
    pub method: Method,
    pub dim: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub ffn: usize,
    pub vocab: usize,
    pub batch: usize,
    pub seq: usize,
    pub rank: usize,
    pub threads: usize,
    pub dtype: &'static str,
    /// Format of packed linear layers; absent if they are dense.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize: Option<String>,
    /// Precision of products with weights in f32.
    pub matmul_precision: &'static str,
    /// Instructions of the CPU's kernels.
    pub instructions: &'static str,
    /// `fused` or `plain` operations.
    pub form: &'static str,
    pub checkpoint_blocks: bool,
    /// Format in which the backward pass gets activations.
    pub activations: ActivationFormat,
    pub backend: Backend,
    pub n_params: usize,
    pub trainable: usize,
    /// Seconds that the random weights take.
    pub load_s: f64,
    /// Seconds that attaching the adapter takes, SVD included.
    pub adapter_init_s: f64,
    pub peak_rss_mb_after_init: Option<f64>,
    #[serde(flatten)]
    pub steps: Option<StepMeasurement>,
    /// Peak of the whole process, in units of 2^20 bytes.
    pub peak_rss_mb: Option<f64>,
    pub load_avg: Option<f64>,
    pub version: &'static str,
}

/// Measurements of the steps after the warm-up.
#[derive(Debug, Serialize)]
pub struct StepMeasurement {
    pub steps: usize,
    pub step_s_median: f64,
    pub step_s_min: f64,
    pub cpu_s_per_step_median: Option<f64>,
    pub cpu_s_per_step_min: Option<f64>,
    pub tokens_per_s_median: f64,
    pub tokens_per_s_best: f64,
    /// Seconds of one evaluation of the regularizer, with gradient and norms.
    pub regularizer_s: Option<f64>,
    /// [`regularizer_s`](Self::regularizer_s) over the median step.
    pub regularizer_share: Option<f64>,
    /// CPU seconds of one evaluation of each form of the regularizer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub regularizer_cpu_s: BTreeMap<String, f64>,
    /// CPU seconds that each retraction adds to a step.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub retraction_cpu_s: BTreeMap<String, f64>,
    pub first_loss: f64,
    pub last_loss: f64,
    /// Peak of the measured steps alone, if the system can reset the peak.
    pub peak_rss_mb_steps: Option<f64>,
}

/// Measures `method` at the sizes of `args` on `device`.
///
/// # Errors
///
/// Bad input if the sizes do not fit together; errors of the trainer.
pub fn measure(args: &SpeedArgs, method: Method, backend: Backend, device: &Device) -> anyhow::Result<Measurement> {
    let body = || measure_form(args, method, backend, device);
    if args.plain { sorsa_ops::without_fused(body) } else { body() }
}

fn measure_form(args: &SpeedArgs, method: Method, backend: Backend, device: &Device) -> anyhow::Result<Measurement> {
    let sizes = args.sizes();
    device.seed(args.seed);
    let clock = Instant::now();
    let config = sizes.config()?;
    let model = match args.quantize {
        Some(packed) => CausalLm::init_packed(&config, packed, args.dtype, device).or_bad_input()?,
        None => materialized(CausalLm::init(&config, device), args.dtype),
    };
    let load_s = clock.elapsed().as_secs_f64();
    let n_params = config.num_parameters();

    let clock = Instant::now();
    let options = AttachOptions { placement: backend.svd_placement(), ..AttachOptions::default() };
    let attached = AdapterConfig::new(method, args.rank, &TARGETS).attach(model, &options).or_bad_input()?;
    let adapter_init_s = clock.elapsed().as_secs_f64();
    let trainable = attached.trainable_parameters();
    let peak_rss_mb_after_init = peak_megabytes();

    let steps = if args.init_only { None } else { Some(steps(args, &sizes, attached)?) };
    let Sizes { dim, layers, heads, kv_heads, ffn, vocab, batch, seq } = sizes;
    Ok(Measurement {
        method,
        dim,
        layers,
        heads,
        kv_heads,
        ffn,
        vocab,
        batch,
        seq,
        rank: args.rank,
        threads: rayon::current_num_threads(),
        dtype: args.dtype.torch_name(),
        quantize: args.quantize.map(|formats| formats.to_string()),
        matmul_precision: args.matmul_precision.name(),
        instructions: Instructions::used().name(),
        form: if args.plain { "plain" } else { "fused" },
        checkpoint_blocks: args.checkpoint_blocks,
        activations: args.activations,
        backend,
        n_params,
        trainable,
        load_s: rounded(load_s),
        adapter_init_s: rounded(adapter_init_s),
        peak_rss_mb_after_init,
        steps,
        peak_rss_mb: peak_megabytes(),
        load_avg: load_average(),
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// Materializes every parameter, so that no measured step does: burn initializes them lazily. Casts the matrices to
/// `format`.
fn materialized(model: CausalLm, format: WeightFormat) -> CausalLm {
    struct Materialize {
        matrices: FloatDType,
    }
    impl ModuleMapper for Materialize {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let matrices = self.matrices;
            param.map(|weight| if D == 2 { weight.cast(matrices) } else { weight })
        }
    }
    model.map(&mut Materialize { matrices: float_dtype(format).unwrap_or(FloatDType::F32) })
}

fn steps(args: &SpeedArgs, sizes: &Sizes, attached: Attached<CausalLm>) -> anyhow::Result<StepMeasurement> {
    let scratch = private_folder(&std::env::temp_dir(), "sorsa-speed-")?;
    let count = args.warmup + args.steps;
    let batcher = batcher(sizes, count, args.seed)?;
    let (method, attached_parameters) = (attached.state.config.method(), attached.trainable.clone());
    let config = TrainConfig {
        batch_size: sizes.batch,
        max_steps: Some(count as u64),
        checkpoint_blocks: args.checkpoint_blocks,
        activations: args.activations,
        optimizer: OptimizerConfig { learning_rate: 1e-4.into(), ..OptimizerConfig::default() },
        ..TrainConfig::default()
    };
    let form = config.regularizer.form;
    let optimizer = Optimizer::new(config.optimizer.clone(), &attached.trainable);
    let mut trainer = Trainer::start(attached, optimizer, batcher, None, config, scratch.path())?;
    let (mut seconds, mut cpu, mut losses) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..count {
        if step == args.warmup {
            // The peak so far may come from the start. Linux can reset it; other systems cannot.
            let _ = std::fs::write("/proc/self/clear_refs", "5");
        }
        let (clock, cpu_clock) = (Instant::now(), cpu_seconds());
        let metrics = trainer.step()?;
        losses.push(metrics.loss);
        if step >= args.warmup {
            seconds.push(clock.elapsed().as_secs_f64());
            cpu.extend(cpu_clock.zip(cpu_seconds()).map(|(start, end)| end - start));
        }
    }
    let peak_rss_mb_steps = peak_megabytes();
    let step_s_median = median(&seconds);
    let (mut regularizer_s, mut regularizer_cpu_s, mut retraction_cpu_s) = (None, BTreeMap::new(), BTreeMap::new());
    if method == Method::Sorsa {
        let model = trainer.into_attached().model;
        let once = |regularizer: Regularizer| {
            let clock = Instant::now();
            add_regularizer(&model, &attached_parameters, regularizer, 1e-4, &mut GradientsParams::new());
            clock.elapsed().as_secs_f64()
        };
        once(form.into());
        regularizer_s = Some(median(&(0..9).map(|_| once(form.into())).collect::<Vec<f64>>()));
        let all_rounded =
            |found: BTreeMap<String, f64>| found.into_iter().map(|(name, cpu)| (name, rounded(cpu))).collect();
        regularizer_cpu_s = all_rounded(regularizer_cpu_seconds(&model, &attached_parameters));
        retraction_cpu_s = all_rounded(retraction_cpu_seconds(&model, &attached_parameters));
    }
    let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let cpu = (!cpu.is_empty()).then_some(cpu);
    let tokens = (sizes.batch * sizes.seq) as f64;
    Ok(StepMeasurement {
        steps: args.steps,
        step_s_median: rounded(step_s_median),
        step_s_min: rounded(least(&seconds)),
        cpu_s_per_step_median: cpu.as_deref().map(|cpu| rounded(median(cpu))),
        cpu_s_per_step_min: cpu.as_deref().map(|cpu| rounded(least(cpu))),
        tokens_per_s_median: rounded(tokens / step_s_median),
        tokens_per_s_best: rounded(tokens / least(&seconds)),
        regularizer_s: regularizer_s.map(rounded),
        regularizer_cpu_s,
        retraction_cpu_s,
        regularizer_share: regularizer_s.map(|seconds| rounded(seconds / step_s_median)),
        first_loss: rounded(losses[0]),
        last_loss: rounded(losses[losses.len() - 1]),
        peak_rss_mb_steps,
    })
}

/// `count` batches of random tokens. Every token but the first of a sequence is a target.
fn batcher(sizes: &Sizes, count: usize, seed: u64) -> anyhow::Result<Batcher> {
    let mut state = seed;
    // SplitMix64: the tokens need not be more random than that.
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 32
    };
    let mut example = |row: usize| Example {
        // One id more than positions: the last id is only a target.
        ids: (0..=sizes.seq).map(|_| (next() % sizes.vocab as u64) as u32).collect(),
        target_mask: vec![true; sizes.seq + 1],
        row,
        truncated: false,
    };
    let examples = (0..count * sizes.batch).map(&mut example).collect();
    let options = BatchOptions { batch_size: sizes.batch, shuffle: false, ..BatchOptions::default() };
    Batcher::new(Arc::new(examples), options).or_bad_input()
}

/// The median: the middle value, or the mean of the two middle values.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// Rounds to four decimals.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// Peak of the process's memory in units of 2^20 bytes, like the PyTorch program.
fn peak_megabytes() -> Option<f64> {
    peak_memory_bytes().map(|bytes| (bytes as f64 / f64::from(1 << 20) * 10.0).round() / 10.0)
}

/// Load average of the last minute: it tells whether the machine was quiet.
fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn batches_have_the_given_size_and_all_positions_are_targets() {
        let sizes = Sizes { dim: 8, layers: 1, heads: 1, kv_heads: 1, ffn: 8, vocab: 50, batch: 3, seq: 7 };
        let batcher = batcher(&sizes, 4, 1).unwrap();
        assert_eq!(batcher.batches_per_epoch(0), 4);
        let batch = batcher.batch(0, 3);
        assert_eq!((batch.rows, batch.len, batch.target_tokens()), (3, 7, 21));
        assert!(batch.input_ids.iter().all(|id| (0..50).contains(id)));
        assert_ne!(batch.input_ids, batcher.batch(0, 2).input_ids);
    }
}
