//! HumanEval (Chen et al. 2021): functions that a model completes, tested by running them.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sorsa_data::{Encoder, Record};
use sorsa_grading::code::program;
use sorsa_models::CausalLm;

use crate::exit::{OrBadInput, bad_input};
use crate::progress::Style;
use crate::sampling::Continuing;
use crate::sandbox::{Outcome, Sandbox};

/// One problem, as the published file has it.
#[derive(Debug, Clone, Deserialize)]
pub struct Problem {
    pub task_id: String,
    pub prompt: String,
    pub entry_point: String,
    pub test: String,
}

/// One completion and what its tests said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tested {
    /// Index of the problem.
    pub row: usize,
    pub sample: usize,
    pub task_id: String,
    pub prompt: String,
    pub generated: String,
    pub tokens: usize,
    pub finished: bool,
    pub passed: bool,
    /// Why it did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whether a file holds problems of this form, by its first row.
pub fn recognised(path: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(path) else { return false };
    let first = text.lines().find(|line| !line.trim().is_empty());
    first.is_some_and(|line| serde_json::from_str::<Problem>(line).is_ok())
}

/// Reads the problems.
pub fn load(path: &Path, limit: Option<usize>) -> anyhow::Result<Vec<Problem>> {
    let text =
        std::fs::read_to_string(path).map_err(|error| bad_input(format!("cannot read {}: {error}", path.display())))?;
    let rows = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).take(limit.unwrap_or(usize::MAX));
    let problems: Vec<Problem> = rows
        .map(|(index, line)| {
            serde_json::from_str(line)
                .map_err(|error| bad_input(format!("{} line {}: {error}", path.display(), index + 1)))
        })
        .collect::<anyhow::Result<_>>()?;
    if problems.is_empty() {
        return Err(bad_input(format!("{} holds no problems", path.display())));
    }
    Ok(problems)
}

/// The prompts, in tokens.
pub fn encode(path: &Path, problems: &[Problem], encoder: &Encoder, context: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    let records = problems.iter().enumerate();
    let records: Vec<Record> =
        records.map(|(index, problem)| Record::instruction(index + 1, &problem.prompt, "")).collect();
    let prompts = encoder.encode_prompts(&records).or_bad_input_in(path)?;
    if let Some((problem, prompt)) = problems.iter().zip(&prompts).find(|(_, prompt)| prompt.len() >= context) {
        return Err(bad_input(format!(
            "{}: {} has {} tokens, the model's context is {context}",
            path.display(),
            problem.task_id,
            prompt.len()
        )));
    }
    Ok(prompts)
}

/// Completes the functions, except those in `done`, and tests each as it is made.
pub fn test_all(
    (problems, prompts): (&[Problem], &[Vec<u32>]),
    (model, encoder): (&CausalLm, &Encoder),
    continuing: &Continuing,
    sandbox: &Sandbox,
    done: &[Tested],
    style: Style,
    mut on_tested: impl FnMut(Tested) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let done: HashSet<(usize, usize)> = done.iter().map(|tested| (tested.row, tested.sample)).collect();
    continuing.run((model, encoder), prompts, &done, style, |sampled| {
        let problem = &problems[sampled.index];
        let outcome = sandbox.run(&program(&problem.prompt, &sampled.text, &problem.test, &problem.entry_point))?;
        on_tested(Tested {
            row: sampled.index,
            sample: sampled.sample,
            task_id: problem.task_id.clone(),
            prompt: problem.prompt.clone(),
            generated: sampled.text,
            tokens: sampled.tokens,
            finished: sampled.finished,
            passed: outcome == Outcome::Passed,
            error: match outcome {
                Outcome::Passed => None,
                Outcome::Failed(error) => Some(error),
                Outcome::TimedOut => Some("timed out".to_owned()),
            },
        })
    })
}

/// Samples and passed ones of each problem.
pub fn counts(rows: &[Tested]) -> Vec<(u64, u64)> {
    let mut problems: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for row in rows {
        let (total, passed) = problems.entry(row.row).or_default();
        *total += 1;
        *passed += u64::from(row.passed);
    }
    problems.into_values().collect()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::sandbox::Limits;

    #[test]
    fn the_published_solutions_pass_and_empty_ones_do_not() {
        let Some(data) = std::env::var_os("SORSA_DATA") else { return };
        let Ok(sandbox) = Sandbox::new(Limits { seconds: 30, memory_bytes: 1 << 30 }) else { return };
        let path = Path::new(&data).join("humaneval/HumanEval.jsonl");
        assert!(recognised(&path));
        let text = std::fs::read_to_string(&path).unwrap();
        let problems = load(&path, None).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        // In the last three the prompt defines a function that the solution calls.
        for index in (0..problems.len()).step_by(8).chain([10, 38, 50]) {
            let problem = &problems[index];
            let row: serde_json::Value = serde_json::from_str(lines[index]).unwrap();
            let run = |completion: &str| {
                sandbox.run(&program(&problem.prompt, completion, &problem.test, &problem.entry_point)).unwrap()
            };
            let solution = row["canonical_solution"].as_str().unwrap();
            let begins_again = format!("{solution}\n\n{}    return None\n", problem.prompt);
            let function = &problem.prompt[problem.prompt.rfind(&format!("def {}(", problem.entry_point)).unwrap()..];
            let chat = format!("Sure:\n```python\n{function}{solution}\n```\nIt works.");
            for completion in [solution, &begins_again, &chat] {
                assert_eq!(run(completion), Outcome::Passed, "{}: {completion}", problem.task_id);
            }
            assert_ne!(run("    pass\n"), Outcome::Passed, "{}", problem.task_id);
        }
    }
}
