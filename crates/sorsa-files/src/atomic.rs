//! Files and folders that are either whole or absent.
//!
//! A writer fills a temporary file or folder beside its place, flushes it to the disk and renames it. The temporary name
//! is `.<name>.tmp-<process>-<number>`, or `.<name>.old-<process>-<number>` for a folder that waits for its replacement;
//! no two writers share one, of whatever thread or process. A process that is killed leaves such names behind;
//! [`recover`] removes or restores them at the next start.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

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
        let (file, temporary) = Temporary::create(&target, "tmp", |path| File::create_new(path))?;
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
        &self.temporary.0
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
        let renamed = fs::rename(&self.temporary.0, &self.target).and_then(|()| sync_parent(&self.target));
        renamed.map_err(at("write", &self.target))
    }
}

/// A folder under construction: filled under a temporary name, given its own by [`commit`](Self::commit), removed if
/// dropped before.
#[derive(Debug)]
pub struct AtomicDir {
    temporary: Temporary,
    target: PathBuf,
}

impl AtomicDir {
    /// Starts a folder that will be called `target`. Missing parents are created.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn create(target: impl Into<PathBuf>) -> Result<Self, FileError> {
        let target = target.into();
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(at("create", parent))?;
        }
        let ((), temporary) = Temporary::create(&target, "tmp", |path| fs::create_dir(path))?;
        Ok(Self { temporary, target })
    }

    /// Where to write the files until the folder is committed.
    pub fn path(&self) -> &Path {
        &self.temporary.0
    }

    /// Flushes every file to the disk and gives the folder its name. An older folder of that name is moved aside first
    /// and removed last, so that at every moment one of the two is whole, and [`recover`] finds it.
    ///
    /// # Errors
    /// [`FileError::Io`]; the older folder is then still in its place.
    pub fn commit(self) -> Result<(), FileError> {
        let (temporary, target) = (&self.temporary.0, &self.target);
        sync_tree(temporary).map_err(at("flush", temporary))?;
        let old = match target.symlink_metadata() {
            Ok(_) => Some(move_aside(target, "old")?),
            Err(_) => None,
        };
        if let Err(error) = fs::rename(temporary, target) {
            if let Some(old) = &old {
                fs::rename(old, target).map_err(at("restore", target))?;
            }
            return Err(at("create", target)(error));
        }
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
    let doomed = move_aside(folder, "tmp")?;
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

/// A temporary file or folder, removed if dropped. After its rename nothing has this name any more.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Temporary {
    /// Calls `create` with names until one is free.
    fn create<T>(target: &Path, role: &str, create: impl Fn(&Path) -> io::Result<T>) -> Result<(T, Self), FileError> {
        loop {
            let path = temporary_name(target, role)?;
            match create(&path) {
                Ok(created) => return Ok((created, Self(path))),
                // Left by a killed process of the same number, or made by one on another machine that shares the folder.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(at("write", target)(error)),
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // A failure has no caller to tell; `recover` tidies up.
        let _ = remove_all(&self.0);
    }
}

/// Gives `path` a temporary name and returns it.
fn move_aside(path: &Path, role: &str) -> Result<PathBuf, FileError> {
    loop {
        let aside = temporary_name(path, role)?;
        // A rename would replace an empty folder of that name without a word.
        if aside.symlink_metadata().is_ok() {
            continue;
        }
        fs::rename(path, &aside).map_err(at("rename", path))?;
        return Ok(aside);
    }
}

/// `.<name>.<role>-<process>-<number>`, beside `path`, with another number at every call.
fn temporary_name(path: &Path, role: &str) -> Result<PathBuf, FileError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name");
        return Err(at("write", path)(error));
    };
    let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    Ok(path.with_file_name(format!(".{}.{role}-{process}-{number}", name.to_string_lossy())))
}

/// The inverse of [`temporary_name`]: name and role of a temporary file or folder. Earlier versions wrote no number.
fn temporary_parts(path: &Path) -> Option<(&str, &str)> {
    let (name, rest) = path.file_name()?.to_str()?.strip_prefix('.')?.rsplit_once('.')?;
    let (role, numbers) = rest.split_once('-')?;
    let are_numbers = numbers.split('-').all(|number| number.parse::<u64>().is_ok());
    (matches!(role, "tmp" | "old") && !name.is_empty() && are_numbers).then_some((name, role))
}

fn remove_all(path: &Path) -> io::Result<()> {
    // A link to a folder is a file.
    let is_folder = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
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
        // Killed between the rename and the removal.
        let doomed = move_aside(&folder, "tmp").unwrap();
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
    fn a_temporary_name_that_is_taken_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let taken = std::cell::RefCell::new(Vec::new());
        let (_, free) = Temporary::create(&folder.path().join("model"), "tmp", |path| {
            if taken.borrow().is_empty() {
                // Somebody else's, made just before.
                fs::write(path, "theirs")?;
                taken.borrow_mut().push(path.to_owned());
            }
            File::create_new(path)
        })
        .unwrap();
        drop(free);
        assert_eq!(fs::read_to_string(&taken.borrow()[0]).unwrap(), "theirs");
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
        fs::write(root.join(".metrics.jsonl.tmp-7-12"), "half").unwrap();
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
