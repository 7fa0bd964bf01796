//! Adapters in and out by the real binary: `export`, `import`, `verify`, and runs that start from an adapter.

mod common;

use std::path::Path;

use common::{Place, Succeed};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

/// A run of a few steps, and its adapter in `run/adapter`.
fn trained(place: &Place, run: &str, options: &[&str]) {
    place.finetune(&["--max-steps", "3", "--run-dir", run, "--lr", "1e-2"]).args(options).succeed();
}

/// A file of random tokens and the labels that are the same tokens.
fn batch(place: &Place, name: &str, logits: Option<Vec<f32>>) {
    let ids: Vec<u8> = (0..2 * 12i64).flat_map(|i| (1 + i * 7 % 200).to_le_bytes()).collect();
    let floats: Vec<u8> = logits.iter().flatten().flat_map(|logit| logit.to_le_bytes()).collect();
    let view = |dtype, shape: Vec<usize>, bytes| TensorView::new(dtype, shape, bytes).unwrap();
    let mut tensors =
        vec![("input_ids", view(Dtype::I64, vec![2, 12], &ids)), ("labels", view(Dtype::I64, vec![2, 12], &ids))];
    if let Some(logits) = &logits {
        tensors.push(("logits", view(Dtype::F32, vec![2, 12, logits.len() / 24], &floats)));
    }
    place.write(name, safetensors::serialize(tensors, None).unwrap());
}

/// The differences that `verify` finds between a model and given logits.
fn differences(place: &Place, golden: &str, options: &[&str]) -> Vec<f64> {
    let output = place.command(&["verify", "--golden", golden, "--format", "json"]).args(options).output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    json["checks"].as_array().unwrap().iter().map(|check| check["difference"].as_f64().unwrap()).collect()
}

/// Whether two adapted models have the same logits: those of zero are compared with both.
#[track_caller]
fn assert_same(place: &Place, one: &[&str], other: &[&str]) {
    let (one, other) = (differences(place, "zero.safetensors", one), differences(place, "zero.safetensors", other));
    assert_eq!(one.len(), 2);
    for (one, other) in one.iter().zip(&other) {
        assert!((one - other).abs() < 1e-4, "{one} and {other}");
    }
}

fn vocabulary(place: &Place) -> usize {
    let config: Value = serde_json::from_slice(&std::fs::read(place.path("model/config.json")).unwrap()).unwrap();
    config["vocab_size"].as_u64().unwrap() as usize
}

fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = file.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect();
    all.sort();
    all
}

#[test]
fn every_adapter_leaves_as_a_peft_folder_that_comes_back_the_same() {
    let place = Place::new();
    let logits = vec![0.0; 24 * vocabulary(&place)];
    batch(&place, "zero.safetensors", Some(logits));
    for method in ["sorsa", "pissa", "lora", "dora", "olora"] {
        trained(&place, method, &["--method", method, "--alpha", "6"]);
        let out = format!("{method}-peft");
        place.command(&["export", "--format", "peft", "--adapter", method, "--out", &out]).succeed();
        let merged = format!("{method}-hf");
        place.command(&["export", "--format", "hf", "--adapter", method, "--out", &merged]).succeed();
        let own = ["--model", "model", "--adapter", method];
        assert_same(&place, &own, &["--model", "model", "--adapter", &out]);
        assert_same(&place, &own, &["--model", &merged]);
        // The adapter does something to the loss, far beyond what is allowed above.
        let (with, without) = (
            differences(&place, "zero.safetensors", &own),
            differences(&place, "zero.safetensors", &["--model", "model"]),
        );
        assert!((with[1] - without[1]).abs() > 5e-4, "{method}: {with:?} {without:?}");

        let imported = format!("{method}-imported");
        place.command(&["import", &out, "--model", "model", "--out", &imported]).succeed();
        assert_same(&place, &own, &["--model", "model", "--adapter", &imported]);
        let again = format!("{method}-again");
        let options = ["--model", "model", "--adapter", &imported, "--out", &again];
        place.command(&["export", "--format", "peft"]).args(options).succeed();
        let file = "adapter_model.safetensors";
        assert_eq!(tensors(&place.path(&out).join(file)), tensors(&place.path(&again).join(file)), "{method}");
    }
}

#[test]
fn a_sorsa_adapter_leaves_as_its_authors_checkpoint_and_comes_back() {
    let place = Place::new();
    batch(&place, "zero.safetensors", Some(vec![0.0; 24 * vocabulary(&place)]));
    trained(&place, "run", &["--method", "sorsa"]);
    place.command(&["export", "--format", "author", "--adapter", "run", "--out", "author"]).succeed();
    place.command(&["import", "author", "--model", "model", "--out", "imported"]).succeed();
    let own = ["--model", "model", "--adapter", "run"];
    assert_same(&place, &own, &["--model", "model", "--adapter", "imported"]);
}

#[test]
fn a_run_starts_from_an_adapter_of_any_form_and_says_what_it_is() {
    let place = Place::new();
    trained(&place, "first", &["--method", "lora", "--set", "adapter.dropout=0.1"]);
    place.command(&["export", "--format", "peft", "--adapter", "first", "--out", "peft"]).succeed();
    let start = |adapter: &str, run: &str| {
        let model = ["finetune", "--model", "model", "--data", "data.jsonl", "--quiet", "--max-steps", "2"];
        let mut command = place.command(&model);
        command.args(["--batch-size", "4", "--set", "data.validation_rows=4", "--adapter", adapter, "--run-dir", run]);
        command
    };
    start("first", "second").succeed();
    start("peft", "third").succeed();
    for run in ["second", "third"] {
        let read = |name: &str| std::fs::read_to_string(place.path(run).join(name)).unwrap();
        let summary: Value = serde_json::from_str(&read("summary.json")).unwrap();
        assert_eq!((&summary["method"], &summary["rank"]), (&"lora".into(), &4.into()), "{run}");
        assert!(read("recipe.toml").contains("dropout = 0.1"), "{run}");
        // It goes on from where the first run ended, not from a fresh adapter, which does nothing.
        let first: Value = serde_json::from_slice(&std::fs::read(place.path("first/summary.json")).unwrap()).unwrap();
        let (before, after) = (summary["loss_before"].as_f64().unwrap(), first["loss_after"].as_f64().unwrap());
        assert!((before - after).abs() < 1e-4, "{run}: {before}, the first ended at {after}");
    }
    let output = start("first", "fourth").args(["--rank", "8"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("lora of rank 4"), "{output:?}");
}

#[cfg(unix)]
#[test]
fn a_merged_model_replaces_an_older_one_and_leaves_the_base_that_it_was_linked_to() {
    let place = Place::new();
    trained(&place, "run", &["--method", "sorsa"]);
    let names = |folder: &str| {
        let entries = std::fs::read_dir(place.path(folder)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let base = std::fs::read(place.path("model/tokenizer.json")).unwrap();
    let commands: [&[&str]; 2] = [&["merge"], &["export", "--format", "hf"]];
    for (index, command) in commands.into_iter().enumerate() {
        let out = format!("out-{index}");
        std::fs::create_dir(place.path(&out)).unwrap();
        std::os::unix::fs::symlink("../model/tokenizer.json", place.path(&out).join("tokenizer.json")).unwrap();
        let linked = place.path(&out).join("tokenizer_config.json");
        std::fs::hard_link(place.path("model/tokenizer_config.json"), linked).unwrap();
        place.write(&format!("{out}/model-00001-of-00002.safetensors"), "old");
        place.write(&format!("{out}/model.safetensors.index.json"), "old");
        place.command(command).args(["--adapter", "run", "--out", &out]).succeed();
        assert_eq!(names(&out), names("model"), "{command:?}");
        for folder in [out.as_str(), "model"] {
            assert_eq!(std::fs::read(place.path(folder).join("tokenizer.json")).unwrap(), base, "{command:?} {folder}");
        }
        place.write(&format!("{out}/notes.txt"), "mine");
        let output = place.command(command).args(["--adapter", "run", "--out", &out]).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && error.contains("notes.txt"), "{error}");
        assert!(place.path(&out).join("notes.txt").exists());
    }
}

#[test]
fn gguf_files_are_written_for_models_and_adapters() {
    let place = Place::new();
    trained(&place, "run", &["--method", "sorsa"]);
    for (format, name) in [("gguf", "model.gguf"), ("gguf-lora", "adapter.gguf")] {
        place.command(&["export", "--format", format, "--adapter", "run", "--out", name]).succeed();
        assert_eq!(std::fs::read(place.path(name)).unwrap()[..4], *b"GGUF");
    }
    let left = std::fs::read_dir(place.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!left.into_iter().any(|name| name.to_string_lossy().contains(".tmp-")));
}

#[test]
fn verify_prints_a_table_and_fails_past_the_tolerance() {
    let place = Place::new();
    batch(&place, "zero.safetensors", Some(vec![0.0; 24 * vocabulary(&place)]));
    let output = place.command(&["verify", "--model", "model", "--golden", "zero.safetensors"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("logits") && table.contains("DIFFERENT"), "{table}");
    let loose = ["verify", "--model", "model", "--golden", "zero.safetensors", "--tolerance", "100"];
    assert!(!place.command(&loose).succeed().contains("DIFFERENT"));
}
