//! What the first version (01ef46c) wrote is read by this one: runs are resumed, adapters evaluated and merged.
//! `tests/golden/README.md` says how the files were made.

mod common;

use std::path::{Path, PathBuf};

use common::{Place, Succeed, datasets};
use safetensors::SafeTensors;
use serde_json::Value;

const METHODS: [&str; 5] = ["sorsa", "lora", "dora", "pissa", "olora"];

fn fixtures() -> PathBuf {
    datasets().join("../tests/golden/first_version")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// The losses of a log by kind and step.
fn losses(log: &Path) -> Vec<(String, u64, f64)> {
    let log = std::fs::read_to_string(log).unwrap();
    let rows = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| {
        (row["kind"].as_str().unwrap().to_owned(), row["step"].as_u64().unwrap(), row["loss"].as_f64().unwrap())
    })
    .collect()
}

/// The largest difference of two files of f32 tensors, which must have the same names and shapes.
fn difference(a: &Path, b: &Path) -> f32 {
    let (a, b) = (std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    let (a, b) = (SafeTensors::deserialize(&a).unwrap(), SafeTensors::deserialize(&b).unwrap());
    let mut names = (a.names(), b.names());
    names.0.sort();
    names.1.sort();
    assert_eq!(names.0, names.1);
    let value = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
    let mut largest = 0.0_f32;
    for name in names.0 {
        let (a, b) = (a.tensor(name).unwrap(), b.tensor(name).unwrap());
        assert_eq!(a.shape(), b.shape(), "{name}");
        for (a, b) in a.data().chunks_exact(4).zip(b.data().chunks_exact(4)) {
            largest = largest.max((value(a) - value(b)).abs());
        }
    }
    largest
}

/// Processors sum in different orders, so that equality to the bit can only be asked of one.
const ROUNDING: f64 = 1e-5;

#[test]
fn a_run_that_the_first_version_began_is_resumed_to_the_same_end() {
    let place = Place::new();
    for method in ["sorsa", "lora"] {
        let (fixture, run) = (fixtures().join(method), place.path(method));
        copy(&fixture, &run);
        // The log ends where its checkpoint is; the end of the run is what the resumed one must come to.
        std::fs::remove_dir_all(run.join("adapter")).unwrap();
        std::fs::remove_file(run.join("summary.json")).unwrap();
        place.command(&["finetune", "--quiet", "--resume", method]).succeed();

        let (expected, found) = (losses(&fixture.join("metrics.jsonl")), losses(&run.join("metrics.jsonl")));
        assert_eq!(expected.len(), found.len(), "{method}: {found:?}");
        for (expected, found) in expected.iter().zip(&found) {
            assert_eq!((&expected.0, expected.1), (&found.0, found.1), "{method}");
            assert!((expected.2 - found.2).abs() < ROUNDING, "{method}: {expected:?}, found {found:?}");
        }
        let adapter = "adapter/adapter.safetensors";
        let far = difference(&fixture.join(adapter), &run.join(adapter));
        assert!(f64::from(far) < ROUNDING, "{method}: factors differ by {far}");
        let (before, after) = (json(&fixture.join("summary.json")), json(&run.join("summary.json")));
        for field in before.as_object().unwrap().keys() {
            assert!(after.get(field).is_some(), "{method}: summary.json lost `{field}`");
        }
    }
}

#[test]
fn adapters_of_the_first_version_mean_the_same_model() {
    let place = Place::new();
    let text = fixtures().join("text.jsonl");
    let text = text.to_str().unwrap();
    for method in METHODS {
        let run = fixtures().join(method);
        let out =
            place.command(&["eval", "--quiet", "--format", "json", "--text", text, "--adapter"]).arg(&run).succeed();
        let (expected, found) = (json(&run.join("text_loss.json")), serde_json::from_str::<Value>(&out).unwrap());
        assert_eq!(expected["tokens"], found["tokens"], "{method}");
        let (expected, found) = (expected["loss"].as_f64().unwrap(), found["loss"].as_f64().unwrap());
        assert!((expected - found).abs() < ROUNDING, "{method}: loss {found}, expected {expected}");

        let merged = format!("merged-{method}");
        place.command(&["merge", "--out", &merged, "--adapter"]).arg(&run).succeed();
        let out = place.command(&["eval", "--quiet", "--format", "json", "--text", text, "--model", &merged]).succeed();
        let merged = serde_json::from_str::<Value>(&out).unwrap()["loss"].as_f64().unwrap();
        assert!((expected - merged).abs() < ROUNDING, "{method}: merged loss {merged}, expected {expected}");
    }
}

#[test]
fn recipes_of_the_first_version_resolve_to_the_same_run() {
    let place = Place::new();
    for method in METHODS {
        let recipe = fixtures().join(method).join("recipe.toml");
        let out = place.command(&["finetune", "--dry-run", "--recipe"]).arg(&recipe).succeed();
        let resolved: toml::Table = out.parse().unwrap();
        let recorded: toml::Table = std::fs::read_to_string(&recipe).unwrap().parse().unwrap();
        assert_same("", &recorded, &resolved);
    }
}

/// Every field of `recorded` is in `resolved` with the same value.
fn assert_same(path: &str, recorded: &toml::Table, resolved: &toml::Table) {
    for (field, value) in recorded {
        let path = format!("{path}.{field}");
        match (value, resolved.get(field)) {
            (toml::Value::Table(recorded), Some(toml::Value::Table(resolved))) => {
                assert_same(&path, recorded, resolved);
            }
            (value, found) => assert_eq!(Some(value), found, "{path}"),
        }
    }
}
