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
        other => panic!("{other}"),
    }
}

/// What `finetune --dry-run` says of a recipe on a folder that holds nothing but `config.json`.
fn dry_run(place: &Place, model: &str, method: &str) -> Value {
    std::fs::create_dir_all(place.path(model)).unwrap();
    place.write(&format!("{model}/config.json"), config(model).to_string());
    let recipe = datasets().join(format!("../docs/recipes/{model}-{method}.toml"));
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
    ];
    for (model, rank, layers, sides, published) in cases {
        assert_eq!(rank * layers * sides, published, "{model}: the paper's rounded number");
        for method in ["lora", "pissa", "sorsa"] {
            let run = dry_run(&place, model, method);
            let singular_values = if method == "sorsa" { 7 * layers * rank } else { 0 };
            assert_eq!(run["shape"]["trainable_parameters"], published + singular_values, "{model} {method}");
            assert_eq!(run["recipe"]["adapter"]["method"], method);
            let rate = if method == "sorsa" { 3e-5 } else { 2e-5 };
            assert_eq!(run["recipe"]["train"]["optimizer"]["learning_rate"], rate, "{model} {method}");
            assert_eq!(run["recipe"]["train"]["accumulation"], 64);
            // A 7B model in bf16 alone is 13 GB.
            assert!(run["shape"]["memory_total"].as_u64().unwrap() > 13_000_000_000, "{model} {method}");
        }
    }
}

#[test]
fn every_recipe_of_the_folder_is_among_those() {
    let mut found: Vec<String> = std::fs::read_dir(datasets().join("../docs/recipes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    found.sort();
    let models = ["gemma-7b", "llama2-7b", "mistral-7b"];
    let expected: Vec<String> = models
        .iter()
        .flat_map(|model| ["lora", "pissa", "sorsa"].map(|method| format!("{model}-{method}.toml")))
        .collect();
    assert_eq!(found, expected);
}
