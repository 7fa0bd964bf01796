//! Where an experiment runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::Device;
use sorsa_adapter::Placement;
use sorsa_checkpoint::hub::HubOptions;
use sorsa_checkpoint::{ModelSource, PackingFormats};

use crate::config_overrides::ConfigOverrides;
use crate::embedded::EmbeddedFiles;
use crate::error::ExperimentError;
use crate::recipe::ModelRecipe;
use crate::sandbox::CodeExecution;

/// The device, and the folders, hub and programs that an experiment may use. Whoever starts an experiment fills them in:
/// nothing here reads the environment.
#[derive(Clone)]
pub struct Host {
    /// The device that trains and generates.
    pub device: Device,
    /// Name of the device's backend, for summaries and reports.
    pub backend: String,
    /// Whether the device has fused operations; the memory estimate depends on it.
    pub fused_operations: bool,
    /// Where weights are decomposed.
    pub placement: Placement,
    /// Where decompositions are kept for the next start; absent, none are.
    pub cache: Option<PathBuf>,
    /// Where models and data come from that are no folder and no file.
    pub sources: Sources,
    /// How programs are run that a model writes; absent, they are not.
    pub code: Option<CodeExecution>,
    /// The machine, for reports.
    pub machine: String,
}

/// Where models and data come from that are no folder and no file.
#[derive(Clone, Default)]
pub struct Sources {
    /// The embedded model and task.
    pub embedded: Arc<EmbeddedFiles>,
    /// The Hugging Face Hub.
    pub hub: HubOptions,
    /// Fields of the `config.json` of every model that is read.
    pub config: ConfigOverrides,
    /// Format that the linear layers of every dense model are packed in while it is read; absent, they stay dense.
    pub quantize: Option<PackingFormats>,
}

impl Sources {
    /// The same, with what a recipe says of its model.
    pub fn for_model(&self, model: &ModelRecipe) -> Self {
        Self { config: self.config.with_fields(&model.config), quantize: model.quantize, ..self.clone() }
    }

    /// Opens the model at a place that [`model_folder`](crate::model::model_folder) found.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Source`].
    pub fn open(&self, folder: &Path) -> Result<ModelSource, ExperimentError> {
        let source = ModelSource::open(folder)?;
        Ok(match self.quantize {
            Some(format) => source.with_packing(format)?,
            None => source,
        })
    }
}

impl Host {
    /// A CPU device: weights are decomposed in parallel, no cache, models from folders, no generated program is run.
    pub fn cpu(device: Device) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self {
            device,
            backend: "flex".to_owned(),
            fused_operations: true,
            placement: Placement::Host,
            cache: None,
            sources: Sources::default(),
            code: None,
            machine: format!("{cores} cores"),
        }
    }
}
