//! Limits of what a template may do: steps, memory and nesting.

use std::cell::Cell;

use super::Fault;

/// Limits of one rendering.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Steps: an expression, a statement, or the handling of 64 bytes.
    pub(crate) steps: u64,
    /// Bytes of all values that the template makes, whether or not they are kept.
    pub(crate) bytes: u64,
}

impl Limits {
    /// Limits for input of `bytes` bytes: more than any published template needs, and a second's work at most for a short
    /// conversation.
    pub(crate) fn for_input(bytes: usize) -> Self {
        let bytes = bytes as u64;
        Self { steps: 5_000_000 + 100 * bytes, bytes: (128 << 20) + 256 * bytes }
    }
}

/// What is left of the limits.
#[derive(Debug)]
pub(super) struct Budget {
    steps: Cell<u64>,
    bytes: Cell<u64>,
    depth: Cell<u32>,
}

impl Budget {
    /// Nested expressions, statements and calls. Each level costs at most some 2 KiB of a thread's stack of 2 MiB.
    const MAX_DEPTH: u32 = 300;

    pub(super) fn new(limits: Limits) -> Self {
        Self { steps: Cell::new(limits.steps), bytes: Cell::new(limits.bytes), depth: Cell::new(0) }
    }

    /// Counts one step.
    pub(super) fn step(&self) -> Result<(), Fault> {
        self.steps(1)
    }

    /// Counts the handling of `size` bytes or elements.
    pub(super) fn scan(&self, size: usize) -> Result<(), Fault> {
        self.steps(size as u64 / 64 + 1)
    }

    fn steps(&self, count: u64) -> Result<(), Fault> {
        match self.steps.get().checked_sub(count) {
            Some(left) => {
                self.steps.set(left);
                Ok(())
            }
            None => Err(Fault::new("the template takes too many steps: it may run for ever")),
        }
    }

    /// Counts `bytes` bytes of new values, before they are made.
    pub(super) fn allocate(&self, bytes: usize) -> Result<(), Fault> {
        match self.bytes.get().checked_sub(bytes as u64) {
            Some(left) => {
                self.bytes.set(left);
                self.scan(bytes)
            }
            None => Err(Fault::new("the template makes too much text or too long lists")),
        }
    }

    /// Runs `work` one level deeper.
    pub(super) fn nested<T>(&self, work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
        let depth = self.depth.get();
        if depth >= Self::MAX_DEPTH {
            return Err(Fault::new(format!("the template nests more than {} levels deep", Self::MAX_DEPTH)));
        }
        self.depth.set(depth + 1);
        let result = work();
        self.depth.set(depth);
        result
    }
}
