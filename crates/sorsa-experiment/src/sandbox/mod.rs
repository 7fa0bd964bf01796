//! Functions that a model has written, tested in child processes with limits.
//!
//! Two processes of `python3` share the work: the judge runs the tests, the program runs what the model wrote. The judge calls
//! the program's function over a socket; arguments and results cross as plain values. So the verdict comes from a process that never
//! runs untrusted code, and whatever the program does, it can only answer or not. If the tests use functions of the prompt, a third
//! process runs these.
//!
//! On Linux, each process has a time limit; limits of memory, CPU time, file size and open files, which it cannot raise; an empty
//! folder, removed afterwards; an empty environment. While it runs, its processes are counted, and their memory and the size of the
//! folder are added up. [`Isolation`] says what else the kernel offers. This is no jail for code that means harm: use a container or a
//! virtual machine for that.

#[cfg(unix)]
mod folder;
#[cfg(unix)]
mod launch;
#[cfg(unix)]
mod python;
#[cfg(all(test, unix))]
mod tests;
#[cfg(unix)]
mod trial;
#[cfg(unix)]
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;

#[cfg(not(unix))]
use crate::error::ExperimentError;

#[cfg(unix)]
pub use trial::Sandbox;

/// Limits of programs that a model writes. Whoever makes one allows such programs to run.
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
    /// Namespaces and a file system of its own: no network, no process left behind, no file but Python's, no other processes in sight.
    Container,
    /// Namespaces of its own: no network, no process left behind.
    Namespaces,
    /// Limits only.
    Limits,
}

impl Isolation {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Namespaces => "namespaces",
            Self::Limits => "limits",
        }
    }
}

/// A function and its tests.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    /// What the model was given: its imports, and the functions before `entry_point`, are there for the tests too.
    pub prompt: &'a str,
    /// The source that defines `entry_point`.
    pub source: &'a str,
    /// The source that defines `check(candidate)`.
    pub test: &'a str,
    /// The function that is tested.
    pub entry_point: &'a str,
}

/// What became of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TestResult {
    /// It passed all tests.
    Passed,
    /// A test failed, or the program raised, ended early or took too much: the last line of the error.
    Failed(String),
    /// It was ended.
    TimedOut,
}

/// Runs programs on Unix only.
#[cfg(not(unix))]
pub struct Sandbox;

#[cfg(not(unix))]
impl Sandbox {
    /// # Errors
    ///
    /// [`ExperimentError::NotUnix`].
    pub fn new(_: &CodeExecution) -> Result<Self, ExperimentError> {
        Err(ExperimentError::NotUnix)
    }

    /// How isolated programs are.
    pub fn isolation(&self) -> Isolation {
        Isolation::Limits
    }

    /// # Errors
    ///
    /// [`ExperimentError::NotUnix`].
    pub fn run(&self, _: &Trial<'_>) -> Result<TestResult, ExperimentError> {
        Err(ExperimentError::NotUnix)
    }
}
