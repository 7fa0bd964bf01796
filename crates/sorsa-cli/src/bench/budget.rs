//! `--budget`: measures what the parts of a comparison take, and leaves out what does not fit.

use std::time::Instant;

use sorsa_experiment::comparison::budget::{Costs, duration};
use sorsa_experiment::comparison::{ComparisonPlan, MeasuredModel, Measurements};
use sorsa_files::write_atomic;

use super::jobs::job::Job;
use super::jobs::job_runner::JobRunner;

/// Makes the plan fit into `seconds`. Returns two lines about it.
pub fn fit(
    plan: &mut ComparisonPlan,
    seconds: f64,
    measurements: &Measurements,
    runner: &JobRunner,
) -> anyhow::Result<String> {
    let costs = costs(plan, measurements, runner)?;
    let asked = plan.seconds(&costs);
    let left_out = plan.fit(seconds, &costs)?;
    let Costs { step, test, .. } = costs;
    let measured = format!(
        "a step takes {step:.3} s, a test of one model {}: the comparison as asked takes {}",
        duration(test),
        duration(asked)
    );
    let fits = match left_out.is_empty() {
        true => format!("all of it fits into {}", duration(seconds)),
        false => format!(
            "in {}: left out are {}; the rest takes {}",
            duration(seconds),
            left_out.join(", "),
            duration(plan.seconds(&costs))
        ),
    };
    Ok(format!("{measured}\n{fits} (one run at a time; a grid that grows takes longer)"))
}

/// Measures a short run and the tests of the model before training, or reads what an earlier call measured.
fn costs(plan: &ComparisonPlan, measurements: &Measurements, runner: &JobRunner) -> anyhow::Result<Costs> {
    let probe = plan.probe()?;
    let file = probe.folder.with_extension("json");
    if let Some(costs) = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        return Ok(costs);
    }
    // A run that an earlier call has left has no time.
    if probe.folder.exists() {
        std::fs::remove_dir_all(&probe.folder)?;
    }
    let started = Instant::now();
    runner.run("measuring", &[Job::fine_tune(&probe)?], |job| job.name.clone())?;
    let probe_seconds = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let tests: Vec<Job> = measurements
        .of(MeasuredModel::Base)
        .into_iter()
        .map(|test| Job { folder: probe.folder.clone(), ..Job::evaluate(test) })
        .collect();
    runner.run("measuring", &tests, |job| job.name.clone())?;
    let costs = Costs::of_probe(&probe.folder, probe_seconds, started.elapsed().as_secs_f64())?;
    write_atomic(&file, serde_json::to_string(&costs)?)?;
    Ok(costs)
}
