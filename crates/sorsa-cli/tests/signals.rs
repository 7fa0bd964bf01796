//! What signals and closed pipes do to commands, and what they leave behind.

#![cfg(unix)]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::process::{send, stop_when, wait_for};
use common::{Place, Succeed};
use nix::sys::signal::Signal;

fn lines(run: &Path) -> usize {
    std::fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |log| log.lines().count())
}

/// Names of temporary files and folders, at any depth.
fn temporary(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains(".tmp-") || name.contains(".old-") || name.contains(".part") || name.ends_with(".lock") {
            found.push(name);
        }
        if entry.path().is_dir() {
            found.extend(temporary(&entry.path()));
        }
    }
    found
}

/// `arguments` of the binary as a shell's command line, after `before`.
fn through_shell(place: &Place, before: &str, arguments: &[&str]) -> Command {
    let direct = place.command(arguments);
    let quoted: Vec<String> = arguments.iter().map(|argument| format!("'{argument}'")).collect();
    let mut command = Command::new("sh");
    let script = format!("{before} exec '{}' {}", direct.get_program().to_string_lossy(), quoted.join(" "));
    command.args(["-c", &script]).current_dir(direct.get_current_dir().unwrap());
    for (name, value) in direct.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Whether this process ignores SIGHUP, and so do the programs that it starts.
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & 1 == 1))
}

const FINETUNE: [&str; 12] = [
    "finetune",
    "--model",
    "model",
    "--data",
    "data.jsonl",
    "--quiet",
    "--rank",
    "4",
    "--batch-size",
    "4",
    "--epochs",
    "100000",
];

#[test]
fn a_hangup_ends_a_run_with_a_checkpoint_unless_it_was_ignored_from_the_start() {
    let place = Place::new();
    let mut cases = vec![("nohup", "trap '' HUP;", "400", 0)];
    // What starts the tests may be `nohup` itself: a shell cannot undo it.
    if !hangups_are_ignored() {
        cases.push(("hangup", "", "100000", 130));
    }
    for (run, before, steps, expected) in cases {
        let arguments = [&FINETUNE[..], &["--max-steps", steps, "--run-dir", run]].concat();
        let mut command = through_shell(&place, before, &arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        assert!(stop_when(&child, || lines(&place.path(run)) >= 4), "{run} ended before the signal");
        send(&child, Signal::SIGHUP);
        send(&child, Signal::SIGCONT);
        assert_eq!(child.wait().unwrap().code(), Some(expected), "{run}");
        assert_eq!(place.path(run).join("summary.json").exists(), expected == 0, "{run}");
        assert!(temporary(&place.path(run)).is_empty());
    }
}

#[test]
fn a_signal_ends_the_evaluation_after_training_and_the_run_can_be_resumed() {
    let place = Place::new();
    let arguments =
        ["--max-steps", "2", "--test", "data.jsonl", "--set", "eval.problems=60", "--set", "eval.batch_size=1"];
    let mut command = place.finetune(&arguments);
    command.args(["--run-dir", "run"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    assert!(stop_when(&child, || place.path("run/adapter/adapter.json").exists()), "the evaluation ended");
    assert!(!place.path("run/summary.json").exists(), "the evaluation ended");
    send(&child, Signal::SIGTERM);
    send(&child, Signal::SIGCONT);
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(message.contains("interrupted; go on with: cargo xtask finetune --resume run"), "{message}");
    assert!(!place.path("run/summary.json").exists() && temporary(&place.path("run")).is_empty());
    place.command(&["finetune", "--quiet", "--resume", "run"]).succeed();
    assert!(place.path("run/summary.json").exists());
}

#[test]
fn a_run_that_is_ended_before_its_first_step_leaves_no_folder() {
    let place = Place::new();
    let arguments =
        ["--max-steps", "2", "--test", "data.jsonl", "--set", "eval.problems=60", "--set", "eval.batch_size=1"];
    let mut command = place.finetune(&arguments);
    let mut child = command.args(["--run-dir", "run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert!(stop_when(&child, || place.path("run/start/adapter.json").exists()));
    assert!(!place.path("run/recipe.toml").exists(), "the evaluation before training ended");
    send(&child, Signal::SIGINT);
    send(&child, Signal::SIGCONT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!place.path("run").exists());
}

#[test]
fn a_merge_or_an_export_that_is_ended_leaves_nothing() {
    let place = Place::new();
    place
        .command(&["finetune", "--quiet", "--max-steps", "1", "--batch-size", "2", "--rank", "2", "--run-dir", "run"])
        .args(["--set", "eval.problems=0", "--limit", "20"])
        .succeed();
    for (format, signal) in [("hf", Signal::SIGINT), ("gguf", Signal::SIGTERM), ("author", Signal::SIGTERM)] {
        // A try may come too late; several seldom do.
        let caught = (0..40).any(|number| {
            let folder = format!("{format}-{number}");
            std::fs::create_dir(place.path(&folder)).unwrap();
            let out = format!("{folder}/out");
            let mut command = place.command(&["export", "--adapter", "run", "--format", format, "--out", &out]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            if stop_when(&child, || !temporary(&place.path(&folder)).is_empty()) {
                send(&child, signal);
                send(&child, Signal::SIGCONT);
            }
            let code = child.wait().unwrap().code();
            assert!(temporary(&place.path(&folder)).is_empty(), "{format}: {:?}", temporary(&place.path(&folder)));
            assert!(matches!(code, Some(0 | 130)), "{format}: {code:?}");
            code == Some(130)
        });
        assert!(caught, "{format}: no try ended the command while it wrote");
    }
}

#[test]
fn a_comparison_hands_a_signal_to_its_runs_which_write_their_checkpoints() {
    let place = Place::new();
    let arguments = [
        "bench",
        "--quiet",
        "--model",
        "model",
        "--data",
        "data.jsonl",
        "--methods",
        "lora,sorsa",
        "--ranks",
        "2",
        "--lrs",
        "1e-3",
        "--extend",
        "0",
        "--seeds",
        "1",
        "--max-steps",
        "100000",
        "--epochs",
        "100000",
        "--batch-size",
        "2",
        "--bench-dir",
        "bench",
        "--set",
        "eval.problems=0",
        "--set",
        "train.checkpoint_every=0",
        "--set",
        "data.validation_rows=4",
        "--set",
        "train.eval_every=0",
    ];
    let mut child = place.command(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let runs = || -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(place.path("bench/runs")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|run| lines(run) >= 5).collect()
    };
    wait_for(&mut child, || !runs().is_empty());
    // A run that was not told would go on until it is killed, and write no checkpoint.
    send(&child, Signal::SIGTERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    let run = runs().remove(0);
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    let checkpoint = run.join(format!("checkpoints/step-{}/state.json", last["step"]));
    assert!(checkpoint.exists(), "no checkpoint at the last step, {}", last["step"]);
    assert!(temporary(&place.path("bench")).is_empty());
}

#[test]
fn nobody_reading_is_no_reason_to_stop() {
    let place = Place::new();
    for (run, after) in
        [("stderr", "2>&1 >/dev/null | true"), ("stdout", "| true"), ("both", "2>&1 | true"), ("closed", "2>&- >&-")]
    {
        let direct = place.command(&[]);
        let binary = direct.get_program().to_string_lossy();
        let finetune = "finetune --model model --data data.jsonl --rank 2 --batch-size 4 --max-steps 3";
        // The status of the first command of the pipe.
        let script = format!("{{ '{binary}' {finetune} --run-dir {run}; echo $? >{run}.code; }} {after}");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .current_dir(direct.get_current_dir().unwrap())
            .env("XDG_CACHE_HOME", place.path("cache"));
        assert!(command.status().unwrap().success());
        // Some shells do not wait for the first command of a pipe.
        let code = || std::fs::read_to_string(place.path(&format!("{run}.code"))).unwrap_or_default();
        let limit = Instant::now() + Duration::from_secs(300);
        while !code().ends_with('\n') && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(code().trim(), "0", "{run}");
        assert!(place.path(run).join("report.html").exists(), "{run}");
    }
    // What a command has to write is written, though nobody reads what it says.
    place.command(&["import", "--help"]).succeed();
    let direct = place.command(&[]);
    let script = format!(
        "'{}' export --adapter stdout --format peft --rank 1 --out peft | true; '{0}' finetune --quiet --resume stdout 2>&-",
        direct.get_program().to_string_lossy()
    );
    assert!(Command::new("sh").args(["-c", &script]).current_dir(place.path(".")).status().unwrap().success());
    let limit = Instant::now() + Duration::from_secs(300);
    while !place.path("peft/adapter_config.json").exists() && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(place.path("peft/adapter_config.json").exists());
}
