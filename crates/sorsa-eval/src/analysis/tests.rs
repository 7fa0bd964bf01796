use sorsa_adapter::{HostTensor, Moment, TrainedFactors};

use super::*;

fn measures(d_sigma: f64, d_d: f64, kappa: f64) -> Measures {
    let mut measures = Measures::default();
    for (measure, value) in [(Measure::DSigma, d_sigma), (Measure::DD, d_d), (Measure::DDMatched, d_d / 2.0)] {
        measures.set(measure, value);
    }
    measures.set(Measure::Kappa, kappa);
    measures
}

fn run(name: &str) -> RunAnalysis {
    let checkpoint = |step: u64| {
        let at = step as f64;
        let modules = vec![
            ("layers.0.q_proj".to_owned(), measures(0.01 * at, 0.02 * at, 10.0)),
            ("layers.0.v_proj".to_owned(), measures(0.03 * at, 0.04 * at, 1000.0)),
        ];
        CheckpointAnalysis { step, modules }
    };
    let spectrum =
        |module: &str| Spectrum { module: module.to_owned(), before: vec![3.0, 2.0, 1.0], after: vec![3.5, 2.0, 0.5] };
    RunAnalysis {
        name: name.to_owned(),
        folder: "runs/<one>".to_owned(),
        model: "tiny".to_owned(),
        method: "sorsa".to_owned(),
        checkpoints: vec![checkpoint(1), checkpoint(2)],
        spectra: vec![spectrum("layers.0.q_proj"), spectrum("layers.0.v_proj")],
    }
}

fn analysis() -> Analysis {
    Analysis { triplets: "all".to_owned(), runs: vec![run("SORSA, gamma 4e-4"), run("<LoRA>")] }
}

#[test]
fn averages_are_arithmetic_and_of_condition_numbers_geometric() {
    let mean = run("x").checkpoints[0].mean();
    assert!((mean.get(Measure::DSigma).unwrap() - 0.02).abs() < 1e-12);
    assert!((mean.get(Measure::Kappa).unwrap() - 100.0).abs() < 1e-9);
    assert_eq!(mean.get(Measure::DefectU), None);
}

#[test]
fn the_scatter_has_a_point_for_every_weight_and_checkpoint_of_each_run() {
    let figures = analysis().figures();
    let names: Vec<_> = figures.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["drift", "drift-mean", "drift-matched", "spectra", "spectra-change", "kappa"]);
    let (_, drift) = &figures[0];
    assert_eq!(drift.series.iter().map(|series| series.points.len()).collect::<Vec<_>>(), [4, 4]);
    assert_eq!((drift.series[0].points[3].x, drift.series[0].points[3].y), (0.06, 0.08));
    // Runs of one model have one spectrum before.
    let spectra: Vec<_> = figures[3].1.series.iter().map(|series| series.name.as_str()).collect();
    assert_eq!(spectra, ["SORSA, gamma 4e-4", "<LoRA>", "before"]);
    let change: Vec<_> = figures[4].1.series[0].points.iter().map(|point| point.y).collect();
    assert_eq!(change, [0.5, 0.0, -0.5]);
    assert!(figures[3].1.title.contains("v_proj"), "the module that moved most");
}

#[test]
fn tables_hold_every_row_and_leave_out_what_no_run_has() {
    let analysis = analysis();
    let averages = analysis.averages();
    assert_eq!(averages[0], ["run", "step", "d_sigma", "d_d", "d_d_matched", "kappa"]);
    assert_eq!(averages[1], ["SORSA, gamma 4e-4", "1", "0.02000", "0.03000", "0.01500", "100.0"]);
    assert_eq!(averages.len(), 5);
    let rows = analysis.rows();
    assert_eq!(rows.len(), 1 + 2 * 2 * 2);
    assert!(rows.iter().all(|row| row.len() == 5 + Measure::ALL.len()));
    assert_eq!(analysis.json()["runs"][0]["checkpoints"][1]["modules"][1]["d_sigma"], 0.06);
}

#[test]
fn the_page_escapes_names_and_needs_nothing_beside_it() {
    let html = analysis().html().unwrap();
    assert!(html.contains("&lt;LoRA&gt;") && html.contains("runs/&lt;one&gt;") && !html.contains("<LoRA>"));
    assert!(!html.replace("http://www.w3.org/2000/svg", "").contains("http") && !html.contains("<script"));
}

/// A diagonal weight of 4 x 3 and factors that are its two leading triplets, `turn`ed and `scale`d.
fn part(scale: f32, turn: f32) -> TrainedFactors {
    let (sin, cos) = turn.sin_cos();
    TrainedFactors {
        // The first column turns from the first axis to the fourth, which the weight does not use.
        a: HostTensor::new([4, 2], vec![scale * cos, 0.0, 0.0, scale, 0.0, 0.0, scale * sin, 0.0]),
        s: Some(vec![8.0, 2.0]),
        b: HostTensor::new([2, 3], vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
        orthonormal: true,
    }
}

fn diagonal(values: [f32; 3]) -> HostTensor {
    let mut weight = HostTensor::new([4, 3], vec![0.0; 12]);
    (0..3).for_each(|i| weight.values[4 * i] = values[i]);
    weight
}

#[test]
fn a_weight_is_measured_as_the_equations_say() {
    let start = StartingWeight::new("w", &diagonal([8.0, 2.0, 1.0]), Some(&part(1.0, 0.0)), 2, None).unwrap();
    let moment = Moment { merged: diagonal([9.0, 2.0, 1.0]), factors: Some(part(1.5, 0.1)) };
    let Measured { measures, spectrum } = start.measure(&moment).unwrap();
    assert_eq!(spectrum.iter().map(|s| s.round()).collect::<Vec<_>>(), [9.0, 2.0, 1.0]);
    let defect = 1.25; // columns of length 1.5: 1.5^2 - 1
    for (measure, expected) in [
        (Measure::DSigma, 1.0 / 3.0),
        (Measure::DD, 0.0),
        (Measure::DDMatched, 0.0),
        (Measure::Kappa, 9.0),
        (Measure::KappaPart, 4.0),
        (Measure::DefectU, defect),
        (Measure::DefectV, 0.0),
        (Measure::AngleU, 0.0),
        (Measure::LargestAngleV, 0.0),
        (Measure::TrainedAngleU, 0.1f64.to_degrees() / 2.0),
        (Measure::TrainedAngleV, 0.0),
    ] {
        let found = measures.get(measure).unwrap();
        assert!((found - expected).abs() < 1e-5, "{}: {found}, expected {expected}", measure.name());
    }
}

#[test]
fn what_a_method_lacks_is_absent_and_not_zero() {
    let start = StartingWeight::new("w", &diagonal([8.0, 2.0, 1.0]), None, 2, Some(1)).unwrap();
    let dense = Moment { merged: diagonal([8.0, 4.0, 1.0]), factors: None };
    let measures = start.measure(&dense).unwrap().measures;
    assert_eq!(measures.get(Measure::DSigma), Some(0.0), "only the leading triplet counts");
    for measure in [Measure::KappaPart, Measure::EffectiveRankPart, Measure::DefectU, Measure::TrainedAngleU] {
        assert_eq!(measures.get(measure), None, "{}", measure.name());
    }
    let mut nothing = part(1.0, 0.0);
    nothing.s = Some(vec![0.0, 0.0]);
    let untrained = Moment { factors: Some(nothing), ..dense };
    assert_eq!(start.measure(&untrained).unwrap().measures.get(Measure::KappaPart), None);
}
