//! A comparison from beginning to end: its files, what a second call does, and what becomes of one that was ended.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use common::{Place, Succeed};
use serde_json::Value;

/// A comparison of the tiny model, one method and three steps unless told otherwise.
fn bench(place: &Place, args: &[&str]) -> Command {
    let mut command = place.command(&["bench", "--model", "model", "--data", "data.jsonl", "--bench-dir", "bench"]);
    command.args(["--rank", "4", "--batch-size", "4", "--set", "data.validation_rows=4", "--extend", "0"]).args(args);
    command
}

const ONE_RUN: [&str; 8] = ["--methods", "lora", "--lrs", "1e-3", "--seeds", "1", "--gammas", "none"];

fn results(place: &Place) -> Value {
    serde_json::from_slice(&std::fs::read(place.path("bench/results.json")).unwrap()).unwrap()
}

/// The folders of the runs.
fn runs(place: &Place) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(place.path("bench/runs")) else { return Vec::new() };
    let mut folders: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

fn files(folder: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), path.metadata().unwrap().modified().unwrap());
        }
    }
    found
}

/// The steps that a run logged, in order.
fn steps(run: &Path) -> Vec<u64> {
    let Ok(log) = std::fs::read_to_string(run.join("metrics.jsonl")) else { return Vec::new() };
    let whole = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    whole.filter(|row| row["kind"] == "step").map(|row| row["step"].as_u64().unwrap()).collect()
}

#[test]
fn a_comparison_leaves_every_file_and_does_nothing_twice() {
    let place = Place::new();
    let mut args = vec!["--methods", "lora,sorsa,full", "--lrs", "1e-3,4e-3,full=1e-3", "--seeds", "1,2"];
    args.extend(["--gammas", "0,4e-4", "--max-steps", "3", "--test", "data.jsonl", "--set", "eval.problems=3"]);
    args.extend(["--set", "eval.max_new_tokens=4", "--forgetting-text", "data.jsonl,texts.jsonl"]);
    std::fs::copy(place.path("data.jsonl"), place.path("texts.jsonl")).unwrap();
    let plan: Value =
        serde_json::from_str(&bench(&place, &args).args(["--dry-run", "--format", "json"]).succeed()).unwrap();
    assert_eq!(plan["runs"], 9, "five rates, three more seeds, one gamma: {plan}");
    assert!(runs(&place).is_empty(), "a plan begins nothing");

    let table = bench(&place, &args).arg("--quiet").succeed();
    assert_eq!(runs(&place).len(), 9);
    for part in ["Quality after 3 steps", "sorsa", "minus lora-r4", "no difference is shown", "results: bench"] {
        assert!(table.contains(part), "{part} is missing from {table}");
    }
    let found = results(&place);
    assert_eq!(found["problems"], 3);
    assert_eq!(found["runs"].as_array().unwrap().len(), 9);
    assert_eq!(found["gammas"].as_array().unwrap().len(), 2);
    assert!(found["base"]["text_losses"]["texts"].is_number() && found["base"]["accuracy"].is_number());
    let arms = found["arms"].as_array().unwrap();
    assert_eq!(
        arms.iter().map(|arm| arm["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["lora-r4", "sorsa-r4", "full"]
    );
    for arm in arms {
        for field in ["trainable_parameters", "adapter_bytes"] {
            assert!(arm[field].as_u64().unwrap() > 0, "{field} of {arm}");
        }
        for field in ["tokens_per_s", "seconds_to_target", "start_seconds"] {
            assert!(arm[field]["median"].is_number(), "{field} of {arm}");
        }
        let intervals = [&arm["loss"], &arm["forgetting"]["data"], &arm["forgetting"]["texts"]];
        for measured in intervals {
            assert!(measured["interval"]["low"].is_number(), "{arm}");
        }
        assert_eq!(arm["forgetting"]["data"], arm["forgetting"]["texts"], "the files are the same");
        assert_eq!((&arm["accuracy"]["seeds"], &arm["accuracy"]["problems"]), (&2.into(), &3.into()));
        assert_eq!(arm["difference"].is_null(), arm["name"] == "lora-r4");
        // The chosen rate is that of the lowest validation loss.
        let loss = |tried: &&Value| tried["loss"].as_f64().unwrap();
        let tried = arm["tried"].as_array().unwrap();
        let best = tried.iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap();
        assert_eq!(best["learning_rate"], arm["learning_rate"]);
    }
    // What is compared had the same data in the same order: the first step's loss is the same before anything is learned.
    let first = |arm: usize| {
        let run = place.path("bench/runs").join(arms[arm]["runs"][0].as_str().unwrap());
        let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let step: Value = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .find(|row: &Value| row["kind"] == "step")
            .unwrap();
        step["loss"].as_f64().unwrap()
    };
    assert!((first(0) - first(1)).abs() < 1e-4 && (first(0) - first(2)).abs() < 1e-4);

    let report = std::fs::read_to_string(place.path("bench/report.html")).unwrap();
    assert!(report.contains("<svg") && !report.replace("http://www.w3.org/2000/svg", "").contains("http"));
    assert_eq!(std::fs::read_to_string(place.path("bench/results.csv")).unwrap().lines().count(), 10);
    for figure in ["accuracy", "loss", "learning-rates", "learning-curves", "speed", "gamma-loss"] {
        for extension in ["svg", "png"] {
            assert!(place.path(&format!("bench/figures/{figure}.{extension}")).exists(), "no {figure}.{extension}");
        }
    }

    let before = files(&place.path("bench/runs"));
    for (format, file) in [("latex", "comparison.tex"), ("markdown", "comparison.md"), ("json", "results.json")] {
        let printed = bench(&place, &args).args(["--quiet", "--format", format]).succeed();
        assert_eq!(printed.trim(), std::fs::read_to_string(place.path("bench").join(file)).unwrap().trim());
    }
    assert_eq!(files(&place.path("bench/runs")), before, "a second call wrote into a run");

    // Ended before its last step: it goes on, to the same end.
    let run = place.path("bench/runs").join(arms[1]["runs"][1].as_str().unwrap());
    std::fs::remove_file(run.join("summary.json")).unwrap();
    std::fs::remove_dir_all(run.join("checkpoints/step-3")).unwrap();
    bench(&place, &args).arg("--quiet").succeed();
    let (mut again, mut found) = (results(&place), found);
    let resumed =
        |results: &Value| results["runs"].as_array().unwrap().iter().filter(|run| run["resumed"] == true).count();
    assert_eq!((resumed(&found), resumed(&again)), (0, 1));
    let loss = |results: &mut Value| results["arms"][1]["loss"].take();
    assert_eq!(loss(&mut again), loss(&mut found));
    assert!(again["notes"].to_string().contains("interrupted and gone on with: 1."));
}

#[test]
fn a_second_task_shows_what_is_left_of_the_first() {
    let place = Place::new();
    // The second task answers the first one's prompts backwards.
    let rows = std::fs::read_to_string(place.path("data.jsonl")).unwrap();
    let backwards = rows.lines().map(|row| {
        let mut row: Value = serde_json::from_str(row).unwrap();
        let answer: String = row["response"].as_str().unwrap().chars().rev().collect();
        row["response"] = answer.into();
        row.to_string() + "\n"
    });
    place.write("backwards.jsonl", backwards.collect::<String>());
    let mut args =
        vec!["--methods", "lora,sorsa,dora,full", "--lrs", "1e-2,full=1e-3", "--seeds", "1,2", "--gammas", "none"];
    args.extend(["--max-steps", "4", "--then", "backwards.jsonl", "--set", "eval.problems=0"]);
    let table = bench(&place, &args).arg("--quiet").succeed();
    for part in ["what training on backwards.jsonl afterwards leaves", "after the second task the validation loss"] {
        assert!(table.contains(part), "{part} is missing from {table}");
    }
    assert_eq!(runs(&place).len(), 16);
    let before = files(&place.path("bench/runs"));
    bench(&place, &args).arg("--quiet").succeed();
    assert_eq!(files(&place.path("bench/runs")), before, "a second call wrote into a run");
    for arm in results(&place)["arms"].as_array().unwrap() {
        let second = &arm["second_task"];
        for field in ["loss_before", "loss", "first_loss", "first_loss_change"] {
            assert!(second[field]["interval"]["low"].is_number(), "{field} of {arm}");
        }
        assert!(second["loss"]["mean"].as_f64() < second["loss_before"]["mean"].as_f64(), "{second}");
        // The first task's loss of the first run is the one that its training reported, and of the second run the one in the report.
        let folder = |name: &Value| place.path("bench/runs").join(name.as_str().unwrap());
        let (first, then) = (folder(&arm["runs"][0]), folder(&second["runs"][0]));
        let loss = |run: &Path| {
            let [run, first] = [run, &first].map(|path| path.to_str().unwrap());
            let out = place
                .command(&["eval", "--quiet", "--format", "json", "--adapter", run, "--validation-of", first])
                .succeed();
            serde_json::from_str::<Value>(&out).unwrap()["loss"].as_f64().unwrap()
        };
        let number = |file: PathBuf, field: &str| {
            serde_json::from_slice::<Value>(&std::fs::read(file).unwrap()).unwrap()[field].as_f64().unwrap()
        };
        assert!((loss(&first) - number(first.join("summary.json"), "loss_after")).abs() < 1e-4, "{arm}");
        assert_eq!(loss(&then), number(then.join("first-task.json"), "loss"));
    }
}

#[test]
fn arms_and_sweeps_compare_any_field_of_a_recipe() {
    let place = Place::new();
    place.write(
        "suite.toml",
        "reference = \"narrow\"\n[arms.wide]\nadapter.method = \"lora\"\nadapter.rank = 8\n\
         [arms.narrow]\n\"adapter.method\" = \"lora\"\n\"adapter.rank\" = 2\n\
         [[sweeps]]\nfield = \"adapter.alpha\"\nvalues = [4, 8]\narms = [\"narrow\"]\n",
    );
    let mut args = vec!["--quick", "--suite", "suite.toml", "--lrs", "1e-3", "--seeds", "1", "--max-steps", "3"];
    args.extend(["--arm", "linear=adapter.method=pissa,train.schedule.kind=linear"]);
    args.extend(["--sweep", "train.schedule.warmup_ratio=0,0.5"]);
    let plan: Value =
        serde_json::from_str(&bench(&place, &args).args(["--dry-run", "--format", "json"]).succeed()).unwrap();
    assert_eq!(
        (&plan["runs"], &plan["alphas"], &plan["warmup_ratios"]),
        (&11.into(), &[4, 8].into(), &serde_json::json!([0, 0.5]))
    );

    let table = bench(&place, &args).arg("--quiet").succeed();
    for part in ["linear-r4 minus narrow: ", "narrow by adapter.alpha, at its best", "Of the alphas of narrow, "] {
        assert!(table.contains(part), "{part} is missing from {table}");
    }
    let names: Vec<String> = runs(&place).iter().map(|run| run.file_name().unwrap().to_string_lossy().into()).collect();
    assert_eq!(names.len(), 11, "{names:?}");
    let first = |start: &str| names.iter().filter(|name| name.starts_with(start)).count();
    assert_eq!(first("lora-r2-alpha8e0-lr1e-3-s1-"), 1, "{names:?}");
    assert_eq!(first("pissa-r4-kindlinear-warmup_ratio5e-1-lr1e-3-s1-"), 1, "{names:?}");
    let found = results(&place);
    let arms: Vec<_> = found["arms"].as_array().unwrap().iter().map(|arm| arm["name"].as_str().unwrap()).collect();
    assert_eq!(arms, ["wide", "narrow", "linear-r4"]);
    assert_eq!(found["arms"][0]["difference"]["to"], "narrow");
    let alphas = found["alphas"].as_array().unwrap();
    assert_eq!(
        alphas.iter().map(|run| run["fields"]["adapter.alpha"].as_f64().unwrap()).collect::<Vec<_>>(),
        [4.0, 8.0]
    );
    assert_ne!(alphas[0]["loss_after"], alphas[1]["loss_after"]);
    assert_eq!(found["sweeps"][1]["rows"].as_array().unwrap().len(), 3, "every arm has a warm-up");
    let csv = std::fs::read_to_string(place.path("bench/results.csv")).unwrap();
    let head = ",resumed,adapter.alpha,train.schedule.kind,train.schedule.warmup_ratio";
    assert!(csv.lines().next().unwrap().ends_with(head), "{csv}");
    for figure in ["alpha-loss", "warmup_ratio-loss"] {
        assert!(place.path(&format!("bench/figures/{figure}.svg")).exists(), "no {figure}");
    }
    assert!(std::fs::read_to_string(place.path("bench/report.html")).unwrap().contains("Sweep of adapter.alpha"));
}

#[test]
fn a_result_that_a_power_failure_emptied_is_made_again() {
    let place = Place::new();
    let mut args = ONE_RUN.to_vec();
    args.extend(["--quiet", "--max-steps", "3", "--test", "data.jsonl", "--set", "eval.problems=2"]);
    args.extend(["--set", "eval.max_new_tokens=4"]);
    bench(&place, &args).succeed();
    let run = runs(&place).remove(0);
    let measured = files(&run).into_keys().find(|path| {
        path.file_name().unwrap().to_string_lossy().starts_with("test-") && path.extension().unwrap() == "json"
    });
    let measured = measured.unwrap();
    let found = |results: Value| [results["arms"][0]["loss"].clone(), results["arms"][0]["accuracy"].clone()];
    let before = found(results(&place));
    for (path, content) in [(&measured, vec![]), (&run.join("summary.json"), vec![]), (&measured, vec![0; 500])] {
        std::fs::write(path, content).unwrap();
        bench(&place, &args).succeed();
        serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(found(results(&place)), before, "{}", path.display());
    }
}

#[cfg(unix)]
mod ended {
    use super::*;
    use common::process::{send_to_group, wait_for};
    use nix::sys::signal::Signal;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Stdio};

    const STEPS: u64 = 200;

    /// A comparison in a process group of its own, stopped with its child once the first run has made some steps.
    fn under_way(place: &Place, command: &mut Command) -> Child {
        let mut child = command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        wait_for(&mut child, || runs(place).first().is_some_and(|run| steps(run).len() >= 3));
        send_to_group(&child, Signal::SIGSTOP);
        assert!(!runs(place)[0].join("summary.json").exists(), "the run ended before it was stopped");
        child
    }

    #[test]
    fn two_processes_share_the_work() {
        let place = Place::new();
        let args =
            ["--methods", "lora,pissa", "--lrs", "1e-3,2e-3", "--seeds", "1", "--max-steps", "100", "--epochs", "9"];
        let start = || {
            let mut command = bench(&place, &args);
            command.args(["--quiet", "--jobs", "1"]);
            command
        };
        // As long as the first stands, the second does all the other runs.
        let one = under_way(&place, &mut start());
        let mut other = start().stdout(Stdio::piped()).spawn().unwrap();
        let ended = || runs(&place).iter().filter(|run| run.join("summary.json").exists()).count();
        wait_for(&mut other, || ended() == 3);
        send_to_group(&one, Signal::SIGCONT);
        let printed = [one, other].map(|child| child.wait_with_output().unwrap());
        assert!(printed.iter().all(|output| output.status.success() && !output.stdout.is_empty()));
        assert_eq!(runs(&place).len(), 4);
        for run in runs(&place) {
            assert_eq!(steps(&run), (1..=100).collect::<Vec<_>>(), "{}", run.display());
        }
        let results = results(&place);
        let concurrent = results["runs"].as_array().unwrap().iter().map(|run| run["concurrent"].as_u64().unwrap());
        assert_eq!(concurrent.filter(|count| *count == 2).count(), 3, "{results}");
        assert_eq!(results["problems"], 0, "without problems the comparison is one of losses");
    }

    fn long(place: &Place) -> Command {
        let mut command = bench(place, &ONE_RUN);
        command.args([
            "--quiet",
            "--epochs",
            "999",
            "--max-steps",
            &STEPS.to_string(),
            "--set",
            "train.checkpoint_every=2",
        ]);
        command
    }

    #[test]
    fn a_killed_comparison_leaves_its_run_to_its_child_and_the_next_waits_for_it() {
        let place = Place::new();
        let mut parent = under_way(&place, &mut long(&place));
        // First, as the system tells a stopped group that nobody is left to let it go on.
        send_to_group(&parent, Signal::SIGCONT);
        parent.kill().unwrap();
        parent.wait().unwrap();
        long(&place).succeed();
        // Two writers would have logged steps twice.
        assert_eq!(steps(&runs(&place)[0]), (1..=STEPS).collect::<Vec<_>>());
    }

    #[test]
    fn an_interrupted_comparison_goes_on_where_it_stopped() {
        let place = Place::new();
        let mut parent = under_way(&place, &mut long(&place));
        send_to_group(&parent, Signal::SIGINT);
        send_to_group(&parent, Signal::SIGCONT);
        assert_eq!(parent.wait().unwrap().code(), Some(130));
        let run = runs(&place).remove(0);
        assert!(!run.join("summary.json").exists() && !place.path("bench/results.json").exists());
        long(&place).succeed();
        assert_eq!(steps(&run), (1..=STEPS).collect::<Vec<_>>());
        assert_eq!(results(&place)["runs"][0]["resumed"], true);
    }
}
