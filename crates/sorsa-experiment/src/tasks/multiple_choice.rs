//! Multiple choice by likelihood: ARC (Clark et al. 2018) and files like it. The model chooses the answer whose text it finds
//! most likely after the question, by the mean log-likelihood of its tokens. What it chooses by the sum over the tokens and by the sum per
//! character, `acc` and `acc_norm` of lm-evaluation-harness, is told beside.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sorsa_data::{BadRows, DataError, Encoder, LongPrompt, Record, TemplateName};
use sorsa_grading::grade::{Score, Verdict};
use sorsa_grading::stats::Proportion;
use sorsa_models::{CausalLm, ModelInput};

use super::{Effort, ProblemSource, Problems, Scores, Task, read_problems};
use crate::answer::{Answer, ChoiceVerdicts, Judgment};
use crate::answer_log::fingerprint;
use crate::continuation::AnswerOptions;
use crate::error::ExperimentError;
use crate::inputs::UnusablePrompts;
use crate::observer::{Event, Observer};
use crate::scoreboard::percent;

/// The task.
pub static MULTIPLE_CHOICE: MultipleChoice = MultipleChoice;

/// Questions with choices, one of them right.
pub struct MultipleChoice;

impl Task for MultipleChoice {
    fn name(&self) -> &'static str {
        "multiple-choice"
    }

    fn data_sets(&self) -> &'static [&'static str] {
        &["arc"]
    }

    fn recognises(&self, row: &Value) -> bool {
        Row::deserialize(row).is_ok()
    }

    fn template(&self) -> TemplateName {
        TemplateName::Raw
    }

    fn load(
        &self,
        source: &ProblemSource<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Box<dyn Problems>, ExperimentError> {
        let rows = read_problems(self.name(), source, observer, |line, row| Ok((line, Row::checked(row)?)))?;
        let mut questions = Vec::with_capacity(rows.len());
        let mut unusable = UnusablePrompts { rows: rows.len(), too_long: Vec::new(), bad: BadRows::new("row") };
        for (line, row) in rows {
            match Question::new(line, row, source.encoder, source.context) {
                Ok(question) => questions.push(question),
                Err(DataError::PromptTooLong { tokens, partial, .. }) => {
                    unusable.too_long.push(LongPrompt { row: line, tokens, partial });
                }
                Err(error) => unusable.bad.push(line, error.to_string()),
            }
        }
        unusable.leave_out(source, observer)?;
        Ok(Box::new(Questions { path: source.path.to_owned(), questions }))
    }
}

/// A row of the file, as the Hub has ARC.
#[derive(Debug, Deserialize)]
struct Row {
    #[serde(default)]
    id: Option<String>,
    question: String,
    choices: Choices,
    #[serde(rename = "answerKey")]
    answer_key: String,
}

#[derive(Debug, Deserialize)]
struct Choices {
    text: Vec<String>,
    label: Vec<String>,
}

impl Row {
    fn checked(value: Value) -> Result<Self, String> {
        let row: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        let (texts, labels) = (&row.choices.text, &row.choices.label);
        if texts.len() != labels.len() {
            return Err(format!("{} choices have {} labels", texts.len(), labels.len()));
        }
        if texts.iter().any(|text| text.trim().is_empty()) {
            return Err("a choice is empty".to_owned());
        }
        if !labels.contains(&row.answer_key) {
            return Err(format!("`answerKey` is {:?}, which is not among the labels", row.answer_key));
        }
        Ok(row)
    }
}

/// Questions in tokens.
struct Questions {
    path: PathBuf,
    questions: Vec<Question>,
}

struct Question {
    line: usize,
    id: Option<String>,
    prompt: String,
    choices: Vec<Choice>,
    /// Index of the right choice.
    right: usize,
}

struct Choice {
    label: String,
    text: String,
    /// The question and this choice.
    tokens: Vec<u32>,
    /// Index of the first token of the choice.
    start: usize,
}

impl Question {
    fn new(line: usize, row: Row, encoder: &Encoder, context: usize) -> Result<Self, DataError> {
        let prompt = format!("Question: {}\nAnswer:", row.question.trim());
        let record = Record::instruction(line, &prompt, "");
        let asked = encoder.encode_continued(&record, "", context)?;
        let right = row.choices.label.iter().position(|label| *label == row.answer_key).unwrap_or(0);
        let mut choices = Vec::new();
        for (label, text) in row.choices.label.into_iter().zip(row.choices.text) {
            let tokens = encoder.encode_continued(&record, &format!(" {}", text.trim()), context)?;
            // A tokenizer may join the border of question and choice into one token, which then counts for the choice.
            let start = asked.iter().zip(&tokens).take_while(|(asked, token)| asked == token).count();
            choices.push(Choice { label, text, tokens, start });
        }
        Ok(Self { line, id: row.id, prompt, choices, right })
    }

    /// What the model chooses. Fails with a loss that is not finite.
    fn choose(&self, model: &CausalLm) -> Result<Chosen, f64> {
        let mut scored = 0;
        let [mut means, mut sums, mut per_character] = [const { Vec::new() }; 3];
        for choice in &self.choices {
            let (mean, tokens) = choice.loss(model);
            if tokens > 0 && !mean.is_finite() {
                return Err(mean);
            }
            scored += tokens;
            let sum = mean * tokens.max(1) as f64;
            means.push(mean);
            sums.push(sum);
            per_character.push(sum / choice.text.trim().chars().count() as f64);
        }
        Ok(Chosen { by_mean: lowest(&means), by_sum: lowest(&sums), by_characters: lowest(&per_character), scored })
    }
}

/// Indices of the choices with the highest log-likelihood.
struct Chosen {
    /// By the mean over the tokens.
    by_mean: usize,
    /// By the sum over the tokens.
    by_sum: usize,
    /// By the sum per character.
    by_characters: usize,
    /// Tokens of all choices.
    scored: usize,
}

/// The index of the first lowest loss.
fn lowest(losses: &[f64]) -> usize {
    let mut best = 0;
    for (index, loss) in losses.iter().enumerate() {
        if *loss < losses[best] {
            best = index;
        }
    }
    best
}

impl Choice {
    /// The mean negative log-likelihood of its tokens after the question, and how many they are.
    fn loss(&self, model: &CausalLm) -> (f64, usize) {
        let len = self.tokens.len() - 1;
        let id = |index: usize| self.tokens[index] as i32;
        let input_ids: Vec<i32> = (0..len).map(id).collect();
        let positions: Vec<i32> = (0..len as i32).collect();
        let segments = vec![1; len];
        let targets: Vec<i32> = (1..=len).map(|index| if index >= self.start { id(index) } else { -100 }).collect();
        let count = targets.iter().filter(|target| **target >= 0).count();
        let input = ModelInput { rows: 1, len, input_ids: &input_ids, positions: &positions, segments: &segments };
        match model.loss_sum(&input, &targets) {
            Some(sum) => (f64::from(sum.into_scalar::<f32>()) / count as f64, count),
            None => (f64::INFINITY, 0),
        }
    }
}

impl Problems for Questions {
    fn count(&self) -> usize {
        self.questions.len()
    }

    fn fingerprint(&self) -> String {
        let mut text = String::new();
        for question in &self.questions {
            for choice in &question.choices {
                text.push_str(&format!("{} {} {:?}\n", question.line, question.right, choice.tokens));
            }
        }
        format!("{:016x}", fingerprint(&text))
    }

    fn answer(
        &self,
        model: &CausalLm,
        _options: &AnswerOptions,
        done: &[Answer],
        observer: &mut dyn Observer,
        keep: &mut dyn FnMut(Answer) -> Result<(), ExperimentError>,
    ) -> Result<(), ExperimentError> {
        let known: HashSet<usize> = done.iter().map(|answer| answer.row).collect();
        let (started, total) = (Instant::now(), self.questions.len());
        let (mut done, mut tokens) = (known.len(), 0);
        observer.on_event(Event::Answering { done, total, tokens, seconds: 0.0 });
        for question in self.questions.iter().filter(|question| !known.contains(&question.line)) {
            let Chosen { by_mean, by_sum, by_characters, scored } = question
                .choose(model)
                .map_err(|loss| ExperimentError::LossNotFinite { path: self.path.clone(), row: question.line, loss })?;
            let choice = &question.choices[by_mean];
            keep(Answer {
                row: question.line,
                sample: 0,
                task_id: question.id.clone(),
                level: None,
                kind: None,
                prompt: question.prompt.clone(),
                expected: Some(question.choices[question.right].text.clone()),
                generated: choice.text.clone(),
                tokens: scored,
                finished: true,
                judgment: Judgment::Chosen(ChoiceVerdicts {
                    mean: Verdict { extracted: Some(choice.label.clone()), correct: by_mean == question.right },
                    acc: by_sum == question.right,
                    acc_norm: by_characters == question.right,
                }),
            })?;
            (done, tokens) = (done + 1, tokens + scored);
            observer.on_event(Event::Answering { done, total, tokens, seconds: started.elapsed().as_secs_f64() });
        }
        observer.on_event(Event::Answered);
        Ok(())
    }

    fn score(&self, answers: &[Answer], effort: &Effort) -> Scores {
        let correct = answers.iter().filter(|answer| answer.is_correct()).count() as u64;
        let share = |successes: u64| Proportion { successes, total: answers.len() as u64 };
        let score = Score { correct: share(correct), unanswered: share(0) };
        let interval = score.correct.interval();
        // Files of earlier builds have neither.
        let other = |is_right: fn(&ChoiceVerdicts) -> bool| {
            let verdicts = answers.iter().filter_map(|answer| match &answer.judgment {
                Judgment::Chosen(verdicts) => Some(is_right(verdicts)),
                _ => None,
            });
            let (mut successes, mut total) = (0, 0);
            for correct in verdicts {
                (successes, total) = (successes + u64::from(correct), total + 1);
            }
            (total > 0).then_some(Proportion { successes, total })
        };
        let [acc, acc_norm] = [other(|verdicts| verdicts.acc), other(|verdicts| verdicts.acc_norm)];
        let shown = |share: &Option<Proportion>| match share {
            Some(correct) => {
                percent(&Score { correct: *correct, unanswered: Proportion { successes: 0, total: correct.total } })
            }
            None => String::new(),
        };
        let document = Map::from_iter(
            [
                ("task", json!("multiple-choice")),
                ("problems", json!(self.count())),
                ("resumed", json!(effort.resumed)),
                ("accuracy", json!(score.correct.rate())),
                ("correct", json!(correct)),
                ("interval", json!([interval.low, interval.high])),
                ("acc", json!(acc.map(|share| share.rate()))),
                ("acc_norm", json!(acc_norm.map(|share| share.rate()))),
                ("seconds", json!(effort.seconds)),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let row = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
        let total = answers.len().to_string();
        Scores {
            table: vec![
                row(["answers", "n", "correct", "acc", "acc_norm"]),
                row(["all", &total, &percent(&score), &shown(&acc), &shown(&acc_norm)]),
            ],
            graders: vec![("likelihood".to_owned(), score)],
            document,
            notes: format!(
                "{} questions, {} tokens of choices in {:.1} s",
                self.count(),
                effort.new_tokens,
                effort.seconds
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn::prelude::Device;
    use sorsa_data::{EncodeOptions, LoadOptions, PromptTemplate, TextTokenizer};
    use sorsa_models::Sampling;

    use super::*;
    use crate::answer_log::AnswerLog;
    use crate::host::Host;
    use crate::model::LoadedModel;
    use crate::tasks::{Evaluation, evaluate, recognise};
    use sorsa_checkpoint::WeightFormat;

    fn row(question: &str, texts: [&str; 3], key: &str) -> Value {
        json!({"id": "q", "question": question, "choices": {"text": texts, "label": ["A", "B", "C"]}, "answerKey": key})
    }

    fn evaluated(rows: &[Value], load: &LoadOptions) -> Result<Evaluation, ExperimentError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("arc.jsonl");
        std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        assert_eq!(recognise(&path).name(), "multiple-choice");
        let host = Host::cpu(Device::flex());
        let loaded = LoadedModel::load("embedded", WeightFormat::F32, &host).unwrap();
        let options = EncodeOptions { max_length: usize::MAX, ..EncodeOptions::default() };
        let source = ProblemSource {
            path: &path,
            load,
            encoder: &loaded.encoder(TemplateName::Raw, options).unwrap(),
            config: loaded.model.config(),
            context: 256,
            code: None,
        };
        let problems = MULTIPLE_CHOICE.load(&source, &mut ())?;
        let asked = AnswerOptions {
            batch_size: 1,
            max_new_tokens: 1,
            sampling: Sampling::Greedy,
            samples: 1,
            stop: crate::model::Stops::default(),
        };
        evaluate(&*problems, &loaded.model, &asked, AnswerLog::in_memory(), &mut ())
    }

    #[test]
    fn the_likelier_text_is_chosen_wherever_it_stands() {
        // The embedded model has read of apples, and never this string of letters.
        let texts = ["Tom has 12 apples.", "xq zzv qqk jjx", "vvq xk zzj kqx"];
        for (place, label) in ["A", "B", "C"].into_iter().enumerate() {
            let mut texts = texts;
            texts.swap(0, place);
            let right = row("How many apples does Tom have?", texts, label);
            let wrong = row("How many apples does Tom have?", texts, if place == 0 { "B" } else { "A" });
            let evaluation = evaluated(&[right, wrong], &LoadOptions::default()).unwrap();
            let chosen: Vec<_> = evaluation.answers.iter().map(|answer| answer.verdict().extracted.unwrap()).collect();
            assert_eq!(chosen, [label, label]);
            assert_eq!(evaluation.score().unwrap().correct, Proportion { successes: 1, total: 2 });
            assert_eq!(evaluation.scores.document["accuracy"], 0.5);
        }
    }

    #[test]
    fn rows_without_a_right_choice_are_named_or_left_out() {
        let rows = [row("q", ["a", "b", "c"], "A"), row("q", ["a", "b", "c"], "E"), row("q", ["a", " ", "c"], "A")];
        let error = evaluated(&rows, &LoadOptions::default()).err().unwrap().to_string();
        let expected = [
            "2 of 3 rows are no problems of multiple-choice",
            "line 2: `answerKey` is \"E\", which is not among the labels",
            "line 3: a choice is empty",
        ];
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        let load = LoadOptions { skip_bad_rows: true, ..LoadOptions::default() };
        assert_eq!(evaluated(&rows, &load).unwrap().answers.len(), 1);
    }

    #[test]
    fn the_loss_of_a_choice_is_that_of_its_tokens_alone() {
        let host = Host::cpu(Device::flex());
        let folder = host.sources.embedded.model().unwrap();
        let tokenizer = Arc::new(TextTokenizer::from_dir(&folder).unwrap());
        let encoder = Encoder::new(tokenizer, PromptTemplate::Raw, EncodeOptions::default()).unwrap();
        let question =
            Question::new(1, Row::checked(row("2 + 2?", ["4", "5", "four"], "A")).unwrap(), &encoder, 256).unwrap();
        for choice in &question.choices {
            let text = encoder.tokenizer().decode(&choice.tokens[choice.start..]).unwrap();
            assert_eq!(text.trim(), choice.text);
        }
    }

    #[test]
    fn the_scores_of_lm_evaluation_harness_stand_beside() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/multiple_choice/questions.jsonl");
        let text = std::fs::read_to_string(path).unwrap();
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let evaluation = evaluated(&rows, &LoadOptions::default()).unwrap();
        let (mut acc, mut acc_norm) = (0, 0);
        for (row, answer) in rows.iter().zip(&evaluation.answers) {
            let likelihoods: Vec<f64> = serde_json::from_value(row["log_likelihoods"].clone()).unwrap();
            let texts: Vec<String> = serde_json::from_value(row["choices"]["text"].clone()).unwrap();
            let label = |scores: Vec<f64>| {
                let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                &row["choices"]["label"][scores.iter().position(|score| *score == best).unwrap()]
            };
            let per_character: Vec<f64> =
                likelihoods.iter().zip(&texts).map(|(sum, text)| sum / text.chars().count() as f64).collect();
            let Judgment::Chosen(found) = &answer.judgment else { panic!("{answer:?}") };
            assert_eq!(found.acc, *label(likelihoods) == row["answerKey"], "{row}");
            assert_eq!(found.acc_norm, *label(per_character) == row["answerKey"], "{row}");
            (acc, acc_norm) = (acc + u32::from(found.acc), acc_norm + u32::from(found.acc_norm));
        }
        assert_ne!(acc, acc_norm, "the questions tell the two apart");
        let count = rows.len() as f64;
        assert_eq!(evaluation.scores.document["acc"], f64::from(acc) / count);
        assert_eq!(evaluation.scores.document["acc_norm"], f64::from(acc_norm) / count);
        // An answer is read back like it was written, and one of an earlier build too.
        let answer = serde_json::to_value(&evaluation.answers[0]).unwrap();
        assert_eq!(serde_json::from_value::<Answer>(answer.clone()).unwrap(), evaluation.answers[0]);
        let mut earlier = answer;
        for field in ["acc", "acc_norm"] {
            earlier.as_object_mut().unwrap().remove(field);
        }
        let earlier: Answer = serde_json::from_value(earlier).unwrap();
        assert!(matches!(earlier.judgment, Judgment::Decided(_)));
    }

    #[test]
    fn each_choice_is_as_likely_as_in_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/multiple_choice/questions.jsonl");
        let host = Host::cpu(Device::flex());
        let loaded = LoadedModel::load("embedded", WeightFormat::F32, &host).unwrap();
        let options = EncodeOptions { max_length: usize::MAX, ..EncodeOptions::default() };
        let encoder = loaded.encoder(TemplateName::Raw, options).unwrap();
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let question = Question::new(1, Row::checked(row.clone()).unwrap(), &encoder, 256).unwrap();
            for (index, choice) in question.choices.iter().enumerate() {
                let (mean, tokens) = choice.loss(&loaded.model);
                assert_eq!(tokens as u64, row["tokens"][index], "{}", choice.text);
                let expected = row["log_likelihoods"][index].as_f64().unwrap();
                let found = -mean * tokens as f64;
                assert!((found - expected).abs() < 1e-3, "{}: {found}, not {expected}", choice.text);
            }
        }
    }
}
