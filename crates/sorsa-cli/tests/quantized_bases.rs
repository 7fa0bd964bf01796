//! Models in GGUF files and packed weights, through the commands that take a model's folder.

mod common;

use common::{Place, Succeed};

/// A place with the model as GGUF files: `dense.gguf` with the same numbers, `packed.gguf` in blocks.
fn place() -> Place {
    let place = Place::new();
    for (file, dtype) in [("dense.gguf", "f32"), ("packed.gguf", "q8_0")] {
        place.command(&["export", "--format", "gguf", "--model", "model", "--dtype", dtype, "--out", file]).succeed();
    }
    place.write("text.jsonl", "{\"text\": \"What is 17 + 4? It is 21.\"}\n{\"text\": \"Anna has 3 apples.\"}\n");
    place
}

/// The perplexity of the place's texts.
fn perplexity(place: &Place, args: &[&str]) -> String {
    place.command(&["eval", "--quiet", "--text", "text.jsonl", "--format", "json"]).args(args).succeed()
}

fn files_of(place: &Place, file: &str) -> String {
    std::fs::read_to_string(place.path(file)).unwrap()
}

#[test]
fn a_gguf_file_of_the_same_numbers_is_the_same_model_as_its_folder() {
    let place = place();
    let of_folder = perplexity(&place, &["--model", "model"]);
    assert_eq!(perplexity(&place, &["--model", "dense.gguf"]), of_folder);
    std::fs::create_dir(place.path("one")).unwrap();
    std::fs::copy(place.path("dense.gguf"), place.path("one/model.gguf")).unwrap();
    assert_eq!(perplexity(&place, &["--model", "one"]), of_folder);
    let other = ["--set", "model.config.rope_theta=300.0"];
    let changed = perplexity(&place, &[&["--model", "model"], &other[..]].concat());
    assert_ne!(changed, of_folder);
    assert_eq!(perplexity(&place, &[&["--model", "dense.gguf"], &other[..]].concat()), changed);
    assert_eq!(perplexity(&place, &[&["--model", "one"], &other[..]].concat()), changed);
    let generated = |model: &str| {
        place.command(&["generate", "--model", model, "--max-new-tokens", "12", "What is 17 + 4?"]).succeed()
    };
    assert_eq!(generated("dense.gguf"), generated("model"));
}

#[test]
fn an_adapter_of_a_packed_gguf_file_is_trained_resumed_and_used() {
    let place = place();
    let train = |more: &[&str]| {
        let mut command = place.command(&["finetune", "--model", "packed.gguf", "--data", "data.jsonl", "--quiet"]);
        command.args(["--method", "lora", "--rank", "2", "--batch-size", "4", "--limit", "16"]);
        command.args(["--set", "train.checkpoint_every=2", "--max-steps", "4"]).args(more).succeed()
    };
    train(&["--run-dir", "run"]);
    let recipe = files_of(&place, "run/recipe.toml");
    assert!(recipe.contains("path = \"packed.gguf\""), "{recipe}");
    let with_adapter = perplexity(&place, &["--adapter", "run"]);
    assert_eq!(perplexity(&place, &["--model", "packed.gguf", "--adapter", "run"]), with_adapter);
    assert_ne!(perplexity(&place, &["--model", "packed.gguf"]), with_adapter);

    // Another file under the same name is noticed.
    std::fs::copy(place.path("dense.gguf"), place.path("packed.gguf")).unwrap();
    std::fs::remove_dir_all(place.path("run/adapter")).unwrap();
    std::fs::remove_file(place.path("run/summary.json")).unwrap();
    let output = place.command(&["finetune", "--resume", "run"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("model than packed.gguf is now (config.json, weights)"), "{message}");
}

#[test]
fn a_dense_model_is_packed_as_the_recipe_says_and_as_its_run_did() {
    let place = place();
    place.finetune(&["--method", "lora", "--max-steps", "3", "--quantize", "nf4", "--run-dir", "run"]).succeed();
    let recipe = files_of(&place, "run/recipe.toml");
    assert!(recipe.contains("quantize = \"nf4\""), "{recipe}");
    let of_run = perplexity(&place, &["--adapter", "run"]);
    assert_eq!(perplexity(&place, &["--adapter", "run", "--quantize", "nf4"]), of_run);
    assert_ne!(perplexity(&place, &["--adapter", "run", "--quantize", "q4_0"]), of_run);
    assert_ne!(
        perplexity(&place, &["--model", "model"]),
        perplexity(&place, &["--model", "model", "--quantize", "fp4"])
    );
    // The embedding and the head are packed too if a second format says so.
    let both = ["--method", "lora", "--max-steps", "3", "--quantize", "nf4+fp4", "--run-dir", "both"];
    place.finetune(&both).succeed();
    assert!(files_of(&place, "both/recipe.toml").contains("quantize = \"nf4+fp4\""));
    let of_both = perplexity(&place, &["--adapter", "both"]);
    assert_eq!(perplexity(&place, &["--adapter", "both", "--quantize", "nf4+fp4"]), of_both);
    assert_ne!(perplexity(&place, &["--adapter", "both", "--quantize", "nf4"]), of_both);
    // Rows of 48 are no blocks of 32.
    let output = place
        .command(&["generate", "--model", "model", "--quantize", "q4_k", "--max-new-tokens", "1", "A"])
        .output()
        .unwrap();
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(notes.contains("are not q4_k but"), "{notes}");
}

#[test]
fn a_run_that_packed_its_model_is_resumed_to_the_same_adapter() {
    let place = place();
    for (method, base) in
        [("lora", ["--quantize", "nf4"]), ("sorsa", ["--quantize", "nf4"]), ("pissa", ["--model", "packed.gguf"])]
    {
        let checkpoints = ["--set", "train.checkpoint_every=2", "--set", "train.keep_checkpoints=9"];
        let run = ["--method", method, "--max-steps", "6", "--run-dir", method];
        place.finetune(&[&checkpoints[..], &base, &run].concat()).succeed();
        let adapter = || std::fs::read(place.path(&format!("{method}/adapter/adapter.safetensors"))).unwrap();
        let expected = adapter();
        for folder in ["adapter", "checkpoints/step-6"] {
            std::fs::remove_dir_all(place.path(&format!("{method}/{folder}"))).unwrap();
        }
        std::fs::remove_file(place.path(&format!("{method}/summary.json"))).unwrap();
        place.command(&["finetune", "--resume", method, "--quiet"]).succeed();
        assert!(adapter() == expected, "{method}");
    }
}

#[test]
fn models_that_cannot_be_read_are_one_line_of_error() {
    let place = place();
    let refused = |args: &[&str]| {
        let output = place.command(args).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        message
    };
    let bytes = std::fs::read(place.path("packed.gguf")).unwrap();
    place.write("cut.gguf", &bytes[..bytes.len() - 1000]);
    let message = refused(&["eval", "--model", "cut.gguf", "--text", "text.jsonl"]);
    assert!(message.contains("cut.gguf") && message.contains("not within the file"), "{message}");
    std::fs::create_dir(place.path("two")).unwrap();
    for name in ["two/a.gguf", "two/b.gguf"] {
        std::fs::copy(place.path("packed.gguf"), place.path(name)).unwrap();
    }
    let message = refused(&["finetune", "--model", "two", "--data", "data.jsonl"]);
    assert!(message.contains("expected one GGUF file, found a.gguf; b.gguf"), "{message}");
    let message = refused(&["finetune", "--model", "model", "--quantize", "q3_k", "--data", "data.jsonl"]);
    assert!(message.contains("unknown format `q3_k`, expected one of nf4, nf4-single"), "{message}");
    let message = refused(&["finetune", "--model", "text.jsonl", "--data", "data.jsonl"]);
    assert!(message.contains("text.jsonl"), "{message}");
}
