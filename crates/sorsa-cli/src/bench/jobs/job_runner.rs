//! Jobs as child processes of this binary. Each has a peak memory of its own, and several processes can share the jobs.
//!
//! A job is done if its result is there. Who starts a job holds the lock of its lock file, and passes the open file to the
//! child as its standard input: the system keeps the lock while the child lives, even if the parent is killed, and releases it
//! when the child ends. So no lock is ever stale.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use super::job::{Job, JobKind};
use crate::args::DeviceArgs;
use crate::exit::{Interrupted, bad_input};
use crate::progress::{Progress, Style};
use crate::signals;
use sorsa_experiment::comparison::RunConditions;
use sorsa_experiment::create_folder;
use sorsa_files::AtomicFile;

/// Interval of looking at the children.
const POLL: Duration = Duration::from_millis(25);
/// Time in which an interrupted child may write its checkpoint. A child that is killed loses the steps since the last one.
const GRACE: Duration = Duration::from_secs(20);

/// Runs jobs, some at a time.
pub struct JobRunner {
    locks: PathBuf,
    at_a_time: usize,
    device: DeviceArgs,
    style: Style,
    interrupted: Arc<AtomicBool>,
}

impl JobRunner {
    /// Runs up to `at_a_time` jobs at once. Their locks are in `folder`.
    pub fn new(folder: &Path, at_a_time: usize, device: &DeviceArgs, style: Style) -> anyhow::Result<Self> {
        let locks = folder.join("locks");
        create_folder(&locks)?;
        Ok(Self { locks, at_a_time, device: device.clone(), style, interrupted: signals::stop_flag() })
    }

    /// Does every job that is not done, and waits for the jobs that another process has begun. Returns how many jobs this
    /// process did. `describe` gives the line to print about a finished job.
    ///
    /// # Errors
    ///
    /// The first failure ends the jobs at work too, and so does Ctrl-C. Finished jobs keep their results.
    pub fn run(&self, stage: &'static str, jobs: &[Job], describe: impl Fn(&Job) -> String) -> anyhow::Result<usize> {
        let progress = Progress::new(stage, jobs.len() as u64, self.style);
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
                if let Err(error) = self.conclude(ended, status) {
                    if error.is::<Interrupted>() {
                        wait_for_checkpoints(&mut at_work);
                    }
                    return Err(error);
                }
                done_here += 1;
                progress.line(&format!("{stage} {}/{}: {}, {seconds:.0} s", count(), jobs.len(), describe(job)));
            }
            if self.interrupted.load(Ordering::SeqCst) {
                wait_for_checkpoints(&mut at_work);
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
            // The bar counts the jobs of all processes; plain lines name the jobs of this one.
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

    /// Takes the lock of a job. `None` if another process holds it.
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

    /// How many jobs are at work, in all processes that share the folder.
    fn count_at_work(&self) -> usize {
        let Ok(entries) = std::fs::read_dir(&self.locks) else { return 0 };
        let held = |path: &Path| {
            File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
        };
        entries.filter_map(Result::ok).filter(|entry| held(&entry.path())).count()
    }

    fn start<'a>(&self, job: &'a Job, lock: File) -> anyhow::Result<AtWork<'a>> {
        create_folder(&job.folder)?;
        let before = RunConditions::read(&job.folder);
        let conditions = RunConditions {
            concurrent: before.concurrent.max(self.count_at_work()),
            resumed: before.resumed || job.has_begun(),
        };
        let mut command = Command::new(std::env::current_exe().context("this program's own path")?);
        command.args(job.arguments()?).args(["--backend", &self.device.backend.to_string()]);
        command.args(["--device", &self.device.device.to_string()]).stdin(lock);
        if self.at_a_time > 1 && std::env::var_os("RAYON_NUM_THREADS").is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env("RAYON_NUM_THREADS", (cores / self.at_a_time).max(1).to_string());
        }
        let log = job.folder.join("log.txt");
        let log_file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut unfinished = None;
        let output = match &job.kind {
            JobKind::FineTune { .. } => {
                conditions.write(&job.folder)?;
                Stdio::null()
            }
            JobKind::Evaluate { result, .. } | JobKind::FindLearningRate { result, .. } => {
                let file = AtomicFile::create(job.folder.join(result))?;
                let output = file.child_output()?.into();
                unfinished = Some(file);
                output
            }
        };
        let child = command.stdout(output).stderr(log_file).spawn().context("cannot start a run")?;
        Ok(AtWork { job, child, log, unfinished, started: Instant::now() })
    }

    /// Gives the result of a job that succeeded its name; returns the error of a job that failed.
    fn conclude(&self, mut ended: AtWork<'_>, status: ExitStatus) -> anyhow::Result<()> {
        let job = ended.job;
        match (&job.kind, status.success()) {
            (JobKind::Evaluate { .. } | JobKind::FindLearningRate { .. }, true) => {
                if let Some(result) = ended.unfinished.take() {
                    result.commit()?;
                }
                return Ok(());
            }
            (JobKind::FineTune { .. }, _) if job.is_done() => {
                let mut conditions = RunConditions::read(&job.folder);
                // This job is no longer at work itself.
                conditions.concurrent = conditions.concurrent.max(self.count_at_work() + 1);
                return Ok(conditions.write(&job.folder)?);
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

/// Asks the children to end, and gives them the time to write their checkpoints.
fn wait_for_checkpoints(at_work: &mut [AtWork<'_>]) {
    // Of a signal to this process alone the children do not know.
    at_work.iter().for_each(AtWork::ask_to_stop);
    let limit = Instant::now() + GRACE;
    while Instant::now() < limit && at_work.iter_mut().any(|ours| matches!(ours.child.try_wait(), Ok(None))) {
        std::thread::sleep(POLL);
    }
}

/// The child process of a job. It is killed if this is dropped first.
struct AtWork<'a> {
    job: &'a Job,
    child: Child,
    log: PathBuf,
    /// The result of an evaluation, which the child prints.
    unfinished: Option<AtomicFile>,
    started: Instant,
}

impl AtWork<'_> {
    /// Asks the child to end with a checkpoint.
    #[cfg(unix)]
    fn ask_to_stop(&self) {
        use nix::sys::signal::{Signal, kill};
        use nix::unistd::Pid;
        // The only failure is that the child has ended. Its number is its own until it is waited for.
        if let Ok(number) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(number), Signal::SIGTERM);
        }
    }

    /// On Windows the children get the terminal's Ctrl-C.
    #[cfg(not(unix))]
    fn ask_to_stop(&self) {}
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        // The only failure is that the child has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sorsa_experiment::RunDir;
    use sorsa_experiment::comparison::{Evaluation, Subject};

    fn runner(folder: &Path) -> JobRunner {
        let device = DeviceArgs { backend: Default::default(), device: 0 };
        JobRunner::new(folder, 1, &device, Style::Quiet).unwrap()
    }

    #[test]
    fn a_lock_is_held_by_one_and_is_free_when_its_file_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (runner(folder.path()), runner(folder.path()));
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
    fn a_job_that_is_done_is_not_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let job = |name: &str, kind| Job { name: name.to_owned(), folder: folder.path().join(name), kind };
        let trained = job("trained", JobKind::FineTune { recipe: String::new() });
        let diverged = job("diverged", JobKind::FineTune { recipe: String::new() });
        let evaluation = Evaluation {
            model: "no such model".into(),
            quantize: None,
            adapter: None,
            skip_bad_rows: false,
            subject: Subject::Text { path: "no such text".into() },
        };
        let measured = job("measured", JobKind::Evaluate { evaluation, result: "test.json".to_owned() });
        for (job, file) in [(&trained, "summary.json"), (&diverged, RunDir::DIVERGED), (&measured, "test.json")] {
            assert!(!job.is_done());
            std::fs::create_dir(&job.folder).unwrap();
            std::fs::write(job.folder.join(file), "{}").unwrap();
        }
        let describe = |job: &Job| job.name.clone();
        assert_eq!(runner(folder.path()).run("jobs", &[trained, diverged, measured], describe).unwrap(), 0);
    }
}
