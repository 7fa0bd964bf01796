//! The spectrum of an adapter's change, from its factors alone: no weight of the model is decomposed, and none is needed.

use std::path::Path;

use serde::Serialize;
use sorsa_adapter::peft::PeftAdapter;
use sorsa_adapter::{SavedAdapter, TrainedPart, WeightChange};
use sorsa_checkpoint::ModelSource;
use sorsa_linalg::spectral::{condition_number, effective_rank};

use crate::adapter::adapter_folder;
use crate::error::ExperimentError;

/// The spectra of an adapter by kind of module.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterSpectra {
    /// The adapter's folder.
    pub adapter: String,
    /// The method.
    pub method: String,
    /// By kind of module and part.
    pub kinds: Vec<KindSpectrum>,
    /// Each part of all modules together.
    pub all: Vec<KindSpectrum>,
}

/// The spectrum of modules together. Averages are arithmetic, of condition numbers geometric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KindSpectrum {
    /// Last component of the modules' paths, or `all`.
    pub name: String,
    /// `factors`: `scale A diag(s) B`; `change`: this minus what was subtracted from the weight at the start.
    pub part: &'static str,
    /// How many modules there are.
    pub modules: usize,
    /// Mean rank of the factors.
    pub rank: f64,
    /// `exp(-sum p ln p)` with `p = s / sum s` (Roy and Vetterli 2007).
    pub effective_rank: f64,
    /// `||D||_F^2 / s_1^2`.
    pub stable_rank: f64,
    /// `s_1 / s_r`; absent if a module has `s_r = 0`.
    pub kappa: Option<f64>,
    /// Root mean square of the Frobenius norms.
    pub norm: f64,
    /// `||D||_F / ||W||_F` of all modules, if the base is known.
    pub relative_norm: Option<f64>,
}

/// Sums over modules.
#[derive(Debug, Clone, Default)]
struct Sums {
    modules: usize,
    rank: f64,
    effective: f64,
    stable: f64,
    log_kappa: f64,
    squares: f64,
    base: Option<f64>,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.modules += other.modules;
        self.rank += other.rank;
        self.effective += other.effective;
        self.stable += other.stable;
        self.log_kappa += other.log_kappa;
        self.squares += other.squares;
        self.base = match (self.base, other.base) {
            (Some(own), Some(other)) => Some(own + other),
            (own, other) => own.or(other),
        };
    }

    fn row(&self, name: &str, part: &'static str) -> KindSpectrum {
        let mean = |sum: f64| sum / self.modules as f64;
        let kappa = mean(self.log_kappa).exp();
        KindSpectrum {
            name: name.to_owned(),
            part,
            modules: self.modules,
            rank: mean(self.rank),
            effective_rank: mean(self.effective),
            stable_rank: mean(self.stable),
            kappa: if kappa.is_finite() { Some(kappa) } else { None },
            norm: mean(self.squares).sqrt(),
            relative_norm: self.base.map(|base| (self.squares / base).sqrt()),
        }
    }
}

impl AdapterSpectra {
    /// Reads the adapter in `folder`, or in the run there, and measures it. With `base`, norms are compared with the weights'.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::NoAdapter`], [`ExperimentError::Adapter`]; [`ExperimentError::Difference`] of a method without factors, and
    /// of factors that are not finite.
    pub fn read(folder: &Path, base: Option<&ModelSource>) -> Result<Self, ExperimentError> {
        let folder = adapter_folder(folder)?;
        let (method, parts) = parts_of(&folder)?;
        let faulty = |faults: Vec<String>| ExperimentError::Difference { path: folder.clone(), faults };
        if parts.is_empty() {
            return Err(faulty(vec![format!("{method} has no factors to measure")]));
        }
        let mut kinds: Vec<(String, &'static str, Sums)> = Vec::new();
        let mut faults = Vec::new();
        for module in &parts {
            let squares = match base {
                Some(base) => Some(weight_squares(base, &module.path)?),
                None => None,
            };
            let since = module.since_start.as_ref().map(|change| ("change", change));
            for (part, change) in [("factors", &module.part)].into_iter().chain(since) {
                match measured(module, change, squares) {
                    Ok(sums) => {
                        let name = module.path.rsplit('.').next().unwrap_or(&module.path);
                        match kinds.iter_mut().find(|(known, own, _)| known == name && *own == part) {
                            Some((.., known)) => known.add(&sums),
                            None => kinds.push((name.to_owned(), part, sums)),
                        }
                    }
                    Err(fault) => faults.push(fault),
                }
            }
        }
        if !faults.is_empty() {
            return Err(faulty(faults));
        }
        let mut all: Vec<(&'static str, Sums)> = Vec::new();
        for (_, part, sums) in &kinds {
            match all.iter_mut().find(|(known, _)| known == part) {
                Some((_, known)) => known.add(sums),
                None => all.push((part, sums.clone())),
            }
        }
        Ok(Self {
            adapter: folder.display().to_string(),
            method,
            kinds: kinds.iter().map(|(name, part, sums)| sums.row(name, part)).collect(),
            all: all.iter().map(|(part, sums)| sums.row("all", part)).collect(),
        })
    }

    /// The table whose first row is its head.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let head =
            ["modules", "part", "count", "rank", "effective rank", "stable rank", "kappa", "norm", "of the base"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for kind in self.kinds.iter().chain(&self.all) {
            rows.push(vec![
                kind.name.clone(),
                kind.part.to_owned(),
                kind.modules.to_string(),
                format!("{:.4}", kind.rank).trim_end_matches('0').trim_end_matches('.').to_owned(),
                format!("{:.2}", kind.effective_rank),
                format!("{:.2}", kind.stable_rank),
                kind.kappa.map_or_else(|| "infinite".to_owned(), |kappa| format!("{kappa:.3e}")),
                format!("{:.4e}", kind.norm),
                kind.relative_norm.map_or_else(|| "-".to_owned(), |norm| format!("{norm:.3e}")),
            ]);
        }
        rows
    }
}

/// The method of an adapter by its name, and its trained parts.
fn parts_of(folder: &Path) -> Result<(String, Vec<TrainedPart>), ExperimentError> {
    if !PeftAdapter::is_in(folder) {
        let saved = SavedAdapter::load(folder)?;
        return Ok((saved.state.config.method().to_string(), saved.trained_parts()));
    }
    let peft = PeftAdapter::load(folder)?;
    let part = |(path, a, b, scale): (&str, &sorsa_files::HostTensor, &sorsa_files::HostTensor, f64)| TrainedPart {
        path: path.to_owned(),
        rank: a.shape[0],
        part: WeightChange::Product { a: a.transposed(), b: b.transposed() }.scaled(scale),
        since_start: None,
    };
    let misshapen: Vec<String> = peft
        .matrices()
        .filter(|(_, a, b, _)| a.shape.len() != 2 || b.shape.len() != 2 || a.shape[0] != b.shape[1])
        .map(|(path, a, b, _)| format!("`{path}` has factors {:?} and {:?}, not of one rank", a.shape, b.shape))
        .collect();
    if !misshapen.is_empty() {
        return Err(ExperimentError::Difference { path: folder.to_owned(), faults: misshapen });
    }
    Ok((peft.config.method().to_string(), peft.matrices().map(part).collect()))
}

fn measured(module: &TrainedPart, change: &WeightChange, base: Option<f64>) -> Result<Sums, String> {
    let s = change.singular_values(&module.path).map_err(|error| error.to_string())?;
    let squares: f64 = s.iter().map(|s| s * s).sum();
    let first = s.first().copied().unwrap_or(0.0);
    Ok(Sums {
        modules: 1,
        rank: match change {
            WeightChange::Product { a, .. } => a.shape[1] as f64,
            WeightChange::Dense(_) => change.largest_rank() as f64,
        },
        effective: effective_rank(&s),
        stable: if first > 0.0 { squares / (first * first) } else { 0.0 },
        log_kappa: condition_number(&s).ln(),
        squares,
        base,
    })
}

/// `||W||_F^2` of the weight at `path`.
fn weight_squares(base: &ModelSource, path: &str) -> Result<f64, ExperimentError> {
    let numbers = base.numbers::<f32>(&format!("{path}.weight"), false)?;
    Ok(numbers.values.iter().map(|value| f64::from(*value).powi(2)).sum())
}
