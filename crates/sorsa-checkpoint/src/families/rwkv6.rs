//! RWKV-6 "Finch" (arXiv 2404.05892), as `RWKV/rwkv-6-world-*` are stored: `model_type` rwkv6, a class that comes
//! with the checkpoint.

use serde_json::{Map, Value};

use super::Family;
use super::rwkv4::{read_rwkv, write_rwkv};
use crate::config::{Architecture, ModelConfig, RwkvVersion};
use crate::fields::Fields;

pub(super) static FAMILY: Family =
    Family { model_type: "rwkv6", class: "Rwkv6ForCausalLM", read, write, llama_cpp: None };

fn read(fields: &mut Fields) -> ModelConfig {
    let head_size = fields.size("head_size", Some(64));
    let head_size_divisor = fields.size("head_size_divisor", Some(8));
    fields.only("model_version", "6_0");
    // In the files, and read by nothing: the number of heads follows from their width.
    fields.take("num_attention_heads");
    let version = RwkvVersion::V6 { head_size, head_size_divisor };
    let (sizes, rwkv) = read_rwkv(fields, |hidden_size| hidden_size * 7 / 2 / 32 * 32, 4096, version);
    let width = rwkv.attention_hidden_size;
    if !width.is_multiple_of(head_size) {
        fields.faults.push(format!("{width} values do not make heads of {head_size}"));
    }
    if width != sizes.hidden_size {
        // The reference's norm over the heads has the width of the model.
        fields.faults.push(format!("`attention_hidden_size` should be {}, found {width}", sizes.hidden_size));
    }
    sizes.config(&FAMILY, fields, Architecture::Rwkv(rwkv))
}

fn write(config: &ModelConfig, json: &mut Map<String, Value>) {
    let Some(rwkv) = write_rwkv(config, json) else { return };
    if let RwkvVersion::V6 { head_size, head_size_divisor } = rwkv.version {
        json.insert("head_size".to_owned(), head_size.into());
        json.insert("head_size_divisor".to_owned(), head_size_divisor.into());
        json.insert("model_version".to_owned(), "6_0".into());
    }
}
