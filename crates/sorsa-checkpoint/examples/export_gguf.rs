//! Writes a model's folder as a GGUF file for llama.cpp; `sorsa export` writes adapters too.
//!
//! `export_gguf MODEL OUT.gguf [TYPE] [--no-tokenizer]`

use std::path::Path;

use sorsa_checkpoint::gguf::{ExportOptions, FileType, GgufType, export_model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(model), Some(out)) = (args.first(), args.get(1)) else {
        return Err("usage: export_gguf MODEL OUT.gguf [TYPE] [--no-tokenizer]".into());
    };
    let dtype = args
        .get(2)
        .filter(|arg| !arg.starts_with("--"))
        .map_or(Ok(FileType::from(GgufType::F16)), |arg| arg.parse())?;
    let options = ExportOptions::new(dtype);
    let without = args.iter().any(|arg| arg == "--no-tokenizer");
    let options = if without { options.without_tokenizer() } else { options };
    println!("{:#?}", export_model(Path::new(model), Path::new(out), options)?);
    Ok(())
}
