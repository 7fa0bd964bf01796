//! The learning curves of a run, from its log.

use sorsa_report::plot::TrainingCurves;
use sorsa_train::metrics::Metric;

/// The curves in the lines of `metrics.jsonl`.
pub fn training_curves(metrics: &[Metric]) -> TrainingCurves {
    let mut curves = TrainingCurves::default();
    for metric in metrics {
        match metric {
            Metric::Step(step) => {
                let at = step.step as f64;
                curves.train_loss.push((at, step.loss));
                curves.learning_rate.push((at, step.learning_rate));
                curves.grad_norm.push((at, step.grad_norm));
                curves.tokens_per_s.push((at, step.tokens_per_s));
                curves.defect.extend(step.defect.map(|defect| (at, defect)));
            }
            Metric::Eval(eval) => curves.eval_loss.push((eval.step as f64, eval.loss)),
            Metric::Watch(_) => {}
        }
    }
    curves
}
