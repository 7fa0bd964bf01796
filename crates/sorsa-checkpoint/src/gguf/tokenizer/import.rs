//! From the tokenizer in a GGUF file's metadata to `tokenizer.json` and the files beside it.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::super::import::whole;
use super::super::{Array, GgufFile, Value};
use super::TokenKind;
use super::pre::pre_tokenizer;

/// Bytes of a token of SentencePiece's kind at most: all ways to make it of two others are looked for.
const LONGEST_PIECE: usize = 256;
/// SentencePiece's stand-in for a space.
const SPACE: &str = "\u{2581}";

/// Names and contents of the tokenizer's files; none if the file has no tokenizer. The error lists every fault.
pub(in super::super) fn files(file: &GgufFile) -> Result<Vec<(&'static str, Json)>, Vec<String>> {
    let text = |key: &str| match file.get(&format!("tokenizer.{key}")) {
        Some(Value::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let model = match text("ggml.model") {
        None | Some("no_vocab") => return Ok(Vec::new()),
        Some(model) => model,
    };
    let vocabulary = Vocabulary::read(file)?;
    let (mut tokenizer, normalizer_adds_space) = match model {
        "gpt2" => (byte_level(file, &vocabulary, text("ggml.pre").unwrap_or("default"))?, false),
        "llama" => sentence_piece(file, &vocabulary)?,
        other => return Err(vec![format!("`tokenizer.ggml.model` should be gpt2 or llama, found \"{other}\"")]),
    };
    let special = Special::read(file, &vocabulary, model);
    tokenizer["added_tokens"] = vocabulary.added();
    tokenizer["post_processor"] = special.post_processor(&vocabulary, model == "gpt2");
    let mut config = special.config(&vocabulary);
    config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
    if normalizer_adds_space {
        config.insert("add_prefix_space".to_owned(), true.into());
    }
    if let Some(template) = text("chat_template") {
        config.insert("chat_template".to_owned(), template.into());
    }
    Ok(vec![("tokenizer.json", tokenizer), ("tokenizer_config.json", Json::Object(config))])
}

/// The tokens by id.
struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: Vec<TokenKind>,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a GgufFile) -> Result<Self, Vec<String>> {
        let Some(Value::Array(Array::String(tokens))) = file.get("tokenizer.ggml.tokens") else {
            return Err(vec!["`tokenizer.ggml.tokens` should be an array of strings".to_owned()]);
        };
        let rows = file.info("token_embd.weight").and_then(|tensor| tensor.shape.first().copied());
        let kinds: Vec<TokenKind> = match file.get("tokenizer.ggml.token_type") {
            None => vec![TokenKind::Normal; tokens.len()],
            Some(Value::Array(Array::I32(kinds))) => kinds.iter().map(|kind| TokenKind::from_number(*kind)).collect(),
            Some(_) => return Err(vec!["`tokenizer.ggml.token_type` should be an array of i32".to_owned()]),
        };
        if kinds.len() != tokens.len() || rows.is_some_and(|rows| rows != tokens.len()) {
            return Err(vec![format!(
                "the tokenizer has {} tokens and {} types of them, the embedding {} rows",
                tokens.len(),
                kinds.len(),
                rows.unwrap_or(0)
            )]);
        }
        Ok(Self { tokens, kinds })
    }

    fn ids(&self) -> HashMap<&'a str, usize> {
        self.tokens.iter().enumerate().rev().map(|(id, token)| (token.as_str(), id)).collect()
    }

    /// `model.vocab` of `tokenizer.json`: all tokens but those that only fill the embedding.
    fn json(&self) -> Json {
        let used = self.tokens.iter().zip(&self.kinds).enumerate().filter(|(_, (_, kind))| **kind != TokenKind::Unused);
        Json::Object(used.map(|(id, (token, _))| (token.clone(), id.into())).collect())
    }

    fn added(&self) -> Json {
        let added = |(id, (token, kind)): (usize, (&String, &TokenKind))| {
            let special = match kind {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => return None,
            };
            Some(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special}))
        };
        self.tokens.iter().zip(&self.kinds).enumerate().filter_map(added).collect()
    }

    fn of_kind(&self, kind: TokenKind) -> Option<&str> {
        let at = self.kinds.iter().position(|found| *found == kind)?;
        Some(&self.tokens[at])
    }
}

/// Byte-pair encoding of bytes, with the merges that the file lists.
fn byte_level(file: &GgufFile, vocabulary: &Vocabulary<'_>, pre: &str) -> Result<Json, Vec<String>> {
    let Some(Value::Array(Array::String(merges))) = file.get("tokenizer.ggml.merges") else {
        return Err(vec!["`tokenizer.ggml.merges` should be an array of strings".to_owned()]);
    };
    let pair = |merge: &String| merge.split_once(' ').map(|(left, right)| json!([left, right]));
    let merges: Option<Vec<Json>> = merges.iter().map(pair).collect();
    let merges = merges.ok_or_else(|| vec!["a merge should be two tokens with a space between".to_owned()])?;
    let Some((steps, whole_words)) = pre_tokenizer(pre) else {
        return Err(vec![format!("the pre-tokenizer `{pre}` is not known")]);
    };
    let normalizer = if pre == "qwen2" { json!({"type": "NFC"}) } else { Json::Null };
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": steps, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words,
            "vocab": vocabulary.json(), "merges": merges},
    }))
}

/// SentencePiece's byte-pair encoding, whose merges follow from the scores; and whether a space is put before a text.
fn sentence_piece(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Result<(Json, bool), Vec<String>> {
    let scores = match file.get("tokenizer.ggml.scores") {
        Some(Value::Array(Array::F32(scores))) if scores.len() == vocabulary.tokens.len() => scores,
        _ => return Err(vec!["`tokenizer.ggml.scores` should be one f32 for each token".to_owned()]),
    };
    if let Some(id) = vocabulary.tokens.iter().position(|token| token.len() > LONGEST_PIECE) {
        let found = vocabulary.tokens[id].len();
        return Err(vec![format!("token {id} should have at most {LONGEST_PIECE} bytes, found {found}")]);
    }
    let adds_space = !matches!(file.get("tokenizer.ggml.add_space_prefix"), Some(Value::Bool(false)));
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let prepend = json!({"type": "Prepend", "prepend": SPACE});
    let back = json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "});
    let mut decoders = vec![back, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if adds_space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let normalizers = if adds_space { vec![prepend, replace] } else { vec![replace] };
    let byte_fallback = vocabulary.kinds.contains(&TokenKind::Byte);
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": vocabulary.of_kind(TokenKind::Unknown),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": byte_fallback,
            "ignore_merges": false, "vocab": vocabulary.json(), "merges": merges(vocabulary, scores)},
    });
    Ok((tokenizer, adds_space))
}

/// All ways to make a token from two others, the best score first. Transformers orders them alike.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Vec<Json> {
    let ids = vocabulary.ids();
    let mut found: Vec<(usize, &str, &str)> = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        if vocabulary.kinds[id] != TokenKind::Normal {
            continue;
        }
        let splits = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut splits: Vec<(&str, &str)> =
            splits.filter(|(l, r)| ids.contains_key(l) && ids.contains_key(r)).collect();
        splits.sort_by_key(|(left, right)| (ids[left], ids[right]));
        found.extend(splits.into_iter().map(|(left, right)| (id, left, right)));
    }
    let length = |text: &str| text.chars().count();
    found.sort_by(|(a, a_left, a_right), (b, b_left, b_right)| {
        let by_score = scores[*b].total_cmp(&scores[*a]);
        by_score.then(length(b_left).cmp(&length(a_left))).then(length(b_right).cmp(&length(a_right)))
    });
    found.into_iter().map(|(_, left, right)| json!([left, right])).collect()
}

/// Tokens that begin, end and fill a text.
struct Special {
    named: Vec<(&'static str, usize)>,
    adds_bos: bool,
    adds_eos: bool,
}

impl Special {
    fn read(file: &GgufFile, vocabulary: &Vocabulary<'_>, model: &str) -> Self {
        let id = |key: &str| {
            let id = file.get(&format!("tokenizer.ggml.{key}_token_id")).and_then(whole)?;
            usize::try_from(id).ok().filter(|id| *id < vocabulary.tokens.len())
        };
        let names = [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")];
        let named = names.into_iter().filter_map(|(name, key)| Some((name, id(key)?))).collect();
        // llama.cpp's own default if the file is silent.
        let flag = |key: &str, default: bool| match file.get(&format!("tokenizer.ggml.{key}")) {
            Some(Value::Bool(flag)) => *flag,
            _ => default,
        };
        Self { named, adds_bos: flag("add_bos_token", model == "llama"), adds_eos: flag("add_eos_token", false) }
    }

    fn id(&self, name: &str) -> Option<usize> {
        self.named.iter().find(|(found, _)| *found == name).map(|(_, id)| *id)
    }

    /// Puts the first and the last token of a text.
    fn post_processor(&self, vocabulary: &Vocabulary<'_>, byte_level: bool) -> Json {
        let bos = self.id("bos_token").filter(|_| self.adds_bos);
        let eos = self.id("eos_token").filter(|_| self.adds_eos);
        if bos.is_none() && eos.is_none() {
            let keep_offsets =
                json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
            return if byte_level { keep_offsets } else { Json::Null };
        }
        let token = |id: usize, text: u8| json!({"SpecialToken": {"id": vocabulary.tokens[id], "type_id": text}});
        let text = |name: &str, text: u8| {
            let sequence = json!({"Sequence": {"id": name, "type_id": text}});
            [bos.map(|id| token(id, text)), Some(sequence), eos.map(|id| token(id, text))]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
        };
        let entry = |id: usize| {
            let content = &vocabulary.tokens[id];
            (content.clone(), json!({"id": content, "ids": [id], "tokens": [content]}))
        };
        let special: Map<String, Json> = bos.into_iter().chain(eos).map(entry).collect();
        let pair = [text("A", 0), text("B", 1)].concat();
        json!({"type": "TemplateProcessing", "single": text("A", 0), "pair": pair, "special_tokens": special})
    }

    /// The fields of `tokenizer_config.json`.
    fn config(&self, vocabulary: &Vocabulary<'_>) -> Map<String, Json> {
        let tokens = self.named.iter().map(|(name, id)| ((*name).to_owned(), vocabulary.tokens[*id].clone().into()));
        let mut config: Map<String, Json> = tokens.collect();
        config.insert("add_bos_token".to_owned(), self.adds_bos.into());
        config.insert("add_eos_token".to_owned(), self.adds_eos.into());
        config
    }
}
