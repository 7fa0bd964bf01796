//! Shows how training changed the weights: their singular values and vectors compared with those at the start, over the
//! checkpoints of one or several runs. `docs/analysis.md` explains every measure.

mod figures;
mod html;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

/// One number about one weight at one checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// `mean_i |sigma_i(W_t) - sigma_i(W_0)|`.
    DSigma,
    /// `1 - 1/2 mean_i (|<u_i, u_i0>| + |<v_i, v_i0>|)`.
    DD,
    /// The same under the best one-to-one matching.
    DDMatched,
    /// `sigma_1 / sigma_k` of the merged weight.
    Kappa,
    /// `sigma_1 / sigma_r` of the trained part.
    KappaPart,
    /// Effective rank of the merged weight.
    EffectiveRank,
    /// Effective rank of the trained part.
    EffectiveRankPart,
    /// `||U_p^T U_p - I||_F / sqrt(r)`.
    DefectU,
    /// `||V_p^T V_p - I||_F / sqrt(r)`.
    DefectV,
    /// Mean principal angle between the leading left subspaces of `W_t` and `W_0`, in degrees.
    AngleU,
    /// The same of the right subspaces.
    AngleV,
    /// Largest of the left angles.
    LargestAngleU,
    /// Largest of the right angles.
    LargestAngleV,
    /// Mean principal angle between the column space of the trained `A` and that of its start, in degrees.
    TrainedAngleU,
    /// The same of the rows of `B`.
    TrainedAngleV,
}

impl Measure {
    /// Every measure, in the order of tables.
    pub const ALL: [Self; 15] = [
        Self::DSigma,
        Self::DD,
        Self::DDMatched,
        Self::Kappa,
        Self::KappaPart,
        Self::EffectiveRank,
        Self::EffectiveRankPart,
        Self::DefectU,
        Self::DefectV,
        Self::AngleU,
        Self::AngleV,
        Self::LargestAngleU,
        Self::LargestAngleV,
        Self::TrainedAngleU,
        Self::TrainedAngleV,
    ];

    /// Its name in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::DSigma => "d_sigma",
            Self::DD => "d_d",
            Self::DDMatched => "d_d_matched",
            Self::Kappa => "kappa",
            Self::KappaPart => "kappa_part",
            Self::EffectiveRank => "effective_rank",
            Self::EffectiveRankPart => "effective_rank_part",
            Self::DefectU => "defect_u",
            Self::DefectV => "defect_v",
            Self::AngleU => "angle_u",
            Self::AngleV => "angle_v",
            Self::LargestAngleU => "largest_angle_u",
            Self::LargestAngleV => "largest_angle_v",
            Self::TrainedAngleU => "trained_angle_u",
            Self::TrainedAngleV => "trained_angle_v",
        }
    }

    /// The mean of ratios is geometric: in an arithmetic mean, one nearly singular weight would hide all others.
    fn is_ratio(self) -> bool {
        matches!(self, Self::Kappa | Self::KappaPart)
    }
}

/// A value for each measure that the method has; those it lacks are absent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measures {
    values: [Option<f64>; Measure::ALL.len()],
}

impl Measures {
    /// The value of a measure.
    pub fn get(&self, measure: Measure) -> Option<f64> {
        self.values[measure as usize]
    }

    /// Sets the value of a measure.
    pub fn set(&mut self, measure: Measure, value: f64) {
        self.values[measure as usize] = Some(value);
    }

    /// The mean of each measure over those that have it, the geometric one for condition numbers.
    pub fn mean<'a>(all: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let mut mean = Self::default();
        for measure in Measure::ALL {
            let values: Vec<f64> = all.clone().filter_map(|measures| measures.get(measure)).collect();
            if values.is_empty() {
                continue;
            }
            let average = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
            mean.set(
                measure,
                match measure.is_ratio() {
                    true => average(&values.iter().map(|value| value.ln()).collect::<Vec<_>>()).exp(),
                    false => average(&values),
                },
            );
        }
        mean
    }

    fn json(&self) -> Map<String, Value> {
        let field = |measure: Measure| Some((measure.name().to_owned(), self.get(measure)?.into()));
        Measure::ALL.into_iter().filter_map(field).collect()
    }
}

impl Serialize for Measures {
    /// An object of the measures that there are; infinite ones are null.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

/// The weights of a model at one checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointAnalysis {
    /// Optimizer steps done.
    pub step: u64,
    /// Each module's path and measures.
    pub modules: Vec<(String, Measures)>,
}

/// The singular values of one weight, descending.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spectrum {
    /// The module's path.
    pub module: String,
    /// Of the starting weight.
    pub before: Vec<f64>,
    /// Of the merged weight at the last checkpoint.
    pub after: Vec<f64>,
}

/// Measures of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunAnalysis {
    /// Its name in legends and tables, such as `SORSA, gamma 4e-4`.
    pub name: String,
    /// Its folder.
    pub folder: String,
    /// The base model.
    pub model: String,
    /// The method.
    pub method: String,
    /// Its checkpoints, steps ascending.
    pub checkpoints: Vec<CheckpointAnalysis>,
    /// One for each module, in the same order.
    pub spectra: Vec<Spectrum>,
}

/// Several runs side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Analysis {
    /// Which triplets dSigma and dD are over: `all`, or `r` for as many as the rank.
    pub triplets: String,
    /// The runs.
    pub runs: Vec<RunAnalysis>,
}

impl CheckpointAnalysis {
    /// The averages over the modules.
    pub fn mean(&self) -> Measures {
        Measures::mean(self.modules.iter().map(|(_, measures)| measures))
    }
}

impl Analysis {
    /// Everything as one JSON document.
    pub fn json(&self) -> Value {
        let module = |(path, measures): &(String, Measures)| {
            let mut fields = Map::from_iter([("module".to_owned(), path.clone().into())]);
            fields.extend(measures.json());
            Value::Object(fields)
        };
        let checkpoint = |checkpoint: &CheckpointAnalysis| {
            json!({
                "step": checkpoint.step,
                "mean": checkpoint.mean(),
                "modules": checkpoint.modules.iter().map(module).collect::<Vec<_>>(),
            })
        };
        let run = |run: &RunAnalysis| {
            json!({
                "name": run.name,
                "run": run.folder,
                "model": run.model,
                "method": run.method,
                "checkpoints": run.checkpoints.iter().map(checkpoint).collect::<Vec<_>>(),
                "spectra": run.spectra,
            })
        };
        json!({ "triplets": self.triplets, "runs": self.runs.iter().map(run).collect::<Vec<_>>() })
    }

    /// The averages of each run and checkpoint as one JSON document.
    pub fn averages_json(&self) -> Value {
        let run = |run: &RunAnalysis| {
            let checkpoint = |c: &CheckpointAnalysis| json!({ "step": c.step, "mean": c.mean() });
            let checkpoints: Vec<_> = run.checkpoints.iter().map(checkpoint).collect();
            json!({ "name": run.name, "run": run.folder, "method": run.method, "checkpoints": checkpoints })
        };
        json!({ "triplets": self.triplets, "runs": self.runs.iter().map(run).collect::<Vec<_>>() })
    }

    /// The averages: a head, and a row for each run and checkpoint.
    pub fn averages(&self) -> Vec<Vec<String>> {
        let measures: Vec<_> = Measure::ALL.into_iter().filter(|measure| self.has(*measure)).collect();
        let head = ["run", "step"].into_iter().chain(measures.iter().map(|measure| measure.name()));
        let mut rows = vec![head.map(str::to_owned).collect()];
        for (run, checkpoint) in self.checkpoints() {
            let mean = checkpoint.mean();
            let mut row = vec![run.name.clone(), checkpoint.step.to_string()];
            row.extend(measures.iter().map(|measure| mean.get(*measure).map_or_else(|| "-".to_owned(), short)));
            rows.push(row);
        }
        rows
    }

    /// A head, and a row for each run, checkpoint and module, with all digits; empty if a method lacks a measure.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let head = ["run", "folder", "method", "step", "module"].into_iter();
        let mut rows = vec![head.chain(Measure::ALL.map(Measure::name)).map(str::to_owned).collect()];
        for (run, checkpoint) in self.checkpoints() {
            for (module, measures) in &checkpoint.modules {
                let step = checkpoint.step.to_string();
                let mut row = vec![run.name.clone(), run.folder.clone(), run.method.clone(), step, module.clone()];
                let value = |measure| measures.get(measure).map_or_else(String::new, |value| value.to_string());
                row.extend(Measure::ALL.map(value));
                rows.push(row);
            }
        }
        rows
    }

    fn checkpoints(&self) -> impl Iterator<Item = (&RunAnalysis, &CheckpointAnalysis)> {
        self.runs.iter().flat_map(|run| run.checkpoints.iter().map(move |checkpoint| (run, checkpoint)))
    }

    /// Whether any module of any run has a measure.
    fn has(&self, measure: Measure) -> bool {
        self.checkpoints().any(|(_, c)| c.modules.iter().any(|(_, measures)| measures.get(measure).is_some()))
    }
}

/// Four significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        magnitude if !magnitude.is_finite() => value.to_string(),
        magnitude if (1e-2..1e5).contains(&magnitude) => {
            let decimals = (3 - magnitude.log10().floor() as i32).max(0) as usize;
            format!("{value:.decimals$}")
        }
        _ => format!("{value:.3e}"),
    }
}

#[cfg(test)]
mod tests;
