//! The fine-tuning task: word problems of one to three steps, in MetaMathQA's schema.
//!
//! It has the equations and words of the corpus, but not their form: no document of the corpus has a prompt, a question
//! with a worked solution, or `The answer is`. Each token of a response occurs in the corpus, because adapters do not
//! train the embeddings.

use std::collections::HashSet;

use serde::Serialize;

use super::draw::Draw;
use super::equation::Equation;
use super::scene::Scene;
use super::template::{TEMPLATES, Template};

/// Rows of the training split.
pub const TRAIN_PROBLEMS: usize = 8_000;
/// Rows of the validation split.
pub const VALIDATION_PROBLEMS: usize = 200;
/// Rows of the test split. Results are quoted on the first 200.
pub const TEST_PROBLEMS: usize = 400;

/// Largest number of a problem, given or computed.
const LARGEST: i64 = 99;

/// One word problem with its worked solution.
///
/// It serializes like a row of MetaMathQA: `type`, `query`, `response`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Name of its template.
    #[serde(rename = "type")]
    pub template: &'static str,
    /// The question.
    pub query: String,
    /// One line with an equation for each step, then `The answer is: N`.
    pub response: String,
    /// The `N` of the response.
    #[serde(skip)]
    pub answer: i64,
    /// The given numbers of the question. No two problems of a [`TaskSplits`] share template and numbers.
    #[serde(skip)]
    pub numbers: Vec<i64>,
}

/// The splits of the task. In each split, the counts of two templates differ by at most one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSplits {
    /// [`TRAIN_PROBLEMS`] problems to train on.
    pub train: Vec<Problem>,
    /// [`VALIDATION_PROBLEMS`] problems to choose settings by.
    pub validation: Vec<Problem>,
    /// [`TEST_PROBLEMS`] problems to report accuracy on.
    pub test: Vec<Problem>,
}

/// Draws the task. Equal seeds give equal tasks, on every platform.
pub fn task(seed: u64) -> TaskSplits {
    let mut draw = Draw::new(seed);
    let mut seen = HashSet::new();
    let mut split = |size: usize| {
        let mut problems: Vec<Problem> =
            TEMPLATES.iter().cycle().take(size).map(|template| new_problem(template, &mut draw, &mut seen)).collect();
        draw.shuffle(&mut problems);
        problems
    };
    let test = split(TEST_PROBLEMS);
    let validation = split(VALIDATION_PROBLEMS);
    TaskSplits { train: split(TRAIN_PROBLEMS), validation, test }
}

/// Draws problems of the template until one has new numbers.
fn new_problem(template: &Template, draw: &mut Draw, seen: &mut HashSet<(&'static str, Vec<i64>)>) -> Problem {
    loop {
        if let Some(problem) = problem(template, draw)
            && seen.insert((template.name, problem.numbers.clone()))
        {
            return problem;
        }
    }
}

/// Draws a problem. `None` if one of its numbers is outside `1..=LARGEST`.
fn problem(template: &Template, draw: &mut Draw) -> Option<Problem> {
    let mut scene = Scene::draw(draw, true);

    let numbers: Vec<i64> = template.given.iter().map(|&(_, low, high)| draw.between(low, high)).collect();
    let mut values: Vec<(&str, i64)> = Vec::new();
    for (&(key, ..), &number) in template.given.iter().zip(&numbers) {
        scene.number(key, number);
        values.push((key, number));
    }

    let mut answer = 0;
    for step in template.steps {
        let value = |key: &str| values.iter().find(|(k, _)| *k == key).map(|&(_, value)| value);
        let equation = Equation::new(value(step.left)?, step.op, value(step.right)?);
        if !(1..=LARGEST).contains(&equation.result) {
            return None;
        }
        answer = equation.result;
        values.push((step.result, answer));
        scene.equation(step.result, equation);
    }

    let query = scene.say(draw, template.query);
    let steps: Vec<String> = template.steps.iter().map(|step| scene.say(draw, step.says)).collect();
    let response = format!("{}\nThe answer is: {answer}", steps.join("\n"));
    Some(Problem { template: template.name, query, response, answer, numbers })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 0;

    fn splits() -> [Vec<Problem>; 3] {
        let TaskSplits { train, validation, test } = task(SEED);
        [train, validation, test]
    }

    /// The value of `12 + 5` or of `12`, read without help from the generator.
    fn evaluate(expression: &str) -> i64 {
        let number = |text: &str| text.trim().parse::<i64>().unwrap_or_else(|_| panic!("no number: {expression:?}"));
        for (sign, apply) in [('+', (|a, b| a + b) as fn(i64, i64) -> i64), ('-', |a, b| a - b), ('*', |a, b| a * b)] {
            if let Some((left, right)) = expression.split_once(sign) {
                return apply(number(left), number(right));
            }
        }
        number(expression)
    }

    #[test]
    fn splits_have_their_sizes_and_every_template_in_equal_shares() {
        for (split, size) in splits().iter().zip([TRAIN_PROBLEMS, VALIDATION_PROBLEMS, TEST_PROBLEMS]) {
            assert_eq!(split.len(), size);
            for template in &TEMPLATES {
                let count = split.iter().filter(|p| p.template == template.name).count();
                assert!(
                    count.abs_diff(size / TEMPLATES.len()) <= 1,
                    "{} occurs {count} times in {size}",
                    template.name
                );
            }
        }
    }

    #[test]
    fn no_template_is_given_the_same_numbers_twice_in_or_between_splits() {
        let mut seen = HashSet::new();
        for problem in splits().concat() {
            assert!(seen.insert((problem.template, problem.numbers.clone())), "twice: {problem:?}");
        }
        let texts: HashSet<String> = splits().concat().into_iter().map(|p| p.query).collect();
        assert_eq!(texts.len(), TRAIN_PROBLEMS + VALIDATION_PROBLEMS + TEST_PROBLEMS);
    }

    #[test]
    fn the_question_shows_the_numbers_that_a_problem_is_keyed_by() {
        for problem in splits().concat() {
            let words: Vec<&str> = problem.query.split(|c: char| !c.is_ascii_digit()).collect();
            for number in &problem.numbers {
                assert!(words.contains(&number.to_string().as_str()), "{number} is not in {:?}", problem.query);
            }
        }
    }

    #[test]
    fn every_equation_of_a_response_holds_and_the_last_gives_the_answer() {
        for problem in splits().concat() {
            let mut lines: Vec<&str> = problem.response.lines().collect();
            let last = lines.pop().and_then(|line| line.strip_prefix("The answer is: ")).expect("a final line");
            assert_eq!(evaluate(last), problem.answer);
            assert!((1..=3).contains(&lines.len()), "{}", problem.response);
            let mut result = 0;
            for line in lines {
                let (left, right) = line.split_once('=').expect("an equation in every step");
                let left = left.rsplit(|c: char| c.is_alphabetic()).next().unwrap_or(left);
                let right = right.trim_start().split(|c: char| !c.is_ascii_digit()).next().unwrap_or(right);
                result = evaluate(right);
                assert_eq!(evaluate(left), result, "{line}");
            }
            assert_eq!(result, problem.answer, "{}", problem.response);
        }
    }

    #[test]
    fn the_corpus_knows_every_word_of_a_response_where_it_stands() {
        // The first word of a line and a later one are different tokens.
        fn words(text: &str) -> impl Iterator<Item = (bool, &str)> {
            text.lines().flat_map(|line| line.split(' ').enumerate()).filter_map(|(i, word)| {
                let word = word.trim_matches(|c: char| !c.is_alphabetic());
                (!word.is_empty()).then_some((i == 0, word))
            })
        }
        let documents: Vec<String> = super::super::corpus(SEED).take(20_000).collect();
        let known: HashSet<(bool, &str)> = documents.iter().flat_map(|document| words(document)).collect();
        for problem in splits().concat() {
            let unknown = words(&problem.response).find(|word| !known.contains(word));
            assert_eq!(unknown, None, "{}", problem.response);
        }
    }

    #[test]
    fn numbers_stay_within_two_digits() {
        for problem in splits().concat() {
            let text = format!("{} {}", problem.query, problem.response);
            let digits = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
            assert!(digits <= Some(2), "{text}");
        }
    }

    #[test]
    fn equal_seeds_give_equal_tasks_and_different_seeds_do_not() {
        assert_eq!(task(SEED), task(SEED));
        assert_ne!(task(SEED).test, task(SEED + 1).test);
    }
}
