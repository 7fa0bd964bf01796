//! Temporary folders that nobody else can prepare, enter or read.

use std::io;
use std::path::Path;

use tempfile::TempDir;

/// Creates a folder of a random name in `parent`, which the user alone may enter. It is deleted when it is dropped. A name that can be
/// guessed would let another user put links in its place.
///
/// # Errors
///
/// If the folder cannot be created.
pub fn private_folder(parent: &Path, prefix: &str) -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    builder.tempdir_in(parent)
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_private_folder_is_new_and_closed_to_others() {
        let parent = tempfile::tempdir().unwrap();
        let [a, b] = [(); 2].map(|()| private_folder(parent.path(), "sorsa-").unwrap());
        assert_ne!(a.path(), b.path());
        assert_eq!(std::fs::metadata(a.path()).unwrap().permissions().mode() & 0o777, 0o700);
        let path = a.path().to_owned();
        drop(a);
        assert!(!path.exists());
    }
}
