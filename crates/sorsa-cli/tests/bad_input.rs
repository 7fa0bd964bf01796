//! Bad input ends in one line that says what is wrong, with exit code 2 (the caller's) or 1 (the world's), and leaves
//! nothing behind.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Place, Succeed};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sorsa_kernels::Instructions;

/// Runs, expects a failure of one line and no run directory, and compares the line with its snapshot.
#[track_caller]
fn refuse(name: &str, place: &Place, args: &[&str]) {
    refuse_command(name, place, &mut place.finetune(args));
}

/// The same for any command; nothing in the place may change.
#[track_caller]
fn refuse_command(name: &str, place: &Place, command: &mut Command) {
    let before = files(&place.path(""));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).replace(&place.path("").display().to_string(), "[dir]/");
    let processor = format!("{}, {}", std::env::consts::ARCH, Instructions::preferred());
    let text = text.replace(&processor, "[processor]");
    let failure = format!("exit code {}\n{text}", output.status.code().unwrap_or(-1));
    assert!(!output.status.success(), "{name}: accepted");
    assert!(output.stdout.is_empty(), "{name}: printed a result");
    assert_eq!(failure.lines().count(), 2, "{name}: one line of error, found\n{failure}");
    assert!(failure.contains("\nerror: ") && !failure.contains("panicked"), "{failure}");
    assert_eq!(files(&place.path("")), before, "{name}: left something behind");
    insta::assert_snapshot!(name, failure);
}

/// Every file and folder below `folder`.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.insert(path);
    }
    found
}

/// Rewrites one tensor of the model's file.
fn change_weights(place: &Place, change: impl Fn(&str, Vec<usize>, Vec<u8>) -> Option<(Vec<usize>, Vec<u8>)>) {
    let path = place.path("model/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let changed: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .filter_map(|(name, view)| {
            let (shape, data) = change(name, view.shape().to_vec(), view.data().to_vec())?;
            Some((name.to_owned(), shape, data))
        })
        .collect();
    let views = changed
        .iter()
        .map(|(name, shape, data)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn edit_config(path: &Path, edit: impl Fn(&mut serde_json::Value)) {
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn files_that_are_missing() {
    let place = Place::new();
    refuse("missing_data", &place, &["--data", "nowhere.jsonl"]);
    refuse("missing_model", &place, &["--model", "./nowhere"]);
    refuse("missing_recipe", &place, &["--recipe", "nowhere.toml"]);
    std::fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    refuse("missing_tokenizer", &place, &[]);
}

#[test]
fn weights_that_are_damaged() {
    let place = Place::new();
    let path = place.path("model/model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    refuse("truncated_weights", &place, &[]);
    std::fs::write(&path, &whole).unwrap();
    change_weights(&place, |name, shape, data| match name {
        "model.norm.weight" => None,
        "model.layers.0.mlp.up_proj.weight" => Some((vec![shape[1], shape[0]], data)),
        _ => Some((shape, data)),
    });
    refuse("missing_and_misshapen_tensors", &place, &[]);
    std::fs::write(&path, &whole).unwrap();
    change_weights(&place, |name, shape, mut data| {
        if name.contains("layers.1.self_attn.q_proj") {
            data[20..24].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        Some((shape, data))
    });
    refuse("weights_that_are_not_numbers", &place, &[]);
    std::fs::remove_file(&path).unwrap();
    place.write("model/pytorch_model.bin", b"pickled");
    refuse("pickled_weights", &place, &[]);
}

#[test]
fn a_config_with_unsupported_fields() {
    let place = Place::new();
    edit_config(&place.path("model/config.json"), |config| {
        config["hidden_act"] = "relu".into();
        config["quantization_config"] = serde_json::json!({ "bits": 4 });
    });
    refuse("unsupported_config", &place, &[]);
}

#[test]
fn adapters_that_cannot_be() {
    let place = Place::new();
    refuse("rank_too_large", &place, &["--rank", "64", "--target-modules", "q_proj"]);
    refuse("unknown_target", &place, &["--target-modules", "q_proj,query_proj"]);
    refuse("unknown_method", &place, &["--method", "vera"]);
}

#[test]
fn a_decomposition_that_fails_leaves_no_run_behind() {
    let place = Place::new();
    let output = place.finetune(&["--set", "svd.tolerance=1e-30", "--run-dir", "run"]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(told.lines().count() == 1 && told.contains("did not converge"), "{told}");
    assert!(!place.path("run").exists());
}

#[test]
fn data_that_cannot_be_used() {
    let place = Place::new();
    place.write("empty.jsonl", "");
    refuse("empty_data", &place, &["--data", "empty.jsonl"]);
    place.write("bad.jsonl", "{\"query\": \"1 + 1\", \"response\": \"2\"}\n{\"query\": \"2 + 2\"}\nnot json\n");
    refuse("malformed_rows", &place, &["--data", "bad.jsonl"]);
    refuse("rows_longer_than_the_context", &place, &["--max-length", "20"]);
    let long = format!("{{\"query\": \"{}\", \"response\": \"The answer is: 2\"}}\n", "1 + ".repeat(200));
    place.write("long.jsonl", long);
    refuse("validation_rows_longer_than_the_context", &place, &["--validation", "long.jsonl"]);
    refuse("prompts_longer_than_the_context", &place, &["--test", "long.jsonl"]);
    refuse("rows_that_may_not_be_cut", &place, &["--validation", "long.jsonl", "--set", "data.truncation=error"]);
    let eval = ["eval", "--model", "model", "--data"];
    refuse_command("eval_of_prompts_that_are_too_long", &place, place.command(&eval).arg("long.jsonl"));
    refuse_command("eval_of_nothing_at_a_time", &place, place.command(&eval).args(["data.jsonl", "--batch-size", "0"]));
    let prompt = "1 + ".repeat(200);
    refuse_command("prompt_that_is_too_long", &place, &mut place.command(&["generate", "--model", "model", &prompt]));
}

#[test]
fn recipes_that_make_no_sense() {
    let place = Place::new();
    refuse("unknown_field", &place, &["--set", "train.learning_rate=1"]);
    place.write("recipe.toml", "[train\n");
    refuse("recipe_that_is_not_toml", &place, &["--recipe", "recipe.toml"]);
    place.write("recipe.toml", "[train]\nepochs = 1.0\n= 3\n");
    refuse("fault_in_the_third_line", &place, &["--recipe", "recipe.toml"]);
    refuse("wrong_values", &place, &["--lr=-1", "--epochs", "0", "--set", "data.truncation=maybe"]);
    refuse("wrong_type", &place, &["--set", "train.batch_size=many"]);
}

#[test]
fn devices_that_are_not_there() {
    let place = Place::new();
    refuse("device_out_of_range", &place, &["--device", "7"]);
    // Both list what the build has.
    if !cfg!(any(feature = "wgpu", feature = "vulkan", feature = "cuda")) {
        refuse("unknown_backend", &place, &["--backend", "abacus"]);
        refuse("backend_of_another_build", &place, &["--backend", "vulkan"]);
    }
}

#[test]
fn run_directories_that_cannot_be_used() {
    let place = Place::new();
    place.write("file", "");
    refuse("unwritable_run_directory", &place, &["--run-dir", "file/run"]);
    refuse("file_where_the_run_should_be", &place, &["--run-dir", "file"]);
    std::fs::create_dir(place.path("old")).unwrap();
    place.write("old/recipe.toml", "");
    refuse("run_directory_that_holds_a_run", &place, &["--run-dir", "old"]);
    refuse_command("resume_of_no_run", &place, &mut place.command(&["finetune", "--resume", "model"]));
    let resume = ["finetune", "--resume", "old", "--lr", "1", "--rank", "2"];
    refuse_command("resume_with_other_settings", &place, &mut place.command(&resume));
}

#[test]
fn adapters_of_another_model() {
    let place = Place::new();
    place.make_model("other", 1);
    place.finetune(&["--max-steps", "1", "--target-modules", "q_proj", "--run-dir", "run"]).succeed();
    let generate = ["generate", "hello", "--model", "other", "--adapter"];
    refuse_command("adapter_of_another_model", &place, place.command(&generate).arg("run"));
    refuse_command("folder_without_an_adapter", &place, place.command(&generate).arg("model"));
    let merge = ["merge", "--model", "other", "--adapter", "run", "--out", "merged"];
    refuse_command("merge_with_another_model", &place, &mut place.command(&merge));
    let merge = ["merge", "--adapter", "run", "--out", "model"];
    refuse_command("merge_into_the_model_itself", &place, &mut place.command(&merge));
}

#[test]
fn an_embedding_that_is_the_head_too_and_trained_whole_does_not_leave_for_peft() {
    let place = Place::new();
    edit_config(&place.path("model/config.json"), |config| config["tie_word_embeddings"] = true.into());
    change_weights(&place, |name, shape, data| (name != "lm_head.weight").then_some((shape, data)));
    let whole = ["--method", "lora", "--max-steps", "1", "--set", "adapter.modules_to_save=[\"embed_tokens\"]"];
    place.finetune(&whole).args(["--run-dir", "run"]).succeed();
    let export = ["export", "--adapter", "run", "--format", "peft", "--out", "peft"];
    refuse_command("tied_embedding_for_peft", &place, &mut place.command(&export));
}

#[test]
fn an_adapter_that_is_not_finite_and_a_tokenizer_that_is_larger_than_its_model() {
    let place = Place::new();
    place.finetune(&["--max-steps", "1", "--method", "lora", "--run-dir", "run"]).succeed();
    let file = place.path("run/adapter/adapter.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    refuse_command(
        "adapter_that_is_not_finite",
        &place,
        &mut place.command(&["generate", "hello", "--adapter", "run"]),
    );
    // Fewer embeddings than the tokenizer has tokens.
    edit_config(&place.path("model/config.json"), |config| config["vocab_size"] = 40.into());
    change_weights(&place, |name, mut shape, data| {
        let rows = if shape[0] > 100 && (name.contains("embed") || name.contains("lm_head")) { 40 } else { shape[0] };
        let bytes = data.len() / shape[0] * rows;
        shape[0] = rows;
        Some((shape, data[..bytes].to_vec()))
    });
    refuse("tokenizer_larger_than_its_model", &place, &[]);
}

#[test]
fn command_lines_that_make_no_sense() {
    let place = Place::new();
    refuse_command("no_command", &place, &mut place.command(&[]));
    refuse_command("unknown_option", &place, &mut place.command(&["finetune", "--rnk", "3"]));
    refuse_command("seed_beyond_toml", &place, &mut place.finetune(&["--seed", "18446744073709551615"]));
}

#[test]
fn comparisons_that_make_no_sense() {
    let place = Place::new();
    let bench = |args: &[&str]| {
        let mut command = place.command(&["bench", "--model", "model", "--data", "data.jsonl", "--rank", "4"]);
        command.args(args);
        command
    };
    refuse_command("bench_of_an_unknown_method", &place, &mut bench(&["--methods", "lora,adalora"]));
    refuse_command("bench_with_an_empty_grid", &place, &mut bench(&["--lrs", ""]));
    refuse_command("bench_of_one_seed_twice", &place, &mut bench(&["--seeds", "1,2,1"]));
    refuse_command("bench_with_a_rate_for_nobody", &place, &mut bench(&["--methods", "lora", "--lrs", "sorsa=1e-3"]));
    refuse_command("bench_with_one_method", &place, &mut bench(&["--method", "lora"]));
    refuse_command("bench_with_a_negative_gamma", &place, &mut bench(&["--gammas", "0,-1"]));
    refuse_command("bench_without_validation", &place, &mut bench(&["--set", "data.validation_rows=0"]));
    refuse_command("bench_without_its_text", &place, &mut bench(&["--forgetting-text", "nothing.jsonl"]));
}
