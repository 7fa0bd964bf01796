//! One function for each kind of file that the program reads from outside. Whatever the bytes are, none of them may panic, take
//! more memory than a small multiple of the bytes, or more than seconds.

mod mutation;

use std::path::Path;

use serde_json::{Map, Value};
use sorsa_adapter::SavedAdapter;
use sorsa_adapter::peft::{PeftAdapter, PeftConfig};
use sorsa_checkpoint::gguf::GgufFile;
use sorsa_checkpoint::weights::Checkpoint;
use sorsa_checkpoint::{ModelConfig, ModelSource};
use sorsa_data::{LoadOptions, PromptTemplate, Record, TemplateName, TextTokenizer, load};
use sorsa_experiment::Recipe;

pub use mutation::Mutator;

/// A kind of file, and how it is read.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name of the kind, and of its folder of seeds.
    pub name: &'static str,
    /// Reads the bytes.
    pub read: fn(&[u8]),
}

/// All kinds.
pub const TARGETS: [Target; 9] = [
    Target { name: "safetensors", read: safetensors },
    Target { name: "config", read: config },
    Target { name: "tokenizer", read: tokenizer },
    Target { name: "template", read: template },
    Target { name: "parquet", read: parquet },
    Target { name: "gguf", read: gguf },
    Target { name: "packed", read: packed },
    Target { name: "adapter", read: adapter },
    Target { name: "recipe", read: recipe },
];

/// The target of this name.
pub fn named(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

/// Runs `read` on a folder with the bytes under a name.
fn in_folder(name: &str, bytes: &[u8], read: impl FnOnce(&Path)) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join(name), bytes).expect("the temporary folder can be written");
    read(folder.path());
}

fn safetensors(bytes: &[u8]) {
    in_folder("model.safetensors", bytes, |folder| {
        let Ok(checkpoint) = Checkpoint::open(folder) else { return };
        for name in checkpoint.names() {
            let _ = checkpoint.raw(name);
            let _ = checkpoint.to_f32(name);
            let _ = checkpoint.to_bf16_transposed(name);
        }
    });
}

fn config(bytes: &[u8]) {
    let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(bytes) else { return };
    let Ok(config) = ModelConfig::parse(fields) else { return };
    let _ = (config.num_parameters(), config.context_length());
    let written = config.to_json();
    let again = ModelConfig::parse(written.as_object().expect("an object").clone());
    assert_eq!(again.as_ref(), Ok(&config), "what is written is read back: {written}");
}

/// Texts for tokenizers and templates.
const TEXTS: [&str; 4] =
    ["", "What is 17 + 4?", "  é\u{1F600}\u{0}\r\n\u{2028} <|im_end|> ", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"];

fn tokenizer(bytes: &[u8]) {
    let Ok(tokenizer) = TextTokenizer::from_bytes(bytes, None) else { return };
    for text in TEXTS {
        let Ok(ids) = tokenizer.encode(text) else { continue };
        let _ = tokenizer.decode(&ids);
    }
}

/// A tokenizer whose tokens are words.
const WORDS: &str = r#"{"model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"}, "version": "1.0",
    "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": null, "decoder": null}"#;

fn template(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let settings = serde_json::json!({ "chat_template": text }).to_string();
    let Ok(tokenizer) = TextTokenizer::from_bytes(WORDS.as_bytes(), Some(settings.as_bytes())) else { return };
    let Ok(template) = PromptTemplate::new(TemplateName::Chat, &tokenizer) else { return };
    for text in TEXTS {
        let _ = template.prompt(&Record::instruction(1, text, ""));
    }
}

fn parquet(bytes: &[u8]) {
    in_folder("rows.parquet", bytes, |folder| {
        let options = LoadOptions { skip_bad_rows: true, ..LoadOptions::default() };
        let _ = load(folder.join("rows.parquet"), &options);
    });
}

fn gguf(bytes: &[u8]) {
    in_folder("model.gguf", bytes, |folder| {
        let Ok(file) = GgufFile::open(&folder.join("model.gguf")) else { return };
        for tensor in file.tensors() {
            let _ = file.to_f32(&tensor.name);
        }
        let Ok(source) = ModelSource::open(folder) else { return };
        read_all(&source);
        let Ok(Some(files)) = source.tokenizer_files() else { return };
        let _ = TextTokenizer::from_contents(folder, &files);
    });
}

/// Packed weights in safetensors, beside the configurations of those who pack them.
fn packed(bytes: &[u8]) {
    let quantizations = [
        serde_json::json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
        serde_json::json!({"quant_method": "gptq", "bits": 4, "group_size": 16}),
        serde_json::json!({"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"}),
        serde_json::json!({"quant_method": "awq", "bits": 4, "version": "gemm"}),
    ];
    in_folder("model.safetensors", bytes, |folder| {
        for quantization in &quantizations {
            let config = serde_json::json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
                "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 24,
                "quantization_config": quantization});
            std::fs::write(folder.join("config.json"), config.to_string())
                .expect("the temporary folder can be written");
            if let Ok(source) = ModelSource::open(folder) {
                read_all(&source);
            }
        }
    });
}

/// Reads every tensor of a model, packed and widened.
fn read_all(source: &ModelSource) {
    for tensor in source.tensors() {
        if let Ok(Some(matrix)) = source.packed(&tensor.name) {
            assert_eq!(matrix.shape().as_slice(), tensor.shape.as_slice());
        }
        let _ = source.numbers::<f32>(&tensor.name, false);
        let _ = source.numbers::<f32>(&tensor.name, true);
    }
}

/// Bytes that begin with `{` are the configuration of an adapter, all others its tensors.
fn adapter(bytes: &[u8]) {
    const CONFIG: &[u8] = br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}"#;
    if bytes.starts_with(b"{") {
        if let Ok(config) = PeftConfig::parse(bytes) {
            let _ = (config.method(), config.to_json());
        }
        in_folder("adapter.json", bytes, |folder| drop(SavedAdapter::load(folder)));
    } else {
        in_folder("adapter_model.safetensors", bytes, |folder| {
            std::fs::write(folder.join("adapter_config.json"), CONFIG).expect("the temporary folder can be written");
            let _ = PeftAdapter::load(folder);
        });
    }
}

fn recipe(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(table) = text.parse() else { return };
    let Ok(recipe) = Recipe::from_table(table, "bytes") else { return };
    let _ = toml::to_string(&recipe).expect("a recipe is written as TOML");
}
