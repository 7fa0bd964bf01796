//! `test` and `check`: what CI runs.

use std::ffi::OsString;
use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::build::{cargo, code, root};

/// Turns assertions and overflow checks on for the workspace's crates and leaves its dependencies as they are in
/// every other release build, so that they are compiled once.
const ASSERTIONS: [&str; 4] = [
    "profile.release.debug-assertions=true",
    "profile.release.overflow-checks=true",
    "profile.release.package.\"*\".debug-assertions=false",
    "profile.release.package.\"*\".overflow-checks=false",
];

/// `cargo test --release` of the workspace, or of the packages named in `args`.
pub fn test(args: &[OsString]) -> io::Result<u8> {
    test_command(args).status().map(code)
}

/// Every step of CI, up to the first that fails.
pub fn all() -> io::Result<u8> {
    let begin = Instant::now();
    let mut steps = vec![
        ("format", step(&["fmt", "--all", "--check"])),
        ("clippy", step(&["clippy", "--locked", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"])),
        ("tests", test_command(&[])),
        ("documentation", {
            let mut doc = step(&["doc", "--locked", "--release", "--workspace", "--no-deps"]);
            doc.env("RUSTDOCFLAGS", "-D warnings");
            doc
        }),
    ];
    if cargo().args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() {
        steps.push(("dependencies", step(&["deny", "check", "licenses", "bans", "sources"])));
        // The list of known vulnerabilities comes from the network.
        if step(&["deny", "fetch", "db"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() {
            steps.push(("advisories", step(&["deny", "--offline", "check", "advisories"])));
        } else {
            println!("the list of advisories is out of reach: vulnerabilities are not checked");
        }
    } else {
        println!("cargo-deny is not installed: dependencies are not checked");
    }
    let count = steps.len();
    for (name, mut command) in steps {
        println!("==> {name}");
        let start = Instant::now();
        let failed = code(command.status()?);
        if failed != 0 {
            println!("check failed: {name}, after {}", seconds(begin.elapsed()));
            return Ok(failed);
        }
        println!("<== {name}: {}", seconds(start.elapsed()));
    }
    println!("check passed: {count} steps in {}", seconds(begin.elapsed()));
    Ok(0)
}

fn step(args: &[&str]) -> Command {
    let mut command = cargo();
    command.current_dir(root()).args(args);
    command
}

fn test_command(args: &[OsString]) -> Command {
    let mut command = step(&["test", "--locked", "--release"]);
    for setting in ASSERTIONS {
        command.args(["--config", setting]);
    }
    let names_a_package = |arg: &OsString| {
        let arg = arg.to_string_lossy();
        arg.starts_with("-p") || arg.starts_with("--package")
    };
    if !args.iter().take_while(|arg| *arg != "--").any(names_a_package) {
        command.arg("--workspace");
    }
    command.args(args);
    command
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
