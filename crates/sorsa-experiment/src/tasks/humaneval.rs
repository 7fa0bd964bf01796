//! HumanEval (Chen et al. 2021): functions that a model completes, tested by running them.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sorsa_data::{Encoder, Record, TemplateName};
use sorsa_grading::code::function;
use sorsa_grading::grade::Score;
use sorsa_grading::stats::Proportion;
use sorsa_models::CausalLm;

use super::{Effort, ProblemSource, Problems, Scores, Task, read_problems};
use crate::answer::{Answer, Judgment};
use crate::answer_log::fingerprint;
use crate::continuation::{AnswerOptions, Continuation, Prompts};
use crate::error::ExperimentError;
use crate::inputs::encode_problems;
use crate::observer::Observer;
use crate::sandbox::{CodeExecution, Isolation, Sandbox, TestResult, Trial};
use crate::scoreboard::{PassRate, reported};

/// The task.
pub static HUMANEVAL: HumanEval = HumanEval;

/// Functions to complete.
pub struct HumanEval;

impl Task for HumanEval {
    fn name(&self) -> &'static str {
        "humaneval"
    }

    fn data_sets(&self) -> &'static [&'static str] {
        &["humaneval"]
    }

    fn recognises(&self, row: &Value) -> bool {
        Problem::deserialize(row).is_ok()
    }

    fn template(&self) -> TemplateName {
        TemplateName::Raw
    }

    fn check(&self, code: Option<&CodeExecution>) -> Result<(), ExperimentError> {
        Sandbox::new(code.ok_or(ExperimentError::CodeNotAllowed)?).map(drop)
    }

    fn load(
        &self,
        source: &ProblemSource<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Box<dyn Problems>, ExperimentError> {
        let sandbox = Sandbox::new(source.code.ok_or(ExperimentError::CodeNotAllowed)?)?;
        let read = read_problems(self.name(), source, observer, |line, row| {
            let problem = Problem::deserialize(row).map_err(|error| error.to_string())?;
            Ok((line, problem))
        })?;
        let records = read.iter().map(|(line, problem)| Record::instruction(*line, &problem.prompt, "")).collect();
        let encoded = encode_problems(source, records, observer)?;
        let mut problems: BTreeMap<usize, Problem> = read.into_iter().collect();
        let asked = encoded.into_iter().filter_map(|(record, prompt)| Some((problems.remove(&record.row)?, prompt)));
        let (problems, prompts) = asked.unzip();
        Ok(Box::new(Functions { problems, prompts, encoder: source.encoder.clone(), sandbox }))
    }
}

/// One problem, as the published file has it.
#[derive(Debug, Clone, Deserialize)]
struct Problem {
    task_id: String,
    prompt: String,
    entry_point: String,
    test: String,
}

impl Problem {
    /// The test of a completion's source.
    fn trial<'a>(&'a self, source: &'a str) -> Trial<'a> {
        Trial { prompt: &self.prompt, source, test: &self.test, entry_point: &self.entry_point }
    }
}

/// Problems in tokens, and the sandbox that runs completions.
struct Functions {
    problems: Vec<Problem>,
    prompts: Vec<Vec<u32>>,
    encoder: Encoder,
    sandbox: Sandbox,
}

impl Functions {
    /// Runs the tests of a completion.
    fn judge(&self, completion: Continuation) -> Result<Answer, ExperimentError> {
        let problem = &self.problems[completion.index];
        let source = function(&problem.prompt, &completion.text, &problem.entry_point);
        let (passed, error) = match self.sandbox.run(&problem.trial(&source))? {
            TestResult::Passed => (true, None),
            TestResult::Failed(error) => (false, Some(error)),
            TestResult::TimedOut => (false, Some("timed out".to_owned())),
        };
        Ok(Answer {
            row: completion.index,
            sample: completion.sample,
            task_id: Some(problem.task_id.clone()),
            level: None,
            kind: None,
            prompt: problem.prompt.clone(),
            expected: None,
            generated: completion.text,
            tokens: completion.tokens,
            finished: completion.finished,
            judgment: Judgment::Tested { passed, error },
        })
    }
}

impl Problems for Functions {
    fn count(&self) -> usize {
        self.problems.len()
    }

    fn fingerprint(&self) -> String {
        format!("{:016x}", fingerprint(&format!("{:?} {:?}", self.prompts, self.problems)))
    }

    fn answer(
        &self,
        model: &CausalLm,
        options: &AnswerOptions,
        done: &[Answer],
        observer: &mut dyn Observer,
        keep: &mut dyn FnMut(Answer) -> Result<(), ExperimentError>,
    ) -> Result<(), ExperimentError> {
        let done: HashSet<(usize, usize)> = done.iter().map(|answer| (answer.row, answer.sample)).collect();
        let prompts = Prompts { tokens: &self.prompts, done, tokenizer: self.encoder.tokenizer() };
        prompts.continue_all(model, options, observer, &mut |completion| keep(self.judge(completion)?))
    }

    fn score(&self, answers: &[Answer], effort: &Effort) -> Scores {
        let mut counts: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        for answer in answers {
            let (total, passed) = counts.entry(answer.row).or_default();
            *total += 1;
            *passed += u64::from(answer.is_correct());
        }
        let pass = |k: u64| PassRate::of(counts.values().copied(), k);
        let (total, passed) = (answers.len(), answers.iter().filter(|answer| answer.is_correct()).count());
        let isolation = self.sandbox.isolation();
        let held = match isolation {
            Isolation::Container => "without network and files",
            Isolation::Namespaces => "without network",
            Isolation::Limits => "within limits of time and memory, but with network",
        };
        let mut pass_at = Map::new();
        let mut table = vec![["programs", "problems", "passed"].map(str::to_owned).to_vec()];
        for k in reported(effort.samples as u64) {
            let rate = pass(k);
            table.push(vec![
                format!("pass@{k}"),
                self.count().to_string(),
                rate.as_ref().map_or_else(String::new, PassRate::percent),
            ]);
            pass_at.extend(rate.map(|rate| (k.to_string(), rate.json())));
        }
        let document = Map::from_iter(
            [
                ("task", json!("humaneval")),
                ("problems", json!(self.count())),
                ("samples", json!(effort.samples)),
                ("resumed", json!(effort.resumed)),
                ("passed", json!(passed)),
                ("pass_at", json!(pass_at)),
                ("isolation", json!(isolation.name())),
                ("seconds", json!(effort.seconds)),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let share = |successes: usize| Proportion { successes: successes as u64, total: total as u64 };
        let score = Score { correct: share(passed), unanswered: share(0) };
        Scores {
            graders: vec![("tests".to_owned(), score)],
            document,
            table,
            notes: format!("{} programs run {held}, {:.1} s", total - effort.resumed, effort.seconds),
        }
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_published_solutions_pass_and_empty_ones_do_not() {
        let Some(data) = std::env::var_os("SORSA_DATA") else { return };
        let folder = tempfile::tempdir().unwrap();
        let Ok(sandbox) = Sandbox::new(&CodeExecution::for_tests(folder.path(), 30, 1 << 30)) else { return };
        let path = Path::new(&data).join("humaneval/HumanEval.jsonl");
        assert_eq!(super::super::recognise(&path).name(), "humaneval");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let problems: Vec<Problem> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        // In the last three, the prompt defines a function that the solution calls.
        for index in (0..problems.len()).step_by(8).chain([10, 38, 50]) {
            let problem = &problems[index];
            let row: serde_json::Value = serde_json::from_str(lines[index]).unwrap();
            let run = |completion: &str| {
                let source = function(&problem.prompt, completion, &problem.entry_point);
                sandbox.run(&problem.trial(&source)).unwrap()
            };
            let solution = row["canonical_solution"].as_str().unwrap();
            let begins_again = format!("{solution}\n\n{}    return None\n", problem.prompt);
            let function = &problem.prompt[problem.prompt.rfind(&format!("def {}(", problem.entry_point)).unwrap()..];
            let chat = format!("Sure:\n```python\n{function}{solution}\n```\nIt works.");
            for completion in [solution, &begins_again, &chat] {
                assert_eq!(run(completion), TestResult::Passed, "{}: {completion}", problem.task_id);
            }
            assert_ne!(run("    pass\n"), TestResult::Passed, "{}", problem.task_id);
        }
    }
}
