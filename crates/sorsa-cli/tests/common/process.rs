//! Child processes that are caught at a moment, whichever of two processes is faster.

use std::process::Child;
use std::time::{Duration, Instant};

#[cfg(unix)]
use nix::sys::signal::{Signal, kill};
#[cfg(unix)]
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
#[cfg(unix)]
use nix::unistd::Pid;

/// The longest wait for something that takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until `reached` holds. Panics if the process ends before.
pub fn wait_for(child: &mut Child, reached: impl Fn() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !reached() {
        assert!(child.try_wait().unwrap().is_none(), "the process ended before the moment waited for");
        assert!(Instant::now() < limit, "the moment waited for did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal to a process.
#[cfg(unix)]
pub fn send(child: &Child, signal: Signal) {
    kill(number(child), signal).unwrap();
}

/// Sends a signal to a process that leads a group, and to all others in the group.
#[cfg(unix)]
pub fn send_to_group(child: &Child, signal: Signal) {
    kill(Pid::from_raw(-number(child).as_raw()), signal).unwrap();
}

/// Stops a process at a moment at which `reached` holds, and still holds when the process stands: what is done next happens at
/// this moment. Returns false if the process ended before. `SIGCONT` lets it go on.
#[cfg(unix)]
pub fn stop_when(child: &Child, reached: impl Fn() -> bool) -> bool {
    let limit = Instant::now() + PATIENCE;
    // The process stays to be waited for by its owner.
    let state = |wanted| waitid(Id::Pid(number(child)), wanted | WaitPidFlag::WNOWAIT).unwrap();
    loop {
        while !reached() {
            if state(WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) != WaitStatus::StillAlive {
                return false;
            }
            assert!(Instant::now() < limit, "the moment waited for did not come");
            std::thread::yield_now();
        }
        send(child, Signal::SIGSTOP);
        if !matches!(state(WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED), WaitStatus::Stopped(..)) {
            return false;
        }
        if reached() {
            return true;
        }
        send(child, Signal::SIGCONT);
    }
}

#[cfg(unix)]
fn number(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap())
}
