use super::*;
use crate::config::{Activation, LayerType, RwkvConfig, RwkvVersion, TransformerConfig};
use crate::rope::RopeScaling;

/// A configuration with these sizes (hidden, intermediate, layers, heads, vocabulary) and fields.
fn parse(sizes: [usize; 5], more: Value) -> Result<ModelConfig, Vec<String>> {
    let [hidden_size, intermediate_size, layers, heads, vocab_size] = sizes;
    let mut object = json!({
        "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": vocab_size,
    });
    let object = object.as_object_mut().unwrap();
    object.extend(more.as_object().unwrap().clone());
    object.retain(|_, value| *value != json!("absent"));
    ModelConfig::parse(object.clone())
}

fn small(more: Value) -> Result<ModelConfig, Vec<String>> {
    parse([64, 96, 8, 4, 100], more)
}

fn decoder(config: &ModelConfig) -> &TransformerConfig {
    config.transformer().unwrap()
}

fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    let decoder = decoder(config);
    decoder.layer_types.iter().map(|layer_type| decoder.window(*layer_type)).collect()
}

#[test]
fn models_have_their_published_numbers_of_parameters() {
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
        let config = parse(sizes, more.clone()).unwrap();
        assert_eq!(config.num_parameters(), parameters, "{more}");
    }
}

#[test]
fn the_low_ranks_of_rwkv_6_are_larger_in_the_7b_model_as_counted_tensor_by_tensor() {
    let small = ([2048, 7168, 24, 64, 65_536], 1_599_873_024);
    let large = ([4096, 14_336, 32, 64, 65_536], 7_635_746_816);
    for (sizes, parameters) in [small, large] {
        let config = parse(sizes, json!({"model_type": "rwkv6"})).unwrap();
        assert_eq!(config.num_parameters(), parameters);
    }
}

#[test]
fn what_a_mistral_leaves_out_is_as_in_mistral_7b() {
    let config = parse([64, 96, 2, 32, 100], json!({"model_type": "mistral"})).unwrap();
    assert_eq!((decoder(&config).num_key_value_heads, config.max_position_embeddings), (8, 131_072));
    assert_eq!(windows(&config), [Some(4096); 2]);
    let config = parse([64, 96, 2, 32, 100], json!({"model_type": "mistral", "sliding_window": null})).unwrap();
    assert_eq!(windows(&config), [None; 2]);
}

#[test]
fn the_window_of_a_qwen_is_in_the_layers_from_max_window_layers_on_and_only_where_it_is_wanted() {
    for family in ["qwen2", "qwen3"] {
        let with = |more: Value| {
            let mut fields = json!({"model_type": family, "num_key_value_heads": 2, "sliding_window": 5});
            fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            small(fields)
        };
        assert_eq!(windows(&with(json!({"max_window_layers": 0})).unwrap()), [None; 8]);
        let config = with(json!({"use_sliding_window": true, "max_window_layers": 6})).unwrap();
        assert_eq!(windows(&config), [None, None, None, None, None, None, Some(5), Some(5)]);
        assert_eq!(windows(&with(json!({"use_sliding_window": true})).unwrap()), [None; 8]);
        let mut types = vec!["full_attention"; 8];
        types[3] = "sliding_attention";
        let config = with(json!({"use_sliding_window": true, "layer_types": types})).unwrap();
        assert_eq!(windows(&config).iter().position(Option::is_some), Some(3));
        let faults = with(json!({"layer_types": types})).unwrap_err();
        assert_eq!(faults, ["`layer_types` has sliding_attention, but there is no window"]);
        let faults = with(json!({"layer_types": ["full_attention", "chunked_attention"]})).unwrap_err();
        assert!(faults[0].starts_with("`layer_types` should be a list of 8 names"), "{faults:?}");
    }
}

#[test]
fn the_windows_of_gemma_alternate_in_the_second_generation_and_are_five_to_one_in_the_third() {
    let gemma2 = small(json!({"model_type": "gemma2"})).unwrap();
    assert_eq!(windows(&gemma2)[..4], [Some(4096), None, Some(4096), None]);
    let gemma3 = small(json!({"model_type": "gemma3_text", "sliding_window": 512})).unwrap();
    let full: Vec<usize> = (0..8).filter(|layer| windows(&gemma3)[*layer].is_none()).collect();
    assert_eq!(full, [5]);
    let gemma3 = small(json!({"model_type": "gemma3_text", "sliding_window_pattern": 3})).unwrap();
    let full: Vec<usize> = (0..8).filter(|layer| windows(&gemma3)[*layer].is_none()).collect();
    assert_eq!(full, [2, 5]);
    let decoder = decoder(&gemma3);
    assert_eq!(decoder.layer_rope(LayerType::Full).theta, 1_000_000.0);
    assert_eq!(decoder.layer_rope(LayerType::Sliding).theta, 10_000.0);
}

#[test]
fn a_soft_cap_of_gemma_2_that_is_null_is_none_and_one_that_is_missing_has_its_default() {
    let caps = |more: Value| {
        let config = small(more).unwrap();
        (decoder(&config).attention_soft_cap, decoder(&config).logit_soft_cap)
    };
    assert_eq!(caps(json!({"model_type": "gemma2"})), (Some(50.0), Some(30.0)));
    let nulls = json!({"model_type": "gemma2", "attn_logit_softcapping": null, "final_logit_softcapping": null});
    assert_eq!(caps(nulls), (None, None));
    assert_eq!(caps(json!({"model_type": "gemma3_text"})), (None, None));
}

#[test]
fn gemma_computes_with_hidden_act_and_its_successors_with_hidden_activation() {
    let activation = |family: &str| {
        let fields = json!({"model_type": family, "num_key_value_heads": 4, "hidden_act": "gelu",
            "hidden_activation": "gelu_pytorch_tanh"});
        decoder(&small(fields).unwrap()).activation
    };
    assert_eq!(activation("gemma"), Activation::Gelu);
    assert_eq!([activation("gemma2"), activation("gemma3_text")], [Activation::GeluTanh; 2]);
}

/// A phi3 whose `rope_scaling` has these fields too.
fn long_rope(more: Value) -> Value {
    let factors = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5];
    let mut scaling = json!({"type": "longrope", "short_factor": factors, "long_factor": factors});
    scaling.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let original = 2048;
    json!({"model_type": "phi3", "rope_scaling": scaling, "original_max_position_embeddings": original,
        "max_position_embeddings": 8192})
}

#[test]
fn a_longrope_is_read_from_the_files_of_each_generation_and_written_as_transformers_reads_it() {
    let config = small(long_rope(json!({}))).unwrap();
    let RopeScaling::LongRope(long) = &decoder(&config).rope.scaling else { panic!("{config:?}") };
    assert_eq!((long.original_max_position_embeddings, config.context_length()), (2048, Some(8192)));
    // With a fourth field Transformers 4 refuses it.
    let written = config.to_json();
    assert_eq!(written["rope_scaling"].as_object().unwrap().len(), 3);
    assert_eq!(written["original_max_position_embeddings"], 2048);
    let again = ModelConfig::parse(written.as_object().unwrap().clone()).unwrap();
    assert_eq!(again, config);

    // The first Phi-3 called it `su`; Transformers 5 has the base and the original context in the same object.
    assert_eq!(small(long_rope(json!({"type": "su"}))).unwrap(), config);
    let mut fields = long_rope(json!({"rope_theta": 10_000.0, "rope_type": "longrope",
        "original_max_position_embeddings": 2048}));
    let object = fields.as_object_mut().unwrap();
    let scaling = object.remove("rope_scaling").unwrap();
    object.insert("rope_parameters".to_owned(), scaling);
    object.remove("original_max_position_embeddings");
    assert_eq!(small(fields).unwrap(), config);
    let mut fields = long_rope(json!({}));
    fields.as_object_mut().unwrap().remove("original_max_position_embeddings");
    assert_eq!(small(fields).unwrap_err(), ["a longrope asks for `original_max_position_embeddings`, of more than 1"]);
}

#[test]
fn fields_that_would_change_the_mathematics_are_faults_in_the_families_that_do_not_compute_them() {
    for (more, fault) in [
        (json!({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}), "`attn_logit_softcapping`"),
        (json!({"model_type": "gemma3_text", "use_bidirectional_attention": true}), "`use_bidirectional_attention`"),
        (json!({"model_type": "gemma3_text", "text_config": {}}), "`text_config`"),
        (long_rope(json!({})), ""),
        (long_rope(json!({"short_factor": null})), "`short_factor` is missing"),
        (
            long_rope(json!({"short_factor": [1.0]})),
            "`short_factor` should have 8 numbers, one for each plane, found 1",
        ),
        (long_rope(json!({"long_factor": [1.0, 0.0]})), "`long_factor` should be a list of positive numbers"),
        (long_rope(json!({"long_factor": []})), "`long_factor` should be a list of positive numbers"),
        (long_rope(json!({"original_max_position_embeddings": 1})), "a longrope asks for `original_max"),
        (long_rope(json!({"short_mscale": 1.2})), "`rope_scaling.short_mscale` is not supported"),
        (json!({"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2.0}}), "`rope_scaling`"),
        (json!({"model_type": "phi3", "partial_rotary_factor": 0.3}), ""),
        (json!({"model_type": "phi3", "partial_rotary_factor": 0.2}), "`partial_rotary_factor`"),
        (json!({"model_type": "phi3", "lm_head_bias": true}), "`lm_head_bias`"),
        (json!({"model_type": "phi3", "full_attn_mod": 2}), "`full_attn_mod`"),
        (json!({"model_type": "llama", "pretraining_tp": 2}), "`pretraining_tp`"),
        (json!({"model_type": "llama", "unsloth_fixed": true}), ""),
        (json!({"model_type": "llama", "rope_interleaved": true}), "`rope_interleaved` = true is not supported"),
        (json!({"model_type": "llama", "layer_types": ["sliding_attention"]}), "`layer_types`"),
        (json!({"model_type": "llama", "partial_rotary_factor": 0.5}), "`partial_rotary_factor` should be 1"),
        (
            json!({"model_type": "llama", "rope_parameters": {"rope_theta": 1.0}, "rope_scaling": {"rope_theta": 2.0}}),
            "`rope_parameters` and `rope_scaling` should say the same",
        ),
        (json!({"model_type": "llama", "rope_parameters": {"odd": 1}}), "`rope_parameters.odd` is not supported"),
        (
            json!({"model_type": "gemma3_text", "rope_parameters": {
                "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                "sliding_attention": {"rope_type": "linear", "factor": 2.0},
            }}),
            "`rope_parameters.sliding_attention` should have the rope type default",
        ),
        (json!({"model_type": "qwen2", "num_key_value_heads": 2, "use_mrope": false}), ""),
        (json!({"model_type": "qwen2", "num_key_value_heads": 2, "use_mrope": true}), "`use_mrope`"),
        (json!({"model_type": "rwkv", "num_attention_heads": 4}), "`num_attention_heads`"),
        (json!({"model_type": "rwkv6", "head_size": 24}), "64 values do not make heads of 24"),
        (json!({"model_type": "rwkv6", "model_version": "6_1"}), "`model_version`"),
    ] {
        match small(more.clone()) {
            Ok(_) => assert_eq!(fault, "", "{more}"),
            Err(faults) => {
                assert!(faults.len() == 1 && !fault.is_empty() && faults[0].starts_with(fault), "{faults:?}")
            }
        }
    }
}

#[test]
fn an_rwkv_leaves_its_widths_out() {
    let widths = |family: &str| {
        let absent = json!({"model_type": family, "intermediate_size": null, "num_attention_heads": "absent"});
        let config = parse([2560, 1, 2, 1, 100], absent).unwrap();
        let Architecture::Rwkv(RwkvConfig { attention_hidden_size, version, .. }) = config.architecture else {
            panic!("an RWKV")
        };
        (config.intermediate_size, attention_hidden_size, version)
    };
    assert_eq!(widths("rwkv"), (10_240, 2560, RwkvVersion::V4));
    assert_eq!(widths("rwkv6"), (8960, 2560, RwkvVersion::V6 { head_size: 64, head_size_divisor: 8 }));
}

#[test]
fn fields_of_published_files_that_change_nothing_are_no_faults() {
    let llama = small(json!({"model_type": "llama"})).unwrap();
    let full = vec!["full_attention"; 8];
    for more in [
        // SmolLM2, its Instruct version, files of Unsloth and of mergekit, Vicuna.
        json!({"is_llama_config": true, "rope_interleaved": false, "transformers_version": "4.40.1"}),
        json!({"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}}),
        json!({"unsloth_fixed": true, "unsloth_version": "2025.1", "unsloth_tiled_mlp": false}),
        json!({"mergekit_version": "0.1", "_name_or_path": "base", "pruned_heads": {}, "decoder_layers": []}),
        json!({"max_length": 128, "temperature": 0.9, "top_p": 0.6, "do_sample": true}),
        // Both forms of the rotary embedding, and what follows from the family anyway.
        json!({"layer_types": full, "partial_rotary_factor": 1.0}),
        json!({"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}, "rope_theta": 10_000.0,
            "rope_scaling": {"rope_type": "default", "rope_theta": 10_000.0}}),
        json!({"partial_rotary_factor": 1, "use_sliding_window": false, "sliding_window": null, "dtype": "bfloat16"}),
    ] {
        let mut fields = json!({"model_type": "llama"});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(small(fields).unwrap(), llama, "{more}");
    }
}

#[test]
fn what_transformers_5_nests_in_rope_parameters_means_what_transformers_4_says_beside() {
    let older = json!({"model_type": "gemma3_text", "rope_theta": 2e6, "rope_local_base_freq": 5e3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 3});
    let newer = json!({"model_type": "gemma3_text", "_sliding_window_pattern": 3, "use_bidirectional_attention": null,
    "rope_parameters": {
        "full_attention": {"factor": 8.0, "rope_theta": 2e6, "rope_type": "linear"},
        "sliding_attention": {"rope_theta": 5e3, "rope_type": "default"},
    }});
    assert_eq!(small(newer).unwrap(), small(older).unwrap());
    let older = json!({"model_type": "phi3", "partial_rotary_factor": 0.5, "rope_theta": 3e4});
    let newer = json!({"model_type": "phi3", "rope_parameters": {
        "partial_rotary_factor": 0.5, "rope_theta": 3e4, "rope_type": "default"}});
    assert_eq!(small(newer).unwrap(), small(older).unwrap());
}

#[test]
fn a_number_that_transformers_declares_as_an_integer_is_written_as_one() {
    for family in ["gemma2", "gemma3_text"] {
        for (scalar, written) in [(json!(256), "256"), (json!(144.0), "144"), (json!(20.5), "20.5")] {
            let config = small(json!({"model_type": family, "query_pre_attn_scalar": scalar})).unwrap();
            assert_eq!(config.to_json()["query_pre_attn_scalar"].to_string(), written);
        }
    }
}
