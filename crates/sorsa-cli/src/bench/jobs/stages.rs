//! The stages of a comparison: rates, seeds, a second task, sweeps, then the test of the chosen runs. Runs that are already there cost
//! nothing.

use super::job::Job;
use super::job_runner::JobRunner;
use sorsa_experiment::RunDir;
use sorsa_experiment::comparison::{
    ComparisonPlan, ComparisonRuns, MeasuredModel, Measurements, RunSpec, validation_loss,
};

/// Makes, or finds, every run and measurement of a plan. Returns the runs, and how many jobs this process did.
pub fn run(
    plan: &ComparisonPlan,
    measurements: &Measurements,
    runner: &JobRunner,
) -> anyhow::Result<(ComparisonRuns, usize)> {
    let mut done_here = 0;
    let mut runs = ComparisonRuns::new(plan)?;
    let searches =
        runs.rate_searches(plan)?.iter().map(Job::find_learning_rate).collect::<anyhow::Result<Vec<Job>>>()?;
    if !searches.is_empty() {
        done_here += runner.run("estimates", &without_repeats(searches), |job| job.name.clone())?;
        runs.centre_grids(plan)?;
    }
    loop {
        done_here += train(runner, "learning rates", &runs.tried())?;
        if !runs.extend_grids(plan)? {
            break;
        }
    }
    runs.choose(plan)?;
    done_here += train(runner, "seeds", &runs.chosen())?;
    runs.go_on(plan)?;
    done_here += train(runner, "second task", &runs.then().map(|(_, then)| then).collect::<Vec<_>>())?;
    runs.sweep(plan)?;
    done_here += train(runner, "sweeps", &runs.swept())?;

    let mut jobs: Vec<Job> = measurements.of(MeasuredModel::Base).into_iter().map(Job::evaluate).collect();
    for run in runs.chosen().into_iter().chain(runs.swept()) {
        if !run.folder.join(RunDir::DIVERGED).exists() {
            jobs.extend(measurements.of(MeasuredModel::Trained(run)).into_iter().map(Job::evaluate));
        }
    }
    for (first, then) in runs.then() {
        if !then.folder.join(RunDir::DIVERGED).exists() {
            jobs.extend(measurements.of(MeasuredModel::Trained(then)).into_iter().map(Job::evaluate));
            jobs.push(Job::evaluate(measurements.of_first_task(first, then)));
        }
    }
    done_here += runner.run("tests", &without_repeats(jobs), |job| job.name.clone())?;
    Ok((runs, done_here))
}

fn train(runner: &JobRunner, stage: &'static str, runs: &[&RunSpec]) -> anyhow::Result<usize> {
    let jobs = runs.iter().map(|run| Job::fine_tune(run)).collect::<Result<_, _>>()?;
    runner.run(stage, &without_repeats(jobs), |job| match validation_loss(&job.folder) {
        Some(loss) => format!("{} has validation loss {loss:.4}", job.name),
        None => format!("{} diverged", job.name),
    })
}

/// The value of a sweep may make a run that an arm makes too.
fn without_repeats(jobs: Vec<Job>) -> Vec<Job> {
    let mut unique: Vec<Job> = Vec::new();
    for job in jobs {
        if unique.iter().all(|other| other.name != job.name) {
            unique.push(job);
        }
    }
    unique
}
