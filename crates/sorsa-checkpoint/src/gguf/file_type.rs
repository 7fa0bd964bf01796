//! What the tensors of a whole file are stored in: one type, or one of llama.cpp's mixtures, which give some matrices more bits.
//!
//! The rules are those of `llama_tensor_get_type` in llama.cpp's `src/llama-quant.cpp`, without an importance matrix.

use std::fmt;
use std::str::FromStr;

use sorsa_kernels::BlockFormat;

use super::GgufType;
use super::translation::Translation;

/// What the matrices of a file are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// All of one type.
    Uniform(GgufType),
    /// llama.cpp's mixture of the size "M".
    Mixture(Mixture),
}

/// A mixture of types: matrices that lose most by few bits have Q6_K.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixture {
    /// Q4_K with Q5_K and Q6_K.
    Q4KM,
    /// Q5_K with Q6_K.
    Q5KM,
}

impl Mixture {
    const ALL: [Self; 2] = [Self::Q4KM, Self::Q5KM];

    fn name(self) -> &'static str {
        match self {
            Self::Q4KM => "q4_k_m",
            Self::Q5KM => "q5_k_m",
        }
    }

    /// The type of most matrices.
    fn usual(self) -> BlockFormat {
        match self {
            Self::Q4KM => BlockFormat::Q4K,
            Self::Q5KM => BlockFormat::Q5K,
        }
    }

    /// The type of the matrix `name` if its rows are whole blocks.
    fn of_matrix(self, name: &str, model: &Translation) -> BlockFormat {
        let usual = self.usual();
        let is_head = match name {
            "output.weight" => true,
            "token_embd.weight" => model.config.tie_word_embeddings,
            _ => false,
        };
        if is_head {
            return BlockFormat::Q6K;
        }
        let Some((block, part)) = part_of_block(name) else { return usual };
        let has_more_bits = has_more_bits(block, model.config.num_hidden_layers);
        match part {
            "attn_v.weight" | "ffn_down.weight" if has_more_bits => BlockFormat::Q6K,
            "attn_v.weight" if usual == BlockFormat::Q4K && has_few_wide_values(model) => BlockFormat::Q5K,
            "attn_qkv.weight" => match self {
                Self::Q4KM => BlockFormat::Q5K,
                Self::Q5KM => BlockFormat::Q6K,
            },
            _ => usual,
        }
    }
}

/// The number of the block and the rest of a tensor's name.
fn part_of_block(name: &str) -> Option<(usize, &str)> {
    let (block, part) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((block.parse().ok()?, part))
}

/// llama.cpp's choice of blocks: the first eighth, the last eighth, and every third between.
fn has_more_bits(block: usize, blocks: usize) -> bool {
    let eighth = blocks / 8;
    block < eighth || block >= 7 * blocks / 8 || (block - eighth) % 3 == 2
}

/// Whether llama.cpp takes the model for one of 70 billion parameters, whose values are few beside its queries.
fn has_few_wide_values(model: &Translation) -> bool {
    let decoder = &model.decoder;
    let is_grouped = decoder.num_attention_heads != decoder.num_key_value_heads;
    model.config.num_hidden_layers == 80 && is_grouped
}

impl FileType {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        GgufType::all().map(Self::Uniform).chain(Mixture::ALL.map(Self::Mixture))
    }

    /// llama.cpp's number of the file: `general.file_type`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Uniform(dtype) => dtype.file_type(),
            Self::Mixture(Mixture::Q4KM) => 15,
            Self::Mixture(Mixture::Q5KM) => 17,
        }
    }

    /// The type of the tensor `name` if its rows are whole blocks; vectors are always f32.
    pub(super) fn asked(self, name: &str, model: &Translation) -> GgufType {
        match self {
            Self::Uniform(dtype) => dtype,
            Self::Mixture(mixture) => GgufType::Blocks(mixture.of_matrix(name, model)),
        }
    }
}

impl From<GgufType> for FileType {
    fn from(dtype: GgufType) -> Self {
        Self::Uniform(dtype)
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform(dtype) => dtype.fmt(f),
            Self::Mixture(mixture) => f.write_str(mixture.name()),
        }
    }
}

impl FromStr for FileType {
    type Err = String;

    /// Reads a name in lower or upper case.
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::all().find(|file_type| file_type.to_string() == text.to_lowercase());
        found.ok_or_else(|| {
            let names: Vec<String> = Self::all().map(|file_type| file_type.to_string()).collect();
            format!("unknown type `{text}`, expected one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn model(change: impl FnOnce(&mut Json)) -> Translation {
        let mut config = json!({"model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
            "num_hidden_layers": 30, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 50,
            "max_position_embeddings": 128, "tie_word_embeddings": true});
        change(&mut config);
        Translation::parse(config.as_object().unwrap().clone()).unwrap()
    }

    fn types(file_type: FileType, model: &Translation, part: &str) -> String {
        let blocks = 0..model.config.num_hidden_layers;
        blocks
            .map(|block| file_type.asked(&format!("blk.{block}.{part}.weight"), model).to_string()[1..2].to_owned())
            .collect()
    }

    #[test]
    fn the_mixture_gives_the_matrices_more_bits_that_llama_cpp_gives_more() {
        // What `llama_model_quantize` of llama-cpp-python 0.3.9 chose for the 30 blocks of SmolLM2-135M.
        let more = "666446446446446446446446446666";
        let model = model(|_| ());
        let q4_k_m = FileType::Mixture(Mixture::Q4KM);
        for part in ["attn_v", "ffn_down"] {
            assert_eq!(types(q4_k_m, &model, part), more, "{part}");
        }
        for part in ["attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"] {
            assert_eq!(types(q4_k_m, &model, part), "4".repeat(30), "{part}");
        }
        assert_eq!(types(FileType::Mixture(Mixture::Q5KM), &model, "attn_v"), more.replace('4', "5"));
        assert_eq!(types(FileType::Uniform(GgufType::Q8_0), &model, "attn_v"), "8".repeat(30));
    }

    #[test]
    fn the_head_has_most_bits_and_so_has_an_embedding_that_is_the_head() {
        let q4_k_m = FileType::Mixture(Mixture::Q4KM);
        let own_head = model(|config| config["tie_word_embeddings"] = false.into());
        let asked = |model: &Translation, name: &str| q4_k_m.asked(name, model).to_string();
        assert_eq!(asked(&model(|_| ()), "token_embd.weight"), "q6_k");
        assert_eq!(asked(&own_head, "token_embd.weight"), "q4_k");
        assert_eq!(asked(&own_head, "output.weight"), "q6_k");
    }

    #[test]
    fn fused_projections_and_the_values_of_seventy_billion_parameters_have_five_bits() {
        let q4_k_m = FileType::Mixture(Mixture::Q4KM);
        let large = model(|config| config["num_hidden_layers"] = 80.into());
        assert_eq!(&types(q4_k_m, &large, "attn_v")[..16], "6666666666556556");
        assert_eq!(&types(q4_k_m, &large, "attn_output")[..16], "4444444444444444");
        assert_eq!(types(q4_k_m, &large, "attn_qkv"), "5".repeat(80));
        assert_eq!(types(FileType::Mixture(Mixture::Q5KM), &large, "attn_qkv"), "6".repeat(80));
    }

    #[test]
    fn a_file_type_is_read_by_its_name_in_any_case() {
        for file_type in FileType::all() {
            assert_eq!(file_type.to_string().parse(), Ok(file_type));
        }
        assert_eq!("Q4_K_M".parse(), Ok(FileType::Mixture(Mixture::Q4KM)));
        assert!("q3_k_m".parse::<FileType>().unwrap_err().contains("q6_k, q4_k_m, q5_k_m"));
    }
}
