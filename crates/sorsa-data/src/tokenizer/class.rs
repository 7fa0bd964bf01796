//! What the class of a tokenizer decides in Transformers: special tokens that no file names, and the tokens around a text.

use serde_json::{Map, Value, json};

/// The classes of Transformers that differ for what this crate does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenizerClass {
    /// `LlamaTokenizer`, `CodeLlamaTokenizer`: also of Mistral and Phi-3.
    Llama,
    Gemma,
    Cohere,
    GptNeoX,
    /// `GPT2Tokenizer`, `CodeGenTokenizer`.
    Gpt2,
    Qwen2,
    T5,
    /// `PreTrainedTokenizerFast` and other names: `tokenizer.json` decides everything.
    Other,
    /// No file names a class that Transformers 4 has.
    Unnamed,
}

impl TokenizerClass {
    /// The class that `tokenizer_config.json` names, otherwise `config.json`, otherwise that of the model's type.
    pub fn of(tokenizer_config: Option<&Value>, config: Option<&Value>) -> Self {
        let text = |file: Option<&Value>, key: &str| file?.get(key)?.as_str().map(str::to_owned);
        let class = text(tokenizer_config, "tokenizer_class").or_else(|| text(config, "tokenizer_class"));
        match class {
            Some(name) => Self::of_name(name.strip_suffix("Fast").unwrap_or(&name)),
            None => Self::of_model_type(&text(config, "model_type").unwrap_or_default()),
        }
    }

    fn of_name(name: &str) -> Self {
        match name {
            "LlamaTokenizer" | "CodeLlamaTokenizer" => Self::Llama,
            "GemmaTokenizer" => Self::Gemma,
            "CohereTokenizer" => Self::Cohere,
            "GPTNeoXTokenizer" => Self::GptNeoX,
            "GPT2Tokenizer" | "CodeGenTokenizer" => Self::Gpt2,
            "Qwen2Tokenizer" => Self::Qwen2,
            "T5Tokenizer" => Self::T5,
            // Of Transformers 5, whose generic class does look at `add_bos_token`.
            "TokenizersBackend" => Self::Unnamed,
            _ => Self::Other,
        }
    }

    fn of_model_type(model_type: &str) -> Self {
        match model_type {
            "llama" | "mistral" | "mixtral" | "phi3" => Self::Llama,
            "gemma" | "gemma2" | "gemma3" | "gemma3_text" => Self::Gemma,
            "cohere" | "cohere2" => Self::Cohere,
            "gpt_neox" | "rwkv" | "olmo" | "olmo2" | "stablelm" => Self::GptNeoX,
            "gpt2" | "starcoder2" | "phi" => Self::Gpt2,
            "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe" => Self::Qwen2,
            "t5" | "umt5" => Self::T5,
            _ => Self::Unnamed,
        }
    }

    /// The text of a special token (`bos_token`) that no file names.
    pub fn default_token(self, key: &str) -> Option<&'static str> {
        let [bos, eos, unk, pad] = match self {
            Self::Llama => [Some("<s>"), Some("</s>"), Some("<unk>"), None],
            Self::Gemma => [Some("<bos>"), Some("<eos>"), Some("<unk>"), Some("<pad>")],
            Self::Cohere => [Some("<BOS_TOKEN>"), Some("<|END_OF_TURN_TOKEN|>"), Some("<UNK>"), None],
            Self::GptNeoX | Self::Gpt2 => [Some("<|endoftext|>"), Some("<|endoftext|>"), Some("<|endoftext|>"), None],
            Self::Qwen2 => [None, Some("<|endoftext|>"), Some("<|endoftext|>"), Some("<|endoftext|>")],
            Self::T5 => [None, Some("</s>"), Some("<unk>"), Some("<pad>")],
            Self::Other | Self::Unnamed => [None; 4],
        };
        match key {
            "bos_token" => bos,
            "eos_token" => eos,
            "unk_token" => unk,
            "pad_token" => pad,
            _ => None,
        }
    }

    /// If the class puts tokens around a text by `add_bos_token` and `add_eos_token`, whatever `tokenizer.json` says: whether it
    /// begins with the begin token, if the configuration says nothing.
    pub fn begins_by_default(self) -> Option<bool> {
        match self {
            Self::Llama | Self::Gemma | Self::Cohere => Some(true),
            Self::GptNeoX => Some(false),
            Self::Gpt2 | Self::Qwen2 | Self::T5 | Self::Other | Self::Unnamed => None,
        }
    }

    /// Whether Transformers makes the tokenizer from `tokenizer.model` again if the configuration has `add_prefix_space`.
    pub fn converts_again(self) -> bool {
        matches!(self, Self::Llama | Self::T5)
    }
}

/// Names the tokens `<extra_id_0>`, .. of a T5 as special ones if the configuration does not, like the class does.
pub(super) fn name_extra_ids(config: &mut Map<String, Value>, is_token: impl Fn(&str) -> bool) {
    let named = config.entry("additional_special_tokens").or_insert_with(|| json!([]));
    if !named.is_array() {
        *named = json!([]);
    }
    let Value::Array(named) = named else { return };
    if !named.iter().any(|token| token.to_string().contains("<extra_id_")) {
        let extra = (0..).map(|id| format!("<extra_id_{id}>")).take_while(|text| is_token(text));
        named.extend(extra.map(Value::from));
    }
}
