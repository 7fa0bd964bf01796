//! How fast weights are read: a matrix of a 7B model (`down_proj`, 4096 x 11008), from the page cache, in the order
//! stored and transposed. Prints the best of five runs, in gigabytes of the file a second. With the folder of a model:
//! the seconds of reading its file into memory (`file`), or of loading it in f32 (`model`), once, as memory that a
//! process had before need not be cleared.
//!
//! ```text
//! cargo run --release --workspace --example load_speed [-- MODEL file|model]
//! ```

use std::path::Path;
use std::time::{Duration, Instant};

use burn::prelude::*;
use sorsa_checkpoint::WeightFormat;
use sorsa_checkpoint::weights::{Checkpoint, CheckpointWriter, Expected, WeightsError};
use sorsa_models::CausalLm;

/// What the binary allocates with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => matrices(),
        [folder, what] => whole(Path::new(folder), what),
        _ => Err("usage: load_speed [MODEL file|model]".into()),
    }
}

fn whole(folder: &Path, what: &str) -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    let result: Box<dyn std::any::Any> = match what {
        "file" => Box::new(std::fs::read(folder.join("model.safetensors"))?),
        "model" => Box::new(CausalLm::load(folder, WeightFormat::F32, &Device::flex())?),
        other => return Err(format!("`{other}` is neither file nor model").into()),
    };
    println!("{what} {:.3} s", start.elapsed().as_secs_f64());
    drop(std::hint::black_box(result));
    Ok(())
}

fn matrices() -> Result<(), Box<dyn std::error::Error>> {
    let tensor = Expected::new("down_proj.weight", [4096, 11008]);
    let values: Vec<f32> = (0..4096 * 11008).map(|i| (i as f32).sin()).collect();
    for dtype in [WeightFormat::Bf16, WeightFormat::F16, WeightFormat::F32] {
        let dir = tempfile::tempdir()?;
        CheckpointWriter::new(dir.path(), dtype)
            .write(std::slice::from_ref(&tensor), |_| Ok::<_, WeightsError>(values.clone()))?;
        let checkpoint = Checkpoint::open(dir.path())?;
        let gigabytes = checkpoint.total_bytes() as f64 / 1e9;
        let name = tensor.name.as_str();
        let report = |what: &str, read: &dyn Fn()| {
            let seconds = best_of_five(read).as_secs_f64();
            println!("{dtype:?} to {what:<16} {:6.1} ms {:6.2} GB/s", seconds * 1e3, gigabytes / seconds);
        };
        report("f32", &|| drop(checkpoint.to_f32(name)));
        report("f32 transposed", &|| drop(checkpoint.to_f32_transposed(name)));
        report("bf16", &|| drop(checkpoint.to_bf16(name)));
        report("bf16 transposed", &|| drop(checkpoint.to_bf16_transposed(name)));
    }
    Ok(())
}

fn best_of_five(run: &dyn Fn()) -> Duration {
    let timed = |_| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..5).map(timed).min().unwrap_or_default()
}
