use super::*;
use crate::{DoraConfig, Init, LoraConfig, SorsaConfig};

#[test]
fn patterns_override_rank_and_alpha_per_module() {
    let mut config = AdapterConfig::new(Method::Lora, 8, &["q_proj"]).with_alpha(16.0);
    config.rank_pattern.insert("layers.1.*".into(), 4);
    config.alpha_pattern.insert("q_proj".into(), 4.0);
    assert_eq!(config.rank_and_scale("layers.0.k_proj"), RankAndScale { rank: 8, scale: 2.0 });
    assert_eq!(config.rank_and_scale("layers.1.k_proj"), RankAndScale { rank: 4, scale: 4.0 });
    assert_eq!(config.rank_and_scale("layers.1.q_proj"), RankAndScale { rank: 4, scale: 1.0 });
    config.scaling = Scaling::RankStabilized;
    assert_eq!(config.rank_and_scale("layers.1.q_proj"), RankAndScale { rank: 4, scale: 2.0 });
}

#[test]
fn every_fault_of_a_configuration_is_reported_at_once() {
    let mut config = AdapterConfig::new(Method::Sorsa, 0, &["re:(", "q_proj"]).with_alpha(-1.0).with_dropout(1.0);
    config.rank_pattern.insert("[".into(), 2);
    let Err(AdapterError::Config { faults }) = config.validate() else { panic!("accepted") };
    assert_eq!(faults.len(), 5, "{faults:?}");
}

/// A configuration as a file that names `method` and has these fields beside the required ones.
fn read(method: Method, fields: &Value) -> Result<AdapterConfig, String> {
    let mut json = serde_json::json!({ "method": method, "rank": 4, "target_modules": ["q_proj"] });
    json.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(json).map_err(|error| error.to_string())
}

#[test]
fn a_start_is_refused_by_methods_that_have_their_own_and_by_odd_ranks() {
    for method in [Method::Sorsa, Method::Olora, Method::Full] {
        let error = read(method, &serde_json::json!({ "init": "gaussian" })).unwrap_err();
        assert_eq!(error, format!("`init` is a setting of lora and dora, not of {method}"));
    }
    let mut config = AdapterConfig::new(DoraConfig { init: Init::Orthogonal }, 4, &["q_proj"]);
    assert!(config.validate().is_ok());
    config.rank_pattern.insert("q_proj".into(), 3);
    let Err(AdapterError::Config { faults }) = config.validate() else { panic!("accepted") };
    assert_eq!(faults, ["init = \"orthogonal\" takes an even rank, found 3"]);
}

#[test]
fn settings_of_packed_weights_are_refused_by_methods_that_do_not_pack_again() {
    let faults = |method: Method, fields: Value| match read(method, &fields).unwrap().validate() {
        Err(AdapterError::Config { faults }) => faults,
        other => panic!("accepted: {other:?}"),
    };
    let rounds = serde_json::json!({ "quantization_rounds": 2 });
    for method in [Method::Dora, Method::Olora, Method::LoraXs, Method::Full] {
        let expected = format!("quantization_rounds is a setting of sorsa, pissa, lora, not of {method}");
        assert_eq!(faults(method, rounds.clone()), [expected]);
    }
    let dense = serde_json::json!({ "residual": "dense" });
    for method in [Method::Lora, Method::Dora, Method::LoraXs, Method::Partial] {
        let expected = format!("residual is a setting of methods that split the weight, not of {method}");
        assert_eq!(faults(method, dense.clone()), [expected]);
    }
    for storage in ["dense", "exact"] {
        let both = serde_json::json!({ "residual": storage, "quantization_rounds": 1 });
        let expected =
            format!("quantization_rounds fit the factors to a packed residual, but residual is \"{storage}\"");
        assert_eq!(faults(Method::Sorsa, both), [expected]);
    }
    let gaussian = serde_json::json!({ "init": "gaussian", "quantization_rounds": 1 });
    let expected =
        "init = \"gaussian\" has no meaning with quantization_rounds, which start from the error of the packing";
    assert_eq!(faults(Method::Lora, gaussian), [expected]);
}

#[test]
fn settings_of_packed_weights_say_how_the_residual_is_packed() {
    let of = |method: Method, fields: Value, format: PackedFormat, time: PackingTime| {
        let config = read(method, &fields).unwrap();
        config.residual_packing(&config.method, format, time).map(|packing| packing.rounds)
    };
    let packing = |method: Method, fields: Value| of(method, fields, PackedFormat::NF4, PackingTime::WhileRead);
    let (none, three) = (serde_json::json!({}), serde_json::json!({ "quantization_rounds": 3 }));
    assert_eq!([packing(Method::Sorsa, none.clone()), packing(Method::Pissa, none.clone())], [Some(5); 2]);
    assert_eq!([packing(Method::Sorsa, three.clone()), packing(Method::Lora, three)], [Some(3); 2]);
    assert_eq!(packing(Method::Olora, none.clone()), Some(0));
    assert_eq!(packing(Method::Pissa, serde_json::json!({ "band": "minor" })), Some(0));
    assert_eq!([packing(Method::Lora, none.clone()), packing(Method::Dora, none)], [None; 2]);
    for storage in ["dense", "exact"] {
        assert_eq!(packing(Method::Sorsa, serde_json::json!({ "residual": storage })), None);
    }
    // What a file holds packed stays as it is, unless settings say otherwise.
    let in_file = |method, fields, format| of(method, fields, format, PackingTime::InFile);
    for method in [Method::Sorsa, Method::Pissa, Method::Olora] {
        assert_eq!(in_file(method, serde_json::json!({}), PackedFormat::NF4), None, "{method}");
        let again = serde_json::json!({ "residual": "packed", "quantization_rounds": 0 });
        let again = if method == Method::Olora { serde_json::json!({ "residual": "packed" }) } else { again };
        assert_eq!(in_file(method, again, PackedFormat::NF4), Some(0), "{method}");
    }
    assert_eq!(in_file(Method::Sorsa, serde_json::json!({ "quantization_rounds": 2 }), PackedFormat::NF4), Some(2));
    assert_eq!(in_file(Method::Sorsa, serde_json::json!({}), PackedFormat::F16), None);
    assert_eq!(in_file(Method::Sorsa, serde_json::json!({ "residual": "packed" }), PackedFormat::F16), Some(0));
    let packed = read(Method::Sorsa, &serde_json::json!({ "residual": "packed", "quantization_rounds": 0 })).unwrap();
    let text = serde_json::to_string(&packed).unwrap();
    assert!(text.contains("\"quantization_rounds\":0,\"residual\":\"packed\""), "{text}");
    assert_eq!(serde_json::from_str::<AdapterConfig>(&text).unwrap(), packed);
}

#[test]
fn everything_wrong_with_the_fields_of_a_file_is_said_at_once() {
    let fields = serde_json::json!({ "init": "zeros", "rnak": 2, "alpha_convention": 1 });
    let error = read(Method::Lora, &fields).unwrap_err();
    for words in ["`init`: unknown variant `zeros`", "unknown field `rnak`, expected one of `method`", "`alpha_conv"] {
        assert!(error.contains(words), "{error}");
    }
    assert!(read(Method::Lora, &serde_json::json!({ "rank": "four" })).unwrap_err().contains("invalid type"));
}

#[test]
fn a_convention_that_means_nothing_to_the_method_is_read_and_written_like_the_first_version_did() {
    for method in Method::ALL {
        let author = read(method, &serde_json::json!({ "alpha_convention": "author" })).unwrap();
        assert_eq!(author.method(), method);
        let written = serde_json::to_value(AdapterConfig::new(method, 4, &["q_proj"])).unwrap();
        assert_eq!(written["alpha_convention"], "peft", "{method}");
        let keys: Vec<&str> = written.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys[..5], ["method", "rank", "dropout", "target_modules", "scaling"], "{method}");
    }
    let author = read(Method::Sorsa, &serde_json::json!({ "alpha_convention": "author" })).unwrap();
    assert_eq!(
        author.method,
        SorsaConfig { alpha_convention: AlphaConvention::Author, ..SorsaConfig::default() }.into()
    );
}

#[test]
fn every_method_survives_a_file_with_its_settings() {
    for method in Method::ALL {
        let config = AdapterConfig::new(method, 4, &["q_proj"]).with_alpha(2.0);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<AdapterConfig>(&json).unwrap(), config);
    }
}

#[test]
fn the_default_start_is_not_written() {
    // Files from before the setting existed have no `init`, and the programs of then refuse it.
    let config = AdapterConfig::new(Method::Lora, 4, &["q_proj"]);
    let json = serde_json::to_string(&config).unwrap();
    assert!(!json.contains("init"), "{json}");
    assert_eq!(serde_json::from_str::<AdapterConfig>(&json).unwrap(), config);
    let config = AdapterConfig::new(LoraConfig { init: Init::Orthogonal }, 4, &["q_proj"]);
    let json = serde_json::to_string(&config).unwrap();
    assert!(json.contains("\"init\":\"orthogonal\""), "{json}");
    assert_eq!(serde_json::from_str::<AdapterConfig>(&json).unwrap(), config);
}
