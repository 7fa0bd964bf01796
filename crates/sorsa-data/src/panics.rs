//! Turns panics of libraries that read damaged files into errors.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Whether this thread runs code whose panics become errors, so that nothing is printed.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`. If it panics, returns the panic's message, and the process prints nothing.
pub(crate) fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                previous(info);
            }
        }));
    });
    let outer = QUIET.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    QUIET.set(outer);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        format!("the reader failed: {}", text.split_whitespace().collect::<Vec<_>>().join(" "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(caught(|| 3), Ok(3));
        let index = std::hint::black_box(7);
        assert_eq!(
            caught(|| [0; 3][index]),
            Err("the reader failed: index out of bounds: the len is 3 but the index is 7".to_owned())
        );
        assert!(!QUIET.get());
    }
}
