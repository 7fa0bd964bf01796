//! The controller of the regularizer's weight: it drives the mean defect of the factors to a target.
//!
//! ```text
//! e = ln(defect / target)                                     of the step before
//! I <- I + 0.03 max(-ln 10, min(ln 10, e))                    within ln 1e-4 .. ln 1e4
//! gamma is multiplied by  exp(I + min(ln 10, e))
//! ```
//!
//! The proportional part alone, which builds before this one had, ends below its target if `gamma` is more than the task needs, and above it if
//! `gamma` is less: then the multiplier has to stay away from 1, and so has the defect from its target. The sum `I` of the errors takes
//! this over. It rests while the defect is below a tenth of the target and rises, as at the start: the proportional part alone frees the
//! factors then, and a sum of those errors would let the defect pass its target.

use serde::{Deserialize, Serialize};

/// The controller's state between two steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct GammaController {
    /// The multiplier of gamma in the next step; 0 before the first one.
    pub factor: f32,
    /// `I`, the sum of the errors.
    pub integral: f32,
}

/// The part of an error that joins the sum in each step.
const RATE: f64 = 0.03;
/// The least growth of the logarithm of the defect in a step that rises.
const RISING: f64 = 0.02;
/// The largest magnitude of the sum, `ln 1e4`.
const LARGEST_SUM: f64 = 9.210_340_371_976_182;

impl GammaController {
    /// The state after a step before whose update the defect was `defect`.
    pub fn after(self, defect: f64, target: f64) -> Self {
        let largest = std::f64::consts::LN_10;
        // A defect of 0 has no logarithm.
        let error = (defect.max(f64::MIN_POSITIVE) / target).ln();
        if !error.is_finite() {
            return self;
        }
        let mut integral = f64::from(self.integral);
        // Without the sum, the multiplier of this step is the error of the step before.
        let before = f64::from(self.factor).ln() - integral;
        if error > -largest || error < before + RISING {
            integral = (integral + RATE * error.clamp(-largest, largest)).clamp(-LARGEST_SUM, LARGEST_SUM);
        }
        let factor = (integral + error.min(largest)).exp();
        Self { factor: factor as f32, integral: integral as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A defect that the task raises by `pull` a step and that the regularizer lowers by its weight, as in the paper's form: both regardless
    /// of the defect's size.
    fn end(pull: f64, gamma: f64, target: f64) -> f64 {
        let (mut defect, mut controller) = (1e-6f64, GammaController::default());
        let mut last = Vec::new();
        for step in 0..600 {
            defect = (defect + pull - gamma * f64::from(controller.factor)).max(1e-6);
            controller = controller.after(defect, target);
            if step >= 400 {
                last.push(defect);
            }
        }
        last.iter().sum::<f64>() / last.len() as f64
    }

    #[test]
    fn the_defect_reaches_its_target_whatever_gamma_is() {
        for target in [1e-3, 1e-2, 0.1] {
            for share in [0.01, 0.1, 1.0, 10.0, 100.0] {
                let pull = target / 20.0;
                let found = end(pull, share * pull, target);
                assert!((0.8..1.25).contains(&(found / target)), "gamma {share}: {found}, target {target}");
            }
        }
    }

    #[test]
    fn the_sum_rests_while_the_defect_rises_to_a_tenth_of_the_target() {
        let mut fresh = GammaController::default();
        for defect in [1e-7, 1e-5, 9e-4] {
            fresh = fresh.after(defect, 1e-2);
            assert_eq!(fresh.integral, 0.0);
            assert!((f64::from(fresh.factor) / (defect / 1e-2) - 1.0).abs() < 1e-6);
        }
        let held = fresh.after(9e-4, 1e-2);
        assert!((f64::from(held.integral) + RATE * 10f64.ln()).abs() < 1e-6);
        let high = GammaController::default().after(1e9, 1e-2);
        assert!((high.factor - 10.0 * (RATE * 10f64.ln()).exp() as f32).abs() < 1e-4, "{high:?}");
    }
}
