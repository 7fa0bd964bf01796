//! Writes a model's folder, or an adapter in PEFT's format, as a GGUF file for llama.cpp.
//!
//! `export_gguf MODEL OUT.gguf [f32|f16|bf16|q8_0] [--no-tokenizer]`
//!
//! `export_gguf MODEL OUT.gguf --lora PEFT_FOLDER`
//!
//! PEFT_FOLDER holds `adapter_config.json` and `adapter_model.safetensors` of a LoRA.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use sorsa_models::gguf::{ExportOptions, GgufType, LoraModule, export_adapter, export_model};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(model), Some(out)) = (args.first(), args.get(1)) else {
        return Err("usage: export_gguf MODEL OUT.gguf [TYPE] [--no-tokenizer] | --lora PEFT_FOLDER".into());
    };
    let (model, out) = (Path::new(model), Path::new(out));
    let report = if args.get(2).is_some_and(|arg| arg == "--lora") {
        let folder = args.get(3).ok_or("--lora needs a folder")?;
        export_adapter(model, &peft(Path::new(folder))?, out, GgufType::F32)?
    } else {
        let dtype = args.get(2).filter(|arg| !arg.starts_with("--")).map_or(Ok(GgufType::F16), |arg| arg.parse())?;
        let options = ExportOptions::new(dtype);
        let without = args.iter().any(|arg| arg == "--no-tokenizer");
        export_model(model, out, if without { options.without_tokenizer() } else { options })?
    };
    println!("{report:#?}");
    Ok(())
}

/// The modules of a LoRA that PEFT saved; its one `lora_alpha` is that of all.
fn peft(folder: &Path) -> Result<Vec<LoraModule>, Failure> {
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json"))?)?;
    let alpha = config["lora_alpha"].as_f64().ok_or("no lora_alpha")?;
    let bytes = std::fs::read(folder.join("adapter_model.safetensors"))?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let values = |name: &str| -> Result<(Vec<usize>, Vec<f32>), Failure> {
        let view = tensors.tensor(name)?;
        if view.dtype() != Dtype::F32 {
            return Err(format!("{name} is not F32").into());
        }
        let values = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Ok((view.shape().to_vec(), values))
    };
    let mut modules = Vec::new();
    for name in tensors.names() {
        let Some(path) = name.strip_suffix(".lora_A.weight") else { continue };
        let (shape, a) = values(name)?;
        let (_, b) = values(&format!("{path}.lora_B.weight"))?;
        let path = path.strip_prefix("base_model.model.").unwrap_or(path).to_owned();
        modules.push(LoraModule { path, rank: shape[0], a, b, alpha });
    }
    modules.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(modules)
}
