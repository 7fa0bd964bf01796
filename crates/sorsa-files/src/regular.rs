//! Files from outside: only regular files are opened, as a named pipe or a device would be waited for without end.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// Opens a regular file, or a link to one, for reading.
///
/// # Errors
///
/// Those of the operating system; [`ErrorKind::InvalidInput`] of a folder, a named pipe, a socket or a device.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Asked before it is opened: opening a pipe waits for its writer.
    check(&std::fs::metadata(path)?)?;
    let file = File::open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
///
/// As [`open_regular`]; [`ErrorKind::FileTooLarge`].
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path)?;
    let too_large = |size: u64| {
        let message = format!("it has {size} bytes: expected at most {limit}");
        io::Error::new(ErrorKind::FileTooLarge, message)
    };
    let size = file.metadata()?.len();
    if size > limit {
        return Err(too_large(size));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // It may grow meanwhile.
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

fn check(metadata: &std::fs::Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let found = if metadata.is_dir() { "a folder" } else { "a pipe, a socket or a device" };
    Err(io::Error::new(ErrorKind::InvalidInput, format!("expected a file, found {found}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "four").unwrap();
        assert_eq!(read_regular(&path, 4).unwrap(), b"four");
        assert_eq!(read_regular(&path, 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read_regular(folder.path(), 4).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(open_regular(&folder.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_device_is_refused_and_not_waited_for() {
        assert_eq!(read_regular(Path::new("/dev/zero"), 4).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
