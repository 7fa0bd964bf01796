//! The pretraining corpus: an endless, seeded stream of small documents.

use super::draw::Draw;
use super::{numbers, story};

/// The weight of a kind of document in the stream, and the function that draws a document.
type DocumentKind = (usize, fn(&mut Draw) -> String);

const KINDS: [DocumentKind; 14] = [
    (20, numbers::equations),
    (7, numbers::chains),
    (5, numbers::carrying),
    (3, numbers::families),
    (3, numbers::tables),
    (5, numbers::comparisons),
    (4, numbers::counting),
    (3, numbers::digits),
    (3, numbers::calendar),
    (16, story::with_sums),
    (8, story::of_facts),
    (6, story::of_boxes),
    (5, story::of_lists),
    (20, story::plain),
];

/// Documents of some 40 to 220 tokens: equations, number facts, stories with sums in them, plain stories.
///
/// The stream is endless. Equal seeds give equal streams, on every platform. No document has the form of the
/// [`task`](super::task()): no prompt, no question with a worked solution, no `The answer is`.
pub fn corpus(seed: u64) -> impl Iterator<Item = String> {
    let mut draw = Draw::new(seed);
    let total = KINDS.iter().map(|(weight, _)| weight).sum();
    std::iter::from_fn(move || {
        let mut at = draw.below(total);
        let (_, make) = KINDS.iter().find(|(weight, _)| {
            let found = at < *weight;
            at = at.saturating_sub(*weight);
            found
        })?;
        Some(make(&mut draw))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn equal_seeds_give_equal_streams_and_different_seeds_do_not() {
        let first: Vec<String> = corpus(3).take(200).collect();
        assert_eq!(first, corpus(3).take(200).collect::<Vec<_>>());
        let distinct: HashSet<String> = corpus(4).take(200).collect();
        assert!(first.iter().filter(|document| distinct.contains(*document)).count() < 5);
    }

    #[test]
    fn no_document_has_the_form_of_the_task() {
        for document in corpus(5).take(20_000) {
            for phrase in
                ["instruction", "Instruction", "Response", "The answer", "answer is", "###", "Below is", "How many"]
            {
                assert!(!document.contains(phrase), "{phrase:?} is in {document:?}");
            }
        }
    }

    #[test]
    fn every_equation_of_the_corpus_holds() {
        let mut equations = 0;
        for document in corpus(6).take(5_000) {
            let words: Vec<&str> =
                document.split_whitespace().map(|w| w.trim_matches(|c: char| ",.;:()".contains(c))).collect();
            for window in words.windows(5).filter(|w| w[3] == "=" && w[1] != "=") {
                let number =
                    |i: usize| window[i].parse::<i64>().unwrap_or_else(|_| panic!("{window:?} in {document:?}"));
                let value = match window[1] {
                    "+" => number(0) + number(2),
                    "-" => number(0) - number(2),
                    "*" => number(0) * number(2),
                    other => panic!("{other:?} in {document:?}"),
                };
                assert_eq!(value, number(4), "{window:?} in {document:?}");
                equations += 1;
            }
        }
        assert!(equations > 20_000, "{equations}");
    }

    /// Regression: the smaller number was given as the difference, in an equation that was true all the same.
    #[test]
    fn who_has_fewer_has_the_difference_taken_away() {
        let documents: Vec<String> = corpus(9).take(5_000).collect();
        let mut found = 0;
        for document in &documents {
            let words: Vec<&str> = document.split_whitespace().map(|word| word.trim_matches(['.', ','])).collect();
            for i in (0..words.len()).filter(|&i| words[i] == "fewer") {
                // `.. 23 fewer cookies than Jack who has 94 Sam has 94 - 23 = 71 ..`
                let [by, whole, from, minus, taken] = [-1, 6, 9, 10, 11].map(|at| words[i.saturating_add_signed(at)]);
                assert_eq!((whole, "-", by), (from, minus, taken), "{document}");
                found += 1;
            }
        }
        assert!(found > 50, "{found}");
    }

    #[test]
    fn documents_are_short_and_mostly_distinct() {
        let documents: Vec<String> = corpus(7).take(10_000).collect();
        assert!(documents.iter().all(|d| (60..=900).contains(&d.len())));
        let distinct: HashSet<&String> = documents.iter().collect();
        assert!(distinct.len() * 100 >= documents.len() * 99, "{} distinct", distinct.len());
    }

    #[test]
    fn equations_reach_most_pairs_of_two_digits() {
        let mut draw = Draw::new(8);
        let pairs: HashSet<(i64, i64)> = (0..200_000)
            .map(|_| super::super::equation::Equation::draw(&mut draw))
            .filter(|e| e.result <= 100)
            .map(|e| (e.left, e.right))
            .collect();
        assert!(pairs.len() > 8_000, "{} pairs", pairs.len());
    }
}
