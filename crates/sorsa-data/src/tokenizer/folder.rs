//! Reads a tokenizer's folder like `AutoTokenizer` of Transformers 4.57 does.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, PreTokenizerWrapper, Tokenizer};

use super::added::{TokenFiles, text_of};
use super::chat_templates::{ChatTemplates, configured, name_of_file};
use super::class::{self, TokenizerClass};
use super::growth::Growth;
use super::{TextTokenizer, byte_pairs, sentencepiece};
use crate::DataError;
use crate::panics::caught;

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const MODEL_CONFIG: &str = "config.json";
/// Files of settings.
const CONFIGS: [&str; 5] = [CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS, GENERATION_CONFIG, MODEL_CONFIG];
const TEMPLATE: &str = "chat_template.jinja";
const MORE_TEMPLATES: &str = "additional_chat_templates";
/// Where processors of several modalities keep the template. Transformers' tokenizers do not read it.
const PROCESSOR_TEMPLATE: &str = "chat_template.json";
/// SentencePiece's files.
const SENTENCE_PIECE: [&str; 2] = ["tokenizer.model", "spiece.model"];
/// GPT-2's older files.
const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";
/// The largest file that is read, in bytes; the largest published is 35 MB.
const LARGEST_FILE: u64 = 512 << 20;

/// The parsed files of a tokenizer, and the problems found in them.
#[derive(Default)]
pub(super) struct TokenizerFiles {
    tokenizer: Option<(Tokenizer, Growth)>,
    configs: BTreeMap<&'static str, Value>,
    /// Chat templates in files of their own, by their names.
    templates: Vec<(String, String)>,
    /// Whether the tokenizer was made of `vocab.json` and `merges.txt`.
    of_byte_pairs: bool,
    problems: Vec<String>,
    notes: Vec<String>,
}

/// The parts of `tokenizer.json` that are looked at before the whole is read.
#[derive(Deserialize)]
struct Steps {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    decoder: Value,
}

impl TokenizerFiles {
    /// Reads every file of a folder.
    pub fn read_folder(dir: &Path) -> Self {
        let mut files = Self::default();
        for name in CONFIGS {
            if let Some(bytes) = files.read_if_present(dir, name) {
                files.config(name, &bytes);
            }
        }
        files.read_templates(dir);
        let model = SENTENCE_PIECE.into_iter().find(|name| dir.join(name).is_file());
        let remade = files.class().converts_again() && files.tokenizer_config().contains_key("add_prefix_space");
        let remade = remade && !files.tokenizer_config()["add_prefix_space"].is_null();
        match (dir.join(TOKENIZER).exists(), model) {
            (true, Some(model)) if remade => files.sentence_piece(dir, model),
            (true, _) => {
                if let Some(bytes) = files.read(dir, TOKENIZER) {
                    files.tokenizer(TOKENIZER, &bytes);
                }
            }
            (false, Some(model)) => files.sentence_piece(dir, model),
            (false, None) if dir.join(VOCABULARY).exists() && dir.join(MERGES).exists() => files.byte_pairs(dir),
            (false, None) => files.nothing(dir),
        }
        files
    }

    /// Takes files by their names and contents: `tokenizer.json` and files of settings.
    pub fn of_contents(contents: &[(&str, Vec<u8>)]) -> Self {
        let mut files = Self::default();
        for (name, bytes) in contents {
            match CONFIGS.into_iter().find(|config| config == name) {
                Some(config) => files.config(config, bytes),
                None if *name == TOKENIZER => files.tokenizer(TOKENIZER, bytes),
                None => {}
            }
        }
        if files.tokenizer.is_none() && files.problems.is_empty() {
            files.problems.push("there is no tokenizer".to_owned());
        }
        files
    }

    /// The bytes of a file. If it cannot be read, that is a problem.
    fn read(&mut self, dir: &Path, name: &str) -> Option<Vec<u8>> {
        let path = dir.join(name);
        let read = || {
            let metadata = std::fs::metadata(&path).map_err(|error| error.to_string())?;
            if !metadata.is_file() {
                return Err("it is not a file".to_owned());
            }
            if metadata.len() > LARGEST_FILE {
                return Err(format!("it has {} bytes, at most {LARGEST_FILE} are read", metadata.len()));
            }
            std::fs::read(&path).map_err(|error| error.to_string())
        };
        match read() {
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

    /// Takes the bytes of `tokenizer.json`.
    pub fn tokenizer(&mut self, name: &str, bytes: &[u8]) {
        let growth = match serde_json::from_slice::<Steps>(bytes) {
            Ok(steps) => Growth::of(&steps.normalizer, &steps.decoder).map_err(|reason| format!("{name}: {reason}")),
            Err(error) => Err(format!("{name} is not a tokenizer: {error}")),
        };
        let read = growth.and_then(|growth| {
            let tokenizer = caught(|| {
                let mut tokenizer = Tokenizer::from_bytes(bytes)?;
                tokenizer.with_padding(None);
                tokenizer.with_truncation(None)?;
                tokenizers::Result::Ok(tokenizer)
            });
            match tokenizer {
                Ok(Ok(tokenizer)) => Ok((tokenizer, growth)),
                Ok(Err(error)) => Err(format!("{name} is not a tokenizer: {error}")),
                Err(panic) => Err(format!("{name} is not a tokenizer: {panic}")),
            }
        });
        match read {
            Ok(tokenizer) => self.tokenizer = Some(tokenizer),
            Err(problem) => self.problems.push(problem),
        }
    }

    /// Takes a file of settings.
    pub fn config(&mut self, name: &'static str, bytes: &[u8]) {
        match serde_json::from_slice::<Value>(bytes) {
            Ok(value @ Value::Object(_)) => drop(self.configs.insert(name, value)),
            Ok(_) => self.problems.push(format!("{name} should be an object")),
            Err(error) => self.problems.push(format!("{name} is not JSON: {error}")),
        }
    }

    fn sentence_piece(&mut self, dir: &Path, name: &str) {
        let Some(bytes) = self.read(dir, name) else { return };
        match sentencepiece::convert(&bytes, self.class(), &self.effective_config()) {
            Ok(json) => self.tokenizer(name, json.to_string().as_bytes()),
            Err(reason) => self.problems.push(format!("{name} cannot be read, {reason}; {}", how_to_convert(dir))),
        }
    }

    fn byte_pairs(&mut self, dir: &Path) {
        let (Some(vocab), Some(merges)) = (self.read(dir, VOCABULARY), self.read(dir, MERGES)) else { return };
        self.of_byte_pairs = true;
        match byte_pairs::convert(&vocab, &merges, self.class(), &self.effective_config()) {
            Ok(json) => self.tokenizer(VOCABULARY, json.to_string().as_bytes()),
            Err(reason) => {
                self.problems.push(format!("there is no {TOKENIZER}, and {reason}; {}", how_to_convert(dir)));
            }
        }
    }

    /// There is no vocabulary that this program reads; perhaps one that others read.
    fn nothing(&mut self, dir: &Path) {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut others: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| {
                ["vocab.txt", VOCABULARY, "tekken.json"].contains(&name.as_str())
                    || name.ends_with(".model")
                    || name.ends_with(".tiktoken")
            })
            .collect();
        others.sort();
        if others.is_empty() {
            self.read(dir, TOKENIZER);
        } else {
            let found = others.join(", ");
            self.problems.push(format!("there is no {TOKENIZER}, and {found} cannot be read; {}", how_to_convert(dir)));
        }
    }

    fn field(&self, file: &str, key: &str) -> Option<&Value> {
        self.configs.get(file)?.get(key)
    }

    fn tokenizer_config(&self) -> Map<String, Value> {
        self.configs.get(CONFIG).and_then(Value::as_object).cloned().unwrap_or_default()
    }

    fn class(&self) -> TokenizerClass {
        TokenizerClass::of(self.configs.get(CONFIG), self.configs.get(MODEL_CONFIG))
    }

    /// `tokenizer_config.json` as Transformers uses it: `special_tokens_map.json` replaces its fields, unless it lists the added
    /// tokens itself.
    fn effective_config(&self) -> Map<String, Value> {
        let mut config = self.tokenizer_config();
        let map = self.configs.get(SPECIAL_TOKENS_MAP).and_then(Value::as_object);
        if config.get("added_tokens_decoder").is_some_and(Value::is_object) {
            return config;
        }
        config.remove("added_tokens_decoder");
        for (key, value) in map.into_iter().flatten() {
            let mut value = value.clone();
            mark_special(&mut value);
            if let (Some(Value::Array(listed)), Value::Array(more)) = (config.get_mut(key), &value) {
                more.iter().for_each(|token| {
                    if !listed.contains(token) {
                        listed.push(token.clone())
                    }
                });
            } else {
                config.insert(key.clone(), value);
            }
        }
        config
    }

    /// Adds the tokens that files name, and says which of them the vocabulary did not have.
    fn add_tokens(&mut self, tokenizer: &mut Tokenizer, config: &Map<String, Value>) {
        let existing: BTreeMap<u32, AddedToken> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        let files = TokenFiles { config, added_tokens: self.configs.get(ADDED_TOKENS), existing: &existing };
        let tokens = match files.tokens() {
            Ok(tokens) => tokens,
            Err(problems) => return self.problems.extend(problems),
        };
        let mut new: Vec<&str> = Vec::new();
        for token in &tokens {
            if tokenizer.token_to_id(&token.content).is_none() && !new.contains(&token.content.as_str()) {
                new.push(&token.content);
            }
        }
        if let Err(panic) = caught(|| tokenizer.add_tokens(&tokens)) {
            return self.problems.push(format!("the added tokens cannot be used: {panic}"));
        }
        if !new.is_empty() {
            let names: Vec<String> = new
                .iter()
                .take(5)
                .map(|text| format!("`{text}` ({})", tokenizer.token_to_id(text).unwrap_or_default()))
                .collect();
            let more = if new.len() > 5 { format!(" and {} more", new.len() - 5) } else { String::new() };
            self.notes.push(format!(
                "{TOKENIZER} lacks tokens that other files name: {}{more} added, like Transformers adds them",
                names.join(", ")
            ));
        }
    }

    /// Id of the special token `key` (`bos_token`).
    ///
    /// A `bos_token` of `null` means that the model has none, even if the model's configuration has an id: Qwen has a
    /// `bos_token_id` that it never saw at the start of a text. For other tokens, `null` means nothing.
    fn special(&self, tokenizer: &Tokenizer, config: &Map<String, Value>, key: &str) -> Option<u32> {
        match config.get(key) {
            Some(Value::Null) if key == "bos_token" => return None,
            Some(Value::Null) | None => {}
            Some(token) => return tokenizer.token_to_id(text_of(token)?),
        }
        if self.class() == TokenizerClass::Qwen2 && key == "bos_token" {
            return None;
        }
        let map = self.field(SPECIAL_TOKENS_MAP, key).and_then(text_of).and_then(|text| tokenizer.token_to_id(text));
        let id = format!("{key}_id");
        let files = [GENERATION_CONFIG, MODEL_CONFIG].into_iter();
        map.or_else(|| files.flat_map(|file| ids(self.field(file, &id))).next())
    }

    /// The tokens before and after a text.
    fn surroundings(
        &self,
        tokenizer: &Tokenizer,
        config: &Map<String, Value>,
        bos: Option<u32>,
        eos: Option<u32>,
    ) -> Result<[Vec<u32>; 2], String> {
        let class = self.class();
        let flag = |key: &str| config.get(key).map(|value| value.as_bool().unwrap_or(false));
        let (begins, ends) = (flag("add_bos_token"), flag("add_eos_token"));
        let tokens = |wanted: bool, token: Option<u32>| -> Vec<u32> { token.filter(|_| wanted).into_iter().collect() };
        if let Some(default) = class.begins_by_default() {
            return Ok([tokens(begins.unwrap_or(default), bos), tokens(ends.unwrap_or(false), eos)]);
        }
        let [mut before, after] = processed(tokenizer)?;
        let asks = begins == Some(true) && (class == TokenizerClass::Unnamed || self.of_byte_pairs);
        if before.is_empty() && asks {
            before = tokens(true, bos);
        }
        Ok([before, after])
    }

    /// The templates in files of their own, otherwise those of the configuration, otherwise the processor's.
    fn chat_templates(&mut self, config: &Map<String, Value>) -> ChatTemplates {
        let mut sources = std::mem::take(&mut self.templates);
        for file in [CONFIG, PROCESSOR_TEMPLATE] {
            if sources.is_empty() {
                sources = configured(self.field(file, "chat_template"));
            }
        }
        ChatTemplates::compile(sources, config)
    }

    /// Reads the templates that are files of their own, and the processor's.
    fn read_templates(&mut self, dir: &Path) {
        if let Ok(processor) = std::fs::read(dir.join(PROCESSOR_TEMPLATE))
            && let Ok(value) = serde_json::from_slice(&processor)
        {
            self.configs.insert(PROCESSOR_TEMPLATE, value);
        }
        if let Some(bytes) = self.read_if_present(dir, TEMPLATE) {
            self.templates.push(("default".to_owned(), String::from_utf8_lossy(&bytes).into_owned()));
        }
        let Ok(entries) = std::fs::read_dir(dir.join(MORE_TEMPLATES)) else { return };
        let mut files: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str().map(str::to_owned)).collect();
        files.sort();
        for file in files {
            let Some(name) = name_of_file(&file) else { continue };
            if let Some(bytes) = self.read(&dir.join(MORE_TEMPLATES), &file) {
                self.templates.push((name, String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
    }

    /// Makes the tokenizer of the files.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenizer`] with all problems.
    pub fn assemble(mut self, place: String) -> Result<TextTokenizer, DataError> {
        let Some((mut inner, growth)) = self.tokenizer.take() else {
            return Err(DataError::Tokenizer { place, problems: self.problems });
        };
        let mut config = self.effective_config();
        let class = self.class();
        for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            // A default that the vocabulary lacks is not meant.
            if let Some(text) = class.default_token(key).filter(|text| inner.token_to_id(text).is_some()) {
                config.entry(key).or_insert_with(|| text.into());
            }
        }
        if class == TokenizerClass::T5 {
            class::name_extra_ids(&mut config, |text| inner.token_to_id(text).is_some());
        }
        self.add_tokens(&mut inner, &config);
        set_prefix_space(&mut inner, class, &config);
        let [bos, eos, pad, unk] =
            ["bos_token", "eos_token", "pad_token", "unk_token"].map(|key| self.special(&inner, &config, key));
        let surroundings = caught(|| self.surroundings(&inner, &config, bos, eos)).and_then(|found| found);
        let [before, after] = surroundings.unwrap_or_else(|reason| {
            self.problems.push(format!("{TOKENIZER} is not a tokenizer: {reason}"));
            Default::default()
        });
        let chat_templates = self.chat_templates(&config);
        if !self.problems.is_empty() {
            return Err(DataError::Tokenizer { place, problems: self.problems });
        }
        let mut stops: Vec<u32> = eos.into_iter().chain(ids(self.field(GENERATION_CONFIG, "eos_token_id"))).collect();
        stops.sort_unstable();
        stops.dedup();
        // Made for WordPiece; Transformers 5 leaves the text of byte pairs as it is, too.
        let cleans_up = config.get("clean_up_tokenization_spaces") == Some(&Value::Bool(true))
            && !matches!(inner.get_model(), tokenizers::ModelWrapper::BPE(_));
        let notes = self.notes;
        Ok(TextTokenizer { inner, growth, bos, eos, pad, unk, stops, before, after, cleans_up, chat_templates, notes })
    }
}

/// What to run if a vocabulary cannot be read.
fn how_to_convert(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "make {TOKENIZER} with Transformers: python -c \"from transformers import AutoTokenizer; \
         AutoTokenizer.from_pretrained('{dir}').save_pretrained('{dir}')\""
    )
}

/// Marks tokens that are objects as special, like Transformers marks those of `special_tokens_map.json`.
fn mark_special(value: &mut Value) {
    match value {
        Value::Object(token) => drop(token.insert("special".to_owned(), true.into())),
        Value::Array(tokens) => tokens.iter_mut().for_each(mark_special),
        _ => {}
    }
}

/// Transformers sets whether a byte-level tokenizer puts a blank before the first word by the configuration, which says no if it says
/// nothing.
fn set_prefix_space(tokenizer: &mut Tokenizer, class: TokenizerClass, config: &Map<String, Value>) {
    let wanted = match config.get("add_prefix_space") {
        Some(value) => value.as_bool(),
        None => Some(false)
            .filter(|_| !matches!(class, TokenizerClass::Llama | TokenizerClass::T5 | TokenizerClass::Unnamed)),
    };
    if let (Some(PreTokenizerWrapper::ByteLevel(level)), Some(wanted)) = (tokenizer.get_pre_tokenizer(), wanted) {
        let level = level.add_prefix_space(wanted);
        tokenizer.with_pre_tokenizer(Some(level));
    }
}

/// What the post-processor puts before and after a text.
fn processed(tokenizer: &Tokenizer) -> Result<[Vec<u32>; 2], String> {
    let encode = |text: &str, around: bool| {
        let encoding = tokenizer.encode(text, around).map_err(|error| error.to_string())?;
        Ok::<_, String>(encoding.get_ids().to_vec())
    };
    for text in ["a", "0", "."] {
        let (Ok(whole), Ok(inside)) = (encode(text, true), encode(text, false)) else { continue };
        let found = whole.windows(inside.len().max(1)).rposition(|window| window == inside);
        if let Some(start) = found {
            return Ok([whole[..start].to_vec(), whole[start + inside.len()..].to_vec()]);
        }
    }
    Ok([encode("", true)?, Vec::new()])
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
