//! The floor of the workspace: files and folders that are either whole or absent, locks, hashes of content, f32 tensors, and the memory
//! and CPU time of this process. Nothing here knows burn.

mod atomic;
mod cpu_time;
mod hash;
mod lock;
mod memory;
mod owned_folder;
mod regular;
mod temporary;
mod tensors;

pub use atomic::{AtomicDir, AtomicFile, FileError, at, remove_folder, write_atomic, write_atomic_with};
pub use cpu_time::cpu_seconds;
pub use hash::ContentHash;
pub use lock::{FileLock, LockError};
pub use memory::peak_memory_bytes;
pub use owned_folder::{FolderError, FolderKind, OwnedFolder};
pub use regular::{open_regular, read_regular};
pub use temporary::{ProvisionalFolder, recover, remove_temporaries};
pub use tensors::{
    HostTensor, NamedTensors, TensorError, TensorFile, not_finite, read_float_tensors, read_tensors, write_tensors,
    write_tensors_with,
};
