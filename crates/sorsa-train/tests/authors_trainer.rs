//! The trainer of SORSA's author, step by step: losses, gradient norms, regularizer and final factors. Runs where
//! `SORSA_GOLDEN` names the folder of reference results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::FloatDType;
use safetensors::SafeTensors;
use sorsa_adapter::{
    AdapterConfig, AdapterState, HostTensor, Method, ModuleState, NamedTensors, RegularizerForm, SavedAdapter,
};
use sorsa_data::{BatchOptions, Batcher, Example};
use sorsa_models::CausalLm;
use sorsa_train::metrics::{self, Metric};
use sorsa_train::{LossNormalization, Outcome, TrainConfig, Trainer};

const RANK: usize = 4;
const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn floats(view: &safetensors::tensor::TensorView<'_>) -> Vec<f32> {
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn ints(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<i64>) {
    let view = file.tensor(name).unwrap();
    let values = view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    (view.shape().to_vec(), values)
}

/// The author's A `[r, d_in]`, B `[d_out, r]`, S as our `vt`, `u`, `s` of the transposed weight: `u = A^T`, `vt = B^T`.
fn factors(file: &SafeTensors<'_>, prefix: &str) -> NamedTensors {
    let mut tensors = NamedTensors::new();
    for (name, view) in file.iter() {
        let Some((module, factor)) = name.strip_prefix(prefix).and_then(|name| name.rsplit_once(".sorsa_")) else {
            continue;
        };
        let (values, shape) = (floats(&view), view.shape());
        let (ours, tensor) = match factor {
            "S" => ("s", HostTensor::new(shape, values)),
            _ => {
                let [rows, cols] = [shape[0], shape[1]];
                let transposed = (0..rows * cols).map(|i| values[i % rows * cols + i / rows]).collect();
                (if factor == "A" { "u" } else { "vt" }, HostTensor::new([cols, rows], transposed))
            }
        };
        tensors.insert(format!("{module}.sorsa.{ours}"), tensor);
    }
    tensors
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

fn check(golden: &Path, tag: &str) {
    let folder = golden.join("sorsa/tiny_llama");
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let (start_file, initial_file) = (read(&format!("trainer_{tag}.safetensors")), read("adapter_init.safetensors"));
    let file = SafeTensors::deserialize(&start_file).unwrap();
    let initial = factors(&SafeTensors::deserialize(&initial_file).unwrap(), "");
    let meta: serde_json::Value = serde_json::from_slice(&read("meta.json")).unwrap();
    let reference = &meta["trainer"][tag];
    let settings = &reference["settings"];
    let number = |name: &str| settings[name].as_f64().unwrap();
    let accumulation = settings["accum"].as_u64().unwrap() as usize;

    let base = golden.join("models/llama_gqa/checkpoint");
    let model = CausalLm::load(&base, FloatDType::F32, &Device::flex()).unwrap();
    let config = AdapterConfig::new(Method::Sorsa, RANK, &TARGETS);
    let module = |target: sorsa_adapter::Target| ModuleState {
        path: target.path,
        shape: target.shape,
        rank: RANK,
        scale: 1.0,
        fingerprint: None,
    };
    let modules = config.targets(&model).unwrap().into_iter().map(module).collect();
    let state = AdapterState { config, modules, initial };
    let attached = SavedAdapter::new(state, factors(&file, "start."), Path::new(tag)).attach(model).unwrap();

    let mut train = TrainConfig {
        batch_size: 2,
        accumulation,
        eval_every: 0,
        checkpoint_every: 0,
        clip_norm: number("clip"),
        loss_normalization: LossNormalization::MicroBatch,
        ..TrainConfig::default()
    };
    train.optimizer.learning_rate = number("lr");
    train.optimizer.weight_decay = number("wd");
    train.schedule.warmup_ratio = number("warm");
    train.regularizer.gamma = number("gamma");
    train.regularizer.form = RegularizerForm::Author;
    train.regularizer.author_accumulation = true;
    let options = BatchOptions { batch_size: 2, shuffle: false, bucket: 0, ..BatchOptions::default() };
    let batcher = Batcher::new(Arc::new(examples(&file)), options).unwrap();
    let run = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::start(attached, batcher, None, train, run.path()).unwrap();
    assert_eq!(trainer.run(&mut ()).unwrap(), Outcome::Completed);

    let logged = metrics::read(run.path().join("metrics.jsonl")).unwrap();
    let expected = reference["per_step"].as_array().unwrap();
    assert_eq!(logged.len(), expected.len());
    for (metric, expected) in logged.iter().zip(expected) {
        let Metric::Step(step) = metric else { panic!("{metric:?}") };
        let near = |name: &str, found: f64, tolerance: f64| {
            let expected = expected[name].as_f64().unwrap();
            assert!(
                (found - expected).abs() <= tolerance,
                "{tag}, step {}: {name} {found}, expected {expected}",
                step.step
            );
        };
        near("loss", step.loss, 2e-5);
        near("grad_norm", step.grad_norm, 1e-4 * step.grad_norm);
        near("ortho", step.regularizer.unwrap(), 1e-5);
        near("lr_used", step.learning_rate, 1e-12);
    }
    let last = trainer.adapter().trained;
    let mut worst: BTreeMap<&str, f32> = BTreeMap::new();
    let reference = factors(&file, "final.");
    assert_eq!(last.len(), reference.len());
    for (name, expected) in &reference {
        let differences = last[name].values.iter().zip(&expected.values).map(|(a, b)| (a - b).abs());
        worst.insert(name, differences.fold(0.0, f32::max));
    }
    let (name, difference) = worst.iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    assert!(*difference <= 1e-5, "{tag}: `{name}` ends {difference} away");
}

#[test]
fn ten_steps_are_those_of_the_authors_trainer() {
    let Some(golden) = std::env::var_os("SORSA_GOLDEN").map(PathBuf::from) else {
        eprintln!("SORSA_GOLDEN is not set: nothing to compare with");
        return;
    };
    check(&golden, "accum1");
    check(&golden, "accum2");
}
