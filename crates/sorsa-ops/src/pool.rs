//! A pass over a model on a thread of rayon's pool.

use std::sync::{Mutex, PoisonError};

use burn::prelude::*;

use crate::form::{is_flex, plain_is_forced, without_fused};

/// Runs `body` on a thread of rayon's pool, always the same one, if `device` is burn's CPU backend; otherwise on the caller's
/// thread. Each of a pass's many operations shares its work with the pool. A thread of the pool pushes a job to its own queue;
/// from outside the pool, rayon injects the job and parks the caller. Callers from several threads take turns.
pub fn on_pool<R: Send>(device: &Device, body: impl FnOnce() -> R + Send) -> R {
    // A thread of the pool that waits for its jobs takes any other job meanwhile. Without turns it would begin a second pass
    // inside the first, which may hold a lock that the second one needs.
    static TURN: Mutex<()> = Mutex::new(());
    if !is_flex(device) || rayon::current_thread_index().is_some() {
        return body();
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let plain = plain_is_forced();
    let body = Mutex::new(Some(body));
    // Always the first thread: the allocator returns memory late to a thread if another thread frees it.
    let results = rayon::broadcast(|thread| {
        let body = (thread.index() == 0).then(|| body.lock().ok()?.take()).flatten()?;
        Some(if plain { without_fused(body) } else { body() })
    });
    results.into_iter().flatten().next().expect("a pool has a first thread")
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[test]
    fn a_pass_runs_on_the_first_thread_of_the_pool_in_the_form_of_its_caller() {
        let flex = Device::flex();
        let here = || (rayon::current_thread_index(), plain_is_forced());
        assert_eq!(on_pool(&flex, here), (Some(0), false));
        assert_eq!(without_fused(|| on_pool(&flex, here)), (Some(0), true));
        // A pass within a pass stays on its thread.
        assert_eq!(on_pool(&flex, || on_pool(&flex, here)), (Some(0), false));
        // Passes from several threads, each of which waits for the pool, take turns.
        let pass = |_: usize| on_pool(&flex, || (0..1000u64).into_par_iter().map(|i| i % 7).sum::<u64>());
        let sums = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..50).map(pass).sum::<u64>())).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        });
        assert!(sums.iter().all(|sum| *sum == sums[0]));
        // A panic reaches the caller, and the next pass runs.
        assert!(std::panic::catch_unwind(|| on_pool(&Device::flex(), || -> () { panic!("meant") })).is_err());
        assert_eq!(on_pool(&flex, here), (Some(0), false));
    }
}
