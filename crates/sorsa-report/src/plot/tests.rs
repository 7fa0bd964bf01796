use super::*;

fn figure(curves: &[&[(f64, f64)]]) -> Figure {
    Figure {
        title: "Loss".to_owned(),
        x: Axis::new("optimizer step", Scale::Linear),
        y: Axis::new("nats per target token", Scale::Linear),
        series: (1..)
            .zip(curves)
            .map(|(n, points)| Series::new(format!("<{n}>"), Marks::Line, points.iter().copied()))
            .collect(),
    }
}

/// Bars and points with intervals over categories, on a logarithmic axis.
fn comparison(marks: Marks) -> Figure {
    let point = |x: f64, y: f64| Point { x, y, interval: Some((y / 2.0, y * 2.0)) };
    Figure {
        title: "Comparison".to_owned(),
        x: Axis::new("method", Scale::Categories(["SORSA", "LoRA"].map(str::to_owned).to_vec())),
        y: Axis::new("share of right answers, %", if marks == Marks::Bars { Scale::Linear } else { Scale::Log }),
        series: ["before", "after"]
            .into_iter()
            .enumerate()
            .map(|(n, name)| Series::new(name, marks, (0..2).map(|at| point(f64::from(at), 1.0 + 30.0 * n as f64))))
            .collect(),
    }
}

/// The values of an attribute of all tags of a kind.
fn attributes(svg: &str, tag: &str, name: &str) -> Vec<f64> {
    svg.split(&format!("<{tag}"))
        .skip(1)
        .filter_map(|rest| {
            rest.split('>').next()?.split(&format!(" {name}=\"")).nth(1)?.split('"').next()?.parse().ok()
        })
        .collect()
}

#[test]
fn axes_are_labelled_and_curves_differ_without_colour() {
    let line: &[_] = &[(0.0, 3.0), (10.0, 2.0), (20.0, 1.5)];
    let svg = figure(&[line, line, line]).svg().unwrap();
    for part in ["optimizer step", "nats per target token", "&lt;1&gt;", "currentColor"] {
        assert!(svg.contains(part), "{part} is missing from {svg}");
    }
    assert!(svg.contains(r#"stroke-dasharray="28 16""#) && svg.contains(r#"stroke-dasharray="8 12""#));
    assert!(!svg.contains("#000000") && !svg.contains("#FFFFFF"), "fixed black or white");
    assert!(
        svg.contains("viewBox") && !svg.contains(" width=\"580\"") && !svg.contains(" width=\"2320\""),
        "it scales"
    );
}

#[test]
fn a_file_is_opaque_and_has_its_natural_size() {
    let svg = figure(&[&[(0.0, 1.0), (1.0, 2.0)]]).svg_file().unwrap();
    assert!(svg.contains(r##"<rect width="100%" height="100%" fill="#FFFFFF"/>"##));
    assert!(svg.contains(r#"width="580""#) && svg.contains("#000000") && !svg.contains("currentColor"));
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
fn a_logarithmic_axis_leaves_out_what_it_cannot_show() {
    let mut figure = figure(&[&[(0.0, 0.0), (1.0, 1e-4), (2.0, -1.0), (3.0, 1.0)]]);
    figure.y.scale = Scale::Log;
    figure.series[0].marks = Marks::Scatter;
    assert_eq!(figure.svg().unwrap().matches("<circle").count(), 2);
    figure.series[0].points.retain(|point| point.y <= 0.0);
    assert!(figure.svg().is_err() && figure.png().is_err());
}

#[test]
fn constant_and_single_values_are_drawn() {
    for points in [&[(5.0, 0.0)][..], &[(0.0, 2.0), (9.0, 2.0)], &[(0.0, 1e-300), (1.0, -1e-300)]] {
        figure(&[points]).svg().unwrap();
    }
}

#[test]
fn bars_start_at_zero_and_their_heights_are_as_their_values() {
    let mut figure = comparison(Marks::Bars);
    figure.series.truncate(1);
    figure.series[0].points = vec![(0.0, 10.0).into(), (1.0, 5.0).into()];
    let heights = attributes(&figure.svg().unwrap(), "rect", "height");
    assert_eq!(heights.len(), 2, "{heights:?}");
    assert!((heights[0] / heights[1] - 2.0).abs() < 0.01, "{heights:?}");
}

#[test]
fn series_over_categories_stand_side_by_side_with_their_intervals() {
    let svg = comparison(Marks::Scatter).svg().unwrap();
    // Discs are the first series; the last of each shape is in the legend.
    let [discs, squares] = [("circle", "cx"), ("rect", "x")].map(|(tag, name)| attributes(&svg, tag, name));
    assert_eq!([discs.len(), squares.len()], [3, 3]);
    let apart = |disc: &f64| squares[..2].iter().all(|square| (disc - square).abs() > 20.0);
    assert!(discs[..2].iter().all(apart), "{discs:?} {squares:?}");
    // An interval is a stem and two ends.
    assert_eq!(svg.matches(r#"stroke-width="5""#).count(), 4 * 3);
}

#[test]
fn everything_stays_on_the_page() {
    let long = "a name that is much longer than what fits beside its neighbours in a legend of one row";
    for marks in [Marks::Line, Marks::Scatter, Marks::Bars] {
        let mut figure = comparison(marks);
        figure.x.scale = Scale::Categories((0..14).map(|n| format!("category-{n}")).collect());
        for series in &mut figure.series {
            series.name = long.to_owned();
        }
        let layout = figure.layout().unwrap();
        let (width, height) = layout.size();
        let svg = figure.svg().unwrap();
        for (tag, name, end) in
            [("text", "x", width), ("text", "y", height), ("circle", "cx", width), ("rect", "y", height)]
        {
            for value in attributes(&svg, tag, name) {
                assert!((0.0..=f64::from(UNIT * end)).contains(&value), "{tag} at {name} = {value}");
            }
        }
    }
}

#[test]
fn pixels_show_the_series_on_white() {
    let figure = figure(&[&[(0.0, 1.0), (1.0, 1.0)]]);
    let (width, height) = figure.layout().unwrap().size();
    let file = figure.png().unwrap();
    let length = u32::from_be_bytes(file[33..37].try_into().unwrap()) as usize;
    let rows = miniz_oxide::inflate::decompress_to_vec_zlib(&file[41..41 + length]).unwrap();
    let row = 1 + 3 * (PNG_SCALE * width) as usize;
    assert_eq!(rows.len(), row * (PNG_SCALE * height) as usize);
    assert_eq!(rows[1..4], [255, 255, 255], "the corner is paper");
    let blue = [0x2f, 0x74, 0xc9];
    let drawn = rows.chunks(row).flat_map(|row| row[1..].chunks(3)).filter(|pixel| *pixel == blue).count();
    assert!(drawn > 1000, "a line across the plot has {drawn} pixels");
}
