//! A run is killed at each system call that changes a folder, and resumed: it comes to the same log and the same adapter, to the bit.
//!
//! Slow, and on Linux with strace only: `SORSA_FAULT_INJECTION=1 cargo test --release --test fault_injection -- --nocapture`.

#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Place, datasets};

/// The calls that make, rename, flush and remove files and folders.
const CALLS: [&str; 10] =
    ["rename", "renameat", "renameat2", "fsync", "fdatasync", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat"];

/// Four steps with two checkpoints, of which one stays.
const OPTIONS: [&str; 15] = [
    "finetune",
    "--quiet",
    "--max-steps",
    "4",
    "--batch-size",
    "2",
    "--rank",
    "2",
    "--set",
    "adapter.target_modules=[\"q_proj\"]",
    "--set",
    "train.checkpoint_every=2",
    "--set",
    "train.eval_every=2",
    "--set=train.keep_checkpoints=1",
];

/// Rows of the embedded task.
fn rows(place: &Place, split: &str, count: usize) {
    let text = std::fs::read_to_string(datasets().join(format!("arithmetic/{split}.jsonl"))).unwrap();
    let rows: String = text.lines().take(count).map(|line| format!("{line}\n")).collect();
    place.write(&format!("{split}.jsonl"), rows);
}

/// The command of a run, or of its resumption.
fn arguments(run: &str, resumed: bool) -> Vec<&str> {
    match resumed {
        true => vec!["finetune", "--quiet", "--resume", run],
        false => {
            let data = ["--data", "train.jsonl", "--validation", "validation.jsonl", "--test", "test.jsonl"];
            let test = ["--set", "eval.problems=3", "--set", "eval.max_new_tokens=4", "--run-dir", run];
            [&OPTIONS[..], &data, &test].concat()
        }
    }
}

/// Runs the binary under strace, which traces `calls` and does what `injection` says. Returns the calls that were made.
fn traced(place: &Place, arguments: &[&str], calls: &str, injection: Option<&str>) -> Vec<String> {
    let direct = place.command(arguments);
    let log = place.path("calls.txt");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", &format!("trace={calls}"), "-o"]).arg(&log);
    if let Some(injection) = injection {
        command.args(["-e", injection]);
    }
    command.arg(direct.get_program()).args(direct.get_args()).current_dir(direct.get_current_dir().unwrap());
    for (name, value) in direct.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // In one thread, the calls come in the same order every time.
    command.env("RAYON_NUM_THREADS", "1").stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    let text = std::fs::read_to_string(log).unwrap();
    text.lines()
        .filter(|line| CALLS.iter().any(|call| line.contains(&format!(" {call}("))))
        .map(str::to_owned)
        .collect()
}

/// What two runs must share: the log without times and memory, and the files of the adapter.
fn result(run: &Path) -> (Vec<String>, BTreeMap<String, Vec<u8>>) {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let rows = rows.map(|row| format!("{} {} {} {}", row["kind"], row["step"], row["loss"], row["grad_norm"]));
    let files = std::fs::read_dir(run.join("adapter")).unwrap().map(|entry| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    });
    (rows.collect(), files.collect())
}

/// Temporary names and lock files in a run, at any depth.
fn leftovers(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            found.push(name);
        }
        if entry.path().is_dir() {
            found.extend(leftovers(&entry.path()));
        }
    }
    found
}

#[test]
fn a_run_that_is_killed_at_any_change_of_a_folder_is_resumed_to_the_bit() {
    if std::env::var_os("SORSA_FAULT_INJECTION").is_none() {
        eprintln!("skipped: SORSA_FAULT_INJECTION is not set");
        return;
    }
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: there is no strace");
        return;
    }
    let place = Place::new();
    for (split, count) in [("train", 60), ("validation", 8), ("test", 3)] {
        rows(&place, split, count);
    }
    let calls = traced(&place, &arguments("whole", false), &CALLS.join(","), None);
    let expected = result(&place.path("whole"));
    assert!(!calls.is_empty(), "strace saw no call");
    let (mut points, mut killed) = (0, 0);
    let mut faults = Vec::new();
    for call in CALLS {
        let count = calls.iter().filter(|line| line.contains(&format!(" {call}("))).count();
        for number in 1..=count {
            let _ = std::fs::remove_dir_all(place.path("run"));
            let _ = std::fs::remove_dir_all(place.path("sorsa"));
            let injection = format!("inject={call}:signal=KILL:when={number}");
            traced(&place, &arguments("run", false), call, Some(&injection));
            points += 1;
            killed += usize::from(!place.path("run/report.html").exists());
            let resumed = place.path("run/recipe.toml").exists();
            let output = place.command(&arguments("run", resumed)).env("RAYON_NUM_THREADS", "1").output().unwrap();
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            let left = leftovers(&place.path("run"));
            if !output.status.success() || result(&place.path("run")) != expected || !left.is_empty() {
                faults.push(format!("{call} {number} of {count}: {}, left {left:?}, {message}", output.status));
            }
        }
    }
    eprintln!(
        "{} calls, killed at {points} points ({killed} before the run's end), {} faults",
        calls.len(),
        faults.len()
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
