//! A run that is killed or interrupted, and resumed, goes on as if it had not been.

#![cfg(unix)]

mod common;

use std::path::Path;
use std::process::{Child, Stdio};

use common::process::{send, stop_when};
use common::{Place, Succeed};
use nix::sys::signal::Signal;

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

/// A run of the given name and a number, stopped at a moment at which `reached` holds of its folder. A try may come too late;
/// several seldom do.
fn stopped(place: &Place, name: &str, reached: impl Fn(&Path) -> bool) -> (String, Child) {
    stopped_start(place, name, |run| start(place, run), reached)
}

/// [`stopped`] of a run that `start` starts.
fn stopped_start(
    place: &Place,
    name: &str,
    start: impl Fn(&str) -> Child,
    reached: impl Fn(&Path) -> bool,
) -> (String, Child) {
    for number in 0..20 {
        let run = format!("{name}-{number}");
        let mut child = start(&run);
        let folder = place.path(&run);
        if stop_when(&child, || reached(&folder)) && !folder.join("summary.json").exists() {
            return (run, child);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    panic!("no try stopped the run in time: {name}");
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

    let [early, _] = [("early", 2), ("late", 30)].map(|(name, after)| {
        let (run, mut child) = stopped(&place, name, |run| lines(run) >= after);
        child.kill().unwrap();
        child.wait().unwrap();
        resume(&place, &run);
        same(&place, &run);
        run
    });
    // A run that is complete has nothing left to do, and stays what it is.
    resume(&place, "whole");
    same(&place, &early);

    // During a checkpoint: its folder has a temporary name then.
    let has_unfinished = |run: &Path| names(&run.join("checkpoints")).iter().any(|name| name.contains(".tmp"));
    let (run, mut child) = stopped(&place, "checkpoint", has_unfinished);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(has_unfinished(&place.path(&run)));
    resume(&place, &run);
    same(&place, &run);
    assert!(!has_unfinished(&place.path(&run)), "leftovers stayed");
}

#[test]
fn a_resumed_run_takes_the_instructions_that_it_began_with() {
    let place = Place::new();
    let portable = |run: &str| {
        let mut command = place.finetune(&OPTIONS);
        command.env("SORSA_KERNELS", "portable").args(["--epochs", "100", "--run-dir", run]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    assert!(portable("whole").wait().unwrap().success());
    let (run, mut child) = stopped_start(&place, "portable", portable, |run| lines(run) >= 4);
    child.kill().unwrap();
    child.wait().unwrap();
    // Without the variable, kernels would use the best instructions of the processor.
    resume(&place, &run);
    same(&place, &run);

    // A run of another processor.
    let (run, mut child) = stopped_start(&place, "other", portable, |run| lines(run) >= 4);
    child.kill().unwrap();
    child.wait().unwrap();
    let inputs = place.path(&run).join("inputs.json");
    let text = std::fs::read_to_string(&inputs).unwrap();
    assert!(text.contains("\"instructions\": \"portable\""), "{text}");
    std::fs::write(&inputs, text.replace("\"portable\"", "\"avx1024\"")).unwrap();
    let output = place.command(&["finetune", "--quiet", "--resume", &run]).output().unwrap();
    assert!(output.status.success());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("the run began with the instructions avx1024; this processor lacks them"), "{told}");
}

#[test]
fn an_interrupted_run_writes_a_checkpoint_and_exits_with_130() {
    let place = Place::new();
    assert!(start(&place, "whole").wait().unwrap().success());
    let (name, mut child) = stopped(&place, "interrupted", |run| lines(run) >= 4);
    let run = place.path(&name);
    send(&child, Signal::SIGINT);
    send(&child, Signal::SIGCONT);
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let last = losses(&run).iter().filter(|line| line.starts_with("\"step\"")).count();
    assert!(run.join(format!("checkpoints/step-{last}/state.json")).exists(), "no checkpoint at step {last}");
    resume(&place, &name);
    // The checkpoint of the interruption may be the best one; the losses are the same in any case.
    assert_eq!(losses(&run), losses(&place.path("whole")));
}
