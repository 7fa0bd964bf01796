//! A small random Llama, written as GGUF and read back: names, shapes, values, the order of rows, metadata; an adapter for it.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value as Json, json};
use sorsa_checkpoint::gguf::{
    Array, ExportOptions, Fallback, FileType, GgufError, GgufFile, GgufModel, GgufTensor, GgufType, GgufWriter,
    LoraModule, Mixture, ModelTensors, Value, export_adapter, export_model, export_tensors,
};
use sorsa_checkpoint::weights::{Checkpoint, CheckpointWriter, Expected, ModelFolder, WeightsError};
use sorsa_checkpoint::{ModelConfig, TensorContent, WeightFormat};
use sorsa_kernels::BlockFormat;
use sorsa_kernels::packed::{PackedFormat, PackedMatrix};
use tempfile::{TempDir, tempdir};

const HIDDEN: usize = 48;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const FFN: usize = 64;
const VOCAB: usize = 40;
const BLOCKS: usize = 2;

fn config() -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "vocab_size": VOCAB, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32},
        "attention_bias": true, "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 1,
    })
}

fn tokenizer() -> Json {
    let vocab: serde_json::Map<String, Json> = ["<s>", "</s>", "a", "b", "ab"]
        .into_iter()
        .enumerate()
        .map(|(id, token)| (token.to_owned(), id.into()))
        .collect();
    json!({
        "added_tokens": [{"id": 0, "content": "<s>", "special": true}, {"id": 1, "content": "</s>", "special": true}],
        "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
        "post_processor": null, "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]},
    })
}

fn tensors() -> Vec<Expected> {
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut list = vec![
        Expected::new("model.embed_tokens.weight", [VOCAB, HIDDEN]),
        Expected::new("model.norm.weight", [HIDDEN]),
        Expected::new("lm_head.weight", [VOCAB, HIDDEN]),
    ];
    for block in 0..BLOCKS {
        let linears = [
            ("self_attn.q_proj", q, HIDDEN),
            ("self_attn.k_proj", kv, HIDDEN),
            ("self_attn.v_proj", kv, HIDDEN),
            ("self_attn.o_proj", HIDDEN, q),
            ("mlp.gate_proj", FFN, HIDDEN),
            ("mlp.up_proj", FFN, HIDDEN),
            ("mlp.down_proj", HIDDEN, FFN),
        ];
        for (path, rows, cols) in linears {
            let path = format!("model.layers.{block}.{path}");
            if path.contains("self_attn") {
                list.push(Expected::new(format!("{path}.bias"), [rows]));
            }
            list.push(Expected::new(format!("{path}.weight"), [rows, cols]));
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            list.push(Expected::new(format!("model.layers.{block}.{norm}.weight"), [HIDDEN]));
        }
    }
    list
}

/// Values in (-1, 1), others for each name.
fn random(name: &str, count: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(1u64, |state, byte| state.wrapping_mul(31).wrapping_add(byte.into()));
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn folder(config: &Json, tensors: &[Expected]) -> TempDir {
    let dir = tempdir().unwrap();
    let values = |tensor: &Expected| Ok::<_, WeightsError>(random(&tensor.name, tensor.shape.iter().product()));
    CheckpointWriter::new(dir.path(), WeightFormat::F32).write(tensors, values).unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let names =
        json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "chat_template": "{{ messages }}"});
    std::fs::write(dir.path().join("tokenizer_config.json"), names.to_string()).unwrap();
    dir
}

fn exported(folder: &Path, options: impl Into<ExportOptions>) -> (TempDir, GgufFile, Vec<(String, GgufType)>) {
    let dir = tempdir().unwrap();
    let out = dir.path().join("model.gguf");
    let report = export_model(folder, &out, options).unwrap();
    assert_eq!(report.bytes, std::fs::metadata(&out).unwrap().len());
    let file = GgufFile::open(&out).unwrap();
    assert_eq!((report.architecture, report.tensors), ("llama", file.tensors().len()));
    let fallbacks = report.fallbacks.into_iter().map(|fallback| (fallback.tensor, fallback.stored)).collect();
    (dir, file, fallbacks)
}

/// The name that llama.cpp gives a tensor of a Llama.
fn renamed(name: &str) -> String {
    let pairs = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ];
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

#[test]
fn every_tensor_is_there_under_llama_cpps_name_with_its_values() {
    let folder = folder(&config(), &tensors());
    let (_dir, file, fallbacks) = exported(folder.path(), GgufType::F32);
    assert!(fallbacks.is_empty());
    let found: BTreeSet<String> = file.tensors().iter().map(|tensor| tensor.name.clone()).collect();
    let divisors = "rope_freqs.weight".to_owned();
    let expected: BTreeSet<String> = tensors().iter().map(|tensor| renamed(&tensor.name)).chain([divisors]).collect();
    assert_eq!(found, expected);
    for Expected { name, shape } in tensors() {
        let to = renamed(&name);
        assert_eq!(file.info(&to).unwrap().shape, shape, "{to}");
        if !to.contains("attn_q") && !to.contains("attn_k") {
            assert_eq!(file.to_f32(&to).unwrap(), random(&name, shape.iter().product()), "{to}");
        }
    }
    let divisors = file.to_f32("rope_freqs.weight").unwrap();
    assert_eq!((divisors.len(), divisors[0], divisors[HEAD_DIM / 2 - 1]), (HEAD_DIM / 2, 1.0, 8.0));
}

/// `y = W x + b` for a row-major `W`.
fn apply(weight: &[f32], bias: &[f32], x: &[f32]) -> Vec<f64> {
    let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
    weight.chunks(x.len()).zip(bias).map(|(row, bias)| dot(row) + f64::from(*bias)).collect()
}

/// Turns the planes of one head; plane `i` is made of the values at `pair(i)`.
fn rotate(head: &mut [f64], position: f64, pair: impl Fn(usize) -> (usize, usize)) {
    for plane in 0..HEAD_DIM / 2 {
        let angle = position * 500_000f64.powf(-2.0 * plane as f64 / HEAD_DIM as f64);
        let (at, other) = pair(plane);
        let (x, y) = (head[at], head[other]);
        head[at] = x * angle.cos() - y * angle.sin();
        head[other] = x * angle.sin() + y * angle.cos();
    }
}

#[test]
fn queries_and_keys_meet_as_before_when_pairs_are_rotated_instead_of_halves() {
    let folder = folder(&config(), &tensors());
    let (_dir, file, _) = exported(folder.path(), GgufType::F32);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let (here, there) = (random("here", HIDDEN), random("there", HIDDEN));
    for block in 0..BLOCKS {
        let original = |path: &str, x: &[f32]| {
            let read =
                |kind: &str| checkpoint.to_f32(&format!("model.layers.{block}.self_attn.{path}.{kind}")).unwrap();
            apply(&read("weight"), &read("bias"), x)
        };
        let written = |name: &str, x: &[f32]| {
            let read = |kind: &str| file.to_f32(&format!("blk.{block}.{name}.{kind}")).unwrap();
            apply(&read("weight"), &read("bias"), x)
        };
        let scores = |mut q: Vec<f64>, mut k: Vec<f64>, pair: fn(usize) -> (usize, usize)| -> Vec<f64> {
            q.chunks_mut(HEAD_DIM).for_each(|head| rotate(head, 9.0, pair));
            k.chunks_mut(HEAD_DIM).for_each(|head| rotate(head, 4.0, pair));
            let shared = |head: usize| head / (HEADS / KV_HEADS) * HEAD_DIM;
            let key = |head: usize| &k[shared(head)..shared(head) + HEAD_DIM];
            let dot = |(head, q): (usize, &[f64])| q.iter().zip(key(head)).map(|(q, k)| q * k).sum();
            q.chunks(HEAD_DIM).enumerate().map(dot).collect()
        };
        let halves = scores(original("q_proj", &here), original("k_proj", &there), |i| (i, i + HEAD_DIM / 2));
        let pairs = scores(written("attn_q", &here), written("attn_k", &there), |i| (2 * i, 2 * i + 1));
        let unchanged = scores(original("q_proj", &here), original("k_proj", &there), |i| (2 * i, 2 * i + 1));
        for ((halves, pairs), unchanged) in halves.iter().zip(&pairs).zip(&unchanged) {
            assert!((halves - pairs).abs() < 1e-9, "{halves} and {pairs}");
            assert!((halves - unchanged).abs() > 1e-3, "the test would not notice rows in the old order");
        }
    }
}

#[test]
fn the_metadata_says_what_llama_cpp_needs_to_know() {
    let folder = folder(&config(), &tensors());
    let (_dir, file, _) = exported(folder.path(), ExportOptions::new(GgufType::BF16).with_name("small"));
    let text = |key: &str| file.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |key: &str| file.get(key).and_then(Value::as_u64);
    assert_eq!((text("general.architecture"), text("general.name")), ("llama".to_owned(), "small".to_owned()));
    assert_eq!(number("general.file_type"), Some(32));
    for (key, value) in [
        ("block_count", BLOCKS),
        ("context_length", 256),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", FFN),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("attention.key_length", HEAD_DIM),
        ("attention.value_length", HEAD_DIM),
        ("rope.dimension_count", HEAD_DIM),
        ("vocab_size", VOCAB),
    ] {
        assert_eq!(number(&format!("llama.{key}")), Some(value as u64), "{key}");
    }
    assert_eq!(file.get("llama.rope.freq_base"), Some(&Value::F32(500_000.0)));
    assert_eq!(file.get("llama.attention.layer_norm_rms_epsilon"), Some(&Value::F32(1e-5)));
    assert_eq!((text("tokenizer.ggml.model"), text("tokenizer.ggml.pre")), ("gpt2".to_owned(), "gpt-2".to_owned()));
    assert_eq!((number("tokenizer.ggml.bos_token_id"), number("tokenizer.ggml.eos_token_id")), (Some(0), Some(1)));
    assert_eq!(file.get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(true)));
    assert_eq!(text("tokenizer.chat_template"), "{{ messages }}");
    let Some(Value::Array(Array::String(tokens))) = file.get("tokenizer.ggml.tokens") else { panic!("no tokens") };
    assert_eq!((tokens.len(), tokens[4].as_str(), tokens[5].as_str()), (VOCAB, "ab", "[PAD5]"));

    let (_dir, file, _) = exported(folder.path(), ExportOptions::new(GgufType::F16).without_tokenizer());
    assert_eq!(file.get("tokenizer.ggml.model").and_then(Value::as_str), Some("no_vocab"));
    assert_eq!(file.get("tokenizer.ggml.tokens"), None);
}

#[test]
fn a_mixture_has_more_bits_in_some_blocks_and_says_what_it_loses() {
    let wide = |tensor: Expected| {
        let widen = |size: &usize| if *size == HIDDEN { 256 } else { *size };
        Expected::new(tensor.name, tensor.shape.iter().map(widen).collect::<Vec<_>>())
    };
    let mut config = config();
    config["hidden_size"] = 256.into();
    let tensors: Vec<Expected> = tensors().into_iter().map(wide).collect();
    let folder = folder(&config, &tensors);
    let out = folder.path().join("model.gguf");
    let report = export_model(folder.path(), &out, FileType::Mixture(Mixture::Q4KM)).unwrap();
    let file = GgufFile::open(&out).unwrap();
    assert_eq!(file.get("general.file_type").and_then(Value::as_u64), Some(15));
    let dtype = |name: &str| file.info(name).unwrap().dtype().unwrap().to_string();
    // The last of two blocks has more bits. Rows of 64 values, those of the feed-forward layers' outputs, are no blocks of 256.
    let found =
        ["token_embd", "output", "blk.0.attn_v", "blk.1.attn_v", "blk.0.ffn_up", "blk.0.ffn_down", "blk.1.ffn_down"];
    let found = found.map(|name| dtype(&format!("{name}.weight")));
    assert_eq!(found, ["q4_k", "q6_k", "q4_k", "q6_k", "q4_k", "q5_0", "q8_0"]);
    let fallback = |tensor: &str, asked, stored| Fallback {
        tensor: tensor.to_owned(),
        asked: GgufType::Blocks(asked),
        stored: GgufType::Blocks(stored),
    };
    assert!(report.fallbacks.contains(&fallback("blk.0.ffn_down.weight", BlockFormat::Q4K, BlockFormat::Q5_0)));
    assert!(report.fallbacks.contains(&fallback("blk.1.ffn_down.weight", BlockFormat::Q6K, BlockFormat::Q8_0)));

    let matrices = tensors.iter().filter(|tensor| tensor.shape.len() == 2).count();
    assert_eq!(report.errors.len(), matrices);
    let down = report.errors.iter().find(|error| error.tensor == "blk.0.ffn_down.weight").unwrap();
    assert_eq!(down.source, "model.layers.0.mlp.down_proj.weight");
    let (values, packed) = (random(&down.source, 256 * FFN), file.to_f32(&down.tensor).unwrap());
    let largest = values.iter().zip(&packed).fold(0f32, |largest, (a, b)| largest.max((a - b).abs()));
    assert_eq!(down.largest, largest);
    assert!(down.relative() > 0.0 && report.relative_error() > down.relative() / 2.0);
    assert!(report.largest_error().unwrap().largest >= largest);
}

/// A folder whose matrices are packed; the values are those of the blocks.
struct Packed(BlockFormat);

impl Packed {
    fn matrix(&self, tensor: &Expected) -> Option<PackedMatrix> {
        let shape = tensor.shape.as_slice().try_into().ok()?;
        let values = random(&tensor.name, tensor.shape.iter().product());
        PackedMatrix::pack(PackedFormat::Blocks(self.0), shape, &values).ok()
    }
}

impl ModelTensors for Packed {
    fn ties_embeddings(&self) -> bool {
        false
    }

    fn packed_format(&self, name: &str, _asked: GgufType) -> Option<BlockFormat> {
        name.contains("_proj.weight").then_some(self.0).filter(|_| !name.contains("gate"))
    }

    fn content(&mut self, tensor: &Expected) -> Result<TensorContent, GgufError> {
        Ok(match self.packed_format(&tensor.name, GgufType::F16) {
            Some(_) => self.matrix(tensor).unwrap().into(),
            None => random(&tensor.name, tensor.shape.iter().product()).into(),
        })
    }
}

#[test]
fn packed_matrices_keep_their_blocks_whatever_type_is_asked_for() {
    let narrow = |tensor: Expected| {
        let shape = tensor.shape.iter().map(|size| if *size == HIDDEN { 64 } else { *size });
        Expected::new(tensor.name, shape.collect::<Vec<_>>())
    };
    let mut config = config();
    config["hidden_size"] = 64.into();
    let tensors: Vec<Expected> = tensors().into_iter().map(narrow).collect();
    let folder = folder(&config, &tensors);
    let mut source = Packed(BlockFormat::Q4_1);
    let (packed, widened) = (folder.path().join("packed.gguf"), folder.path().join("widened.gguf"));
    let report = export_tensors(folder.path(), &mut source, &packed, GgufType::F16).unwrap();
    assert!(report.errors.iter().all(|error| error.dtype == GgufType::F16));
    // The same values from a folder.
    let values = |tensor: &Expected| -> Result<Vec<f32>, WeightsError> {
        let packed = source.packed_format(&tensor.name, GgufType::F16).and_then(|_| source.matrix(tensor));
        Ok(packed.map_or_else(|| random(&tensor.name, tensor.shape.iter().product()), |matrix| matrix.to_f32()))
    };
    CheckpointWriter::new(folder.path(), WeightFormat::F32).write(&tensors, values).unwrap();
    export_model(folder.path(), &widened, GgufType::F32).unwrap();
    let (packed, widened) = (GgufFile::open(&packed).unwrap(), GgufFile::open(&widened).unwrap());
    for tensor in tensors.iter().filter(|tensor| source.packed_format(&tensor.name, GgufType::F16).is_some()) {
        let name = renamed(&tensor.name);
        assert_eq!(packed.info(&name).unwrap().dtype(), Some(GgufType::Blocks(BlockFormat::Q4_1)), "{name}");
        assert_eq!(packed.to_f32(&name).unwrap(), widened.to_f32(&name).unwrap(), "{name}");
    }
    assert_eq!(packed.info("blk.0.ffn_gate.weight").unwrap().dtype(), Some(GgufType::F16));
}

#[test]
fn q8_0_is_for_matrices_whose_rows_are_whole_blocks() {
    let folder = folder(&config(), &tensors());
    let (_dir, file, fallbacks) = exported(folder.path(), GgufType::Q8_0);
    for tensor in file.tensors() {
        let expected = match *tensor.shape.as_slice() {
            [_] => GgufType::F32,
            [_, HIDDEN] => GgufType::F16,
            _ => GgufType::Q8_0,
        };
        assert_eq!(tensor.dtype(), Some(expected), "{}", tensor.name);
        let fallback = (tensor.name.clone(), GgufType::F16);
        assert_eq!(fallbacks.contains(&fallback), expected == GgufType::F16, "{}", tensor.name);
    }
    let name = "model.layers.1.mlp.down_proj.weight";
    let found = file.to_f32(&renamed(name)).unwrap();
    for (found, wanted) in found.iter().zip(random(name, HIDDEN * FFN)) {
        // Half a step, 1 / 127 at most, and the rounding of the step.
        assert!((found - wanted).abs() < 0.5 / 127.0 + 1e-3, "{found} for {wanted}");
    }
}

#[test]
fn a_tied_head_is_left_out_and_a_head_of_its_own_is_not() {
    let mut config = config();
    config["tie_word_embeddings"] = true.into();
    let folder = folder(&config, &tensors());
    let (_dir, file, _) = exported(folder.path(), GgufType::F16);
    assert!(file.info("output.weight").is_some() && file.info("token_embd.weight").is_some());

    // Some checkpoints hold a second copy of the embedding.
    let values = |tensor: &Expected| {
        let name = if tensor.name == "lm_head.weight" { "model.embed_tokens.weight" } else { &tensor.name };
        Ok::<_, WeightsError>(random(name, tensor.shape.iter().product()))
    };
    CheckpointWriter::new(folder.path(), WeightFormat::F32).write(&tensors(), values).unwrap();
    let (_dir, file, _) = exported(folder.path(), GgufType::F16);
    assert!(file.info("output.weight").is_none() && file.info("token_embd.weight").is_some());
}

#[test]
fn what_does_not_fit_is_refused_with_all_reasons_and_nothing_is_written() {
    let out = tempdir().unwrap();
    let path = out.path().join("model.gguf");
    let mut missing = tensors();
    missing.retain(|tensor| !tensor.name.contains("layers.1.mlp"));
    let refused = |folder: TempDir| export_model(folder.path(), &path, GgufType::F16).unwrap_err();
    let error = refused(folder(&config(), &missing));
    assert!(
        matches!(&error, GgufError::Weights(WeightsError::Mismatch { missing, .. }) if missing.len() == 3),
        "{error}"
    );

    let mut odd = config();
    odd["rope_scaling"] = json!({"rope_type": "yarn", "factor": 4.0});
    odd["hidden_act"] = "gelu".into();
    odd["num_experts"] = 8.into();
    let error = refused(folder(&odd, &tensors()));
    assert!(matches!(&error, GgufError::Unsupported { faults, .. } if faults.len() == 3), "{error}");

    let bare = folder(&config(), &tensors());
    std::fs::remove_file(bare.path().join("tokenizer.json")).unwrap();
    assert!(refused(bare).to_string().contains("tokenizer.json"));
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

fn module(path: &str, rank: usize, [d_out, d_in]: [usize; 2], alpha: f64) -> LoraModule {
    let (a, b) = (random(&format!("{path}.a"), rank * d_in), random(&format!("{path}.b"), d_out * rank));
    LoraModule { path: path.to_owned(), rank, a, b, alpha }
}

/// `scale B A`, row-major `[d_out, d_in]`.
fn product(a: &[f32], b: &[f32], rank: usize, scale: f32) -> Vec<f32> {
    let d_in = a.len() / rank;
    let entry = |row: &[f32], col: usize| scale * (0..rank).map(|r| row[r] * a[r * d_in + col]).sum::<f32>();
    b.chunks(rank).flat_map(|row| (0..d_in).map(move |col| entry(row, col))).collect()
}

#[test]
fn an_adapter_changes_the_written_model_as_merging_it_before_would_have() {
    let folder = folder(&config(), &tensors());
    let q = HEADS * HEAD_DIM;
    let modules = [
        module("model.layers.0.self_attn.q_proj", 3, [q, HIDDEN], 6.0),
        module("model.layers.1.self_attn.k_proj", 2, [KV_HEADS * HEAD_DIM, HIDDEN], 5.0),
        module("model.layers.1.mlp.down_proj", 4, [HIDDEN, FFN], 2.0),
        module("lm_head", 1, [VOCAB, HIDDEN], 1.0),
    ];
    let dir = tempdir().unwrap();
    let out = dir.path().join("adapter.gguf");
    export_adapter(folder.path(), &modules, &out, GgufType::F32).unwrap();
    let adapter = GgufFile::open(&out).unwrap();
    assert_eq!(adapter.get("general.type").and_then(Value::as_str), Some("adapter"));
    assert_eq!(adapter.get("adapter.type").and_then(Value::as_str), Some("lora"));
    let Some(&Value::F32(alpha)) = adapter.get("adapter.lora.alpha") else { panic!("no alpha") };
    assert_eq!(adapter.tensors().len(), 2 * modules.len());

    // The checkpoint with the update added, before it is written.
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let merged = tempdir().unwrap();
    let sum = |tensor: &Expected| {
        let mut values = checkpoint.to_f32(&tensor.name)?;
        if let Some(module) = modules.iter().find(|module| format!("{}.weight", module.path) == tensor.name) {
            let update = product(&module.a, &module.b, module.rank, (module.alpha / module.rank as f64) as f32);
            values.iter_mut().zip(update).for_each(|(value, update)| *value += update);
        }
        Ok::<_, WeightsError>(values)
    };
    CheckpointWriter::new(merged.path(), WeightFormat::F32).write(&tensors(), sum).unwrap();
    std::fs::copy(folder.path().join("config.json"), merged.path().join("config.json")).unwrap();
    let options = || ExportOptions::new(GgufType::F32).without_tokenizer();
    let (_a, base, _) = exported(folder.path(), options());
    let (_b, merged, _) = exported(merged.path(), options());

    for module in &modules {
        let name = renamed(&format!("{}.weight", module.path));
        let shape = |kind: &str| adapter.info(&format!("{name}.{kind}")).unwrap().shape.clone();
        let read = |kind: &str| adapter.to_f32(&format!("{name}.{kind}")).unwrap();
        let (a, b) = (shape("lora_a"), shape("lora_b"));
        assert_eq!((a[0], b[1]), (module.rank, module.rank));
        // What llama.cpp computes: one alpha, the module's rank.
        let update = product(&read("lora_a"), &read("lora_b"), module.rank, alpha / module.rank as f32);
        let (before, after) = (base.to_f32(&name).unwrap(), merged.to_f32(&name).unwrap());
        for ((before, update), after) in before.iter().zip(update).zip(after) {
            assert!((before + update - after).abs() < 1e-5, "{name}: {before} + {update} is not {after}");
        }
    }
}

#[test]
fn modules_that_the_model_does_not_have_are_all_named() {
    let folder = folder(&config(), &tensors());
    let dir = tempdir().unwrap();
    let out = dir.path().join("adapter.gguf");
    let mut modules = vec![
        module("model.layers.2.self_attn.q_proj", 2, [64, HIDDEN], 2.0),
        module("model.embed_tokens", 2, [VOCAB, HIDDEN], 2.0),
        module("model.layers.0.mlp.up_proj", 2, [FFN + 1, HIDDEN], 2.0),
        module("model.layers.0.mlp.gate_proj", 2, [FFN, HIDDEN], 0.0),
    ];
    let refused = |modules: &[LoraModule]| match export_adapter(folder.path(), modules, &out, GgufType::F32) {
        Err(GgufError::Adapter { faults }) => faults,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&modules).len(), 4);
    modules.clear();
    assert_eq!(refused(&modules).len(), 1);
    assert!(!out.exists());
}

#[test]
fn a_model_comes_out_of_a_file_as_it_went_in() {
    let mut config = config();
    config["rope_scaling"]["original_max_position_embeddings"] = 8192.into();
    let folder = folder(&config, &tensors());
    let (dir, file, _) = exported(folder.path(), GgufType::F32);
    let model = GgufModel::open(file.path()).unwrap();
    assert_eq!(*model.config(), ModelConfig::read(folder.path()).unwrap());

    let out = dir.path().join("model");
    let unpacked = ModelFolder::create(&out).unwrap();
    model.unpack(&unpacked, WeightFormat::F32).unwrap();
    unpacked.commit().unwrap();
    assert_eq!(ModelConfig::read(&out).unwrap(), *model.config());
    let (before, after) = (Checkpoint::open(folder.path()).unwrap(), Checkpoint::open(&out).unwrap());
    assert_eq!(before.names().collect::<Vec<_>>(), after.names().collect::<Vec<_>>());
    for name in before.names() {
        assert_eq!(before.to_f32(name).unwrap(), after.to_f32(name).unwrap(), "{name}");
    }
    let read = |name: &str| -> Json { serde_json::from_slice(&std::fs::read(out.join(name)).unwrap()).unwrap() };
    let (written, found) = (tokenizer(), read("tokenizer.json"));
    assert_eq!(found["model"]["vocab"], written["model"]["vocab"]);
    assert_eq!(found["model"]["merges"], written["model"]["merges"]);
    assert_eq!(found["added_tokens"][1]["content"], "</s>");
    assert_eq!(found["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
    assert_eq!(read("tokenizer_config.json")["chat_template"], "{{ messages }}");
}

#[test]
fn a_file_that_is_no_model_known_here_is_refused_with_all_reasons() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("other.gguf");
    let refused = |metadata: &[(&str, Value)], tensors: &[GgufTensor]| {
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        let zeros = |tensor: &GgufTensor| Ok::<_, GgufError>(vec![0.0; tensor.shape.iter().product()]);
        GgufWriter::new().with_all(metadata.collect::<Vec<_>>()).write(&path, tensors, zeros).unwrap();
        GgufModel::open(&path).unwrap_err().to_string()
    };
    assert!(refused(&[], &[]).contains("`general.architecture` is missing"));
    let mamba = refused(&[("general.architecture", "mamba".into())], &[]);
    assert!(mamba.contains("gemma, gemma2, gemma3, llama, phi3, qwen2, qwen3, found \"mamba\""), "{mamba}");
    let sizes = ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"];
    let keys: Vec<String> = sizes.iter().map(|key| format!("llama.{key}")).collect();
    let mut metadata = vec![("general.architecture", Value::from("llama"))];
    metadata.extend(keys.iter().map(|key| (key.as_str(), Value::from(if key.ends_with("count") { 1u32 } else { 32 }))));
    metadata.push(("llama.attention.layer_norm_rms_epsilon", 1e-5f32.into()));
    let embedding = GgufTensor::new("token_embd.weight", [8, 32], GgufType::F32);
    let missing = refused(&metadata, std::slice::from_ref(&embedding));
    assert!(missing.contains("tensor `blk.0.attn_norm.weight` is missing") && missing.contains("more"), "{missing}");
    metadata.push(("llama.expert_count", 8u32.into()));
    let experts = refused(&metadata, &[embedding]);
    assert!(experts.contains("`llama.expert_count` is not supported, found U32(8)"), "{experts}");
}
