//! A low-rank adapter as the GGUF file that llama.cpp's `--lora` reads.
//!
//! llama.cpp adds `s (alpha / r) B (A x)` to a layer, with one `alpha` for the file, the rank `r` of the module, and `s`
//! from the command line. A module with another `alpha` has the quotient folded into its `B`.

use std::collections::HashSet;
use std::path::Path;

use super::model::Report;
use super::tensors::{Change, Linear, linears};
use super::translation::Translation;
use super::{GgufError, GgufTensor, GgufType, GgufWriter};
use crate::weights::Checkpoint;

/// The low-rank update `(alpha / r) B A` of one linear layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraModule {
    /// Path of the layer in Transformers' naming, as in `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Number of rows of `A` and columns of `B`.
    pub rank: usize,
    /// `A`, row-major `[rank, d_in]`.
    pub a: Vec<f32>,
    /// `B`, row-major `[d_out, rank]`.
    pub b: Vec<f32>,
    /// Scale times rank.
    pub alpha: f64,
}

/// One module with its place in the file.
struct Placed<'a> {
    module: &'a LoraModule,
    name: String,
    shape: [usize; 2],
    change: Change,
}

/// Writes `modules`, which belong to the model whose `config.json` is in `folder`, as the GGUF file `out`, f32 or f16.
///
/// ```no_run
/// use std::path::Path;
///
/// use sorsa_checkpoint::gguf::{GgufType, LoraModule, export_adapter};
///
/// # let (a, b) = (vec![0.0; 8 * 64], vec![0.0; 64 * 8]);
/// let module = LoraModule { path: "model.layers.0.self_attn.q_proj".to_owned(), rank: 8, a, b, alpha: 16.0 };
/// export_adapter(Path::new("base"), &[module], Path::new("adapter.gguf"), GgufType::F32)?;
/// # Ok::<_, sorsa_checkpoint::gguf::GgufError>(())
/// ```
///
/// # Errors
///
/// [`GgufError::Unsupported`] for the model, [`GgufError::Adapter`] with every module that does not fit it, and what
/// [`GgufWriter::write`] returns.
pub fn export_adapter(folder: &Path, modules: &[LoraModule], out: &Path, dtype: GgufType) -> Result<Report, GgufError> {
    let mut translation = Translation::read(folder)?;
    // Configurations alone are enough, but for a head that was trained on its own.
    if let Ok(checkpoint) = Checkpoint::open(folder) {
        translation.config = translation.config.with_head_of(&checkpoint)?;
    }
    let placed = place(&translation, modules, dtype).map_err(|faults| GgufError::Adapter { faults })?;
    let alpha = modules.first().map_or(1.0, |module| module.alpha);

    let mut tensors = Vec::new();
    for Placed { module, name, shape: [d_out, d_in], .. } in &placed {
        tensors.push(GgufTensor::new(format!("{name}.weight.lora_a"), [module.rank, *d_in], dtype));
        tensors.push(GgufTensor::new(format!("{name}.weight.lora_b"), [*d_out, module.rank], dtype));
    }
    let mut values = placed.iter().flat_map(|placed| [(placed, true), (placed, false)]);
    let produce = |_: &GgufTensor| -> Result<Vec<f32>, GgufError> {
        // The writer asks for the tensors in the order of the list.
        let Some((Placed { module, shape, change, .. }, is_a)) = values.next() else { return Ok(Vec::new()) };
        if is_a {
            return Ok(module.a.clone());
        }
        let fold = (module.alpha / alpha) as f32;
        let b = module.b.iter().map(|value| value * fold).collect();
        Ok(change.apply(b, shape[0]))
    };
    let bytes = GgufWriter::new()
        .with("general.architecture", translation.name)
        .with("general.type", "adapter")
        .with("general.name", "adapter")
        .with("general.file_type", dtype.file_type())
        .with("adapter.type", "lora")
        .with("adapter.lora.alpha", alpha as f32)
        .write(out, &tensors, produce)?;
    Ok(Report {
        file: out.to_owned(),
        architecture: translation.name,
        tensors: tensors.len(),
        bytes,
        fallbacks: Vec::new(),
        errors: Vec::new(),
        notes: translation.notes,
    })
}

/// Where each module goes, or everything that stands against it.
fn place<'a>(
    translation: &Translation,
    modules: &'a [LoraModule],
    dtype: GgufType,
) -> Result<Vec<Placed<'a>>, Vec<String>> {
    let mut faults = Vec::new();
    let mut placed = Vec::new();
    let mut seen = HashSet::new();
    if modules.is_empty() {
        faults.push("it has no modules".to_owned());
    }
    if !matches!(dtype, GgufType::F32 | GgufType::F16) {
        faults.push(format!("adapters are f32 or f16, not {dtype}"));
    }
    let layers = linears(translation);
    for module in modules {
        let LoraModule { path, rank, a, b, alpha } = module;
        let Some((name, [d_out, d_in], change)) = find(translation, &layers, path) else {
            faults.push(match path == "lm_head" {
                true => {
                    "`lm_head` is the embedding in this model: an adapter of the head alone needs a head of its own, \
                         which the merged model has"
                        .to_owned()
                }
                false => format!("`{path}` is no linear layer that llama.cpp applies an adapter to"),
            });
            continue;
        };
        if *rank == 0 || a.len() != rank * d_in || b.len() != d_out * rank {
            faults.push(format!(
                "`{path}` should be A [{rank}, {d_in}] and B [{d_out}, {rank}], found {} and {} values",
                a.len(),
                b.len()
            ));
        }
        // llama.cpp takes an alpha of zero for none.
        if !(alpha.is_finite() && *alpha > 0.0) {
            faults.push(format!("`{path}` has alpha {alpha}, expected a positive number"));
        }
        if !seen.insert(path) {
            faults.push(format!("`{path}` is there twice"));
        }
        placed.push(Placed { module, name, shape: [d_out, d_in], change });
    }
    if faults.is_empty() { Ok(placed) } else { Err(faults) }
}

/// The layer at a path: its name in the file, its shape `[d_out, d_in]`, and what is done to its rows.
fn find(translation: &Translation, layers: &[Linear], path: &str) -> Option<(String, [usize; 2], Change)> {
    if path == "lm_head" && !translation.config.tie_word_embeddings {
        return Some((
            "output".to_owned(),
            [translation.config.vocab_size, translation.config.hidden_size],
            Change::None,
        ));
    }
    let (block, rest) = path.strip_prefix("model.layers.")?.split_once('.')?;
    let block = block.parse::<usize>().ok().filter(|block| *block < translation.config.num_hidden_layers)?;
    let layer = layers.iter().find(|layer| layer.source == rest)?;
    Some((format!("blk.{block}.{}", layer.name), layer.shape, layer.change.clone()))
}
