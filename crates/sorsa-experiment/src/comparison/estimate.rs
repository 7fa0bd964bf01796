//! The size of a planned comparison: runs, and a rough time.

use super::plan::ComparisonPlan;

/// Training speed of the embedded model: 20,000 tokens per second for 836,736 parameters on two cores; see
/// docs/performance.md.
const EMBEDDED_TOKENS_PER_S: f64 = 20_000.0;
const EMBEDDED_PARAMETERS: f64 = 836_736.0;
const EMBEDDED_CORES: f64 = 2.0;
/// Factor for evaluations, starts and tests: they take a third of the training time.
const BESIDE_TRAINING: f64 = 1.33;

impl ComparisonPlan {
    /// Number of runs, if no grid is extended: one for each rate, the other seeds at the best rates, one for each value of a sweep that
    /// differs from the row's own, and one for each seed on a second task.
    pub fn run_count(&self) -> usize {
        let rates: usize = self.grids.iter().map(|grid| grid.size()).sum();
        let then = if self.then.is_some() { self.rows.len() * self.seeds.len() } else { 0 };
        rates + self.rows.len() * (self.seeds.len() - 1) + self.swept_count() + then
    }

    /// Number of runs of sweeps that differ from their row's own.
    pub(super) fn swept_count(&self) -> usize {
        let mut swept = 0;
        for planned in &self.sweeps {
            for &row in &planned.rows {
                swept += planned.fields().iter().filter(|field| self.is_new(row, field)).count();
            }
        }
        swept
    }

    /// A rough estimate, from the speed of the embedded model, the parameters and the cores.
    pub fn estimated_seconds(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let speed = EMBEDDED_TOKENS_PER_S * (cores / EMBEDDED_CORES) * (EMBEDDED_PARAMETERS / self.parameters as f64);
        let tokens = self.run_count() as f64 * self.steps as f64 * self.tokens_per_step();
        BESIDE_TRAINING * tokens / speed
    }

    /// The plan in one line.
    pub fn summary(&self) -> String {
        let mut parts = vec![
            format!("{} methods", self.rows.len()),
            format!("{} rates", self.grids.iter().map(|grid| grid.size()).sum::<usize>()),
            format!("{} seeds", self.seeds.len()),
        ];
        for planned in &self.sweeps {
            parts.push(format!("{} {}", planned.rows.len() * planned.sweep.values.len(), planned.sweep.plural()));
        }
        format!(
            "{} runs of {} steps ({:.0} tokens each step): {}; grids may grow by {}; {} test problems; very roughly {:.1} minutes \
             on the CPU",
            self.run_count(),
            self.steps,
            self.tokens_per_step(),
            parts.join(", "),
            self.extend,
            self.problems,
            self.estimated_seconds() / 60.0
        )
    }
}
