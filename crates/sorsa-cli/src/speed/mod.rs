//! `bench --speed` measures seconds, CPU seconds and memory of the start and of the training step, for any method at any
//! size. It prints one line of JSON for each configuration, with the fields of the PyTorch program that it is compared
//! with, so that both programs can run in turn.
//!
//! Each configuration runs in its own process, because the system reports the peak of memory by process. For several
//! configurations, this process starts the same binary once for each.

mod args;
mod measure;
mod orthonormality;
mod scale;
mod scaling;

use std::io::Write;
use std::process::Command;

use anyhow::Context;
use serde_json::{Value, json};
use sorsa_adapter::Method;

pub use self::args::SpeedArgs;
use crate::args::DeviceArgs;
use crate::device;
use crate::exit::bad_input;
use crate::format::print;

/// Arguments that make this binary measure one configuration.
const COMMAND: [&str; 2] = ["bench", "--speed"];

/// Measures the configurations and prints one line for each.
///
/// # Errors
///
/// Bad input, or the error of the first configuration that fails.
pub fn run(args: &SpeedArgs, device: &DeviceArgs) -> anyhow::Result<()> {
    args.check()?;
    let methods = args.methods.iter().map(|name| name.parse().map_err(|reason: String| bad_input(reason)));
    let methods = methods.collect::<anyhow::Result<Vec<Method>>>()?;
    if !args.is_single() {
        return several(args, &methods, device);
    }
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("setting the number of threads")?;
    }
    args.matmul_precision.choose();
    let opened = device::open(device.backend, device.device)?;
    let line = measure::measure(args, methods[0], device.backend, &opened)?;
    emit(args, &serde_json::to_value(line)?)
}

/// Runs each configuration in a child process.
fn several(args: &SpeedArgs, methods: &[Method], device: &DeviceArgs) -> anyhow::Result<()> {
    let varied = if args.scale { scale::variations(args) } else { vec![scale::Variation::default()] };
    let mut lines = Vec::new();
    for variation in &varied {
        for _ in 0..args.rounds {
            for method in methods {
                let mut line = child(args, *method, variation, device)?;
                if let (Some(fields), Some(varied)) = (line.as_object_mut(), variation.varied) {
                    fields.insert("varied".to_owned(), json!(varied));
                }
                emit(args, &line)?;
                lines.push(line);
            }
        }
    }
    match &args.out {
        Some(path) if args.scale => scaling::write(path, &lines),
        _ => Ok(()),
    }
}

fn child(args: &SpeedArgs, method: Method, variation: &scale::Variation, device: &DeviceArgs) -> anyhow::Result<Value> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.args(COMMAND).args(["--method", &method.to_string()]).args(variation.options(args));
    command.args(["--backend", device.backend.name(), "--device", &device.device.to_string()]);
    let output = command.output().context("starting this program again")?;
    let failed = || format!("{method} at {:?}: {}", variation, String::from_utf8_lossy(&output.stderr).trim());
    anyhow::ensure!(output.status.success(), "{}", failed());
    serde_json::from_slice(&output.stdout).with_context(failed)
}

/// Prints a line, and appends it to the file of `--out`.
fn emit(args: &SpeedArgs, line: &Value) -> anyhow::Result<()> {
    if let Some(path) = &args.out {
        let file = std::fs::File::options().create(true).append(true).open(path);
        writeln!(file.with_context(|| path.display().to_string())?, "{line}")?;
    }
    print(line)
}
