//! Turns text into token ids and back, with the tokenizer files of a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::{Encoding, Tokenizer};

use crate::{ChatTemplate, DataError};

/// A tokenizer with its special tokens and chat template.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    stops: Vec<u32>,
    adds_bos: bool,
    chat_template: Option<ChatTemplate>,
}

const FILES: [&str; 4] = ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"];

impl TextTokenizer {
    /// Reads `tokenizer.json` and the files beside it. The special tokens come from the first of `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json` and `config.json` that names them; the chat template from
    /// `chat_template.jinja` or `tokenizer_config.json`. All files but `tokenizer.json` may be absent.
    ///
    /// A `bos_token` of `null` in one of the first two files means that the model has none, even if the other two
    /// files have an id: Qwen has a `bos_token_id` that it never saw at the start of a text. For other tokens, `null` means
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenizer`] with every missing or broken file.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, DataError> {
        let dir = dir.as_ref();
        let mut files = TokenizerFiles::default();
        if let Some(bytes) = files.read(dir, "tokenizer.json") {
            files.tokenizer("tokenizer.json", &bytes);
        }
        for name in FILES {
            if let Some(bytes) = files.read_if_present(dir, name) {
                files.config(name, &bytes);
            }
        }
        if let Some(bytes) = files.read_if_present(dir, "chat_template.jinja") {
            files.template = Some(String::from_utf8_lossy(&bytes).into_owned());
        }
        files.assemble(dir.display().to_string())
    }

    /// Reads the bytes of `tokenizer.json` and, for the special tokens, of `tokenizer_config.json`.
    ///
    /// # Errors
    ///
    /// Those of [`TextTokenizer::from_dir`].
    pub fn from_bytes(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Self, DataError> {
        let mut files = TokenizerFiles::default();
        files.tokenizer("tokenizer.json", tokenizer);
        if let Some(config) = config {
            files.config(FILES[0], config);
        }
        files.assemble("memory".to_owned())
    }

    /// The ids of `text`, without begin and end tokens. The text of a special token inside it becomes that token.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenize`] if the tokenizer has neither an id for a part of the text nor an unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode_fast(text, false).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Like [`TextTokenizer::encode`], with the byte range of each token in the text.
    pub(crate) fn encode_with_offsets(&self, text: &str) -> Result<Encoding, DataError> {
        self.inner.encode(text, false).map_err(failed)
    }

    /// The text of `ids`, without special tokens.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenize`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.inner.decode(ids, true).map_err(failed)
    }

    /// A decoder for tokens that arrive one by one.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream { tokenizer: self, ids: Vec::new(), shown: 0, shown_text: String::new() }
    }

    /// The begin-of-sequence token, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-sequence token, if the model has one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that fills short rows of a batch, for a model of `vocabulary` tokens: the padding token, otherwise the end
    /// token, otherwise 0. It skips a token beyond the vocabulary, such as a padding token that only the tokenizer has.
    /// Padding is masked, so the choice changes no result.
    pub fn pad(&self, vocabulary: usize) -> u32 {
        let candidates = [self.pad, self.eos];
        candidates.into_iter().flatten().find(|token| (*token as usize) < vocabulary).unwrap_or(0)
    }

    /// The unknown token, if the tokenizer has one.
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// Every token that ends generation: the end token and those that `generation_config.json` adds.
    pub fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// Whether the tokenizer itself puts the begin token before a text. Llama's does, GPT-2's does not.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Number of ids, added tokens included. A model's embedding may be larger, but not smaller.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The chat template, if the checkpoint has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }
}

fn failed(error: tokenizers::Error) -> DataError {
    DataError::Tokenize { reason: error.to_string() }
}

/// Turns tokens into text as they arrive. It holds tokens back until they complete a character.
#[derive(Debug, Clone)]
pub struct DecodeStream<'a> {
    tokenizer: &'a TextTokenizer,
    /// The tokens of the last output, then the held-back tokens. The former decide whether a space comes next.
    ids: Vec<u32>,
    /// Number of `ids` that are already output.
    shown: usize,
    /// Text of the `shown` ids.
    shown_text: String,
}

impl DecodeStream<'_> {
    /// Takes the next token and returns the text that it completes, which may be empty.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenize`] if the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String, DataError> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let new = text.get(self.shown_text.len()..).unwrap_or_default().to_owned();
        if !new.is_empty() {
            self.ids.drain(..self.shown);
            self.shown = self.ids.len();
            self.shown_text = self.tokenizer.decode(&self.ids)?;
        }
        Ok(new)
    }

    /// Returns the text of the held-back tokens: the beginning of a character that no token completed.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenize`] if the tokenizer's decoder fails.
    pub fn finish(self) -> Result<String, DataError> {
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(text.get(self.shown_text.len()..).unwrap_or_default().to_owned())
    }
}

/// The parsed files of a tokenizer, and the problems found in them.
#[derive(Default)]
struct TokenizerFiles {
    tokenizer: Option<Tokenizer>,
    configs: BTreeMap<&'static str, Value>,
    template: Option<String>,
    problems: Vec<String>,
}

impl TokenizerFiles {
    /// The bytes of a file. If it cannot be read, that is a problem.
    fn read(&mut self, dir: &Path, name: &str) -> Option<Vec<u8>> {
        match std::fs::read(dir.join(name)) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.problems.push(format!("{name}: {error}"));
                None
            }
        }
    }

    /// Like [`Self::read`], but the file may be absent.
    fn read_if_present(&mut self, dir: &Path, name: &str) -> Option<Vec<u8>> {
        match dir.join(name).try_exists() {
            Ok(false) => None,
            _ => self.read(dir, name),
        }
    }

    fn tokenizer(&mut self, name: &str, bytes: &[u8]) {
        match Tokenizer::from_bytes(bytes) {
            Ok(mut tokenizer) => {
                tokenizer.with_padding(None);
                match tokenizer.with_truncation(None) {
                    Ok(_) => self.tokenizer = Some(tokenizer),
                    Err(error) => self.problems.push(format!("{name}: {error}")),
                }
            }
            Err(error) => self.problems.push(format!("{name} is not a tokenizer: {error}")),
        }
    }

    fn config(&mut self, name: &'static str, bytes: &[u8]) {
        match serde_json::from_slice(bytes) {
            Ok(value) => drop(self.configs.insert(name, value)),
            Err(error) => self.problems.push(format!("{name} is not JSON: {error}")),
        }
    }

    fn field(&self, file: &str, key: &str) -> Option<&Value> {
        self.configs.get(file)?.get(key)
    }

    /// Id of the special token `key` (`bos_token`), from the first file that names it.
    fn special(&mut self, key: &str) -> Option<u32> {
        let tokenizer = self.tokenizer.as_ref()?;
        for file in &FILES[..2] {
            let text = match self.field(file, key) {
                None => continue,
                Some(Value::Null) if key == "bos_token" => return None,
                Some(Value::Null) => break,
                Some(token) => token.as_str().or_else(|| token.get("content")?.as_str()),
            };
            let id = text.and_then(|text| tokenizer.token_to_id(text));
            if id.is_none() {
                let named = self.field(file, key).map(Value::to_string).unwrap_or_default();
                self.problems.push(format!("{file}: `{key}` is {named}, which is not in the vocabulary"));
            }
            return id;
        }
        FILES[2..].iter().flat_map(|file| ids(self.field(file, &format!("{key}_id")))).next()
    }

    /// Whether the tokenizer puts `bos` before a text, by its post-processor or by its configuration.
    fn adds_bos(&self, tokenizer: &Tokenizer, bos: Option<u32>) -> bool {
        let encoded = tokenizer.encode("", true).ok();
        let first = encoded.and_then(|encoding| encoding.get_ids().first().copied());
        let configured = self.field(FILES[0], "add_bos_token").and_then(Value::as_bool);
        bos.is_some() && (first == bos || configured == Some(true))
    }

    /// The template of `chat_template.jinja`, otherwise of the configuration, which has one template or several named
    /// ones; of several, the one named `default`.
    fn chat_template(&mut self, tokenizer: &Tokenizer, bos: Option<u32>, eos: Option<u32>) -> Option<ChatTemplate> {
        let configured = self.field(FILES[0], "chat_template").and_then(|template| match template {
            Value::Array(named) => named.iter().find(|entry| entry["name"] == "default")?["template"].as_str(),
            one => one.as_str(),
        });
        let source = self.template.clone().or_else(|| configured.map(str::to_owned))?;
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default();
        match ChatTemplate::new(&source, &text(bos), &text(eos)) {
            Ok(template) => Some(template),
            Err(error) => {
                self.problems.push(error.to_string());
                None
            }
        }
    }

    fn assemble(mut self, place: String) -> Result<TextTokenizer, DataError> {
        let [bos, eos, pad, unk] = ["bos_token", "eos_token", "pad_token", "unk_token"].map(|key| self.special(key));
        let Some(inner) = self.tokenizer.take() else {
            return Err(DataError::Tokenizer { place, problems: self.problems });
        };
        let chat_template = self.chat_template(&inner, bos, eos);
        if !self.problems.is_empty() {
            return Err(DataError::Tokenizer { place, problems: self.problems });
        }
        let mut stops: Vec<u32> = eos.into_iter().chain(ids(self.field(FILES[2], "eos_token_id"))).collect();
        stops.sort_unstable();
        stops.dedup();
        let adds_bos = self.adds_bos(&inner, bos);
        Ok(TextTokenizer { inner, bos, eos, pad, unk, stops, adds_bos, chat_template })
    }
}

/// The ids of a value that is one id or a list of ids.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A byte-level tokenizer without merges: `<s>` 0, `</s>` 1, then one id for each byte.
    pub(crate) fn bytes() -> TextTokenizer {
        bytes_with(r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#)
    }

    /// The same with another `tokenizer_config.json`.
    pub(crate) fn bytes_with(config: &str) -> TextTokenizer {
        let vocab: serde_json::Map<String, Value> = ["<s>".to_owned(), "</s>".to_owned()]
            .into_iter()
            .chain(byte_characters().map(String::from))
            .enumerate()
            .map(|(id, token)| (token, id.into()))
            .collect();
        let special = |id: u32, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
        let json = serde_json::json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [special(0, "<s>"), special(1, "</s>")], "pre_tokenizer": byte_level, "post_processor": null,
            "decoder": byte_level, "model": {"type": "BPE", "vocab": vocab, "merges": []}});
        TextTokenizer::from_bytes(json.to_string().as_bytes(), Some(config.as_bytes())).unwrap()
    }

    /// The printable stand-ins of the 256 bytes, as GPT-2 orders them.
    fn byte_characters() -> impl Iterator<Item = char> {
        let printable = || (33..=126u32).chain(161..=172).chain(174..=255);
        let rest = 256..256 + (256 - printable().count() as u32);
        printable().chain(rest).filter_map(char::from_u32)
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        bytes().inner.save(folder.path().join("tokenizer.json"), false).unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    #[test]
    fn text_survives_encoding_and_decoding() {
        let tokenizer = bytes();
        let text = "Émile: “3 apples” 🍎\n\tend ";
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids.len(), text.len());
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(tokenizer.encode("a</s>").unwrap().last(), Some(&1));
        assert_eq!(
            (tokenizer.bos(), tokenizer.eos(), tokenizer.pad(258), tokenizer.unk()),
            (Some(0), Some(1), 1, None)
        );
        assert_eq!((tokenizer.vocab_size(), tokenizer.adds_bos()), (258, false));
    }

    #[test]
    fn a_stream_gives_out_only_whole_characters_and_in_all_the_same_text() {
        let tokenizer = bytes();
        let text = "a 🍎 é\u{FFFD}b";
        let mut stream = tokenizer.decode_stream();
        let mut pieces = Vec::new();
        for id in tokenizer.encode(text).unwrap() {
            pieces.push(stream.push(id).unwrap());
        }
        assert_eq!(pieces.concat(), text);
        assert_eq!(pieces[2..6], ["", "", "", "🍎"]);
        assert_eq!(stream.finish().unwrap(), "");

        let mut cut = tokenizer.decode_stream();
        assert_eq!(cut.push(tokenizer.encode("é").unwrap()[0]).unwrap(), "");
        assert_eq!(cut.finish().unwrap(), "\u{FFFD}");
    }

    #[test]
    fn a_stream_survives_bytes_that_stand_side_by_side() {
        let vocab: serde_json::Map<String, Value> =
            (0..256u32).map(|byte| (format!("<0x{byte:02X}>"), byte.into())).collect();
        let json = serde_json::json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": [],
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true}});
        let tokenizer = TextTokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap();
        let mut stream = tokenizer.decode_stream();
        let pieces = "🍎🍎é".bytes().map(|byte| stream.push(byte.into()).unwrap()).collect::<Vec<_>>();
        assert_eq!(pieces, ["", "", "", "🍎", "", "", "", "🍎", "", "é"]);
    }

    #[test]
    fn special_tokens_come_from_the_first_file_that_names_them() {
        let config = ("tokenizer_config.json", r#"{"bos_token": null, "pad_token": null, "add_bos_token": true}"#);
        let generation =
            ("generation_config.json", r#"{"bos_token_id": 0, "eos_token_id": [1, 7], "pad_token_id": 5}"#);
        let map = ("special_tokens_map.json", r#"{"unk_token": "a"}"#);
        let folder = folder(&[config, generation, map]);
        let tokenizer = TextTokenizer::from_dir(folder.path()).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad(258)), (None, Some(1), 5));
        // A model without a row for the padding token is filled with one that it has.
        assert_eq!((tokenizer.pad(5), tokenizer.pad(1)), (1, 0));
        assert_eq!(tokenizer.unk(), Some(tokenizer.encode("a").unwrap()[0]));
        assert_eq!(tokenizer.stops(), [1, 7]);
        assert!(!tokenizer.adds_bos(), "there is no begin token to add");
    }

    #[test]
    fn the_chat_template_is_its_own_file_or_the_default_of_several() {
        let several = r#"{"eos_token": "</s>", "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes{{ eos_token }}"}]}"#;
        let render = |files: &[(&str, &str)]| {
            let tokenizer = TextTokenizer::from_dir(folder(files).path()).unwrap();
            tokenizer.chat_template().unwrap().render(&[], false).unwrap()
        };
        assert_eq!(render(&[("tokenizer_config.json", several)]), "yes</s>");
        assert_eq!(render(&[("tokenizer_config.json", several), ("chat_template.jinja", "file")]), "file");
    }

    #[test]
    fn everything_wrong_with_a_folder_is_said_at_once() {
        let error = |folder: &tempfile::TempDir| {
            let error = TextTokenizer::from_dir(folder.path()).unwrap_err().to_string();
            error.replace(folder.path().to_str().unwrap(), "DIR")
        };
        insta::assert_snapshot!(error(&tempfile::tempdir().unwrap()), @r"
        cannot use the tokenizer in DIR:
          tokenizer.json: No such file or directory (os error 2)
        ");
        let broken = folder(&[
            ("tokenizer_config.json", r#"{"bos_token": "<bos>", "chat_template": "{% if %}"}"#),
            ("special_tokens_map.json", "{"),
        ]);
        insta::assert_snapshot!(error(&broken), @r#"
        cannot use the tokenizer in DIR:
          special_tokens_map.json is not JSON: EOF while parsing an object at line 1 column 1
          tokenizer_config.json: `bos_token` is "<bos>", which is not in the vocabulary
          chat template: syntax error: unexpected end of block (in chat_template:1)
        "#);
    }
}
