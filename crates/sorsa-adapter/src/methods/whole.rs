//! Partial and full fine-tuning: the weights themselves are trained, `y = x W + bias`, without factors beside them.
//! Partial fine-tuning trains the weights of the target modules; full fine-tuning trains every parameter of the model.

use crate::method::{NamedShapes, WholeMethod};
use crate::parameters::{Parameter, weight_path};
use crate::state::ModuleState;

/// Trains the weights of the target modules.
pub(crate) struct Partial;

/// Trains every parameter of the model.
pub(crate) struct Full;

impl WholeMethod for Partial {
    const NAME: &'static str = "partial";
    const LABEL: &'static str = "partial";
    const HAS_TARGETS: bool = true;

    fn trained(modules: &[ModuleState], _parameters: Vec<Parameter>) -> NamedShapes {
        modules.iter().map(|module| (weight_path(&module.path), module.shape.to_vec())).collect()
    }

    fn peft_fault(rank: Option<usize>) -> Option<&'static str> {
        match rank {
            None => Some("partial fine-tuning leaves as a LoRA only with a rank to approximate it by"),
            Some(_) => None,
        }
    }
}

impl WholeMethod for Full {
    const NAME: &'static str = "full";
    const LABEL: &'static str = "full";
    const HAS_TARGETS: bool = false;

    fn trained(_modules: &[ModuleState], parameters: Vec<Parameter>) -> NamedShapes {
        parameters.into_iter().map(|parameter| (parameter.path, parameter.shape)).collect()
    }

    fn peft_fault(_rank: Option<usize>) -> Option<&'static str> {
        Some("full fine-tuning changes embeddings and norms, which a LoRA cannot hold")
    }
}
