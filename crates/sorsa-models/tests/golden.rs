//! Logits, losses and greedy tokens of Transformers, on tiny random checkpoints. Runs where `SORSA_GOLDEN` names the
//! folder of reference results.

use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::FloatDType;
use safetensors::{Dtype, SafeTensors};
use sorsa_models::{CausalLm, GenerateOptions, ModelConfig, ModelInput, Sampling};

/// Largest difference of a logit at |logit| about 10.
const LOGITS: f32 = 1e-4;
const LOSS: f64 = 2e-5;

const SUPPORTED: [&str; 8] = [
    "llama_mha/checkpoint",
    "llama_gqa/checkpoint",
    "llama_gqa/checkpoint_sharded",
    "llama_tied/checkpoint",
    "llama_bias/checkpoint",
    "llama_headdim/checkpoint",
    "llama_rope_llama3/checkpoint",
    "mistral_sw/checkpoint",
];

fn golden() -> Option<PathBuf> {
    let folder = std::env::var_os("SORSA_GOLDEN").map(|golden| PathBuf::from(golden).join("models"));
    if folder.is_none() {
        eprintln!("SORSA_GOLDEN is not set: nothing to compare with");
    }
    folder
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

fn check(folder: &Path) {
    let name = folder.display();
    let io = std::fs::read(folder.parent().unwrap().join("io.safetensors")).unwrap();
    let io = SafeTensors::deserialize(&io).unwrap();
    let model = CausalLm::load(folder, FloatDType::F32, &Device::flex()).unwrap();

    let (shape, input_ids) = ints(&io, "input_ids");
    let (rows, len) = (shape[0], shape[1]);
    let (_, mask) = ints(&io, "attention_mask");
    let positions: Vec<i32> = (0..rows).flat_map(|_| 0..len as i32).collect();
    let input = ModelInput { rows, len, input_ids: &input_ids, positions: &positions, segments: &mask };
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

    // Labels are not shifted in the reference: the target of a position is the label of the next.
    let (_, labels) = ints(&io, "labels");
    let targets: Vec<i32> = (0..rows * len).map(|i| if (i + 1) % len == 0 { -100 } else { labels[i + 1] }).collect();
    let count = targets.iter().filter(|target| **target >= 0).count();
    let loss = f64::from(model.loss_sum(&input, &targets).unwrap().into_scalar::<f32>()) / count as f64;
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
    for name in SUPPORTED {
        check(&golden.join(name));
    }
}

#[test]
fn a_checkpoint_in_bf16_gives_the_logits_of_its_weights_upcast() {
    let Some(golden) = golden() else { return };
    check(&golden.join("llama_gqa_bf16/checkpoint"));
}

#[test]
fn architectures_that_are_not_supported_are_refused_by_name() {
    let Some(golden) = golden() else { return };
    for name in ["qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "rwkv4"] {
        let error = ModelConfig::read(&golden.join(name).join("checkpoint")).unwrap_err().to_string();
        assert!(error.contains("`model_type` should be llama or mistral"), "{name}: {error}");
    }
}
