//! How the numbers of a comparison were made, in sentences.

use super::difference::Difference;
use super::fields::decides_steps;
use super::plan::ComparisonPlan;
use super::results::Comparison;

/// Says how the numbers were made and what limits their meaning.
pub fn notes(comparison: &Comparison, plan: &ComparisonPlan) -> Vec<String> {
    let mut notes = vec![
        format!(
            "Every run: {} optimizer steps of {:.0} tokens on average, the same order of the data for the same seed, an \
             evaluation every {} steps, tested at its lowest validation loss.",
            comparison.steps, comparison.tokens_per_step, plan.common.train.eval_every,
        ),
        format!(
            "Learning rates were chosen for each method by the validation loss of seed {}; no choice uses the test \
             problems. That seed is among those of the means, which favours every method a little.",
            comparison.seeds[0]
        ),
    ];
    if comparison.problems > 0 {
        notes.push(format!(
            "Accuracy: {} test problems, the same for every seed, grader `faithful`. Its intervals cover other problems and other \
             seeds; those of differences are paired by both.",
            comparison.problems
        ));
    } else {
        notes.push("There are no test problems: only losses are compared.".to_owned());
    }
    notes.push(match comparison.seeds.len() {
        1 => "One seed: intervals of accuracy do not cover what another seed would change, and losses have none.".to_owned(),
        count => format!(
            "Losses: Student's intervals over {count} seeds (data order, random start), paired by seed for differences. So few seeds \
             say little of their own scatter; {}.",
            match plan.common.data.validation {
                Some(_) => "the validation data are the same for all, and no interval covers other validation data",
                None => "each seed holds out validation rows of its own, the same for every method",
            }
        ),
    });
    let tests: usize =
        comparison.rows.iter().filter_map(|row| row.difference.as_ref()).map(Difference::test_count).sum();
    if tests > 0 {
        notes.push(format!(
            "p-values: two-sided t tests of paired differences, corrected by Holm's method for {tests} tests. If no method differed, at most \
             one such report in twenty would say that one does. Intervals are not corrected."
        ));
    }
    if let Some(target) = comparison.target_loss {
        notes.push(format!(
            "Time to loss: training seconds, without evaluations, until the validation loss is {target:.4}, interpolated between \
             evaluations."
        ));
    }
    notes.push(
        "Tokens/s and start: of every run of the method, at any learning rate. Peak memory: of the training process, which makes one \
         run only. Saved: the files of adapter/. A method that splits the weight saves its factors at the start too; a method \
         without factors saves the trained weights."
            .to_owned(),
    );
    if !comparison.texts.is_empty() {
        let which =
            if plan.is_embedded() { "pretraining texts that the model has not seen" } else { "the user's texts" };
        notes.push(format!("Forgetting: loss of {which} after training minus before, in nats per token."));
    }
    let concurrent = comparison.runs.iter().filter(|run| run.concurrent > 1).count();
    if concurrent > 0 {
        notes.push(format!(
            "{concurrent} of {} runs shared the machine with others: their tokens/s and times cannot be compared. If a method has runs \
             that were alone, its tokens/s are theirs.",
            comparison.runs.len()
        ));
    }
    let resumed = comparison.runs.iter().filter(|run| run.resumed).count();
    if resumed > 0 {
        notes.push(format!(
            "Runs that were interrupted and gone on with: {resumed}. The time of their start is left out."
        ));
    }
    let unequal: Vec<&str> =
        plan.compared_fields.iter().map(String::as_str).filter(|field| decides_steps(field)).collect();
    if !unequal.is_empty() {
        notes.push(format!("Arms or sweeps set {}: their runs differ in steps or tokens.", unequal.join(", ")));
    }
    if plan.common.train.early_stopping > 0 {
        notes.push("Runs may stop early (train.early_stopping): their numbers of steps may differ.".to_owned());
    }
    if plan.common.svd.cache {
        notes.push("Runs reuse decompositions (svd.cache): their start times are not those of a first run.".to_owned());
    }
    notes
}
