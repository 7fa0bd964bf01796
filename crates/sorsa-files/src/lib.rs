//! The floor of the workspace: files and folders that are either whole or absent, hashes of their content, f32 tensors, and the memory and CPU
//! time of this process. Nothing here knows burn.

mod atomic;
mod cpu_time;
mod hash;
mod memory;
mod regular;
mod tensors;

pub use atomic::{AtomicDir, AtomicFile, FileError, at, recover, remove_folder, write_atomic, write_atomic_with};
pub use cpu_time::cpu_seconds;
pub use hash::ContentHash;
pub use memory::peak_memory_bytes;
pub use regular::{open_regular, read_regular};
pub use tensors::{
    HostTensor, NamedTensors, TensorError, TensorFile, read_float_tensors, read_tensors, write_tensors,
    write_tensors_with,
};
