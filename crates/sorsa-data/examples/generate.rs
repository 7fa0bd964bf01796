//! Writes a pretraining corpus, a tokenizer for it and the fine-tuning task into a folder.
//!
//! `cargo run --release -p sorsa-data --example generate -- FOLDER [DOCUMENTS]`

use std::error::Error;
use std::path::PathBuf;

use sorsa_data::synthetic;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("usage: generate FOLDER [DOCUMENTS]")?);
    let documents = arguments.next().map_or(Ok(150_000), |n| n.parse())?;

    synthetic::write_corpus(&folder.join("corpus.jsonl"), 0, documents)?;
    synthetic::write_corpus(&folder.join("validation.jsonl"), 1, 500)?;
    synthetic::write_tokenizer(&folder.join("tokenizer"))?;
    synthetic::write_task(&folder.join("arithmetic"), 0)?;
    println!("wrote {documents} documents, the tokenizer and the task into {}", folder.display());
    Ok(())
}
