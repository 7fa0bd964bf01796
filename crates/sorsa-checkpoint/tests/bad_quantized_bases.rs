//! Packed models with something wrong in them: one line of error each, which names what is wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use sorsa_checkpoint::ModelSource;
use sorsa_checkpoint::gguf::GgufFile;
use sorsa_checkpoint::weights::{Expected, ignorable};
use tempfile::TempDir;

const Q_PROJ: &str = "model.layers.0.self_attn.q_proj";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quantized_bases").join(name)
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A changed copy of a golden folder.
fn changed(name: &str, change: impl FnOnce(&mut Tensors, &mut Value)) -> TempDir {
    let bytes = std::fs::read(golden(name).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    let mut config: Value = serde_json::from_slice(&std::fs::read(golden(name).join("config.json")).unwrap()).unwrap();
    change(&mut tensors, &mut config);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    folder
}

/// The error of a changed folder, which is one line and names the folder.
fn refused(name: &str, change: impl FnOnce(&mut Tensors, &mut Value)) -> String {
    let folder = changed(name, change);
    let error = ModelSource::open(folder.path()).unwrap_err().to_string();
    assert!(!error.contains('\n') && error.contains(&folder.path().display().to_string()), "{error}");
    error
}

/// Changes the JSON of a `quant_state`.
fn edit_state(tensors: &mut Tensors, edit: impl FnOnce(&mut Value)) {
    let (_, shape, bytes) =
        tensors.get_mut(&format!("{Q_PROJ}.weight.quant_state.bitsandbytes__nf4")).expect("it is there");
    let mut state = serde_json::from_slice(bytes).unwrap();
    edit(&mut state);
    *bytes = state.to_string().into_bytes();
    *shape = vec![bytes.len()];
}

#[test]
fn a_quant_state_that_lies_about_the_shape_is_compared_with_its_parts() {
    for shape in [json!([64, 64]), json!([16, 32]), json!([32]), json!([1u64 << 40, 1u64 << 40]), json!([])] {
        let error = refused("bitsandbytes", |tensors, _| edit_state(tensors, |state| state["shape"] = shape.clone()));
        assert!(error.contains(Q_PROJ), "{error}");
    }
    let expected = "`model.layers.0.self_attn.q_proj.weight` of [64, 64] in nf4 should have 2048 bytes, found 512";
    let error = refused("bitsandbytes", |tensors, _| edit_state(tensors, |state| state["shape"] = json!([64, 64])));
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_quant_state_of_another_shape_than_the_models_is_told_when_the_tensors_are_compared() {
    let folder = changed("bitsandbytes", |tensors, _| edit_state(tensors, |state| state["shape"] = json!([16, 64])));
    let source = ModelSource::open(folder.path()).unwrap();
    let original: Vec<Expected> = ModelSource::open(&golden("bitsandbytes")).unwrap().tensors();
    let error = source.check(&original, ignorable(false)).unwrap_err().to_string();
    assert!(error.ends_with(&format!("wrong shape: {Q_PROJ}.weight: expected [32, 32], found [16, 64]")), "{error}");
}

#[test]
fn parts_of_bitsandbytes_that_are_wrong_or_missing_are_named() {
    let with_state = |edit: fn(&mut Value)| refused("bitsandbytes", |tensors, _| edit_state(tensors, edit));
    let error = with_state(|state| state["quant_type"] = "int4".into());
    assert!(error.contains("`quant_type` should be nf4 or fp4 as in the name, found \"int4\""), "{error}");
    assert!(with_state(|state| state["dtype"] = "int8".into()).contains("float32, float16 or bfloat16"));
    assert!(with_state(|state| state["blocksize"] = 0.into()).contains("`blocksize` should be at least 2"));
    assert!(with_state(|state| state["blocksize"] = 32.into()).contains(".absmax` should be 32 of U8, found 16 of U8"));
    assert!(with_state(|state| state["nested_blocksize"] = 128.into()).contains("`nested_blocksize` should be 256"));
    assert!(with_state(|state| state["nested_offset"] = Value::Null).contains("`nested_offset` a number"));
    assert!(with_state(|state| *state = "words".into()).contains("\"words\""));
    for part in [".weight", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map"]
    {
        let error = refused("bitsandbytes", |tensors, _| drop(tensors.remove(&format!("{Q_PROJ}{part}"))));
        assert!(error.contains(&format!("`{Q_PROJ}{part}` is missing")), "{part}: {error}");
    }
}

#[test]
fn scales_that_are_not_finite_are_refused_when_the_tensor_is_read() {
    let folder = changed("bitsandbytes", |tensors, _| {
        let (_, _, bytes) = tensors.get_mut("model.layers.0.self_attn.k_proj.weight.absmax").unwrap();
        bytes[4..8].copy_from_slice(&f32::INFINITY.to_le_bytes());
    });
    let source = ModelSource::open(folder.path()).unwrap();
    let error = source.packed("model.layers.0.self_attn.k_proj.weight").unwrap_err().to_string();
    assert!(error.ends_with("`model.layers.0.self_attn.k_proj.weight.absmax` element 1 is inf"), "{error}");
    let folder = changed("awq", |tensors, _| {
        let (_, _, bytes) = tensors.get_mut(&format!("{Q_PROJ}.scales")).unwrap();
        bytes[..2].copy_from_slice(&[0, 0x7E]);
    });
    let source = ModelSource::open(folder.path()).unwrap();
    let error = source.packed(&format!("{Q_PROJ}.weight")).unwrap_err().to_string();
    assert!(error.ends_with(".scales` element 0 is NaN"), "{error}");
}

#[test]
fn formats_that_are_not_supported_are_named_with_tensors() {
    let error = refused("bitsandbytes", |tensors, config| {
        config["quantization_config"] = json!({"quant_method": "bitsandbytes", "load_in_8bit": true});
        tensors.retain(|name, _| !name.contains("quant_state") && !name.contains("absmax"));
    });
    assert!(error.contains("8 bits of bitsandbytes (`load_in_8bit`) are not supported"), "{error}");
    assert!(error.contains("`model.layers.0.self_attn.k_proj.weight` (U8 [256, 1])"), "{error}");
    let error = refused("gptq-8", |_, config| config["quantization_config"] = json!({"quant_method": "hqq"}));
    assert!(error.contains("packed by \"hqq\" are not supported"), "{error}");
    assert!(error.contains("`model.layers.0.mlp.down_proj.qweight` (I32 [16, 32])"), "{error}");
    // No configuration at all.
    let error = refused("gptq-8", |_, config| config["quantization_config"] = Value::Null);
    assert!(error.contains("is of gptq or awq, but `quantization_config` does not say which"), "{error}");
    let folder = changed("bitsandbytes", |tensors, config| {
        config["quantization_config"] = Value::Null;
        tensors.retain(|name, _| !name.contains("quant_state"));
    });
    let expected: Vec<Expected> = ModelSource::open(&golden("bitsandbytes")).unwrap().tensors();
    let source = ModelSource::open(folder.path()).unwrap();
    let error = source.check(&expected, ignorable(false)).unwrap_err().to_string();
    let named = "`model.layers.0.self_attn.k_proj.weight` is U8, without the scales of a format that is read here";
    assert!(error.contains(named), "{error}");
}

#[test]
fn parts_of_gptq_and_awq_that_do_not_belong_together_are_named() {
    let error = refused("gptq-4-order", |_, config| config["quantization_config"]["group_size"] = json!(32));
    assert!(error.contains("should be [1, 64] beside codes for [64, 32] in groups of 32, found [2, 64]"), "{error}");
    for part in ["qzeros", "scales"] {
        let error = refused("gptq-4-order", |tensors, _| drop(tensors.remove(&format!("{Q_PROJ}.{part}"))));
        assert!(error.contains(&format!("`{Q_PROJ}.{part}` is missing")), "{error}");
    }
    let error = refused("awq", |tensors, _| {
        let scales = tensors[&format!("{Q_PROJ}.scales")].clone();
        tensors.insert(format!("{Q_PROJ}.weight"), scales);
    });
    assert!(error.contains(&format!("`{Q_PROJ}.weight` is there beside")), "{error}");
    let error = refused("gptq-4-order", |tensors, _| {
        tensors.get_mut(&format!("{Q_PROJ}.g_idx")).unwrap().0 = Dtype::F32;
    });
    assert!(error.contains(".g_idx` should be [32] of I32, found [32] of F32"), "{error}");
    let folder = changed("gptq-4-order", |tensors, _| {
        tensors.get_mut(&format!("{Q_PROJ}.g_idx")).unwrap().2[..4].copy_from_slice(&7i32.to_le_bytes());
    });
    let source = ModelSource::open(folder.path()).unwrap();
    let error = source.packed(&format!("{Q_PROJ}.weight")).unwrap_err().to_string();
    assert!(error.contains(&format!("`{Q_PROJ}.weight`")) && !error.contains('\n'), "{error}");
}

#[test]
fn biases_of_zeros_that_auto_gptq_adds_are_no_tensors_of_the_model() {
    let with_bias = |value: u8| {
        changed("gptq-8", |tensors, _| {
            tensors.insert(format!("{Q_PROJ}.bias"), (Dtype::F16, vec![32], vec![value; 64]));
        })
    };
    let expected: Vec<Expected> = ModelSource::open(&golden("gptq-8")).unwrap().tensors();
    let check = |folder: &TempDir| ModelSource::open(folder.path()).unwrap().check(&expected, ignorable(false));
    check(&with_bias(0)).unwrap();
    assert!(check(&with_bias(1)).unwrap_err().to_string().contains("not part of the model"));
}

/// The error of a changed copy of a golden GGUF file, which is one line and names the file.
fn refused_gguf(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.gguf");
    let mut bytes = std::fs::read(golden(name)).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    let read = ModelSource::open(&path).and_then(|source| {
        for tensor in source.tensors() {
            source.packed(&tensor.name)?;
        }
        Ok(())
    });
    let error = read.unwrap_err().to_string();
    assert!(!error.contains('\n') && error.contains("changed.gguf"), "{error}");
    error
}

fn find(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap()
}

/// Overwrites bytes some places after the end of a text.
fn overwrite(bytes: &mut [u8], text: &str, after: usize, with: &[u8]) {
    let at = find(bytes, text) + text.len() + after;
    bytes[at..at + with.len()].copy_from_slice(with);
}

#[test]
fn gguf_files_that_announce_more_than_they_hold_are_refused() {
    let error = refused_gguf("llama-q4_0.gguf", |bytes| bytes.truncate(bytes.len() - 100));
    assert!(error.contains("not within the file"), "{error}");
    let error = refused_gguf("llama-q4_0.gguf", |bytes| bytes[8..16].copy_from_slice(&1_000_000u64.to_le_bytes()));
    assert!(error.contains("1000000 tensors are announced"), "{error}");
    let error = refused_gguf("llama-q4_0.gguf", |bytes| bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes()));
    assert!(error.contains("metadata values are announced"), "{error}");
    let error = refused_gguf("llama-q4_0.gguf", |bytes| {
        overwrite(bytes, "general.architecture", 4, &(1u64 << 40).to_le_bytes());
    });
    assert!(error.contains("bytes of text are announced"), "{error}");
    let error = refused_gguf("llama-q4_0.gguf", |bytes| {
        overwrite(bytes, "llama.block_count", 4, &u32::MAX.to_le_bytes());
    });
    assert!(error.contains("`block_count` should be at most the number of tensors, which is 12"), "{error}");
}

#[test]
fn gguf_tensors_that_share_bytes_are_refused() {
    let error = refused_gguf("llama-q4_0.gguf", |bytes| {
        // Name, number of axes, two axes, type, offset.
        overwrite(bytes, "blk.0.attn_k.weight", 4 + 16 + 4, &0u64.to_le_bytes());
    });
    assert!(error.contains("share bytes") && error.contains("`token_embd.weight`"), "{error}");
}

#[test]
fn a_gguf_tokenizer_that_would_take_minutes_is_refused() {
    let path = golden("gemma3.gguf");
    let source = ModelSource::open(&path).unwrap();
    assert_eq!(source.tokenizer_files().unwrap().unwrap().len(), 3);
    let mut file = std::fs::read(&path).unwrap();
    // Tensors are aligned to 32 bytes.
    let (token, length) = ("\u{2581}the", 6 + 32 * 9375);
    let at = find(&file, token) - 8;
    let long = (length as u64).to_le_bytes().into_iter().chain(std::iter::repeat_n(b'a', length));
    file.splice(at..at + 8 + token.len(), long);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.gguf");
    std::fs::write(&path, file).unwrap();
    let error = ModelSource::open(&path).unwrap().tokenizer_files().unwrap_err().to_string();
    assert!(error.ends_with("token 20 should have at most 256 bytes, found 300006"), "{error}");
}

#[test]
fn gguf_tensors_of_types_that_are_not_read_are_named_with_their_types() {
    // Name, number of axes, two axes, type.
    let set_type = |bytes: &mut Vec<u8>, id: u32| overwrite(bytes, "blk.0.attn_q.weight", 4 + 16, &id.to_le_bytes());
    let error = refused_gguf("llama-q4_0.gguf", |bytes| set_type(bytes, 10));
    assert!(error.contains("tensor `blk.0.attn_q.weight` is Q2_K, which is not supported"), "{error}");
    let error = refused_gguf("llama-q4_0.gguf", |bytes| set_type(bytes, 77));
    assert!(error.contains("tensor `blk.0.attn_q.weight` is of ggml's type 77, which is not supported"), "{error}");
    // Rows of 32 are no blocks of 256.
    let error = refused_gguf("llama-q4_0.gguf", |bytes| set_type(bytes, 12));
    assert!(error.contains("`blk.0.attn_q.weight` [32, 32] of type 12"), "{error}");
}

#[test]
fn gguf_blocks_with_a_scale_that_is_not_finite_are_refused() {
    for (name, place) in [("llama-q4_1.gguf", 2), ("llama-q6_k.gguf", 208), ("llama-mixed.gguf", 6)] {
        let offset = GgufFile::open(&golden(name)).unwrap().info("output.weight").unwrap().offset;
        let error = refused_gguf(name, |bytes| bytes[offset + place..][..2].copy_from_slice(&[0, 0x7C]));
        assert!(error.contains("tensor `output.weight`") && error.ends_with(" inf"), "{name}: {error}");
    }
}

#[test]
fn heads_that_do_not_fit_the_rows_are_refused() {
    for heads in [0u32, 3, 32, 64, u32::MAX] {
        refused_gguf("llama-q4_0.gguf", |bytes| {
            overwrite(bytes, "llama.attention.head_count", 4, &heads.to_le_bytes());
        });
        refused_gguf("llama-q4_0.gguf", |bytes| {
            overwrite(bytes, "llama.attention.key_length", 4, &heads.to_le_bytes());
        });
    }
}
