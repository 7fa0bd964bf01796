//! A learning rate that the run finds, and runs that diverge.

mod common;

use std::path::Path;

use common::{Place, Succeed};
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The losses of the run in a folder, steps and evaluations in order, as they are written.
fn losses(run: &Path) -> Vec<String> {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let row = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    log.lines().map(|line| row(line)["loss"].to_string()).collect()
}

fn rate_of_recipe(run: &Path) -> toml::Value {
    let recipe: toml::Table = std::fs::read_to_string(run.join("recipe.toml")).unwrap().parse().unwrap();
    recipe["train"]["optimizer"]["learning_rate"].clone()
}

#[test]
fn a_run_without_a_rate_finds_one_and_its_recipe_gives_the_same_losses_to_the_bit() {
    let place = Place::new();
    for method in ["sorsa", "lora", "full"] {
        let (found, again) = (format!("{method}-found"), format!("{method}-again"));
        let options = ["--method", method, "--max-steps", "6", "--run-dir", &found];
        place.finetune(&options).succeed();
        let search = json(&place.path(&found).join("learning-rate.json"));
        let rate = search["learning_rate"].as_f64().unwrap();
        assert!(search["trials"].as_array().unwrap().len() >= 3, "{search}");
        assert_eq!(rate_of_recipe(&place.path(&found)).as_float(), Some(rate));
        let summary = json(&place.path(&found).join("summary.json"));
        assert_eq!(summary["learning_rate"].as_f64(), Some(rate));
        assert!(summary["learning_rate_search_seconds"].is_number());
        assert!(summary["loss_after"].as_f64() < summary["loss_before"].as_f64(), "{method}: {summary}");

        let recipe = place.path(&found).join("recipe.toml").display().to_string();
        place.command(&["finetune", "--quiet", "--recipe", &recipe, "--run-dir", &again]).succeed();
        assert_eq!(losses(&place.path(&again)), losses(&place.path(&found)), "{method}");
        assert!(!place.path(&again).join("learning-rate.json").exists(), "a rate that is named is not searched");
        // A run that has ended stays what it is.
        place.command(&["finetune", "--quiet", "--resume", &found]).succeed();
        assert_eq!(json(&place.path(&found).join("learning-rate.json")), search);
    }
    let dry: Value = serde_json::from_str(&place.finetune(&["--dry-run", "--format", "json"]).succeed()).unwrap();
    assert_eq!(dry["recipe"]["train"]["optimizer"]["learning_rate"], "auto");
    let named = place.finetune(&["--learning-rate", "2e-4", "--dry-run", "--format", "json"]).succeed();
    let named: Value = serde_json::from_str(&named).unwrap();
    assert_eq!(named["recipe"]["train"]["optimizer"]["learning_rate"], 2e-4);
}

#[test]
fn the_embedded_model_has_a_known_rate_and_may_be_asked_to_find_one() {
    let place = Place::new();
    let rate = |options: &[&str]| {
        let text = place.command(&["finetune", "--dry-run", "--format", "json"]).args(options).succeed();
        serde_json::from_str::<Value>(&text).unwrap()["recipe"]["train"]["optimizer"]["learning_rate"].clone()
    };
    assert_eq!(rate(&[]), 2e-3);
    assert_eq!(rate(&["--lr", "auto"]), "auto");
}

#[test]
fn lr_find_prints_draws_and_writes_json() {
    let place = Place::new();
    let command = |options: &[&str]| {
        let mut command = place.command(&["lr-find", "--model", "model", "--data", "data.jsonl", "--quiet"]);
        command.args(["--rank", "4", "--batch-size", "4", "--set", "data.validation_rows=4", "--max-steps", "6"]);
        command.args(options).succeed()
    };
    let table = command(&["--method", "lora", "--out", "rates.svg"]);
    assert!(table.starts_with("learning rate  loss after the trial  change\n"), "{table}");
    assert!(table.contains("learning rate ") && table.contains("figure: rates.svg"), "{table}");
    let figure = std::fs::read_to_string(place.path("rates.svg")).unwrap();
    assert!(figure.starts_with("<svg") && figure.contains("after the trial"), "{}", &figure[..200]);
    let search: Value = serde_json::from_str(&command(&["--method", "lora", "--json"])).unwrap();
    assert!(search["trials"].as_array().unwrap().len() >= 7);
    assert!(!place.path("lr-find.svg").exists() && !place.path("runs").exists());

    // The rate is the one that `finetune` finds.
    place.finetune(&["--method", "lora", "--max-steps", "6", "--run-dir", "run"]).succeed();
    assert_eq!(json(&place.path("run/learning-rate.json"))["learning_rate"], search["learning_rate"]);
}

#[test]
fn a_run_that_diverges_says_so_and_may_end_with_a_code_of_its_own() {
    let place = Place::new();
    let options = ["--method", "full", "--lr", "3", "--set", "train.clip_norm=0", "--max-steps", "12"];
    let output = place.finetune(&options).args(["--run-dir", "on", "--epochs", "9"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("DIVERGED: step ") && text.contains("--lr 1.0e0 instead of 3.0e0"), "{text}");
    assert!(text.contains("NOT IMPROVED: validation loss") && !text.contains(" after\n"), "{text}");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(stderr.matches("the training loss climbs").count(), 1, "{stderr}");
    let summary = json(&place.path("on/summary.json"));
    assert_eq!((&summary["outcome"], &summary["adapter_is_the_start"]), (&"completed".into(), &true.into()));
    assert_eq!(summary["divergences"][0]["kind"], "training_loss");

    let output = place
        .finetune(&options)
        .args(["--run-dir", "ended", "--epochs", "9", "--stop-on-divergence"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = json(&place.path("ended/summary.json"));
    assert_eq!(summary["outcome"], "diverged");
    let steps = summary["steps"].as_u64().unwrap();
    assert!(steps < 12, "{summary}");
    assert!(place.path(&format!("ended/checkpoints/step-{steps}")).exists());
    let again = place.command(&["finetune", "--quiet", "--resume", "ended"]).output().unwrap();
    assert_eq!(again.status.code(), Some(3), "it has ended, and stays what it is");
}

#[test]
fn a_comparison_searches_around_the_rate_that_each_method_finds() {
    let place = Place::new();
    let mut bench = place.command(&["bench", "--model", "model", "--data", "data.jsonl", "--bench-dir", "bench"]);
    bench.args(["--rank", "4", "--batch-size", "4", "--set", "data.validation_rows=4", "--methods", "lora,full"]);
    bench.args([
        "--seeds",
        "1",
        "--gammas",
        "none",
        "--max-steps",
        "3",
        "--quiet",
        "--extend",
        "1",
        "--format",
        "json",
    ]);
    let found: Value = serde_json::from_str(&bench.succeed()).unwrap();
    let folders: Vec<_> =
        std::fs::read_dir(place.path("bench/learning-rates")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(folders.len(), 2, "{folders:?}");
    for arm in found["arms"].as_array().unwrap() {
        let method = arm["name"].as_str().unwrap();
        let folder = folders.iter().find(|folder| folder.to_string_lossy().contains(&format!("/{method}-"))).unwrap();
        let middle = json(&folder.join("learning-rate.json"))["learning_rate"].as_f64().unwrap();
        let tried: Vec<f64> =
            arm["tried"].as_array().unwrap().iter().map(|tried| tried["learning_rate"].as_f64().unwrap()).collect();
        assert!(tried.len() >= 3 && tried.contains(&middle), "{method}: {tried:?} around {middle}");
    }
}
