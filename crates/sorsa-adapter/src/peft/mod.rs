//! Adapters in the form of PEFT, the Python library: a folder of `adapter_config.json` and `adapter_model.safetensors`.
//!
//! PEFT's factors are `A` `[r, d_in]` and `B` `[d_out, r]`, so that `W + scale B A` is PyTorch's `[d_out, d_in]` weight;
//! here they are `[d_in, r]` and `[r, d_out]`. Only this module transposes them.
//!
//! - [`PeftAdapter::load`] and [`PeftAdapter::attachable`] import an adapter: LoRA, rsLoRA, DoRA, PiSSA, OLoRA.
//! - [`PeftAdapter::from_saved`] and [`PeftAdapter::save`] export one. An adapter that split its weights is exported as
//!   the difference to its start, of rank `2 r`, which fits the *original* weights and loads without a decomposition:
//!
//! ```text
//! scale (A B - A_0 B_0) = scale [A, A_0] [B; -B_0]
//! ```

mod config;
mod converted;
mod difference;
mod doubts;
mod pattern;
mod read;
mod start;
mod write;

use std::path::{Path, PathBuf};

pub(crate) use config::PeftVariant;
pub use config::{PeftConfig, PeftInit, PeftSelection};
pub use converted::ConvertedLora;
pub(crate) use difference::truncated;
pub use read::method_of;
use sorsa_files::{HostTensor, NamedTensors, OwnedFolder, read_float_tensors, write_atomic, write_tensors_with};
pub use write::{PeftExport, PeftForm, Truncation};

use crate::error::AdapterError;
use crate::state::ADAPTER_FOLDER;

/// Name of the configuration in an adapter's folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the tensors' file.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";

/// Prefix of a module's path in PEFT.
const PREFIX: &str = "base_model.model.";
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";
const MAGNITUDE: &str = ".lora_magnitude_vector";
/// Between the path of an adapted module and its own parameters.
const BASE_LAYER: &str = ".base_layer.";

/// An adapter in PEFT's form.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftAdapter {
    /// `adapter_config.json`.
    pub config: PeftConfig,
    /// The tensors under PEFT's names, in its layout.
    pub tensors: NamedTensors,
    source: PathBuf,
}

impl PeftConfig {
    /// Reads the configuration in an adapter's folder.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Io`] or [`AdapterError::Malformed`] with the file and all that is wrong with it.
    pub fn load(folder: &Path) -> Result<Self, AdapterError> {
        let path = folder.join(CONFIG_FILE);
        let json = std::fs::read(&path).map_err(|source| AdapterError::Io { path: path.clone(), source })?;
        Self::parse(&json).map_err(|reason| AdapterError::Malformed { path, reason })
    }
}

impl PeftAdapter {
    /// Whether `folder` holds an adapter in PEFT's form.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(CONFIG_FILE).is_file()
    }

    /// Reads an adapter's folder; tensors may be f32, f16 or bf16.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Io`] or [`AdapterError::Malformed`] with the file. One error lists all options that this crate does
    /// not support. Pickled tensors are an error too: they are never read.
    pub fn load(folder: &Path) -> Result<Self, AdapterError> {
        let config = PeftConfig::load(folder)?;
        let path = folder.join(TENSORS_FILE);
        let pickled = folder.join("adapter_model.bin");
        if !path.exists() && pickled.exists() {
            let reason = "pickled tensors can run code when they are read: save the adapter again with \
                          `safe_serialization=True`";
            return Err(AdapterError::Malformed { path: pickled, reason: reason.to_owned() });
        }
        Ok(Self { config, tensors: read_float_tensors(&path)?, source: folder.to_owned() })
    }

    /// Checks that an adapter may take the place of `folder`: nothing is there, or an adapter's files alone.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Folder`].
    pub fn check_folder(folder: &Path) -> Result<(), AdapterError> {
        Ok(OwnedFolder::check(folder, ADAPTER_FOLDER)?)
    }

    /// Writes the adapter's folder. An older adapter there is replaced as a whole: at no moment is the configuration of one
    /// beside the tensors of another.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Io`] with the file; [`AdapterError::Folder`] if the folder holds more than an adapter.
    pub fn save(&self, folder: &Path) -> Result<(), AdapterError> {
        let new = OwnedFolder::create(folder, ADAPTER_FOLDER)?;
        // PEFT reads only files whose metadata says that they are PyTorch's.
        write_tensors_with(&new.path().join(TENSORS_FILE), &self.tensors, &[("format", "pt")])?;
        write_atomic(new.path().join(CONFIG_FILE), format!("{:#}\n", self.config.to_json()))?;
        Ok(new.commit()?)
    }

    /// The matrices of each module by its path, in PEFT's layout, with the scale. Exports to other formats use them.
    pub fn matrices(&self) -> impl Iterator<Item = (&str, &HostTensor, &HostTensor, f64)> {
        self.tensors.iter().filter_map(|(name, a)| {
            let module = name.strip_prefix(PREFIX)?.strip_suffix(A)?;
            let b = self.tensors.get(&format!("{PREFIX}{module}{B}"))?;
            Some((module, a, b, self.config.scale(module, a.shape[0])))
        })
    }
}
