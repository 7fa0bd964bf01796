//! Laws of reading and writing, and files that are wrong in every way that has been thought of.

use std::convert::Infallible;
use std::path::Path;

use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::tensor::{TensorView, serialize};
use tempfile::{TempDir, tempdir};

use crate::WeightFormat;

use super::*;

fn save(path: &Path, tensors: &[(&str, Dtype, &[usize], &[u8])]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.to_string(), TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
    std::fs::write(path, serialize(views, None).unwrap()).unwrap();
}

fn single(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> (TempDir, Checkpoint) {
    let dir = tempdir().unwrap();
    save(&dir.path().join(SINGLE_FILE), &[("w", dtype, shape, bytes)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

fn bytes_of(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let encode = |value: &f32| match dtype {
        Dtype::F64 => f64::from(*value).to_le_bytes().to_vec(),
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        _ => bf16::from_f32(*value).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(encode).collect()
}

/// Values that differ from each other and that all types hold exactly.
fn small_integers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 37 % 251) as f32 - 125.0).collect()
}

fn problems(dir: &Path) -> Vec<Problem> {
    match Checkpoint::open(dir) {
        Err(WeightsError::Damaged { problems, .. }) => problems,
        other => panic!("expected a damaged checkpoint, found {other:?}"),
    }
}

#[test]
fn every_float_type_is_read_and_transposed_as_f32_and_bf16() {
    // Below, at and above the sides of a strip and a tile; more rows than columns and the other way round; nothing at all.
    for [rows, cols] in [[1, 1], [3, 5], [32, 256], [33, 255], [70, 530], [200, 70], [1, 300], [0, 4], [4, 0]] {
        let values = small_integers(rows * cols);
        let transposed: Vec<f32> =
            (0..cols).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| values[r * cols + c]).collect();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
            let (_dir, checkpoint) = single(dtype, &[rows, cols], &bytes_of(&values, dtype));
            let as_f32 = |values: Vec<bf16>| values.into_iter().map(bf16::to_f32).collect::<Vec<_>>();
            assert_eq!(checkpoint.to_f32("w").unwrap(), values, "{dtype:?}");
            assert_eq!(as_f32(checkpoint.to_bf16("w").unwrap()), values, "{dtype:?}");
            assert_eq!(checkpoint.to_f32_transposed("w").unwrap(), transposed, "{dtype:?} {rows}x{cols}");
            assert_eq!(as_f32(checkpoint.to_bf16_transposed("w").unwrap()), transposed, "{dtype:?} {rows}x{cols}");
        }
    }
}

#[test]
fn a_tensor_of_several_chunks_is_read_whole() {
    let values = small_integers(3 * 65_536 + 17);
    let (_dir, checkpoint) = single(Dtype::F16, &[values.len()], &bytes_of(&values, Dtype::F16));
    assert_eq!(checkpoint.to_f32("w").unwrap(), values);
    assert_eq!(checkpoint.total_bytes(), 2 * values.len() as u64);
    assert_eq!(checkpoint.raw("w").unwrap(), bytes_of(&values, Dtype::F16));
}

#[test]
fn of_a_model_of_text_and_pictures_the_text_part_is_kept_under_the_names_that_it_has_alone() {
    let pictures = ["vision_tower.post_layernorm.weight", "multi_modal_projector.mm_input_projection_weight"];
    let names = |names: &[&str]| {
        let dir = tempdir().unwrap();
        let tensors: Vec<_> = names.iter().map(|name| Expected::new(*name, [1])).collect();
        let writer = CheckpointWriter::new(dir.path(), WeightFormat::F32);
        writer.write(&tensors, |_| Ok::<_, WeightsError>(vec![1.0])).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        checkpoint.names().map(str::to_owned).collect::<Vec<_>>()
    };
    // Transformers before 4.52, and since.
    let older = ["language_model.model.norm.weight", "language_model.lm_head.weight", pictures[0], pictures[1]];
    assert_eq!(names(&older), ["lm_head.weight", "model.norm.weight"]);
    let (vision, projector) = (format!("model.{}", pictures[0]), format!("model.{}", pictures[1]));
    let newer = ["model.language_model.norm.weight", "lm_head.weight", &vision, &projector];
    assert_eq!(names(&newer), ["lm_head.weight", "model.norm.weight"]);
    // A model that is no such model keeps what it has.
    assert_eq!(names(&["model.norm.weight", pictures[0]]), ["model.norm.weight", pictures[0]]);
}

#[cfg(unix)]
#[test]
fn a_file_that_becomes_shorter_or_is_a_device_is_an_error() {
    let values = small_integers(20_000);
    let (dir, checkpoint) = single(Dtype::F32, &[values.len()], &bytes_of(&values, Dtype::F32));
    let file = dir.path().join(SINGLE_FILE);
    std::fs::File::options().write(true).open(&file).unwrap().set_len(1000).unwrap();
    assert!(matches!(checkpoint.raw("w"), Err(WeightsError::Io { .. })));
    assert!(matches!(checkpoint.to_f32("w"), Err(WeightsError::Io { .. })));
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/dev/zero", file).unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.path().join(INDEX_FILE)).unwrap();
    assert!(matches!(Checkpoint::open(dir.path()), Err(WeightsError::NoWeights { .. })));
}

#[test]
fn what_cannot_be_read_as_asked_is_named() {
    let (dir, checkpoint) = single(Dtype::I64, &[1], &[0; 8]);
    assert!(matches!(checkpoint.to_f32("w"), Err(WeightsError::NotFloat { found: Dtype::I64, .. })));
    assert!(matches!(checkpoint.raw("v"), Err(WeightsError::NoTensor { name, .. }) if name == "v"));
    let info = checkpoint.info("w").unwrap();
    assert_eq!((info.dtype, info.shape.as_slice(), &info.file), (Dtype::I64, &[1][..], &dir.path().join(SINGLE_FILE)));

    let (_dir, checkpoint) = single(Dtype::F32, &[2, 1, 1], &[0; 8]);
    let error = checkpoint.to_f32_transposed("w").unwrap_err();
    assert!(matches!(&error, WeightsError::NotMatrix { found, .. } if *found == [2, 1, 1]), "{error}");
}

#[test]
fn a_file_that_was_cut_short_after_it_was_opened_is_an_error_that_names_it() {
    let (dir, checkpoint) = single(Dtype::F32, &[40, 50], &[0; 8000]);
    let path = dir.path().join(SINGLE_FILE);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4000).unwrap();
    for result in [checkpoint.to_f32("w"), checkpoint.to_f32_transposed("w")] {
        let error = result.unwrap_err();
        assert!(matches!(&error, WeightsError::Io { path: named, .. } if *named == path), "{error}");
    }
}

#[test]
fn a_tensor_that_was_read_says_where_it_is_not_finite() {
    let [rows, cols] = [70, 530];
    let mut values = small_integers(rows * cols);
    let (_dir, checkpoint) = single(Dtype::F32, &[rows, cols], &bytes_of(&values, Dtype::F32));
    for transposed in [false, true] {
        assert_eq!(checkpoint.numbers::<f32>("w", transposed).unwrap().first_non_finite(), None);
    }
    values[69 * cols + 529] = f32::INFINITY;
    values[40 * cols + 300] = f32::NEG_INFINITY;
    let (_dir, checkpoint) = single(Dtype::F32, &[rows, cols], &bytes_of(&values, Dtype::F32));
    let first = |transposed| checkpoint.numbers::<bf16>("w", transposed).unwrap().first_non_finite();
    assert_eq!(first(false), Some((40 * cols + 300, bf16::NEG_INFINITY)));
    assert_eq!(first(true), Some((300 * rows + 40, bf16::NEG_INFINITY)));
}

#[test]
fn the_first_value_that_is_not_finite_is_found_anywhere() {
    let mut values = vec![1.0; 200_000];
    assert_eq!(first_non_finite(&values), None);
    values[199_999] = f32::NEG_INFINITY;
    assert_eq!(first_non_finite(&values), Some((199_999, f32::NEG_INFINITY)));
    values[70_000] = f32::NAN;
    assert!(matches!(first_non_finite(&values), Some((70_000, nan)) if nan.is_nan()));
}

#[test]
fn pickled_weights_are_refused_with_the_way_out() {
    let dir = tempdir().unwrap();
    assert!(matches!(Checkpoint::open(dir.path()), Err(WeightsError::NoWeights { .. })));
    std::fs::write(dir.path().join("pytorch_model.bin"), "\x02").unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(&error, WeightsError::Pickled { found, .. } if *found == ["pytorch_model.bin"]), "{error}");
    assert!(error.to_string().contains("safe_serialization=True"), "{error}");

    std::fs::write(dir.path().join("adapter_model.safetensors"), "").unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("expected model.safetensors") && error.contains("found adapter_model"), "{error}");
    assert!(matches!(Checkpoint::open(&dir.path().join("absent")), Err(WeightsError::Io { .. })));
}

#[test]
fn a_truncated_file_is_named_with_both_sizes() {
    let (dir, _) = single(Dtype::F32, &[4], &[0; 16]);
    let file = dir.path().join(SINGLE_FILE);
    let whole = std::fs::read(&file).unwrap();
    for (length, expected) in [(whole.len() - 1, whole.len()), (12, whole.len() - 16), (3, 8), (0, 8)] {
        std::fs::write(&file, &whole[..length]).unwrap();
        let found = problems(dir.path());
        let [Problem::Size { file, expected: e, found: f }] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((file.as_str(), *e, *f), (SINGLE_FILE, expected as u64, length as u64));
    }
}

#[test]
fn a_header_that_promises_the_impossible_is_refused() {
    let dir = tempdir().unwrap();
    let file = dir.path().join(SINGLE_FILE);
    std::fs::write(&file, u64::MAX.to_le_bytes()).unwrap();
    assert!(matches!(problems(dir.path())[..], [Problem::HeaderTooLarge { found: u64::MAX, .. }]));

    // Shapes that overflow, offsets that overlap, go backwards, or wrap round to the size of the file.
    let tensor = |shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"U8","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let half = 1u64 << 60;
    let wrapping: Vec<_> = (0..16)
        .map(|i| format!(r#""t{i}":{}"#, tensor(&format!("[{half}]"), i * half, (i * half).wrapping_add(half))))
        .collect();
    for header in [
        format!(r#"{{"a":{}}}"#, tensor("[4294967296, 4294967296, 4294967296]", 0, 8)),
        format!(r#"{{"a":{},"b":{}}}"#, tensor("[8]", 0, 8), tensor("[8]", 4, 12)),
        format!(r#"{{"a":{}}}"#, tensor("[8]", 8, 0)),
        format!("{{{}}}", wrapping[..15].join(",")),
        format!("{{{}}}", wrapping.join(",")),
        "[".repeat(10_000),
        "null".to_owned(),
    ] {
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 8]].concat();
        std::fs::write(&file, bytes).unwrap();
        assert!(matches!(problems(dir.path())[..], [Problem::Json { .. } | Problem::Size { .. }]), "{header}");
    }
}

#[test]
fn everything_that_is_wrong_with_shards_is_reported_at_once() {
    let dir = tempdir().unwrap();
    let one = [0; 4];
    save(&dir.path().join("one.safetensors"), &[("a", Dtype::F32, &[1], &one), ("b", Dtype::F32, &[1], &one)]);
    save(&dir.path().join("two.safetensors"), &[("b", Dtype::F32, &[1], &one), ("c", Dtype::F32, &[1], &one)]);
    std::fs::write(dir.path().join("broken.safetensors"), "x").unwrap();
    let index = serde_json::json!({ "weight_map": {
        "a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors", "d": "two.safetensors",
        "e": "gone.safetensors", "f": "gone.safetensors", "g": "broken.safetensors",
    }});
    std::fs::write(dir.path().join(INDEX_FILE), index.to_string()).unwrap();

    let error = Checkpoint::open(dir.path()).unwrap_err();
    let WeightsError::Damaged { problems, .. } = &error else { panic!("{error}") };
    let has = |wanted: &str| assert!(problems.iter().any(|p| p.to_string().contains(wanted)), "{wanted}: {error}");
    has("`b` is both in one.safetensors and in two.safetensors");
    has("two.safetensors does not hold `d`");
    has("gone.safetensors is missing: the index lists 2 tensors in it");
    has("broken.safetensors has 1 bytes: expected 8");
    assert_eq!(problems.len(), 4, "{error}");
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    let dir = tempdir().unwrap();
    let names = [
        "../a.safetensors",
        "/a.safetensors",
        "b/a.safetensors",
        "a.bin",
        "..",
        "b\\a.safetensors",
        "./a.safetensors",
        "a.safetensors/",
    ];
    let map: serde_json::Map<_, _> = names.iter().map(|name| (format!("tensor {name}"), (*name).into())).collect();
    std::fs::write(dir.path().join(INDEX_FILE), serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    let found = problems(dir.path());
    assert_eq!(found.len(), names.len(), "{found:?}");
    assert!(found.iter().all(|problem| matches!(problem, Problem::ShardName { .. })));

    std::fs::write(dir.path().join(INDEX_FILE), "{").unwrap();
    assert!(matches!(problems(dir.path())[..], [Problem::Json { .. }]));
}

#[test]
fn one_error_lists_all_differences_and_counts_the_rest() {
    let dir = tempdir().unwrap();
    let names: Vec<_> = (0..30).map(|i| format!("extra.{i:02}")).collect();
    let mut tensors: Vec<(&str, Dtype, &[usize], &[u8])> =
        names.iter().map(|name| (name.as_str(), Dtype::BF16, &[1][..], &[0; 2][..])).collect();
    tensors.push(("w", Dtype::BF16, &[1, 2], &[0; 4]));
    tensors.push(("layers.0.rotary_emb.inv_freq", Dtype::BF16, &[1], &[0; 2]));
    tensors.push(("lm_head.weight", Dtype::BF16, &[1], &[0; 2]));
    save(&dir.path().join(SINGLE_FILE), &tensors);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();

    let expected = [Expected::new("w", [2, 1]), Expected::new("bias", [2])];
    let error = checkpoint.check(&expected, ignorable(true)).unwrap_err();
    let WeightsError::Mismatch { missing, extra, misshapen, .. } = &error else { panic!("{error}") };
    assert_eq!((missing.len(), extra.len(), misshapen.len()), (1, 30, 1), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("missing: bias [2]") && text.contains("wrong shape: w: expected [2, 1], found [1, 2]"),
        "{text}"
    );
    assert!(text.contains("extra.19 [1]") && !text.contains("extra.20") && text.contains("and 10 more"), "{text}");

    let all: Vec<_> = tensors.iter().take(31).map(|(name, _, shape, _)| Expected::new(*name, *shape)).collect();
    checkpoint.check(&all, ignorable(true)).unwrap();
    let error = checkpoint.check(&all, ignorable(false)).unwrap_err();
    assert!(matches!(&error, WeightsError::Mismatch { extra, .. } if *extra == [Expected::new("lm_head.weight", [1])]));
}

fn specs() -> Vec<Expected> {
    vec![
        Expected::new("b.weight", [3, 4]),
        Expected::new("a.weight", [100]),
        Expected::new("scalar", []),
        Expected::new("none", [0, 7]),
    ]
}

fn values(tensor: &Expected) -> Result<Vec<f32>, Infallible> {
    Ok((0..tensor.shape.iter().product::<usize>()).map(|i| (i as f32 + 0.1).sin() / 3.0).collect())
}

#[test]
fn what_is_written_is_read_back_in_every_type_in_one_file_and_in_shards() {
    for dtype in [WeightFormat::F32, WeightFormat::F16, WeightFormat::Bf16] {
        for (max, count) in [(u64::MAX, 1), (60, 4), (0, 5)] {
            let dir = tempdir().unwrap();
            let writer = CheckpointWriter::new(dir.path().join("made"), dtype).with_max_shard_bytes(max);
            let files = writer.write(&specs(), values).unwrap();
            assert_eq!(files.len(), count, "{files:?}");
            assert_eq!(
                std::fs::read_dir(dir.path().join("made")).unwrap().count(),
                files.len(),
                "temporary files are left"
            );

            let checkpoint = Checkpoint::open(&dir.path().join("made")).unwrap();
            checkpoint.check(&specs(), |_| false).unwrap();
            for tensor in specs() {
                let rounded: Vec<f32> = values(&tensor)
                    .unwrap()
                    .into_iter()
                    .map(|value| match dtype {
                        WeightFormat::F32 => value,
                        WeightFormat::F16 => f16::from_f32(value).to_f32(),
                        WeightFormat::Bf16 => bf16::from_f32(value).to_f32(),
                    })
                    .collect();
                assert_eq!(checkpoint.to_f32(&tensor.name).unwrap(), rounded, "{}", tensor.name);
                assert_eq!(checkpoint.info(&tensor.name).unwrap().dtype, dtype.into());
            }
            if files.len() > 1 {
                let index = Index::read(&dir.path().join("made")).unwrap();
                assert_eq!(index.metadata["total_size"], checkpoint.total_bytes());
                assert_eq!(index.shards().len(), files.len() - 1);
                assert!(files[0].ends_with(format!("model-00001-of-{:05}.safetensors", files.len() - 1)));
            }
        }
    }
}

#[test]
fn values_are_rounded_to_nearest_even() {
    // Between 1 and the next number: a little below half, half (down to even), half (up to even), a little above.
    let cases =
        [(WeightFormat::Bf16, 2f32.powi(-8), 2f32.powi(-7)), (WeightFormat::F16, 2f32.powi(-11), 2f32.powi(-10))];
    for (dtype, half, ulp) in cases {
        let dir = tempdir().unwrap();
        let given = vec![1.0 + half * 0.99, 1.0 + half, 1.0 + 3.0 * half, 1.0 + half * 1.01, -1.0 - half, -0.0];
        let wanted = [1.0, 1.0, 1.0 + 2.0 * ulp, 1.0 + ulp, -1.0, -0.0];
        let writer = CheckpointWriter::new(dir.path(), dtype);
        writer.write(&[Expected::new("w", [6])], |_| Ok::<_, Infallible>(given.clone())).unwrap();
        let read = Checkpoint::open(dir.path()).unwrap().to_f32("w").unwrap();
        assert_eq!(bits(&read), bits(&wanted), "{dtype:?}");
    }
}

/// So that the sign of zero counts.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn f32_is_rounded_to_bf16_on_reading_as_on_writing() {
    let given: Vec<f32> = (0..1000).map(|i| (i as f32).exp2().recip() + i as f32 / 3.0).collect();
    let (_dir, checkpoint) = single(Dtype::F32, &[1000], &bytes_of(&given, Dtype::F32));
    let wanted: Vec<_> = given.iter().map(|value| bf16::from_f32(*value)).collect();
    assert_eq!(checkpoint.to_bf16("w").unwrap(), wanted);
}

#[test]
fn a_failed_export_leaves_the_folder_as_it_was() {
    let dir = tempdir().unwrap();
    let writer = CheckpointWriter::new(dir.path(), WeightFormat::F16).with_max_shard_bytes(8);
    writer.write(&[Expected::new("w", [1])], |_| Ok::<_, Infallible>(vec![1.0])).unwrap();

    let two = [Expected::new("v", [4]), Expected::new("w", [4])];
    let fails = |tensor: &Expected| if tensor.name == "w" { Err("no SVD") } else { Ok(vec![0.0; 4]) };
    let short = |tensor: &Expected| Ok::<_, Infallible>(vec![0.0; if tensor.name == "w" { 3 } else { 4 }]);
    let large = |tensor: &Expected| Ok::<_, Infallible>(vec![if tensor.name == "w" { 65_520.0 } else { 65_519.0 }; 4]);
    let twice = [two[0].clone(), two[0].clone()];
    assert!(matches!(writer.write(&two, fails), Err(WeightsError::Produce { name, .. }) if name == "w"));
    assert!(matches!(writer.write(&two, short), Err(WeightsError::WrongLength { found: 3, .. })));
    assert!(matches!(writer.write(&two, large), Err(WeightsError::TooLarge { index: 0, .. })));
    assert!(matches!(writer.write(&twice, large), Err(WeightsError::NamedTwice { names }) if names == ["v"]));

    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().to_f32("w").unwrap(), [1.0]);
}

#[test]
fn new_shards_and_old_ones_are_never_a_checkpoint_together() {
    let dir = tempdir().unwrap();
    let writer = CheckpointWriter::new(dir.path(), WeightFormat::F32).with_max_shard_bytes(0);
    let files = writer.write(&specs(), values).unwrap();
    // The second shard cannot take its place: the first has.
    std::fs::remove_file(&files[1]).unwrap();
    std::fs::create_dir(&files[1]).unwrap();
    writer.write(&specs(), values).unwrap_err();
    assert!(!dir.path().join(INDEX_FILE).exists());
    assert!(Checkpoint::open(dir.path()).is_err());
}

#[test]
fn shards_replace_a_single_file_that_would_be_read_instead_of_them() {
    let dir = tempdir().unwrap();
    let old = [Expected::new("old", [1])];
    CheckpointWriter::new(dir.path(), WeightFormat::F32).write(&old, values).unwrap();
    CheckpointWriter::new(dir.path(), WeightFormat::F32).with_max_shard_bytes(0).write(&specs(), values).unwrap();
    Checkpoint::open(dir.path()).unwrap().check(&specs(), |_| false).unwrap();
}

#[test]
fn nothing_is_a_checkpoint_too() {
    let dir = tempdir().unwrap();
    CheckpointWriter::new(dir.path(), WeightFormat::F32).write(&[], values).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().names().len(), 0);
}

/// A file whose header has been changed, in tokens that a header is made of or in any bytes.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let good = serialize([("w", TensorView::new(Dtype::F32, vec![2, 3], &[0; 24]).unwrap())], None).unwrap();
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    let mutated = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6).prop_map({
        let good = good.clone();
        move |changes| {
            let mut file = good.clone();
            for (at, byte) in changes {
                let at = at.index(file.len());
                file[at] = byte;
            }
            file
        }
    });
    let cut = any::<prop::sample::Index>().prop_map(move |at| good[..at.index(good.len())].to_vec());
    let number =
        prop_oneof![Just(0u64), Just(2), Just(24), Just(1 << 32), Just(u64::MAX), Just(u64::MAX / 4), any::<u64>()];
    let dtype = prop::sample::select(vec!["F32", "F4", "F64", "I8", "BF16", "??"]);
    let tensor = (dtype, prop::collection::vec(number.clone(), 0..4), number.clone(), number).prop_map(
        |(dtype, shape, start, end)| serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }),
    );
    let headers = prop::collection::vec(tensor, 0..4).prop_map(|tensors| {
        let header: serde_json::Map<_, _> = tensors.into_iter().enumerate().map(|(i, t)| (i.to_string(), t)).collect();
        let header = serde_json::Value::from(header).to_string();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 24]].concat()
    });
    prop_oneof![bytes, mutated, cut, headers]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_file_makes_the_reader_panic(file in hostile(), index in any::<bool>()) {
        let dir = tempdir().unwrap();
        std::fs::write(dir.path().join(if index { INDEX_FILE } else { SINGLE_FILE }), &file).unwrap();
        match Checkpoint::open(dir.path()) {
            Err(error) => prop_assert!(error.to_string().contains("safetensors"), "{error}"),
            Ok(checkpoint) => for name in checkpoint.names() {
                let held = checkpoint.raw(name).unwrap().len();
                prop_assert!(held <= file.len());
                let _ = checkpoint.to_f32(name);
                let _ = checkpoint.to_bf16_transposed(name);
            },
        }
    }

    #[test]
    fn transposing_twice_is_the_identity(rows in 1usize..150, cols in 1usize..150, seed in any::<u32>()) {
        let given: Vec<f32> = (0..rows * cols).map(|i| (i as u32).wrapping_mul(seed | 1) as f32).collect();
        let (_dir, once) = single(Dtype::F32, &[rows, cols], &bytes_of(&given, Dtype::F32));
        let (_dir, twice) = single(Dtype::F32, &[cols, rows], &bytes_of(&once.to_f32_transposed("w").unwrap(), Dtype::F32));
        prop_assert_eq!(twice.to_f32_transposed("w").unwrap(), given);
    }
}
