//! The peak memory of this process.

/// The largest resident size so far, in bytes; `None` where the system does not tell.
///
/// Linux is asked through `VmHWM`, not `getrusage`: the latter keeps the peak of the program this process was before an
/// `exec`, as happens under `cargo xtask`.
#[cfg(target_os = "linux")]
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?;
    Some(kib.parse::<u64>().ok()? * 1024)
}

/// The largest resident size so far, in bytes; `None` where the system does not tell.
#[cfg(target_os = "macos")]
pub fn peak_memory_bytes() -> Option<u64> {
    use nix::sys::resource::{UsageWho, getrusage};
    // macOS counts `ru_maxrss` in bytes.
    u64::try_from(getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss()).ok()
}

/// The largest resident size so far, in bytes; `None` where the system does not tell.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub fn peak_memory_bytes() -> Option<u64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_grows_with_memory_that_is_touched_and_stays_when_it_is_freed() {
        const SIZE: usize = 256 << 20;
        let before = peak_memory_bytes().unwrap();
        drop(std::hint::black_box(vec![1u8; SIZE]));
        let after = peak_memory_bytes().unwrap();
        // Half, since other tests may have freed memory that is taken again here.
        assert!(after >= before.max(SIZE as u64) && after < before + 8 * SIZE as u64, "{before} then {after}");
    }
}
