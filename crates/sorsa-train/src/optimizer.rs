//! AdamW with decoupled weight decay, exactly as PyTorch's:
//!
//! ```text
//! p <- p (1 - lr wd)
//! m <- b1 m + (1 - b1) g         v <- b2 v + (1 - b2) g^2
//! p <- p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//! ```
//!
//! Moments and updates are f32 whatever the dtype of the parameter.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{ModuleMapper, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::FloatDType;
use sorsa_adapter::{AdapterError, HostTensor, NamedTensors, ParameterGroup, Trainable, read_tensors, write_tensors};

use crate::config::OptimizerConfig;

/// The optimizer's state.
#[derive(Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    groups: BTreeMap<ParamId, ParameterGroup>,
    moments: BTreeMap<ParamId, Moments>,
    steps: u64,
}

/// Running means of gradient and squared gradient, flat.
#[derive(Debug, Clone)]
struct Moments {
    first: Tensor<1>,
    second: Tensor<1>,
}

/// A step taken beside Adam's: `p <- p - rate * direction`.
#[derive(Debug, Default)]
pub struct Decoupled {
    /// The rate.
    pub rate: f64,
    /// The direction by parameter.
    pub directions: BTreeMap<ParamId, Tensor<2>>,
}

impl AdamW {
    /// A fresh optimizer for the trained parameters.
    pub fn new(config: OptimizerConfig, trainable: &[Trainable]) -> Self {
        let groups = trainable.iter().map(|parameter| (parameter.id, parameter.group)).collect();
        Self { config, groups, moments: BTreeMap::new(), steps: 0 }
    }

    /// Updates every parameter that has a gradient. `factor` is the schedule's multiplier of the peak rates.
    pub fn step<M: Module>(&mut self, model: M, gradients: GradientsParams, factor: f64, decoupled: Decoupled) -> M {
        self.steps += 1;
        model.map(&mut Update { optimizer: self, gradients, factor, decoupled })
    }

    /// Writes the moments.
    pub fn save(&self, path: &Path, trainable: &[Trainable]) -> Result<(), AdapterError> {
        let mut tensors = NamedTensors::new();
        for parameter in trainable {
            let Some(moments) = self.moments.get(&parameter.id) else { continue };
            tensors.insert(format!("{}.m", parameter.name), HostTensor::from_tensor(moments.first.clone()));
            tensors.insert(format!("{}.v", parameter.name), HostTensor::from_tensor(moments.second.clone()));
        }
        write_tensors(path, &tensors)
    }

    /// Reads the moments back; `steps` updates have been made.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] where the file cannot be read or does not fit the parameters.
    pub fn load(
        config: OptimizerConfig,
        path: &Path,
        trainable: &[Trainable],
        steps: u64,
        device: &Device,
    ) -> Result<Self, AdapterError> {
        let mut optimizer = Self::new(config, trainable);
        optimizer.steps = steps;
        let tensors = read_tensors(path)?;
        let mut faults = Vec::new();
        for parameter in trainable {
            let size: usize = parameter.shape.iter().product();
            let mut take = |suffix: &str| {
                let name = format!("{}.{suffix}", parameter.name);
                match tensors.get(&name) {
                    Some(tensor) if tensor.shape == [size] => Some(tensor.to_tensor::<1>(device)),
                    Some(tensor) => {
                        faults.push(format!("`{name}` should be [{size}], found {:?}", tensor.shape));
                        None
                    }
                    None => {
                        faults.push(format!("`{name}` is missing"));
                        None
                    }
                }
            };
            if let (Some(first), Some(second)) = (take("m"), take("v")) {
                optimizer.moments.insert(parameter.id, Moments { first, second });
            }
        }
        // Before the first step there are no moments.
        if faults.is_empty() || steps == 0 {
            Ok(optimizer)
        } else {
            Err(AdapterError::Mismatch { path: path.to_owned(), faults })
        }
    }
}

struct Update<'a> {
    optimizer: &'a mut AdamW,
    gradients: GradientsParams,
    factor: f64,
    decoupled: Decoupled,
}

impl ModuleMapper for Update<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let AdamW { config, groups, moments, steps } = &mut *self.optimizer;
        let Some(group) = groups.get(&param.id) else { return param };
        let Some(gradient) = self.gradients.remove::<D>(param.id) else { return param };
        let (rate, decay) = config.group(*group);
        let rate = rate * self.factor;
        let (b1, b2) = (config.beta1, config.beta2);
        let count = i32::try_from(*steps).unwrap_or(i32::MAX);
        let (correction1, correction2) = (1.0 - b1.powi(count), 1.0 - b2.powi(count));
        let id = param.id;
        param.map(|old| {
            let (shape, dtype) = (old.shape(), FloatDType::from(old.dtype()));
            let size = shape.num_elements();
            let gradient = gradient.cast(FloatDType::F32).reshape([size]);
            let Moments { first, second } = moments
                .remove(&id)
                .unwrap_or_else(|| Moments { first: gradient.zeros_like(), second: gradient.zeros_like() });
            let first = first * b1 + gradient.clone() * (1.0 - b1);
            let second = second * b2 + gradient.square() * (1.0 - b2);
            let denominator = second.clone().sqrt() / correction2.sqrt() + config.epsilon;
            let mut new = old.without_autodiff().cast(FloatDType::F32).reshape([size]);
            if decay != 0.0 {
                new = new * (1.0 - rate * decay);
            }
            new = new - first.clone() / denominator * (rate / correction1);
            if let Some(direction) = self.decoupled.directions.remove(&id) {
                new = new - direction.reshape([size]) * self.decoupled.rate;
            }
            moments.insert(id, Moments { first, second });
            Tensor::from_inner(new.reshape(shape).cast(dtype)).require_grad()
        })
    }
}
