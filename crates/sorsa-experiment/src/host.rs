//! Where an experiment runs.

use std::path::PathBuf;

use burn::prelude::Device;
use sorsa_adapter::Placement;
use sorsa_models::hub::HubOptions;

use crate::sandbox::CodeExecution;

/// The device, and what an experiment may use of the machine beside it. Nothing here reads the environment: whoever starts
/// an experiment fills it in.
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
    /// Folder of decompositions that the next start finds again; absent, none are kept.
    pub svd_cache: Option<PathBuf>,
    /// Where models come from that are no folder.
    pub hub: HubOptions,
    /// How programs are run that a model writes; absent, they are not.
    pub code: Option<CodeExecution>,
    /// The machine, for reports.
    pub machine: String,
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
            svd_cache: None,
            hub: HubOptions::default(),
            code: None,
            machine: format!("{cores} cores"),
        }
    }
}
