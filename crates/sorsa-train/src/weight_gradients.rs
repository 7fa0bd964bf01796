//! Mean gradients of dense weights over some batches, for methods that start from them.

use std::collections::BTreeMap;

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use sorsa_adapter::{AdapterConfig, AdapterError, HostTensor, HostTensorExt, Method, Target, WeightGradients};
use sorsa_data::DataPosition;
use sorsa_models::ActivationFormat;

use crate::config::LossNormalization;
use crate::gradients::step_gradients;
use crate::trainable::{BatchSource, TrainableModel};

/// Takes gradients of the first batches of the training data with respect to the weights of a plain model.
#[derive(Debug, Clone, Copy)]
pub struct BatchGradients<'a, M, S> {
    /// The model, without an adapter.
    pub model: &'a M,
    /// The training data.
    pub data: &'a S,
    /// Whether each block runs again in the backward pass, like in training.
    pub checkpoint_blocks: bool,
}

impl<M: TrainableModel, S: BatchSource<Batch = M::Batch>> WeightGradients for BatchGradients<'_, M, S> {
    /// The gradient of the mean loss of all targets in the batches.
    fn mean(&self, targets: &[Target], batches: usize) -> Result<BTreeMap<String, HostTensor>, AdapterError> {
        let paths: Vec<&str> = targets.iter().map(|target| target.path.as_str()).collect();
        // The weights themselves are trained, by a method that exists for that.
        let attached =
            AdapterConfig::new(Method::Partial, 1, &paths).attach(self.model.clone(), &Default::default())?;
        let model = attached.model.train();
        let mut position = DataPosition { epoch: 0, batch: 0 };
        let batches: Vec<M::Batch> = (0..batches).map(|_| self.data.next_batch(&mut position)).collect();
        let (normalization, activations) = (LossNormalization::Step, ActivationFormat::F32);
        let Some(step) = step_gradients(&model, &batches, normalization, 0, self.checkpoint_blocks, activations) else {
            return Ok(BTreeMap::new());
        };
        let weights = attached.trainable.iter().filter_map(|parameter| {
            let path = parameter.name.strip_suffix(".weight").filter(|path| paths.contains(path))?;
            Some((parameter.id, path))
        });
        let mut collect = Collect { weights: weights.collect(), gradients: &step.gradients, found: BTreeMap::new() };
        model.visit(&mut collect);
        Ok(collect.found)
    }
}

/// Copies the gradients of these weights to the host.
struct Collect<'a> {
    weights: BTreeMap<ParamId, &'a str>,
    gradients: &'a GradientsParams,
    found: BTreeMap<String, HostTensor>,
}

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(path) = self.weights.get(&param.id) else { return };
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.found.insert((*path).to_owned(), HostTensor::from_tensor(gradient));
        }
    }
}
