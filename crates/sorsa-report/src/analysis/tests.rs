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
