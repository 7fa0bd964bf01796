//! The controller of gamma on the embedded model.

use burn::prelude::Device;
use sorsa_experiment::{Host, Recipe, RunDir, finetune};
use sorsa_train::metrics::Metric;

/// The mean defect over the last third of the steps, and the mean gamma.
fn end(fields: &str) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path().join("run"));
    let text = format!(
        "train.batch_size = 4\ntrain.max_steps = 90\ntrain.eval_every = 0\neval.problems = 0\ndata.limit = 400\n\
         data.max_length = 128\ntrain.schedule.kind = \"constant\"\n{fields}"
    );
    let recipe = Recipe::from_table(text.parse().unwrap(), "test").unwrap();
    finetune(&recipe, &Host::cpu(Device::flex()), &run, &mut ()).unwrap();
    let steps: Vec<(f64, f64)> = run
        .metrics()
        .unwrap()
        .iter()
        .filter_map(|metric| match metric {
            Metric::Step(step) if step.step > 60 => Some((step.defect?, step.gamma?)),
            _ => None,
        })
        .collect();
    let mean = |of: fn(&(f64, f64)) -> f64| steps.iter().map(of).sum::<f64>() / steps.len() as f64;
    (mean(|step| step.0), mean(|step| step.1))
}

#[test]
fn the_defect_of_the_embedded_model_reaches_its_target_from_a_gamma_too_small_and_one_too_large() {
    for gamma in ["4e-6", "4e-3"] {
        let (defect, used) =
            end(&format!("train.regularizer.gamma = {gamma}\ntrain.regularizer.target_defect = 0.02\n"));
        assert!((0.01..0.04).contains(&defect), "gamma {gamma}, {used:e} used: the defect is {defect}");
    }
}
