//! Exports of packed models, and of adapters beside packed weights, by the real binary.

mod common;

use common::{Place, Succeed};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// The differences between the logits of a model and zero.
fn differences(place: &Place, options: &[&str]) -> Vec<f64> {
    if !place.path("zero.safetensors").exists() {
        let config: Value = json_of(place, "model/config.json");
        let ids: Vec<u8> = (0..24i64).flat_map(|i| (1 + i * 7 % 200).to_le_bytes()).collect();
        let zeros = vec![0; 4 * 24 * config["vocab_size"].as_u64().unwrap() as usize];
        let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let tensors = [
            ("input_ids", view(Dtype::I64, &[2, 12], &ids)),
            ("labels", view(Dtype::I64, &[2, 12], &ids)),
            ("logits", view(Dtype::F32, &[2, 12, zeros.len() / 96], &zeros)),
        ];
        place.write("zero.safetensors", safetensors::serialize(tensors, None).unwrap());
    }
    let verify = ["verify", "--golden", "zero.safetensors", "--format", "json"];
    let output = place.command(&verify).args(options).output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    json["checks"].as_array().unwrap().iter().map(|check| check["difference"].as_f64().unwrap()).collect()
}

/// Whether two models have the same logits.
#[track_caller]
fn assert_same(place: &Place, one: &[&str], other: &[&str]) {
    let (found, expected) = (differences(place, one), differences(place, other));
    assert!(found.len() == 2 && found[0] > 1e-2, "{found:?}");
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-4, "{one:?} and {other:?}: {found} and {expected}");
    }
}

fn json_of(place: &Place, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path(name)).unwrap()).unwrap()
}

#[track_caller]
fn refused(place: &Place, args: &[&str]) -> String {
    let output = place.command(args).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {words}");
    words
}

fn trained(place: &Place, model: &str, run: &str, method: &str) {
    trained_with(place, model, run, method, &[]);
}

fn trained_with(place: &Place, model: &str, run: &str, method: &str, more: &[&str]) {
    let options = ["--max-steps", "3", "--run-dir", run, "--lr", "1e-2", "--model", model, "--method", method];
    place.finetune(&[&options[..], more].concat()).succeed();
}

#[test]
fn a_mixture_says_what_it_loses_and_a_modelfile_of_others_stays() {
    let place = Place::new();
    let export = ["export", "--format", "gguf", "--model", "model", "--dtype", "Q4_K_M", "--out", "out/model.gguf"];
    std::fs::create_dir(place.path("out")).unwrap();
    let said = place.command(&export).succeed();
    assert!(
        said.contains("q4_k_m is off by ") && said.contains("are q5_0: their rows are not whole blocks of q4_k"),
        "{said}"
    );
    assert!(said.contains("with a Modelfile for Ollama"), "{said}");
    let modelfile = std::fs::read_to_string(place.path("out/Modelfile")).unwrap();
    assert!(modelfile.contains("\nFROM ./model.gguf\n"), "{modelfile}");
    place.write("out/Modelfile", "FROM ./mine.gguf\n");
    let said = place.command(&export).succeed();
    assert!(
        said.contains("Modelfile is not of sorsa and stays as it is") && !said.contains("with a Modelfile"),
        "{said}"
    );
    assert_eq!(std::fs::read_to_string(place.path("out/Modelfile")).unwrap(), "FROM ./mine.gguf\n");
}

#[test]
fn the_template_of_a_modelfile_is_that_of_the_chat_or_none() {
    let place = Place::new();
    let export = ["export", "--format", "gguf", "--model", "model", "--out", "model.gguf"];
    let template = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    place.write("model/chat_template.jinja", template);
    place.command(&export).succeed();
    let modelfile = std::fs::read_to_string(place.path("Modelfile")).unwrap();
    let expected = "TEMPLATE \"\"\"{{ range .Messages }}{{ if eq .Role \"system\" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n\
                    {{ else if eq .Role \"user\" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n\
                    {{ else if eq .Role \"assistant\" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}\
                    <|im_start|>assistant\n\"\"\"\n";
    assert!(modelfile.contains(expected), "{modelfile}");
    assert!(modelfile.contains("PARAMETER stop \"<|im_end|>\"\n"), "{modelfile}");
    place.write("model/chat_template.jinja", template.replace("m['content']", "m['content'] + loop.index|string"));
    let said = place.command(&export).succeed();
    assert!(said.contains("the Modelfile has no TEMPLATE"), "{said}");
    assert!(!std::fs::read_to_string(place.path("Modelfile")).unwrap().contains("TEMPLATE"));
}

#[test]
fn a_model_is_merged_into_four_bits_by_name_only_and_types_of_other_files_are_refused() {
    let place = Place::new();
    trained(&place, "model", "run", "lora");
    let merge = ["merge", "--adapter", "run", "--out", "merged"];
    place.command(&merge).args(["--dtype", "nf4"]).succeed();
    let config = json_of(&place, "merged/config.json");
    let quantization = &config["quantization_config"];
    assert_eq!(quantization["bnb_4bit_quant_type"], "nf4");
    assert_eq!(quantization["llm_int8_skip_modules"], json!(["lm_head"]));
    let bytes = std::fs::read(place.path("merged/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let layer = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(file.tensor(layer).unwrap().dtype(), Dtype::U8);
    assert_eq!(file.tensor("model.embed_tokens.weight").unwrap().dtype(), Dtype::F32);
    // What comes out of the folder is what its codes stand for, and is packed to the same again.
    place.command(&["export", "--format", "hf", "--model", "merged", "--dtype", "f32", "--out", "wide"]).succeed();
    place.command(&["export", "--format", "hf", "--model", "merged", "--dtype", "nf4", "--out", "again"]).succeed();
    assert_eq!(std::fs::read(place.path("again/model.safetensors")).unwrap(), bytes);
    assert_same(&place, &["--model", "wide"], &["--model", "merged"]);
    assert!(json_of(&place, "wide/config.json")["quantization_config"].is_null());

    let message = refused(&place, &[&merge[..], &["--dtype", "q4_0"]].concat());
    assert!(message.contains("`sorsa export --format gguf --dtype q4_0` writes one"), "{message}");
    let gguf = ["export", "--format", "gguf", "--model", "model", "--dtype", "nf4", "--out", "x.gguf"];
    assert!(refused(&place, &gguf).contains("GGUF files have no such type"));
    let unknown = refused(&place, &[&merge[..], &["--dtype", "q3_k"]].concat());
    assert!(unknown.contains("q4_k_m, q5_k_m, nf4, nf4-single, fp4, fp4-single"), "{unknown}");
    assert!(!place.path("x.gguf").exists());
}

#[test]
fn an_adapter_beside_packed_weights_leaves_exactly_and_merges_exactly() {
    let place = Place::new();
    place.command(&["export", "--format", "hf", "--model", "model", "--dtype", "nf4", "--out", "packed"]).succeed();
    place
        .command(&["export", "--format", "gguf", "--model", "model", "--dtype", "q5_1", "--out", "packed.gguf"])
        .succeed();
    for (base, method) in [
        ("packed", "lora"),
        ("packed.gguf", "lora"),
        ("packed", "sorsa"),
        ("packed.gguf", "pissa"),
        ("packed", "olora"),
    ] {
        trained(&place, base, "run", method);
        let adapted = ["--model", base, "--adapter", "run"];
        place.command(&["export", "--format", "peft", "--adapter", "run", "--out", "peft"]).succeed();
        let named = json_of(&place, "peft/adapter_config.json")["base_model_name_or_path"].clone();
        assert!(named.as_str().unwrap().ends_with(base), "{named}");
        assert_same(&place, &["--model", base, "--adapter", "peft"], &adapted);
        place.command(&["merge", "--adapter", "run", "--dtype", "f32", "--out", "merged"]).succeed();
        assert_same(&place, &["--model", "merged"], &adapted);
        place
            .command(&["export", "--format", "gguf", "--dtype", "f32", "--adapter", "run", "--out", "merged.gguf"])
            .succeed();
        assert_same(&place, &["--model", "merged.gguf"], &adapted);
        place.command(&["export", "--format", "gguf-lora", "--adapter", "run", "--out", "lora.gguf"]).succeed();
        let needless = ["export", "--format", "peft", "--adapter", "run", "--residual", "rest", "--out", "x"];
        assert!(refused(&place, &needless).contains("added to the weights of the model as they are"));
        if method == "sorsa" {
            // Another adapter starts where this one has ended.
            let rate = ["--max-steps", "1", "--lr", "1e-12", "--model", base, "--method", "pissa"];
            place.finetune(&[&rate[..], &["--continue-from", "run", "--run-dir", "next"]].concat()).succeed();
            assert_same(&place, &["--model", base, "--adapter", "next"], &adapted);
        }
        std::fs::remove_dir_all(place.path("run")).unwrap();
    }
    assert!(!place.path("rest").exists());
}

#[test]
fn a_merge_of_a_run_that_packed_its_model_compares_its_loss_with_the_packed_weights() {
    let place = Place::new();
    let rate = ["--max-steps", "1", "--lr", "1e-5", "--method", "lora", "--run-dir"];
    let lost = |run: &str, more: &[&str]| {
        place.finetune(&[&rate[..], &[run], more].concat()).succeed();
        let merge = ["merge", "--adapter", run, "--dtype", "bf16", "--out", "merged"];
        let output = place.command(&merge).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    // The step is small beside the distance of two numbers of bf16, but not beside what packing loses.
    for (run, more) in [("dense", &[][..]), ("packed", &["--quantize", "nf4"])] {
        let words = lost(run, more);
        assert!(words.contains("rounding the merged weights to bf16"), "{run}: {words}");
    }
}

#[test]
fn a_residual_that_was_packed_again_is_a_model_of_its_own_beside_its_adapter() {
    let place = Place::new();
    place.command(&["export", "--format", "hf", "--model", "model", "--dtype", "nf4", "--out", "packed"]).succeed();
    place
        .command(&["export", "--format", "gguf", "--model", "model", "--dtype", "q5_1", "--out", "packed.gguf"])
        .succeed();
    for (base, method) in [("packed", "sorsa"), ("packed", "pissa"), ("packed.gguf", "sorsa")] {
        trained_with(&place, base, "run", method, &["--set", "adapter.residual=packed"]);
        let adapted = ["--model", base, "--adapter", "run"];
        let export = ["export", "--format", "peft", "--adapter", "run", "--out", "peft"];
        let message = refused(&place, &export);
        assert!(message.contains("does not fit the original model: --residual PATH"), "{message}");
        assert!(!place.path("peft").exists());
        let with_residual = [&export[..], &["--residual", "rest"]].concat();
        place.command(&with_residual).succeed();
        let config = json_of(&place, "peft/adapter_config.json");
        assert!(config["base_model_name_or_path"].as_str().unwrap().ends_with("/rest"), "{config}");
        assert_eq!(config["init_lora_weights"], true);
        let is_packed = json_of(&place, "rest/config.json")["quantization_config"].is_object();
        assert_eq!(is_packed, base == "packed");
        assert_same(&place, &["--model", "rest", "--adapter", "peft"], &adapted);
        place.command(&with_residual).args(["--residual-dtype", "f32"]).succeed();
        assert!(json_of(&place, "rest/config.json")["quantization_config"].is_null());
        assert_same(&place, &["--model", "rest", "--adapter", "peft"], &adapted);

        let lora = ["export", "--format", "gguf-lora", "--adapter", "run", "--out", "lora.gguf"];
        assert!(refused(&place, &lora).contains("--residual PATH"));
        place.command(&lora).args(["--residual", "rest.gguf"]).succeed();
        // PEFT's form of the adapter fits the residual in the GGUF file too.
        assert_same(&place, &["--model", "rest.gguf", "--adapter", "peft"], &adapted);
        let approximated = [&with_residual[..], &["--rank", "2"]].concat();
        assert!(refused(&place, &approximated).contains("leave out --rank and --as-trained"));
        place.command(&["merge", "--adapter", "run", "--dtype", "f32", "--out", "merged"]).succeed();
        assert_same(&place, &["--model", "merged"], &adapted);
        for folder in ["run", "peft", "rest"] {
            std::fs::remove_dir_all(place.path(folder)).unwrap();
        }
    }
}
