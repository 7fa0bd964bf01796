//! Measures of a model while it trains: how well its trained parts and its weights are conditioned, and how far its factors are from
//! orthonormal.

use std::collections::{BTreeMap, BTreeSet};

use burn::nn::DropoutConfig;
use burn::prelude::*;
use burn::tensor::FloatDType;
use rayon::prelude::*;
use sorsa_files::{HostTensor, NamedTensors};
use sorsa_linalg::LinalgError;
use sorsa_linalg::drift::product_singular_values;
use sorsa_linalg::faer::Mat;
use sorsa_linalg::spectral::{condition_number, relative_orthonormality_defect, singular_values};

use crate::attach::Attached;
use crate::error::AdapterError;
use crate::factors::Vectors;
use crate::host_tensor::HostTensorExt;
use crate::parameters::{export_trainable, linear_layers, weight_path, weights};
use crate::regularizer::{Lengths, Regularized};

/// The measures of one adapted module.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleMeasures {
    /// Path of the linear layer.
    pub path: String,
    /// Condition number `s_1 / s_r` of the trained part `A diag(s) B`; absent if the weight itself is trained. It is infinite if the part
    /// has a smaller rank, like LoRA's at the start.
    pub kappa_part: Option<f64>,
    /// Condition number of the whole weight, of the adapter and the frozen weight together; absent if the module is not in the sample.
    pub kappa: Option<f64>,
    /// The defect of each factor that is regularized: `||G||_F / sqrt(r)`, or `||G||_F / ||diag(A^T A)||_F` for free lengths.
    pub defects: Vec<f64>,
}

impl ModuleMeasures {
    /// The kind of the module: the last name of its path.
    pub fn kind(&self) -> &str {
        kind(&self.path)
    }
}

fn kind(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// What one module's measures are computed of.
struct Job {
    path: String,
    /// The factors `A` with the singular values, and `B`.
    part: Option<[HostTensor; 2]>,
    whole: Option<HostTensor>,
    regularized: Vec<(HostTensor, Regularized)>,
}

impl<M: Module> Attached<M> {
    /// Measures every module that is trained. Of each kind of module (`q_proj`, ..), `whole_weights` weights are decomposed whole:
    /// modules of equal distances in the model, always the same.
    ///
    /// The condition number of a trained part takes a QR decomposition of each factor and the singular values of an `[r, r]` matrix.
    /// That of a weight `[m, n]` takes all of its singular values, about `8/3 m n min(m, n)` operations. Everything is computed in f64.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Decomposition`] with every module whose numbers are not finite.
    pub fn module_measures(&self, whole_weights: usize) -> Result<Vec<ModuleMeasures>, AdapterError> {
        let values = export_trainable(&self.model, &self.trainable);
        let paths: Vec<String> = match self.state.config.method().is_factored() {
            true => self.state.modules.iter().map(|module| module.path.clone()).collect(),
            false => {
                let linear = linear_layers(&self.model).into_iter().map(|(path, _)| path);
                linear.filter(|path| values.contains_key(&weight_path(path))).collect()
            }
        };
        let sample = sample(&paths, whole_weights);
        let jobs: Vec<Job> = self.jobs(&values, &paths, &sample);
        let results: Vec<Result<ModuleMeasures, LinalgError>> = jobs.into_par_iter().map(Job::measure).collect();
        let faults: Vec<String> =
            results.iter().filter_map(|result| Some(result.as_ref().err()?.to_string())).collect();
        if faults.is_empty() {
            Ok(results.into_iter().flatten().collect())
        } else {
            Err(AdapterError::Decomposition { faults })
        }
    }

    fn jobs(&self, values: &NamedTensors, paths: &[String], sample: &BTreeSet<&str>) -> Vec<Job> {
        let definition = self.state.config.method().factored();
        let mut regularized: BTreeMap<&str, Vec<(HostTensor, Regularized)>> = BTreeMap::new();
        for parameter in &self.trainable {
            // The name is `<module>.<method>.<factor>`.
            let module = parameter.name.rsplitn(3, '.').nth(2).unwrap_or_default();
            if let (Some(kept), Some(value)) = (parameter.regularized, values.get(&parameter.name)) {
                regularized.entry(module).or_default().push((value.clone(), kept));
            }
        }
        let frozen = match definition {
            Some(_) => weights(&self.model, sample),
            None => BTreeMap::new(),
        };
        let job = |path: &String| {
            let in_sample = sample.contains(path.as_str());
            let regularized = regularized.remove(path.as_str()).unwrap_or_default();
            let Some(definition) = definition else {
                let whole = values.get(&weight_path(path)).filter(|_| in_sample).cloned();
                return Some(Job { path: path.clone(), part: None, whole, regularized });
            };
            let module = self.state.modules.iter().find(|module| module.path == *path)?;
            let factors = self.state.all_factors(module, values);
            let pair = (definition.product)(&factors);
            let whole = frozen.get(path).map(|weight| {
                let frozen = weight.clone().into_dense().cast(FloatDType::F32);
                let dropout = DropoutConfig::new(0.0).init();
                let adapter = (definition.new)(&factors, module.scale, dropout, &frozen.device());
                HostTensor::from_tensor(adapter.compose(frozen))
            });
            Some(Job { path: path.clone(), part: Some([pair.a, pair.b]), whole, regularized })
        };
        paths.iter().filter_map(job).collect()
    }
}

/// The paths of `count` modules of each kind, at equal distances.
fn sample(paths: &[String], count: usize) -> BTreeSet<&str> {
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for path in paths {
        kinds.entry(kind(path)).or_default().push(path);
    }
    let mut sample = BTreeSet::new();
    for paths in kinds.into_values() {
        let count = count.min(paths.len());
        sample.extend((0..count).map(|index| paths[(2 * index + 1) * paths.len() / (2 * count)]));
    }
    sample
}

impl Job {
    fn measure(self) -> Result<ModuleMeasures, LinalgError> {
        let Self { path, part, whole, regularized } = self;
        let kappa_part = match part {
            Some([a, b]) => {
                let values = product_singular_values(&path, a.matrix(), None, b.matrix())?;
                Some(condition_number(&values))
            }
            None => None,
        };
        let kappa = match whole {
            Some(whole) => {
                let weight = whole.matrix();
                let wide = Mat::from_fn(weight.nrows(), weight.ncols(), |i, j| f64::from(weight[(i, j)]));
                Some(condition_number(&singular_values(&path, wide.as_ref())?))
            }
            None => None,
        };
        let defects = regularized.iter().map(|(factor, kept)| defect(factor, *kept)).collect();
        Ok(ModuleMeasures { path, kappa_part, kappa, defects })
    }
}

/// The defect of a factor, in f64.
fn defect(factor: &HostTensor, Regularized { vectors, lengths }: Regularized) -> f64 {
    let columns = match vectors {
        Vectors::Columns => factor.matrix(),
        Vectors::Rows => factor.matrix().transpose(),
    };
    match lengths {
        Lengths::One => relative_orthonormality_defect(columns),
        Lengths::Free => {
            let wide = Mat::from_fn(columns.nrows(), columns.ncols(), |i, j| f64::from(columns[(i, j)]));
            let gram = wide.transpose() * &wide;
            let squares = |on_diagonal: bool| {
                let places = (0..gram.nrows()).flat_map(|i| (0..gram.ncols()).map(move |j| (i, j)));
                places.filter(|(i, j)| (i == j) == on_diagonal).map(|place| gram[place].powi(2)).sum::<f64>()
            };
            match squares(true) {
                0.0 => 0.0,
                size => (squares(false) / size).sqrt(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_has_modules_of_each_kind_at_equal_distances() {
        let path = |layer: usize, kind: &str| format!("layers.{layer}.{kind}");
        let mut paths: Vec<String> = (0..6).map(|layer| path(layer, "q_proj")).collect();
        paths.push("head".to_owned());
        let found = |count| sample(&paths, count).into_iter().map(str::to_owned).collect::<Vec<_>>();
        assert!(found(0).is_empty());
        assert_eq!(found(1), ["head", "layers.3.q_proj"]);
        assert_eq!(found(2), ["head", "layers.1.q_proj", "layers.4.q_proj"]);
        assert_eq!(found(100).len(), 7);
    }
}
