//! The `config.json` of a model of text and pictures, whose text part is one of the families: its text part is taken out. The
//! weights of that part are found by their names (`weights::Checkpoint`).

use serde_json::{Map, Value, json};

use crate::families;
use crate::message::quoted;

/// The kinds of models whose text part computes the same alone, each with the family of a text part that names none.
const WRAPPERS: [(&str, &str); 4] =
    [("gemma3", "gemma3_text"), ("llava", "llama"), ("llava_next", "llama"), ("mistral3", "mistral")];

/// Sizes that Transformers takes for a text part that leaves them out. At the top of a file they always stand.
const DEFAULTS: [(&str, [u64; 5]); 5] = [
    ("gemma3_text", [262_208, 2304, 9216, 26, 8]),
    ("llama", [32_000, 4096, 11_008, 32, 32]),
    ("mistral", [32_000, 4096, 14_336, 32, 32]),
    ("qwen2", [151_936, 4096, 22_016, 32, 32]),
    ("qwen3", [151_936, 4096, 22_016, 32, 32]),
];
const SIZES: [&str; 5] = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"];

/// Fields beside the text part that count for it too, unless it has them itself.
const SHARED: [&str; 4] = ["bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"];

/// The fields of the text part, if the file is of such a model; else all fields.
///
/// # Errors
///
/// The fault, if the model has a text part that cannot be taken out.
pub(crate) fn text_part(mut object: Map<String, Value>) -> Result<Map<String, Value>, Vec<String>> {
    let model_type = object.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if families::named(&model_type).is_some() || !object.get("text_config").is_some_and(Value::is_object) {
        return Ok(object);
    }
    let Some(Value::Object(mut text)) = object.remove("text_config") else { return Ok(object) };
    let text_type = text.get("model_type").and_then(Value::as_str).map(str::to_owned);
    let wrapper = WRAPPERS.iter().find(|(wrapper, _)| *wrapper == model_type);
    let family = match (&text_type, wrapper) {
        (Some(name), _) => name.as_str(),
        (None, Some((_, family))) => *family,
        (None, None) => "",
    };
    if wrapper.is_none() || families::named(family).is_none() {
        let of = WRAPPERS.map(|(wrapper, _)| wrapper).join(", ");
        return Err(vec![format!(
            "`model_type` {} is a model of text and pictures around the text model {}; the text part is taken out of {of} only: \
             save it by itself (in Transformers, `model.language_model.save_pretrained(folder)`)",
            quoted(&model_type.as_str().into()),
            quoted(&text_type.as_deref().unwrap_or("without a name").into()),
        )]);
    }
    let family = family.to_owned();
    if let Some((_, sizes)) = DEFAULTS.iter().find(|(name, _)| *name == family) {
        for (field, size) in SIZES.into_iter().zip(sizes) {
            text.entry(field).or_insert_with(|| json!(size));
        }
    }
    text.insert("model_type".to_owned(), family.into());
    for field in SHARED {
        if let Some(value) = object.remove(field)
            && text.get(field).is_none_or(Value::is_null)
        {
            text.insert(field.to_owned(), value);
        }
    }
    // Packed weights are packed in all parts.
    if let Some(quantization) = object.remove("quantization_config") {
        text.insert("quantization_config".to_owned(), quantization);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;

    fn parse(fields: &Value) -> Result<ModelConfig, Vec<String>> {
        ModelConfig::parse(fields.as_object().unwrap().clone())
    }

    #[test]
    fn the_text_part_of_the_published_gemma_3_of_4_billion_has_its_number_of_parameters() {
        // The whole of its text_config: all else is left to the defaults of Transformers.
        let config = parse(&json!({
            "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255_999, "eoi_token_index": 256_000,
            "eos_token_id": [1, 106], "image_token_index": 262_144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
            "model_type": "gemma3", "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
            "text_config": {"hidden_size": 2560, "intermediate_size": 10_240, "model_type": "gemma3_text",
                "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
            "vision_config": {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model"},
        }));
        let config = config.unwrap();
        assert_eq!(config.num_parameters(), 3_880_263_168);
        assert_eq!((config.family.model_type(), config.eos_token_ids.as_slice()), ("gemma3_text", &[1, 106][..]));
    }

    #[test]
    fn a_text_part_that_cannot_be_taken_out_is_named_with_what_to_do() {
        let with_text = |model_type: &str, text: Value| json!({"model_type": model_type, "text_config": text});
        let faults = parse(&with_text("mllama", json!({"model_type": "mllama_text_model"}))).unwrap_err();
        assert!(faults[0].contains("mllama_text_model") && faults[0].contains("save_pretrained"), "{faults:?}");
        let faults = parse(&with_text("llava", json!({"model_type": "mpt"}))).unwrap_err();
        assert!(faults[0].contains("\"mpt\""), "{faults:?}");
        let mut packed = with_text("gemma3", json!({}));
        packed["quantization_config"] = json!({"bits": 4});
        assert!(parse(&packed).unwrap_err()[0].starts_with("`quantization_config`"));
    }
}
