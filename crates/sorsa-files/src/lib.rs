//! The floor of the workspace: files and folders that are either whole or absent, hashes of their content, and the memory and CPU time of this
//! process. Nothing here knows burn.

mod atomic;
mod cpu_time;
mod hash;
mod memory;
mod owned_folder;

pub use atomic::{AtomicDir, AtomicFile, FileError, at, recover, remove_folder, write_atomic, write_atomic_with};
pub use cpu_time::cpu_seconds;
pub use hash::ContentHash;
pub use memory::peak_memory_bytes;
pub use owned_folder::{FolderError, FolderKind, OwnedFolder};
