//! Intervals, p-values, corrections and power beside SciPy's and statsmodels' (`tests/golden/make_statistics.py`), and reports of
//! methods that do not differ.

use std::path::Path;

use serde_json::Value;
use sorsa_grading::comparison::CrossedMean;
use sorsa_grading::significance::{LEVEL, detectable, holm, power, student_p};
use sorsa_grading::stats::{Mean, Proportion};

fn cases() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/statistics/cases.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn list<'a>(cases: &'a Value, name: &str) -> &'a [Value] {
    cases[name].as_array().unwrap()
}

fn number(case: &Value, name: &str) -> f64 {
    case[name].as_f64().unwrap()
}

fn numbers(case: &Value, name: &str) -> Vec<f64> {
    list(case, name).iter().map(|value| value.as_f64().unwrap()).collect()
}

fn close(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance * expected.abs().max(1e-3), "found {found}, expected {expected}");
}

#[test]
fn paired_differences_have_scipy_s_intervals_and_p_values() {
    for case in list(&cases(), "pairs") {
        let (before, after) = (numbers(case, "before"), numbers(case, "after"));
        let mean = Mean::of_differences(&before, &after).unwrap().unwrap();
        let interval = mean.interval.unwrap();
        close(interval.low, number(case, "low"), 1e-9);
        close(interval.high, number(case, "high"), 1e-9);
        close(student_p(number(case, "t"), mean.count - 1), number(case, "p"), 1e-9);
        close(mean.p_value().unwrap(), number(case, "p"), 1e-9);
    }
}

#[test]
fn corrections_are_those_of_statsmodels() {
    for case in list(&cases(), "corrections") {
        for (found, expected) in holm(&numbers(case, "p")).into_iter().zip(numbers(case, "holm")) {
            close(found, expected, 1e-12);
        }
    }
}

#[test]
fn powers_are_those_of_statsmodels() {
    for case in list(&cases(), "powers") {
        let degrees = case["degrees"].as_u64().unwrap() as usize;
        let level = number(case, "level");
        close(detectable(1.0, degrees, level), number(case, "ratio"), 1e-6);
        close(power(3.0, degrees, level), number(case, "power_at_3"), 1e-6);
    }
}

#[test]
fn rates_have_statsmodels_intervals() {
    for case in list(&cases(), "rates") {
        let count = |name: &str| case[name].as_u64().unwrap();
        let interval = Proportion { successes: count("right"), total: count("total") }.interval();
        assert!((interval.low - number(case, "low")).abs() < 1e-9, "{case}");
        assert!((interval.high - number(case, "high")).abs() < 1e-9, "{case}");
    }
}

/// Numbers from a linear congruential generator.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// A method that is no better and no worse than the others: losses, and answers to problems of various difficulty, by seed.
fn method(random: &mut Random, difficulty: &[f64], orders: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut losses = Vec::new();
    let mut answers = Vec::new();
    for order in orders {
        // What the order of the data does to all methods, and what it does to this one.
        let luck = 0.1 * random.normal();
        losses.push(0.3 + 0.02 * order + 0.01 * random.normal());
        let chance = |easy: &f64| (easy + 0.05 * order + luck).clamp(0.02, 0.98);
        answers.push(difficulty.iter().map(|easy| f64::from(u8::from(random.uniform() < chance(easy)))).collect());
    }
    (losses, answers)
}

#[test]
fn where_no_method_differs_at_most_one_report_in_twenty_claims_that_one_does() {
    let mut random = Random(2026);
    let (reports, methods, seeds, problems) = (1_000, 7, 5, 60);
    let mut claims = 0;
    for _ in 0..reports {
        let difficulty: Vec<f64> = (0..problems).map(|_| random.uniform()).collect();
        let orders: Vec<f64> = (0..seeds).map(|_| random.normal()).collect();
        let reference = method(&mut random, &difficulty, &orders);
        let mut p = Vec::new();
        for _ in 0..methods {
            let (losses, answers) = method(&mut random, &difficulty, &orders);
            p.extend(Mean::of_differences(&reference.0, &losses).unwrap().unwrap().p_value());
            p.extend(CrossedMean::of_differences(&reference.1, &answers).unwrap().unwrap().p_value());
        }
        claims += usize::from(holm(&p).into_iter().any(|p| p < LEVEL));
    }
    let share = claims as f64 / f64::from(reports);
    // Two standard errors of a share of 0.05 of 1000 reports.
    assert!(share < LEVEL + 0.014, "{share} of the reports claim a difference");
    assert!(share > 0.005, "{share} of the reports claim a difference: the tests see nothing");
}
