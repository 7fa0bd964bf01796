//! What an adapter's user should know, by the adapter's files and the model's.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sorsa_adapter::{AdapterDoubt, Method};
use sorsa_checkpoint::gguf_file_of;

use crate::adapter::BaseModel;
use crate::content;

/// Something odd about an adapter that can be used all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Doubt {
    /// Of its configuration and tensors.
    Adapter(AdapterDoubt),
    /// It names another base than the model at hand.
    OtherBase {
        /// The base by the adapter.
        named: String,
        /// The model at hand.
        given: String,
    },
    /// Its folder has another tokenizer than the model's.
    OwnTokenizer {
        /// Folder of the model.
        model: PathBuf,
    },
    /// Its folder has another chat template than the model's.
    OwnTemplate {
        /// Folder of the model.
        model: PathBuf,
    },
    /// The adapter before training was given for a method that subtracted nothing from the weights.
    StartNotUsed {
        /// The method.
        method: Method,
    },
    /// It trains the head of a model whose head is the embedding.
    HeadOfItsOwn {
        /// Path of the head.
        head: &'static str,
    },
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adapter(doubt) => doubt.fmt(f),
            Self::OtherBase { named, given } => write!(
                f,
                "the adapter was made for `{named}`, and the model is `{given}`: if they are not the same weights, the result \
                 is wrong"
            ),
            Self::OwnTokenizer { model } => write!(
                f,
                "the adapter has a tokenizer of its own, and the model's is used: copy the adapter's tokenizer files to {} if \
                 they are the right ones",
                model.display()
            ),
            Self::OwnTemplate { model } => write!(
                f,
                "the adapter has a chat template of its own, and the model's is used: copy the adapter's chat_template.jinja or \
                 tokenizer_config.json to {} if it is the right one",
                model.display()
            ),
            Self::StartNotUsed { method } => {
                write!(f, "the start is not used: {method} takes nothing away from the weights when it starts")
            }
            Self::HeadOfItsOwn { head } => write!(
                f,
                "the adapter trains `{head}`, which is the embedding in this model: the model gets a head of its own, and \
                 `tie_word_embeddings` is false if it is merged"
            ),
        }
    }
}

impl Doubt {
    /// Doubts by the files in the adapter's folder, and by the base that the adapter names.
    pub(crate) fn of_files(adapter: &Path, base: BaseModel<'_>, named: Option<&str>) -> Vec<Self> {
        let mut doubts = Vec::new();
        if let Some(named) = named.filter(|named| !named.is_empty() && !is_same_base(named, base)) {
            doubts.push(Self::OtherBase { named: named.to_owned(), given: base.name.to_owned() });
        }
        let model = base.folder.to_owned();
        if is_gguf(&model) {
            // Its tokenizer is told in other words than that of the folder which it was made of.
            return doubts;
        }
        if let Some(own) = tokenizer(adapter)
            && tokenizer(base.folder).as_ref() != Some(&own)
        {
            doubts.push(Self::OwnTokenizer { model: model.clone() });
        }
        if let Some(own) = chat_template(adapter)
            && chat_template(base.folder).as_ref() != Some(&own)
        {
            doubts.push(Self::OwnTemplate { model });
        }
        doubts
    }
}

/// Whether the name that an adapter gives its base can mean the model at hand: it is the same name, the same folder, one of
/// the same content, a name on the hub that the folder is called by, or the name that the model's own configuration has.
fn is_same_base(named: &str, base: BaseModel<'_>) -> bool {
    let trimmed = named.trim_end_matches(['/', '\\']);
    let without_revision = |name: &str| name.split_once('@').map_or(name, |(id, _)| id).to_owned();
    if without_revision(trimmed) == without_revision(base.name.trim_end_matches(['/', '\\'])) {
        return true;
    }
    let folder = base.folder.canonicalize().unwrap_or_else(|_| base.folder.to_owned());
    let path = Path::new(trimmed);
    if path.join("config.json").is_file() || is_gguf(path) {
        let content = |folder: &Path| content::of_model(folder).ok();
        return path.canonicalize().is_ok_and(|path| path == folder)
            || content(path).is_some_and(|named| content(&folder) == Some(named));
    }
    // The folder is not here, or it is a name on the hub.
    let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().to_lowercase());
    let on_hub = format!("models--{}", trimmed.replace('/', "--"));
    let in_cache = folder.components().any(|part| part.as_os_str().to_string_lossy() == on_hub);
    in_cache
        || (last(path).is_some() && (last(path) == last(&folder) || last(path) == last(Path::new(base.name))))
        || json(&folder.join("config.json")).is_some_and(|config| config["_name_or_path"] == trimmed)
}

fn is_gguf(path: &Path) -> bool {
    path.exists() && gguf_file_of(path).is_ok_and(|file| file.is_some())
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// `tokenizer.json` without the settings of whoever saved it.
fn tokenizer(folder: &Path) -> Option<Value> {
    let mut tokenizer = json(&folder.join("tokenizer.json"))?;
    if let Value::Object(fields) = &mut tokenizer {
        for setting in ["truncation", "padding"] {
            fields.shift_remove(setting);
        }
    }
    Some(tokenizer)
}

/// The chat template of a folder, from its own file or from the tokenizer's configuration.
fn chat_template(folder: &Path) -> Option<String> {
    if let Ok(text) = std::fs::read_to_string(folder.join("chat_template.jinja")) {
        return Some(text);
    }
    match json(&folder.join("tokenizer_config.json"))?.get("chat_template")? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        several => Some(several.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_base_is_the_same_by_its_name_its_place_or_its_own_configuration() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("models/tiny/checkpoint");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("config.json"), r#"{"_name_or_path": "owner/original"}"#).unwrap();
        let cached = place.path().join("hub/models--owner--name/snapshots/0123");
        fs::create_dir_all(&cached).unwrap();
        let given = folder.to_string_lossy().into_owned();
        let is_same =
            |named: &str, name: &str, folder: &Path| is_same_base(named, BaseModel { name, folder, quantize: None });
        for named in
            [given.as_str(), "models/tiny/checkpoint", "owner/original", "owner/Checkpoint", "elsewhere/checkpoint/"]
        {
            assert!(is_same(named, &given, &folder), "{named}");
        }
        for (named, name) in [("owner/name", "owner/name@0123"), ("owner/name", "any"), ("/home/me/name", "owner/name")]
        {
            assert!(is_same(named, name, &cached), "{named} {name}");
        }
        for named in ["embedded", "meta-llama/Llama-3.1-8B-Instruct", "owner/other"] {
            assert!(!is_same(named, &given, &folder), "{named}");
        }
        assert!(is_same("embedded", "embedded", &folder));
    }

    #[test]
    fn a_tokenizer_and_a_template_are_compared_by_what_they_mean() {
        let place = tempfile::tempdir().unwrap();
        let [model, adapter] = ["model", "adapter"].map(|name| place.path().join(name));
        for folder in [&model, &adapter] {
            fs::create_dir(folder).unwrap();
        }
        let doubts =
            || Doubt::of_files(&adapter, BaseModel { name: "model", folder: &model, quantize: None }, Some("model"));
        fs::write(model.join("tokenizer.json"), r#"{"model": {"vocab": {"a": 0}}, "padding": null}"#).unwrap();
        assert_eq!(doubts(), []);
        let saved_again = r#"{ "model": {"vocab": {"a": 0}}, "padding": {"length": 8}, "truncation": null }"#;
        fs::write(adapter.join("tokenizer.json"), saved_again).unwrap();
        fs::write(model.join("tokenizer_config.json"), r#"{"chat_template": "{{ x }}"}"#).unwrap();
        fs::write(adapter.join("chat_template.jinja"), "{{ x }}").unwrap();
        assert_eq!(doubts(), []);
        fs::write(adapter.join("tokenizer.json"), r#"{"model": {"vocab": {"a": 0, "b": 1}}}"#).unwrap();
        fs::write(adapter.join("chat_template.jinja"), "{{ y }}").unwrap();
        let expected = [Doubt::OwnTokenizer { model: model.clone() }, Doubt::OwnTemplate { model: model.clone() }];
        assert_eq!(doubts(), expected);
    }
}
