//! A limit on what compressed files grow to, so that a small file cannot fill the memory.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the bytes that a file expands to. Text shrinks 3 to 20 times; rows that repeat each other shrink a hundred times.
#[derive(Debug)]
pub(crate) struct Expansion {
    file_bytes: u64,
    expanded: AtomicU64,
}

/// A file may expand to this many bytes whatever its size.
const FREE: u64 = 512 << 20;
/// Beyond [`FREE`] bytes, a file may expand to this many times its size.
const RATIO: u64 = 200;

impl Expansion {
    pub fn new(file_bytes: u64) -> Self {
        Self { file_bytes, expanded: AtomicU64::new(0) }
    }

    /// Largest number of bytes that the file may expand to.
    pub fn limit(&self) -> u64 {
        FREE.max(self.file_bytes.saturating_mul(RATIO))
    }

    /// Counts `bytes` more. The error says that they are too many.
    pub fn add(&self, bytes: u64) -> Result<(), String> {
        let before = self.expanded.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) <= self.limit() {
            return Ok(());
        }
        let (limit, size) = (self.limit() >> 20, self.file_bytes);
        Err(format!("its {size} bytes expand to more than {limit} MiB, the limit for a file of this size"))
    }
}
