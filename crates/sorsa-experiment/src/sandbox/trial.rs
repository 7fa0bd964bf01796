//! One trial: the judge and the program are started, joined by a socket, watched, and ended.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::launch::{Process, Role};
use super::python::Python;
use super::{CodeExecution, Isolation, TestResult, Trial};
use crate::error::ExperimentError;

/// Runs programs in `python3`.
pub struct Sandbox {
    code: CodeExecution,
    python: Python,
    isolation: Isolation,
}

/// What the judge is sent.
#[derive(Serialize)]
struct Work<'a> {
    prompt: &'a str,
    program: &'a str,
    definitions: Option<&'a str>,
    test: &'a str,
    entry_point: &'a str,
}

/// What the judge sends.
#[derive(Deserialize)]
struct Verdict {
    passed: bool,
    error: String,
}

/// A verdict is a line, and no longer than this.
const LONGEST_VERDICT: usize = 1 << 16;
/// What the judge sends before it has the program run its source.
const STARTED: &[u8] = b"started\n";
/// The longest time that the processes may take to start.
const START: Duration = Duration::from_secs(60);
/// Between two looks at what the processes take.
const LOOK: Duration = Duration::from_millis(10);

impl Sandbox {
    /// Looks for `python3`, and for the isolation that the kernel offers.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::NoPython`].
    pub fn new(code: &CodeExecution) -> Result<Self, ExperimentError> {
        let python = Python::find(&code.search_path).ok_or(ExperimentError::NoPython)?;
        // A busy machine is no reason to isolate less.
        let patient = CodeExecution { seconds: code.seconds.max(START.as_secs()), ..code.clone() };
        let mut sandbox = Self { code: patient, python, isolation: Isolation::Limits };
        let trial =
            Trial { prompt: "", source: "f = len", test: "def check(f):\n    assert f('ab') == 2", entry_point: "f" };
        for isolation in [Isolation::Container, Isolation::Namespaces] {
            sandbox.isolation = isolation;
            if matches!(sandbox.run(&trial), Ok(TestResult::Passed)) {
                return Ok(Self { code: code.clone(), ..sandbox });
            }
        }
        Ok(Self { code: code.clone(), isolation: Isolation::Limits, ..sandbox })
    }

    /// How isolated programs are.
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// The same with another isolation.
    #[cfg(test)]
    pub(super) fn with_isolation(&self, isolation: Isolation) -> Self {
        Self { code: self.code.clone(), python: self.python.clone(), isolation }
    }

    /// Tests one function.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Sandbox`] if its processes cannot be started or watched.
    pub fn run(&self, trial: &Trial<'_>) -> Result<TestResult, ExperimentError> {
        let definitions = definitions(trial);
        let (to_program, program) = self.program()?;
        let (to_definitions, mut helper) = match definitions {
            Some(_) => {
                let (socket, process) = self.program()?;
                (Stdio::from(OwnedFd::from(socket)), Some(process))
            }
            None => (Stdio::null(), None),
        };
        let (mut line, judges) = UnixStream::pair().map_err(failed("its socket"))?;
        let streams = [OwnedFd::from(to_program).into(), to_definitions, OwnedFd::from(judges).into()];
        let mut judge = self.start(Role::Judge, streams)?;
        let mut program = program;
        let work = Work {
            prompt: trial.prompt,
            program: trial.source,
            definitions,
            test: trial.test,
            entry_point: trial.entry_point,
        };
        let work = serde_json::to_string(&work).unwrap_or_default() + "\n";
        line.set_write_timeout(Some(START)).map_err(failed("its socket"))?;
        line.set_read_timeout(Some(Duration::from_millis(2))).map_err(failed("its socket"))?;
        // A judge that has died does not read; what follows finds that out.
        let _ = line.write_all(work.as_bytes());
        let (mut received, mut looked) = (Vec::new(), Instant::now());
        let (mut started, mut deadline) = (false, looked + START);
        loop {
            let mut part = [0; 4096];
            match line.read(&mut part) {
                Ok(0) => break,
                Ok(count) => received.extend_from_slice(&part[..count]),
                Err(error) if is_wait(&error) => {}
                Err(error) => return Err(failed("its socket")(error)),
            }
            if !started && received.starts_with(STARTED) {
                // The start of Python does not count: on a busy machine it may take longer than the program.
                received.drain(..STARTED.len());
                (started, deadline) = (true, Instant::now() + Duration::from_secs(self.code.seconds));
            }
            if started && received.ends_with(b"\n") || received.len() > LONGEST_VERDICT {
                break;
            }
            if Instant::now() >= deadline {
                return Ok(TestResult::TimedOut);
            }
            if looked.elapsed() < LOOK {
                continue;
            }
            looked = Instant::now();
            for process in [Some(&mut program), helper.as_mut(), Some(&mut judge)].into_iter().flatten() {
                if let Some(excess) = process.excess(&self.code) {
                    return Ok(TestResult::Failed(excess));
                }
            }
            if program.ended().map_err(failed("waiting for it"))?.is_some() {
                // Whatever it has left behind would keep the socket open, and the judge waiting.
                program.end();
            }
        }
        Ok(match serde_json::from_slice(&received) {
            Ok(Verdict { passed: true, .. }) => TestResult::Passed,
            Ok(Verdict { error, .. }) => TestResult::Failed(last_line(&error, &mut program)),
            Err(_) => TestResult::Failed(last_line("", &mut judge)),
        })
    }

    /// A process for untrusted code, and the other end of its socket.
    fn program(&self) -> Result<(UnixStream, Process), ExperimentError> {
        let (ours, theirs) = UnixStream::pair().map_err(failed("its socket"))?;
        let process = self.start(Role::Program, [OwnedFd::from(theirs).into(), Stdio::null(), Stdio::null()])?;
        Ok((ours, process))
    }

    fn start(&self, role: Role, streams: [Stdio; 3]) -> Result<Process, ExperimentError> {
        Process::start(role, &self.code, &self.python, self.isolation, streams).map_err(failed("cannot start python3"))
    }
}

/// What a prompt defines before its entry point, if the tests use any of it.
fn definitions<'a>(trial: &Trial<'a>) -> Option<&'a str> {
    let Trial { prompt, test, entry_point, .. } = *trial;
    let start = prompt.rfind(&format!("\ndef {entry_point}("))?;
    let before = &prompt[..start];
    let mut names = before.lines().filter_map(defined_name);
    names.any(|name| test.contains(name)).then_some(before)
}

/// The name that a line at the top of a module defines.
fn defined_name(line: &str) -> Option<&str> {
    let definition = line.strip_prefix("def ").or_else(|| line.strip_prefix("class "));
    let name = match definition {
        Some(rest) => rest.split(['(', ':']).next()?,
        None => line.split_once('=')?.0,
    };
    let name = name.trim_end();
    let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    plain.then_some(name)
}

fn is_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> ExperimentError {
    move |source| ExperimentError::Sandbox { action, source }
}

/// The last line of an error, or, without one, how the process ended that should have gone on.
fn last_line(error: &str, process: &mut Process) -> String {
    match error.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => line.chars().take(300).collect(),
        None => match process.status_soon() {
            Some(status) => format!("ended early: {status}"),
            None => "ended early".to_owned(),
        },
    }
}
