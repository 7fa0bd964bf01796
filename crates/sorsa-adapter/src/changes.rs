//! What a saved adapter changes of each weight, without a model.

use burn::prelude::*;
use sorsa_files::HostTensor;

use crate::error::AdapterError;
use crate::factors::FactorPair;
use crate::packed::OriginalWeights;
use crate::parameters::{check_fits, parameters, weight_path};
use crate::state::{ModuleState, SavedAdapter};
use crate::weight_change::WeightChange;

/// The part of one adapted weight that a saved adapter holds, and how it changed in training.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedPart {
    /// Path of the linear layer.
    pub path: String,
    /// Rank of the factors.
    pub rank: usize,
    /// `scale A diag(s) B` as it is now.
    pub part: WeightChange,
    /// The change of the weight, if that is not the part: the part now minus the part that was subtracted from the weight at the start,
    /// and the change that the adapter carries along.
    pub since_start: Option<WeightChange>,
}

impl SavedAdapter {
    /// The trained part of every weight, of a method with factors; empty otherwise. DoRA's norms of columns are left out.
    pub fn trained_parts(&self) -> Vec<TrainedPart> {
        let of = |module: &ModuleState| {
            let now = self.product(module)?;
            let differs = self.state.config.method().splits_weight() || self.state.carries();
            Some(TrainedPart {
                path: module.path.clone(),
                rank: module.rank,
                part: now.clone().scaled(module.scale).into(),
                since_start: differs.then(|| self.factored_change(module, now).into()),
            })
        };
        self.state.modules.iter().filter_map(of).collect()
    }

    /// The change of the weight at `path` as a product of factors, or of a weight that is trained whole as the difference to `original`
    /// `[d_in, d_out]`. Absent if the adapter does not touch the weight, or if the change is no such product: for DoRA, and if the rest
    /// of the weight was packed again.
    pub fn weight_change(&self, path: &str, original: &HostTensor) -> Option<WeightChange> {
        if let Some(trained) = self.trained.get(&weight_path(path)) {
            let values = trained.values.iter().zip(&original.values).map(|(now, before)| now - before).collect();
            return Some(WeightChange::Dense(HostTensor::new(trained.shape.clone(), values)));
        }
        let module = self.state.modules.iter().find(|module| module.path == path)?;
        let definition = self.state.config.method().factored()?;
        if module.residual.is_some() || !definition.changes_by_product {
            return None;
        }
        Some(self.factored_change(module, self.product(module)?).into())
    }

    /// Whether [`weight_change`](Self::weight_change) knows the change of every weight that the adapter touches.
    pub fn changes_by_products(&self) -> bool {
        match self.state.config.method().factored() {
            Some(definition) => {
                definition.changes_by_product && self.state.modules.iter().all(|module| module.residual.is_none())
            }
            None => true,
        }
    }

    /// Whether the adapter has factors for the weight at `path`, or trains it whole.
    pub fn touches(&self, path: &str) -> bool {
        self.trained.contains_key(&weight_path(path)) || self.state.modules.iter().any(|module| module.path == path)
    }

    /// Paths of the parameters that are trained whole, beside factors or by themselves.
    pub fn whole_parameters<'a, M: Module>(&'a self, model: &M) -> Vec<(String, &'a HostTensor)> {
        let known = parameters(model).into_iter().map(|parameter| parameter.path);
        known.filter_map(|path| Some((path.clone(), self.trained.get(&path)?))).collect()
    }

    /// Checks that the adapter was made for the weights of `model`: names, shapes, and the content where the adapter has a fingerprint.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] with everything that does not fit; those of `originals`.
    pub fn check_weights<M: Module>(&self, model: &M, originals: &dyn OriginalWeights) -> Result<(), AdapterError> {
        self.check(model)?;
        check_fits(self.state.content_faults(model, originals)?, self.source())
    }

    fn product(&self, module: &ModuleState) -> Option<FactorPair> {
        let definition = self.state.config.method().factored()?;
        Some((definition.product)(&self.state.all_factors(module, &self.trained)))
    }

    /// The change of a weight whose trained part is `now`.
    pub(crate) fn factored_change(&self, module: &ModuleState, now: FactorPair) -> FactorPair {
        let method = self.state.config.method();
        let change = match method.factored().filter(|_| method.splits_weight()) {
            Some(definition) => {
                let start = (definition.product)(&self.state.all_factors(module, &self.state.initial));
                now.minus(&start).scaled(module.scale)
            }
            None => now.scaled(module.scale),
        };
        match self.state.carried(&module.path) {
            Some(carried) => change.beside(&carried),
            None => change,
        }
    }
}
