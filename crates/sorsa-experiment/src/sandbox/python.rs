//! The `python3` that runs programs, and what it needs to see of the file system.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

/// Where the interpreter is.
#[derive(Debug, Clone)]
pub struct Python {
    /// The interpreter itself, whatever scripts stand before it on the search path.
    pub executable: PathBuf,
    /// Symbolic links at the root of the file system, like `/lib` to `usr/lib`.
    pub links: Vec<PathBuf>,
    /// Files and folders that a program needs to read; none lies below another.
    pub shown: Vec<PathBuf>,
}

const DESCRIBE: &str = "
import json, os, resource, sys
folders = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path, os.path.dirname(sys.executable), os.path.dirname(os.path.realpath(sys.executable))]
print(json.dumps({'executable': sys.executable, 'folders': folders}))
";

#[derive(Deserialize)]
struct Description {
    executable: PathBuf,
    folders: Vec<PathBuf>,
}

impl Python {
    /// Asks the `python3` of a search path; `None` if there is none, or it is none of Unix.
    pub fn find(search_path: &OsString) -> Option<Self> {
        let mut command = Command::new("python3");
        command.args(["-I", "-B", "-c", DESCRIBE]).env_clear().env("PATH", search_path);
        let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        let description: Description = serde_json::from_slice(&output.stdout).ok()?;
        let (mut links, mut shown) = (Vec::new(), Vec::new());
        for name in ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"] {
            let path = PathBuf::from(name);
            match path.symlink_metadata() {
                Ok(found) if found.is_symlink() => links.push(path),
                Ok(found) if found.is_dir() => shown.push(path),
                _ => {}
            }
        }
        let system = ["/usr", "/nix/store", "/gnu/store", "/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime"];
        shown.extend(system.map(PathBuf::from));
        shown.extend(description.folders);
        Some(Self { executable: description.executable, links, shown: outermost(shown) })
    }
}

/// The paths that exist and lie in no other of them, without the root and relative ones.
fn outermost(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    paths.retain(|path| path.is_absolute() && path != Path::new("/") && path.exists());
    paths.sort();
    let mut outermost: Vec<PathBuf> = Vec::new();
    for path in paths {
        // `/usr/bin/../lib` names a folder that another path shows.
        let plain = !path.components().any(|part| part == std::path::Component::ParentDir);
        if plain && !outermost.iter().any(|outer| path.starts_with(outer)) {
            outermost.push(path);
        }
    }
    outermost
}
