//! Programs that a model has written, run in a child process with limits.
//!
//! On Linux a program has a time limit, after which the process and its group are killed; limits on memory, CPU time, file
//! size and open files, set before the program begins, which it cannot raise; an empty working folder, removed
//! afterwards; an empty environment; no standard input. If the kernel lets an unprivileged process make namespaces
//! (`unshare`), there is no network either, and no process outlives the program. What does not hold: the program reads
//! and writes whatever the user may. This is no jail for code that means harm: use a container or a virtual machine for that.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::answer_log::fingerprint;
use crate::error::ExperimentError;

/// How programs are run that a model writes. Whoever makes one allows it.
#[derive(Debug, Clone)]
pub struct CodeExecution {
    /// Seconds that a program may take.
    pub seconds: u64,
    /// Memory that a program may take.
    pub memory_bytes: u64,
    /// Where programs get their working folders, such as the system's folder of temporary files.
    pub folder: PathBuf,
    /// Where `python3` is looked for: the `PATH` of programs.
    pub search_path: OsString,
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
    code: CodeExecution,
    isolation: Isolation,
}

/// What became of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TestResult {
    /// It ran to its end.
    Passed,
    /// It raised, or ended early: the last line it wrote as an error.
    Failed(String),
    /// It was ended.
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
    /// Looks for `python3`, and for the isolation that the kernel offers.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::NotUnix`], [`ExperimentError::NoPython`].
    pub fn new(code: &CodeExecution) -> Result<Self, ExperimentError> {
        if cfg!(not(unix)) {
            return Err(ExperimentError::NotUnix);
        }
        if !works(Command::new("python3").args(["-I", "-c", "import resource"])) {
            return Err(ExperimentError::NoPython);
        }
        let namespaces = works(Command::new("unshare").args(UNSHARE).args(["python3", "-I", "-c", "pass"]));
        let isolation = if namespaces { Isolation::Namespaces } else { Isolation::Limits };
        Ok(Self { code: code.clone(), isolation })
    }

    /// How isolated programs are.
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Runs one program.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Sandbox`] if the program cannot be started or watched.
    pub fn run(&self, program: &str) -> Result<TestResult, ExperimentError> {
        let folder = ProgramFolder::create(&self.code.folder).map_err(failed("its folder"))?;
        std::fs::write(folder.path.join("program.py"), program).map_err(failed("its file"))?;
        let word = format!("{:x}", fingerprint(program) ^ u64::from(std::process::id()));
        let errors = std::fs::File::create(folder.path.join("errors")).map_err(failed("its file"))?;
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
            .args([self.code.seconds.to_string(), self.code.memory_bytes.to_string(), word.clone()])
            .current_dir(&folder.path)
            .env_clear()
            .env("PATH", &self.code.search_path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(failed("cannot start python3"))?;
        let deadline = Instant::now() + Duration::from_secs(self.code.seconds);
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed("waiting for it"))? {
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
            child.wait().map_err(failed("waiting for it"))?;
        }
        Ok(match status {
            None => TestResult::TimedOut,
            Some(_) if std::fs::read_to_string(folder.path.join("ended")).is_ok_and(|found| found == word) => {
                TestResult::Passed
            }
            Some(status) => TestResult::Failed(last_line(&folder.path.join("errors"), status)),
        })
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> ExperimentError {
    move |source| ExperimentError::Sandbox { action, source }
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

/// The working folder of one program, removed afterwards.
struct ProgramFolder {
    path: PathBuf,
}

impl ProgramFolder {
    fn create(parent: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("sorsa-program-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for ProgramFolder {
    fn drop(&mut self) {
        // What cannot be removed is left to the system.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
impl CodeExecution {
    /// With the search path of this process.
    pub(crate) fn for_tests(folder: &Path, seconds: u64, memory_bytes: u64) -> Self {
        let search_path = std::env::var_os("PATH").unwrap_or_default();
        Self { seconds, memory_bytes, folder: folder.to_owned(), search_path }
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    fn sandbox(folder: &Path, seconds: u64) -> Option<Sandbox> {
        Sandbox::new(&CodeExecution::for_tests(folder, seconds, 1 << 29)).ok()
    }

    #[test]
    fn a_program_passes_only_when_it_reaches_its_end() {
        let folder = tempfile::tempdir().unwrap();
        // Without Python there is nothing to run.
        let Some(sandbox) = sandbox(folder.path(), 20) else { return };
        assert_eq!(sandbox.run("assert 1 + 1 == 2").unwrap(), TestResult::Passed);
        for program in ["assert False", "import sys; sys.exit(0)", "import os; os._exit(0)", "def f(:"] {
            assert!(matches!(sandbox.run(program).unwrap(), TestResult::Failed(_)), "{program}");
        }
        let TestResult::Failed(error) = sandbox.run("raise ValueError('seven')").unwrap() else { panic!("it passed") };
        assert_eq!(error, "ValueError: seven");
    }

    #[test]
    fn time_memory_and_the_environment_are_limited() {
        let folder = tempfile::tempdir().unwrap();
        let Some(quick) = sandbox(folder.path(), 2) else { return };
        let started = Instant::now();
        assert_eq!(quick.run("while True: pass").unwrap(), TestResult::TimedOut);
        assert_eq!(quick.run("import time\ntime.sleep(60)").unwrap(), TestResult::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(20));
        let Some(sandbox) = sandbox(folder.path(), 20) else { return };
        assert!(matches!(sandbox.run("x = bytearray(1 << 30)").unwrap(), TestResult::Failed(_)));
        assert_eq!(sandbox.run("import os\nassert 'HOME' not in os.environ").unwrap(), TestResult::Passed);
        assert_eq!(
            sandbox.run("import os\nassert sorted(os.listdir()) == ['errors', 'program.py']").unwrap(),
            TestResult::Passed
        );
        if sandbox.isolation() == Isolation::Namespaces {
            let program = "import socket\ntry:\n    socket.create_connection(('1.1.1.1', 53), 5)\nexcept OSError:\n    pass\nelse:\n    raise SystemExit(1)";
            assert_eq!(sandbox.run(program).unwrap(), TestResult::Passed);
        }
    }
}
