//! The identity of a run: a hash of its resolved recipe, its input files, the backend and this program's version.
//!
//! It is the hash of everything else ([`ContentHash`]). What goes into it has an order and separators of its own, and large files
//! are sampled: they are parts of the names of runs that earlier builds made, and `bench` has to find those.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sorsa_files::ContentHash;

use crate::recipe::EvalRecipe;
use crate::{ExperimentError, Recipe};

/// Files up to this size are hashed whole. Of a larger file the hash covers the size and half as much at each end: a
/// checkpoint that was trained further differs at its ends, and hashing all of it would take longer than the first steps.
const WHOLE: u64 = 256 << 20;

/// Fingerprints of files and folders. Each is computed once.
#[derive(Debug, Default)]
pub struct Fingerprints {
    known: HashMap<PathBuf, String>,
}

impl Fingerprints {
    /// Hashes a file's content, or the files in a model's folder.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::ListFolder`], [`ExperimentError::Read`].
    pub fn of(&mut self, path: &Path) -> Result<String, ExperimentError> {
        if let Some(known) = self.known.get(path) {
            return Ok(known.clone());
        }
        let mut hasher = ContentHash::new();
        if path.is_dir() {
            let mut names: Vec<_> = std::fs::read_dir(path)
                .map_err(|source| ExperimentError::ListFolder { path: path.to_owned(), source })?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|file| file.is_file() && decides(file))
                .collect();
            names.sort();
            for file in names {
                let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                hasher.update(name.as_bytes());
                hasher.update(b"\0");
                add(&mut hasher, &file)?;
            }
        } else {
            add(&mut hasher, path)?;
        }
        let found = hasher.short();
        self.known.insert(path.to_owned(), found.clone());
        Ok(found)
    }
}

/// Whether a file of a model's folder decides what the model computes.
fn decides(file: &Path) -> bool {
    let extension = file.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("json" | "safetensors" | "gguf" | "model" | "jinja"))
}

fn add(hasher: &mut ContentHash, path: &Path) -> Result<(), ExperimentError> {
    let fault = |source| ExperimentError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(fault)?;
    let size = file.metadata().map_err(fault)?.len();
    hasher.update(&size.to_le_bytes());
    let mut part = |file: &mut File, limit: u64| -> Result<(), ExperimentError> {
        let mut buffer = vec![0; 1 << 20];
        let mut source = file.take(limit);
        loop {
            match source.read(&mut buffer).map_err(fault)? {
                0 => return Ok(()),
                read => hasher.update(&buffer[..read]),
            };
        }
    };
    if size <= WHOLE {
        return part(&mut file, u64::MAX);
    }
    part(&mut file, WHOLE / 2)?;
    file.seek(SeekFrom::End(-((WHOLE / 2) as i64))).map_err(fault)?;
    part(&mut file, u64::MAX)
}

/// The key of a run: a short hash of everything that decides the trained weights. Paths of files and settings of tests are not part of it.
///
/// # Errors
///
/// [`ExperimentError`] if the recipe cannot be written as TOML.
pub fn run_key(recipe: &Recipe, files: &InputFiles, backend: &str) -> Result<String, ExperimentError> {
    let mut known = recipe.clone();
    known.model.path.clone_from(&files.model);
    known.data.train.clone_from(&files.train);
    known.data.validation.clone_from(&files.validation);
    known.data.test = None;
    known.eval = EvalRecipe::default();
    let text = format!("sorsa {} on {backend}\n{}", env!("CARGO_PKG_VERSION"), known.to_toml()?);
    Ok(short_hash(&text))
}

/// The start of a text's hash, in hexadecimal.
pub fn short_hash(text: &str) -> String {
    let mut hash = ContentHash::new();
    hash.update(text.as_bytes());
    hash.hex()[..10].to_owned()
}

/// The fingerprints of the files that every run reads.
#[derive(Debug, Clone)]
pub struct InputFiles {
    pub model: String,
    pub train: String,
    pub validation: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use sorsa_adapter::Method;

    fn files() -> InputFiles {
        InputFiles { model: "m".into(), train: "t".into(), validation: Some("v".into()) }
    }

    #[test]
    fn a_key_differs_if_training_does_and_only_then() {
        let recipe = Recipe::default();
        let key = |recipe: &Recipe, files: &InputFiles| run_key(recipe, files, "flex").unwrap();
        let first = key(&recipe, &files());
        assert_eq!(first.len(), 10);

        let mut same = recipe.clone();
        same.data.train = "elsewhere/train.jsonl".into();
        same.data.test = Some("test.jsonl".into());
        same.eval.problems = 7;
        assert_eq!(key(&same, &files()), first);

        let changes: [fn(&mut Recipe); 5] = [
            |recipe| recipe.train.seed = 1,
            |recipe| recipe.train.optimizer.learning_rate = 1e-5.into(),
            |recipe| recipe.train.regularizer.gamma = 0.0,
            |recipe| recipe.adapter.method = Method::Lora.into(),
            |recipe| recipe.data.limit = Some(10),
        ];
        for change in changes {
            let mut other = recipe.clone();
            change(&mut other);
            assert_ne!(key(&other, &files()), first);
        }
        assert_ne!(key(&recipe, &InputFiles { train: "other".into(), ..files() }), first);
    }

    #[test]
    fn fingerprints_are_those_of_earlier_builds() {
        // By the `blake3` package of Python, of the same bytes: names, lengths in eight bytes, contents.
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        std::fs::write(folder.path().join("model.safetensors"), "weights").unwrap();
        let of = |path: &Path| Fingerprints::default().of(path).unwrap();
        assert_eq!(of(folder.path()), "5f5c6d3db92c5a81");
        assert_eq!(of(&folder.path().join("config.json")), "b8b38d1cb0675f6b");
        assert_eq!(short_hash("sorsa"), "828ca5d3f1");
    }

    #[test]
    fn a_fingerprint_is_of_the_content() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let taken = || Fingerprints::default().of(folder.path()).unwrap();
        write("config.json", "{}");
        write("README.md", "words");
        let first = taken();
        write("README.md", "other words");
        assert_eq!(taken(), first);
        write("config.json", "{ }");
        assert_ne!(taken(), first);
        let missing = Fingerprints::default().of(&folder.path().join("nothing")).unwrap_err();
        assert!(missing.to_string().contains("nothing"), "{missing}");
    }
}
