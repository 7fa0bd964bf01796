//! The pictures of a comparison.

use sorsa_report::plot::{Axis, Figure, Marks, Point, Scale, Series};
use toml::Value;

use super::fields::{number_of, value_text};
use super::results::{Comparison, SweepResult};
use super::row_result::RowResult;
use super::run_result::RunResult;

/// A figure and the name of its files.
pub struct NamedFigure {
    pub name: String,
    pub figure: Figure,
}

/// All figures that have a value to show.
pub fn figures(comparison: &Comparison) -> Vec<NamedFigure> {
    let figures = vec![
        (
            "accuracy",
            by_row(comparison, "Accuracy, 95 % intervals", "right answers, %", Marks::Scatter, |row| {
                let rate = row.accuracy?;
                Some((100.0 * rate.mean, Some((100.0 * rate.interval.low, 100.0 * rate.interval.high))))
            }),
        ),
        (
            "loss",
            by_row(
                comparison,
                "Validation loss, 95 % intervals",
                "validation loss, nats per target token",
                Marks::Scatter,
                |row| {
                    let loss = row.loss?;
                    Some((loss.mean, loss.interval.map(|interval| (interval.low, interval.high))))
                },
            ),
        ),
        ("learning-rates", rates(comparison)),
        ("learning-curves", curves(comparison)),
        (
            "speed",
            by_row(comparison, "Training speed", "tokens per second", Marks::Bars, |row| {
                Some((row.tokens_per_s?.median, None))
            }),
        ),
        (
            "memory",
            by_row(comparison, "Peak memory of training", "peak memory, MB", Marks::Bars, |row| {
                Some((row.peak_memory_bytes? as f64 / 1e6, None))
            }),
        ),
    ];
    let mut figures: Vec<NamedFigure> =
        figures.into_iter().map(|(name, figure)| NamedFigure { name: name.to_owned(), figure }).collect();
    figures.extend(comparison.sweeps.iter().flat_map(|sweep| swept(comparison, sweep)));
    let has_value = |series: &Series| series.points.iter().any(Point::is_finite);
    figures.retain(|named| named.figure.series.iter().any(has_value));
    figures
}

/// One value for each row, with its interval.
fn by_row(
    comparison: &Comparison,
    title: &str,
    label: &str,
    marks: Marks,
    value: impl Fn(&RowResult) -> Option<(f64, Option<(f64, f64)>)>,
) -> Figure {
    let names = comparison.rows.iter().map(|row| row.name.clone()).collect();
    let points: Vec<Point> = comparison
        .rows
        .iter()
        .enumerate()
        .filter_map(|(index, row)| value(row).map(|(y, interval)| Point { x: index as f64, y, interval }))
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
    let series = comparison.rows.iter().map(|row| {
        let known = row.tried.iter().filter_map(|tried| Some((tried.learning_rate, tried.loss?)));
        Series::new(&row.name, Marks::Line, known)
    });
    Figure {
        title: "Validation loss by learning rate".to_owned(),
        x: Axis::new("peak learning rate", Scale::Log),
        y: Axis::new("validation loss, nats per target token", Scale::Linear),
        series: series.filter(|series| !series.points.is_empty()).collect(),
    }
}

/// Curves of the first seed of each row at its best rate. They begin with the first evaluation after the start: the loss at the start is
/// the same for all and would flatten the rest.
fn curves(comparison: &Comparison) -> Figure {
    let of = |row: &RowResult| {
        let run: &RunResult = comparison.runs.iter().find(|run| Some(&run.name) == row.runs.first())?;
        let points = run.curve.iter().filter(|point| point.step > 0).map(|point| (point.step as f64, point.loss));
        Some(Series::new(&row.name, Marks::Line, points))
    };
    Figure {
        title: "Validation loss of each method's best, first seed".to_owned(),
        x: Axis::new("optimizer step", Scale::Linear),
        y: Axis::new("validation loss, nats per target token", Scale::Log),
        series: comparison.rows.iter().filter_map(of).filter(|series| !series.points.is_empty()).collect(),
    }
}

/// Loss, accuracy and defect by the swept value. The axis has categories: a value may be 0 or a name.
fn swept(comparison: &Comparison, sweep: &SweepResult) -> Vec<NamedFigure> {
    let mut values: Vec<&Value> = Vec::new();
    for swept in sweep.rows.iter().flat_map(|row| &row.values) {
        if !values.contains(&&swept.value) {
            values.push(&swept.value);
        }
    }
    values.sort_by(|a, b| match (number_of(a), number_of(b)) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => std::cmp::Ordering::Equal,
    });
    let figure = |what: &str, title: &str, label: &str, scale: Scale, of: &dyn Fn(&RunResult) -> Option<f64>| {
        let series = sweep.rows.iter().map(|row| {
            let points = row.values.iter().filter_map(|swept| {
                let index = values.iter().position(|value| **value == swept.value)?;
                Some((index as f64, of(comparison.run(&swept.run)?)?))
            });
            Series::new(&row.method, Marks::Scatter, points)
        });
        NamedFigure {
            name: format!("{}-{what}", sweep.label),
            figure: Figure {
                title: format!("{title} by {}", sweep.label),
                x: Axis::new(&sweep.label, Scale::Categories(values.iter().map(|value| value_text(value)).collect())),
                y: Axis::new(label, scale),
                series: series.collect(),
            },
        }
    };
    vec![
        figure("loss", "Validation loss", "validation loss, nats per target token", Scale::Linear, &|run| {
            run.loss_after
        }),
        figure("accuracy", "Accuracy", "right answers, %", Scale::Linear, &|run| Some(100.0 * run.accuracy?)),
        figure("defect", "Orthonormality defect", "‖UᵀU − I‖ / √rank", Scale::Log, &|run| run.defect),
    ]
}
