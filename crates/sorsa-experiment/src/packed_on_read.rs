//! The weights that were packed while their model was read, as they are in its files.

use std::path::Path;

use sorsa_adapter::{AdapterError, OriginalWeights};
use sorsa_checkpoint::{ModelSource, PackingFormats};
use sorsa_files::HostTensor;

use crate::error::ExperimentError;

/// The original weights of a model. There are none if nothing was packed while the model was read.
#[derive(Debug)]
pub struct PackedOnRead {
    source: Option<ModelSource>,
}

impl PackedOnRead {
    /// Those of the model in `folder`, whose linear layers were packed in the format `quantize`, if any.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Source`].
    pub fn open(folder: &Path, quantize: Option<PackingFormats>) -> Result<Self, ExperimentError> {
        let source = match quantize {
            Some(format) => Some(ModelSource::open(folder)?.with_packing(format)?),
            None => None,
        };
        Ok(Self { source })
    }
}

impl OriginalWeights for PackedOnRead {
    fn read(&self, module: &str) -> Result<Option<HostTensor>, AdapterError> {
        let Some(source) = &self.source else { return Ok(None) };
        match source.before_packing(&format!("{module}.weight")) {
            Ok(found) => Ok(found.map(|(shape, values)| HostTensor::new(shape, values))),
            Err(error) => Err(AdapterError::Original { module: module.to_owned(), source: Box::new(error) }),
        }
    }

    fn contains(&self, module: &str) -> bool {
        self.source.as_ref().is_some_and(|source| source.packs(&format!("{module}.weight")))
    }
}
