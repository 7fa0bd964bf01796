//! Turns panics of other people's code into errors: parsers of files from outside panic at some damaged files.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Number of calls of [`contained`] that this thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Runs `call` and returns its result, or the message of its panic. The panic is not printed.
///
/// # Errors
///
/// The message of the panic.
pub(crate) fn contained<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    silence_contained_panics();
    DEPTH.set(DEPTH.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(call));
    DEPTH.set(DEPTH.get() - 1);
    result.map_err(|payload| message(payload.as_ref()))
}

/// Puts a hook before the process's own that says nothing of panics on a thread that is in [`contained`].
fn silence_contained_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            if DEPTH.get() == 0 {
                previous(info);
            }
        }));
    });
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        assert_eq!(contained(|| 3), Ok(3));
        assert_eq!(
            contained(|| if DEPTH.get() == 1 {
                panic!("at {}", 7)
            }),
            Err("at 7".to_owned())
        );
        assert_eq!(DEPTH.get(), 0);
    }
}
