//! Programs that a model has written, run in a child process with limits.
//!
//! What holds on Linux: a time limit, after which the process and its group are killed; limits on memory, CPU time, file
//! size and open files, set before the program begins, which it cannot raise; an empty working folder, removed
//! afterwards; an empty environment; no standard input. Where the kernel lets an unprivileged process make namespaces
//! (`unshare`), there is no network either, and no process outlives the program. What does not hold: the program reads
//! and writes what the user may. This is no jail for code that means harm: use a container or a virtual machine for that.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::answers::fingerprint;
use crate::exit::bad_input;

/// Limits of one program.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub seconds: u64,
    pub memory_bytes: u64,
}

/// How isolated programs are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Namespaces of its own: no network, no process left behind.
    Namespaces,
    /// Limits only.
    Limits,
}

/// Runs programs in `python3`.
pub struct Sandbox {
    limits: Limits,
    isolation: Isolation,
}

/// What became of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ran to its end.
    Passed,
    /// It raised, or ended early: the last line it wrote as an error.
    Failed(String),
    TimedOut,
}

/// Sets the limits, runs the program, and writes a word that only a program which ran to its end leaves.
const LAUNCHER: &str = "
import resource, sys
seconds, memory, word = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for limit, value in (('CPU', seconds + 1), ('AS', memory), ('FSIZE', 1 << 22), ('NOFILE', 64), ('CORE', 0)):
    kind = getattr(resource, 'RLIMIT_' + limit)
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
sys.argv = ['program']
with open('program.py', encoding='utf-8') as file:
    source = file.read()
exec(compile(source, 'program.py', 'exec'), {'__name__': '__main__'})
with open('ended', 'w') as file:
    file.write(word)
";

const UNSHARE: [&str; 6] = ["--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"];

impl Sandbox {
    /// Looks for `python3`, and for what isolation there is.
    pub fn new(limits: Limits) -> anyhow::Result<Self> {
        if cfg!(not(unix)) {
            return Err(bad_input("generated programs are run on Unix only"));
        }
        if !works(Command::new("python3").args(["-I", "-c", "import resource"])) {
            return Err(bad_input("generated programs need `python3` on the path"));
        }
        let namespaces = works(Command::new("unshare").args(UNSHARE).args(["python3", "-I", "-c", "pass"]));
        Ok(Self { limits, isolation: if namespaces { Isolation::Namespaces } else { Isolation::Limits } })
    }

    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Runs one program.
    pub fn run(&self, program: &str) -> anyhow::Result<Outcome> {
        let folder = Folder::new()?;
        std::fs::write(folder.path.join("program.py"), program)?;
        let word = format!("{:x}", fingerprint(program) ^ u64::from(std::process::id()));
        let errors = std::fs::File::create(folder.path.join("errors"))?;
        let mut command = match self.isolation {
            Isolation::Namespaces => {
                let mut command = Command::new("unshare");
                command.args(UNSHARE).arg("python3");
                command
            }
            Isolation::Limits => Command::new("python3"),
        };
        command
            .args(["-I", "-B", "-c", LAUNCHER])
            .args([self.limits.seconds.to_string(), self.limits.memory_bytes.to_string(), word.clone()])
            .current_dir(&folder.path)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().context("cannot start python3")?;
        let deadline = Instant::now() + Duration::from_secs(self.limits.seconds);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if Instant::now() >= deadline {
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        // Whatever the program has left behind in its group goes with it.
        let group = format!("-{}", child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        if status.is_none() {
            let _ = child.kill();
            child.wait()?;
        }
        Ok(match status {
            None => Outcome::TimedOut,
            Some(_) if std::fs::read_to_string(folder.path.join("ended")).is_ok_and(|found| found == word) => {
                Outcome::Passed
            }
            Some(status) => Outcome::Failed(last_line(&folder.path.join("errors"), status)),
        })
    }
}

fn works(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

fn last_line(errors: &Path, status: std::process::ExitStatus) -> String {
    let text = std::fs::read(errors).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.map_or_else(|| format!("ended early: {status}"), |line| line.chars().take(300).collect())
}

/// A new folder, removed in the end.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new() -> anyhow::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("sorsa-program-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot create {}", path.display())),
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is left to the system.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn sandbox(seconds: u64) -> Option<Sandbox> {
        Sandbox::new(Limits { seconds, memory_bytes: 1 << 29 }).ok()
    }

    #[test]
    fn a_program_passes_only_when_it_reaches_its_end() {
        // Where there is no Python there is nothing to run.
        let Some(sandbox) = sandbox(20) else { return };
        assert_eq!(sandbox.run("assert 1 + 1 == 2").unwrap(), Outcome::Passed);
        for program in ["assert False", "import sys; sys.exit(0)", "import os; os._exit(0)", "def f(:"] {
            assert!(matches!(sandbox.run(program).unwrap(), Outcome::Failed(_)), "{program}");
        }
        let Outcome::Failed(error) = sandbox.run("raise ValueError('seven')").unwrap() else { panic!("it passed") };
        assert_eq!(error, "ValueError: seven");
    }

    #[test]
    fn time_memory_and_the_environment_are_limited() {
        let Some(quick) = sandbox(2) else { return };
        let started = Instant::now();
        assert_eq!(quick.run("while True: pass").unwrap(), Outcome::TimedOut);
        assert_eq!(quick.run("import time\ntime.sleep(60)").unwrap(), Outcome::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(20));
        let Some(sandbox) = sandbox(20) else { return };
        assert!(matches!(sandbox.run("x = bytearray(1 << 30)").unwrap(), Outcome::Failed(_)));
        assert_eq!(sandbox.run("import os\nassert 'HOME' not in os.environ").unwrap(), Outcome::Passed);
        assert_eq!(
            sandbox.run("import os\nassert sorted(os.listdir()) == ['errors', 'program.py']").unwrap(),
            Outcome::Passed
        );
        if sandbox.isolation() == Isolation::Namespaces {
            let program = "import socket\ntry:\n    socket.create_connection(('1.1.1.1', 53), 5)\nexcept OSError:\n    pass\nelse:\n    raise SystemExit(1)";
            assert_eq!(sandbox.run(program).unwrap(), Outcome::Passed);
        }
    }
}
