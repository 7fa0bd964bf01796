//! Tokenizers in small, as they are written.

use serde_json::json;

use super::super::Array;
use super::*;

fn value(out: &TokenizerMetadata, key: &str) -> Option<Value> {
    let key = format!("tokenizer.{key}");
    out.metadata.iter().find(|(found, _)| *found == key).map(|(_, value)| value.clone())
}

fn texts(list: &[&str]) -> Value {
    list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>().into()
}

fn special(json: &Json, config: Json) -> Special {
    Special::parse(json, &[config, Json::Null, Json::Null, Json::Null], None, usize::MAX)
}

fn byte_level() -> Json {
    json!({
        "added_tokens": [{"id": 3, "content": "<s>", "special": true}, {"id": 4, "content": "<think>", "special": false}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    })
}

/// As SentencePiece models are converted: all ways to make a token, best token first.
fn sentence_piece() -> Json {
    json!({
        "added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "</s>", "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true,
            "vocab": {"<unk>": 0, "</s>": 1, "<0x0A>": 2, "a": 3, "b": 4, "c": 5, "bc": 6, "ab": 7, "abc": 8},
            "merges": ["b c", "a b", "a bc", "ab c"]},
    })
}

#[test]
fn bytes_become_gpt2_with_merges_and_types() {
    let json = byte_level();
    let out = convert(&json, &special(&json, json!({"bos_token": "<s>", "add_eos_token": true})), 6).unwrap();
    assert_eq!(value(&out, "ggml.model"), Some("gpt2".into()));
    assert_eq!(value(&out, "ggml.pre"), Some("gpt-2".into()));
    assert_eq!(value(&out, "ggml.tokens"), Some(texts(&["a", "b", "ab", "<s>", "<think>", "[PAD5]"])));
    assert_eq!(value(&out, "ggml.token_type"), Some(vec![1i32, 1, 1, 3, 4, 5].into()));
    assert_eq!(value(&out, "ggml.merges"), Some(texts(&["a b"])));
    assert_eq!(value(&out, "ggml.bos_token_id"), Some(3u32.into()));
    assert_eq!(value(&out, "ggml.add_bos_token"), Some(true.into()));
    assert_eq!(value(&out, "ggml.add_eos_token"), Some(false.into()), "there is no end token to add");
    assert!(out.notes.is_empty(), "{:?}", out.notes);
}

#[test]
fn characters_become_llama_with_scores() {
    let json = sentence_piece();
    let out = convert(&json, &special(&json, json!({"eos_token": {"content": "</s>"}})), 9).unwrap();
    assert_eq!(value(&out, "ggml.model"), Some("llama".into()));
    assert_eq!(value(&out, "ggml.token_type"), Some(vec![2i32, 3, 6, 1, 1, 1, 1, 1, 1].into()));
    let Some(Value::Array(Array::F32(scores))) = value(&out, "ggml.scores") else { panic!("no scores") };
    assert_eq!(scores[6..], [0.0, -1.0, -2.0]);
    assert!(scores[..6].iter().all(|score| *score < -1e6));
    assert_eq!(value(&out, "ggml.add_space_prefix"), Some(true.into()));
    assert_eq!(value(&out, "ggml.eos_token_id"), Some(1u32.into()));
    assert_eq!(out.notes.len(), 1, "255 bytes are missing: {:?}", out.notes);
}

#[test]
fn a_pair_that_llama_cpp_merges_and_the_list_does_not_have_is_reported() {
    let mut json = sentence_piece();
    json["model"]["merges"] = json!(["b c", "a b", "ab c"]);
    let out = convert(&json, &special(&json, Json::Null), 9).unwrap();
    assert!(out.notes.iter().any(|note| note.contains("merges 1 pairs")), "{:?}", out.notes);
}

#[test]
fn tokens_beyond_the_embedding_are_left_out_with_a_word() {
    let json = byte_level();
    let out = convert(&json, &Special::default(), 3).unwrap();
    assert_eq!(value(&out, "ggml.tokens"), Some(texts(&["a", "b", "ab"])));
    assert_eq!(out.notes, ["2 tokens beyond the embedding's 3 rows are left out: `<s>` (3), `<think>` (4)"]);
}

#[test]
fn pre_tokenizers_are_told_apart() {
    let chosen = |pre: Json, whole: bool| {
        let mut json = byte_level();
        json["pre_tokenizer"] = pre;
        json["model"]["ignore_merges"] = whole.into();
        let (name, notes) = pre::choose(&json);
        (name, notes.len())
    };
    let split = |digits: &str| {
        let start = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
        let pattern = format!("{start}{digits}| ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+");
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})
    };
    assert_eq!(chosen(split(r"\p{N}{1,3}"), true), ("llama-bpe", 0));
    assert_eq!(chosen(split(r"\p{N}{1,3}"), false), ("dbrx", 0));
    assert_eq!(chosen(split(r"\p{N}"), false), ("qwen2", 0));
    assert_eq!(chosen(split(r"\p{N}{2}"), false), ("default", 1));
    let digits = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true}, {"type": "ByteLevel", "use_regex": true}]});
    assert_eq!(chosen(digits, false), ("smollm", 0));
    assert_eq!(chosen(json!({"type": "ByteLevel", "add_prefix_space": true}), false), ("gpt-2", 1));
}

#[test]
fn other_tokenizers_and_contradictions_are_refused() {
    let refused = |json: &Json, rows| convert(json, &Special::default(), rows).err().unwrap();
    let unigram = json!({"model": {"type": "Unigram", "vocab": []}});
    assert!(refused(&unigram, 5)[0].contains("Unigram"));
    let mut neither = byte_level();
    neither["pre_tokenizer"] = Json::Null;
    assert!(refused(&neither, 5)[0].contains("ByteLevel"));
    let mut clash = byte_level();
    clash["model"]["vocab"]["c"] = 1.into();
    assert!(refused(&clash, 5)[0].contains("`b` and `c`"));
}

#[test]
fn special_tokens_and_templates_come_from_the_files_beside_the_tokenizer() {
    let json = byte_level();
    let config = json!({"bos_token": null, "chat_template": [{"name": "default", "template": "T"}, {"name": "tools", "template": "U"}]});
    let files = [config, json!({"pad_token": "a"}), json!({"bos_token_id": 3, "eos_token_id": [4, 3]}), Json::Null];
    let special = Special::parse(&json, &files, None, usize::MAX);
    let out = TokenizerMetadata { metadata: special.metadata(), notes: Vec::new() };
    assert_eq!(value(&out, "ggml.bos_token_id"), None, "a null means that there is none");
    assert_eq!(value(&out, "ggml.add_bos_token"), Some(false.into()));
    assert_eq!(value(&out, "ggml.eos_token_id"), Some(4u32.into()));
    assert_eq!(value(&out, "ggml.padding_token_id"), Some(0u32.into()));
    assert_eq!(value(&out, "chat_template"), Some("T".into()));
    assert_eq!(value(&out, "chat_template.tools"), Some("U".into()));
    assert_eq!(value(&out, "chat_templates"), Some(texts(&["tools"])));
}

#[test]
fn special_tokens_that_the_vocabulary_or_the_embedding_lacks_are_left_out() {
    let json = byte_level();
    let found = |config: Json, rows: usize| {
        let special = Special::parse(&json, &[config, Json::Null, Json::Null, Json::Null], None, rows);
        let out = TokenizerMetadata { metadata: special.metadata(), notes: Vec::new() };
        (value(&out, "ggml.eos_token_id"), value(&out, "ggml.padding_token_id"))
    };
    let config = json!({"eos_token": "<s>", "pad_token": "[PAD]"});
    assert_eq!(found(config.clone(), 6), (Some(3u32.into()), None));
    assert_eq!(found(config, 3), (None, None));
}

#[test]
fn who_puts_the_begin_token_before_a_text_depends_on_the_class() {
    let with = |class: &str, adds: Json, processor: Json| {
        let mut json = byte_level();
        json["post_processor"] = processor;
        let config = json!({"bos_token": "<s>", "tokenizer_class": class, "add_bos_token": adds});
        let out = TokenizerMetadata { metadata: special(&json, config).metadata(), notes: Vec::new() };
        value(&out, "ggml.add_bos_token").unwrap() == true.into()
    };
    let template = json!({"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
    assert!(with("LlamaTokenizer", Json::Null, Json::Null) && with("GemmaTokenizerFast", true.into(), Json::Null));
    assert!(!with("LlamaTokenizerFast", false.into(), template.clone()));
    assert!(with("PreTrainedTokenizerFast", false.into(), template));
    assert!(!with("PreTrainedTokenizerFast", true.into(), Json::Null));
}
