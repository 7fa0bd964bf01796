//! Starts one Python process of a sandbox in its own folder, and ends it with all that it has started.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::folder::{self, WorkFolder};
use super::python::Python;
use super::watch::{self, PROCESSES, Watch};
use super::{CodeExecution, Isolation};

/// What a process does.
#[derive(Debug, Clone, Copy)]
pub enum Role {
    /// Runs the tests, and gives the verdict.
    Judge,
    /// Runs untrusted code, and answers the judge.
    Program,
}

/// What "soon" is: seconds on a busy machine, and the time is taken only by a process that lives on without its line.
const SOON: Duration = Duration::from_secs(5);
/// New namespaces. If their first process ends, the kernel ends all others in them.
const NAMESPACES: [&str; 7] = ["--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child"];

/// A process that runs; it ends when this is dropped.
pub struct Process {
    child: Child,
    isolation: Isolation,
    folder: WorkFolder,
    watch: Watch,
    is_over: bool,
}

impl Process {
    /// Starts one.
    pub fn start(
        role: Role,
        code: &CodeExecution,
        python: &Python,
        isolation: Isolation,
        [input, output, errors]: [Stdio; 3],
    ) -> io::Result<Self> {
        let folder = WorkFolder::create(&code.folder)?;
        let mut command = match isolation {
            Isolation::Container => {
                let mut command = Command::new("unshare");
                command.args(NAMESPACES).args(["--mount", "sh", "-c", include_str!("root.sh"), "sh"]);
                command.arg(folder.path()).args(&python.links).arg("--").args(&python.shown).arg("--");
                command.arg(&python.executable);
                command
            }
            Isolation::Namespaces => {
                let mut command = Command::new("unshare");
                command.args(NAMESPACES).arg(&python.executable);
                command
            }
            Isolation::Limits => Command::new(&python.executable),
        };
        let source = match role {
            Role::Judge => concat!(include_str!("link.py"), include_str!("judge.py")),
            Role::Program => concat!(include_str!("link.py"), include_str!("program.py")),
        };
        let spare_threads = match isolation {
            // A user's threads are counted anew in namespaces, but only since Linux 5.14; `Watch` does it everywhere.
            Isolation::Container | Isolation::Namespaces => None,
            Isolation::Limits => watch::threads_of_user(),
        };
        let threads = spare_threads.map_or(0, |threads| threads + 2 * PROCESSES as u64);
        command.args(["-I", "-B", "-c", source, isolation.name()]);
        command.args([code.seconds, code.memory_bytes, threads].map(|limit| limit.to_string()));
        command.current_dir(folder.path()).env_clear().env("PATH", &code.search_path).process_group(0);
        let child = command.stdin(input).stdout(output).stderr(errors).spawn()?;
        Ok(Self { watch: Watch::new(child.id()), child, isolation, folder, is_over: false })
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Its status, if it ends soon.
    pub fn status_soon(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + SOON;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                status => return status.ok().flatten(),
            }
        }
    }

    /// What its processes have too much of, together.
    pub fn excess(&mut self, code: &CodeExecution) -> Option<String> {
        let (processes, bytes) = self.watch.look();
        if processes > PROCESSES {
            return Some(format!("it started more than {PROCESSES} processes"));
        }
        if bytes > code.memory_bytes {
            return Some(format!("its processes took more than {} MiB together", code.memory_bytes >> 20));
        }
        let full = self.folder.is_full();
        full.then(|| format!("it wrote more than {} MiB, or too many files", folder::BYTES >> 20))
    }

    /// Ends it and all that it has started, as far as that can be known.
    pub fn end(&mut self) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        if self.isolation == Isolation::Limits {
            self.watch.look();
            let group = format!("-{}", self.child.id());
            let mut strays: Vec<u32> = self.watch.processes().collect();
            if let Ok(folder) = self.folder.path().canonicalize() {
                strays.extend(watch::processes_in(&folder));
            }
            let strays = strays.iter().map(u32::to_string);
            let mut kill = Command::new("kill");
            let _ = kill.args(["-KILL", "--", &group]).args(strays).stderr(Stdio::null()).status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
