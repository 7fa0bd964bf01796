//! `sorsa convert` and `sorsa analyze` of adapters and tuned models, by the real binary.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use common::{Place, Succeed};
use safetensors::SafeTensors;
use serde_json::Value;

/// f32 tensors by name, with their shapes.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |data: &[u8]| data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    file.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), floats(view.data())))).collect()
}

fn weights(place: &Place, folder: &str) -> Tensors {
    read(&place.path(folder).join("model.safetensors"))
}

/// The largest difference between two models' numbers.
fn distance(a: &Tensors, b: &Tensors) -> f32 {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let pairs = a.iter().flat_map(|(name, (_, values))| values.iter().zip(&b[name].1));
    pairs.fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

/// A run of some steps with a rate that moves the weights.
fn train(place: &Place, name: &str, args: &[&str]) {
    place.finetune(&["--run-dir", name, "--max-steps", "3", "--lr", "0.02"]).args(args).succeed();
}

fn merge(place: &Place, adapter: &str, out: &str) {
    place.command(&["merge", "--model", "model", "--adapter", adapter, "--out", out, "--dtype", "f32"]).succeed();
}

fn convert(place: &Place, args: &[&str]) -> Value {
    let text = place.command(&["convert", "--quiet", "--format", "json"]).args(args).succeed();
    serde_json::from_str(&text).unwrap()
}

/// The one line of an error, which may follow warnings.
#[track_caller]
fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{text}");
    assert!(text.lines().last().unwrap().starts_with("error: "), "{text}");
    text
}

fn config(place: &Place, adapter: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path(adapter).join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn a_merged_lora_comes_back_at_its_rank_and_a_smaller_rank_says_what_is_lost() {
    let place = Place::new();
    train(&place, "run", &["--method", "lora"]);
    merge(&place, "run", "merged");
    let table = convert(&place, &["merged", "--model", "model", "--rank", "4", "--out", "lora"]);
    assert!(table["all"]["error"].as_f64().unwrap() < 1e-4, "{table}");
    assert_eq!(
        (config(&place, "lora")["r"].as_u64(), config(&place, "lora")["lora_alpha"].as_u64()),
        (Some(4), Some(4))
    );
    merge(&place, "lora", "again");
    let (merged, again) = (weights(&place, "merged"), weights(&place, "again"));
    assert!(distance(&merged, &weights(&place, "model")) > 1e-3);
    assert!(distance(&merged, &again) < 1e-5, "{}", distance(&merged, &again));

    let table = convert(&place, &["merged", "--model", "model", "--rank", "1", "--out", "small"]);
    let (kept, error) = (table["all"]["kept"].as_f64().unwrap(), table["all"]["error"].as_f64().unwrap());
    assert!((kept * kept + error * error - 1.0).abs() < 1e-6 && error > 1e-3, "{table}");
    merge(&place, "small", "other");
    let [mut lost, mut whole] = [0f64; 2];
    let (base, other) = (weights(&place, "model"), weights(&place, "other"));
    for (name, (_, values)) in &merged {
        for (index, value) in values.iter().enumerate() {
            lost += f64::from(value - other[name].1[index]).powi(2);
            whole += f64::from(value - base[name].1[index]).powi(2);
        }
    }
    assert!(((lost / whole).sqrt() - error).abs() < 1e-4, "{} and {error}", (lost / whole).sqrt());
}

#[test]
fn an_energy_gives_each_module_a_rank_of_its_own_that_keeps_it() {
    let place = Place::new();
    train(&place, "run", &["--method", "sorsa"]);
    let table = convert(&place, &["run", "--energy", "0.9", "--out", "lora"]);
    let kept = table["all"]["kept"].as_f64().unwrap();
    assert!(kept * kept >= 0.9 && kept < 1.0, "{table}");
    let config = config(&place, "lora");
    let ranks = config["rank_pattern"].as_object().unwrap();
    assert!(!ranks.is_empty(), "{config}");
    let tensors = read(&place.path("lora/adapter_model.safetensors"));
    for (path, rank) in ranks {
        let a = &tensors[&format!("base_model.model.{path}.lora_A.weight")].0;
        assert_eq!(Some(a[0] as u64), rank.as_u64());
        assert_eq!(config["alpha_pattern"][path], *rank);
    }
    // Exact without a rank, whatever the method.
    for method in ["sorsa", "lora-xs", "olora"] {
        train(&place, method, &["--method", method]);
        convert(&place, &[method, "--out", &format!("{method}-exact")]);
        merge(&place, method, &format!("{method}-merged"));
        merge(&place, &format!("{method}-exact"), &format!("{method}-again"));
        let far = distance(&weights(&place, &format!("{method}-merged")), &weights(&place, &format!("{method}-again")));
        assert!(far < 1e-5, "{method}: {far}");
    }
}

#[test]
fn full_fine_tuning_becomes_factors_and_whole_norms_and_the_rest_is_named() {
    let place = Place::new();
    place.finetune(&["--run-dir", "full", "--max-steps", "3", "--lr", "0.003", "--method", "full"]).succeed();
    merge(&place, "full", "merged");
    let from_run = convert(&place, &["full", "--rank", "48", "--out", "a"]);
    let from_folder = convert(&place, &["merged", "--model", "model", "--rank", "48", "--out", "b"]);
    assert_eq!(from_run["whole"], from_folder["whole"]);
    assert_eq!(from_folder["left_out"], serde_json::json!(["model.embed_tokens.weight"]));
    assert_eq!(from_folder["whole"].as_array().unwrap().len(), 5);
    let mut merged = weights(&place, "merged");
    for name in ["a", "b"] {
        merge(&place, name, &format!("{name}-merged"));
        let mut again = weights(&place, &format!("{name}-merged"));
        // It is the head too, and PEFT would train a copy.
        for tensors in [&mut merged, &mut again] {
            tensors.remove("model.embed_tokens.weight");
        }
        assert!(distance(&merged, &again) < 1e-5, "{name}: {}", distance(&merged, &again));
    }
    let text = refused(&mut place.command(&["convert", "full", "--out", "c"]));
    assert!(text.contains("--rank or --energy"), "{text}");
}

#[test]
fn sums_of_adapters_are_sums_of_their_changes_and_need_one_base() {
    let place = Place::new();
    train(&place, "a", &["--method", "sorsa"]);
    train(&place, "b", &["--method", "lora", "--seed", "5"]);
    convert(&place, &["--add", "a=0.5", "--add", "b=-2", "--out", "sum"]);
    for name in ["a", "b", "sum"] {
        merge(&place, name, &format!("{name}-merged"));
    }
    let [base, a, b, sum] = ["model", "a-merged", "b-merged", "sum-merged"].map(|name| weights(&place, name));
    for (name, (_, base)) in &base {
        for (index, before) in base.iter().enumerate() {
            let expected = before + 0.5 * (a[name].1[index] - before) - 2.0 * (b[name].1[index] - before);
            assert!((sum[name].1[index] - expected).abs() < 1e-5, "{name}");
        }
    }
    let table = convert(&place, &["--add", "a=0.5", "--add", "b=0.5", "--rank", "3", "--out", "small"]);
    assert!(table["all"]["error"].as_f64().unwrap() > 0.0 && table["all"]["ranks"] == serde_json::json!([3, 3]));

    place.make_model("other", 7);
    let mut command =
        place.command(&["finetune", "--model", "other", "--data", "data.jsonl", "--quiet", "--run-dir", "c"]);
    command.args(["--rank", "4", "--batch-size", "4", "--set", "data.validation_rows=4", "--max-steps", "1"]).succeed();
    let text = refused(&mut place.command(&["convert", "--add", "a=1", "--add", "c=1", "--out", "no"]));
    assert!(text.contains("the bases differ: a was trained on model, c on other"), "{text}");
    let text =
        refused(&mut place.command(&["convert", "--add", "a=1", "--add", "c=1", "--model", "model", "--out", "no"]));
    assert!(text.contains("is not the weight that the adapter was made for"), "{text}");
    let text = refused(&mut place.command(&["convert", "--add", "a", "--out", "no"]));
    assert!(text.contains("--add a: expected FROM=NUMBER"), "{text}");
    assert!(!place.path("no").exists());
}

#[test]
fn other_models_other_shapes_and_numbers_that_are_not_finite_are_refused() {
    let place = Place::new();
    place.make_model("other", 7);
    let text = refused(&mut place.command(&["convert", "other", "--model", "model", "--rank", "4", "--out", "no"]));
    assert!(text.contains("no fine-tuned version of model"), "{text}");

    place
        .command(&["pretrain", "--init-only", "--out", "wide", "--layers", "2", "--hidden-size", "64", "--quiet"])
        .args(["--intermediate-size", "48", "--heads", "2", "--kv-heads", "1", "--tokenizer"])
        .arg(common::datasets().join("base"))
        .succeed();
    let text = refused(&mut place.command(&["convert", "wide", "--model", "model", "--rank", "4", "--out", "no"]));
    assert!(text.contains("like in the base, found [") && text.contains("; and 15 more"), "{text}");

    let path = place.path("other/model.safetensors");
    let mut bytes = std::fs::read(place.path("model/model.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let text = refused(&mut place.command(&["convert", "other", "--model", "model", "--rank", "4", "--out", "no"]));
    assert!(text.contains("are not finite"), "{text}");
    assert!(!place.path("no").exists());
    let text = refused(&mut place.command(&["convert", "other", "--out", "no", "--rank", "4"]));
    assert!(text.contains("name the base of the tuned model with --model"), "{text}");
}

#[test]
fn intruders_are_counted_and_scaled_away() {
    let place = Place::new();
    // A scale that brings new leading vectors.
    train(&place, "run", &["--method", "lora", "--alpha", "16", "--target-modules", "q_proj,up_proj"]);
    merge(&place, "run", "merged");
    let report = |from: &[&str]| -> Value {
        let text = place.command(&["analyze", "--intruders", "--format", "json", "--quiet"]).args(from).succeed();
        serde_json::from_str(&text).unwrap()
    };
    let of_run = report(&["run"]);
    let count = of_run["all"]["intruders"].as_u64().unwrap();
    assert!(count > 0, "{of_run}");
    assert_eq!(of_run["all"]["modules"], 4);
    assert_eq!(report(&["merged", "--model", "model"])["all"]["intruders"], count);
    let table = convert(&place, &["run", "--without-intruders=0.1", "--out", "less"]);
    assert_eq!(table["all"]["intruders"][0], count);
    assert!(table["all"]["moved"].as_f64().unwrap() > 0.1, "{table}");
    let left = report(&["less", "--model", "model"])["all"]["intruders"].as_u64().unwrap();
    assert_eq!(table["all"]["intruders"][1], left);
    assert!(left < count, "{left} of {count}");
    // A weight that did not turn has none.
    train(&place, "calm", &["--method", "lora", "--set", "train.optimizer.learning_rate=1e-6"]);
    assert_eq!(report(&["calm"])["all"]["intruders"], 0);
}

#[test]
fn the_spectrum_of_an_adapter_is_the_same_in_both_forms() {
    let place = Place::new();
    train(&place, "run", &["--method", "sorsa"]);
    place.command(&["export", "--format", "peft", "--adapter", "run", "--out", "peft"]).succeed();
    let spectra = |args: &[&str]| -> Value {
        let text = place.command(&["analyze", "--format", "json"]).args(args).succeed();
        serde_json::from_str(&text).unwrap()
    };
    let (own, peft) = (spectra(&["run/adapter", "--model", "model"]), spectra(&["peft", "--model", "model"]));
    let parts: Vec<&str> = own["all"].as_array().unwrap().iter().map(|row| row["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["factors", "change"]);
    let (factors, change, exported) = (&own["all"][0], &own["all"][1], &peft["all"][0]);
    assert_eq!((factors["rank"].as_f64(), change["rank"].as_f64()), (Some(4.0), Some(8.0)));
    for measure in ["rank", "effective_rank", "stable_rank", "norm", "relative_norm"] {
        let (one, other) = (change[measure].as_f64().unwrap(), exported[measure].as_f64().unwrap());
        assert!((one / other - 1.0).abs() < 1e-4, "{measure}: {one}, {other}");
    }
    assert!(factors["kappa"].as_f64().unwrap() > 1.0 && factors["effective_rank"].as_f64().unwrap() <= 4.0);
    let table = place.command(&["analyze", "peft"]).succeed();
    assert!(table.starts_with("modules"), "{table}");
}

#[test]
fn a_run_goes_on_as_another_method_and_its_export_and_resumption_stay_exact() {
    let place = Place::new();
    train(&place, "first", &["--method", "sorsa"]);
    merge(&place, "first", "first-merged");
    for method in ["lora", "pissa", "olora", "sorsa"] {
        // A rate of nothing shows the start.
        let start = format!("{method}-start");
        let mut command = place.command(&[
            "finetune",
            "--data",
            "data.jsonl",
            "--quiet",
            "--batch-size",
            "4",
            "--continue-from",
            "first",
        ]);
        let rest =
            ["--set", "data.validation_rows=4", "--method", method, "--max-steps", "1", "--lr", "1e-30", "--run-dir"];
        command.args(rest).arg(&start).succeed();
        merge(&place, &start, &format!("{start}-merged"));
        let far = distance(&weights(&place, "first-merged"), &weights(&place, &format!("{start}-merged")));
        assert!(far < 1e-5, "{method}: {far}");

        let mut command = place.command(&[
            "finetune",
            "--data",
            "data.jsonl",
            "--quiet",
            "--batch-size",
            "4",
            "--continue-from",
            "first",
        ]);
        let rest =
            ["--set", "data.validation_rows=4", "--method", method, "--max-steps", "3", "--lr", "0.01", "--run-dir"];
        command.args(rest).arg(method).succeed();
        merge(&place, method, &format!("{method}-merged"));
        place
            .command(&["export", "--format", "peft", "--adapter", method, "--out", &format!("{method}-peft")])
            .succeed();
        merge(&place, &format!("{method}-peft"), &format!("{method}-again"));
        let [merged, again] = ["merged", "again"].map(|name| weights(&place, &format!("{method}-{name}")));
        assert!(distance(&merged, &again) < 1e-5, "{method}: {}", distance(&merged, &again));
        assert!(distance(&merged, &weights(&place, "first-merged")) > 1e-4, "{method}");
        // The analysis reads what the adapter carries along.
        place.command(&["analyze", method, "--quiet", "--modules", "q_proj"]).succeed();
    }
    let text = refused(
        place.finetune(&["--continue-from", "first", "--method", "lora", "--run-dir", "no"]).arg("--max-steps=1"),
    );
    assert!(text.contains("rank 4 leaves out") && text.contains("whose rank is 8"), "{text}");
    assert!(!place.path("no").exists());
}

#[test]
fn two_methods_in_one_run_train_resume_merge_and_leave_as_one_lora() {
    let place = Place::new();
    let args = ["--method", "sorsa", "--set", "adapter.method_pattern={\"*.mlp.*\" = \"lora\"}"];
    let table = place.finetune(&args).arg("--dry-run").succeed();
    assert!(table.contains("  sorsa") && table.contains("  lora"), "{table}");
    train(&place, "run", &args);
    merge(&place, "run", "merged");
    place.command(&["export", "--format", "peft", "--adapter", "run", "--out", "peft"]).succeed();
    merge(&place, "peft", "again");
    let (merged, again) = (weights(&place, "merged"), weights(&place, "again"));
    assert!(distance(&merged, &again) < 1e-5 && distance(&merged, &weights(&place, "model")) > 1e-3);
    let recipe = std::fs::read_to_string(place.path("run/recipe.toml")).unwrap();
    assert!(recipe.contains("[adapter.method_pattern]\n\"*.mlp.*\" = \"lora\""), "{recipe}");
    place.command(&["finetune", "--resume", "run", "--quiet"]).succeed();
    place.command(&["analyze", "run", "--quiet"]).succeed();
}
