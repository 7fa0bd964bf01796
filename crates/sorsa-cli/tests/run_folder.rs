//! The folder of a run: one process at a time writes to it, and whoever resumes it finds out what is damaged or was changed.

mod common;

use std::path::Path;
use std::process::{Child, Output, Stdio};

use common::process::wait_for;
use common::{Place, Succeed};

/// Twelve steps with a checkpoint every third.
const OPTIONS: [&str; 10] = [
    "--max-steps",
    "12",
    "--set",
    "train.checkpoint_every=3",
    "--set",
    "train.eval_every=3",
    "--set",
    "train.keep_checkpoints=9",
    "--set",
    "data.template=question",
];

/// A name, and what is done to a folder.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

fn train(place: &Place, run: &str) {
    place.finetune(&OPTIONS).args(["--run-dir", run]).succeed();
}

fn resume(place: &Place, run: &str) -> Output {
    place.command(&["finetune", "--quiet", "--resume", run]).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn refused(output: &Output, parts: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert_eq!(message.lines().filter(|line| line.starts_with("error:")).count(), 1, "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

/// Every number of a log that does not depend on the clock.
fn losses(run: &Path) -> Vec<String> {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    rows.map(|row| format!("{} {} {} {}", row["kind"], row["step"], row["loss"], row["grad_norm"])).collect()
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

/// A copy of a run as it was before its end.
fn cut(place: &Place, run: &str, name: &str) {
    let folder = place.path(name);
    copy(&place.path(run), &folder);
    std::fs::remove_dir_all(folder.join("adapter")).unwrap();
    for file in ["summary.json", "report.html"] {
        std::fs::remove_file(folder.join(file)).unwrap();
    }
}

#[track_caller]
fn same(place: &Place, run: &str, whole: &str) {
    assert_eq!(losses(&place.path(run)), losses(&place.path(whole)), "{run}");
    let adapter = |run: &str| std::fs::read(place.path(run).join("adapter/adapter.safetensors")).unwrap();
    assert!(adapter(run) == adapter(whole), "{run}: the adapter differs");
}

#[test]
fn a_folder_is_one_process_s_from_before_the_first_evaluation() {
    let place = Place::new();
    // The first process does not come to an end, however slow the others are, and has the checkpoint of its start alone.
    let long = ["--max-steps", "100000", "--epochs", "100000", "--run-dir", "run"];
    let long = [&long[..], &["--set", "train.checkpoint_every=0", "--set", "train.eval_every=0"]].concat();
    let mut first = place.finetune(&long).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&mut first, || place.path("run/.lock").exists());
    refused(&place.finetune(&long).output().unwrap(), &["run is in use by another process (", "name another folder"]);
    wait_for(&mut first, || place.path("run/checkpoints/step-0").exists());
    refused(&resume(&place, "run"), &["run is in use by another process ("]);
    refused(&place.finetune(&long).output().unwrap(), &["run is in use by another process ("]);
    // A process that is killed holds nothing, though its lock file stays.
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(place.path("run/.lock").exists());
    refused(&place.finetune(&long).output().unwrap(), &["run holds a run already", "--resume"]);
    let recipe = std::fs::read_to_string(place.path("run/recipe.toml")).unwrap();
    place.write("run/recipe.toml", recipe.replace("max_steps = 100000", "max_steps = 20"));
    let output = resume(&place, "run");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("train.max_steps was 100000 and is 20"), "{}", stderr(&output));
    assert!(!place.path("run/.lock").exists());
}

#[test]
fn runs_that_start_at_once_have_folders_of_their_own() {
    let place = Place::new();
    let start = |seed: &str| {
        let mut command = place.finetune(&["--max-steps", "2", "--seed", seed]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<Child> = ["1", "2", "3", "4"].map(start).into();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let seeds = (1..=4).map(|number| {
        let summary = std::fs::read(place.path(&format!("runs/model-sorsa-r4-{number}/summary.json"))).unwrap();
        serde_json::from_slice::<serde_json::Value>(&summary).unwrap()["seed"].as_u64().unwrap()
    });
    let mut seeds: Vec<u64> = seeds.collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [1, 2, 3, 4]);
}

#[test]
fn models_that_are_pretrained_side_by_side_share_nothing() {
    let place = Place::new();
    let pretrain = |name: &str, seed: &str| {
        let mut command = place.command(&["pretrain", "--quiet", "--out", name, "--steps", "3", "--seed", seed]);
        command.args(["--layers", "1", "--hidden-size", "32", "--intermediate-size", "48", "--heads", "2"]);
        command.args(["--kv-heads", "1", "--documents", "300", "--batch-size", "2"]);
        command
    };
    pretrain("models/a", "1").succeed();
    let log = std::fs::read(place.path("models/a-training/metrics.jsonl")).unwrap();
    let weights = std::fs::read(place.path("models/a/model.safetensors")).unwrap();
    pretrain("models/b", "2").arg("--resume").succeed();
    assert_eq!(std::fs::read(place.path("models/a-training/metrics.jsonl")).unwrap(), log);
    assert!(std::fs::read(place.path("models/b/model.safetensors")).unwrap() != weights);
    let names: Vec<_> =
        std::fs::read_dir(place.path("models")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");

    // What an earlier build left in the parent is not taken for this model's without being asked for.
    for name in ["checkpoints", "metrics.jsonl"] {
        std::fs::rename(place.path("models/a-training").join(name), place.path("models").join(name)).unwrap();
    }
    let output = pretrain("models/c", "3").arg("--resume").output().unwrap();
    refused(&output, &["models/c-training", "mv models/checkpoints models/metrics.jsonl models/c-training/"]);
}

#[test]
fn a_damaged_checkpoint_costs_the_steps_since_the_one_before() {
    let place = Place::new();
    train(&place, "whole");
    let newest = |run: &str| place.path(run).join("checkpoints/step-12");
    let flip = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let damages: [Damage; 7] = [
        ("flipped", &|folder| flip(&folder.join("parameters.safetensors"))),
        ("flipped-moments", &|folder| flip(&folder.join("optimizer.safetensors"))),
        ("other-state", &|folder| {
            std::fs::copy(folder.with_file_name("step-9").join("state.json"), folder.join("state.json"))
                .map(drop)
                .unwrap();
        }),
        ("empty", &|folder| std::fs::write(folder.join("state.json"), "").unwrap()),
        ("zeros", &|folder| std::fs::write(folder.join("parameters.safetensors"), [0; 500]).unwrap()),
        ("no-optimizer", &|folder| std::fs::remove_file(folder.join("optimizer.safetensors")).unwrap()),
        ("edited", &|folder| {
            let state = std::fs::read_to_string(folder.join("state.json")).unwrap();
            std::fs::write(folder.join("state.json"), state.replace("\"tokens\": ", "\"tokens\": 1")).unwrap();
        }),
    ];
    for (name, damage) in damages {
        cut(&place, "whole", name);
        damage(&newest(name));
        let output = resume(&place, name);
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        let word = "the run goes on from a checkpoint before step 12";
        assert!(stderr(&output).contains(word), "{name}: {}", stderr(&output));
        same(&place, name, "whole");
        assert!(place.path(name).join("checkpoints/damaged-step-12").exists(), "{name}");
    }
    // Earlier builds wrote no hash: what can be read is believed, the rest is damaged.
    cut(&place, "whole", "earlier");
    for step in [0, 3, 6, 9, 12] {
        let path = place.path(&format!("earlier/checkpoints/step-{step}/state.json"));
        let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert!(state.as_object_mut().unwrap().remove("content").is_some());
        std::fs::write(&path, state.to_string()).unwrap();
    }
    std::fs::write(newest("earlier").join("optimizer.safetensors"), "cut").unwrap();
    assert!(resume(&place, "earlier").status.success());
    same(&place, "earlier", "whole");

    cut(&place, "whole", "hopeless");
    for step in [0, 3, 6, 9, 12] {
        flip(&place.path(&format!("hopeless/checkpoints/step-{step}/parameters.safetensors")));
    }
    let output = resume(&place, "hopeless");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("every checkpoint in hopeless/checkpoints is damaged"), "{}", stderr(&output));
    assert!(place.path("hopeless/checkpoints/step-12").exists(), "nothing is set aside if nothing is whole");
}

#[test]
fn what_a_power_failure_leaves_of_a_log_is_cut_with_a_word() {
    let place = Place::new();
    train(&place, "whole");
    let log = std::fs::read(place.path("whole/metrics.jsonl")).unwrap();
    let (zeros, torn) = ([&log[..], &[0; 300], b"\n"].concat(), [&log[..], b"{\"kind\":\"st"].concat());
    for (name, content, word) in [
        ("zeros", Some(zeros), Some("one line that was cut short or damaged is removed")),
        ("torn", Some(torn), Some("one line that was cut short or damaged is removed")),
        ("short", Some(log[..log.len() / 2].to_vec()), Some("has no line for step")),
        ("missing", None, Some("is missing: it begins again after step 9")),
        ("whole-log", Some(log.clone()), None),
    ] {
        cut(&place, "whole", name);
        std::fs::remove_dir_all(place.path(name).join("checkpoints/step-12")).unwrap();
        let path = place.path(name).join("metrics.jsonl");
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let output = resume(&place, name);
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        match word {
            Some(word) => assert!(stderr(&output).contains(word), "{name}: {}", stderr(&output)),
            None => assert_eq!(stderr(&output), ""),
        }
        if !["short", "missing"].contains(&name) {
            same(&place, name, "whole");
        }
    }
}

#[test]
fn a_run_whose_start_is_damaged_says_so_in_one_error() {
    let place = Place::new();
    train(&place, "whole");
    let damages: [Damage; 4] = [
        ("cut", &|start| std::fs::write(start.join("adapter.safetensors"), "cut").unwrap()),
        ("gone", &|start| std::fs::remove_file(start.join("adapter.json")).unwrap()),
        ("none", &|start| std::fs::remove_dir_all(start).unwrap()),
        ("flipped", &|start| {
            let mut bytes = std::fs::read(start.join("initial.safetensors")).unwrap();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            std::fs::write(start.join("initial.safetensors"), bytes).unwrap();
        }),
    ];
    for (name, damage) in damages {
        cut(&place, "whole", name);
        damage(&place.path(name).join("start"));
        refused(&resume(&place, name), &[&format!("{name}/start is damaged: "), "begin a new one"]);
    }
    // Scores before training are measured again.
    cut(&place, "whole", "baseline");
    place.write("baseline/baseline.json", "");
    let output = resume(&place, "baseline");
    assert!(output.status.success() && stderr(&output).contains("baseline.json is damaged"), "{}", stderr(&output));
    same(&place, "baseline", "whole");
}

#[test]
fn a_run_notices_that_its_data_its_model_or_its_recipe_changed() {
    let place = Place::new();
    train(&place, "whole");
    cut(&place, "whole", "run");
    let recipe = std::fs::read_to_string(place.path("run/recipe.toml")).unwrap();

    let rows = std::fs::read_to_string(place.path("data.jsonl")).unwrap();
    place.write("data.jsonl", rows.lines().take(30).collect::<Vec<_>>().join("\n"));
    refused(&resume(&place, "run"), &["training file than data.jsonl is now (", "inputs.json", "put back what it was"]);
    place.write("data.jsonl", &rows);

    std::fs::rename(place.path("model"), place.path("model-then")).unwrap();
    place.make_model("model", 1);
    refused(&resume(&place, "run"), &["model than model is now (weights)"]);
    std::fs::remove_dir_all(place.path("model")).unwrap();
    std::fs::rename(place.path("model-then"), place.path("model")).unwrap();

    place.write("run/recipe.toml", recipe.replace("rank = 4", "rank = 2"));
    refused(&resume(&place, "run"), &["run/recipe.toml: adapter.rank was 4 and is 2", "change it back"]);
    // Earlier builds did not write what a run began with; the start tells of itself.
    std::fs::rename(place.path("run/inputs.json"), place.path("inputs.json")).unwrap();
    refused(&resume(&place, "run"), &["adapter.rank was 4 and is 2"]);
    place.write("run/recipe.toml", recipe.replace("method = \"sorsa\"", "method = \"pissa\""));
    refused(&resume(&place, "run"), &["adapter.method was \"sorsa\" and is \"pissa\""]);
    std::fs::rename(place.path("inputs.json"), place.path("run/inputs.json")).unwrap();

    let moved = recipe.replace("path = \"model\"", "path = \"./model\"").replace("max_steps = 12", "max_steps = 13");
    place.write("run/recipe.toml", moved);
    let output = resume(&place, "run");
    let word = "note: run/recipe.toml was changed since the run began: model.path was \"model\" and is \"./model\", train.max_steps was 12 and is 13";
    assert!(output.status.success() && stderr(&output).contains(word), "{}", stderr(&output));

    cut(&place, "whole", "same");
    let output = resume(&place, "same");
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    same(&place, "same", "whole");
}

#[test]
fn a_run_that_has_ended_says_so_and_stays_what_it_is() {
    let place = Place::new();
    train(&place, "run");
    let files = || -> Vec<(String, std::time::SystemTime)> {
        let entries = std::fs::read_dir(place.path("run")).unwrap().map(Result::unwrap);
        let mut files: Vec<_> = entries
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().modified().unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = files();
    // Not even its data are asked for.
    std::fs::rename(place.path("data.jsonl"), place.path("elsewhere.jsonl")).unwrap();
    let output = resume(&place, "run");
    let word = "note: run has ended (completed at step 12), nothing is left to do";
    assert!(output.status.success() && stderr(&output).contains(word), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("results: run"));
    assert_eq!(files(), before);
    // Whose adapter is gone has not.
    std::fs::rename(place.path("elsewhere.jsonl"), place.path("data.jsonl")).unwrap();
    std::fs::write(place.path("run/adapter/adapter.safetensors"), "cut").unwrap();
    let output = resume(&place, "run");
    assert!(output.status.success() && !stderr(&output).contains("has ended"), "{}", stderr(&output));
    assert!(std::fs::metadata(place.path("run/adapter/adapter.safetensors")).unwrap().len() > 100);
}

#[test]
fn eval_and_generate_ask_like_the_run_did() {
    let place = Place::new();
    let rows: String =
        (1..=8).map(|i| format!("{{\"question\": \"Is it {i}?\", \"answer\": \"Yes.\\n#### {i}\"}}\n")).collect();
    place.write("rows.jsonl", rows);
    let options =
        ["--model", "model", "--data", "rows.jsonl", "--test", "rows.jsonl", "--set", "data.template=question"];
    let trained = ["--max-steps", "2", "--set", "eval.prompt_suffix= Yes.", "--set", "eval.max_new_tokens=9"];
    place.command(&["finetune", "--quiet", "--run-dir", "run"]).args(options).args(trained).succeed();
    let first_line = |out: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(place.path(out)).unwrap();
        serde_json::from_str(text.lines().next().unwrap()).unwrap()
    };
    let generations = std::fs::read_to_string(place.path("run/generations.jsonl")).unwrap();
    let texts = |jsonl: &str| -> Vec<String> {
        let rows = jsonl.lines().filter_map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            Some(format!("{} {}", row.get("prompt")?, row["generated"]))
        });
        rows.collect()
    };
    let eval = |out: &str, options: &[&str]| {
        let mut command = place.command(&["eval", "--quiet", "--data", "rows.jsonl", "--out", out, "--adapter"]);
        command.arg("run").args(options).succeed();
        std::fs::read_to_string(place.path(out)).unwrap()
    };
    // By default, the answers of the run's own test.
    assert_eq!(texts(&eval("own.jsonl", &[])), texts(&generations));
    assert_eq!(first_line("own.jsonl")["settings"]["max_new_tokens"], 9);
    // An option is stronger.
    let other = eval("other.jsonl", &["--template", "alpaca", "--prompt-suffix", "", "--max-new-tokens", "3"]);
    assert!(
        other.contains("### Instruction") && first_line("other.jsonl")["settings"]["max_new_tokens"] == 3,
        "{other}"
    );

    let generate =
        |options: &[&str]| place.command(&["generate", "Is it 3?", "--adapter"]).arg("run").args(options).succeed();
    let own = generate(&[]);
    assert_eq!(own, generate(&["--template", "question", "--max-new-tokens", "9", "--dtype", "f32"]));
    // A recipe that belongs to something else stops nobody who names the model.
    place.write("run/recipe.toml", "[other]\n");
    let output =
        place.command(&["generate", "x", "--adapter", "run", "--model", "model", "--max-new-tokens", "2"]).output();
    let output = output.unwrap();
    assert!(output.status.success() && stderr(&output).contains("note: run/recipe.toml"), "{}", stderr(&output));
}

#[test]
fn leftovers_of_a_killed_export_are_removed_by_the_next() {
    let place = Place::new();
    train(&place, "run");
    std::fs::create_dir_all(place.path(".merged.tmp-7-0")).unwrap();
    place.write(".merged.tmp-7-0/model.safetensors", "half");
    place.write(".model.gguf.tmp-7-1", "half");
    place.write(".notes.tmp-7-1", "of another target");
    place.command(&["merge", "--adapter", "run", "--out", "merged"]).succeed();
    place.command(&["export", "--format", "gguf", "--adapter", "run", "--out", "model.gguf"]).output().unwrap();
    let hidden = |name: &str| place.path(name).exists();
    assert!(!hidden(".merged.tmp-7-0") && !hidden(".model.gguf.tmp-7-1") && hidden(".notes.tmp-7-1"));
}
