//! A folder that one program writes alone, and that takes the place of an older one of the same kind as a whole.

use std::path::{Path, PathBuf};

use crate::{AtomicDir, FileError, at};

/// The kind of a folder: how it is called, and which files belong to it.
#[derive(Debug, Clone, Copy)]
pub struct FolderKind {
    /// Its name in a sentence: `"a model"`.
    pub name: &'static str,
    /// Whether a file of this name belongs to it; a file in a folder within it is named `folder/file`.
    pub owns: fn(&str) -> bool,
}

impl FolderKind {
    /// Whether a folder within it holds files that belong to it, and nothing else.
    fn owns_all_in(&self, folder: &Path, name: &str) -> Result<bool, FileError> {
        let mut count = 0;
        for entry in std::fs::read_dir(folder).map_err(at("list", folder))? {
            let entry = entry.map_err(at("list", folder))?;
            let is_folder = entry.file_type().map_err(at("list", folder))?.is_dir();
            if is_folder || !(self.owns)(&format!("{name}/{}", entry.file_name().to_string_lossy())) {
                return Ok(false);
            }
            count += 1;
        }
        Ok(count > 0)
    }
}

/// Why a folder could not be replaced.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder holds what does not belong to its kind, and the new folder would remove it.
    #[error(
        "{} holds more than {kind}: {}; name a new or an empty folder, or one that holds {kind} alone",
        folder.display(),
        shown(found)
    )]
    HoldsOtherFiles {
        /// The folder.
        folder: PathBuf,
        /// Name of its kind.
        kind: &'static str,
        /// Names of what does not belong there.
        found: Vec<String>,
    },
    /// A file or folder could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The first five names, and the number of the others.
fn shown(names: &[String]) -> String {
    let first = names.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(5) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// A folder under construction. [`commit`](Self::commit) gives it its name; the older folder of that name is then gone
/// with all its files. Links in the older folder are removed, and what they point to stays.
#[derive(Debug)]
pub struct OwnedFolder(AtomicDir);

impl OwnedFolder {
    /// Starts a folder that will be called `target`, or will take the place of the folder that the link `target` points
    /// to.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn create(target: &Path, kind: FolderKind) -> Result<Self, FolderError> {
        Self::check(target, kind)?;
        let target = match target.canonicalize() {
            Ok(existing) => existing,
            Err(_) => target.to_owned(),
        };
        Ok(Self(AtomicDir::create(target)?))
    }

    /// Checks that a folder of this kind may take the place of `target`: nothing is there, or a folder that holds files of
    /// the same kind alone.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn check(target: &Path, kind: FolderKind) -> Result<(), FolderError> {
        let entries = match std::fs::read_dir(target) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(at("list", target))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at("list", target))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // A link to a folder is no folder: the link is removed, and not what it points to.
            let is_folder = entry.file_type().map_err(at("list", target))?.is_dir();
            let is_owned = if is_folder { kind.owns_all_in(&entry.path(), &name)? } else { (kind.owns)(&name) };
            if !is_owned {
                found.push(name);
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        found.sort();
        Err(FolderError::HoldsOtherFiles { folder: target.to_owned(), kind: kind.name, found })
    }

    /// Where to write the files until the folder is committed.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Flushes every file to the disk and gives the folder its name.
    ///
    /// # Errors
    /// [`FileError`]; an older folder is then still in its place.
    pub fn commit(self) -> Result<(), FileError> {
        self.0.commit()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const NOTES: FolderKind = FolderKind { name: "notes", owns: |name| name.ends_with(".txt") };

    #[test]
    fn a_new_folder_replaces_one_of_its_kind_and_refuses_any_other() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        fs::create_dir(&out).unwrap();
        fs::write(out.join("old.txt"), "old").unwrap();
        let folder = OwnedFolder::create(&out, NOTES).unwrap();
        fs::write(folder.path().join("new.txt"), "new").unwrap();
        assert!(out.join("old.txt").exists() && !out.join("new.txt").exists(), "nothing changes before the commit");
        folder.commit().unwrap();
        assert!(!out.join("old.txt").exists() && out.join("new.txt").exists());
        for number in 0..7 {
            fs::write(out.join(format!("{number}.py")), "mine").unwrap();
        }
        let error = OwnedFolder::create(&out, NOTES).unwrap_err().to_string();
        assert!(error.contains(" holds more than notes: 0.py, 1.py, 2.py, 3.py, 4.py and 2 more; name"), "{error}");
        assert!(out.join("new.txt").exists());
    }
}
