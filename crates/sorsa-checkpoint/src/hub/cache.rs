//! The cache that Hugging Face's own tools use: `models--owner--name` with `blobs`, `snapshots`, `refs` and `.no_exist`, and
//! `.locks` beside it.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sorsa_files::write_atomic;

use super::client::is_commit;

/// How long a lock of another process is waited for while its download does not grow.
const PATIENCE: Duration = Duration::from_secs(60);

/// The part of a cache that belongs to one model.
pub(super) struct ModelCache {
    cache: PathBuf,
    folder_name: String,
}

impl ModelCache {
    /// The part of `cache` for the model `owner/name`.
    pub fn new(cache: &Path, model: &str) -> Self {
        Self { cache: cache.to_owned(), folder_name: format!("models--{}", model.replace('/', "--")) }
    }

    /// The whole cache.
    pub fn path(&self) -> &Path {
        &self.cache
    }

    /// The commit that a branch or tag was at last; a commit is its own.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = std::fs::read_to_string(self.folder().join("refs").join(revision)).ok()?;
        // Files made by hand end with a line feed.
        let commit = commit.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Notes the commit of a branch or tag.
    pub fn set_commit(&self, revision: &str, commit: &str) -> io::Result<()> {
        if revision == commit || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder().join("refs").join(revision);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        write_atomic(&path, commit).map_err(io::Error::other)
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// The file that holds the content `etag`.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// Where the content `etag` is until it is whole.
    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Makes the file of a commit a link to the content `etag`.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> io::Result<()> {
        let snapshot = self.snapshot(commit);
        std::fs::create_dir_all(&snapshot)?;
        let pointer = snapshot.join(file);
        match std::fs::remove_file(&pointer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        #[cfg(unix)]
        return std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), &pointer);
        #[cfg(not(unix))]
        return std::fs::copy(self.blob(etag), &pointer).map(|_| ());
    }

    /// Notes that a commit has no such file, so that other programs do not ask for it.
    pub fn set_absent(&self, commit: &str, file: &str) -> io::Result<()> {
        let path = self.folder().join(".no_exist").join(commit).join(file);
        if path.exists() {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        File::create(path).map(|_| ())
    }

    /// Waits until no other process downloads the content `etag`. The lock is held until it is dropped.
    pub fn lock(&self, etag: &str) -> Result<Lock, LockError> {
        let folder = self.cache.join(".locks").join(&self.folder_name);
        std::fs::create_dir_all(&folder).map_err(LockError::Disk)?;
        let path = folder.join(format!("{etag}.lock"));
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(LockError::Disk)?;
        let arrived = || std::fs::metadata(self.incomplete(etag)).map(|file| file.len()).unwrap_or(0);
        let (mut before, mut since) = (arrived(), Instant::now());
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(TryLockError::WouldBlock) => {}
                // A file system without locks: what arrives is checked in any case.
                Err(TryLockError::Error(_)) => return Ok(Lock { _file: file }),
            }
            let now = arrived();
            if now != before {
                (before, since) = (now, Instant::now());
            }
            if since.elapsed() > PATIENCE {
                return Err(LockError::Held(path));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn folder(&self) -> PathBuf {
        self.cache.join(&self.folder_name)
    }
}

/// The right to download a file.
pub(super) struct Lock {
    _file: File,
}

/// Why there is no lock.
pub(super) enum LockError {
    /// The lock cannot be made.
    Disk(io::Error),
    /// Another process has it.
    Held(PathBuf),
}
