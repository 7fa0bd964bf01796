//! The pictures of a comparison.

use std::collections::BTreeMap;

use sorsa_report::plot::{Axis, Figure, Marks, Point, Scale, Series};
use toml::Value;

use super::fields::{number_of, value_text};
use super::findings::{DEFECT, KAPPA_OF_THE_TRAINED_PART, KAPPA_OF_THE_WEIGHT, forgetting_label};
use super::results::{Comparison, SweepResult};
use super::row_result::RowResult;
use super::run_result::{RunResult, WatchPoint};

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
            KAPPA_OF_THE_TRAINED_PART,
            watched(comparison, "Condition number of the trained part", "kappa", |point| point.kappa_part),
        ),
        (KAPPA_OF_THE_WEIGHT, watched(comparison, "Condition number of the weight", "kappa", |point| point.kappa)),
        (DEFECT, watched(comparison, "Orthonormality defect", "‖UᵀU − I‖ / √rank", |point| point.defect)),
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
    figures.extend(comparison.texts.iter().map(|text| against_forgetting(comparison, text)));
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

/// What `train.watch_every` measured at each row's best rate: means over the seeds, with the smallest and the largest value.
fn watched(comparison: &Comparison, title: &str, label: &str, value: impl Fn(&WatchPoint) -> Option<f64>) -> Figure {
    let of = |row: &RowResult| {
        let runs: Vec<&RunResult> = row.runs.iter().filter_map(|name| comparison.run(name)).collect();
        let mut by_step: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for point in runs.iter().flat_map(|run| &run.watched) {
            by_step.entry(point.step).or_default().extend(value(point).filter(|value| value.is_finite()));
        }
        // A step that one seed did not measure has another mean.
        by_step.retain(|_, values| values.len() == runs.len());
        let points = by_step.into_iter().map(|(step, values)| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let ends = values.iter().fold((mean, mean), |(low, high), value| (low.min(*value), high.max(*value)));
            Point { x: step as f64, y: mean, interval: (values.len() > 1).then_some(ends) }
        });
        Series::new(&row.name, Marks::Line, points)
    };
    Figure {
        title: format!("{title}: means over seeds, with the smallest and the largest"),
        x: Axis::new("optimizer step", Scale::Linear),
        y: Axis::new(label, Scale::Log),
        series: comparison.rows.iter().map(of).filter(|series| !series.points.is_empty()).collect(),
    }
}

/// Accuracy, or the validation loss if there is none, over the forgetting of a text. A line joins the rows that no other row beats in both.
fn against_forgetting(comparison: &Comparison, text: &str) -> NamedFigure {
    let label = forgetting_label(text, comparison.texts.len());
    let has_accuracy = comparison.rows.iter().any(|row| row.accuracy.is_some());
    let quality = |row: &RowResult| match has_accuracy {
        true => Some((
            100.0 * row.accuracy?.mean,
            Some((100.0 * row.accuracy?.interval.low, 100.0 * row.accuracy?.interval.high)),
        )),
        false => Some((row.loss?.mean, row.loss?.interval.map(|interval| (interval.low, interval.high)))),
    };
    let mut series = Vec::new();
    let mut places = Vec::new();
    for row in &comparison.rows {
        if let (Some((y, interval)), Some(forgetting)) = (quality(row), row.forgetting.get(text)) {
            places.push((forgetting.mean, y));
            series.push(Series {
                name: row.name.clone(),
                marks: Marks::Scatter,
                points: vec![Point { x: forgetting.mean, y, interval }],
            });
        }
    }
    series.push(Series::new("not beaten in both", Marks::Line, frontier(places, has_accuracy)));
    let (title, y) = match has_accuracy {
        true => (format!("Accuracy and {label}"), "right answers, %"),
        false => (format!("Validation loss and {label}"), "validation loss, nats per target token"),
    };
    NamedFigure {
        name: if comparison.texts.len() == 1 { "frontier".to_owned() } else { format!("frontier-{text}") },
        figure: Figure {
            title,
            x: Axis::new(format!("{label}, nats per token"), Scale::Linear),
            y: Axis::new(y, Scale::Linear),
            series,
        },
    }
}

/// The points, by x ascending, of which no other has a smaller x and a better y.
fn frontier(mut points: Vec<(f64, f64)>, larger_is_better: bool) -> Vec<(f64, f64)> {
    let ascending = |a: f64, b: f64| if larger_is_better { b.total_cmp(&a) } else { a.total_cmp(&b) };
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(ascending(a.1, b.1)));
    let mut frontier: Vec<(f64, f64)> = Vec::new();
    for point in points {
        let better = |(_, before): &(f64, f64)| if larger_is_better { point.1 > *before } else { point.1 < *before };
        if frontier.last().is_none_or(better) {
            frontier.push(point);
        }
    }
    frontier
}

/// Loss, accuracy, defect and forgetting by the swept value. The axis has categories: a value may be 0 or a name.
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
    let mut figures = vec![
        figure("loss", "Validation loss", "validation loss, nats per target token", Scale::Linear, &|run| {
            run.loss_after
        }),
        figure("accuracy", "Accuracy", "right answers, %", Scale::Linear, &|run| Some(100.0 * run.accuracy?)),
        figure("defect", "Orthonormality defect", "‖UᵀU − I‖ / √rank", Scale::Log, &|run| run.defect),
    ];
    if let [text] = &comparison.texts[..] {
        let forgetting = |run: &RunResult| run.forgetting(text, &comparison.base);
        figures.push(figure("forgetting", "Forgetting", "nats per token", Scale::Linear, &forgetting));
    } else {
        for text in &comparison.texts {
            let forgetting = |run: &RunResult| run.forgetting(text, &comparison.base);
            let title = format!("Forgetting of {text}");
            figures.push(figure(&format!("forgetting-{text}"), &title, "nats per token", Scale::Linear, &forgetting));
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frontier_has_the_points_that_no_other_beats_in_both() {
        let points = vec![(0.3, 80.0), (0.1, 60.0), (0.2, 55.0), (0.4, 79.0), (0.1, 50.0)];
        assert_eq!(frontier(points.clone(), true), [(0.1, 60.0), (0.3, 80.0)]);
        assert_eq!(frontier(points, false), [(0.1, 50.0)]);
    }
}
