//! Reads `tokenizer.model`, SentencePiece's file, and makes the `tokenizer.json` of it that Transformers makes (`convert_slow_tokenizer.py`).

mod protobuf;

use std::cmp::Ordering;
use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use self::protobuf::{Fields, Wire};
use super::added::text_of;
use super::class::TokenizerClass;

/// SentencePiece's stand-in for a blank.
const BLANK: &str = "\u{2581}";
/// Kinds of pieces that are tokens of their own in a text.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
/// Kinds of models.
const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

/// The parts of a model that matter here.
#[derive(Debug, PartialEq)]
struct Model {
    pieces: Vec<Piece>,
    kind: u64,
    unk_id: u64,
    unk_piece: String,
    /// Table of SentencePiece's normalizer.
    table: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq)]
struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// A `tokenizer.json` of the bytes of `tokenizer.model`, without the tokens that other files add.
///
/// # Errors
///
/// One sentence on a file that is no such model.
pub(super) fn convert(bytes: &[u8], class: TokenizerClass, config: &Map<String, Value>) -> Result<Value, String> {
    if is_tiktoken(bytes) {
        return Err("it is a file of tiktoken".to_owned());
    }
    let model = Model::read(bytes)?;
    let converter = Converter { class: class_of(class, &model), config, model };
    converter.convert()
}

/// Whether the first line is a token in base64 and its number, like in the files of Llama 3.
fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\n').next().and_then(|line| std::str::from_utf8(line).ok());
    let Some((token, number)) = line.and_then(|line| line.split_once(' ')) else { return false };
    STANDARD.decode(token).is_ok() && number.trim().parse::<u32>().is_ok()
}

/// The class that a model is converted like. A file of byte pairs that names no class is like Llama's.
fn class_of(class: TokenizerClass, model: &Model) -> TokenizerClass {
    match class {
        TokenizerClass::Llama | TokenizerClass::Gemma | TokenizerClass::T5 => class,
        _ if model.kind == BPE => TokenizerClass::Llama,
        _ => TokenizerClass::Other,
    }
}

impl Model {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut model =
            Self { pieces: Vec::new(), kind: UNIGRAM, unk_id: 0, unk_piece: "<unk>".to_owned(), table: Vec::new() };
        for field in Fields::of(bytes) {
            match field? {
                (1, Wire::Bytes(piece)) => model.pieces.push(Piece::read(piece)?),
                (2, Wire::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Wire::Bytes(normalizer)) => {
                    for field in Fields::of(normalizer) {
                        if let (2, Wire::Bytes(table)) = field? {
                            model.table = table.to_vec();
                        }
                    }
                }
                _ => {}
            }
        }
        if model.pieces.is_empty() { Err("it has no pieces".to_owned()) } else { Ok(model) }
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Result<(), String> {
        for field in Fields::of(bytes) {
            match field? {
                (3, Wire::Number(kind)) => self.kind = kind,
                (40, Wire::Number(id)) => self.unk_id = id,
                (45, Wire::Bytes(text)) => self.unk_piece = protobuf::text(text)?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Piece {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: 1 };
        for field in Fields::of(bytes) {
            match field? {
                (1, Wire::Bytes(text)) => piece.text = protobuf::text(text)?,
                (2, Wire::Four(score)) => piece.score = f32::from_le_bytes(score),
                (3, Wire::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        if piece.score.is_finite() {
            Ok(piece)
        } else {
            Err(format!("the score of `{}` is {}", piece.text, piece.score))
        }
    }
}

struct Converter<'a> {
    class: TokenizerClass,
    config: &'a Map<String, Value>,
    model: Model,
}

impl Converter<'_> {
    fn convert(&self) -> Result<Value, String> {
        let vocabulary = self.vocabulary();
        let byte_fallback = matches!(self.class, TokenizerClass::Llama | TokenizerClass::Gemma);
        let model = match self.model.kind {
            UNIGRAM => {
                let vocab: Vec<_> = vocabulary.iter().map(|(text, score)| json!([text, f64::from(*score)])).collect();
                json!({"type": "Unigram", "unk_id": self.unk_id(), "vocab": vocab, "byte_fallback": byte_fallback})
            }
            BPE => {
                let ids: Map<String, Value> =
                    vocabulary.iter().enumerate().map(|(id, (text, _))| (text.clone(), id.into())).collect();
                json!({"type": "BPE", "dropout": null, "unk_token": self.model.unk_piece,
                    "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                    "byte_fallback": byte_fallback, "vocab": ids, "merges": self.merges(&vocabulary)})
            }
            other => return Err(format!("it is a model of kind {other}; unigram (1) and BPE (2) are supported")),
        };
        Ok(
            json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": self.added_tokens(&vocabulary),
            "normalizer": self.normalizer(), "pre_tokenizer": self.pre_tokenizer(),
            "post_processor": self.post_processor(&vocabulary), "decoder": self.decoder(), "model": model}),
        )
    }

    /// The tokens with their scores, in the order of their ids.
    fn vocabulary(&self) -> Vec<(String, f32)> {
        let mut list: Vec<(String, f32)> =
            self.model.pieces.iter().map(|piece| (piece.text.clone(), piece.score)).collect();
        match self.class {
            TokenizerClass::Llama => {
                let listed = self.config.get("added_tokens_decoder");
                for (id, entry) in list.iter_mut().enumerate().take(3) {
                    let renamed = listed.and_then(|listed| text_of(listed.get(id.to_string())?));
                    *entry = (renamed.map_or_else(|| entry.0.clone(), str::to_owned), 0.0);
                }
            }
            TokenizerClass::Gemma => {
                for (entry, key) in list.iter_mut().zip(["pad_token", "eos_token", "bos_token"]) {
                    let named = self.config.get(key).and_then(text_of).or_else(|| self.class.default_token(key));
                    *entry = (named.unwrap_or_default().to_owned(), 0.0);
                }
                if !list.iter().any(|(text, _)| text == "\t")
                    && let Some(tab) = list.iter_mut().find(|(text, _)| text == "<0x09>")
                {
                    *tab = ("\t".to_owned(), 0.0);
                }
            }
            TokenizerClass::T5 => {
                let ids = self.config.get("extra_ids").and_then(Value::as_u64).unwrap_or(100);
                list.extend((0..ids.min(100_000)).rev().map(|id| (format!("<extra_id_{id}>"), 0.0)));
            }
            _ => {}
        }
        list
    }

    fn unk_id(&self) -> u64 {
        match self.class {
            TokenizerClass::Llama => 0,
            TokenizerClass::Gemma => 3,
            _ => self.model.unk_id,
        }
    }

    /// The pairs to merge, the best score first: every way to make a token of two.
    fn merges(&self, vocabulary: &[(String, f32)]) -> Vec<[String; 2]> {
        let mut ids: HashMap<&str, usize> = HashMap::new();
        for (id, piece) in self.model.pieces.iter().enumerate() {
            ids.insert(&piece.text, id);
        }
        if self.class == TokenizerClass::Gemma
            && !ids.contains_key("\t")
            && let Some(id) = ids.get("<0x09>").copied()
        {
            ids.insert("\t", id);
        }
        // A text that stands twice has its last score and its first place.
        let mut scores: HashMap<&str, f32> = HashMap::new();
        let mut order = Vec::new();
        for (text, score) in vocabulary {
            if scores.insert(text, *score).is_none() {
                order.push(text.as_str());
            }
        }
        let mut merges: Vec<(&str, &str, f32)> = Vec::new();
        for text in order {
            let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
            let mut ways: Vec<(usize, usize, &str, &str)> =
                splits.filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?, left, right))).collect();
            ways.sort_by_key(|way| (way.0, way.1));
            merges.extend(ways.into_iter().map(|(_, _, left, right)| (left, right, scores[text])));
        }
        let length = |text: &str| text.chars().count();
        merges.sort_by(|a, b| {
            let by_score = b.2.partial_cmp(&a.2).unwrap_or(Ordering::Equal);
            by_score.then_with(|| length(b.0).cmp(&length(a.0))).then_with(|| length(b.1).cmp(&length(a.1)))
        });
        merges.into_iter().map(|(left, right, _)| [left.to_owned(), right.to_owned()]).collect()
    }

    /// Pieces that are tokens of their own in a text.
    fn added_tokens(&self, vocabulary: &[(String, f32)]) -> Vec<Value> {
        let turns = ["<start_of_turn>", "<end_of_turn>"];
        let mut tokens = Vec::new();
        for piece in self.model.pieces.iter().filter(|piece| matches!(piece.kind, CONTROL | USER_DEFINED)) {
            let special =
                piece.kind == CONTROL || self.class == TokenizerClass::Gemma && turns.contains(&piece.text.as_str());
            // By the text: a piece that was renamed above is no token any more.
            if let Some(id) = vocabulary.iter().position(|(text, _)| *text == piece.text) {
                tokens.push(
                    json!({"id": id, "content": piece.text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special}),
                );
            }
        }
        tokens
    }

    fn legacy(&self) -> bool {
        self.config.get("legacy").and_then(Value::as_bool).unwrap_or(true)
    }

    fn adds_blank(&self) -> bool {
        match self.config.get("add_prefix_space") {
            None => true,
            Some(value) => value.as_bool().unwrap_or(self.class == TokenizerClass::T5),
        }
    }

    /// Where a blank is put before a text.
    fn scheme(&self) -> &'static str {
        match (self.adds_blank(), self.legacy()) {
            (false, _) => "never",
            (true, true) => "always",
            (true, false) => "first",
        }
    }

    fn normalizer(&self) -> Value {
        let blanks = json!({"type": "Replace", "pattern": {"String": " "}, "content": BLANK});
        match self.class {
            TokenizerClass::Llama if !self.legacy() => Value::Null,
            TokenizerClass::Llama if self.adds_blank() => {
                json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": BLANK}, blanks]})
            }
            TokenizerClass::Llama => json!({"type": "Sequence", "normalizers": [blanks]}),
            TokenizerClass::Gemma => blanks,
            _ => {
                let mut steps = Vec::new();
                if !self.model.table.is_empty() {
                    let table = STANDARD.encode(&self.model.table);
                    steps.push(json!({"type": "Precompiled", "precompiled_charsmap": table}));
                }
                steps.push(json!({"type": "Strip", "strip_left": false, "strip_right": true}));
                steps.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": BLANK}));
                json!({"type": "Sequence", "normalizers": steps})
            }
        }
    }

    fn pre_tokenizer(&self) -> Value {
        let metaspace = |split: bool| json!({"type": "Metaspace", "replacement": BLANK, "prepend_scheme": self.scheme(), "split": split});
        match self.class {
            TokenizerClass::Llama if self.legacy() => Value::Null,
            TokenizerClass::Llama => metaspace(false),
            TokenizerClass::Gemma => {
                json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false})
            }
            _ => metaspace(true),
        }
    }

    fn decoder(&self) -> Value {
        let mut steps = vec![
            json!({"type": "Replace", "pattern": {"String": BLANK}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        match self.class {
            TokenizerClass::Llama | TokenizerClass::Gemma => {
                if self.class == TokenizerClass::Llama && self.adds_blank() {
                    steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
                }
                json!({"type": "Sequence", "decoders": steps})
            }
            _ => json!({"type": "Metaspace", "replacement": BLANK, "prepend_scheme": self.scheme(), "split": true}),
        }
    }

    fn post_processor(&self, vocabulary: &[(String, f32)]) -> Value {
        let end = vocabulary.iter().position(|(text, _)| text == "</s>");
        match (self.class, end) {
            (TokenizerClass::T5, Some(id)) => {
                let special = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
                let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
                json!({"type": "TemplateProcessing", "single": [text("A"), special],
                    "pair": [text("A"), special, text("B"), special],
                    "special_tokens": {"</s>": {"id": "</s>", "ids": [id], "tokens": ["</s>"]}}})
            }
            _ => Value::Null,
        }
    }
}

#[cfg(test)]
mod tests;
