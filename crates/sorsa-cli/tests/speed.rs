//! `bench --speed` on models so small that only the lines' fields can be looked at, not their figures.

mod common;

use common::{Place, Succeed};
use serde_json::Value;

const TINY: [&str; 20] = [
    "--dim", "16", "--layers", "1", "--heads", "2", "--ffn", "24", "--vocab", "50", "--batch", "2", "--seq", "8",
    "--rank", "2", "--steps", "2", "--warmup", "1",
];

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn one_line_tells_start_step_memory_and_loss_of_a_configuration() {
    let place = Place::new();
    let text = place.command(&["bench", "--speed", "--method", "sorsa"]).args(TINY).succeed();
    let [line] = &lines(&text)[..] else { panic!("{text}") };
    assert_eq!((&line["method"], &line["form"]), (&"sorsa".into(), &"fused".into()));
    // r (d_in + d_out + 1) for four projections of 16 x 16 and three of 16 x 24.
    assert_eq!(line["trainable"], 4 * 2 * 33 + 3 * 2 * 41);
    assert_eq!(line["n_params"], 2 * 50 * 16 + 4 * 16 * 16 + 3 * 16 * 24 + 3 * 16);
    for field in ["adapter_init_s", "step_s_median", "tokens_per_s_median", "regularizer_share", "last_loss"] {
        assert!(line[field].as_f64().is_some_and(f64::is_finite), "{field} is {}", line[field]);
    }
    if cfg!(target_os = "linux") {
        assert!(line["peak_rss_mb"].as_f64().unwrap() > 1.0 && line["cpu_s_per_step_median"].is_number());
    }
}

#[test]
fn fused_and_plain_steps_end_at_the_same_loss() {
    let place = Place::new();
    let loss = |form: &[&str]| {
        let text = place.command(&["bench", "--speed", "--method", "lora"]).args(TINY).args(form).succeed();
        lines(&text)[0]["last_loss"].as_f64().unwrap()
    };
    assert!((loss(&[]) - loss(&["--plain"])).abs() < 2e-4);
}

#[test]
fn packed_layers_are_measured_and_a_format_that_does_not_fit_them_is_refused() {
    let place = Place::new();
    let measured = |options: &[&str]| {
        let text = place
            .command(&["bench", "--speed", "--method", "sorsa", "--dtype", "bf16"])
            .args(TINY)
            .args(options)
            .succeed();
        lines(&text).remove(0)
    };
    let (dense, packed) = (measured(&[]), measured(&["--quantize", "nf4"]));
    assert_eq!((&packed["quantize"], dense.get("quantize")), (&"nf4".into(), None));
    assert_eq!((&packed["n_params"], &packed["trainable"]), (&dense["n_params"], &dense["trainable"]));
    assert!(packed["last_loss"].as_f64().is_some_and(f64::is_finite), "{packed}");
    let output = place.command(&["bench", "--speed", "--quantize", "q4_k"]).args(TINY).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.starts_with("error: `model.layers.0.self_attn.q_proj.weight`: ") && error.lines().count() == 1,
        "{error}"
    );
}

#[test]
fn several_configurations_are_measured_in_turn_and_kept_in_a_file() {
    let place = Place::new();
    let options = ["bench", "--speed", "--method", "lora,partial", "--rounds", "2", "--out", "lines.jsonl"];
    let text = place.command(&options).args(TINY).succeed();
    let methods: Vec<String> = lines(&text).iter().map(|line| line["method"].as_str().unwrap().to_owned()).collect();
    assert_eq!(methods, ["lora", "partial", "lora", "partial"]);
    assert_eq!(std::fs::read_to_string(place.path("lines.jsonl")).unwrap(), text);
}

#[test]
fn a_size_of_nothing_is_named() {
    let place = Place::new();
    let output = place.command(&["bench", "--speed", "--layers", "0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "error: --layers must be at least 1\n");
}

#[test]
fn its_help_names_the_command_that_the_user_types() {
    let help = Place::new().command(&["bench", "--speed", "--help"]).succeed();
    assert!(help.contains("Usage: sorsa bench --speed [OPTIONS]"), "{help}");
}
