//! Temporary names beside a target, and what killed processes leave under such names.
//!
//! The name is `.<name>.tmp-<process>-<number>`, or `.<name>.old-<process>-<number>` for a folder that waits for its
//! replacement; no two writers share one, of whatever thread or process. A writer holds the lock of its temporary file or
//! folder, which the system releases if the process dies. So a name is a leftover exactly if nobody holds its lock.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::atomic::{FileError, at};

/// What is written and has no name of its own yet.
pub(crate) const UNFINISHED: &str = "tmp";
/// A folder that waits for its replacement.
pub(crate) const REPLACED: &str = "old";

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
        match holder(&path) {
            Holder::Alive => {}
            // Without locks, the owner of the folder knows that nobody else writes there.
            Holder::Nobody(_) | Holder::Unknown => settle(&path, &folder.join(name), role)?,
        }
    }
    Ok(())
}

/// Removes every temporary file and folder of this process, and lets no file get its name any more. To be called right
/// before a process ends early: a thread that writes files waits for ever.
pub fn remove_temporaries() {
    let live = live();
    for path in live.iter() {
        // A thread may be writing into the folder just now.
        for _ in 0..100 {
            if remove_all(path).is_ok() {
                break;
            }
        }
    }
    // Never released: whoever waits for it would write on.
    std::mem::forget(live);
}

/// A temporary file or folder, removed if dropped. After its rename nothing has this name any more.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    /// The name in the list of living ones.
    absolute: PathBuf,
}

impl Temporary {
    /// Creates an empty file beside `target`.
    pub fn file(target: &Path) -> Result<(File, Self), FileError> {
        Self::create(target, |path| File::create_new(path), |file| Some(file))
    }

    /// Creates an empty folder beside `target`. The file is the folder's lock, if the system has such.
    pub fn folder(target: &Path) -> Result<(Option<File>, Self), FileError> {
        let create = |path: &Path| {
            fs::create_dir(path)?;
            // Only Unix can open a folder.
            Ok(File::open(path).ok())
        };
        Self::create(target, create, Option::as_ref)
    }

    /// Calls `create` with names until one is free and its lock is held.
    fn create<T>(
        target: &Path,
        create: impl Fn(&Path) -> io::Result<T>,
        lockable: impl Fn(&T) -> Option<&File>,
    ) -> Result<(T, Self), FileError> {
        loop {
            let path = temporary_name(target, UNFINISHED)?;
            let created = {
                let mut live = live();
                match create(&path) {
                    Ok(created) => {
                        let absolute = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
                        live.insert(absolute.clone());
                        (created, Self { path: path.clone(), absolute })
                    }
                    // Left by a killed process of the same number, or made by one on another machine that shares the
                    // folder.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                    Err(error) => return Err(at("write", target)(error)),
                }
            };
            // Another process may have taken it for a leftover, as nobody held its lock yet.
            if lockable(&created.0).is_none_or(|file| hold(file, &path)) {
                return Ok(created);
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let mut live = live();
        // A failure has no caller to tell; the next writer of the same target tidies up.
        let _ = remove_all(&self.path);
        live.remove(&self.absolute);
    }
}

/// A folder that has its name before it is worth to be kept: removed with all that is in it if dropped, or if the process
/// ends early by [`remove_temporaries`].
#[derive(Debug)]
pub struct ProvisionalFolder {
    path: PathBuf,
    absolute: PathBuf,
    kept: bool,
}

impl ProvisionalFolder {
    /// Takes over a folder that nobody else writes to. What is in it now will be removed too.
    pub fn adopt(path: &Path) -> Self {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        live().insert(absolute.clone());
        Self { path: path.to_owned(), absolute, kept: false }
    }

    /// Keeps the folder.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for ProvisionalFolder {
    fn drop(&mut self) {
        let mut live = live();
        if !self.kept {
            // The error that ended the work is the one to report.
            let _ = remove_all(&self.path);
        }
        live.remove(&self.absolute);
    }
}

/// The temporary names of this process. Whoever holds the list may rename: a process that ends waits for that.
pub(crate) fn live() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what killed processes left beside `target` while they wrote it. A folder that one of them had moved aside gets
/// its name back, if nothing has it. What cannot be removed stays for the next writer.
pub(crate) fn remove_leftovers(target: &Path) {
    let folder = match target.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let (Some(target_name), Ok(entries)) = (target.file_name().and_then(|name| name.to_str()), fs::read_dir(folder))
    else {
        return;
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if let Some((name, role)) = temporary_parts(&path)
            && name == target_name
            // The lock is held until the leftover is gone.
            && let Holder::Nobody(_lock) = holder(&path)
        {
            let _ = settle(&path, target, role);
        }
    }
}

/// Gives `path` a temporary name and returns it.
pub(crate) fn move_aside(path: &Path, role: &str) -> Result<PathBuf, FileError> {
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

/// Opens and locks a folder that will be moved aside, so that nobody takes it for a leftover. Without locks, nobody does.
pub(crate) fn hold_folder(folder: &Path) -> Option<File> {
    let file = if cfg!(unix) { File::open(folder).ok()? } else { return None };
    file.try_lock().ok()?;
    Some(file)
}

/// Removes a file, or a folder with all that is in it. It may be gone already.
pub(crate) fn remove_all(path: &Path) -> io::Result<()> {
    // A link to a folder is a file.
    let is_folder = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether `file`, which is open, is what `path` names.
#[cfg(unix)]
pub(crate) fn is_named(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

/// Whether `file`, which is open, is what `path` names.
#[cfg(not(unix))]
pub(crate) fn is_named(_file: &File, path: &Path) -> bool {
    path.exists()
}

/// Locks a temporary file or folder that was just created. False if another process has removed it.
fn hold(file: &File, path: &Path) -> bool {
    // Elsewhere than on Unix, a lock keeps others from writing to the path. A file system without locks has no leftovers
    // that are known as such.
    !cfg!(unix) || file.lock().is_err() || is_named(file, path)
}

/// Who holds the lock of a temporary name.
enum Holder {
    /// A process that lives.
    Alive,
    /// Nobody: it is a leftover. Its lock is held by this value.
    Nobody(File),
    /// The system or the file system has no such locks.
    Unknown,
}

fn holder(path: &Path) -> Holder {
    if std::path::absolute(path).is_ok_and(|path| live().contains(&path)) {
        return Holder::Alive;
    }
    let is_lockable = path.symlink_metadata().is_ok_and(|metadata| metadata.is_file() || metadata.is_dir());
    if !cfg!(unix) || !is_lockable {
        return Holder::Unknown;
    }
    let Ok(file) = File::open(path) else { return Holder::Unknown };
    match file.try_lock() {
        Ok(()) => Holder::Nobody(file),
        Err(TryLockError::WouldBlock) => Holder::Alive,
        Err(TryLockError::Error(_)) => Holder::Unknown,
    }
}

/// Gives a folder that was moved aside its name back, if nothing has it; removes everything else.
fn settle(path: &Path, target: &Path, role: &str) -> Result<(), FileError> {
    if role == REPLACED && target.symlink_metadata().is_err() {
        fs::rename(path, target).map_err(at("restore", target))
    } else {
        remove_all(path).map_err(at("remove", path))
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
    (matches!(role, UNFINISHED | REPLACED) && !name.is_empty() && are_numbers).then_some((name, role))
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
    fn a_temporary_name_that_is_taken_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let taken = std::cell::RefCell::new(Vec::new());
        let create = |path: &Path| {
            if taken.borrow().is_empty() {
                // Somebody else's, made just before.
                fs::write(path, "theirs")?;
                taken.borrow_mut().push(path.to_owned());
            }
            File::create_new(path)
        };
        let (_, free) = Temporary::create(&folder.path().join("model"), create, |file| Some(file)).unwrap();
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

    #[cfg(unix)]
    #[test]
    fn the_next_writer_removes_leftovers_of_its_target_and_of_no_living_writer() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        // As another process that lives has it: open, and locked.
        fs::create_dir(folder.path().join(".model.tmp-7-1")).unwrap();
        let theirs = File::open(folder.path().join(".model.tmp-7-1")).unwrap();
        theirs.lock().unwrap();
        fs::create_dir(folder.path().join(".model.tmp-7-2")).unwrap();
        fs::write(folder.path().join(".model.tmp-7-3"), "half").unwrap();
        fs::write(folder.path().join(".model.json.tmp-7-4"), "another target").unwrap();
        let (_lock, ours) = Temporary::folder(&target).unwrap();
        let ours_name = ours.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mut expected = [".model.json.tmp-7-4".to_owned(), ".model.tmp-7-1".to_owned(), ours_name];
        expected.sort();
        remove_leftovers(&target);
        assert_eq!(names(folder.path()), expected);
        recover(folder.path()).unwrap();
        assert_eq!(names(folder.path()), expected[1..], "the owner of a folder removes leftovers of every target");
        drop((theirs, ours));
        remove_leftovers(&target);
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn a_provisional_folder_goes_unless_it_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        for (name, kept) in [("gone", false), ("kept", true)] {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            let provisional = ProvisionalFolder::adopt(&path);
            fs::write(path.join("start"), "").unwrap();
            if kept {
                provisional.keep();
            }
        }
        assert_eq!(names(folder.path()), ["kept"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_a_killed_writer_had_moved_aside_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        fs::create_dir(folder.path().join(".model.old-7-1")).unwrap();
        fs::write(folder.path().join(".model.old-7-1/weights"), "older").unwrap();
        let held = hold_folder(&folder.path().join(".model.old-7-1"));
        remove_leftovers(&target);
        assert_eq!(names(folder.path()), [".model.old-7-1"], "its writer lives");
        drop(held);
        remove_leftovers(&target);
        assert_eq!(fs::read_to_string(target.join("weights")).unwrap(), "older");
    }
}
