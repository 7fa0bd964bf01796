use super::*;

fn parse(json: &Value) -> Result<ModelConfig, Vec<String>> {
    ModelConfig::parse(json.as_object().unwrap().clone())
}

fn llama_2_7b() -> Value {
    serde_json::json!({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    })
}

#[test]
fn llama_2_7b_has_its_published_number_of_parameters() {
    assert_eq!(parse(&llama_2_7b()).unwrap().num_parameters(), 6_738_415_616);
}

#[test]
fn every_fault_is_listed_at_once() {
    let mut json = llama_2_7b();
    json["hidden_act"] = "relu".into();
    json["num_key_value_heads"] = 5.into();
    json["quantization_config"] = serde_json::json!({"bits": 4});
    json["rope_scaling"] = serde_json::json!({"rope_type": "longrope"});
    json.as_object_mut().unwrap().remove("vocab_size");
    let faults = parse(&json).unwrap_err();
    assert_eq!(faults.len(), 5, "{faults:?}");
}

#[test]
fn a_family_that_is_not_known_is_refused_with_those_that_are() {
    for name in ["gpt2", "gemma3", "Llama"] {
        let faults = parse(&serde_json::json!({"model_type": name})).unwrap_err();
        let expected = "`model_type` should be one of llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, phi3, \
                        rwkv, rwkv6";
        assert_eq!(faults, [format!("{expected}, found \"{name}\"")]);
    }
}

#[test]
fn what_is_written_is_read_back() {
    let mut json = llama_2_7b();
    json["rope_scaling"] = serde_json::json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    json["eos_token_id"] = serde_json::json!([128001, 128008, 128009]);
    json["rope_theta"] = 500_000.0.into();
    let config = parse(&json).unwrap();
    assert_eq!(parse(&config.to_json()).unwrap(), config);
    assert_eq!(config.eos_token_ids, [128001, 128008, 128009]);
    json["model_type"] = "mistral".into();
    for window in [Value::Null, 7.into()] {
        json["sliding_window"] = window;
        let config = parse(&json).unwrap();
        assert_eq!(parse(&config.to_json()).unwrap(), config);
    }
}

#[test]
fn a_number_of_layers_that_no_model_has_makes_no_list() {
    let mut json = llama_2_7b();
    json["num_hidden_layers"] = (1u64 << 39).into();
    let faults = parse(&json).unwrap_err();
    assert!(faults.len() == 1 && faults[0].starts_with("`num_hidden_layers` should be at most 65536"), "{faults:?}");
}

#[test]
fn sizes_that_no_model_has_are_refused_before_their_products_overflow() {
    let fault = |family: &str, changes: &[(&str, u64)]| {
        let mut json = match family {
            "llama" => llama_2_7b(),
            _ => {
                serde_json::json!({"model_type": family, "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128})
            }
        };
        changes.iter().for_each(|(name, size)| json[*name] = (*size).into());
        parse(&json).unwrap_err().join("; ")
    };
    let refused = |name: &str, size: u64| format!("`{name}` should be at most 2147483647, found {size}");
    for (family, name) in
        [("llama", "hidden_size"), ("llama", "intermediate_size"), ("llama", "vocab_size"), ("rwkv", "vocab_size")]
    {
        assert!(fault(family, &[(name, 1 << 39)]).contains(&refused(name, 1 << 39)), "{family} {name}");
    }
    let most = (1 << 40) - 1;
    let found = fault("llama", &[("head_dim", most), ("num_attention_heads", most), ("num_key_value_heads", most)]);
    assert!(
        found.contains("`num_attention_heads` times `head_dim` should be at most 2147483647, found more than 2^64"),
        "{found}"
    );
    assert!(fault("rwkv6", &[("hidden_size", 1 << 36), ("head_size", 16)]).contains(&refused("hidden_size", 1 << 36)));
    let found = fault("llama", &[("hidden_size", 1 << 30), ("head_dim", 128)]);
    assert!(
        found.starts_with("its sizes make ") && found.ends_with("parameters, at most 281474976710656 are read"),
        "{found}"
    );
}

#[test]
fn a_window_in_a_llama_and_an_unknown_scaling_are_refused_in_one_error_that_names_them() {
    let mut json = llama_2_7b();
    json["rope_scaling"] = serde_json::json!({"rope_type": "longrope", "factor": 4.0, "long_factor": [1, 2]});
    json["sliding_window"] = 128.into();
    let faults = parse(&json).unwrap_err();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults.iter().any(|fault| fault.contains("rope type `longrope`")), "{faults:?}");
    assert!(faults.iter().any(|fault| fault.contains("`sliding_window`")), "{faults:?}");
}
