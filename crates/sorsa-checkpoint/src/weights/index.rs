//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use sorsa_files::read_regular;

use super::header::MAX_HEADER_BYTES;
use super::{INDEX_FILE, Problem, WeightsError};

/// The content of an index file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Index {
    /// Holds `total_size` in bytes. Read as it comes, since some tools write something else: nothing relies on it.
    #[serde(default)]
    pub metadata: serde_json::Value,
    /// Tensor to the name of the file that holds it.
    pub weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads `dir/model.safetensors.index.json`; every shard it names is a plain file name.
    ///
    /// # Errors
    /// [`WeightsError::Io`] and [`WeightsError::Damaged`], the latter with every bad name.
    pub fn read(dir: &Path) -> Result<Self, WeightsError> {
        let path = dir.join(INDEX_FILE);
        let damaged = |problems| WeightsError::Damaged { dir: dir.to_owned(), problems };
        let file = sorsa_files::open_regular(&path).map_err(WeightsError::io(&path))?;
        let size = file.metadata().map_err(WeightsError::io(&path))?.len();
        if size > MAX_HEADER_BYTES {
            return Err(damaged(vec![Problem::HeaderTooLarge {
                file: INDEX_FILE.to_owned(),
                found: size,
                limit: MAX_HEADER_BYTES,
            }]));
        }
        let bytes = read_regular(&path, MAX_HEADER_BYTES).map_err(WeightsError::io(&path))?;
        let index: Self = serde_json::from_slice(&bytes)
            .map_err(|source| damaged(vec![Problem::Json { file: INDEX_FILE.to_owned(), source }]))?;
        let problems: Vec<_> = index
            .shards()
            .into_iter()
            .filter(|shard| !is_shard_name(shard))
            .map(|shard| Problem::ShardName { index: INDEX_FILE.to_owned(), shard: shard.to_owned() })
            .collect();
        if problems.is_empty() { Ok(index) } else { Err(damaged(problems)) }
    }

    /// The files that are listed, each once, in order of name.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

/// Whether `name` is a safetensors file of the same folder, and not a way out of it.
fn is_shard_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && name.ends_with(".safetensors")
        && !name.contains('\\')
}
