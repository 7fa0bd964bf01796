//! The folder of a run and the files in it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use sorsa_files::{recover, write_atomic};

use crate::session::create_folder;

/// A run's folder.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The folder asked for, which must not hold a run already, or a new one `runs/<name>-N`.
    pub fn create(asked: Option<&Path>, name: &str) -> anyhow::Result<Self> {
        let path = match asked {
            Some(path) => {
                if path.join("recipe.toml").exists() {
                    return Err(crate::exit::bad_input(format!(
                        "{} holds a run already; go on with it by --resume, or name another folder",
                        path.display()
                    )));
                }
                path.to_owned()
            }
            None => {
                let mut number = 1;
                loop {
                    let path = Path::new("runs").join(format!("{name}-{number}"));
                    if !path.exists() {
                        break path;
                    }
                    number += 1;
                }
            }
        };
        create_folder(&path)?;
        Ok(Self { path })
    }

    /// The folder of an earlier run, without what it was writing when it was killed.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        recover(path)?;
        Ok(Self { path: path.to_owned() })
    }

    /// Takes back a folder that nothing was trained in, where it holds nothing else.
    pub fn abandon(&self) {
        // The reason for it is the error to report.
        let _ = std::fs::remove_file(self.file("baseline.json"));
        let _ = std::fs::remove_dir(&self.path);
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let path = self.file(name);
        write_atomic(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Writes rows as JSON lines.
    pub fn write_rows<T: Serialize>(&self, name: &str, rows: &[T]) -> anyhow::Result<()> {
        self.write(name, json_lines(rows)?)
    }
}

/// Rows as JSON lines.
pub fn json_lines<T: Serialize>(rows: &[T]) -> anyhow::Result<String> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(row)?);
        text.push('\n');
    }
    Ok(text)
}
