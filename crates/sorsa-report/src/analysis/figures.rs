//! The pictures of an analysis.

use super::{Analysis, CheckpointAnalysis, Measure, Measures, RunAnalysis};
use crate::plot::{Axis, Figure, Marks, Scale, Series};

/// A figure and the name of its file.
pub(super) type Named = (&'static str, Figure);

impl Analysis {
    /// Every figure that there are values for, with the name of its file.
    pub fn figures(&self) -> Vec<(&'static str, Figure)> {
        let mut figures = vec![
            self.drift("drift", "ΔD against ΔΣ, each weight at each checkpoint", Measure::DD),
            self.mean_drift(),
            self.drift("drift-matched", "ΔD under the best matching against ΔΣ", Measure::DDMatched),
        ];
        figures.extend(self.spectra());
        for (name, title, label, scale, measures) in [
            (
                "defect",
                "Orthonormality defect of the trained factors",
                "mean of ‖UᵀU − I‖ / √r and ‖VᵀV − I‖ / √r",
                Scale::FromZero,
                &[Measure::DefectU, Measure::DefectV][..],
            ),
            (
                "kappa-part",
                "Condition number of the trained part",
                "σ₁ / σ of index r, geometric mean",
                Scale::Log,
                &[Measure::KappaPart],
            ),
            (
                "kappa",
                "Condition number of the merged weight",
                "largest σ / smallest σ, geometric mean",
                Scale::Log,
                &[Measure::Kappa],
            ),
            (
                "effective-rank",
                "Effective rank of the merged weight",
                "effective rank",
                Scale::Linear,
                &[Measure::EffectiveRank],
            ),
            (
                "angles",
                "Principal angles of the r leading singular subspaces against the start",
                "mean angle, degrees",
                Scale::FromZero,
                &[Measure::AngleU, Measure::AngleV],
            ),
        ] {
            figures.extend(self.over_steps(name, title, label, scale, measures));
        }
        figures
    }

    /// The paper's figure: a point for each module and checkpoint.
    fn drift(&self, name: &'static str, title: &str, directions: Measure) -> Named {
        let points = |run: &RunAnalysis| -> Vec<(f64, f64)> {
            let modules = run.checkpoints.iter().flat_map(|checkpoint| &checkpoint.modules);
            modules.filter_map(|(_, measures)| pair(measures, directions)).collect()
        };
        let series = self.runs.iter().map(|run| Series::new(&run.name, Marks::Scatter, points(run))).collect();
        (name, drift_figure(title, series))
    }

    /// The path of the averages over the checkpoints, from the start, which has not moved.
    fn mean_drift(&self) -> Named {
        let path = |run: &RunAnalysis| {
            let moved = run.checkpoints.iter().filter_map(|checkpoint| pair(&checkpoint.mean(), Measure::DD));
            std::iter::once((0.0, 0.0)).chain(moved).collect::<Vec<_>>()
        };
        let series = self.runs.iter().map(|run| Series::new(&run.name, Marks::Line, path(run))).collect();
        ("drift-mean", drift_figure("ΔD against ΔΣ, averages over the weights, checkpoint after checkpoint", series))
    }

    /// The spectrum of the module whose singular values moved most, before and after, of each run that has it,
    /// and its change, which is small next to it.
    fn spectra(&self) -> Vec<Named> {
        let last = |run: &RunAnalysis| run.checkpoints.last().cloned();
        let moved = self.runs.iter().filter_map(last).flat_map(|checkpoint| checkpoint.modules);
        let moved = moved.filter_map(|(module, measures)| Some((module, measures.get(Measure::DSigma)?)));
        let Some((module, _)) = moved.max_by(|a, b| a.1.total_cmp(&b.1)) else { return Vec::new() };
        let points = |values: &[f64]| (1..).map(f64::from).zip(values.iter().copied()).collect::<Vec<_>>();
        // The runs come first, so that each looks as in the other figures.
        let (mut after, mut before, mut changes) = (Vec::new(), Vec::<Series>::new(), Vec::new());
        for run in &self.runs {
            let Some(spectrum) = run.spectra.iter().find(|spectrum| spectrum.module == module) else { continue };
            let change: Vec<f64> =
                spectrum.after.iter().zip(&spectrum.before).map(|(after, before)| after - before).collect();
            changes.push(Series::new(&run.name, Marks::Line, points(&change)));
            after.push(Series::new(&run.name, Marks::Line, points(&spectrum.after)));
            let start = points(&spectrum.before);
            // Runs of one model start from one spectrum.
            if !before.iter().any(|series| series.points.iter().map(|p| (p.x, p.y)).eq(start.iter().copied())) {
                let name = if before.is_empty() { "before".to_owned() } else { format!("before, {}", run.name) };
                before.push(Series::new(name, Marks::Line, start));
            }
        }
        after.extend(before);
        let index = || Axis::new("index of the singular value", Scale::Linear);
        let mut figures = vec![(
            "spectra-change",
            Figure {
                title: format!("Change of the singular values of {module}"),
                x: index(),
                y: Axis::new("σ after − σ before", Scale::Linear),
                series: changes,
            },
        )];
        // A logarithmic axis has no place for zeros.
        if after.iter().any(|series| series.points.iter().any(|point| point.y > 0.0)) {
            let title = format!("Singular values of {module} before and after");
            let y = Axis::new("singular value", Scale::Log);
            figures.insert(0, ("spectra", Figure { title, x: index(), y, series: after }));
        }
        figures
    }

    /// The mean of some measures over the steps; none if no run has them.
    fn over_steps(
        &self,
        name: &'static str,
        title: &str,
        label: &str,
        scale: Scale,
        measures: &[Measure],
    ) -> Option<Named> {
        let value = |checkpoint: &CheckpointAnalysis| {
            let mean = checkpoint.mean();
            let values: Option<Vec<f64>> = measures.iter().map(|measure| mean.get(*measure)).collect();
            Some(values?.iter().sum::<f64>() / measures.len() as f64)
        };
        let points = |run: &RunAnalysis| -> Vec<(f64, f64)> {
            let points = run.checkpoints.iter().filter_map(|c| Some((c.step as f64, value(c)?)));
            points.filter(|(_, value)| value.is_finite()).collect()
        };
        let series = self.runs.iter().map(|run| Series::new(&run.name, Marks::Line, points(run)));
        let series: Vec<_> = series.filter(|series| !series.points.is_empty()).collect();
        let (x, y) = (Axis::new("optimizer step", Scale::Linear), Axis::new(label, scale));
        (!series.is_empty()).then(|| (name, Figure { title: title.to_owned(), x, y, series }))
    }
}

fn pair(measures: &Measures, directions: Measure) -> Option<(f64, f64)> {
    measures.get(Measure::DSigma).zip(measures.get(directions))
}

fn drift_figure(title: &str, series: Vec<Series>) -> Figure {
    Figure {
        title: title.to_owned(),
        x: Axis::new("ΔΣ, mean change of a singular value, in units of the weight", Scale::FromZero),
        y: Axis::new("ΔD, mean turn of a direction (0 to 1)", Scale::FromZero),
        series,
    }
}
