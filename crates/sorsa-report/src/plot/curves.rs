//! The learning curves of a training run.

use super::{Axis, Figure, Marks, Point, Scale, Series};

/// Measurements of a training run, each as `(optimizer step, value)`. An empty list has no figure.
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
    /// A figure for each measure that has values.
    pub fn figures(&self) -> Vec<Figure> {
        let figure = |title: &str, y_label: &str, scale: Scale, curves: &[(&str, &Vec<(f64, f64)>)]| Figure {
            title: title.to_owned(),
            x: Axis::new("optimizer step", Scale::Linear),
            y: Axis::new(y_label, scale),
            series: curves
                .iter()
                .map(|(name, points)| Series::new(*name, Marks::Line, points.iter().copied().map(Point::from)))
                .filter(|series| series.points.iter().any(Point::is_finite))
                .collect(),
        };
        let single = |title, y_label, points| figure(title, y_label, Scale::FromZero, &[(title, points)]);
        [
            figure(
                "Loss",
                "nats per target token",
                Scale::Linear,
                &[("training", &self.train_loss), ("held out", &self.eval_loss)],
            ),
            single("Learning rate", "learning rate", &self.learning_rate),
            single("Gradient norm", "norm before clipping", &self.grad_norm),
            single("Orthonormality defect", "‖UᵀU − I‖ / √rank", &self.defect),
            single("Throughput", "tokens per second", &self.tokens_per_s),
        ]
        .into_iter()
        .filter(|figure| !figure.series.is_empty())
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_that_were_not_taken_have_no_figure() {
        let line = vec![(1.0, 2.0), (2.0, 1.0)];
        let curves = TrainingCurves { train_loss: line.clone(), grad_norm: line, ..Default::default() };
        let titles: Vec<_> = curves.figures().into_iter().map(|figure| (figure.title, figure.series.len())).collect();
        assert_eq!(titles, [("Loss".to_owned(), 1), ("Gradient norm".to_owned(), 1)]);
    }
}
