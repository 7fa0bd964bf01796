//! Learning curves as SVG.
//!
//! The pictures use `currentColor` for all but the curves, so that a page's own colours, light or dark, apply. Curves
//! differ in colour, dashes and markers: they can be told apart in print.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::EvalError;

/// Width and height of a figure, in pixels at its natural size.
const SIZE: (u32, u32) = (580, 290);

/// The looks of the curves of a figure, in order; after the last they repeat.
const LOOKS: [Look; 5] = [
    Look { color: RGBColor(0x2f, 0x74, 0xc9), dashes: None },
    Look { color: RGBColor(0xd9, 0x6d, 0x12), dashes: Some("7 4") },
    Look { color: RGBColor(0x1f, 0x95, 0x6a), dashes: Some("2 3") },
    Look { color: RGBColor(0xb0, 0x4a, 0xa8), dashes: Some("10 3 2 3") },
    Look { color: RGBColor(0x8a, 0x7a, 0x1c), dashes: Some("4 2") },
];

struct Look {
    color: RGBColor,
    dashes: Option<&'static str>,
}

/// One line of a figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// `(x, y)`, x ascending. Points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// Curves over a common axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What is shown; the caption is the page's to set.
    pub title: String,
    /// The horizontal axis, with its unit.
    pub x_label: String,
    /// The vertical axis, with its unit.
    pub y_label: String,
    /// Whether the vertical axis starts at 0, as that of a quantity should whose ratios are to be read.
    pub from_zero: bool,
    /// The curves. A legend appears where there are two or more.
    pub curves: Vec<Curve>,
}

/// What a training run measured, each as `(optimizer step, value)`. An empty list has no figure.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrainingCurves {
    /// Loss of the training batches, in nats per target token.
    pub train_loss: Vec<(f64, f64)>,
    /// Loss on held-out data, in nats per target token.
    pub eval_loss: Vec<(f64, f64)>,
    /// The learning rate.
    pub learning_rate: Vec<(f64, f64)>,
    /// Global norm of the gradient before clipping.
    pub grad_norm: Vec<(f64, f64)>,
    /// Orthonormality defect, `||U^T U - I||_F / sqrt(rank)`.
    pub defect: Vec<(f64, f64)>,
    /// Tokens per second.
    pub tokens_per_s: Vec<(f64, f64)>,
}

impl TrainingCurves {
    /// The figures of those measures that were taken.
    pub fn figures(&self) -> Vec<Figure> {
        let figure = |title: &str, y_label: &str, from_zero: bool, curves: &[(&str, &Vec<(f64, f64)>)]| Figure {
            title: title.to_owned(),
            x_label: "optimizer step".to_owned(),
            y_label: y_label.to_owned(),
            from_zero,
            curves: curves
                .iter()
                .filter(|(_, points)| points.iter().any(is_finite))
                .map(|(name, points)| Curve { name: (*name).to_owned(), points: (*points).clone() })
                .collect(),
        };
        let single = |title, y_label, points| figure(title, y_label, true, &[(title, points)]);
        [
            figure(
                "Loss",
                "nats per target token",
                false,
                &[("training", &self.train_loss), ("held out", &self.eval_loss)],
            ),
            single("Learning rate", "learning rate", &self.learning_rate),
            single("Gradient norm", "norm before clipping", &self.grad_norm),
            single("Orthonormality defect", "‖UᵀU − I‖ / √rank", &self.defect),
            single("Throughput", "tokens per second", &self.tokens_per_s),
        ]
        .into_iter()
        .filter(|figure| !figure.curves.is_empty())
        .collect()
    }
}

impl Figure {
    /// The figure as an `<svg>` element, which scales to the width it is given.
    ///
    /// # Errors
    /// [`EvalError::EmptyFigure`] without a finite point, [`EvalError::Draw`] if the drawing library fails.
    pub fn svg(&self) -> Result<String, EvalError> {
        let points = || self.curves.iter().flat_map(|curve| &curve.points).filter(|point| is_finite(point));
        let x = range(points().map(|point| point.0), 0.0);
        let zero = self.from_zero.then_some(0.0);
        let y = range(zero.into_iter().chain(points().map(|point| point.1)), 0.06);
        let (Some(x), Some(y)) = (x, y) else {
            return Err(EvalError::EmptyFigure { title: self.title.clone() });
        };
        let mut svg = String::new();
        self.draw(&SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(), x, y)
            .map_err(|error| EvalError::Draw { title: self.title.clone(), reason: error.to_string() })?;
        Ok(themed(&svg))
    }

    fn draw<DB: DrawingBackend>(
        &self,
        area: &DrawingArea<DB, Shift>,
        x: (f64, f64),
        y: (f64, f64),
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let text = ("sans-serif", 14).into_font().color(&BLACK);
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_right(18)
            .x_label_area_size(42)
            .y_label_area_size(72)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(BLACK.mix(0.12))
            .light_line_style(TRANSPARENT)
            .axis_style(BLACK.mix(0.45))
            .x_labels(8)
            .y_labels(8)
            .x_label_formatter(&|value| tick(*value))
            .y_label_formatter(&|value| tick(*value))
            .label_style(text.clone())
            .axis_desc_style(text.clone())
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .draw()?;
        let several = self.curves.len() > 1;
        for (index, (curve, look)) in self.curves.iter().zip(LOOKS.iter().cycle()).enumerate() {
            let points = thin(&curve.points);
            let line = look.color.stroke_width(2);
            let series = chart.draw_series(LineSeries::new(points.iter().copied(), line))?;
            if several {
                // On a long, noisy curve markers would look like outliers.
                let size = if points.len() > 200 { 0 } else { 3 };
                series.label(&curve.name).legend(move |(x, y)| {
                    let line = PathElement::new([(x, y), (x + 26, y)], line);
                    EmptyElement::at((0, 0)) + line + marker(index, size, (x + 13, y), look.color)
                });
                let marked = points.iter().step_by(points.len().div_ceil(12).max(1)).filter(|_| size > 0);
                chart.draw_series(
                    marked.map(|&point| EmptyElement::at(point) + marker(index, size, (0, 0), look.color)),
                )?;
            }
        }
        if several {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .legend_area_size(34)
                .label_font(text)
                .draw()?;
        }
        area.present()
    }
}

/// A filled mark that reaches `size` pixels around its centre, a shape of its own for each curve.
fn marker<DB: DrawingBackend>(
    index: usize,
    size: i32,
    (x, y): (i32, i32),
    color: RGBColor,
) -> DynElement<'static, DB, (i32, i32)> {
    match index % 3 {
        0 => Circle::new((x, y), size, color.filled()).into_dyn(),
        1 => Rectangle::new([(x - size, y - size), (x + size, y + size)], color.filled()).into_dyn(),
        _ => Polygon::new(vec![(x - size, y + size), (x + size, y + size), (x, y - size)], color).into_dyn(),
    }
}

/// Replaces the library's fixed colours: black by the page's text colour, and each curve's stroke by its dashed form.
fn themed(svg: &str) -> String {
    let size = format!(r#"width="{}" height="{}""#, SIZE.0, SIZE.1);
    let mut svg = svg.replacen(&size, r#"role="img""#, 1).replace("#000000", "currentColor");
    // Only the curves are 2 wide, since the library knows whole widths only.
    svg = svg.replace(r#"stroke-width="2""#, r#"stroke-width="1.5""#);
    for Look { color: RGBColor(r, g, b), dashes } in LOOKS {
        if let Some(dashes) = dashes {
            let stroke = format!(r##"stroke="#{r:02X}{g:02X}{b:02X}""##);
            svg = svg.replace(&stroke, &format!(r#"{stroke} stroke-dasharray="{dashes}""#));
        }
    }
    svg
}

fn is_finite((x, y): &(f64, f64)) -> bool {
    x.is_finite() && y.is_finite()
}

/// The span of some values, widened on both sides by a share of it; one value alone gets a span around it.
fn range(values: impl Iterator<Item = f64>, margin: f64) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let pad = if low < high { (high - low) * margin } else { (0.5 * low.abs()).max(f64::MIN_POSITIVE.sqrt()) };
    (low <= high).then_some((low - pad, high + pad))
}

/// At most two points a bucket, its lowest and highest, so that a long run stays a small picture without losing a spike.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    const BUCKETS: usize = 400;
    let finite: Vec<_> = points.iter().copied().filter(is_finite).collect();
    if finite.len() <= 2 * BUCKETS {
        return finite;
    }
    let mut kept = Vec::with_capacity(2 * BUCKETS);
    for bucket in finite.chunks(finite.len().div_ceil(BUCKETS)) {
        let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let mut ends: Vec<_> =
            bucket.iter().min_by(by_y).into_iter().chain(bucket.iter().max_by(by_y)).copied().collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        ends.dedup();
        kept.extend(ends);
    }
    kept
}

/// A short label for a value of an axis.
fn tick(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-3..1e5).contains(&magnitude) {
        let (mantissa, exponent) =
            format!("{value:.2e}").split_once('e').map(|(m, e)| (m.to_owned(), e.to_owned())).unwrap_or_default();
        return format!("{}e{exponent}", mantissa.trim_end_matches('0').trim_end_matches('.'));
    }
    let fixed = format!("{value:.4}");
    fixed.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(curves: &[&[(f64, f64)]]) -> Figure {
        Figure {
            title: "Loss".to_owned(),
            x_label: "optimizer step".to_owned(),
            y_label: "nats per target token".to_owned(),
            from_zero: false,
            curves: (1..)
                .zip(curves)
                .map(|(n, points)| Curve { name: format!("<{n}>"), points: points.to_vec() })
                .collect(),
        }
    }

    #[test]
    fn axes_are_labelled_and_curves_differ_without_colour() {
        let line: &[_] = &[(0.0, 3.0), (10.0, 2.0), (20.0, 1.5)];
        let svg = figure(&[line, line, line]).svg().unwrap();
        for part in ["optimizer step", "nats per target token", "&lt;1&gt;", "currentColor"] {
            assert!(svg.contains(part), "{part} is missing from {svg}");
        }
        assert!(svg.contains(r#"stroke-dasharray="7 4""#) && svg.contains(r#"stroke-dasharray="2 3""#));
        assert!(!svg.contains("#000000") && !svg.contains("#FFFFFF"), "fixed black or white");
        assert!(svg.contains("viewBox") && !svg.contains("width=\"580\""), "the picture scales");
    }

    #[test]
    fn a_single_curve_needs_no_legend() {
        let svg = figure(&[&[(0.0, 1.0), (1.0, 2.0)]]).svg().unwrap();
        assert!(!svg.contains("&lt;1&gt;") && !svg.contains("<circle"), "{svg}");
    }

    #[test]
    fn points_that_are_not_finite_are_left_out() {
        let svg = figure(&[&[(0.0, f64::NAN), (1.0, 1.0), (2.0, f64::INFINITY), (3.0, 2.0)]]).svg().unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let error = figure(&[&[(0.0, f64::NAN)]]).svg().unwrap_err();
        assert_eq!(error.to_string(), "figure `Loss` has no finite point");
    }

    #[test]
    fn constant_and_single_values_are_drawn() {
        for points in [&[(5.0, 0.0)][..], &[(0.0, 2.0), (9.0, 2.0)], &[(0.0, 1e-300), (1.0, -1e-300)]] {
            figure(&[points]).svg().unwrap();
        }
    }

    #[test]
    fn thinning_keeps_every_spike() {
        let mut points: Vec<_> = (0..100_000).map(|step| (f64::from(step), 1.0 + f64::from(step % 7) * 0.01)).collect();
        points[54_321].1 = 50.0;
        points[60_000].1 = -3.0;
        let kept = thin(&points);
        assert!(kept.len() <= 800, "{} points", kept.len());
        assert!(kept.contains(&(54_321.0, 50.0)) && kept.contains(&(60_000.0, -3.0)));
        assert!(kept.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn ticks_are_short() {
        for (value, label) in [
            (0.0, "0"),
            (3e-5, "3e-5"),
            (2.5e-4, "2.5e-4"),
            (0.05, "0.05"),
            (-1.5, "-1.5"),
            (1200.0, "1200"),
            (2e5, "2e5"),
        ] {
            assert_eq!(tick(value), label);
        }
    }

    #[test]
    fn measures_that_were_not_taken_have_no_figure() {
        let line = vec![(1.0, 2.0), (2.0, 1.0)];
        let curves = TrainingCurves { train_loss: line.clone(), grad_norm: line, ..Default::default() };
        let titles: Vec<_> = curves.figures().into_iter().map(|figure| (figure.title, figure.curves.len())).collect();
        assert_eq!(titles, [("Loss".to_owned(), 1), ("Gradient norm".to_owned(), 1)]);
    }
}
