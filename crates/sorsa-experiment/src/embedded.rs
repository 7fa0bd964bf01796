//! The model and the task that need no download.

use std::path::{Path, PathBuf};

/// The name that stands for the model and the task in `datasets/`.
pub const EMBEDDED: &str = "embedded";

/// The folder `datasets/` of the sources.
fn datasets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets")
}

/// A file of the embedded task: `train`, `validation` or `test`.
pub fn embedded_task(split: &str) -> PathBuf {
    datasets().join("arithmetic").join(format!("{split}.jsonl"))
}

/// The folder of the embedded model.
pub fn embedded_model() -> PathBuf {
    datasets().join("base")
}
