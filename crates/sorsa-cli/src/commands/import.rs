//! `sorsa import`: converts an adapter of PEFT or of SORSA's author.

use std::path::Path;

use sorsa_adapter::author::{self, AuthorConfig};
use sorsa_adapter::peft::PeftAdapter;
use sorsa_adapter::{AdapterError, HostTensor, SavedAdapter};
use sorsa_checkpoint::weights::Checkpoint;
use sorsa_experiment::adapter::{BaseModel, LoadedAdapter};
use sorsa_experiment::estimate::grouped;
use sorsa_models::CausalLm;

use crate::args::ImportArgs;
use crate::device;
use crate::exit::{OrBadInput, bad_input};
use crate::format::print;
use crate::session::{self, NamedModel, Warnings};

pub fn run(args: &ImportArgs) -> anyhow::Result<()> {
    let device = device::open(args.device.backend, args.device.device)?;
    session::set_config(&args.config, None)?;
    // Before the work.
    PeftAdapter::check_folder(&args.out).or_bad_input()?;
    let named = NamedModel::load(&args.model, &device)?;
    let saved = match (PeftAdapter::is_in(&args.from), &args.start) {
        (true, None) => named.adapter(&args.from, &mut Warnings)?.saved,
        (true, Some(start)) => {
            let base = BaseModel { name: &named.name, folder: &named.folder, quantize: named.quantize };
            LoadedAdapter::read_with_start(named.model, base, &args.from, start, &mut Warnings)?.saved
        }
        (false, None) => of_author(&args.from, &named.model)?,
        (false, Some(_)) => return Err(bad_input("--start goes with a folder of PEFT's")),
    };
    saved.save(&args.out)?;
    let trained: usize = saved.trained.values().map(|tensor| tensor.values.len()).sum();
    let (method, modules) = (saved.state.config.method(), saved.state.modules.len());
    print(format_args!("{method} on {modules} modules, {} numbers, in {}", grouped(trained as u64), args.out.display()))
}

/// The adapter in an author's checkpoint.
fn of_author(folder: &Path, model: &CausalLm) -> anyhow::Result<SavedAdapter> {
    let path = folder.join("config.json");
    let json = std::fs::read(&path).map_err(|error| bad_input(format!("{}: {error}", path.display())))?;
    let config = AuthorConfig::parse(&json).map_err(|error| bad_input(format!("{}: {error}", path.display())))?;
    let Some(config) = config else {
        return Err(bad_input(format!(
            "{} holds neither PEFT's adapter_config.json nor a config.json with `model_type` \"{}\"",
            folder.display(),
            author::MODEL_TYPE
        )));
    };
    let checkpoint = Checkpoint::open(folder).or_bad_input()?;
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    let read = |name: &str| -> Result<HostTensor, AdapterError> {
        let malformed = |reason: String| AdapterError::Malformed { path: folder.to_owned(), reason };
        let shape = checkpoint.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        let values = checkpoint.to_f32(name).map_err(|error| malformed(error.to_string()))?;
        Ok(HostTensor::new(shape, values))
    };
    author::attachable(&config, &names, read, model, folder).or_bad_input()
}
