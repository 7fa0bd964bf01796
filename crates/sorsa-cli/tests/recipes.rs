//! The recipes in `docs/recipes`, resolved without weights: the published numbers of trained parameters come out.

mod common;

use common::{Place, Succeed, datasets};
use serde_json::{Value, json};

/// `config.json` of a published model, with the fields that say its size.
fn config(model: &str) -> Value {
    match model {
        "llama2-7b" => json!({
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "hidden_act": "silu", "tie_word_embeddings": false,
        }),
        "mistral-7b" => json!({
            "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 32768, "hidden_act": "silu", "sliding_window": 4096,
        }),
        "gemma-7b" => json!({
            "model_type": "gemma", "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "vocab_size": 256_000,
            "max_position_embeddings": 8192, "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
        }),
        "rwkv6-7b" => json!({
            "model_type": "rwkv6", "hidden_size": 4096, "attention_hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 64, "head_size": 64, "head_size_divisor": 8,
            "vocab_size": 65_536, "layer_norm_epsilon": 1e-5, "rescale_every": 6, "model_version": "6_0",
        }),
        "llama3.2-3b" => json!({
            "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
            "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072, "hidden_act": "silu", "tie_word_embeddings": true,
            "rope_theta": 500_000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        }),
        other => panic!("{other}"),
    }
}

/// What `finetune --dry-run` says of a recipe on a folder that holds nothing but `config.json`.
fn dry_run(place: &Place, model: &str, recipe: &str) -> Value {
    std::fs::create_dir_all(place.path(model)).unwrap();
    place.write(&format!("{model}/config.json"), config(model).to_string());
    let recipe = datasets().join(format!("../docs/recipes/{recipe}.toml"));
    let mut command = place.command(&["finetune", "--dry-run", "--format", "json", "--model", model, "--recipe"]);
    serde_json::from_str(&command.arg(recipe).succeed()).unwrap()
}

#[test]
fn the_published_runs_train_as_many_parameters_as_published() {
    let place = Place::new();
    // Per layer: q, k, v, o, gate, up, down, each rank * (d_in + d_out), and rank more for the singular values.
    let cases = [
        ("llama2-7b", 128, 32, 4 * (4096 + 4096) + 3 * (4096 + 11008), 319_815_680),
        ("mistral-7b", 64, 32, 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336), 167_772_160),
        ("gemma-7b", 64, 28, 4 * (3072 + 4096) + 3 * (3072 + 24576), 200_015_872),
        // Receptance, key, value, gate, output; then receptance, key, value of the channel mix.
        ("rwkv6-7b", 64, 32, 6 * (4096 + 4096) + 2 * (4096 + 14336), 176_160_768),
    ];
    for (model, rank, layers, sides, published) in cases {
        assert_eq!(rank * layers * sides, published, "{model}: the paper's rounded number");
        for method in ["lora", "pissa", "sorsa"] {
            let run = dry_run(&place, model, &format!("{model}-{method}"));
            let matrices = if model == "rwkv6-7b" { 8 } else { 7 };
            let singular_values = if method == "sorsa" { matrices * layers * rank } else { 0 };
            assert_eq!(run["shape"]["trainable_parameters"], published + singular_values, "{model} {method}");
            assert_eq!(run["recipe"]["adapter"]["method"], method);
            let rate = if method == "sorsa" { 3e-5 } else { 2e-5 };
            assert_eq!(run["recipe"]["train"]["optimizer"]["learning_rate"], rate, "{model} {method}");
            assert_eq!(run["recipe"]["train"]["accumulation"], 64);
            // 100,000 rows, 128 a step.
            assert_eq!(run["shape"]["steps"], 782);
            // A 7B model in bf16 alone is 13 GB.
            assert!(run["shape"]["memory_total"].as_u64().unwrap() > 13_000_000_000, "{model} {method}");
        }
    }
}

#[test]
fn the_rows_of_pefts_comparison_have_its_settings_and_its_numbers_of_parameters() {
    let place = Place::new();
    // q and v in 28 layers; 9,175,040 is what PEFT prints for rank 32.
    for (rank, trained) in [(32, 9_175_040), (64, 18_350_080)] {
        assert_eq!(rank * 28 * ((3072 + 3072) + (3072 + 1024)), trained);
        for method in ["lora", "pissa", "sorsa"] {
            let run = dry_run(&place, "llama3.2-3b", &format!("peft-llama3.2-3b-r{rank}-{method}"));
            let singular_values = if method == "sorsa" { 2 * 28 * rank } else { 0 };
            assert_eq!(run["shape"]["trainable_parameters"], trained + singular_values, "{method}");
            assert_eq!(run["shape"]["parameters"], 3_212_749_824u64);
            let (adapter, train, data) = (&run["recipe"]["adapter"], &run["recipe"]["train"], &run["recipe"]["data"]);
            assert_eq!((&adapter["method"], &adapter["rank"]), (&json!(method), &json!(rank)));
            let alpha = if method == "sorsa" { Value::Null } else { json!(2.0 * f64::from(rank)) };
            assert_eq!(adapter.get("alpha").unwrap_or(&Value::Null), &alpha);
            assert_eq!(
                (&train["batch_size"], &train["max_steps"], &run["shape"]["steps"]),
                (&4.into(), &5000.into(), &5000.into())
            );
            let optimizer = &train["optimizer"];
            assert_eq!((&optimizer["learning_rate"], &optimizer["weight_decay"]), (&json!(1e-4), &json!(0.1)));
            assert_eq!(
                (&train["schedule"]["kind"], &train["schedule"]["warmup_ratio"]),
                (&json!("cosine"), &json!(0.1))
            );
            assert_eq!(
                (&data["max_length"], &data["template"], &data["train_on_prompt"]),
                (&768.into(), &json!("question"), &true.into())
            );
        }
    }
}

#[test]
fn the_recipe_of_the_embedded_task_is_what_no_arguments_do() {
    let place = Place::new();
    let recipe = datasets().join("../docs/recipes/embedded.toml");
    let dry_run = ["finetune", "--dry-run", "--format", "json"];
    let defaults: Value = serde_json::from_str(&place.command(&dry_run).succeed()).unwrap();
    let written: Value = serde_json::from_str(&place.command(&dry_run).arg("--recipe").arg(recipe).succeed()).unwrap();
    assert_eq!(written, defaults);
    assert_eq!(written["shape"]["trainable_parameters"], 149_952);
}

#[test]
fn a_template_that_does_not_exist_is_a_fault_of_the_recipe() {
    let place = Place::new();
    let output = place.command(&["finetune", "--dry-run", "--set", "data.template=riddle"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("unknown data.template `riddle`, expected alpaca, code, question, raw, chat"), "{error}");
}

#[test]
fn every_recipe_of_the_folder_is_among_those() {
    let mut found: Vec<String> = std::fs::read_dir(datasets().join("../docs/recipes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    found.sort();
    let models = ["gemma-7b", "llama2-7b", "mistral-7b", "peft-llama3.2-3b-r32", "peft-llama3.2-3b-r64", "rwkv6-7b"];
    let mut expected: Vec<String> = models
        .iter()
        .flat_map(|model| ["lora", "pissa", "sorsa"].map(|method| format!("{model}-{method}.toml")))
        .collect();
    expected.push("embedded.toml".to_owned());
    expected.sort();
    assert_eq!(found, expected);
}
