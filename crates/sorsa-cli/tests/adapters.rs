//! Adapters that PEFT wrote, by the real binary: how it chooses modules and ranks, what it saves beside them, and what is said about an
//! adapter that may not be the one that was meant. `tests/golden/README.md` says how the files were made.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Place, Succeed, datasets};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// A tensor's dtype, shape and bytes.
type Raw = (Dtype, Vec<usize>, Vec<u8>);

fn llama() -> PathBuf {
    datasets().join("../tests/golden/llama")
}

fn read(path: &Path) -> BTreeMap<String, Raw> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let raw = |view: &TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.iter().map(|(name, view)| (name.to_owned(), raw(&view))).collect()
}

fn write(path: &Path, tensors: &BTreeMap<String, Raw>) {
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
        .collect();
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

fn floats(raw: &Raw) -> Vec<f32> {
    let wide = |bytes: &[u8]| match raw.0 {
        Dtype::BF16 => f32::from_le_bytes([0, 0, bytes[0], bytes[1]]),
        _ => f32::from_le_bytes(bytes.try_into().unwrap()),
    };
    raw.2.chunks_exact(if raw.0 == Dtype::BF16 { 2 } else { 4 }).map(wide).collect()
}

fn f32s(shape: &[usize], values: impl Iterator<Item = f32>) -> Raw {
    (Dtype::F32, shape.to_vec(), values.flat_map(f32::to_le_bytes).collect())
}

/// f32 numbers as the nearest in bf16; halves away from zero.
fn bf16s(raw: &Raw) -> Raw {
    let narrow = |value: f32| ((value.to_bits() + 0x8000) >> 16) as u16;
    (Dtype::BF16, raw.1.clone(), floats(raw).into_iter().flat_map(|value| narrow(value).to_le_bytes()).collect())
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// A copy of the golden Llama. Its tensors go through `edit`.
fn model(place: &Place, name: &str, edit: impl FnOnce(&mut BTreeMap<String, Raw>)) {
    let folder = place.path(name);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(llama().join("checkpoint/config.json"), folder.join("config.json")).unwrap();
    let mut tensors = read(&llama().join("checkpoint/model.safetensors"));
    edit(&mut tensors);
    write(&folder.join("model.safetensors"), &tensors);
}

/// The same model with its embedding as the head.
fn tied_model(place: &Place, name: &str) {
    model(place, name, |tensors| drop(tensors.remove("lm_head.weight")));
    edit_json(&place.path(name).join("config.json"), |config| config["tie_word_embeddings"] = true.into());
}

/// A copy of an adapter's folder, with other settings and tensors.
fn adapter(place: &Place, from: &Path, name: &str, settings: &Value, edit: impl FnOnce(&mut BTreeMap<String, Raw>)) {
    let folder = place.path(name);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(from.join("adapter_config.json"), folder.join("adapter_config.json")).unwrap();
    edit_json(&folder.join("adapter_config.json"), |config| {
        config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    });
    let mut tensors = read(&from.join("adapter_model.safetensors"));
    edit(&mut tensors);
    write(&folder.join("adapter_model.safetensors"), &tensors);
}

/// The batch of the golden Llama with the logits that `expected` has.
fn golden(place: &Place, name: &str, expected: &Path) {
    let mut batch = read(&llama().join("io.safetensors"));
    batch.extend(read(expected));
    write(&place.path(name), &batch);
}

/// What a command prints on standard error; it ends well.
#[track_caller]
fn words(place: &Place, args: &[&str]) -> String {
    let output = place.command(args).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {words}");
    words
}

/// The error of a command that is refused.
#[track_caller]
fn refused(place: &Place, args: &[&str]) -> String {
    let output = place.command(args).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {words}");
    words
}

#[test]
fn whatever_peft_chooses_and_saves_gives_its_logits_as_an_adapter_imported_and_merged() {
    let place = Place::new();
    model(&place, "own/checkpoint", |_| ());
    tied_model(&place, "tied/checkpoint");
    let choices = [
        "head",
        "dora_head",
        "patterns",
        "norms",
        "beside",
        "tied_head",
        "tied_whole_head",
        "tied_whole_embedding",
        "tied_beside",
    ];
    for choice in choices {
        let folder = llama().join("choices").join(choice);
        golden(&place, "golden", &folder.join("expected.safetensors"));
        let base = if choice.starts_with("tied") { "tied/checkpoint" } else { "own/checkpoint" };
        let adapter = folder.join("adapter");
        let adapter = adapter.to_str().unwrap();
        let said = words(&place, &["verify", "--golden", "golden", "--model", base, "--adapter", adapter]);
        match choice {
            "tied_head" | "tied_whole_head" | "tied_whole_embedding" => {
                assert!(said.contains("the model gets a head of its own"), "{choice}: {said}");
            }
            "patterns" => assert!(said.contains("`^q_proj` of alpha_pattern: no adapted module matches"), "{said}"),
            _ => assert_eq!(said, "", "{choice}"),
        }
        let [imported, merged, exported] = ["imported", "merged", "exported"].map(|kind| format!("{choice}-{kind}"));
        words(&place, &["import", adapter, "--model", base, "--out", &imported]);
        words(&place, &["verify", "--golden", "golden", "--model", base, "--adapter", &imported]);
        words(&place, &["merge", "--adapter", adapter, "--model", base, "--out", &merged]);
        words(&place, &["verify", "--golden", "golden", "--model", &merged]);
        if choice != "tied_beside" {
            let form = ["export", "--format", "peft", "--model", base, "--adapter", &imported, "--out", &exported];
            words(&place, &form);
            words(&place, &["verify", "--golden", "golden", "--model", base, "--adapter", &exported]);
        }
    }
    // PEFT's name of all norms is the name of the last one here.
    let config = std::fs::read(place.path("norms-exported/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["modules_to_save"].as_array().unwrap().len(), 5, "{config}");
}

#[test]
fn a_name_that_reaches_more_than_was_trained_leaves_as_a_path() {
    let place = Place::new();
    let whole =
        ["--method", "lora", "--max-steps", "2", "--set", "adapter.modules_to_save=[\"norm\"]", "--run-dir", "run"];
    place.finetune(&whole).succeed();
    place.command(&["export", "--format", "peft", "--adapter", "run", "--out", "out"]).succeed();
    let config: Value = serde_json::from_slice(&std::fs::read(place.path("out/adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["modules_to_save"], json!(["model.norm"]));
    let base = place.path("model").canonicalize().unwrap();
    assert_eq!(config["base_model_name_or_path"], base.to_str().unwrap());
    words(&place, &["import", "out", "--model", "model", "--out", "again"]);
}

#[test]
fn what_is_odd_about_an_adapter_is_said_by_every_command_that_loads_it() {
    let place = Place::new();
    model(&place, "checkpoint", |_| ());
    let plain = llama().join("lora/adapter");
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let nothing = |_: &mut BTreeMap<String, Raw>| ();
    adapter(&place, &plain, "other-base", &json!({"base_model_name_or_path": "my/llama-residual"}), nothing);
    adapter(
        &place,
        &plain,
        "dead",
        &json!({"alpha_pattern": {"^q_proj": 100, "model.layers.1.mlp.down_proj": 5}}),
        nothing,
    );
    adapter(&place, &plain, "without", &json!({}), |tensors| {
        tensors.retain(|name, _| !name.starts_with(q));
    });
    adapter(&place, &plain, "more", &json!({"target_modules": ["q_proj"]}), nothing);
    adapter(&place, &plain, "ranks", &json!({"rank_pattern": {}}), nothing);
    let zero = |tensors: &mut BTreeMap<String, Raw>| {
        tensors.iter_mut().filter(|(name, _)| name.contains("lora_B")).for_each(|(_, raw)| raw.2.fill(0));
    };
    adapter(&place, &plain, "idle", &json!({}), zero);
    adapter(&place, &plain, "partly-idle", &json!({}), |tensors| {
        tensors.get_mut(&format!("{q}.lora_B.weight")).unwrap().2.fill(0);
    });
    for (name, word) in [
        ("other-base", "the adapter was made for `my/llama-residual`, and the model is `checkpoint`"),
        ("dead", "`^q_proj` of alpha_pattern: no adapted module matches"),
        (
            "without",
            "the configuration names modules without tensors, which stay as they are: `model.layers.0.self_attn.q_proj`",
        ),
        ("more", "there are tensors of modules that the configuration does not name"),
        ("ranks", "the configuration has another rank than the tensors"),
        ("idle", "the adapter changes nothing: it was saved before training"),
        ("partly-idle", "the adapter changes nothing in 1 modules: `model.layers.0.self_attn.q_proj`"),
    ] {
        let expected = format!("warning: {name}: {word}");
        let pair = ["--model", "checkpoint", "--adapter", name];
        golden(&place, "golden", &llama().join("lora/expected.safetensors"));
        let verify = [&["verify", "--golden", "golden", "--tolerance", "1e9"][..], &pair].concat();
        let merge = [&["merge", "--out", "merged"][..], &pair].concat();
        let export = [&["export", "--format", "peft", "--out", "exported"][..], &pair].concat();
        let gguf = [&["export", "--format", "gguf-lora", "--out", "lora.gguf"][..], &pair].concat();
        let import = vec!["import", name, "--model", "checkpoint", "--out", "imported"];
        for command in [verify, merge, export, gguf, import] {
            let said = words(&place, &command);
            assert!(said.contains(&expected), "{command:?}: {said}");
            assert_eq!(said.lines().count(), 1, "{command:?}: {said}");
        }
    }
}

#[test]
fn an_adapter_that_is_odd_is_doubted_where_text_is_read_and_trained_on() {
    let place = Place::new();
    place.finetune(&["--method", "lora", "--max-steps", "2", "--lr", "1e-2", "--run-dir", "run"]).succeed();
    place.command(&["export", "--format", "peft", "--adapter", "run", "--out", "lora"]).succeed();
    adapter(&place, &place.path("lora"), "odd", &json!({"base_model_name_or_path": "my/other"}), |_| ());
    // Its own tokenizer, with a template and a token more.
    std::fs::copy(place.path("model/tokenizer.json"), place.path("odd/tokenizer.json")).unwrap();
    edit_json(&place.path("odd/tokenizer.json"), |tokenizer| tokenizer["normalizer"] = json!({"type": "Lowercase"}));
    place.write("odd/chat_template.jinja", "{{ messages }}");
    place.write("text.jsonl", "{\"text\": \"Tom has 3 apples.\"}\n");
    let pair = ["--model", "model", "--adapter", "odd"];
    let generate = [&["generate", "--max-new-tokens", "1", "x"][..], &pair].concat();
    let eval = [&["eval", "--quiet", "--text", "text.jsonl"][..], &pair].concat();
    let inspect = [&["inspect", "--data", "data.jsonl"][..], &pair].concat();
    let data =
        ["finetune", "--data", "data.jsonl", "--quiet", "--max-steps", "1", "--batch-size", "4", "--run-dir", "second"];
    let finetune = [&data[..], &["--set", "data.validation_rows=4"], &pair].concat();
    for command in [generate, eval, inspect, finetune] {
        let said = words(&place, &command);
        for word in ["was made for `my/other`", "a tokenizer of its own", "a chat template of its own"] {
            assert!(said.contains(word), "{command:?}: {said}");
        }
    }
    let other = place.command(&["generate", "--max-new-tokens", "1", "--adapter", "run", "x"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&other.stderr), "", "a run's own model");
    place.make_model("another", 1);
    let said = words(&place, &["generate", "--max-new-tokens", "1", "--model", "another", "--adapter", "run", "x"]);
    assert!(said.contains("was made for `model`, and the model is `another`"), "{said}");
}

#[test]
fn a_copy_of_the_base_that_is_another_and_a_start_that_is_none_are_refused() {
    let place = Place::new();
    model(&place, "checkpoint", |_| ());
    let head = llama().join("choices/head/adapter");
    adapter(&place, &head, "changed", &json!({}), |tensors| {
        let copy = tensors.get_mut("base_model.model.lm_head.base_layer.weight").unwrap();
        *copy = f32s(&copy.1.clone(), floats(copy).into_iter().map(|value| value * 1.1));
    });
    adapter(&place, &head, "rounded", &json!({}), |tensors| {
        let copy = tensors.get_mut("base_model.model.lm_head.base_layer.weight").unwrap();
        *copy = bf16s(copy);
    });
    let merge = |adapter: &str| {
        let args = ["merge", "--model", "checkpoint", "--adapter", adapter, "--out", "merged"];
        place.command(&args).output().unwrap()
    };
    let error = String::from_utf8_lossy(&merge("changed").stderr).into_owned();
    assert!(
        error.contains(
            "`base_model.model.lm_head.weight` of the adapter, a copy of the base's, is not what the model has"
        )
    );
    assert!(merge("rounded").status.success());

    // Biases are compared with the model's, and there are none.
    adapter(&place, &head, "biases", &json!({"bias": "all"}), |tensors| {
        tensors
            .insert("base_model.model.model.layers.0.self_attn.q_proj.bias".into(), f32s(&[32], (0..32).map(|_| 1.0)));
    });
    let error = String::from_utf8_lossy(&merge("biases").stderr).into_owned();
    assert!(error.contains("the model has no parameter `model.layers.0.self_attn.q_proj.bias`"), "{error}");
    adapter(&place, &head, "more-tokens", &json!({}), |tensors| {
        tensors.insert("base_model.model.model.embed_tokens.weight".into(), f32s(&[65, 32], (0..65 * 32).map(|_| 1.0)));
    });
    let error = String::from_utf8_lossy(&merge("more-tokens").stderr).into_owned();
    assert!(error.contains("trained with another vocabulary") && error.contains("resize_token_embeddings"), "{error}");

    // PiSSA's start is a part of the weights.
    let pissa = json!({"init_lora_weights": "pissa"});
    let plain = llama().join("lora/adapter");
    adapter(&place, &plain, "pissa", &pissa, |_| ());
    adapter(&place, &plain, "noise", &json!({}), |tensors| {
        for raw in tensors.values_mut() {
            *raw = f32s(&raw.1.clone(), floats(raw).into_iter().map(|value| value + 0.5));
        }
    });
    let import = |start: &str| {
        refused(&place, &["import", "pissa", "--model", "checkpoint", "--start", start, "--out", "imported"])
    };
    assert!(import("pissa").contains("the start is the trained adapter itself"));
    assert!(import("noise").contains("the start is no part of the model's weights (14 of 14 modules"));
    let plain = plain.to_str().unwrap();
    let said = words(&place, &["import", plain, "--model", "checkpoint", "--start", "noise", "--out", "imported"]);
    assert!(said.contains("the start is not used: lora takes nothing away"), "{said}");
}

#[test]
fn a_merge_keeps_the_dtype_of_each_tensor_and_says_what_rounding_loses() {
    let place = Place::new();
    let mixed = "model.embed_tokens.weight";
    model(&place, "mixed", |tensors| {
        let narrow = bf16s(&tensors[mixed]);
        tensors.insert(mixed.to_owned(), narrow);
    });
    let plain = llama().join("lora/adapter");
    let path = plain.to_str().unwrap();
    let said = words(&place, &["merge", "--model", "mixed", "--adapter", path, "--out", "merged"]);
    assert!(!said.contains("rounding"), "{said}");
    let (before, after) = (read(&place.path("mixed/model.safetensors")), read(&place.path("merged/model.safetensors")));
    let dtypes =
        |tensors: &BTreeMap<String, Raw>| tensors.iter().map(|(n, raw)| (n.clone(), raw.0)).collect::<Vec<_>>();
    assert_eq!(dtypes(&before), dtypes(&after));
    assert_eq!(before[mixed], after[mixed]);
    let config: Value = serde_json::from_slice(&std::fs::read(place.path("merged/config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "float32");

    model(&place, "narrow", |tensors| tensors.values_mut().for_each(|raw| *raw = bf16s(raw)));
    adapter(&place, &plain, "small", &json!({}), |tensors| {
        for (_, raw) in tensors.iter_mut().filter(|(name, _)| name.contains("lora_B")) {
            *raw = f32s(&raw.1.clone(), floats(raw).into_iter().map(|value| value * 5e-3));
        }
    });
    let small = ["--model", "narrow", "--adapter", "small"];
    let said = words(&place, &[&["merge", "--out", "rounded"][..], &small].concat());
    let loss = said.split("to bf16 loses ").nth(1).and_then(|rest| rest.split(' ').next());
    let loss: f64 = loss.unwrap_or_else(|| panic!("{said}")).parse().unwrap();
    // The slow way: what was written beside what should have been.
    words(&place, &[&["merge", "--out", "exact", "--dtype", "f32"][..], &small].concat());
    let [base, rounded, exact] =
        ["narrow", "rounded", "exact"].map(|name| read(&place.path(name).join("model.safetensors")));
    let (mut lost, mut change) = (0.0, 0.0);
    for (name, exact) in exact.iter().filter(|(name, _)| name.contains("_proj")) {
        let (exact, rounded, base) = (floats(exact), floats(&rounded[name]), floats(&base[name]));
        lost += exact.iter().zip(&rounded).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        change += exact.iter().zip(&base).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    }
    assert!((loss - 100.0 * (lost / change).sqrt()).abs() <= 0.5 && loss > 50.0, "{loss}");
    assert!(said.contains("--dtype f32 keeps it"), "{said}");
    let gguf = [&["export", "--format", "gguf-lora", "--dtype", "q8_0", "--out", "x"][..], &small].concat();
    assert!(refused(&place, &gguf).contains("adapters are f32 or f16, not q8_0"));
    let hf = [&["export", "--format", "hf", "--dtype", "q8_0", "--out", "x"][..], &small].concat();
    assert!(refused(&place, &hf).contains("--dtype q8_0 says nothing for --format hf: it is a type of GGUF files"));
}

#[test]
fn a_head_that_is_not_the_embedding_is_loaded_although_the_configuration_ties_them() {
    let place = Place::new();
    model(&place, "separate", |_| ());
    edit_json(&place.path("separate/config.json"), |config| config["tie_word_embeddings"] = true.into());
    golden(&place, "golden", &llama().join("io.safetensors"));
    let said = words(&place, &["verify", "--model", "separate", "--golden", "golden"]);
    assert!(said.contains("separate: the head is not the embedding, although config.json says so"), "{said}");
    words(&place, &["export", "--format", "hf", "--model", "separate", "--out", "again"]);
    assert_eq!(words(&place, &["verify", "--model", "again", "--golden", "golden"]), "");
    // A copy of the embedding is no head of its own.
    model(&place, "copy", |tensors| {
        let embedding = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".to_owned(), embedding);
    });
    edit_json(&place.path("copy/config.json"), |config| config["tie_word_embeddings"] = true.into());
    let said = words(&place, &["verify", "--model", "copy", "--golden", "golden", "--tolerance", "1e9"]);
    assert_eq!(said, "");
}

#[test]
fn an_adapters_folder_is_replaced_as_a_whole_and_no_other_files_with_it() {
    let place = Place::new();
    model(&place, "checkpoint", |_| ());
    let [lora, head] = ["lora", "choices/head"].map(|name| llama().join(name).join("adapter"));
    let export = |adapter: &Path| {
        let args = ["export", "--format", "peft", "--model", "checkpoint", "--out", "out", "--adapter"];
        place.command(&args).arg(adapter).output().unwrap()
    };
    assert!(export(&lora).status.success());
    let first = std::fs::metadata(place.path("out")).unwrap();
    assert!(export(&head).status.success());
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let second = std::fs::metadata(place.path("out")).unwrap();
        assert_ne!(first.ino(), second.ino(), "another folder has the name now");
    }
    let names = |folder: &str| {
        let entries = std::fs::read_dir(place.path(folder)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names("out"), ["adapter_config.json", "adapter_model.safetensors"]);
    words(&place, &["import", "out", "--model", "checkpoint", "--out", "own"]);
    assert!(!names(".").iter().any(|name| name.starts_with('.') && name.contains("own")), "{:?}", names("."));
    place.write("out/notes.txt", "mine");
    let output = export(&lora);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("out holds more than an adapter: notes.txt; name a new or an empty folder"), "{error}");
    let import = refused(&place, &["import", "out", "--model", "checkpoint", "--out", "checkpoint"]);
    assert!(import.contains("checkpoint holds more than an adapter: config.json, model.safetensors"), "{import}");
}

#[test]
fn an_adapter_in_the_place_of_another_thing_is_found_or_named() {
    let place = Place::new();
    model(&place, "checkpoint", |_| ());
    adapter(&place, &llama().join("lora/adapter"), "out/mine", &json!({}), |_| ());
    let error = refused(&place, &["merge", "--model", "checkpoint", "--adapter", "out", "--out", "merged"]);
    assert!(
        error.contains("out holds no adapter") && error.contains("an adapter is in out/mine: name that folder"),
        "{error}"
    );
    adapter(&place, &llama().join("lora/adapter"), "out/more", &json!({}), |_| ());
    let error = refused(&place, &["merge", "--model", "checkpoint", "--adapter", "out", "--out", "merged"]);
    assert!(error.contains("an adapter is in out/mine, out/more: name that folder"), "{error}");
    for args in [
        &["generate", "--model", "out/mine", "x"][..],
        &["export", "--format", "hf", "--model", "out/mine", "--out", "m"],
    ] {
        let error = refused(&place, args);
        assert!(error.contains("out/mine holds an adapter and no model: name it with --adapter"), "{error}");
    }
    // Other programs do not know the embedded model.
    let embedded = datasets().join("../tests/golden/first_version/lora/adapter");
    let export =
        ["export", "--format", "peft", "--model", "embedded", "--out", "peft", "--adapter", embedded.to_str().unwrap()];
    let said = words(&place, &export);
    assert!(said.contains("`base_model_name_or_path` is null: write it with `sorsa export --format hf"), "{said}");
    let config: Value =
        serde_json::from_slice(&std::fs::read(place.path("peft/adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["base_model_name_or_path"], Value::Null);
}
