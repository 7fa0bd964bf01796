//! A run that is killed or interrupted, and resumed, goes on as if it had not been.

#![cfg(unix)]

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, Succeed};

const OPTIONS: [&str; 8] = [
    "--max-steps",
    "40",
    "--set",
    "train.checkpoint_every=3",
    "--set",
    "train.eval_every=5",
    "--set",
    "adapter.dropout=0.1",
];

fn start(place: &Place, run: &str) -> Child {
    let mut command = place.finetune(&OPTIONS);
    command.args(["--epochs", "100", "--run-dir", run]).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// What decides whether two runs are the same: every number of the log but times and memory.
fn losses(run: &Path) -> Vec<String> {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    rows.map(|row| format!("{} {} {} {} {}", row["kind"], row["step"], row["loss"], row["grad_norm"], row["defect"]))
        .collect()
}

/// Waits until `reached` holds; whether it came to hold while the process was alive.
fn wait_for(child: &mut Child, reached: impl Fn() -> bool) -> bool {
    let limit = Instant::now() + Duration::from_secs(60);
    while Instant::now() < limit {
        if reached() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
    }
    panic!("the run neither ended nor came to the moment waited for");
}

fn lines(run: &Path) -> usize {
    std::fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |log| log.lines().count())
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

fn resume(place: &Place, run: &str) {
    place.command(&["finetune", "--quiet", "--resume", run]).succeed();
}

fn same(place: &Place, run: &str) {
    assert_eq!(losses(&place.path(run)), losses(&place.path("whole")), "{run}");
    for file in ["adapter/adapter.safetensors", "adapter/initial.safetensors"] {
        let read = |run: &str| std::fs::read(place.path(run).join(file)).unwrap();
        assert!(read(run) == read("whole"), "{run}: {file} differs");
    }
    assert!(place.path(run).join("report.html").exists());
}

#[test]
fn a_killed_run_goes_on_to_the_same_losses() {
    let place = Place::new();
    assert!(start(&place, "whole").wait().unwrap().success());

    for (run, after) in [("early", 2), ("late", 30)] {
        let mut child = start(&place, run);
        let log = place.path(run);
        assert!(wait_for(&mut child, || lines(&log) >= after), "the run ended before it was killed");
        child.kill().unwrap();
        child.wait().unwrap();
        resume(&place, run);
        same(&place, run);
    }
    // A run that is complete has nothing left to do, and stays what it is.
    resume(&place, "whole");
    same(&place, "early");

    // During a checkpoint: its folder has a temporary name then. A try may come too late; several seldom do.
    let caught = (0..20).any(|number| {
        let run = format!("checkpoint-{number}");
        let mut child = start(&place, &run);
        let folder = place.path(&run).join("checkpoints");
        wait_for(&mut child, || names(&folder).iter().any(|name| name.contains(".tmp")));
        let _ = child.kill();
        child.wait().unwrap();
        let unfinished = names(&folder).iter().any(|name| name.contains(".tmp"));
        resume(&place, &run);
        same(&place, &run);
        assert!(!names(&folder).iter().any(|name| name.contains(".tmp")), "leftovers stayed");
        unfinished
    });
    assert!(caught, "no try killed the run during a checkpoint");
}

#[test]
fn an_interrupted_run_writes_a_checkpoint_and_exits_with_130() {
    let place = Place::new();
    assert!(start(&place, "whole").wait().unwrap().success());
    let mut child = start(&place, "interrupted");
    let run = place.path("interrupted");
    assert!(wait_for(&mut child, || lines(&run) >= 4));
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let last = losses(&run).iter().filter(|line| line.starts_with("\"step\"")).count();
    assert!(run.join(format!("checkpoints/step-{last}/state.json")).exists(), "no checkpoint at step {last}");
    resume(&place, "interrupted");
    // The checkpoint of the interruption may be the best one; the losses are the same in any case.
    assert_eq!(losses(&run), losses(&place.path("whole")));
}
