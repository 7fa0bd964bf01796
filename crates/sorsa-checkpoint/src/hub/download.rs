//! One file of a commit, from the hub into the cache.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::LockError;
use super::client::{Client, FileInfo, TransferError};
use super::{HubError, HubProgress, Wanted};

/// How often a file is tried again while nothing more of it arrives; each try goes on where the last one ended.
const RETRIES: u32 = 4;
/// The wait before the first of these tries. Each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// One commit of a model on a hub.
pub(super) struct Commit<'a> {
    pub wanted: &'a Wanted<'a>,
    pub client: &'a Client,
    pub sha: &'a str,
}

impl Commit<'_> {
    /// Fetches `file` into the cache, unless it is there.
    pub fn get(&self, file: &str) -> Result<(), HubError> {
        let (wanted, cache) = (self.wanted, &self.wanted.cache);
        if cache.snapshot(self.sha).join(file).exists() {
            return Ok(());
        }
        let asked = || self.client.info(wanted.id, self.sha, file);
        let info = ask(asked).map_err(|error| wanted.explain(self.client, file, error))?;
        let disk = |source| wanted.disk(source);
        let blob = cache.blob(&info.etag);
        if let Some(folder) = blob.parent() {
            std::fs::create_dir_all(folder).map_err(disk)?;
        }
        let _lock = cache.lock(&info.etag).map_err(|error| match error {
            LockError::Disk(source) => disk(source),
            LockError::Held(path) => HubError::Locked { path },
        })?;
        let is_whole =
            |size: Option<u64>| std::fs::metadata(&blob).is_ok_and(|found| size.is_none_or(|s| s == found.len()));
        if !is_whole(info.size) {
            let incomplete = cache.incomplete(&info.etag);
            self.fetch(file, &info, &incomplete)?;
            std::fs::rename(&incomplete, &blob).map_err(disk)?;
        }
        cache.link(self.sha, file, &info.etag).map_err(disk)
    }

    /// Fetches the whole content into `path`, and compares it with what the hub said of it.
    fn fetch(&self, file: &str, info: &FileInfo, path: &Path) -> Result<(), HubError> {
        let (model, wanted) = (self.wanted.model.to_owned(), self.wanted);
        let disk = |source| wanted.disk(source);
        let file = file.to_owned();
        let open = File::options().create(true).truncate(false).read(true).write(true).open(path);
        let mut target = open.map_err(disk)?;
        let (mut tries, mut size, mut began_anew) = (0, info.size, false);
        loop {
            let before = target.metadata().map_err(disk)?.len();
            match self.receive(&file, info, &mut size, &mut target) {
                Ok(()) => break,
                Err(TransferError::Disk(source)) => return Err(disk(source)),
                Err(TransferError::NoResume) if !began_anew => {
                    target.set_len(0).map_err(disk)?;
                    began_anew = true;
                }
                Err(error) if error.is_passing() => {
                    if target.metadata().map_err(disk)?.len() > before {
                        tries = 0;
                    }
                    if tries == RETRIES {
                        return Err(wanted.explain(self.client, &file, error));
                    }
                    std::thread::sleep(FIRST_WAIT * 2u32.pow(tries));
                    tries += 1;
                }
                Err(error) => return Err(wanted.explain(self.client, &file, error)),
            }
        }
        let found = target.metadata().map_err(disk)?.len();
        let removed = |error: HubError| {
            let _ = std::fs::remove_file(path);
            Err(error)
        };
        if let Some(expected) = size.filter(|expected| *expected != found) {
            return removed(HubError::WrongSize { model, file, expected, found });
        }
        if let Some((kind, hash)) = content_hash(&info.etag, &mut target, found).map_err(disk)?
            && hash != info.etag
        {
            return removed(HubError::WrongHash { model, file, kind, expected: info.etag.clone(), found: hash });
        }
        target.sync_all().map_err(disk)
    }

    /// Appends what is missing of a file. `size` becomes what the host that sends it says, unless the hub said it.
    fn receive(
        &self,
        file: &str,
        info: &FileInfo,
        size: &mut Option<u64>,
        target: &mut File,
    ) -> Result<(), TransferError> {
        let mut received = target.metadata().map_err(TransferError::Disk)?.len();
        if size.is_some_and(|size| received > size) {
            return Err(TransferError::NoResume);
        }
        if received > 0 && *size == Some(received) {
            self.report(file, received, received);
            return Ok(());
        }
        let mut arriving = self.client.download(info, received)?;
        if arriving.start < received {
            target.set_len(arriving.start).map_err(TransferError::Disk)?;
            received = arriving.start;
        }
        match (*size, arriving.size) {
            (Some(of_hub), Some(of_host)) if of_hub != of_host => {
                let sizes = format!("{of_hub} bytes are announced, and {of_host} where it is");
                return Err(TransferError::BadAnswer(format!("{file} has two sizes: {sizes}")));
            }
            (of_hub, of_host) => *size = of_hub.or(of_host),
        }
        target.seek(SeekFrom::Start(received)).map_err(TransferError::Disk)?;
        self.report(file, received, size.unwrap_or(received));
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = match arriving.body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(TransferError::Broken(error)),
            };
            received += count as u64;
            if let Some(size) = size.filter(|size| received > *size) {
                return Err(TransferError::BadAnswer(format!("{file} is longer than the {size} bytes announced")));
            }
            target.write_all(&buffer[..count]).map_err(TransferError::Disk)?;
            self.report(file, received, size.unwrap_or(received));
        }
        match size.filter(|size| received < *size) {
            Some(size) => {
                let end = format!("it ended after {received} of {size} bytes");
                Err(TransferError::Broken(io::Error::new(ErrorKind::UnexpectedEof, end)))
            }
            None => Ok(()),
        }
    }

    fn report(&self, file: &str, received: u64, total: u64) {
        if let Some(progress) = &self.wanted.options.progress {
            progress(HubProgress { file, received, total });
        }
    }
}

/// Asks a hub a question that has a short answer. A hub that is overloaded is asked again; one that answers nothing once more.
pub(super) fn ask<T>(question: impl Fn() -> Result<T, TransferError>) -> Result<T, TransferError> {
    let mut tries = 0;
    loop {
        match question() {
            Err(error) if tries < RETRIES && error.is_passing() => {
                let most = if error.is_timeout() { 1 } else { RETRIES };
                let is_refused =
                    matches!(&error, TransferError::Http(error) if !matches!(error, ureq::Error::Timeout(_)));
                if is_refused || tries >= most {
                    return Err(error);
                }
                std::thread::sleep(FIRST_WAIT * 2u32.pow(tries));
                tries += 1;
            }
            answer => return answer,
        }
    }
}

/// The hash of a file of the kind that its etag is, by name: SHA-256 of a large file, git's of a small one. Nothing if the
/// etag is no hash.
fn content_hash(etag: &str, file: &mut File, size: u64) -> io::Result<Option<(&'static str, String)>> {
    if !etag.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
        return Ok(None);
    }
    match etag.len() {
        64 => Ok(Some(("SHA-256", digest(Sha256::new(), file)?))),
        40 => Ok(Some(("git's SHA-1", digest(Sha1::new_with_prefix(format!("blob {size}\0")), file)?))),
        _ => Ok(None),
    }
}

/// The digest of what `hash` has taken in and the whole file, in hexadecimal.
fn digest(mut hash: impl Digest, file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
