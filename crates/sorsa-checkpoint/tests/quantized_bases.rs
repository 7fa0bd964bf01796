//! Packed models made by others, read to the bit: `tests/golden/quantized_bases`.

use std::path::{Path, PathBuf};

use half::bf16;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sorsa_checkpoint::weights::{Dtype, ignorable};
use sorsa_checkpoint::{ModelConfig, ModelSource, Stored};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quantized_bases")
}

fn expected() -> Value {
    let text = std::fs::read(golden().join("expected.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The path of a model of the golden folder.
fn model(name: &str) -> PathBuf {
    let folder = golden().join(name);
    if folder.is_dir() { folder } else { golden().join(format!("{name}.gguf")) }
}

fn digest(values: &[f32]) -> String {
    let mut hash = Sha256::new();
    values.iter().for_each(|value| hash.update(value.to_le_bytes()));
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn transposed<T: Copy>(values: &[T], [rows, columns]: [usize; 2]) -> Vec<T> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

/// Compares every tensor of a model, in every way to read it.
fn compare(name: &str, expected: &Value) {
    let source = ModelSource::open(&model(name)).unwrap();
    let tensors = source.tensors();
    source.check(&tensors, ignorable(false)).unwrap();
    let names = expected["tensors"].as_object().unwrap();
    assert_eq!(tensors.len(), names.len(), "{name}");
    for tensor in &tensors {
        let place = format!("{name}: {}", tensor.name);
        let numbers = source.numbers::<f32>(&tensor.name, false).unwrap();
        assert_eq!(digest(&numbers.values), names[&tensor.name].as_str().unwrap(), "{place}");
        assert!(numbers.all_finite, "{place}");
        let narrow = source.numbers::<bf16>(&tensor.name, false).unwrap().values;
        assert!(narrow.iter().zip(&numbers.values).all(|(a, b)| *a == bf16::from_f32(*b)), "{place}");
        let packed = source.packed(&tensor.name).unwrap();
        let stored = source.stored(&tensor.name).unwrap();
        assert_eq!(packed.as_ref().map(|matrix| Stored::Packed(matrix.format())).unwrap_or(stored), stored, "{place}");
        let Ok(shape) = <[usize; 2]>::try_from(tensor.shape.as_slice()) else { continue };
        let turned = source.numbers::<f32>(&tensor.name, true).unwrap();
        assert_eq!(turned.values, transposed(&numbers.values, shape), "{place}");
        let narrow_turned = source.numbers::<bf16>(&tensor.name, true).unwrap().values;
        assert_eq!(narrow_turned, transposed(&narrow, shape), "{place}");
        if let Some(matrix) = packed {
            assert_eq!((matrix.shape(), matrix.to_f32()), (shape, numbers.values), "{place}");
        }
    }
}

#[test]
fn tensors_of_gguf_files_are_those_that_transformers_reads_to_the_bit() {
    for (name, expected) in expected().as_object().unwrap().iter().filter(|(name, _)| !model(name).is_dir()) {
        compare(name, expected);
    }
}

#[test]
fn tensors_of_bitsandbytes_are_those_that_it_widens_to_the_bit() {
    compare("bitsandbytes", &expected()["bitsandbytes"]);
    let source = ModelSource::open(&model("bitsandbytes")).unwrap();
    let formats: Vec<String> = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
        .into_iter()
        .filter_map(|module| source.packed(&format!("model.layers.0.{module}.weight")).unwrap())
        .map(|matrix| matrix.format().to_string())
        .collect();
    assert_eq!(formats, ["nf4", "fp4-single", "nf4-single", "fp4"]);
    assert_eq!(source.stored("model.layers.0.mlp.down_proj.weight"), Some(Stored::Dense(Dtype::BF16)));
}

#[test]
fn tensors_of_gptq_and_awq_are_those_of_their_definition_to_the_bit() {
    for (name, format) in [("gptq-4-order", "gptq4"), ("gptq-4-v2", "gptq4"), ("gptq-8", "gptq8"), ("awq", "awq")] {
        compare(name, &expected()[name]);
        let source = ModelSource::open(&model(name)).unwrap();
        let stored = source.stored("model.layers.0.self_attn.q_proj.weight");
        assert_eq!(stored, Some(Stored::Packed(format.parse().unwrap())));
    }
}

#[test]
fn packed_formats_of_gguf_stay_packed_and_their_rows_are_in_the_order_of_transformers() {
    let source = ModelSource::open(&model("llama-mixed")).unwrap();
    let stored = |name: &str| source.stored(&format!("{name}.weight")).unwrap();
    let blocks = |name: &str| Stored::Packed(name.parse().unwrap());
    assert_eq!(stored("model.embed_tokens"), blocks("q8_0"));
    assert_eq!(stored("model.layers.0.self_attn.k_proj"), Stored::Dense(Dtype::F32));
    assert_eq!(stored("model.layers.0.mlp.gate_proj"), blocks("q4_0"));
    assert_eq!(stored("model.layers.0.self_attn.q_proj"), blocks("f16"));
    assert_eq!(stored("model.norm"), Stored::Dense(Dtype::F32));
    let q4 = ModelSource::open(&model("llama-q4_0")).unwrap();
    assert_eq!(q4.stored("model.layers.0.self_attn.q_proj.weight"), Some(blocks("q4_0")));
}

#[test]
fn a_folder_with_one_gguf_file_is_that_model_and_one_with_two_needs_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str| std::fs::copy(model("llama-q4_0"), folder.path().join(name)).unwrap();
    copy("a.gguf");
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    assert_eq!(ModelSource::open(folder.path()).unwrap().config().hidden_size, 32);
    assert_eq!(ModelConfig::read(folder.path()).unwrap().hidden_size, 32);
    copy("b.GGUF");
    let message = ModelSource::open(folder.path()).unwrap_err().to_string();
    assert!(message.ends_with(": expected one GGUF file, found a.gguf; b.GGUF; name the file itself"), "{message}");
    let named = |file: &str| {
        let config = format!(r#"{{"gguf_file": "{file}", "rope_theta": 5e5}}"#);
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        ModelSource::open(folder.path())
    };
    assert_eq!(named("b.GGUF").unwrap().config().transformer().unwrap().rope.theta, 5e5);
    let message = named("../a.gguf").unwrap_err().to_string();
    assert!(message.ends_with("`gguf_file` should be one of a.gguf, b.GGUF"), "{message}");
}
