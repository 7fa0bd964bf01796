//! Files and folders that are either whole or absent.
//!
//! A writer fills a temporary file or folder beside its place, flushes it to the disk and renames it. A process that is
//! killed leaves the temporary name behind; the next writer of the same target removes it, and
//! [`recover`](crate::recover) removes all in a folder.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::temporary::{REPLACED, Temporary, UNFINISHED, hold_folder, live, move_aside, remove_all, remove_leftovers};

/// Why a file or folder could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused an operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: `"write"`, `"rename"`, ..
        action: &'static str,
        /// The file or folder it was tried on.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file was read, and its content is not what its name promises.
    #[error("{} is not {expected}: {}", path.display(), found.join("; "))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// Everything that is wrong with it.
        found: Vec<String>,
    },
}

/// Names the file and the operation in an I/O error.
pub fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io { action, path: path.to_owned(), source }
}

/// Writes `bytes` to `path`, replacing what was there. See [`write_atomic_with`].
///
/// # Errors
/// [`FileError::Io`]; `path` is then as it was.
pub fn write_atomic(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<(), FileError> {
    write_atomic_with(path, |file| file.write_all(bytes.as_ref()))
}

/// Writes a file through `write`, replacing what was at `path` only once all of it is on the disk.
///
/// # Errors
/// [`FileError::Io`], also for an error that `write` returns; `path` is then as it was.
pub fn write_atomic_with(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), FileError> {
    let mut file = AtomicFile::create(path.as_ref())?;
    write(&mut file.writer).map_err(at("write", path.as_ref()))?;
    file.commit()
}

/// A file under construction: written under a temporary name, given its own by [`commit`](Self::commit), removed if
/// dropped before.
#[derive(Debug)]
pub struct AtomicFile {
    writer: BufWriter<File>,
    temporary: Temporary,
    target: PathBuf,
}

impl AtomicFile {
    /// Starts a file that will be called `target`, in a folder that exists.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn create(target: impl Into<PathBuf>) -> Result<Self, FileError> {
        let target = target.into();
        remove_leftovers(&target);
        let (file, temporary) = Temporary::file(&target)?;
        Ok(Self { writer: BufWriter::new(file), temporary, target })
    }

    /// Appends to the file.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.writer.write_all(bytes).map_err(at("write", &self.target))
    }

    /// The temporary file, for a library that writes to a path. It truncates the file.
    pub fn temporary_path(&self) -> &Path {
        self.temporary.path()
    }

    /// The temporary file as the output of a child process. As long as the child has it, nobody takes it for a leftover.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn child_output(&self) -> Result<File, FileError> {
        self.writer.get_ref().try_clone().map_err(at("write", &self.target))
    }

    /// Flushes to the disk what was written. A writer of several files does so with all of them before it commits the
    /// first.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn sync(&mut self) -> Result<(), FileError> {
        let flushed = self.writer.flush().and_then(|()| self.writer.get_ref().sync_all());
        flushed.map_err(at("write", &self.target))
    }

    /// Flushes the file to the disk and gives it its name, in the place of an older file.
    ///
    /// # Errors
    /// [`FileError::Io`]; the older file is then still in its place.
    pub fn commit(mut self) -> Result<(), FileError> {
        self.sync()?;
        let renamed = {
            let _live = live();
            fs::rename(self.temporary.path(), &self.target)
        };
        renamed.and_then(|()| sync_parent(&self.target)).map_err(at("write", &self.target))
    }
}

/// A folder under construction: filled under a temporary name, given its own by [`commit`](Self::commit), removed if
/// dropped before.
#[derive(Debug)]
pub struct AtomicDir {
    temporary: Temporary,
    target: PathBuf,
    _lock: Option<File>,
}

impl AtomicDir {
    /// Starts a folder that will be called `target`. Missing parents are created.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn create(target: impl Into<PathBuf>) -> Result<Self, FileError> {
        let target = target.into();
        if let Some(parent) = target.parent() {
            // A process that ends may have removed the parent just now.
            let _live = live();
            fs::create_dir_all(parent).map_err(at("create", parent))?;
        }
        remove_leftovers(&target);
        let (lock, temporary) = Temporary::folder(&target)?;
        Ok(Self { temporary, target, _lock: lock })
    }

    /// Where to write the files until the folder is committed.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Flushes every file to the disk and gives the folder its name. An older folder of that name is moved aside first
    /// and removed last, so that at every moment one of the two is whole, and [`recover`](crate::recover) finds it.
    ///
    /// # Errors
    /// [`FileError::Io`]; the older folder is then still in its place.
    pub fn commit(self) -> Result<(), FileError> {
        let (temporary, target) = (self.temporary.path(), &self.target);
        sync_tree(temporary).map_err(at("flush", temporary))?;
        let _older = hold_folder(target);
        let old = {
            // A process that ends in between would leave the older folder without its name.
            let _live = live();
            let old = match target.symlink_metadata() {
                Ok(_) => Some(move_aside(target, REPLACED)?),
                Err(_) => None,
            };
            if let Err(error) = fs::rename(temporary, target) {
                if let Some(old) = &old {
                    fs::rename(old, target).map_err(at("restore", target))?;
                }
                return Err(at("create", target)(error));
            }
            old
        };
        sync_parent(target).map_err(at("flush", target))?;
        match old {
            Some(old) => remove_all(&old).map_err(at("remove", &old)),
            None => Ok(()),
        }
    }
}

/// Removes a folder, which has lost its name before the first of its files goes.
///
/// # Errors
/// [`FileError::Io`].
pub fn remove_folder(folder: &Path) -> Result<(), FileError> {
    let doomed = move_aside(folder, UNFINISHED)?;
    remove_all(&doomed).map_err(at("remove", &doomed))
}

fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { sync_tree(&path)? } else { File::open(&path)?.sync_all()? }
    }
    sync_folder(folder)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent != Path::new("") => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

/// Makes renames inside `folder` last. Only Unix can open a folder to flush it.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recover;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary.json");
        write_atomic(&path, "old").unwrap();
        let failed = write_atomic_with(&path, |file| {
            file.write_all(b"ne")?;
            Err(io::Error::other("disk full"))
        });
        let message = failed.unwrap_err().to_string();
        assert!(message.contains("summary.json") && message.contains("disk full"), "{message}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(folder.path()), ["summary.json"]);
        write_atomic(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn a_folder_dropped_before_commit_never_had_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("checkpoints/step-10");
        let dir = AtomicDir::create(&target).unwrap();
        fs::write(dir.path().join("adapter"), "half").unwrap();
        assert!(!target.exists());
        drop(dir);
        assert!(names(&folder.path().join("checkpoints")).is_empty());
    }

    #[test]
    fn a_commit_replaces_the_whole_folder() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("adapter");
        for file in ["first", "second"] {
            let dir = AtomicDir::create(&target).unwrap();
            fs::create_dir(dir.path().join("inner")).unwrap();
            fs::write(dir.path().join("inner").join(file), file).unwrap();
            dir.commit().unwrap();
        }
        assert_eq!(names(&target.join("inner")), ["second"]);
        assert_eq!(names(folder.path()), ["adapter"]);
    }

    #[test]
    fn a_folder_whose_removal_fails_half_way_is_gone_under_its_name() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("step-1");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("state.json"), "{}").unwrap();
        // Killed between the rename and the removal.
        let doomed = move_aside(&folder, UNFINISHED).unwrap();
        assert!(!folder.exists() && doomed.join("state.json").exists());
        recover(parent.path()).unwrap();
        assert_eq!(names(parent.path()), [""; 0]);
        // Where the rename fails, nothing is removed.
        assert!(remove_folder(&folder).is_err());
    }

    #[test]
    fn writers_of_the_same_name_at_the_same_time_do_not_share_a_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let (file, inner) = (folder.path().join("entry"), folder.path().join("model"));
        std::thread::scope(|scope| {
            for content in ["a".repeat(100_000), "b".repeat(100_000)] {
                let (file, inner) = (&file, &inner);
                scope.spawn(move || {
                    for _ in 0..20 {
                        write_atomic(file, &content).unwrap();
                        let text = fs::read_to_string(file).unwrap();
                        assert!(text == "a".repeat(100_000) || text == "b".repeat(100_000));
                        // Both may find no folder and both give theirs its name: one of them fails.
                        let _ = AtomicDir::create(inner).unwrap().commit();
                    }
                });
            }
        });
        assert_eq!(names(folder.path()), ["entry", "model"]);
    }

    #[test]
    fn a_path_without_a_name_is_an_error() {
        assert!(write_atomic("/", "x").is_err());
        assert!(AtomicDir::create("..").is_err());
    }
}
