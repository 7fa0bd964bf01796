//! The weights that an adapter is added to, as a model of its own: if packed weights were split, the rest was packed again, so the adapter
//! does not fit the original model.

use std::path::Path;

use anyhow::Context;
use sorsa_adapter::{Attached, PackedFormat};
use sorsa_checkpoint::gguf::{self, ExportOptions, FileType, GgufError, GgufType, export_tensors};
use sorsa_checkpoint::weights::{Expected, ModelFolder, WeightsError};
use sorsa_checkpoint::{FourBitFormat, ModelSource, TensorContent, TensorFormats, WeightFormat};
use sorsa_experiment::PackedOnRead;
use sorsa_kernels::BlockFormat;
use sorsa_models::{CausalLm, ModelTensors, save_tensors};
use sorsa_report::report::bytes;

use super::Trained;
use super::described::DescribedFolder;
use crate::args::{ExportArgs, ExportFormat};
use crate::exit::{OrBadInput, bad_input};
use crate::format::print;
use crate::output_type::{FolderType, OutputType};

/// A model with an adapter attached, of which the part without the adapter is written.
pub struct Residual {
    source: ModelSource,
    attached: Attached<CausalLm>,
    /// The formats of the packed weights that are others than in the original model.
    packed_again: Option<PackedFormat>,
    /// A packed weight that is as it is in the original model, although the adapter took its part of it.
    exact: Option<String>,
}

impl Residual {
    /// Attaches the adapter; nothing if it is added to the original model.
    pub fn of(trained: &Trained) -> anyhow::Result<Option<Self>> {
        let model = &trained.adapter.model;
        let before = model.tensors();
        let has_packed = before.expected().iter().any(|tensor| before.packed(&tensor.name).is_some());
        let splits = trained.adapter.saved.state.config.splits_weights();
        if !has_packed && !splits {
            return Ok(None);
        }
        let source = ModelSource::open(&trained.folder).or_bad_input()?;
        let attached = {
            let originals = PackedOnRead::open(&trained.folder, trained.quantize)?;
            trained.adapter.saved.attach_with(model.clone(), &originals).or_bad_input()?
        };
        let after = attached.model.tensors();
        let packed_again = after.expected().iter().find_map(|tensor| {
            let (before, after) = (before.packed(&tensor.name)?, after.packed(&tensor.name)?);
            (before != after).then(|| after.format())
        });
        let split = attached.state.modules.iter().filter(|module| {
            let config = &attached.state.config;
            config.method_at(&module.path).splits_weight()
        });
        let names: Vec<String> = split.map(|module| format!("{}.weight", module.path)).collect();
        let stays = |name: &String| after.packed(name).is_some() && after.packed(name) == before.packed(name);
        if packed_again.is_none() && names.iter().all(stays) {
            return Ok(None);
        }
        let exact = names.into_iter().find(stays);
        Ok(Some(Self { source, attached, packed_again, exact }))
    }

    /// Refuses an adapter that fits no other model than this one, unless it is to be written.
    pub fn check(residual: Option<&Self>, args: &ExportArgs) -> anyhow::Result<()> {
        let option = "--residual";
        match (residual, &args.residual) {
            (None, Some(_)) => Err(bad_input(format!(
                "{option} says nothing: this adapter is added to the weights of the model as they are"
            ))),
            (Some(Self { packed_again: Some(format), .. }), None) => Err(bad_input(format!(
                "the adapter took its part of the weights before the rest was packed as {format}, so it does not fit the original \
                 model: {option} PATH writes the model that it fits, or `sorsa merge` merges both"
            ))),
            (Some(Self { exact: Some(name), .. }), Some(_)) => Err(bad_input(format!(
                "{option} has no form for `{name}`, which stays packed as it is while the factors at the start are subtracted beside it"
            ))),
            (Some(_), Some(_)) if args.rank.is_some() || args.as_trained => {
                Err(bad_input(format!("{option} is for the exact adapter: leave out --rank and --as-trained")))
            }
            _ => Ok(()),
        }
    }

    /// Writes the model: a folder for PEFT's adapters, a GGUF file for those of llama.cpp.
    pub fn write(&self, out: &Path, args: &ExportArgs) -> anyhow::Result<()> {
        match args.format {
            ExportFormat::GgufLora => self.write_gguf(out, args.residual_dtype),
            _ => self.write_folder(out, args.residual_dtype),
        }
    }

    fn write_folder(&self, out: &Path, dtype: Option<OutputType>) -> anyhow::Result<()> {
        let tensors = self.attached.model.tensors();
        let packed = |name: &str| Some(FourBit { name: name.to_owned(), format: four_bit(&tensors, name)? });
        let four_bit: Vec<FourBit> = tensors.expected().iter().filter_map(|tensor| packed(&tensor.name)).collect();
        let formats = match dtype.map(|dtype| dtype.of_folder("a residual in a folder")).transpose()? {
            Some(FolderType::Plain(format)) => format.into(),
            Some(FolderType::FourBit(asked)) => {
                let first = four_bit.first().map(|matrix| matrix.format);
                if first != Some(asked) {
                    let found = self.packed_again.map_or_else(|| "dense".to_owned(), |format| format.to_string());
                    return Err(bad_input(format!(
                        "--residual-dtype {}: the residual is {found}, and packing it again would change it",
                        PackedFormat::from(asked)
                    )));
                }
                self.formats(four_bit)
            }
            None => self.formats(four_bit),
        };
        let new = ModelFolder::create(out).or_bad_input()?;
        save_tensors(new.path(), self.attached.model.config(), formats.clone(), tensors.expected(), |tensor| {
            let missing = || WeightsError::NoTensor { dir: out.to_owned(), name: tensor.name.clone() };
            tensors.content(&tensor.name).ok_or_else(missing)
        })?;
        self.source.copy_side_files(new.path()).or_bad_input()?;
        new.commit()?;
        let dtype = match formats.four_bit.values().next() {
            Some(format) => PackedFormat::from(*format).to_string(),
            None => formats.usual.to_string(),
        };
        print(format_args!("residual as {dtype} in {}", out.display()))
    }

    /// The formats of the residual: 4 bits as they are, other numbers as they were stored, and f32 for what was split or is packed
    /// otherwise.
    fn formats(&self, four_bit: Vec<FourBit>) -> TensorFormats {
        let mut formats = self.source.dense_formats();
        for module in &self.attached.state.modules {
            let name = format!("{}.weight", module.path);
            if formats.of(&name) != WeightFormat::F32 {
                formats.others.insert(name, WeightFormat::F32);
            }
        }
        formats.four_bit = four_bit.into_iter().map(|matrix| (matrix.name, matrix.format)).collect();
        formats
    }

    fn write_gguf(&self, out: &Path, dtype: Option<OutputType>) -> anyhow::Result<()> {
        let file_type = dtype.map(OutputType::of_gguf).transpose()?;
        let described = DescribedFolder::of(&self.source, out)?;
        let name = out.file_stem().unwrap_or_default().to_string_lossy();
        let mut tensors = GgufTensors {
            ties_embeddings: self.attached.model.config().tie_word_embeddings,
            tensors: self.attached.model.tensors(),
            keeps_blocks: file_type.is_none(),
            source: &self.source,
        };
        let file_type = file_type.unwrap_or(FileType::from(GgufType::F32));
        let options = ExportOptions::new(file_type).with_name(name);
        let report = export_tensors(described.path(), &mut tensors, out, options).or_bad_input()?;
        print(format_args!("residual of {} tensors, {} in {}", report.tensors, bytes(report.bytes), out.display()))
    }
}

/// A matrix in 4 bits.
struct FourBit {
    name: String,
    format: FourBitFormat,
}

fn four_bit(tensors: &ModelTensors, name: &str) -> Option<FourBitFormat> {
    let matrix = tensors.packed(name)?;
    let block = matrix.four_bit()?.block;
    Some(FourBitFormat { block, ..FourBitFormat::of(matrix.format())? })
}

/// The tensors of the residual for a GGUF file.
struct GgufTensors<'a> {
    ties_embeddings: bool,
    tensors: ModelTensors,
    /// Whether packed matrices stay in their blocks whatever the type of the file is.
    keeps_blocks: bool,
    source: &'a ModelSource,
}

impl gguf::ModelTensors for GgufTensors<'_> {
    fn ties_embeddings(&self) -> bool {
        self.ties_embeddings
    }

    fn packed_format(&self, name: &str, asked: GgufType) -> Option<BlockFormat> {
        let format = self.tensors.packed(name)?.blocks()?.0;
        (self.keeps_blocks || GgufType::Blocks(format) == asked).then_some(format)
    }

    fn content(&mut self, tensor: &Expected) -> Result<TensorContent, GgufError> {
        let missing = || WeightsError::NoTensor { dir: self.source.path().to_owned(), name: tensor.name.clone() };
        Ok(self.tensors.content(&tensor.name).ok_or_else(missing)?)
    }
}

/// The whole path of a folder that is there.
pub fn whole_path(folder: &Path) -> anyhow::Result<String> {
    let path = folder.canonicalize().with_context(|| folder.display().to_string())?;
    Ok(path.display().to_string())
}
