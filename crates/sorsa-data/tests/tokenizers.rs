//! Tokenizers' folders, as people publish them, read like AutoTokenizer of Transformers reads them: `tests/golden/make_tokenizers.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use sorsa_data::TextTokenizer;

#[derive(Deserialize)]
struct Golden {
    texts: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    files: BTreeMap<String, Value>,
    ids: Vec<Vec<u32>>,
    before: Vec<u32>,
    after: Vec<u32>,
    decoded: Vec<String>,
    second_half: Vec<Option<String>>,
    special: BTreeMap<String, Option<u32>>,
    size: usize,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tokenizers")
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(folder().join("cases.json")).unwrap()).unwrap()
}

fn load(case: &Case) -> TextTokenizer {
    let place = tempfile::tempdir().unwrap();
    for (name, content) in &case.files {
        let path = place.path().join(name);
        match content {
            Value::String(file) => drop(std::fs::copy(folder().join("files").join(file), path).unwrap()),
            other => std::fs::write(path, other.to_string()).unwrap(),
        }
    }
    TextTokenizer::from_dir(place.path()).unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

#[test]
fn texts_have_the_ids_of_transformers() {
    let golden = golden();
    for case in &golden.cases {
        let (name, tokenizer) = (&case.name, load(case));
        for (text, ids) in golden.texts.iter().zip(&case.ids) {
            assert_eq!(&tokenizer.encode(text).unwrap(), ids, "{name}: {text:?}");
        }
        assert_eq!((tokenizer.before(), tokenizer.after()), (&case.before[..], &case.after[..]), "{name}");
        assert_eq!(tokenizer.vocab_size(), case.size, "{name}");
        let special = [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos()), ("unk_token", tokenizer.unk())];
        for (key, found) in special {
            assert_eq!(found, case.special[key], "{name}: {key}");
        }
        if let Some(pad) = case.special["pad_token"] {
            assert_eq!(tokenizer.pad(usize::MAX), pad, "{name}");
        }
    }
}

#[test]
fn ids_have_the_text_of_transformers_whole_or_after_a_prompt_or_one_by_one() {
    let golden = golden();
    let mut compared = 0;
    for case in &golden.cases {
        let (name, tokenizer) = (&case.name, load(case));
        for ((ids, decoded), second_half) in case.ids.iter().zip(&case.decoded).zip(&case.second_half) {
            assert_eq!(&tokenizer.decode(ids).unwrap(), decoded, "{name}: {ids:?}");
            let (prompt, new) = ids.split_at(ids.len() / 2);
            let Some(second_half) = second_half else { continue };
            assert_eq!(&tokenizer.continuation(prompt, new).unwrap(), second_half, "{name}: {ids:?}");
            let mut stream = tokenizer.decode_stream(prompt).unwrap();
            let parts: String = new.iter().map(|id| stream.push(*id).unwrap()).collect();
            assert_eq!(&(parts + &stream.finish().unwrap()), second_half, "{name}: {ids:?}");
            compared += 1;
        }
    }
    assert!(compared > 900, "{compared}");
}

/// Published tokenizers of which a folder of `SORSA_DATA` has both the older files and `tokenizer.json`.
#[test]
fn older_files_give_the_ids_of_the_published_tokenizer_json() {
    let Some(data) = std::env::var_os("SORSA_DATA") else { return };
    let data = Path::new(&data);
    let text = std::fs::read_to_string(data.join("text/tinyshakespeare.txt")).unwrap();
    let golden = golden();
    let lines = text.lines().take(2000).chain(golden.texts.iter().map(String::as_str));
    let texts: Vec<&str> = lines.chain([&text[..20_000]]).collect();
    let cases = [
        ("tokenizers/llama2", "LlamaTokenizer", &["tokenizer.model"][..]),
        ("tokenizers/mistral_v1", "LlamaTokenizer", &["tokenizer.model"]),
        ("models/stories260K", "LlamaTokenizer", &["tokenizer.model"]),
        ("tokenizers/gpt2", "GPT2Tokenizer", &["vocab.json", "merges.txt"]),
    ];
    for (folder, class, files) in cases {
        let place = tempfile::tempdir().unwrap();
        for name in files {
            std::fs::copy(data.join(folder).join(name), place.path().join(name)).unwrap();
        }
        std::fs::write(place.path().join("tokenizer_config.json"), format!(r#"{{"tokenizer_class": "{class}"}}"#))
            .unwrap();
        let made = TextTokenizer::from_dir(place.path()).unwrap();
        let published = TextTokenizer::from_dir(data.join(folder)).unwrap();
        for text in &texts {
            let ids = published.encode(text).unwrap();
            assert_eq!(made.encode(text).unwrap(), ids, "{folder}: {text:?}");
            assert_eq!(made.decode(&ids).unwrap(), published.decode(&ids).unwrap(), "{folder}: {text:?}");
        }
        assert_eq!(
            (made.before(), made.bos(), made.eos()),
            (published.before(), published.bos(), published.eos()),
            "{folder}"
        );
    }
}
