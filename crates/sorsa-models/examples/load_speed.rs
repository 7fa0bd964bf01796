//! How fast weights are read: a matrix of a 7B model (`down_proj`, 4096 x 11008), from the page cache, in the order
//! stored and transposed. Prints the best of five runs, in gigabytes of the file a second.
//!
//! `cargo run --release --example load_speed -p sorsa-models`

use std::time::{Duration, Instant};

use sorsa_models::weights::{Checkpoint, CheckpointWriter, Expected, FloatDtype, WeightsError};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tensor = Expected::new("down_proj.weight", [4096, 11008]);
    let values: Vec<f32> = (0..4096 * 11008).map(|i| (i as f32).sin()).collect();
    for dtype in [FloatDtype::Bf16, FloatDtype::F16, FloatDtype::F32] {
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
