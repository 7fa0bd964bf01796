//! Files and folders that are either whole or absent.
//!
//! Everything is written under a temporary name beside its place, flushed to the disk and renamed. A process that is
//! killed leaves at most a `.<name>.tmp-<pid>` behind, which [`recover`] removes at the next start.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// What can go wrong with a file of a run.
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
pub(crate) fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
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
    let path = path.as_ref();
    let temporary = sibling(path, "tmp")?;
    let written = (|| {
        let mut file = BufWriter::new(File::create(&temporary)?);
        write(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    })();
    if written.is_err() {
        // The first error is the one to report; where this fails too, `recover` tidies up.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(at("write", path))
}

/// A folder under construction: filled under a temporary name, given its own by [`commit`](Self::commit), removed if
/// dropped before.
#[derive(Debug)]
pub struct AtomicDir {
    temporary: PathBuf,
    target: PathBuf,
}

impl AtomicDir {
    /// Starts a folder that will be called `target`. Missing parents are created.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn create(target: impl Into<PathBuf>) -> Result<Self, FileError> {
        let target = target.into();
        let temporary = sibling(&target, "tmp")?;
        remove_all(&temporary).map_err(at("remove", &temporary))?;
        fs::create_dir_all(&temporary).map_err(at("create", &temporary))?;
        Ok(Self { temporary, target })
    }

    /// Where to write the files until the folder is committed.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Flushes every file to the disk and gives the folder its name. An older folder of that name is moved aside first
    /// and removed last, so that at every moment one of the two is whole, and [`recover`] finds it.
    ///
    /// # Errors
    /// [`FileError::Io`]; the older folder is then still in its place.
    pub fn commit(self) -> Result<(), FileError> {
        let target = &self.target;
        sync_tree(&self.temporary).map_err(at("flush", &self.temporary))?;
        let old = sibling(target, "old")?;
        let replaces = target.exists();
        if replaces {
            remove_all(&old).map_err(at("remove", &old))?;
            fs::rename(target, &old).map_err(at("rename", target))?;
        }
        if let Err(error) = fs::rename(&self.temporary, target) {
            if replaces {
                fs::rename(&old, target).map_err(at("restore", target))?;
            }
            return Err(at("create", target)(error));
        }
        sync_parent(target).map_err(at("flush", target))?;
        if replaces {
            remove_all(&old).map_err(at("remove", &old))?;
        }
        Ok(())
    }
}

impl Drop for AtomicDir {
    fn drop(&mut self) {
        // After a commit nothing has this name any more.
        let _ = remove_all(&self.temporary);
    }
}

/// Removes a folder, which has lost its name before the first of its files goes.
///
/// # Errors
/// [`FileError::Io`].
pub fn remove_folder(folder: &Path) -> Result<(), FileError> {
    let doomed = sibling(folder, "tmp")?;
    fs::rename(folder, &doomed).map_err(at("rename", folder))?;
    remove_all(&doomed).map_err(at("remove", &doomed))
}

/// Cleans `folder` of what a killed process left in it: unfinished files and folders are removed, and a folder that was
/// moved aside and not yet replaced gets its name back. To be called by the one process that owns `folder`, before it
/// writes there. A `folder` that does not exist is clean.
///
/// # Errors
/// [`FileError::Io`].
pub fn recover(folder: impl AsRef<Path>) -> Result<(), FileError> {
    let folder = folder.as_ref();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(at("list", folder))?,
    };
    for entry in entries {
        let path = entry.map_err(at("list", folder))?.path();
        let Some((name, role)) = temporary_parts(&path) else { continue };
        let target = folder.join(name);
        if role == "old" && !target.exists() {
            fs::rename(&path, &target).map_err(at("restore", &target))?;
        } else {
            remove_all(&path).map_err(at("remove", &path))?;
        }
    }
    Ok(())
}

/// `.<name>.<role>-<pid>`, beside `path`.
fn sibling(path: &Path, role: &str) -> Result<PathBuf, FileError> {
    let name = path
        .file_name()
        .ok_or_else(|| at("write", path)(io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name")))?;
    Ok(path.with_file_name(format!(".{}.{role}-{}", name.to_string_lossy(), std::process::id())))
}

/// The inverse of [`sibling`]: `(name, role)` of a temporary file or folder.
fn temporary_parts(path: &Path) -> Option<(&str, &str)> {
    let (rest, pid) = path.file_name()?.to_str()?.strip_prefix('.')?.rsplit_once('-')?;
    let (name, role) = rest.rsplit_once('.')?;
    let ours = matches!(role, "tmp" | "old") && !name.is_empty() && pid.parse::<u32>().is_ok();
    ours.then_some((name, role))
}

fn remove_all(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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
        // In the way of the new name: what a rename puts aside cannot be put there.
        let blocked = sibling(&folder, "tmp").unwrap();
        fs::write(&blocked, "").unwrap();
        assert!(remove_folder(&folder).is_err());
        assert!(folder.join("state.json").exists(), "not removed, so still whole");
        fs::remove_file(&blocked).unwrap();
        remove_folder(&folder).unwrap();
        assert_eq!(names(parent.path()), [""; 0]);
    }

    #[test]
    fn recovery_restores_a_folder_that_was_moved_aside_and_removes_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        // Killed between the two renames of a commit: the old one is aside, the new one unnamed.
        fs::create_dir(root.join(".step-1.old-7")).unwrap();
        fs::write(root.join(".step-1.old-7/weights"), "whole").unwrap();
        fs::create_dir(root.join(".step-1.tmp-7")).unwrap();
        // Killed after them: the old one is only waiting for its removal.
        fs::create_dir(root.join("step-2")).unwrap();
        fs::create_dir(root.join(".step-2.old-7")).unwrap();
        fs::write(root.join(".metrics.jsonl.tmp-7"), "half").unwrap();
        fs::write(root.join(".keep.tmp-notes"), "not ours").unwrap();
        recover(root).unwrap();
        assert_eq!(names(root), [".keep.tmp-notes", "step-1", "step-2"]);
        assert_eq!(fs::read_to_string(root.join("step-1/weights")).unwrap(), "whole");
        recover(root.join("missing")).unwrap();
    }

    #[test]
    fn a_path_without_a_name_is_an_error() {
        assert!(write_atomic("/", "x").is_err());
        assert!(AtomicDir::create("..").is_err());
    }
}
