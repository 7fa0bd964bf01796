//! Folders in the 4 bits of bitsandbytes that are written here: the same bytes as those of bitsandbytes itself, read back, and what
//! `config.json` says of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sorsa_checkpoint::weights::{Checkpoint, CheckpointWriter, Expected, WeightsError};
use sorsa_checkpoint::{FourBitFormat, ModelSource, Stored, TensorContent, TensorFormats, WeightFormat};
use sorsa_kernels::packed::{PackedFormat, PackedMatrix};

/// A folder that bitsandbytes wrote: `tests/golden/README.md` says how.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quantized_bases/bitsandbytes")
}

/// The formats of the tensors of a model's folder, those of 4 bits among them.
fn formats_of(source: &ModelSource) -> TensorFormats {
    let mut formats = source.dense_formats();
    formats.four_bit = source.tensors().iter().filter_map(|tensor| format_of(source, &tensor.name)).collect();
    formats
}

fn format_of(source: &ModelSource, name: &str) -> Option<(String, FourBitFormat)> {
    match source.stored(name)? {
        Stored::Packed(format) => Some((name.to_owned(), FourBitFormat::of(format)?)),
        Stored::Dense(_) => None,
    }
}

fn state(checkpoint: &Checkpoint, name: &str) -> Value {
    serde_json::from_slice(&checkpoint.raw(name).unwrap()).unwrap()
}

#[test]
fn a_folder_of_bitsandbytes_is_written_again_byte_for_byte() {
    let source = ModelSource::open(&golden()).unwrap();
    let formats = formats_of(&source);
    assert!(formats.four_bit.len() > 3);
    let out = tempfile::tempdir().unwrap();
    let content = |tensor: &Expected| -> Result<TensorContent, WeightsError> {
        let packed = source.packed(&tensor.name).unwrap();
        Ok(match packed {
            Some(matrix) => matrix.into(),
            None => source.numbers::<f32>(&tensor.name, false).unwrap().values.into(),
        })
    };
    CheckpointWriter::new(out.path(), formats.clone()).write(&source.tensors(), content).unwrap();
    let (before, after) = (Checkpoint::open(&golden()).unwrap(), Checkpoint::open(out.path()).unwrap());
    assert_eq!(before.names().collect::<Vec<_>>(), after.names().collect::<Vec<_>>());
    for name in before.names() {
        if name.contains("quant_state") {
            assert_eq!(state(&after, name), state(&before, name), "{name}");
        } else {
            assert_eq!(after.raw(name).unwrap(), before.raw(name).unwrap(), "{name}");
        }
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(golden().join("config.json")).unwrap()).unwrap();
    config["quantization_config"] = formats.quantization_config(&source.tensors()).unwrap();
    assert_eq!(
        config["quantization_config"]["llm_int8_skip_modules"],
        json!(["lm_head", "model.layers.0.mlp.down_proj"])
    );
    std::fs::write(out.path().join("config.json"), config.to_string()).unwrap();
    let again = ModelSource::open(out.path()).unwrap();
    for name in formats.four_bit.keys() {
        assert_eq!(again.packed(name).unwrap(), source.packed(name).unwrap(), "{name}");
    }
}

/// Values in (-1, 1).
fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 1002.0).collect()
}

#[test]
fn matrices_of_any_size_begin_where_their_numbers_can_be_read_and_stay_with_their_scales() {
    let format = FourBitFormat::of(PackedFormat::NF4).unwrap();
    // 15 values are 8 bytes of codes, 33 are 17, whose scales are one byte.
    let tensors = [[3, 5], [3, 11], [7, 64], [5, 13]].into_iter().enumerate();
    let mut tensors: Vec<Expected> =
        tensors.map(|(i, shape)| Expected::new(format!("layers.{i}.proj.weight"), shape)).collect();
    tensors.insert(1, Expected::new("norm.weight", [3]));
    tensors.push(Expected::new("lm_head.weight", [3, 5]));
    let formats = TensorFormats::from(WeightFormat::Bf16).with_linear_layers_in_four_bit(tensors.clone(), format);
    assert_eq!(formats.four_bit.len(), 4);
    let dir = tempfile::tempdir().unwrap();
    let files = CheckpointWriter::new(dir.path(), formats.clone())
        .with_max_shard_bytes(2000)
        .write(&tensors, |tensor| Ok::<_, WeightsError>(values(tensor.shape.iter().product())))
        .unwrap();
    assert!(files.len() > 2);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut file_of = BTreeMap::new();
    for name in checkpoint.names() {
        let file = checkpoint.info(name).unwrap().file.clone();
        if let Some((layer, _)) = name.split_once(".proj.weight") {
            assert_eq!(file_of.entry(layer.to_owned()).or_insert(file.clone()), &file, "{name}");
        }
    }
    for file in &files[..files.len() - 1] {
        let bytes = std::fs::read(file).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        for (name, tensor) in header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
            let size = match tensor["dtype"].as_str().unwrap() {
                "F32" => 4,
                "BF16" => 2,
                _ => 1,
            };
            assert_eq!(tensor["data_offsets"][0].as_u64().unwrap() % size, 0, "{name}");
        }
    }
    for Expected { name, shape } in tensors.iter().filter(|tensor| formats.four_bit.contains_key(&tensor.name)) {
        let shape: [usize; 2] = shape.as_slice().try_into().unwrap();
        let packed = PackedMatrix::pack(PackedFormat::NF4, shape, &values(shape[0] * shape[1])).unwrap();
        let parts = packed.four_bit().unwrap();
        assert_eq!(checkpoint.raw(name).unwrap(), parts.codes, "{name}");
        let described = state(&checkpoint, &format!("{name}.quant_state.bitsandbytes__nf4"));
        assert_eq!((&described["shape"], &described["dtype"]), (&json!(shape), &json!("float32")));
    }
    assert_eq!(formats.quantization_config(&tensors).unwrap()["llm_int8_skip_modules"], json!(["lm_head"]));
    assert_eq!(TensorFormats::from(WeightFormat::F32).quantization_config(&tensors), None);
}

#[test]
fn a_matrix_that_no_codes_stand_for_is_refused_and_nothing_is_written() {
    let format = FourBitFormat::of(PackedFormat::NF4).unwrap();
    let tensors = [Expected::new("layers.0.proj.weight", [2, 3])];
    let formats = || TensorFormats::from(WeightFormat::F32).with_linear_layers_in_four_bit(tensors.clone(), format);
    let dir = tempfile::tempdir().unwrap();
    let write = |values: Vec<f32>| {
        let writer = CheckpointWriter::new(dir.path(), formats());
        writer.write(&tensors, |_| Ok::<_, WeightsError>(values.clone())).unwrap_err().to_string()
    };
    let error = write(vec![0.0, 1.0, f32::NAN, 0.0, 0.0, 0.0]);
    assert_eq!(error, "element 2 of tensor `layers.0.proj.weight` is NaN");
    assert!(write(vec![0.0; 5]).contains("5"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
