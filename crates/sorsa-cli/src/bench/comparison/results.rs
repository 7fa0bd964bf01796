//! From runs to a comparison: means, intervals, differences, and sentences that say which of them can be relied on.

use serde::Serialize;
use sorsa_eval::comparison::CrossedMean;
use sorsa_eval::stats::{Interval, Mean};

use super::collect::{Base, Run};
use super::plan::Plan;
use super::rates::best;
use super::stages::Outcome;
use super::variant::{Arm, Variant};
use crate::device::Backend;

/// `results.json`.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub version: &'static str,
    pub machine: String,
    pub backend: Backend,
    pub model: String,
    pub data: String,
    pub model_parameters: u64,
    pub train_examples: usize,
    pub steps: u64,
    pub tokens_per_step: f64,
    pub seeds: Vec<u64>,
    /// Test problems; 0 where accuracy is out of reach.
    pub problems: usize,
    /// The validation loss whose time is taken.
    pub target_loss: Option<f64>,
    pub base: Base,
    pub arms: Vec<ArmResult>,
    /// SORSA at its best rate, one seed, by gamma.
    pub gammas: Vec<Run>,
    /// Every run, each once.
    pub runs: Vec<Run>,
    /// What the numbers show, and what they do not.
    pub findings: Vec<String>,
    /// How they were made, and what to mind.
    pub notes: Vec<String>,
}

/// One row of the comparison.
#[derive(Debug, Serialize)]
pub struct ArmResult {
    pub name: String,
    pub method: String,
    pub rank: Option<usize>,
    /// Rates that were tried with the first seed, and the validation loss of each; none where it diverged.
    pub tried: Vec<Tried>,
    /// The best of them; the rest is of runs at it, and absent where every rate diverged.
    pub learning_rate: Option<f64>,
    /// Whether the best rate is the smallest or largest that was tried.
    pub rate_at_end: bool,
    pub runs: Vec<String>,
    pub trainable_parameters: Option<u64>,
    /// Validation loss, over seeds.
    pub loss: Option<Mean>,
    pub accuracy: Option<Rate>,
    /// Of every run of the arm that was alone on the machine, whatever its rate; where none was, of all of them.
    pub tokens_per_s: Option<Spread>,
    /// Of the seeds at the best rate.
    pub seconds_to_target: Option<Spread>,
    /// Of every run that was not resumed.
    pub start_seconds: Option<Spread>,
    /// The largest of the runs'.
    pub peak_memory_bytes: Option<u64>,
    pub adapter_bytes: Option<u64>,
    /// Loss of the forgetting texts after less that before, over seeds.
    pub forgetting: Option<Mean>,
    /// Absent for the arm that the others are compared with.
    pub difference: Option<Difference>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Tried {
    pub learning_rate: f64,
    pub loss: Option<f64>,
}

/// Measured times and speeds: what disturbs them is not normal, so the middle and the ends are told.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
    pub count: usize,
}

/// A share of right answers over seeds and problems.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Rate {
    pub mean: f64,
    pub interval: Interval,
    pub problems: usize,
    pub seeds: usize,
}

/// What an arm has more than another, seed by seed.
#[derive(Debug, Serialize)]
pub struct Difference {
    pub to: String,
    /// Of the validation loss, over seeds.
    pub loss: Option<Mean>,
    /// Of the share of right answers, over seeds and problems.
    pub accuracy: Option<Rate>,
}

impl Comparison {
    pub fn new(plan: &Plan, outcome: &Outcome, backend: Backend, target: Option<f64>) -> anyhow::Result<Self> {
        let mut runs: Vec<Run> = Vec::new();
        let tried = outcome.arms.iter().flat_map(|arm| arm.tried.iter().chain(&arm.chosen));
        for spec in tried.chain(outcome.gammas.iter().map(|(_, spec)| spec)) {
            if runs.iter().all(|run| run.name != spec.name) {
                let mut run = Run::read(spec, &outcome.tests)?;
                run.method = spec.arm.variant.to_string();
                runs.push(run);
            }
        }
        let base = Base::read(&plan.folder.join("base"), &outcome.tests.of_base(plan))?;
        let of = |name: &str| runs.iter().find(|run| run.name == name);
        let chosen = |arm: usize| outcome.arms[arm].chosen.iter().filter_map(|spec| of(&spec.name)).cloned().collect();
        let chosen: Vec<Vec<Run>> = (0..outcome.arms.len()).map(chosen).collect();
        let target = target.or_else(|| {
            // The worst of the best: every run reaches it.
            let lowest = chosen.iter().flatten().filter(|run| !run.diverged).map(Run::lowest_loss);
            lowest.collect::<Option<Vec<_>>>()?.into_iter().reduce(f64::max)
        });
        for run in &mut runs {
            run.seconds_to_target = target.and_then(|target| run.seconds_to(target));
        }
        let of = |name: &str| runs.iter().find(|run| run.name == name).cloned();
        let chosen: Vec<Vec<Run>> =
            outcome.arms.iter().map(|arm| arm.chosen.iter().filter_map(|spec| of(&spec.name)).collect()).collect();

        let mut arms = Vec::new();
        for (index, searched) in outcome.arms.iter().enumerate() {
            let losses: Vec<Option<f64>> =
                searched.tried.iter().map(|spec| of(&spec.name).and_then(|run| run.loss_after)).collect();
            let every: Vec<Run> =
                searched.tried.iter().chain(&searched.chosen).filter_map(|spec| of(&spec.name)).collect();
            let mut result = ArmResult::new(searched.arm, &chosen[index], &every, &base)?;
            result.tried = searched
                .tried
                .iter()
                .zip(&losses)
                .map(|(spec, &loss)| Tried { learning_rate: spec.learning_rate, loss })
                .collect();
            result.learning_rate = best(&losses).map(|best| searched.tried[best].learning_rate);
            result.rate_at_end = best(&losses).is_some_and(|best| searched.grid.ends_at(best));
            if let Some(other) = compared_with(&plan.arms, index) {
                result.difference =
                    Some(Difference::new(plan.arms[other].to_string(), &chosen[other], &chosen[index])?);
            }
            arms.push(result);
        }
        let gammas = outcome.gammas.iter().filter_map(|(_, spec)| of(&spec.name)).collect();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let mut comparison = Self {
            version: env!("CARGO_PKG_VERSION"),
            machine: format!("{} {}, {cores} cores", std::env::consts::OS, std::env::consts::ARCH),
            backend,
            model: plan.common.model.path.clone(),
            data: plan.common.data.train.clone(),
            model_parameters: plan.parameters,
            train_examples: plan.train_examples,
            steps: plan.steps,
            tokens_per_step: plan.tokens_per_step(),
            seeds: plan.seeds.clone(),
            problems: if plan.test.is_some() { plan.problems } else { 0 },
            target_loss: target,
            base: Base { loss: runs.iter().find_map(|run| run.loss_before), ..base },
            arms,
            gammas,
            runs,
            findings: Vec::new(),
            notes: Vec::new(),
        };
        comparison.findings = super::findings::findings(&comparison);
        comparison.notes = super::findings::notes(&comparison, plan);
        Ok(comparison)
    }
}

/// The arm that another is compared with: LoRA of its rank, or of the first rank; without LoRA the first arm.
fn compared_with(arms: &[Arm], index: usize) -> Option<usize> {
    let lora = |arm: &Arm| arm.variant == Variant::of(sorsa_adapter::Method::Lora);
    let same_rank = arms.iter().position(|arm| lora(arm) && arm.rank == arms[index].rank);
    let other = same_rank.or_else(|| arms.iter().position(lora)).unwrap_or(0);
    // LoRA of another rank is compared with that of the first.
    let first = arms.iter().position(lora).unwrap_or(0);
    let other = if other == index { first } else { other };
    (other != index).then_some(other)
}

impl ArmResult {
    /// `runs` are those at the best rate, `every` run of the arm tells what it costs.
    fn new(arm: Arm, runs: &[Run], every: &[Run], base: &Base) -> anyhow::Result<Self> {
        // One seed that diverged makes a mean over the others flattering: then there is none.
        let mean = |of: &dyn Fn(&Run) -> Option<f64>| {
            let values: Option<Vec<f64>> = runs.iter().map(of).collect();
            values.and_then(|values| Mean::of(&values))
        };
        let speeds = |alone: bool| -> Vec<f64> {
            every.iter().filter(|run| !alone || run.concurrent <= 1).filter_map(|run| run.tokens_per_s).collect()
        };
        Ok(Self {
            name: arm.to_string(),
            method: arm.variant.to_string(),
            rank: arm.rank,
            tried: Vec::new(),
            learning_rate: None,
            rate_at_end: false,
            runs: runs.iter().map(|run| run.name.clone()).collect(),
            trainable_parameters: runs.first().and_then(|run| run.trainable_parameters),
            loss: mean(&|run| run.loss_after),
            accuracy: Rate::of(CrossedMean::of(&table(runs))?, CrossedMean::rate_interval),
            tokens_per_s: Spread::of(speeds(true)).or_else(|| Spread::of(speeds(false))),
            seconds_to_target: runs
                .iter()
                .map(|run| run.seconds_to_target)
                .collect::<Option<Vec<f64>>>()
                .and_then(Spread::of),
            start_seconds: Spread::of(every.iter().filter_map(|run| run.start_seconds).collect()),
            peak_memory_bytes: runs.iter().filter_map(|run| run.peak_memory_bytes).max(),
            adapter_bytes: runs.first().and_then(|run| run.adapter_bytes),
            forgetting: base.text_loss.and_then(|before| mean(&|run| Some(run.text_loss? - before))),
            difference: None,
        })
    }
}

/// Right answers as ones, a row for each seed; no rows where a run was not tested.
fn table(runs: &[Run]) -> Vec<Vec<f64>> {
    let row = |run: &Run| {
        let verdicts = run.verdicts.as_ref()?;
        Some(verdicts.iter().map(|(_, right)| f64::from(u8::from(*right))).collect())
    };
    runs.iter().map(row).collect::<Option<_>>().unwrap_or_default()
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let count = values.len();
        let median = 0.5 * (values[(count - 1) / 2] + values[count / 2]);
        Some(Self { median, low, high, count })
    }
}

impl Rate {
    fn of(mean: Option<CrossedMean>, interval: impl Fn(&CrossedMean) -> Interval) -> Option<Self> {
        let mean = mean?;
        Some(Self { mean: mean.mean, interval: interval(&mean), problems: mean.problems, seeds: mean.seeds })
    }
}

impl Difference {
    fn new(to: String, before: &[Run], after: &[Run]) -> anyhow::Result<Self> {
        let losses = |runs: &[Run]| runs.iter().map(|run| run.loss_after).collect::<Option<Vec<_>>>();
        let loss = match (losses(before), losses(after)) {
            (Some(before), Some(after)) => Mean::of_differences(&before, &after)?,
            _ => None,
        };
        let (left, right) = (table(before), table(after));
        let accuracy = match left.is_empty() || right.is_empty() {
            true => None,
            false => Rate::of(CrossedMean::of_differences(&left, &right)?, CrossedMean::difference_interval),
        };
        Ok(Self { to, loss, accuracy })
    }
}

#[cfg(test)]
mod tests {
    use super::super::collect::tests::with_curve;
    use super::*;

    fn run(loss: f64, verdicts: &[u8]) -> Run {
        Run {
            loss_after: Some(loss),
            verdicts: Some(verdicts.iter().enumerate().map(|(row, right)| (row, *right == 1)).collect()),
            ..with_curve(&[])
        }
    }

    #[test]
    fn arms_are_compared_with_lora_of_their_rank() {
        let arms = Arm::all(&Variant::DEFAULT, &[4, 16]);
        let names: Vec<_> = (0..arms.len())
            .map(|index| compared_with(&arms, index).map_or("-".to_owned(), |other| arms[other].to_string()))
            .collect();
        let expected = "- lora-r4 lora-r4 lora-r16 lora-r4 lora-r16 lora-r4 lora-r16 lora-r4 lora-r4";
        assert_eq!(names.join(" "), expected);
        let without = Arm::all(&Variant::DEFAULT[1..3], &[8]);
        assert_eq!([compared_with(&without, 0), compared_with(&without, 1)], [None, Some(0)]);
    }

    #[test]
    fn differences_are_taken_seed_by_seed_and_problem_by_problem() {
        let lora = [run(0.30, &[0, 1, 1, 0]), run(0.40, &[0, 1, 1, 1])];
        let sorsa = [run(0.25, &[1, 1, 1, 0]), run(0.35, &[1, 1, 1, 1])];
        let difference = Difference::new("lora".into(), &lora, &sorsa).unwrap();
        let loss = difference.loss.unwrap();
        // The seeds differ by 0.1, the difference does not.
        assert!((loss.mean + 0.05).abs() < 1e-12 && loss.interval.unwrap().excludes_zero(), "{loss:?}");
        let accuracy = difference.accuracy.unwrap();
        assert!((accuracy.mean - 0.25).abs() < 1e-12 && accuracy.seeds == 2 && accuracy.problems == 4);
        assert!(!accuracy.interval.excludes_zero(), "one problem of four shows nothing");
    }

    #[test]
    fn a_seed_that_diverged_leaves_no_mean() {
        let arm = Arm { variant: Variant::DEFAULT[0], rank: Some(4) };
        let mut runs = [run(0.3, &[1]), run(0.3, &[1])];
        runs[1].loss_after = None;
        assert!(ArmResult::new(arm, &runs, &runs, &Base::default()).unwrap().loss.is_none());
    }

    #[test]
    fn speed_is_that_of_runs_that_were_alone() {
        let arm = Arm { variant: Variant::DEFAULT[0], rank: Some(4) };
        let mut runs = [(); 4].map(|()| run(0.3, &[1]));
        for (run, (speed, concurrent)) in runs.iter_mut().zip([(100.0, 1), (40.0, 2), (120.0, 1), (101.0, 1)]) {
            (run.tokens_per_s, run.concurrent) = (Some(speed), concurrent);
        }
        let speed = |every: &[Run]| ArmResult::new(arm, &runs, every, &Base::default()).unwrap().tokens_per_s.unwrap();
        assert_eq!(speed(&runs), Spread { median: 101.0, low: 100.0, high: 120.0, count: 3 });
        assert_eq!(speed(&runs[1..2]).median, 40.0, "there is no other");
        assert_eq!(Spread::of(vec![4.0, 1.0]).unwrap().median, 2.5);
    }
}
