//! Fields of a model's `config.json` that somebody wants otherwise: `model.config` of a recipe.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value as Json};
use sorsa_checkpoint::{ConfigError, GGUF_FILE, gguf_file_of};
use sorsa_files::{FileError, at, read_regular};
use tempfile::TempDir;
use toml::{Table, Value};

use crate::error::ExperimentError;

/// The file whose fields are replaced.
const CONFIG_FILE: &str = "config.json";
/// Bytes of that file at most.
const LARGEST_FILE: u64 = 1 << 26;

/// Fields of a `config.json` with other values. A table replaces fields of the object of its name; the text `null` stands for
/// JSON's null, which TOML lacks.
#[derive(Clone, Default)]
pub struct ConfigOverrides {
    fields: Table,
    /// The folders that [`apply`](Self::apply) made. They go with the last clone.
    views: Arc<Mutex<Vec<TempDir>>>,
}

impl ConfigOverrides {
    /// The fields of a recipe.
    pub fn new(fields: Table) -> Self {
        Self { fields, views: Arc::default() }
    }

    /// Other fields, whose folders stay as long as those of this.
    pub(crate) fn with_fields(&self, fields: &Table) -> Self {
        Self { fields: fields.clone(), views: Arc::clone(&self.views) }
    }

    /// The model's `folder` if nothing is overridden; else a folder of links to its files, with another `config.json`. For a GGUF file, a
    /// folder with a link to it and a `config.json` that names it.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Config`] of a file that is no JSON object, [`ExperimentError::File`].
    pub(crate) fn apply(&self, folder: &Path) -> Result<PathBuf, ExperimentError> {
        if self.fields.is_empty() {
            return Ok(folder.to_owned());
        }
        let gguf = gguf_file_of(folder)?;
        let mut object = match &gguf {
            None => read_config(folder)?,
            // Another `config.json` in the folder of a GGUF file says nothing.
            Some(_) if !folder.join(CONFIG_FILE).is_file() => Map::new(),
            Some(_) => {
                read_config(folder).map(|found| if found.contains_key(GGUF_FILE) { found } else { Map::new() })?
            }
        };
        if let Some(name) = gguf.as_ref().and_then(|file| file.file_name()) {
            object.insert(GGUF_FILE.to_owned(), name.to_string_lossy().into());
        }
        // Of a model of text and pictures, the text part is meant.
        let target = match object.get("text_config") {
            Some(Json::Object(_)) => object["text_config"].as_object_mut(),
            _ => Some(&mut object),
        };
        if let Some(target) = target {
            replace(target, &self.fields);
        }

        let folder = folder.canonicalize().map_err(at("find", folder))?;
        let made = tempfile::Builder::new().prefix("sorsa-config-").tempdir();
        let temporary = made.map_err(at("create", Path::new("a temporary folder")))?;
        // Files that are made of the model have its folder's name in them.
        let name = if gguf.is_some() { folder.file_stem() } else { folder.file_name() };
        let view = temporary.path().join(name.unwrap_or_else(|| "model".as_ref()));
        std::fs::create_dir(&view).map_err(at("create", &view))?;
        if let Some(file) = gguf {
            let target = file.canonicalize().map_err(at("find", &file))?;
            link(&target, &view.join(file.file_name().unwrap_or_else(|| "model.gguf".as_ref())))?;
        } else {
            link_files(&folder, &view)?;
        }
        let path = view.join(CONFIG_FILE);
        std::fs::write(&path, format!("{:#}\n", Json::Object(object))).map_err(at("write", &path))?;
        self.views.lock().unwrap_or_else(PoisonError::into_inner).push(temporary);
        Ok(view)
    }
}

fn read_config(folder: &Path) -> Result<Map<String, Json>, ConfigError> {
    let path = folder.join(CONFIG_FILE);
    let text = read_regular(&path, LARGEST_FILE).map_err(|source| ConfigError::Io { path: path.clone(), source })?;
    serde_json::from_slice(&text).map_err(|error| ConfigError::Json { path, reason: error.to_string() })
}

/// Links the files of a folder, but for its configuration, into the folder `view`.
fn link_files(folder: &Path, view: &Path) -> Result<(), FileError> {
    for entry in std::fs::read_dir(folder).map_err(at("list", folder))? {
        let path = entry.map_err(at("list", folder))?.path();
        match path.file_name() {
            Some(name) if name != CONFIG_FILE && path.is_file() => link(&path, &view.join(name))?,
            _ => {}
        }
    }
    Ok(())
}

fn replace(object: &mut Map<String, Json>, fields: &Table) {
    for (name, value) in fields {
        match (object.get_mut(name), value) {
            (Some(Json::Object(inner)), Value::Table(fields)) => replace(inner, fields),
            _ => drop(object.insert(name.clone(), json(value))),
        }
    }
}

fn json(value: &Value) -> Json {
    match value {
        Value::String(text) if text == "null" => Json::Null,
        Value::String(text) => text.as_str().into(),
        Value::Integer(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::Boolean(flag) => (*flag).into(),
        Value::Datetime(time) => time.to_string().into(),
        Value::Array(list) => list.iter().map(json).collect(),
        Value::Table(fields) => fields.iter().map(|(name, value)| (name.clone(), json(value))).collect(),
    }
}

/// Makes `to` another name of the file `from`.
fn link(from: &Path, to: &Path) -> Result<(), FileError> {
    #[cfg(unix)]
    return std::os::unix::fs::symlink(from, to).map_err(at("link", from));
    #[cfg(not(unix))]
    return std::fs::hard_link(from, to).or_else(|_| std::fs::copy(from, to).map(|_| ())).map_err(at("copy", from));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> ConfigOverrides {
        ConfigOverrides::new(text.parse().unwrap())
    }

    #[test]
    fn fields_are_replaced_in_a_view_of_the_folder_and_the_folder_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"model_type": "llama", "rope_theta": 1.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "odd": 1}"#;
        std::fs::write(folder.path().join(CONFIG_FILE), config).unwrap();
        std::fs::write(folder.path().join("model.safetensors"), "weights").unwrap();
        assert_eq!(fields("").apply(folder.path()).unwrap(), folder.path());

        let overrides = fields("rope_theta = 5e5\nodd = 'null'\nnew = [1, true]\n[rope_scaling]\nfactor = 4.0");
        let view = overrides.apply(folder.path()).unwrap();
        let found: Json = serde_json::from_slice(&std::fs::read(view.join(CONFIG_FILE)).unwrap()).unwrap();
        let expected = serde_json::json!({"model_type": "llama", "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0}, "odd": null, "new": [1, true]});
        assert_eq!(found, expected);
        assert_eq!(std::fs::read_to_string(view.join("model.safetensors")).unwrap(), "weights");
        assert_eq!(std::fs::read_to_string(folder.path().join(CONFIG_FILE)).unwrap(), config);
        drop(overrides);
        assert!(!view.exists() && folder.path().join("model.safetensors").exists());
    }
}
