//! `--dtype` of the commands that write models: what the weights are stored in.

use std::fmt;
use std::str::FromStr;

use sorsa_checkpoint::gguf::{FileType, GgufType};
use sorsa_checkpoint::{FourBitFormat, WeightFormat};
use sorsa_kernels::packed::PackedFormat;

use crate::exit::bad_input;

/// What the weights of a written model are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputType {
    /// A type of GGUF files; f32, f16 and bf16 are dtypes of folders too.
    Gguf(FileType),
    /// 4 bits of bitsandbytes, in folders.
    FourBit(PackedFormat),
}

/// What the weights of a folder are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderType {
    /// Numbers.
    Plain(WeightFormat),
    /// Linear layers in 4 bits.
    FourBit(FourBitFormat),
}

impl OutputType {
    /// The type of a GGUF file.
    ///
    /// # Errors
    ///
    /// Bad input for the types of folders alone.
    pub fn of_gguf(self) -> anyhow::Result<FileType> {
        match self {
            Self::Gguf(file_type) => Ok(file_type),
            Self::FourBit(format) => Err(bad_input(format!(
                "--dtype {format}: GGUF files have no such type; q4_k_m is of about the same size, and --format hf writes {format}"
            ))),
        }
    }

    /// The type of a folder, for what the user calls `form`.
    ///
    /// # Errors
    ///
    /// Bad input for the types of GGUF files alone.
    pub fn of_folder(self, form: &str) -> anyhow::Result<FolderType> {
        match self {
            Self::Gguf(FileType::Uniform(GgufType::Plain(format))) => Ok(FolderType::Plain(format)),
            Self::Gguf(file_type) => Err(bad_input(format!(
                "--dtype {file_type} says nothing for {form}: it is a type of GGUF files, and `sorsa export --format gguf --dtype \
                 {file_type}` writes one; a folder has f32, f16, bf16, nf4 or fp4"
            ))),
            Self::FourBit(format) => {
                Ok(FolderType::FourBit(FourBitFormat::of(format).expect("4 bits of bitsandbytes")))
            }
        }
    }
}

impl fmt::Display for OutputType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gguf(file_type) => file_type.fmt(f),
            Self::FourBit(format) => format.fmt(f),
        }
    }
}

impl FromStr for OutputType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(file_type) = text.parse() {
            return Ok(Self::Gguf(file_type));
        }
        let four_bit: Vec<PackedFormat> =
            PackedFormat::all().filter(|format| FourBitFormat::of(*format).is_some()).collect();
        if let Some(format) = four_bit.iter().find(|format| format.name() == text) {
            return Ok(Self::FourBit(*format));
        }
        let mut names: Vec<String> = FileType::all().map(|file_type| file_type.to_string()).collect();
        names.extend(four_bit.iter().map(ToString::to_string));
        Err(format!("unknown type `{text}`, expected one of {}", names.join(", ")))
    }
}
