//! `sorsa analyze` on runs of the real binary: numbers that must hold, files, and refusals.

mod common;

use std::path::Path;

use common::{Place, Succeed};
use serde_json::Value;

fn train(place: &Place, run: &str, options: &[&str]) {
    place
        .finetune(&["--max-steps", "4", "--set", "train.checkpoint_every=2", "--set", "train.keep_checkpoints=9"])
        .args(["--lr", "1e-3", "--set", "train.schedule.warmup_ratio=0", "--run-dir", run])
        .args(options)
        .succeed();
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The averages of a run at a step.
fn mean(run: &Value, step: u64) -> &Value {
    let checkpoints = run["checkpoints"].as_array().unwrap();
    &checkpoints.iter().find(|checkpoint| checkpoint["step"] == step).unwrap()["mean"]
}

fn number(values: &Value, name: &str) -> f64 {
    values[name].as_f64().unwrap_or_else(|| panic!("{name} is {} in {values}", values[name]))
}

#[test]
fn every_method_starts_from_its_base_and_its_numbers_agree_with_the_log() {
    let place = Place::new();
    for method in ["sorsa", "pissa", "lora", "dora", "olora", "partial", "full"] {
        train(&place, method, &["--method", method]);
    }
    let args = ["analyze", "sorsa", "pissa", "lora", "dora", "olora", "partial", "full", "--quiet", "--out", "out"];
    let table = place.command(&args).succeed();
    assert!(table.contains("SORSA, gamma 4e-4  4") && table.contains("results: out"), "{table}");
    let analysis = json(&place.path("out/analysis.json"));
    for run in analysis["runs"].as_array().unwrap() {
        let (start, end) = (mean(run, 0), mean(run, 4));
        let method = run["method"].as_str().unwrap();
        assert_eq!(run["checkpoints"][0]["modules"].as_array().unwrap().len(), 14, "{method}");
        // Nothing was trained yet; the rest is what f32 makes of taking factors out and in.
        for (measure, limit) in [("d_sigma", 1e-6), ("d_d", 1e-6), ("largest_angle_u", 0.1), ("largest_angle_v", 0.1)] {
            assert!(number(start, measure) < limit, "{method}: {measure} {}", start[measure]);
            assert!(number(end, measure) > 3.0 * number(start, measure), "{method}: {measure} {}", end[measure]);
        }
        assert!(number(end, "d_d_matched") <= number(end, "d_d") && number(end, "d_d") < 1.0);
        assert!(number(end, "kappa").is_finite() && number(end, "kappa") > 1.0);
        assert!(number(end, "d_sigma") > number(mean(run, 2), "d_sigma"), "{method} drifts on");
        let factored = !["partial", "full"].contains(&method);
        assert_eq!(end["kappa_part"].is_number(), factored, "{method}");
        assert_eq!(end["defect_u"].is_number(), method == "sorsa", "{method}");
        assert_eq!(end["trained_angle_u"].is_number(), ["sorsa", "pissa", "olora"].contains(&method), "{method}");
    }

    // A step logs the defect that it found, before its update: that of the checkpoint of the step before.
    let log = std::fs::read_to_string(place.path("sorsa/metrics.jsonl")).unwrap();
    let rows: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let logged = rows.iter().find(|row| row["kind"] == "step" && row["step"] == 3).unwrap()["defect"].as_f64().unwrap();
    let sorsa = mean(&analysis["runs"][0], 2);
    let found = 0.5 * (number(sorsa, "defect_u") + number(sorsa, "defect_v"));
    assert!((found - logged).abs() < 1e-5 * logged.max(1e-2), "{found} here, {logged} in the log");
}

#[test]
fn one_command_leaves_tables_figures_and_a_page() {
    let place = Place::new();
    train(&place, "with", &[]);
    train(&place, "without", &["--gamma", "0"]);
    let runs = ["analyze", "with", "without", "--quiet", "--modules", "q_proj,v_proj"];
    let averages = place.command(&runs).args(["--format", "csv"]).succeed();
    assert!(averages.starts_with("run,step,d_sigma,d_d,d_d_matched,kappa,"), "{averages}");
    assert_eq!(averages.lines().count(), 1 + 2 * 3, "{averages}");
    assert!(averages.contains("\n\"SORSA, gamma 0\",4,"), "{averages}");
    let out = place.path("analysis");
    let rows = std::fs::read_to_string(out.join("analysis.csv")).unwrap();
    // Two runs, three checkpoints, two blocks with two modules.
    assert_eq!(rows.lines().count(), 1 + 2 * 3 * 4, "{rows}");
    for figure in ["drift", "drift-mean", "drift-matched", "spectra", "defect", "kappa", "kappa-part", "angles"] {
        let svg = std::fs::read_to_string(out.join(format!("{figure}.svg"))).unwrap();
        assert!(svg.contains("SORSA, gamma 4e-4") && svg.contains("SORSA, gamma 0"), "{figure}");
        assert!(std::fs::read(out.join(format!("{figure}.png"))).unwrap().starts_with(b"\x89PNG"));
    }
    let drift = std::fs::read_to_string(out.join("drift.svg")).unwrap();
    assert_eq!(
        drift.matches("<circle").count(),
        3 * 4 + 1,
        "a point for each weight and checkpoint, one in the legend"
    );
    let page = std::fs::read_to_string(out.join("analysis.html")).unwrap();
    assert!(page.matches("<svg").count() >= 8 && !page.contains("<script"));

    // One run alone keeps its analysis; two of the same name are told apart by their folders.
    let leading = place.command(&["analyze", "with", "--quiet", "--triplets", "r", "--format", "json"]).succeed();
    assert_eq!(serde_json::from_str::<Value>(&leading).unwrap()["triplets"], "r");
    assert!(place.path("with/analysis/analysis.html").exists());
    let twice = place.command(&["analyze", "with", "with", "--quiet", "--out", "twice"]).succeed();
    assert!(twice.contains("SORSA, gamma 4e-4 (with)"), "{twice}");
}

#[test]
fn what_is_no_run_is_refused_in_one_line() {
    let place = Place::new();
    train(&place, "run", &["--target-modules", "q_proj,v_proj"]);
    let refused = |args: &[&str]| {
        let output = place.command(args).args(["--quiet", "--out", "nothing"]).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.starts_with("error: ") && told.lines().count() == 1 && output.stdout.is_empty(), "{told}");
        assert!(!place.path("nothing").exists());
        told
    };
    assert_eq!(refused(&["analyze", "model"]), "error: model holds no run: there is no recipe.toml\n");
    let told = refused(&["analyze", "run", "--modules", "r_proj"]);
    assert!(told.contains("`r_proj` matches no linear layer"), "{told}");
    let told = refused(&["analyze", "run", "--modules", "k_proj"]);
    assert!(told.contains("run trained none of the modules asked for"), "{told}");

    // Other weights under the same name.
    std::fs::rename(place.path("model"), place.path("kept")).unwrap();
    let told = refused(&["analyze", "run"]);
    assert!(told.contains("model"), "{told}");
    place.make_model("model", 1);
    let told = refused(&["analyze", "run"]);
    assert!(told.contains("is not the weight that the adapter was made for"), "{told}");
    std::fs::remove_dir_all(place.path("model")).unwrap();
    std::fs::rename(place.path("kept"), place.path("model")).unwrap();

    let parameters = place.path("run/checkpoints/step-2/parameters.safetensors");
    let whole = std::fs::read(&parameters).unwrap();
    std::fs::write(&parameters, &whole[..whole.len() - 100]).unwrap();
    let told = refused(&["analyze", "run"]);
    assert!(told.contains("not a whole safetensors file"), "{told}");
    std::fs::remove_dir_all(place.path("run/checkpoints")).unwrap();
    assert_eq!(refused(&["analyze", "run"]), "error: run has no checkpoints\n");
}
