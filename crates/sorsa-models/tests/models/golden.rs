//! Logits, losses and greedy tokens of Transformers, on tiny random checkpoints. Runs where `SORSA_GOLDEN` names the
//! folder of reference results.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::prelude::*;
use safetensors::{Dtype, SafeTensors};
use sorsa_adapter::{AdapterConfig, Method};
use sorsa_models::{CausalLm, GenerateOptions, ModelInput, Sampling, WeightFormat};

use crate::common::larger::larger;

/// Largest difference of a logit at |logit| about 10.
const LOGITS: f32 = 1e-4;
const LOSS: f64 = 2e-5;

fn golden() -> Option<PathBuf> {
    let folder = std::env::var_os("SORSA_GOLDEN").map(|golden| PathBuf::from(golden).join("models"));
    if folder.is_none() {
        eprintln!("SORSA_GOLDEN is not set: nothing to compare with");
    }
    folder
}

/// Every folder of reference results, one for each architecture and its variants. Folders without `file` are left out.
fn models(golden: &Path, file: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|folder| folder.join(file).exists()).collect();
    folders.sort();
    assert!(!folders.is_empty(), "no folder of {} has {file}", golden.display());
    folders
}

fn ints(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<i32>) {
    let view = file.tensor(name).unwrap();
    assert_eq!(view.dtype(), Dtype::I64);
    let values = view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as i32).collect();
    (view.shape().to_vec(), values)
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = file.tensor(name).unwrap();
    assert_eq!(view.dtype(), Dtype::F32);
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The batch that the reference results were computed on.
struct Batch {
    rows: usize,
    len: usize,
    input_ids: Vec<i32>,
    positions: Vec<i32>,
    mask: Vec<i32>,
    targets: Vec<i32>,
}

impl Batch {
    fn read(io: &SafeTensors<'_>) -> Self {
        let (shape, input_ids) = ints(io, "input_ids");
        let (rows, len) = (shape[0], shape[1]);
        let (_, mask) = ints(io, "attention_mask");
        let (_, labels) = ints(io, "labels");
        // Labels are not shifted in the reference: the target of a position is the label of the next.
        let targets = (0..rows * len).map(|i| if (i + 1) % len == 0 { -100 } else { labels[i + 1] }).collect();
        let positions = (0..rows).flat_map(|_| 0..len as i32).collect();
        Self { rows, len, input_ids, positions, mask, targets }
    }

    fn input(&self) -> ModelInput<'_> {
        let Self { rows, len, input_ids, positions, mask, .. } = self;
        ModelInput { rows: *rows, len: *len, input_ids, positions, segments: mask }
    }
}

fn check(folder: &Path) {
    let name = folder.display();
    let io = std::fs::read(folder.parent().unwrap().join("io.safetensors")).unwrap();
    let io = SafeTensors::deserialize(&io).unwrap();
    let model = CausalLm::load(folder, WeightFormat::F32, &Device::flex()).unwrap();

    let batch = Batch::read(&io);
    let (input, mask) = (batch.input(), &batch.mask);
    let logits = model.logits(model.hidden(&input)).into_data().try_into_vec::<f32>().unwrap();
    let expected = floats(&io, "logits");
    let vocabulary = model.config().vocab_size;
    let mut worst = 0f32;
    for (position, _) in mask.iter().enumerate().filter(|(_, visible)| **visible == 1) {
        let range = position * vocabulary..(position + 1) * vocabulary;
        for (found, expected) in logits[range.clone()].iter().zip(&expected[range]) {
            worst = worst.max((found - expected).abs());
        }
    }
    assert!(worst <= LOGITS, "{name}: logits differ by {worst}");
    assert!(logits.iter().all(|logit| logit.is_finite()), "{name}: padding made a logit that is not finite");
    let hidden = model.hidden(&input).into_data().try_into_vec::<f32>().unwrap();
    let expected = floats(&io, &format!("hidden_states.{}", model.config().num_hidden_layers));
    let d = model.config().hidden_size;
    for (i, (found, expected)) in hidden.iter().zip(&expected).enumerate().filter(|(i, _)| mask[i / d] == 1) {
        assert!((found - expected).abs() <= LOGITS, "{name}: hidden state {i} is {found}, expected {expected}");
    }

    let count = batch.targets.iter().filter(|target| **target >= 0).count();
    let loss = f64::from(model.loss_sum(&input, &batch.targets).unwrap().into_scalar::<f32>()) / count as f64;
    let text = std::fs::read_to_string(folder.parent().unwrap().join("io.json")).unwrap();
    let meta: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = meta["loss"].as_f64().unwrap();
    assert!((loss - expected).abs() <= LOSS, "{name}: loss {loss}, expected {expected}");

    let generate = |prompts: &[Vec<u32>], count: usize| {
        let options = GenerateOptions { max_new_tokens: count, sampling: Sampling::Greedy, stop: vec![] };
        model.generate(prompts, &options, |_, _| ()).unwrap().into_iter().map(|g| g.ids).collect::<Vec<_>>()
    };
    let unsigned = |ids: &[i32]| ids.iter().map(|id| *id as u32).collect::<Vec<_>>();
    let (_, prompt) = ints(&io, "prompt_ids");
    let (_, generated) = ints(&io, "generated_ids");
    let (prompt, generated) = (unsigned(&prompt), unsigned(&generated));
    let found = generate(std::slice::from_ref(&prompt), generated.len() - prompt.len());
    assert_eq!(found[0], generated[prompt.len()..], "{name}: greedy tokens");

    if io.tensor("leftpad_prompt_ids").is_ok() {
        let (shape, ids) = ints(&io, "leftpad_prompt_ids");
        let (_, mask) = ints(&io, "leftpad_attention_mask");
        let (generated_shape, generated) = ints(&io, "leftpad_generated_ids");
        let visible = |row: usize| row * shape[1]..(row + 1) * shape[1];
        let prompts: Vec<Vec<u32>> =
            (0..shape[0]).map(|row| visible(row).filter(|i| mask[*i] == 1).map(|i| ids[i] as u32).collect()).collect();
        let found = generate(&prompts, generated_shape[1] - shape[1]);
        for (row, found) in found.iter().enumerate() {
            let expected = &generated[row * generated_shape[1] + shape[1]..(row + 1) * generated_shape[1]];
            assert_eq!(*found, unsigned(expected), "{name}: row {row} of the padded batch");
        }
    }
}

#[test]
fn logits_losses_and_greedy_tokens_are_those_of_transformers() {
    let Some(golden) = golden() else { return };
    for folder in models(&golden, "checkpoint") {
        check(&folder.join("checkpoint"));
    }
}

#[test]
fn a_checkpoint_in_shards_is_the_one_in_a_single_file() {
    let Some(golden) = golden() else { return };
    for folder in models(&golden, "checkpoint_sharded") {
        check(&folder.join("checkpoint_sharded"));
    }
}

/// The gradients of the mean loss of the batch in `folder`.
fn loss_gradients(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let io = std::fs::read(folder.join("io.safetensors")).unwrap();
    let io = SafeTensors::deserialize(&io).unwrap();
    let model = CausalLm::load(&folder.join("checkpoint"), WeightFormat::F32, &Device::flex()).unwrap();
    let mut attached = AdapterConfig::new(Method::Full, 1, &[]).attach(model, &Default::default()).unwrap();
    attached.model = attached.model.train();
    let batch = Batch::read(&io);
    let count = batch.targets.iter().filter(|target| **target >= 0).count();
    let loss = attached.model.loss_sum(&batch.input(), &batch.targets).unwrap() / count as f64;
    crate::common::gradients(&attached, loss)
}

#[test]
fn the_norm_of_the_gradient_of_every_parameter_is_that_of_pytorch() {
    let Some(golden) = golden() else { return };
    for folder in models(&golden, "io.json") {
        let name = folder.display();
        let text = std::fs::read_to_string(folder.join("io.json")).unwrap();
        let meta: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = meta["grad_norms"].as_object().unwrap();
        let found = loss_gradients(&folder);
        let names: BTreeSet<&String> = expected.keys().collect();
        assert_eq!(found.keys().collect::<BTreeSet<_>>(), names, "{name}");
        for (parameter, gradient) in found {
            let norm = gradient.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            let expected = expected[&parameter].as_f64().unwrap();
            assert!((norm / expected - 1.0).abs() <= 1e-4, "{name}: {parameter}: {norm}, expected {expected}");
        }
    }
}

#[test]
fn the_gradient_of_every_parameter_is_that_of_pytorch() {
    let Some(golden) = golden() else { return };
    for folder in models(&golden, "grads.safetensors") {
        let found = loss_gradients(&folder);
        let expected = std::fs::read(folder.join("grads.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&expected).unwrap();
        assert_eq!(found.len(), expected.names().len());
        for (name, found) in found {
            let expected = floats(&expected, &name);
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let worst = found.iter().zip(&expected).fold(0f32, |worst, (f, e)| larger(worst, (f - e).abs()));
            assert!(worst <= 1e-4 * largest, "{}: {name}: {worst} of {largest}", folder.display());
        }
    }
}

#[test]
fn a_model_that_computes_in_bf16_has_the_loss_of_one_that_does_not_to_two_per_cent() {
    let Some(golden) = golden() else { return };
    let mut count = 0;
    for folder in models(&golden, "io.safetensors") {
        let io = std::fs::read(folder.join("io.safetensors")).unwrap();
        let io = SafeTensors::deserialize(&io).unwrap();
        if io.tensor("logits_bf16_compute").is_err() {
            continue;
        }
        let batch = Batch::read(&io);
        let loss = |format| {
            let model = CausalLm::load(&folder.join("checkpoint"), format, &Device::flex()).unwrap();
            model.loss_sum(&batch.input(), &batch.targets).unwrap().into_scalar::<f32>()
        };
        let ratio = loss(WeightFormat::Bf16) / loss(WeightFormat::F32);
        assert!((ratio - 1.0).abs() < 0.02, "{}: {ratio}", folder.display());
        assert!(ratio != 1.0 || !crate::common::processor::rounds_activations(), "nothing was rounded");
        count += 1;
    }
    assert!(count > 0, "no model was computed in bf16");
}
