//! Fine-tunes the embedded model for a few steps, and prints its accuracy before and after.
//!
//! `cargo run --release -p sorsa-experiment --example finetune`

use burn::prelude::Device;
use sorsa_experiment::{Event, ExperimentError, Host, Observer, Recipe, RunDir, finetune};
use sorsa_train::metrics::Metric;

struct Printer;

impl Observer for Printer {
    fn on_event(&mut self, event: Event<'_>) {
        if let Event::Trained { metric: Metric::Eval(eval) } = event {
            println!("step {:>3}: validation loss {:.4}", eval.step, eval.loss);
        }
    }
}

fn main() -> Result<(), ExperimentError> {
    let mut recipe = Recipe::from_table("train.max_steps = 40\neval.problems = 40".parse().unwrap(), "example")?;
    recipe.train.eval_every = 20;

    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path());
    let summary = finetune(&recipe, &Host::cpu(Device::flex()), &run, &mut Printer)?;

    println!("{} numbers trained in {:.1} s", summary.trainable_parameters, summary.seconds);
    println!(
        "accuracy {:.3} before, {} after",
        summary.accuracy_before.unwrap(),
        summary.accuracy_after_percent().unwrap()
    );
    let first = &run.generations()?[0];
    println!("{}\n  -> {} (expected {:?})", first.prompt, first.generated, first.expected);
    Ok(())
}
