//! Runs as child processes of this binary: each has its own peak memory, and several processes can share the work.
//!
//! A piece of work is done when its result is there. Whoever starts it holds the lock of its file, and hands the open file to
//! the child as its standard input: the system keeps the lock as long as the child lives, even where its parent was killed,
//! and gives it up when the child ends. So no lock is ever stale.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use sorsa_train::files::write_atomic;

use crate::args::DeviceArgs;
use crate::commands::finetune::DIVERGED;
use crate::exit::{Interrupted, bad_input};
use crate::progress::{Progress, Style, interrupt_flag};
use crate::session::create_folder;

/// How often children are looked at.
const POLL: Duration = Duration::from_millis(25);
/// How long an interrupted child may take to write its checkpoint. One that is killed loses the steps since the last one.
const GRACE: Duration = Duration::from_secs(20);

/// A piece of work: training, or a measurement of a trained model.
#[derive(Debug, Clone)]
pub struct Job {
    /// Unique in the comparison; also the name of its lock.
    pub name: String,
    /// Where its files are.
    pub folder: PathBuf,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub enum Kind {
    /// A fine-tune into the folder, by this recipe.
    Train { recipe: String },
    /// A command whose standard output becomes the file `result` in the folder.
    Measure { args: Vec<String>, result: String },
}

/// Under which circumstances a run was made: `bench.json` in its folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Circumstances {
    /// Most runs that were seen at work at the same time, this one counted.
    pub concurrent: usize,
    /// Whether it was ended and gone on with, so that the time of its start is not known.
    pub resumed: bool,
}

/// The file of the circumstances.
const CIRCUMSTANCES: &str = "bench.json";

impl Circumstances {
    /// Of the run in `folder`.
    pub fn of(folder: &Path) -> Self {
        let text = std::fs::read(folder.join(CIRCUMSTANCES)).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    fn write(self, folder: &Path) -> anyhow::Result<()> {
        Ok(write_atomic(folder.join(CIRCUMSTANCES), serde_json::to_vec(&self)?)?)
    }
}

impl Job {
    pub fn is_done(&self) -> bool {
        match &self.kind {
            Kind::Train { .. } => ["summary.json", DIVERGED].iter().any(|name| self.folder.join(name).exists()),
            Kind::Measure { result, .. } => self.folder.join(result).exists(),
        }
    }

    /// The command that does it, or goes on with it.
    fn args(&self) -> anyhow::Result<Vec<String>> {
        let recipe = match &self.kind {
            Kind::Train { recipe } => recipe,
            Kind::Measure { args, .. } => return Ok(args.clone()),
        };
        let folder = self.folder.display().to_string();
        if self.folder.join("recipe.toml").exists() {
            return Ok(["finetune", "--quiet", "--resume", &folder].map(str::to_owned).to_vec());
        }
        let asked = self.folder.join("asked.toml");
        write_atomic(&asked, recipe)?;
        let asked = asked.display().to_string();
        Ok(["finetune", "--quiet", "--recipe", &asked, "--run-dir", &folder].map(str::to_owned).to_vec())
    }
}

/// Does jobs, some at a time.
pub struct Workshop {
    locks: PathBuf,
    at_a_time: usize,
    device: DeviceArgs,
    style: Style,
    interrupted: Arc<AtomicBool>,
}

impl Workshop {
    pub fn new(folder: &Path, at_a_time: usize, device: &DeviceArgs, style: Style) -> anyhow::Result<Self> {
        let locks = folder.join("locks");
        create_folder(&locks)?;
        Ok(Self { locks, at_a_time, device: device.clone(), style, interrupted: interrupt_flag() })
    }

    /// Does every job that is not done, and waits for those that another process has begun. Returns how many were done here.
    ///
    /// # Errors
    ///
    /// The first failure ends those at work too, and so does Ctrl-C; what is finished stays.
    pub fn run(&self, what: &'static str, jobs: &[Job], told: impl Fn(&Job) -> String) -> anyhow::Result<usize> {
        let progress = Progress::new(what, jobs.len() as u64, self.style);
        let mut at_work: Vec<AtWork<'_>> = Vec::new();
        let mut done_here = 0;
        let count = || jobs.iter().filter(|job| job.is_done()).count() as u64;
        let mut done = count();
        if self.style == Style::Bar {
            progress.set(done, "");
        }
        loop {
            let mut index = 0;
            while index < at_work.len() {
                let Some(status) = at_work[index].child.try_wait()? else {
                    index += 1;
                    continue;
                };
                let ended = at_work.swap_remove(index);
                let (job, seconds) = (ended.job, ended.started.elapsed().as_secs_f64());
                self.conclude(ended, status)?;
                done_here += 1;
                progress.line(&format!("{what} {}/{}: {}, {seconds:.0} s", count(), jobs.len(), told(job)));
            }
            if self.interrupted.load(Ordering::SeqCst) {
                let limit = Instant::now() + GRACE;
                while Instant::now() < limit && at_work.iter_mut().any(|ours| matches!(ours.child.try_wait(), Ok(None)))
                {
                    std::thread::sleep(POLL);
                }
                return Err(Interrupted.into());
            }
            let mut open = 0;
            for job in jobs {
                if job.is_done() || at_work.iter().any(|ours| ours.job.name == job.name) {
                    continue;
                }
                open += 1;
                if at_work.len() >= self.at_a_time {
                    continue;
                }
                // Another process may have finished it in between.
                if let Some(lock) = self.lock(&job.name)?.filter(|_| !job.is_done()) {
                    at_work.push(self.start(job, lock)?);
                }
            }
            // A bar only moves when something was done, here or elsewhere; plain lines tell of what was done here.
            let now = count();
            if now != done && self.style == Style::Bar {
                progress.set(now, "");
            }
            done = now;
            if open == 0 && at_work.is_empty() {
                progress.finish();
                return Ok(done_here);
            }
            std::thread::sleep(POLL);
        }
    }

    /// The lock of a job, if nobody holds it.
    fn lock(&self, name: &str) -> anyhow::Result<Option<File>> {
        let path = self.locks.join(name);
        let fault = || format!("cannot lock {}", path.display());
        let file = OpenOptions::new().create(true).append(true).open(&path).with_context(fault)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(fault),
        }
    }

    /// How many jobs are at work, of all processes that share the folder.
    fn count_at_work(&self) -> usize {
        let Ok(entries) = std::fs::read_dir(&self.locks) else { return 0 };
        let held = |path: &Path| {
            File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
        };
        entries.filter_map(Result::ok).filter(|entry| held(&entry.path())).count()
    }

    fn start<'a>(&self, job: &'a Job, lock: File) -> anyhow::Result<AtWork<'a>> {
        create_folder(&job.folder)?;
        let before = Circumstances::of(&job.folder);
        let circumstances = Circumstances {
            concurrent: before.concurrent.max(self.count_at_work()),
            resumed: before.resumed || job.folder.join("recipe.toml").exists(),
        };
        let mut command = Command::new(std::env::current_exe().context("this program's own path")?);
        command.args(job.args()?).args(["--backend", &self.device.backend.to_string()]);
        command.args(["--device", &self.device.device.to_string()]).stdin(lock);
        if self.at_a_time > 1 && std::env::var_os("RAYON_NUM_THREADS").is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env("RAYON_NUM_THREADS", (cores / self.at_a_time).max(1).to_string());
        }
        let log = job.folder.join("log.txt");
        let log_file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let output = match &job.kind {
            Kind::Train { .. } => {
                circumstances.write(&job.folder)?;
                Stdio::null()
            }
            Kind::Measure { result, .. } => File::create(unfinished(&job.folder, result))?.into(),
        };
        let child = command.stdout(output).stderr(log_file).spawn().context("cannot start a run")?;
        Ok(AtWork { job, child, log, started: Instant::now() })
    }

    /// Keeps the result of a job that ended well; tells why one did not.
    fn conclude(&self, ended: AtWork<'_>, status: ExitStatus) -> anyhow::Result<()> {
        let job = ended.job;
        match (&job.kind, status.success()) {
            (Kind::Measure { result, .. }, true) => {
                std::fs::rename(unfinished(&job.folder, result), job.folder.join(result))?;
                return Ok(());
            }
            (Kind::Train { .. }, _) if job.is_done() => {
                let mut circumstances = Circumstances::of(&job.folder);
                // This one is no longer at work.
                circumstances.concurrent = circumstances.concurrent.max(self.count_at_work() + 1);
                return circumstances.write(&job.folder);
            }
            _ => {}
        }
        if status.code() == Some(130) {
            return Err(Interrupted.into());
        }
        let log = std::fs::read_to_string(&ended.log).unwrap_or_default();
        let reason = log.lines().rev().find_map(|line| line.strip_prefix("error: ")).unwrap_or("no reason was given");
        let message = format!("{}: {reason} ({status}; {})", job.name, ended.log.display());
        Err(if status.code() == Some(2) { bad_input(message) } else { anyhow!(message) })
    }
}

/// A job's child. It is ended where this is dropped before.
struct AtWork<'a> {
    job: &'a Job,
    child: Child,
    log: PathBuf,
    started: Instant,
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        // A child that has ended cannot be killed any more, which is what was wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a result is until it is whole.
fn unfinished(folder: &Path, result: &str) -> PathBuf {
    folder.join(format!(".{result}.part"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workshop(folder: &Path) -> Workshop {
        let device = DeviceArgs { backend: Default::default(), device: 0 };
        Workshop::new(folder, 1, &device, Style::Quiet).unwrap()
    }

    #[test]
    fn a_lock_is_held_by_one_and_is_free_when_its_file_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (workshop(folder.path()), workshop(folder.path()));
        assert_eq!(ours.count_at_work(), 0);
        let lock = ours.lock("run").unwrap().unwrap();
        assert!(theirs.lock("run").unwrap().is_none());
        assert!(theirs.lock("other").unwrap().is_some());
        assert_eq!(theirs.count_at_work(), 1);
        drop(lock);
        assert!(theirs.lock("run").unwrap().is_some());
        assert_eq!(theirs.count_at_work(), 0);
    }

    #[test]
    fn what_is_done_is_not_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let job = |name: &str, kind| Job { name: name.to_owned(), folder: folder.path().join(name), kind };
        let trained = job("trained", Kind::Train { recipe: String::new() });
        let diverged = job("diverged", Kind::Train { recipe: String::new() });
        let args = vec!["no such command".to_owned()];
        let measured = job("measured", Kind::Measure { args, result: "test.json".to_owned() });
        for (job, file) in [(&trained, "summary.json"), (&diverged, DIVERGED), (&measured, "test.json")] {
            assert!(!job.is_done());
            std::fs::create_dir(&job.folder).unwrap();
            std::fs::write(job.folder.join(file), "{}").unwrap();
        }
        let told = |job: &Job| job.name.clone();
        assert_eq!(workshop(folder.path()).run("jobs", &[trained, diverged, measured], told).unwrap(), 0);
    }
}
