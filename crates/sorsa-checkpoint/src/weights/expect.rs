//! Comparing the tensors of a checkpoint with those of a model, before any of them is loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use super::{Checkpoint, Misshapen, WeightsError};
use crate::ModelConfig;

/// Name and shape of a tensor in a checkpoint, as PyTorch has them: a linear layer is `[d_out, d_in]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Name in the files, as in `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Shape in the files.
    pub shape: Vec<usize>,
}

impl Expected {
    /// A tensor of this name and shape.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), shape: shape.into() }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.name, self.shape)
    }
}

impl Checkpoint {
    /// Checks that the files hold the `expected` tensors and no others, except those that `ignorable` accepts.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] with every missing, extra and misshapen tensor.
    pub fn check(&self, expected: &[Expected], ignorable: impl Fn(&str) -> bool) -> Result<(), WeightsError> {
        let found = self.names().filter_map(|name| Some((name, self.info(name)?.shape.as_slice())));
        Differences::find(expected, found, ignorable).into_result(self.dir())
    }
}

/// How the tensors of a checkpoint differ from those of a model.
pub(crate) struct Differences {
    missing: Vec<Expected>,
    extra: Vec<Expected>,
    misshapen: Vec<Misshapen>,
}

impl Differences {
    /// Compares the `found` names and shapes with the expected ones. Names that `ignorable` accepts may be there without need.
    pub fn find<'a>(
        expected: &[Expected],
        found: impl Iterator<Item = (&'a str, &'a [usize])>,
        ignorable: impl Fn(&str) -> bool,
    ) -> Self {
        let found: BTreeMap<&str, &[usize]> = found.collect();
        let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
        for tensor in expected {
            match found.get(tensor.name.as_str()) {
                None => missing.push(tensor.clone()),
                Some(shape) if *shape != tensor.shape.as_slice() => misshapen.push(Misshapen {
                    name: tensor.name.clone(),
                    expected: tensor.shape.clone(),
                    found: shape.to_vec(),
                }),
                Some(_) => {}
            }
        }
        let known: BTreeSet<_> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
        let extra = found.into_iter().filter(|(name, _)| !known.contains(name) && !ignorable(name));
        let extra = extra.map(|(name, shape)| Expected::new(name, shape)).collect();
        Self { missing, extra, misshapen }
    }

    /// All of them as one error about the model at `dir`.
    pub fn into_result(self, dir: &Path) -> Result<(), WeightsError> {
        let Self { missing, extra, misshapen } = self;
        if missing.is_empty() && extra.is_empty() && misshapen.is_empty() {
            return Ok(());
        }
        Err(WeightsError::Mismatch { dir: dir.to_owned(), missing, extra, misshapen })
    }
}

/// Names of the output head and of the embedding that it may be tied to.
pub(crate) const HEADS: [(&str, &str); 2] =
    [("lm_head.weight", "model.embed_tokens.weight"), ("head.weight", "rwkv.embeddings.weight")];

impl ModelConfig {
    /// The configuration of the model whose weights are in `checkpoint`. If the embeddings should be tied and the checkpoint has
    /// a head with other numbers, they are not: the head was trained on its own, and whoever saved it left
    /// `tie_word_embeddings` as it was.
    ///
    /// # Errors
    /// [`WeightsError`] of a tensor that cannot be read.
    pub fn with_head_of(mut self, checkpoint: &Checkpoint) -> Result<Self, WeightsError> {
        for (head, embedding) in HEADS {
            let (Some(a), Some(b)) = (checkpoint.info(head), checkpoint.info(embedding)) else { continue };
            if !self.tie_word_embeddings || a.shape != b.shape {
                continue;
            }
            let is_same = match a.dtype == b.dtype {
                true => checkpoint.raw(head)? == checkpoint.raw(embedding)?,
                false => checkpoint.to_f32(head)? == checkpoint.to_f32(embedding)?,
            };
            self.tie_word_embeddings = is_same;
        }
        Ok(self)
    }
}

/// Returns whether a checkpoint may hold the tensor of a name without need: the frequencies of rotary embeddings, which follow
/// from the configuration, and, if the embeddings are tied, a second copy of them as the head.
///
/// ```
/// use sorsa_checkpoint::weights::ignorable;
///
/// assert!(ignorable(false)("model.layers.0.self_attn.rotary_emb.inv_freq"));
/// assert!(ignorable(true)("lm_head.weight") && !ignorable(false)("lm_head.weight"));
/// ```
pub fn ignorable(tied_embeddings: bool) -> impl Fn(&str) -> bool {
    move |name| {
        name.ends_with(".rotary_emb.inv_freq") || (tied_embeddings && matches!(name, "lm_head.weight" | "head.weight"))
    }
}
