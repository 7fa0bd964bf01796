//! Locks that the system releases when their process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::atomic::{FileError, at};
use crate::temporary::{is_named, live};

/// The lock of a folder or of a file that one process writes for a longer time. It is a lock file, removed if dropped; one
/// that a killed process left is taken over.
#[derive(Debug)]
pub struct FileLock {
    path: PathBuf,
    _file: File,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A living process holds it.
    #[error("another process{} holds {}", match process { Some(number) => format!(" ({number})"), None => String::new() }, path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Its number, if it is known.
        process: Option<u32>,
    },
    /// The lock file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl FileLock {
    /// Takes the lock of the lock file `path`, in a folder that exists, or fails at once. On a file system without locks
    /// everybody gets it.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let mut file = options.open(path).map_err(at("lock", path))?;
            match file.try_lock() {
                // The file that was locked may be removed by now, by the process that held it before.
                Ok(()) if !is_named(&file, path) => continue,
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    // The number is a help for people only.
                    let process = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                    return Err(LockError::Held { path: path.to_owned(), process });
                }
                Ok(()) | Err(TryLockError::Error(_)) => {}
            }
            let written = file
                .rewind()
                .and_then(|()| file.set_len(0))
                .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
            written.map_err(at("lock", path))?;
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            // Removed too if the process ends early.
            live().insert(absolute.clone());
            return Ok(Self { path: absolute, _file: file });
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        live().remove(&self.path);
        // While the lock is held: whoever opened the file before finds that it is not the file at this path any more.
        // Elsewhere than on Unix that cannot be found out, and the file stays.
        if cfg!(unix) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_by_one_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        let lock = FileLock::acquire(&path).unwrap();
        let error = FileLock::acquire(&path).unwrap_err();
        assert!(matches!(error, LockError::Held { process, .. } if process == Some(std::process::id())), "{error}");
        drop(lock);
        assert!(!path.exists());
        // A killed process leaves its file, and no lock.
        std::fs::write(&path, "7\n").unwrap();
        drop(FileLock::acquire(&path).unwrap());
        assert!(!path.exists());
        let error = FileLock::acquire(&folder.path().join("missing/.lock")).unwrap_err().to_string();
        assert!(error.contains("cannot lock") && error.contains("missing"), "{error}");
    }

    #[test]
    fn of_many_who_ask_at_once_one_has_the_lock_at_a_time() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let Ok(_lock) = FileLock::acquire(&path) else { continue };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        taken.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(taken.into_inner() > 0);
    }
}
