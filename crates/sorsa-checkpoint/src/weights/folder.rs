//! Which files belong to a model's folder. A new model takes the place of an older one as a whole.

use std::path::Path;

use sorsa_files::{FileError, FolderError, FolderKind, OwnedFolder};

use super::{INDEX_FILE, SINGLE_FILE};

/// Files of a tokenizer and its chat template in a model's folder.
pub const TOKENIZER_FILES: [&str; 11] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];
/// Folder of further chat templates, each a file of its name.
pub const CHAT_TEMPLATES: &str = "additional_chat_templates";
/// The settings that a model is published with for generating text.
pub const GENERATION_CONFIG: &str = "generation_config.json";
/// Other files of a model's folder beside its weights.
const MODEL_FILES: [&str; 3] = ["config.json", GENERATION_CONFIG, INDEX_FILE];

const KIND: FolderKind = FolderKind { name: "a model", owns: is_model_file };

/// A model's folder under construction. [`commit`](Self::commit) gives it its name; the older model of that name is then
/// gone with all its files.
#[derive(Debug)]
pub struct ModelFolder(OwnedFolder);

impl ModelFolder {
    /// Starts a folder that will be called `target`.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn create(target: &Path) -> Result<Self, FolderError> {
        Ok(Self(OwnedFolder::create(target, KIND)?))
    }

    /// Checks that a model may take the place of `target`: nothing is there, or a folder that holds a model's files alone.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn check(target: &Path) -> Result<(), FolderError> {
        OwnedFolder::check(target, KIND)
    }

    /// Where to write the files until the folder is committed.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Flushes every file to the disk and gives the folder its name.
    ///
    /// # Errors
    /// [`FileError`]; an older folder is then still in its place.
    pub fn commit(self) -> Result<(), FileError> {
        self.0.commit()
    }
}

/// Whether a file of this name belongs to a model: configuration, tokenizer, weights.
fn is_model_file(name: &str) -> bool {
    let is_shard = name.starts_with("model-") && name.ends_with(".safetensors");
    is_shard
        || name == SINGLE_FILE
        || is_chat_template(name)
        || MODEL_FILES.contains(&name)
        || TOKENIZER_FILES.contains(&name)
}

/// Whether this is a file of [`CHAT_TEMPLATES`].
fn is_chat_template(name: &str) -> bool {
    name.split_once('/').is_some_and(|(folder, file)| folder == CHAT_TEMPLATES && file.ends_with(".jinja"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_model_removes_the_older_one_and_not_what_its_links_point_to() {
        let place = tempfile::tempdir().unwrap();
        let (base, out) = (place.path().join("base"), place.path().join("out"));
        for folder in [&base, &out] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(base.join("tokenizer.json"), "tokens").unwrap();
        fs::hard_link(base.join("tokenizer.json"), out.join("vocab.json")).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("../base/tokenizer.json", out.join("tokenizer.json")).unwrap();
        for older in [INDEX_FILE, "model-00001-of-00002.safetensors", "tokenizer.model"] {
            fs::write(out.join(older), "old").unwrap();
        }
        let folder = ModelFolder::create(&out).unwrap();
        for name in ["config.json", "tokenizer.json"] {
            fs::write(folder.path().join(name), "new").unwrap();
        }
        folder.commit().unwrap();
        assert_eq!(names(&out), ["config.json", "tokenizer.json"]);
        assert_eq!(names(place.path()), ["base", "out"]);
        assert_eq!(fs::read_to_string(base.join("tokenizer.json")).unwrap(), "tokens");
    }

    #[test]
    fn further_chat_templates_belong_to_a_model_and_what_else_lies_beside_them_does_not() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        fs::create_dir_all(out.join(CHAT_TEMPLATES)).unwrap();
        assert!(ModelFolder::check(&out).is_err(), "an empty folder says nothing");
        fs::write(out.join(CHAT_TEMPLATES).join("tool_use.jinja"), "T").unwrap();
        ModelFolder::check(&out).unwrap();
        fs::write(out.join(CHAT_TEMPLATES).join("notes.txt"), "mine").unwrap();
        let error = ModelFolder::check(&out).unwrap_err().to_string();
        assert!(error.contains("holds more than a model: additional_chat_templates"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_folder_stays_and_the_folder_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let (link, real) = (place.path().join("link"), place.path().join("real"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        let folder = ModelFolder::create(&link).unwrap();
        fs::write(folder.path().join("config.json"), "new").unwrap();
        folder.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(names(&real), ["config.json"]);
    }

    #[test]
    fn a_folder_with_other_files_is_refused_by_their_names_and_left_alone() {
        let place = tempfile::tempdir().unwrap();
        for name in ["config.json", "notes.txt", "adapter_config.json"] {
            fs::write(place.path().join(name), "mine").unwrap();
        }
        fs::create_dir(place.path().join("model.safetensors")).unwrap();
        let message = ModelFolder::create(place.path()).unwrap_err().to_string();
        assert!(message.contains(": adapter_config.json, model.safetensors, notes.txt;"), "{message}");
        assert_eq!(names(place.path()).len(), 4);
        assert!(ModelFolder::create(&place.path().join("notes.txt")).is_err());
        ModelFolder::check(&place.path().join("new")).unwrap();
    }
}
