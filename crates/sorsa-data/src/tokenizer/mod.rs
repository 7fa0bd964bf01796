//! Turns text into token ids and back, with the tokenizer files of a checkpoint.

mod added;
mod byte_pairs;
mod chat_templates;
mod class;
mod folder;
mod growth;
mod sentencepiece;
mod stream;

use std::path::Path;

use tokenizers::{Encoding, Tokenizer};

use self::chat_templates::ChatTemplates;
use self::folder::TokenizerFiles;
use self::growth::Growth;
use crate::panics::caught;
use crate::{ChatTemplate, DataError};

pub use stream::{DecodeStream, StopFilter};

/// A tokenizer with its special tokens and chat template.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    growth: Growth,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    stops: Vec<u32>,
    before: Vec<u32>,
    after: Vec<u32>,
    cleans_up: bool,
    chat_templates: ChatTemplates,
    notes: Vec<String>,
}

impl TextTokenizer {
    /// Reads a tokenizer's folder like `AutoTokenizer` of Transformers 4.57: `tokenizer.json`, the tokens that
    /// `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` add to it, and what the tokenizer's class
    /// decides. Without `tokenizer.json`, it reads SentencePiece's `tokenizer.model`, or `vocab.json` and `merges.txt`.
    ///
    /// A special token that none of these files names has the id that `generation_config.json` or `config.json` gives. The chat
    /// template comes from `chat_template.jinja` or `tokenizer_config.json`. All files but the vocabulary may be absent.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenizer`] with every missing or broken file.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, DataError> {
        let dir = dir.as_ref();
        TokenizerFiles::read_folder(dir).assemble(dir.display().to_string())
    }

    /// Reads the bytes of `tokenizer.json` and, for the special tokens, of `tokenizer_config.json`.
    ///
    /// # Errors
    ///
    /// Those of [`TextTokenizer::from_dir`].
    pub fn from_bytes(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Self, DataError> {
        let mut files = TokenizerFiles::default();
        files.tokenizer(folder::TOKENIZER, tokenizer);
        if let Some(config) = config {
            files.config(folder::CONFIG, config);
        }
        files.assemble("memory".to_owned())
    }

    /// Like [`TextTokenizer::from_dir`], with files that are no files: their names in a folder and their contents. `place` is where they
    /// come from, for errors.
    ///
    /// # Errors
    ///
    /// Those of [`TextTokenizer::from_dir`].
    pub fn from_contents(place: &Path, contents: &[(&str, Vec<u8>)]) -> Result<Self, DataError> {
        TokenizerFiles::of_contents(contents).assemble(place.display().to_string())
    }

    /// The ids of `text`, without begin and end tokens. The text of a special token inside it becomes that token.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenize`] if the tokenizer has neither an id for a part of the text nor an unknown token, or if its
    /// normalizer lengthens the text beyond measure.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.growth.check(text, self.inner.get_normalizer()).map_err(failed)?;
        let encoding = caught(|| self.inner.encode_fast(text, false)).map_err(failed)?;
        Ok(encoding.map_err(failed)?.get_ids().to_vec())
    }

    /// Like [`TextTokenizer::encode`], with the byte range of each token in the text.
    pub(crate) fn encode_with_offsets(&self, text: &str) -> Result<Encoding, DataError> {
        self.growth.check(text, self.inner.get_normalizer()).map_err(failed)?;
        caught(|| self.inner.encode(text, false)).map_err(failed)?.map_err(failed)
    }

    /// The text of `ids`, without special tokens. It may begin with another number of blanks than the same ids after others:
    /// [`continuation`](Self::continuation) is the text of ids that follow a prompt.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenize`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        let text = caught(|| self.inner.decode(ids, true)).map_err(failed)?.map_err(failed)?;
        Ok(if self.cleans_up { cleaned_up(&text) } else { text })
    }

    /// The text that `new` adds to `prompt`: both are decoded together, as a decoder of SentencePiece's kind removes the first blank
    /// of what it is given, and a character may have bytes in several tokens.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenize`] if the tokenizer's decoder fails.
    pub fn continuation(&self, prompt: &[u32], new: &[u32]) -> Result<String, DataError> {
        let before = self.decode(prompt)?;
        let whole = self.decode(&[prompt, new].concat())?;
        Ok(added_text(&before, &whole).to_owned())
    }

    /// A decoder for tokens that arrive one by one after the tokens of `prompt`.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenize`] if the tokenizer's decoder fails.
    pub fn decode_stream(&self, prompt: &[u32]) -> Result<DecodeStream<'_>, DataError> {
        DecodeStream::new(self, prompt)
    }

    /// The text of a token as the vocabulary has it; of special tokens too.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
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

    /// The tokens that the tokenizer itself puts before a text: the begin token for Llama's, none for GPT-2's.
    pub fn before(&self) -> &[u32] {
        &self.before
    }

    /// The tokens that the tokenizer itself puts after a text; usually none.
    pub fn after(&self) -> &[u32] {
        &self.after
    }

    /// Number of ids, added tokens included. A model's embedding may be larger, or lack rows for tokens that no text uses.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The first added token in `text`, and where it begins.
    pub(crate) fn first_added_token(&self, text: &str) -> Option<(usize, u32)> {
        let added = self.inner.get_added_tokens_decoder();
        let found = added.iter().filter_map(|(id, token)| Some((text.find(&token.content)?, token.content.len(), *id)));
        found.min_by_key(|(start, length, _)| (*start, std::cmp::Reverse(*length))).map(|(start, _, id)| (start, id))
    }

    /// The default chat template.
    ///
    /// # Errors
    ///
    /// [`DataError::NoChatTemplate`] if the checkpoint has none, [`DataError::UnknownChatTemplate`] if all of them have other
    /// names, [`DataError::ChatTemplate`] if it cannot be compiled.
    pub fn chat_template(&self) -> Result<&ChatTemplate, DataError> {
        self.chat_templates.default()
    }

    /// The chat template called `name`.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownChatTemplate`] with the names that there are, [`DataError::ChatTemplate`] if it cannot be compiled.
    pub fn chat_template_named(&self, name: &str) -> Result<&ChatTemplate, DataError> {
        self.chat_templates.named(name)
    }

    /// What people should know of the files: a sentence for each thing that is odd and does not matter to most.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// What `whole` has after `before`. If `whole` does not begin with it, what comes after their common beginning.
fn added_text<'a>(before: &str, whole: &'a str) -> &'a str {
    let common = before.chars().zip(whole.chars()).take_while(|(a, b)| a == b);
    &whole[common.map(|(a, _)| a.len_utf8()).sum()..]
}

/// The text without blanks before punctuation, by the rules of Transformers' `clean_up_tokenization`.
fn cleaned_up(text: &str) -> String {
    const RULES: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    RULES.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn failed(error: impl ToString) -> DataError {
    DataError::Tokenize { reason: error.to_string() }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::Value;

    use super::*;

    /// A byte-level tokenizer without merges: `<s>` 0, `</s>` 1, then one id for each byte. It puts `<s>` before a text.
    pub(crate) fn bytes() -> TextTokenizer {
        bytes_with(r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true}"#)
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
        assert_eq!((tokenizer.vocab_size(), tokenizer.before(), tokenizer.after()), (258, &[0][..], &[][..]));
    }

    #[test]
    fn a_stream_gives_out_only_whole_characters_and_in_all_the_same_text() {
        let tokenizer = bytes();
        let text = "a 🍎 é\u{FFFD}b";
        let mut stream = tokenizer.decode_stream(&[]).unwrap();
        let mut pieces = Vec::new();
        for id in tokenizer.encode(text).unwrap() {
            pieces.push(stream.push(id).unwrap());
        }
        assert_eq!(pieces.concat(), text);
        assert_eq!(pieces[2..6], ["", "", "", "🍎"]);
        assert_eq!(stream.finish().unwrap(), "");

        let mut cut = tokenizer.decode_stream(&[]).unwrap();
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
        let mut stream = tokenizer.decode_stream(&[]).unwrap();
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
        assert!(tokenizer.before().is_empty(), "there is no begin token to add");
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
    fn templates_are_chosen_by_their_names() {
        let tokenizer = |files: &[(&str, &str)]| TextTokenizer::from_dir(folder(files).path()).unwrap();
        let named = r#"{"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "rag", "template": "R"}]}"#;
        let without_default = tokenizer(&[("tokenizer_config.json", named)]);
        insta::assert_snapshot!(without_default.chat_template().unwrap_err(), @"the tokenizer has no chat template named `default`; it has rag, tool_use");
        assert_eq!(without_default.chat_template_named("rag").unwrap().render(&[], false).unwrap(), "R");
        let processor = tokenizer(&[("chat_template.json", r#"{"chat_template": "P"}"#)]);
        assert_eq!(processor.chat_template().unwrap().render(&[], false).unwrap(), "P");
        assert!(matches!(tokenizer(&[]).chat_template(), Err(DataError::NoChatTemplate)));

        let folder = folder(&[("chat_template.jinja", "D")]);
        std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
        std::fs::write(folder.path().join("additional_chat_templates/tool_use.jinja"), "T").unwrap();
        let template = TextTokenizer::from_dir(folder.path()).unwrap().chat_template().unwrap().clone();
        let mut conversation = crate::Conversation::default();
        assert_eq!(template.render_conversation(&conversation).unwrap(), "D");
        conversation.variables.insert("tools".into(), serde_json::json!([{}]));
        assert_eq!(template.render_conversation(&conversation).unwrap(), "T");
    }

    #[test]
    fn a_template_sees_every_special_token_of_the_tokenizer() {
        let config = r#"{"bos_token": null, "eos_token": {"content": "</s>"}, "pad_token": "<s>", "unk_token": "a",
            "additional_special_tokens": ["b", {"content": "c"}],
            "chat_template": "{{ bos_token is defined }} {{ eos_token }} {{ pad_token }} {{ unk_token }} {{ additional_special_tokens | join }}"}"#;
        let tokenizer = TextTokenizer::from_dir(folder(&[("tokenizer_config.json", config)]).path()).unwrap();
        assert_eq!(tokenizer.chat_template().unwrap().render(&[], false).unwrap(), "False </s> <s> a bc");
    }

    #[test]
    fn a_token_or_a_template_that_nobody_needs_stops_nothing() {
        let config = r#"{"eos_token": "</s>", "pad_token": "[PAD]", "unk_token": "", "chat_template": "{% if %}"}"#;
        let folder = folder(&[("tokenizer_config.json", config)]);
        let tokenizer = TextTokenizer::from_dir(folder.path()).unwrap();
        assert_eq!(tokenizer.encode("a").unwrap().len(), 1);
        assert_eq!((tokenizer.pad(259), tokenizer.pad(258), tokenizer.unk()), (258, 1, None));
        insta::assert_snapshot!(tokenizer.notes().join("\n"), @"tokenizer.json lacks tokens that other files name: `[PAD]` (258) added, like Transformers adds them");
        assert!(matches!(tokenizer.chat_template(), Err(DataError::ChatTemplate { .. })));
    }

    #[test]
    fn a_folder_without_a_vocabulary_says_how_to_make_one() {
        let error = |name: &str, content: &str| {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(name), content).unwrap();
            let error = TextTokenizer::from_dir(folder.path()).unwrap_err().to_string();
            error.replace(folder.path().to_str().unwrap(), "DIR")
        };
        insta::assert_snapshot!(error("vocab.txt", "a"), @r#"
        cannot use the tokenizer in DIR:
          there is no tokenizer.json, and vocab.txt cannot be read; make tokenizer.json with Transformers: python -c "from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('DIR').save_pretrained('DIR')"
        "#);
        let tiktoken = error("tokenizer.model", "IQ== 0\nIg== 1\n");
        assert!(tiktoken.contains("tokenizer.model cannot be read, it is a file of tiktoken"), "{tiktoken}");
        assert!(tiktoken.contains("AutoTokenizer.from_pretrained('DIR').save_pretrained('DIR')"), "{tiktoken}");
    }

    #[test]
    fn a_damaged_tokenizer_is_an_error_and_no_panic() {
        let json: Value = serde_json::from_str(&bytes().inner.to_string(false).unwrap()).unwrap();
        let error = |change: &dyn Fn(&mut Value)| {
            let mut json = json.clone();
            change(&mut json);
            TextTokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap_err().to_string()
        };
        let mut table = vec![8, 0, 0, 0];
        table.extend([0xFF; 8]);
        let table = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [&table[..], b"a\0"].concat());
        let damaged = error(&|json| {
            json["normalizer"] = serde_json::json!({"type": "Precompiled", "precompiled_charsmap": table})
        });
        assert!(damaged.contains("tokenizer.json is not a tokenizer"), "{damaged}");
        let special = serde_json::json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let text = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
        let template = serde_json::json!({"type": "TemplateProcessing", "single": [special, text], "pair": [text], "special_tokens": {}});
        let missing = error(&|json| json["post_processor"] = template.clone());
        assert!(missing.contains("tokenizer.json is not a tokenizer"), "{missing}");
    }

    #[test]
    fn text_of_word_pieces_is_cleaned_up_and_that_of_byte_pairs_is_not() {
        let clean = "Is it? No, it's not! I don't. 'a'";
        assert_eq!(cleaned_up("Is it ? No , it 's not ! I do n't . 'a'"), clean);
        let config = r#"{"clean_up_tokenization_spaces": true}"#;
        let text = "if a != b : return 'x .'";
        let tokenizer = bytes_with(config);
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
        let words = br#"{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "decoder": {"type": "WordPiece", "prefix": "@@", "cleanup": false},
            "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "it": 1, ".": 2, "is": 3}}}"#;
        let tokenizer = TextTokenizer::from_bytes(words, Some(config.as_bytes())).unwrap();
        let ids = tokenizer.encode("it is . it").unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), "it is. it");
        let mut stream = tokenizer.decode_stream(&ids[..2]).unwrap();
        let parts: String = ids[2..].iter().map(|id| stream.push(*id).unwrap()).collect();
        assert_eq!(parts + &stream.finish().unwrap(), tokenizer.continuation(&ids[..2], &ids[2..]).unwrap());
        assert_eq!(tokenizer.continuation(&ids[..2], &ids[2..]).unwrap(), ". it");
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
            ("tokenizer_config.json", r#"{"bos_token": 7, "additional_special_tokens": [{"text": "a"}]}"#),
            ("special_tokens_map.json", "{"),
            ("added_tokens.json", r#"["a"]"#),
        ]);
        insta::assert_snapshot!(error(&broken), @r#"
        cannot use the tokenizer in DIR:
          special_tokens_map.json is not JSON: EOF while parsing an object at line 1 column 1
          added_tokens.json should be an object
          tokenizer_config.json: `bos_token` should be a text or a token, found 7
          tokenizer_config.json: `additional_special_tokens` should be a text or a token, found {"text":"a"}
        "#);
    }
}
