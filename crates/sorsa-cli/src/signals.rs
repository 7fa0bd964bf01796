//! Signals: the first one of a run asks it to stop after its step. Everywhere else, and the second time, a signal ends the process
//! at once.
//!
//! Whatever signal ends the process, its temporary files go with it. SIGHUP stays ignored if it was ignored at the start, as
//! `nohup` wants it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::exit::INTERRUPTED;
use crate::session;

/// What the next signal does.
#[derive(Default)]
struct Listening {
    /// Set by the first signal. Absent: the first signal ends the process.
    stop: Option<Arc<AtomicBool>>,
    /// The kinds of signals that came since somebody listens. A comparison sends SIGTERM to its runs, which may have had the
    /// terminal's SIGINT before: these two are one request.
    seen: HashSet<i32>,
    /// What is said if the process ends at once.
    advice: Option<String>,
}

/// Handles signals from now on.
pub fn install() {
    // Without a handler, a signal ends the process as usual; a run can be resumed then too.
    let _ = listen();
}

/// The flag that the next signal sets, instead of ending the process.
pub fn stop_flag() -> Arc<AtomicBool> {
    let mut listening = listening();
    listening.seen.clear();
    Arc::clone(listening.stop.get_or_insert_default())
}

/// From now on a signal ends the process again.
pub fn end_at_once() {
    listening().stop = None;
}

/// What is said from now on if a signal ends the process at once.
pub fn advise(text: String) {
    listening().advice = Some(text);
}

fn listening() -> MutexGuard<'static, Listening> {
    static LISTENING: LazyLock<Mutex<Listening>> = LazyLock::new(Mutex::default);
    LISTENING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn handle(signal: i32) {
    let advice = {
        let mut listening = listening();
        let is_first = listening.seen.insert(signal);
        match &listening.stop {
            Some(flag) if is_first => {
                if !flag.swap(true, Ordering::SeqCst) {
                    eprintln!("\nstopping after this step, with a checkpoint (again: at once)");
                }
                return;
            }
            _ => listening.advice.take(),
        }
    };
    sorsa_files::remove_temporaries();
    session::remove_temporary();
    eprintln!(
        "{}",
        match advice {
            Some(advice) => format!("\ninterrupted; {advice}"),
            None => "\ninterrupted".to_owned(),
        }
    );
    std::process::exit(i32::from(INTERRUPTED));
}

#[cfg(unix)]
fn listen() -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = vec![SIGINT, SIGTERM];
    if !ignores_hangup() {
        signals.push(SIGHUP);
    }
    let mut signals = signal_hook::iterator::Signals::new(signals)?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || signals.forever().for_each(handle))?;
    Ok(())
}

#[cfg(not(unix))]
fn listen() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| handle(0))
}

/// Whether whoever started the process has it ignore SIGHUP. Only Linux tells without unsafe code; elsewhere the signal is left as it
/// was inherited.
#[cfg(unix)]
fn ignores_hangup() -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return true };
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // Bit 0 is signal 1, SIGHUP.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_none_or(|mask| mask & 1 == 1)
}
