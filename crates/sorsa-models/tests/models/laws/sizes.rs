//! Models of published sizes have the published number of parameters. Parameters are lazy: a model of any size costs nothing.

use burn::module::Module;
use burn::prelude::Device;
use serde_json::{Value, json};
use sorsa_models::{CausalLm, ModelConfig};

/// A configuration with these sizes (hidden, intermediate, layers, heads, vocabulary) and fields.
fn config(sizes: [usize; 5], more: Value) -> ModelConfig {
    let [hidden_size, intermediate_size, layers, heads, vocab_size] = sizes;
    let mut object = json!({
        "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": vocab_size,
    });
    let object = object.as_object_mut().unwrap();
    object.extend(more.as_object().unwrap().clone());
    object.retain(|_, value| *value != json!("absent"));
    ModelConfig::parse(object.clone()).unwrap()
}

#[test]
fn models_are_built_with_their_published_numbers_of_parameters() {
    for (sizes, more, parameters) in [
        ([4096, 14336, 32, 32, 32_000], json!({"model_type": "mistral"}), 7_241_732_096),
        (
            [896, 4864, 24, 14, 151_936],
            json!({"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": true}),
            494_032_768,
        ),
        (
            [1024, 3072, 28, 16, 151_936],
            json!({"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": true}),
            596_049_920,
        ),
        ([2048, 16_384, 18, 8, 256_000], json!({"model_type": "gemma", "num_key_value_heads": 1}), 2_506_172_416),
        ([2304, 9216, 26, 8, 256_000], json!({"model_type": "gemma2"}), 2_614_341_888),
        ([1152, 6912, 26, 4, 262_144], json!({"model_type": "gemma3_text", "num_key_value_heads": 1}), 999_885_952),
        ([3072, 8192, 32, 32, 32_064], json!({"model_type": "phi3"}), 3_821_079_552),
        (
            [3072, 8192, 32, 24, 200_064],
            json!({
                "model_type": "phi3", "num_key_value_heads": 8, "partial_rotary_factor": 0.75, "tie_word_embeddings": true,
                "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": false, "mlp_bias": false,
            }),
            3_836_021_760,
        ),
        ([768, 3072, 12, 1, 50_277], json!({"model_type": "rwkv", "num_attention_heads": "absent"}), 169_342_464),
    ] {
        let config = config(sizes, more.clone());
        assert_eq!(CausalLm::init(&config, &Device::flex()).num_params(), parameters, "{more}");
    }
}

#[test]
fn the_low_ranks_of_rwkv_6_are_built_larger_in_the_7b_model() {
    let small = ([2048, 7168, 24, 64, 65_536], 1_599_873_024);
    let large = ([4096, 14_336, 32, 64, 65_536], 7_635_746_816);
    for (sizes, parameters) in [small, large] {
        let config = config(sizes, json!({"model_type": "rwkv6"}));
        assert_eq!(CausalLm::init(&config, &Device::flex()).num_params(), parameters);
    }
}
