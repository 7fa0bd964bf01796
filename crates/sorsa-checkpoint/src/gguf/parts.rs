//! A model in several GGUF files, like llama.cpp's `llama-gguf-split` writes them: `NAME-00001-of-00003.gguf` and so on. The first holds all
//! metadata, each the list of its own tensors.

use std::path::{Path, PathBuf};

use super::Value;

/// The number of a part, from 0.
const PART: &str = "split.no";
/// How many parts there are.
const PARTS: &str = "split.count";

/// What a file's name says of its part: the name without it, its number from 1, and how many parts there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartName<'a> {
    pub model: &'a str,
    pub number: usize,
    pub count: usize,
}

impl<'a> PartName<'a> {
    /// Reads the name of a file; nothing if it is not that of a part.
    pub fn parse(name: &'a str) -> Option<Self> {
        let stem = name.strip_suffix(".gguf")?;
        let (stem, count) = stem.rsplit_once("-of-")?;
        let (model, number) = stem.rsplit_once('-')?;
        let digits = |text: &str| if text.len() == 5 { text.parse::<usize>().ok() } else { None };
        let (number, count) = (digits(number)?, digits(count)?);
        (1..=count).contains(&number).then_some(Self { model, number, count })
    }

    /// The name of another part of the same model.
    pub fn of_part(self, number: usize) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.model, self.count)
    }
}

/// The files with the other parts of the model whose first part is at `path`, in order; none of a model in one file.
pub(super) fn others(path: &Path, metadata: &[(String, Value)]) -> Result<Vec<PathBuf>, String> {
    let count = number(metadata, PARTS).unwrap_or(1);
    if count <= 1 {
        return Ok(Vec::new());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let named = PartName::parse(&name).filter(|named| named.count as u64 == count);
    let Some(named) = named else {
        return Err(format!(
            "expected the name of a part of {count}, like NAME-00001-of-{count:05}.gguf, found {name}"
        ));
    };
    if named.number != 1 || number(metadata, PART) != Some(0) {
        return Err(format!("this is a part of a model in {count} files: expected the first, {}", named.of_part(1)));
    }
    Ok((2..=named.count).map(|number| path.with_file_name(named.of_part(number))).collect())
}

/// What is wrong with the metadata of part `index` (from 0) of `count`; nothing if it is that part.
pub(super) fn fault(metadata: &[(String, Value)], index: usize, count: usize) -> Option<String> {
    let found = (number(metadata, PART), number(metadata, PARTS));
    let expected = (Some(index as u64), Some(count as u64));
    (found != expected).then(|| {
        let shown = |number: Option<u64>| number.map_or_else(|| "nothing".to_owned(), |number| number.to_string());
        format!("`{PART}` should be {index} and `{PARTS}` {count}, found {} and {}", shown(found.0), shown(found.1))
    })
}

fn number(metadata: &[(String, Value)], key: &str) -> Option<u64> {
    match metadata.iter().find(|(found, _)| found == key)?.1 {
        Value::U8(number) => Some(number.into()),
        Value::U16(number) => Some(number.into()),
        Value::U32(number) => Some(number.into()),
        Value::U64(number) => Some(number),
        Value::I8(number) => number.try_into().ok(),
        Value::I16(number) => number.try_into().ok(),
        Value::I32(number) => number.try_into().ok(),
        Value::I64(number) => number.try_into().ok(),
        Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_are_told_from_others() {
        let part = |name| PartName::parse(name).map(|part| (part.model, part.number, part.count));
        assert_eq!(part("a-b-00002-of-00003.gguf"), Some(("a-b", 2, 3)));
        for other in
            ["a.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-2-of-3.gguf", "a-00001-of-00002.bin"]
        {
            assert_eq!(part(other), None, "{other}");
        }
        assert_eq!(PartName::parse("a-00001-of-00012.gguf").unwrap().of_part(12), "a-00012-of-00012.gguf");
    }
}
