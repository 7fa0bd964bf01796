//! The start of a run on a model from a folder: reading the file, loading the model, and attaching SORSA to all seven
//! projections.
//!
//! ```text
//! cargo run --release --workspace --example start_speed -- MODEL [rank] [CACHE]
//! ```
//!
//! Rank 128, without a cache, by default. One process, one line of JSON. CPU seconds and peaks are of Linux; elsewhere they
//! are null. The file is read twice, the second time from the system's cache, as the model is then.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::prelude::*;
use burn::tensor::FloatDType;
use serde_json::{Value, json};
use sorsa_adapter::{AdapterConfig, AttachOptions, Method};
use sorsa_models::CausalLm;

/// What the binary allocates with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// CPU seconds of this process so far, user and system: fields 14 and 15, in hundredths of a second.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: Option<Vec<f64>> = fields.split_whitespace().skip(11).take(2).map(|field| field.parse().ok()).collect();
    Some(ticks?.iter().sum::<f64>() / 100.0)
}

fn peak_megabytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?;
    Some((kib.parse::<f64>().ok()? * 1.024e-3).round())
}

/// Runs `work` and says how long it took and what the process's memory came to.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Value) {
    let rounded = |value: f64| (value * 100.0).round() / 100.0;
    let (wall, cpu) = (Instant::now(), cpu_seconds());
    let result = work();
    let cpu = cpu.zip(cpu_seconds()).map(|(start, end)| rounded(end - start));
    let spent = json!({ "s": rounded(wall.elapsed().as_secs_f64()), "cpu_s": cpu, "peak_megabytes": peak_megabytes() });
    (result, spent)
}

/// Reads every byte of the weights, a mebibyte at a time, and returns how many there were.
fn read(folder: &Path) -> std::io::Result<u64> {
    let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let mut file = std::fs::File::open(path)?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => total += count as u64,
            }
        }
    }
    Ok(total)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = Path::new(arguments.first().ok_or("usage: start_speed MODEL [rank] [CACHE]")?);
    let rank = arguments.get(1).map_or(Ok(128), |rank| rank.parse())?;
    let options = AttachOptions { cache: arguments.get(2).map(PathBuf::from), ..AttachOptions::default() };

    read(folder)?;
    let (bytes, reading) = timed(|| read(folder));
    let (model, loading) = timed(|| CausalLm::load(folder, FloatDType::F32, &Device::flex()));
    let config = AdapterConfig::new(Method::Sorsa, rank, &TARGETS);
    let model = model?;
    let (attached, attaching) = timed(|| config.attach(model, &options));
    let modules = attached?.modules;
    let residuals = modules.iter().filter_map(|module| module.svd_residual);
    let line = json!({
        "file_megabytes": (bytes? as f64 / 1e6).round(),
        "read": reading,
        "load": loading,
        "attach": attaching,
        "matrices": modules.len(),
        "cached": modules.iter().filter(|module| module.cached).count(),
        "largest_residual": residuals.fold(0.0, f64::max),
    });
    println!("{line}");
    Ok(())
}
