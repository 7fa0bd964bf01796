//! The trainer of SORSA's author and training curves of PyTorch with PEFT, step by step: losses, gradient norms,
//! learning rates, regularizer, and where the parameters end. Runs where `SORSA_GOLDEN` names the folder of reference
//! results.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::FloatDType;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use sorsa_adapter::{
    AdapterConfig, AdapterState, Attached, HostTensor, Method, ModuleState, NamedTensors, RegularizerForm,
    SavedAdapter, Target,
};
use sorsa_data::{BatchOptions, Batcher, Example};
use sorsa_models::CausalLm;
use sorsa_train::metrics::{self, Metric, StepMetrics};
use sorsa_train::{LossNormalization, Outcome, TrainConfig, Trainer};

const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn golden() -> Option<PathBuf> {
    let folder = std::env::var_os("SORSA_GOLDEN").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("SORSA_GOLDEN is not set: nothing to compare with");
    }
    folder
}

fn ints(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<i64>) {
    let view = file.tensor(name).unwrap();
    let values = view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    (view.shape().to_vec(), values)
}

fn tensor(view: &TensorView<'_>) -> HostTensor {
    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    HostTensor::new(view.shape(), values)
}

fn transposed(tensor: HostTensor) -> HostTensor {
    let [rows, cols] = tensor.shape[..] else { panic!("{:?} is not a matrix", tensor.shape) };
    HostTensor::new([cols, rows], (0..rows * cols).map(|i| tensor.values[i % rows * cols + i / rows]).collect())
}

/// Tensors of the reference by our names. The reference multiplies from the other side: its A `[r, d_in]` is the
/// transpose of our `u` or `a`, its B `[d_out, r]` that of our `vt` or `b`.
fn ours(file: &SafeTensors<'_>, prefix: &str, method: Method) -> NamedTensors {
    let names = |name: &str| {
        let name = name.strip_prefix(prefix)?;
        let (module, factor) = name.rsplit_once(".sorsa_").or_else(|| name.rsplit_once(".lora_")).unwrap_or((name, ""));
        let factor = match (method, factor.trim_end_matches(".weight")) {
            (Method::Full, _) => return Some((name.to_owned(), !name.contains("norm") && !name.contains("embed"))),
            (Method::Sorsa, "A") => "u",
            (Method::Sorsa, "S") => "s",
            (Method::Sorsa, "B") => "vt",
            (_, "A") => "a",
            (_, "B") => "b",
            _ => return None,
        };
        Some((format!("{module}.{method}.{factor}"), factor != "s"))
    };
    let one = |(name, view): (&str, TensorView<'_>)| {
        let (name, is_transposed) = names(name)?;
        let tensor = tensor(&view);
        Some((name, if is_transposed { transposed(tensor) } else { tensor }))
    };
    file.iter().filter_map(one).collect()
}

/// The micro-batches in the order consumed, as examples that a batcher without shuffling cuts into the same batches.
fn examples(file: &SafeTensors<'_>) -> Vec<Example> {
    let mut examples = Vec::new();
    for batch in 0.. {
        if file.tensor(&format!("batch{batch}.input_ids")).is_err() {
            return examples;
        }
        let (shape, ids) = ints(file, &format!("batch{batch}.input_ids"));
        let (_, mask) = ints(file, &format!("batch{batch}.attention_mask"));
        let (_, labels) = ints(file, &format!("batch{batch}.labels"));
        for row in 0..shape[0] {
            let range = row * shape[1]..(row + 1) * shape[1];
            let visible: Vec<usize> = range.filter(|i| mask[*i] == 1).collect();
            examples.push(Example {
                ids: visible.iter().map(|i| ids[*i] as u32).collect(),
                target_mask: visible.iter().map(|i| labels[*i] >= 0).collect(),
                row: examples.len(),
                truncated: false,
            });
        }
    }
    examples
}

/// The base model with factors `trained`, where those of `initial` have left its weights.
fn attach(golden: &Path, config: AdapterConfig, initial: NamedTensors, trained: NamedTensors) -> Attached<CausalLm> {
    let base = golden.join("models/llama_gqa/checkpoint");
    let model = CausalLm::load(&base, FloatDType::F32, &Device::flex()).unwrap();
    if config.method == Method::Full {
        return config.attach(model, &Default::default()).unwrap();
    }
    let module = |target: Target| {
        let Target { path, shape, rank, scale, .. } = target;
        ModuleState { path, shape, rank, scale, fingerprint: None }
    };
    let modules = config.targets(&model).unwrap().into_iter().map(module).collect();
    let initial = if config.method.needs_svd() { initial } else { NamedTensors::new() };
    let state = AdapterState { config, modules, initial };
    SavedAdapter::new(state, trained, Path::new("reference")).attach(model).unwrap()
}

/// The principal triplets of the base model's weights, as the author's code found them.
fn principal(golden: &Path) -> NamedTensors {
    let file = std::fs::read(golden.join("sorsa/tiny_llama/adapter_init.safetensors")).unwrap();
    ours(&SafeTensors::deserialize(&file).unwrap(), "", Method::Sorsa)
}

/// The settings that all reference runs share, and those that each names.
fn config(settings: &Value, batch_size: usize) -> TrainConfig {
    let number = |name: &str| settings[name].as_f64().unwrap();
    let mut config = TrainConfig {
        batch_size,
        accumulation: settings["accum"].as_u64().unwrap() as usize,
        eval_every: 0,
        checkpoint_every: 0,
        clip_norm: number("clip"),
        loss_normalization: LossNormalization::MicroBatch,
        ..TrainConfig::default()
    };
    config.optimizer.learning_rate = number("lr");
    config.optimizer.weight_decay = number("wd");
    config.regularizer.gamma = settings["gamma"].as_f64().unwrap_or(0.0);
    config.regularizer.form = RegularizerForm::Author;
    config.regularizer.author_accumulation = true;
    config
}

/// Trains to the end; what was logged, and the trained parameters.
fn train(
    attached: Attached<CausalLm>,
    examples: Vec<Example>,
    config: TrainConfig,
) -> (Vec<StepMetrics>, NamedTensors) {
    let options = BatchOptions { batch_size: config.batch_size, shuffle: false, ..BatchOptions::default() };
    let batcher = Batcher::new(Arc::new(examples), options).unwrap();
    let run = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::start(attached, batcher, None, config, run.path()).unwrap();
    assert_eq!(trainer.run(&mut ()).unwrap(), Outcome::Completed);
    let step = |metric| match metric {
        Metric::Step(step) => step,
        Metric::Eval(eval) => panic!("nothing to evaluate on: {eval:?}"),
    };
    let logged = metrics::read(run.path().join("metrics.jsonl")).unwrap().into_iter().map(step).collect();
    (logged, trainer.adapter().trained)
}

#[track_caller]
fn assert_near(what: &str, step: &StepMetrics, found: f64, expected: &Value, tolerance: f64) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() <= tolerance, "{what}, step {}: {found}, expected {expected}", step.step);
}

#[track_caller]
fn assert_ends_at(what: &str, found: &NamedTensors, expected: &NamedTensors, tolerance: f32) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, expected) in expected {
        let differences = found[name].values.iter().zip(&expected.values).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0f32, f32::max);
        assert!(worst <= tolerance, "{what}: `{name}` ends {worst} away");
    }
}

#[test]
fn ten_steps_are_those_of_the_authors_trainer() {
    let Some(golden) = golden() else { return };
    let folder = golden.join("sorsa/tiny_llama");
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let meta: Value = serde_json::from_slice(&read("meta.json")).unwrap();
    for tag in ["accum1", "accum2"] {
        let file = read(&format!("trainer_{tag}.safetensors"));
        let file = SafeTensors::deserialize(&file).unwrap();
        let reference = &meta["trainer"][tag];
        let mut settings = config(&reference["settings"], 2);
        settings.schedule.warmup_ratio = reference["settings"]["warm"].as_f64().unwrap();
        let start = ours(&file, "start.", Method::Sorsa);
        let attached = attach(&golden, AdapterConfig::new(Method::Sorsa, 4, &TARGETS), principal(&golden), start);
        let (logged, last) = train(attached, examples(&file), settings);

        let expected = reference["per_step"].as_array().unwrap();
        assert_eq!(logged.len(), expected.len());
        for (step, expected) in logged.iter().zip(expected) {
            assert_near(tag, step, step.loss, &expected["loss"], 2e-5);
            assert_near(tag, step, step.grad_norm, &expected["grad_norm"], 1e-4 * step.grad_norm);
            assert_near(tag, step, step.regularizer.unwrap(), &expected["ortho"], 1e-5);
            assert_near(tag, step, step.learning_rate, &expected["lr_used"], 1e-12);
        }
        assert_ends_at(tag, &last, &ours(&file, "final.", Method::Sorsa), 1e-5);
    }
}

#[test]
fn thirty_steps_of_each_method_are_those_of_pytorch() {
    let Some(golden) = golden() else { return };
    let runs =
        [("lora", Method::Lora), ("pissa", Method::Pissa), ("sorsa_wellcond", Method::Sorsa), ("full", Method::Full)];
    for (name, method) in runs {
        let folder = golden.join("curves").join(name);
        let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
        let tensors = |file: &str| ours(&SafeTensors::deserialize(&read(file)).unwrap(), "", method);
        let curve: Value = serde_json::from_slice(&read("curve.json")).unwrap();
        let settings = &curve["settings"];
        let start = if method == Method::Full { NamedTensors::new() } else { tensors("initial.safetensors") };
        // This one starts off the orthonormal point, beside the residual of the SVD.
        let initial = if method == Method::Sorsa { principal(&golden) } else { start.clone() };
        let mut adapter = AdapterConfig::new(method, settings["r"].as_u64().unwrap() as usize, &TARGETS);
        adapter.alpha = settings["alpha"].as_f64();
        let attached = attach(&golden, adapter, initial, start);

        let mut config = config(settings, settings["B"].as_u64().unwrap() as usize);
        let steps = settings["steps"].as_f64().unwrap();
        config.schedule.warmup_ratio = settings["warmup"].as_f64().unwrap() / steps;
        config.epochs = steps / settings["nbatch"].as_f64().unwrap();
        let (logged, last) =
            train(attached, examples(&SafeTensors::deserialize(&read("batches.safetensors")).unwrap()), config);

        let expected = curve["log"].as_array().unwrap();
        assert_eq!(logged.len(), expected.len());
        for (step, expected) in logged.iter().zip(expected) {
            assert_near(name, step, step.loss, &expected["loss"], 1e-4);
            assert_near(name, step, step.grad_norm, &expected["grad_norm_before_clip"], 1e-4 * step.grad_norm);
            assert_near(name, step, step.learning_rate, &expected["lr"], 1e-12);
            if let Some(regularizer) = step.regularizer {
                assert_near(name, step, regularizer, &expected["ortho"], 1e-5);
            }
        }
        assert_ends_at(name, &last, &tensors("final.safetensors"), 2e-4);
    }
}
