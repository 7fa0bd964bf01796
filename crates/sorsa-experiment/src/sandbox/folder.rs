//! The working folder of one process: private, limited, and removed whatever the process has made of it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::private_folder;

/// More bytes than this are too many.
pub const BYTES: u64 = 64 << 20;
/// More files and folders than this are too many.
const ENTRIES: usize = 4096;
/// Folders in folders in folders: more are too many.
const DEPTH: usize = 64;

/// A folder that is removed when this is dropped.
#[derive(Debug)]
pub struct WorkFolder(PathBuf);

impl WorkFolder {
    /// Makes a folder of a random name that the user alone may enter.
    pub fn create(parent: &Path) -> io::Result<Self> {
        Ok(Self(private_folder(parent, "sorsa-program-")?.keep()))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether it holds more than [`BYTES`], too many files, or too many folders in each other.
    pub fn is_full(&self) -> bool {
        let (mut bytes, mut entries, mut open) = (0, 0, vec![(self.0.clone(), 0)]);
        while let Some((folder, depth)) = open.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                // Links are not followed.
                let Ok(found) = entry.metadata() else { continue };
                bytes += found.blocks() * 512;
                entries += 1;
                if found.is_dir() {
                    open.push((entry.path(), depth + 1));
                }
                if bytes > BYTES || entries > ENTRIES || depth > DEPTH {
                    return true;
                }
            }
        }
        false
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // A process that was killed in a namespace ends a moment later, and may still make a file in what is just removed. What
        // cannot be removed is left to the system.
        for _ in 0..200 {
            if remove(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Removes a folder with all that is in it. `std::fs::remove_dir_all` calls itself for each folder in a folder, and a program may have
/// made so many that the stack does not suffice; here, what is in a folder moves up, before the folder is removed.
fn remove(folder: &Path) -> io::Result<()> {
    let mut moved: u64 = 0;
    loop {
        let entries: Vec<PathBuf> = fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect();
        if entries.is_empty() {
            return fs::remove_dir(folder);
        }
        for path in entries {
            if !path.symlink_metadata()?.is_dir() {
                fs::remove_file(&path)?;
                continue;
            }
            // The program may have taken the permission away.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
            for inner in fs::read_dir(&path)?.flatten() {
                let from = inner.path();
                if inner.file_type()?.is_dir() {
                    fs::set_permissions(&from, fs::Permissions::from_mode(0o700))?;
                }
                let mut to = folder.join(format!(".moved-{moved}"));
                while to.symlink_metadata().is_ok() {
                    moved += 1;
                    to = folder.join(format!(".moved-{moved}"));
                }
                fs::rename(&from, &to)?;
            }
            fs::remove_dir(&path)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_removed_however_deep_it_is() {
        let parent = tempfile::tempdir().unwrap();
        let outside = parent.path().join("outside");
        fs::write(&outside, "stays").unwrap();
        let folder = WorkFolder::create(parent.path()).unwrap();
        assert_eq!(fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o700);
        // Deeper than a path may be long: each new folder takes the others in.
        let (deep, other) = (folder.path().join("deep"), folder.path().join("other"));
        fs::create_dir(&deep).unwrap();
        assert!(!folder.is_full());
        for _ in 0..20_000 {
            fs::create_dir(&other).unwrap();
            fs::rename(&deep, other.join("deep")).unwrap();
            fs::rename(&other, &deep).unwrap();
        }
        fs::write(folder.path().join(".moved-0"), "a name that is taken").unwrap();
        std::os::unix::fs::symlink(&outside, deep.join("link")).unwrap();
        fs::create_dir_all(folder.path().join("shut/in")).unwrap();
        fs::set_permissions(folder.path().join("shut/in"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(folder.path().join("shut"), fs::Permissions::from_mode(0o000)).unwrap();
        assert!(folder.is_full());
        drop(folder);
        let left: Vec<_> = fs::read_dir(parent.path()).unwrap().flatten().map(|entry| entry.path()).collect();
        assert_eq!(left, [outside]);
    }

    #[test]
    fn files_are_limited() {
        let parent = tempfile::tempdir().unwrap();
        let folder = WorkFolder::create(parent.path()).unwrap();
        for number in 0..ENTRIES {
            fs::File::create(folder.path().join(number.to_string())).unwrap();
        }
        assert!(!folder.is_full());
        fs::File::create(folder.path().join("one more")).unwrap();
        assert!(folder.is_full());
    }
}
