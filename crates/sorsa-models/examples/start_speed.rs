//! The start of a run on a model from a folder: reading the file, in passing and into memory, loading the model, and attaching SORSA to all seven
//! projections.
//!
//! ```text
//! cargo run --release --workspace --example start_speed -- MODEL [rank] [CACHE]
//! ```
//!
//! Rank 128, without a cache, by default. One process, one line of JSON. CPU seconds and peaks are of Linux; elsewhere they
//! are null. All but the first reading, which is not timed, are from the system's cache.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::prelude::*;
use serde_json::{Value, json};
use sorsa_adapter::{AdapterConfig, AttachOptions, Method};
use sorsa_models::{CausalLm, WeightFormat};

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

fn weight_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let paths = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let is_weights = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "safetensors");
    paths.filter(|path: &std::io::Result<_>| path.as_ref().map_or(true, is_weights)).collect()
}

/// Reads every byte of the weights into the same mebibyte, and returns how many there were.
fn read(folder: &Path) -> std::io::Result<u64> {
    let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
    for path in weight_files(folder)? {
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

/// Reads the weights into memory that holds them all, as loading does, and gives it back.
fn read_whole(folder: &Path) -> std::io::Result<()> {
    let files: std::io::Result<Vec<Vec<u8>>> = weight_files(folder)?.into_iter().map(std::fs::read).collect();
    files.map(|_| ())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = Path::new(arguments.first().ok_or("usage: start_speed MODEL [rank] [CACHE]")?);
    let rank = arguments.get(1).map_or(Ok(128), |rank| rank.parse())?;
    let options = AttachOptions { cache: arguments.get(2).map(PathBuf::from), ..AttachOptions::default() };

    read(folder)?;
    let (bytes, reading) = timed(|| read(folder));
    let (whole, reading_whole) = timed(|| read_whole(folder));
    whole?;
    let (model, loading) = timed(|| CausalLm::load(folder, WeightFormat::F32, &Device::flex()));
    let config = AdapterConfig::new(Method::Sorsa, rank, &TARGETS);
    let model = model?;
    let (attached, attaching) = timed(|| config.attach(model, &options));
    let modules = attached?.modules;
    let residuals = modules.iter().filter_map(|module| module.svd_residual);
    let line = json!({
        "file_megabytes": (bytes? as f64 / 1e6).round(),
        "read": reading,
        "read_whole": reading_whole,
        "load": loading,
        "attach": attaching,
        "matrices": modules.len(),
        "cached": modules.iter().filter(|module| module.cached).count(),
        "largest_residual": residuals.fold(0.0, f64::max),
    });
    println!("{line}");
    Ok(())
}
