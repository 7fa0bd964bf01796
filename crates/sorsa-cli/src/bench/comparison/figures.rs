//! The pictures of a comparison.

use sorsa_eval::plot::{Axis, Figure, Marks, Point, Scale, Series};

use super::collect::Run;
use super::results::{ArmResult, Comparison};

/// Figures with the names of their files. One without a value is left out.
pub fn figures(comparison: &Comparison) -> Vec<(&'static str, Figure)> {
    let mut figures = vec![
        (
            "accuracy",
            by_arm(comparison, "Accuracy, 95 % intervals", "right answers, %", Marks::Scatter, |arm| {
                let rate = arm.accuracy?;
                Some((100.0 * rate.mean, Some((100.0 * rate.interval.low, 100.0 * rate.interval.high))))
            }),
        ),
        (
            "loss",
            by_arm(
                comparison,
                "Validation loss, 95 % intervals",
                "validation loss, nats per target token",
                Marks::Scatter,
                |arm| {
                    let loss = arm.loss?;
                    Some((loss.mean, loss.interval.map(|interval| (interval.low, interval.high))))
                },
            ),
        ),
        ("learning-rates", rates(comparison)),
        ("learning-curves", curves(comparison)),
        (
            "speed",
            by_arm(comparison, "Training speed", "tokens per second", Marks::Bars, |arm| {
                Some((arm.tokens_per_s?.median, None))
            }),
        ),
        (
            "memory",
            by_arm(comparison, "Peak memory of training", "peak memory, MB", Marks::Bars, |arm| {
                Some((arm.peak_memory_bytes? as f64 / 1e6, None))
            }),
        ),
    ];
    figures.extend(gammas(comparison));
    figures.retain(|(_, figure)| figure.series.iter().any(|series| series.points.iter().any(Point::is_finite)));
    figures
}

/// One value for each arm, with its interval.
fn by_arm(
    comparison: &Comparison,
    title: &str,
    label: &str,
    marks: Marks,
    value: impl Fn(&ArmResult) -> Option<(f64, Option<(f64, f64)>)>,
) -> Figure {
    let names = comparison.arms.iter().map(|arm| arm.name.clone()).collect();
    let points: Vec<Point> = comparison
        .arms
        .iter()
        .enumerate()
        .filter_map(|(index, arm)| value(arm).map(|(y, interval)| Point { x: index as f64, y, interval }))
        .collect();
    let scale = if marks == Marks::Bars { Scale::FromZero } else { Scale::Linear };
    Figure {
        title: title.to_owned(),
        x: Axis::new("", Scale::Categories(names)),
        y: Axis::new(label, scale),
        series: vec![Series { name: label.to_owned(), marks, points }],
    }
}

fn rates(comparison: &Comparison) -> Figure {
    let series = comparison.arms.iter().map(|arm| {
        let known = arm.tried.iter().filter_map(|tried| Some((tried.learning_rate, tried.loss?)));
        Series::new(&arm.name, Marks::Line, known)
    });
    Figure {
        title: "Validation loss by learning rate".to_owned(),
        x: Axis::new("peak learning rate", Scale::Log),
        y: Axis::new("validation loss, nats per target token", Scale::Linear),
        series: series.filter(|series| !series.points.is_empty()).collect(),
    }
}

/// The first seed of each arm at its best rate, from the first evaluation after the start: the start's loss, the same for all,
/// would flatten the rest.
fn curves(comparison: &Comparison) -> Figure {
    let of = |arm: &ArmResult| {
        let run: &Run = comparison.runs.iter().find(|run| Some(&run.name) == arm.runs.first())?;
        let points = run.curve.iter().filter(|point| point.step > 0).map(|point| (point.step as f64, point.loss));
        Some(Series::new(&arm.name, Marks::Line, points))
    };
    Figure {
        title: "Validation loss of each method's best, first seed".to_owned(),
        x: Axis::new("optimizer step", Scale::Linear),
        y: Axis::new("validation loss, nats per target token", Scale::Log),
        series: comparison.arms.iter().filter_map(of).filter(|series| !series.points.is_empty()).collect(),
    }
}

/// Loss, accuracy and defect by gamma, whose values stand beside each other as names: one of them is 0.
fn gammas(comparison: &Comparison) -> Vec<(&'static str, Figure)> {
    let mut runs: Vec<&Run> = comparison.gammas.iter().collect();
    runs.sort_by(|a, b| a.gamma.unwrap_or(0.0).total_cmp(&b.gamma.unwrap_or(0.0)));
    let names: Vec<String> = runs.iter().map(|run| super::findings::number(run.gamma.unwrap_or(0.0))).collect();
    let figure = |title: &str, label: &str, scale: Scale, value: &dyn Fn(&Run) -> Option<f64>| Figure {
        title: title.to_owned(),
        x: Axis::new("gamma", Scale::Categories(names.clone())),
        y: Axis::new(label, scale),
        series: vec![Series::new(
            label,
            Marks::Scatter,
            runs.iter().enumerate().filter_map(|(index, run)| Some((index as f64, value(run)?))),
        )],
    };
    vec![
        (
            "gamma-loss",
            figure("SORSA's loss by gamma", "validation loss, nats per target token", Scale::Linear, &|run| {
                run.loss_after
            }),
        ),
        (
            "gamma-accuracy",
            figure("SORSA's accuracy by gamma", "right answers, %", Scale::Linear, &|run| Some(100.0 * run.accuracy?)),
        ),
        ("gamma-defect", figure("Orthonormality defect by gamma", "‖UᵀU − I‖ / √rank", Scale::Log, &|run| run.defect)),
    ]
}
