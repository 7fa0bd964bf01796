//! Builds `sorsa` with what a backend needs, and becomes it.

use std::env::{self, consts::EXE_SUFFIX};
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The backends that have to be asked for.
const FEATURES: [&str; 3] = ["wgpu", "vulkan", "cuda"];

/// Builds for the backend named in `args`, then runs `sorsa <command> <args>` in this folder, in this process's place.
///
/// Backends share one target folder: cargo keeps the objects of each, and only links the last one built to the
/// binary's name again, so that going back and forth compiles nothing.
pub fn become_sorsa(command: &OsStr, args: &[OsString]) -> io::Result<u8> {
    let mut build = cargo();
    // The whole workspace, so that cargo resolves the features it resolves for the tests, and compiles burn once.
    build.args(["build", "--release", "--workspace", "--bin", "sorsa"]);
    // A backend and its feature have the same name. The CPU's is in every build; an unknown one is for `sorsa` to refuse.
    if let Some(name) = backend(args).filter(|name| FEATURES.contains(&name.as_str())) {
        build.arg("--features").arg(format!("sorsa-cli/{name}"));
    }
    match build_quietly(&mut build)? {
        0 => replace(Command::new(sorsa()?).arg(command).args(args)),
        failed => Ok(failed),
    }
}

/// The cargo that runs this program, without what `cargo run` told this program of itself: build scripts that watch these
/// variables would run again whenever somebody goes back and forth between `cargo xtask` and `cargo`.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in a folder of the workspace")
}

/// The exit code of a finished command; one ended by a signal counts as failed.
pub fn code(status: std::process::ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// The value of `--backend X` or `--backend=X`, the last one given, before any `--`.
fn backend(args: &[OsString]) -> Option<String> {
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).take_while(|arg| arg != "--").collect();
    let at = words.iter().rposition(|word| word == "--backend" || word.starts_with("--backend="))?;
    match words[at].split_once('=') {
        Some((_, name)) => Some(name.to_owned()),
        None => words.get(at + 1).map(|name| name.clone().into_owned()),
    }
}

/// Runs cargo with its messages passed on, but for the line that says that there was nothing to do.
fn build_quietly(build: &mut Command) -> io::Result<u8> {
    if io::stderr().is_terminal() && env::var_os("CARGO_TERM_COLOR").is_none() {
        build.env("CARGO_TERM_COLOR", "always");
    }
    build.arg("--manifest-path").arg(root().join("Cargo.toml"));
    let mut child = build.stderr(Stdio::piped()).spawn()?;
    let messages = child.stderr.take().expect("stderr is piped");
    for line in BufReader::new(messages).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if !(line.contains("Finished") && line.contains("profile")) {
            eprintln!("{line}");
        }
    }
    child.wait().map(code)
}

/// The binary just built: cargo puts it into the same target folder as this program.
fn sorsa() -> io::Result<PathBuf> {
    let this = env::current_exe()?;
    let target = this.ancestors().nth(2).unwrap_or(Path::new("target"));
    Ok(target.join("release").join(format!("sorsa{EXE_SUFFIX}")))
}

#[cfg(unix)]
fn replace(command: &mut Command) -> io::Result<u8> {
    use std::os::unix::process::CommandExt;
    let error = command.exec();
    Err(io::Error::new(error.kind(), format!("cannot start {}: {error}", command.get_program().display())))
}

#[cfg(not(unix))]
fn replace(command: &mut Command) -> io::Result<u8> {
    command.status().map(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend_of(line: &str) -> Option<String> {
        backend(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_backend_is_found_in_both_spellings_and_the_last_one_counts() {
        assert_eq!(backend_of("--rank 8 --backend wgpu --seed 1").as_deref(), Some("wgpu"));
        assert_eq!(backend_of("--backend=cuda").as_deref(), Some("cuda"));
        assert_eq!(backend_of("--backend wgpu --backend=flex").as_deref(), Some("flex"));
    }

    #[test]
    fn what_follows_two_dashes_or_is_another_option_is_no_backend() {
        assert_eq!(backend_of("--prompt x -- --backend wgpu"), None);
        assert_eq!(backend_of("--backends wgpu"), None);
        assert_eq!(backend_of("--backend"), None);
    }
}
