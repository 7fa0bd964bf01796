//! The same fine-tune on the CPU and on a GPU (or a software rasteriser): the losses agree.

#![cfg(feature = "wgpu")]

use std::path::Path;
use std::process::Command;

/// Largest difference of a step's loss between the backends: f32 products summed in another order.
const TOLERANCE: f64 = 1e-3;

/// The losses of three steps of the embedded task.
fn losses(backend: &str, folder: &Path, options: &[&str]) -> Vec<f64> {
    let run = folder.join(backend);
    let output = Command::new(env!("CARGO_BIN_EXE_sorsa"))
        .args(["finetune", "--backend", backend, "--limit", "200", "--max-steps", "3", "--batch-size", "4", "--quiet"])
        .args(["--set", "eval.problems=2", "--set", "eval.max_new_tokens=4", "--set", "train.eval_every=0"])
        .args(["--set", "svd.cache=false", "--set", "data.validation_rows=8", "--run-dir"])
        .arg(&run)
        .args(options)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    rows.filter(|row| row["kind"] == "step").map(|row| row["loss"].as_f64().unwrap()).collect()
}

fn assert_the_same_losses(options: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (cpu, gpu) = (losses("flex", folder.path(), options), losses("wgpu", folder.path(), options));
    assert_eq!(cpu.len(), 3);
    for (step, (cpu, gpu)) in cpu.iter().zip(&gpu).enumerate() {
        assert!((cpu - gpu).abs() < TOLERANCE, "step {}: {cpu} on the CPU, {gpu} on wgpu", step + 1);
    }
    assert_eq!(gpu.len(), 3);
}

#[test]
fn a_fine_tune_on_wgpu_has_the_losses_of_the_cpu() {
    assert_the_same_losses(&[]);
}

#[test]
fn a_fine_tune_beside_packed_weights_on_wgpu_has_the_losses_of_the_cpu() {
    for format in ["nf4", "q5_1"] {
        assert_the_same_losses(&["--quantize", format, "--method", "lora"]);
    }
}
