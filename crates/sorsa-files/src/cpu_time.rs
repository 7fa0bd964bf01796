//! The CPU time of this process.

/// CPU seconds of all threads so far, in user and in system mode; `None` where the system does not tell.
#[cfg(unix)]
pub fn cpu_seconds() -> Option<f64> {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let times = [usage.user_time(), usage.system_time()];
    Some(times.iter().map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6).sum())
}

/// CPU seconds of all threads so far; `None` where the system does not tell.
#[cfg(not(unix))]
pub fn cpu_seconds() -> Option<f64> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn work_takes_cpu_time() {
        let start = cpu_seconds().unwrap();
        let clock = std::time::Instant::now();
        // Other tests of this process may work meanwhile: the time can be longer than this thread's, never shorter.
        while clock.elapsed().as_millis() < 2000 && cpu_seconds().unwrap() - start < 0.02 {
            std::hint::black_box((0..10_000).fold(0.0f64, |sum, i| sum + f64::from(i).sqrt()));
        }
        assert!(cpu_seconds().unwrap() - start >= 0.02);
    }
}
