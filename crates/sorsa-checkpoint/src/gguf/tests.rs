//! What is written is read back, and no file makes the reader panic.

use proptest::prelude::*;
use tempfile::tempdir;

use super::reader::parse;
use super::*;

fn strings() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z.▁é]{0,8}", Just(String::new())]
}

fn arrays() -> impl Strategy<Value = Array> {
    let length = 0..5usize;
    let leaf = prop_oneof![
        prop::collection::vec(any::<u8>(), length.clone()).prop_map(Array::U8),
        prop::collection::vec(any::<i8>(), length.clone()).prop_map(Array::I8),
        prop::collection::vec(any::<u16>(), length.clone()).prop_map(Array::U16),
        prop::collection::vec(any::<i16>(), length.clone()).prop_map(Array::I16),
        prop::collection::vec(any::<u32>(), length.clone()).prop_map(Array::U32),
        prop::collection::vec(any::<i32>(), length.clone()).prop_map(Array::I32),
        prop::collection::vec(-1e30f32..1e30, length.clone()).prop_map(Array::F32),
        prop::collection::vec(any::<bool>(), length.clone()).prop_map(Array::Bool),
        prop::collection::vec(strings(), length.clone()).prop_map(Array::String),
        prop::collection::vec(any::<u64>(), length.clone()).prop_map(Array::U64),
        prop::collection::vec(any::<i64>(), length.clone()).prop_map(Array::I64),
        prop::collection::vec(-1e300f64..1e300, length).prop_map(Array::F64),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Array::Array))
}

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        (-1e30f32..1e30).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        strings().prop_map(Value::String),
        arrays().prop_map(Value::Array),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e300f64..1e300).prop_map(Value::F64),
    ]
}

fn dtypes() -> impl Strategy<Value = GgufType> {
    prop::sample::select(vec![GgufType::F32, GgufType::F16, GgufType::BF16, GgufType::Q8_0])
}

/// Tensors of one to four axes, whose rows are whole blocks.
fn tensors() -> impl Strategy<Value = Vec<GgufTensor>> {
    let one = (dtypes(), prop::collection::vec(1..4usize, 0..4), 1..3usize);
    prop::collection::vec(one, 0..4).prop_map(|list| {
        let tensor = |(i, (dtype, mut shape, rows)): (usize, (GgufType, Vec<usize>, usize))| {
            shape.push(if dtype == GgufType::Q8_0 { 32 * rows } else { rows });
            GgufTensor::new(format!("tensor.{i}"), shape, dtype)
        };
        list.into_iter().enumerate().map(tensor).collect()
    })
}

/// Values that every type stores without loss: whole numbers, the largest of each block 127.
fn exact(tensor: &GgufTensor) -> Vec<f32> {
    (0..tensor.shape.iter().product())
        .map(|i: usize| if i.is_multiple_of(32) { 127.0 } else { (i % 100) as f32 })
        .collect()
}

fn written(metadata: &[(String, Value)], tensors: &[GgufTensor]) -> Vec<u8> {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let writer = GgufWriter::new().with_all(metadata.iter().cloned());
    let size = writer.write(&path, tensors, |tensor| Ok::<_, GgufError>(exact(tensor))).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left there");
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, size);
    bytes
}

/// A good file, changed, cut, or with numbers replaced by extreme ones.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let metadata: Vec<(String, Value)> = vec![
        ("text".to_owned(), "abc".into()),
        ("list".to_owned(), vec!["a".to_owned(), "b".to_owned()].into()),
        ("numbers".to_owned(), vec![1u32, 2].into()),
        ("nested".to_owned(), Value::Array(Array::Array(vec![Array::U8(vec![1])]))),
    ];
    let good = written(&metadata, &[GgufTensor::new("w", [2, 32], GgufType::Q8_0)]);
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    let (mutated, cut, numbers) = (good.clone(), good.clone(), good);
    let mutated = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6).prop_map(move |changes| {
        let mut file = mutated.clone();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        file
    });
    let cut = any::<prop::sample::Index>().prop_map(move |at| cut[..at.index(cut.len())].to_vec());
    let extreme = prop_oneof![Just(0u64), Just(9), Just(1 << 32), Just(u64::MAX), Just(u64::MAX / 4), any::<u64>()];
    let numbers = (any::<prop::sample::Index>(), extreme).prop_map(move |(at, number)| {
        let mut file = numbers.clone();
        let at = at.index(file.len() - 8);
        file[at..at + 8].copy_from_slice(&number.to_le_bytes());
        file
    });
    prop_oneof![bytes, mutated, cut, numbers]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_written_is_read_back(values in prop::collection::vec(values(), 0..6), tensors in tensors()) {
        let named = |(i, value)| (format!("key.{i}"), value);
        let metadata: Vec<(String, Value)> = values.into_iter().enumerate().map(named).collect();
        let dir = tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        std::fs::write(&path, written(&metadata, &tensors)).unwrap();
        let file = GgufFile::open(&path).unwrap();
        prop_assert_eq!(file.metadata(), metadata.as_slice());
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for tensor in &tensors {
            let info = file.info(&tensor.name).unwrap();
            prop_assert_eq!((&info.shape, info.dtype()), (&tensor.shape, Some(tensor.dtype)));
            prop_assert!(info.offset.is_multiple_of(32));
            prop_assert_eq!(file.to_f32(&tensor.name).unwrap(), exact(tensor));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_file_makes_the_reader_panic(file in hostile()) {
        if let Ok(contents) = parse(&file) {
            for tensor in contents.tensors {
                if let Some(bytes) = tensor.dtype().and_then(|dtype| dtype.bytes(&tensor.shape)) {
                    prop_assert!(tensor.offset + bytes <= file.len());
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let write = |writer: GgufWriter, tensor: GgufTensor, values: Vec<f32>| {
        writer.write(&path, &[tensor], |_| Ok::<_, GgufError>(values.clone())).unwrap_err()
    };
    let tensor = |dtype| GgufTensor::new("w", [1, 2], dtype);
    let twice = GgufWriter::new().with("a", 1u32).with("a", 2u32);
    assert!(
        matches!(write(twice, tensor(GgufType::F32), vec![0.0; 2]), GgufError::NamedTwice { names } if names == ["a"])
    );
    let plain = GgufWriter::new;
    assert!(matches!(write(plain(), tensor(GgufType::Q8_0), vec![0.0; 2]), GgufError::Shape { .. }));
    assert!(matches!(write(plain(), tensor(GgufType::F32), vec![0.0; 3]), GgufError::WrongLength { found: 3, .. }));
    assert!(matches!(
        write(plain(), tensor(GgufType::F32), vec![0.0, f32::NAN]),
        GgufError::NotFinite { index: 1, .. }
    ));
    assert!(matches!(write(plain(), tensor(GgufType::F16), vec![1e6, 0.0]), GgufError::TooLarge { index: 0, .. }));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_damaged_file_is_named_with_the_place_and_the_reason() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let good = written(&[], &[GgufTensor::new("w", [2, 4], GgufType::F32)]);
    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    let error = GgufFile::open(&path).unwrap_err().to_string();
    assert!(error.contains("a.gguf") && error.contains("`w`"), "{error}");
    std::fs::write(&path, b"GGML").unwrap();
    assert!(GgufFile::open(&path).unwrap_err().to_string().contains("begins with GGUF"));
}

#[test]
fn a_model_in_several_files_is_opened_by_the_first_of_them() {
    let dir = tempdir().unwrap();
    let path = |part: usize| dir.path().join(format!("m-{part:05}-of-00002.gguf"));
    let part = |number: u16| -> Vec<(String, Value)> {
        vec![("split.no".to_owned(), number.into()), ("split.count".to_owned(), 2u16.into())]
    };
    let tensors = [GgufTensor::new("w", [2, 32], GgufType::F32), GgufTensor::new("v", [3, 32], GgufType::Q8_0)];
    for (number, tensor) in (0u16..).zip(&tensors) {
        let bytes = written(&part(number), std::slice::from_ref(tensor));
        std::fs::write(path(usize::from(number) + 1), bytes).unwrap();
    }
    let file = GgufFile::open(&path(1)).unwrap();
    assert_eq!(file.tensors().len(), 2);
    for tensor in &tensors {
        assert_eq!(file.to_f32(&tensor.name).unwrap(), exact(tensor));
    }
    let found = crate::source::gguf_file_of(dir.path()).unwrap();
    assert_eq!(found, Some(path(1)));

    let refused = |path: &std::path::Path| GgufFile::open(path).unwrap_err().to_string();
    let second = refused(&path(2));
    assert!(second.contains("a part of a model in 2 files: expected the first, m-00001-of-00002.gguf"), "{second}");
    std::fs::write(path(2), written(&part(1), &tensors[..1])).unwrap();
    assert!(refused(&path(1)).contains("the tensor `w` is in another part too"));
    std::fs::write(path(2), written(&part(0), &tensors[1..])).unwrap();
    assert!(refused(&path(1)).contains("`split.no` should be 1 and `split.count` 2, found 0 and 2"));
    std::fs::remove_file(path(2)).unwrap();
    assert!(refused(&path(1)).contains("m-00002-of-00002.gguf"));
    let renamed = dir.path().join("m.gguf");
    std::fs::rename(path(1), &renamed).unwrap();
    assert!(refused(&renamed).contains("like NAME-00001-of-00002.gguf, found m.gguf"));
}
