//! Compares tokens and labels with those of the code of the SORSA paper, if `SORSA_GOLDEN` is the folder of its results.
//! The unit tests of `encode.rs` check the same rules with a small tokenizer.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use sorsa_data::{BatchOptions, Batcher, EncodeOptions, Encoder, PromptTemplate, Record, TextTokenizer, Truncation};

#[derive(Deserialize)]
struct Item {
    kind: String,
    max_length: usize,
    item: serde_json::Value,
    input_ids: Vec<u32>,
    labels: Vec<i64>,
}

fn items() -> Option<(Arc<TextTokenizer>, Vec<Item>)> {
    let folder = PathBuf::from(std::env::var_os("SORSA_GOLDEN")?).join("preprocess");
    let lines = std::fs::read_to_string(folder.join("items.jsonl")).expect("items.jsonl");
    let items = lines.lines().map(|line| serde_json::from_str(line).expect("an item")).collect();
    Some((Arc::new(TextTokenizer::from_dir(folder.join("tokenizer")).expect("a tokenizer")), items))
}

#[test]
fn the_reference_cuts_and_masks_alike() {
    let Some((tokenizer, items)) = items() else { return };
    assert!(!items.is_empty());
    for (row, expected) in (1..).zip(items) {
        let (template, answer) = match expected.kind.as_str() {
            "metamathqa" => (PromptTemplate::Alpaca, "response"),
            _ => (PromptTemplate::Code, "answer"),
        };
        let text = |field: &str| expected.item[field].as_str().expect("text");
        let record = Record::instruction(row, text("query"), text(answer));
        let truncation = Truncation::AuthorEach;
        let options = EncodeOptions { max_length: expected.max_length, truncation, ..EncodeOptions::default() };
        let encoder = Encoder::new(tokenizer.clone(), template, options).expect("an encoder");

        let example = encoder.encode(&record).expect("an example").remove(0);
        let labels: Vec<i64> = example
            .ids
            .iter()
            .zip(&example.target_mask)
            .map(|(&id, &target)| if target { i64::from(id) } else { -100 })
            .collect();
        assert_eq!(example.ids, expected.input_ids, "item {row}");
        assert_eq!(labels, expected.labels, "item {row}");
    }
}

#[test]
fn a_batch_is_the_references_collated_one_shifted() {
    let Some((_, items)) = items() else { return };
    let examples: Vec<_> = items[..4]
        .iter()
        .map(|item| sorsa_data::Example {
            ids: item.input_ids.clone(),
            target_mask: item.labels.iter().map(|&label| label >= 0).collect(),
            row: 1,
            truncated: false,
        })
        .collect();
    let options = BatchOptions { batch_size: 4, shuffle: false, pad_id: 2, ..BatchOptions::default() };
    let batch = Batcher::new(Arc::new(examples), options).expect("a batcher").batch(0, 0);

    let path = PathBuf::from(std::env::var_os("SORSA_GOLDEN").expect("set")).join("preprocess/collated_first4.json");
    let collated: serde_json::Value = serde_json::from_slice(&std::fs::read(path).expect("the file")).expect("JSON");
    let rows = |field: &str| -> Vec<Vec<i32>> { serde_json::from_value(collated[field].clone()).expect("rows") };
    let (ids, labels, mask) = (rows("input_ids"), rows("labels"), rows("attention_mask"));
    for row in 0..4 {
        let cells = row * batch.len..(row + 1) * batch.len;
        assert_eq!(batch.targets[cells.clone()], labels[row][1..]);
        // The reference's last real token of a row is only a target here, so one position fewer is read.
        let read = mask[row].iter().sum::<i32>() as usize - 1;
        assert_eq!(batch.input_ids[cells.clone()][..read], ids[row][..read]);
        assert_eq!(batch.segments[cells].iter().sum::<i32>() as usize, read);
    }
}
