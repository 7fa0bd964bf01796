//! The faithful grader on pairs whose verdicts were written by hand, one by one, and on strings made
//! to break it.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::Value;
use sorsa_grading::same_answer;

fn pairs() -> Vec<Value> {
    include_str!("faithful_pairs.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_pair_gets_the_verdict_that_was_written_for_it() {
    let pairs = pairs();
    assert!(pairs.len() >= 200, "only {} pairs", pairs.len());
    let right = pairs.iter().filter(|pair| pair["equal"] == true).count();
    assert!(right > 80 && pairs.len() - right > 80, "{right} of {} pairs are equal", pairs.len());
    let wrong: Vec<&Value> = pairs
        .iter()
        .filter(|pair| {
            same_answer(pair["gold"].as_str().unwrap(), pair["prediction"].as_str().unwrap()) != pair["equal"]
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), pairs.len());
}

#[test]
fn the_verdict_is_the_same_with_sides_swapped() {
    for pair in pairs() {
        let [gold, found] = ["gold", "prediction"].map(|side| pair[side].as_str().unwrap());
        assert_eq!(same_answer(gold, found), same_answer(found, gold), "{pair}");
    }
}

#[test]
fn hostile_answers_end_soon() {
    let long = |piece: &str, times: usize| piece.repeat(times);
    let hostile = [
        long("(", 5000),
        long(r"\frac{", 3000),
        long(r"\{", 900) + &long(r"\}", 900),
        long("{", 900) + "1" + &long("}", 900),
        long("9^", 900) + "9",
        long("9!", 500),
        "9".repeat(1900),
        long("1,", 900) + "1",
        long(r"\{1,2,", 60) + "3" + &long(r"\}", 60),
        long(r"\sqrt", 400) + "2",
        long("-", 1900) + "1",
        long(r"\sin ", 300) + "1",
        long("x+", 290) + "x",
        long(r"\pm", 500) + "1",
        long(r"\text{", 300),
        long("|", 1500),
        long("1:", 290) + "1",
        long("1=", 290) + "1",
    ];
    let started = Instant::now();
    for a in &hostile {
        for b in &hostile {
            let equal = same_answer(a, b);
            assert!(equal == (a == b) || a.len() == b.len(), "{} and {}", &a[..20], &b[..20]);
        }
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

proptest! {
    #[test]
    fn no_pair_makes_the_grader_panic(
        a in r"([-+.,/0-9a-zA-Z$%{}()\[\]^*!_|:;<>=& é€π]|\\frac|\\sqrt|\\text\{|\\begin\{a\}|\\end\{a\}|\\\\|\\\{|\\\}|\\pm|\\cup|\\in|\\infty|\\circ|and){0,40}",
        b in ".{0,60}",
    ) {
        let _ = same_answer(&a, &b);
        let _ = same_answer(&b, &a);
        prop_assert!(same_answer(&a, &a));
    }

    #[test]
    fn a_fraction_equals_itself_expanded_and_no_other(a in -999i64..999, b in 1i64..999, k in 1i64..99) {
        let (short, long) = (format!(r"\frac{{{a}}}{{{b}}}"), format!("{}/{}", a * k, b * k));
        prop_assert!(same_answer(&short, &long));
        let other = format!("{}/{}", a * k + 1, b * k);
        prop_assert!(!same_answer(&short, &other));
    }

    #[test]
    fn a_polynomial_equals_its_product_of_roots(a in -9i64..9, b in -9i64..9, c in 1i64..9) {
        let product = format!("{c}(x-({a}))(x-({b}))");
        let sum = format!("{c}x^2+({})x+({})", -c * (a + b), c * a * b);
        let other = format!("{c}x^2+({})x+({})", -c * (a + b), c * a * b + 1);
        prop_assert!(same_answer(&product, &sum), "{} and {}", product, sum);
        prop_assert!(!same_answer(&product, &other), "{} and {}", product, other);
    }
}
