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

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Distribution;
    use sorsa_adapter::{AdapterConfig, Attached, Method, export_trainable};

    use crate::config::GroupOverride;

    /// PyTorch's AdamW in f64, one number.
    struct Reference {
        rate: f64,
        decay: f64,
        p: f64,
        m: f64,
        v: f64,
    }

    impl Reference {
        fn step(&mut self, gradient: f64, t: i32) {
            self.p *= 1.0 - self.rate * self.decay;
            self.m = 0.9 * self.m + 0.1 * gradient;
            self.v = 0.999 * self.v + 0.001 * gradient * gradient;
            let denominator = self.v.sqrt() / (1.0 - 0.999f64.powi(t)).sqrt() + 1e-8;
            self.p -= self.rate / (1.0 - 0.9f64.powi(t)) * self.m / denominator;
        }
    }

    #[derive(Module, Debug)]
    struct Net {
        proj: Linear,
    }

    fn attached() -> Attached<Net> {
        let net = Net { proj: LinearConfig::new(5, 4).with_bias(false).init(&Device::flex()) };
        let attached = AdapterConfig::new(Method::Sorsa, 2, &["proj"]).attach(net, &Default::default()).unwrap();
        Attached { model: attached.model.train(), ..attached }
    }

    /// The same gradient for every number of every trained parameter.
    fn gradients(trainable: &[Trainable], value: f64) -> GradientsParams {
        let mut gradients = GradientsParams::new();
        for parameter in trainable {
            let device = Device::flex();
            match *parameter.shape.as_slice() {
                [d] => gradients.register::<1>(parameter.id, Tensor::full([d], value, &device)),
                [rows, cols] => gradients.register::<2>(parameter.id, Tensor::full([rows, cols], value, &device)),
                _ => unreachable!(),
            }
        }
        gradients
    }

    #[test]
    fn singular_values_follow_their_own_rate_and_decay_and_factors_the_others() {
        let Attached { mut model, trainable, .. } = attached();
        let singular_values = GroupOverride { learning_rate: Some(0.05), weight_decay: Some(0.4) };
        let config =
            OptimizerConfig { learning_rate: 0.01, weight_decay: 0.1, singular_values, ..OptimizerConfig::default() };
        let start = export_trainable(&model, &trainable);
        let mut optimizer = AdamW::new(config, &trainable);
        let steps = [(0.5, 1.0), (-0.02, 0.5), (0.3, 0.25)];
        for (gradient, factor) in steps {
            model = optimizer.step(model, gradients(&trainable, gradient), factor, Decoupled::default());
        }
        let end = export_trainable(&model, &trainable);
        assert_eq!(end.len(), 3);
        for (name, start) in start {
            let (rate, decay) = if name.ends_with(".s") { (0.05, 0.4) } else { (0.01, 0.1) };
            for (start, end) in start.values.iter().zip(&end[&name].values) {
                let mut reference = Reference { rate, decay, p: f64::from(*start), m: 0.0, v: 0.0 };
                for (t, (gradient, factor)) in (1..).zip(steps) {
                    reference.rate = rate * factor;
                    reference.step(gradient, t);
                }
                assert!((f64::from(*end) - reference.p).abs() < 1e-6, "{name}: {end}, expected {}", reference.p);
            }
        }
    }

    #[test]
    fn the_decoupled_direction_is_taken_beside_adams_step_at_its_own_rate() {
        let Attached { model, trainable, .. } = attached();
        let u = trainable.iter().find(|parameter| parameter.name.ends_with(".u")).unwrap();
        let direction = Tensor::<2>::random([5, 2], Distribution::Normal(0.0, 1.0), &Device::flex());
        let after = |rate| {
            let directions = BTreeMap::from([(u.id, direction.clone())]);
            let mut optimizer = AdamW::new(OptimizerConfig::default(), &trainable);
            let moved = optimizer.step(model.clone(), gradients(&trainable, 0.1), 1.0, Decoupled { rate, directions });
            export_trainable(&moved, &trainable)
        };
        let (without, with) = (after(0.0), after(0.5));
        let direction = HostTensor::from_tensor(direction.clone()).values;
        for (name, without) in &without {
            let expected =
                |i: usize| if *name == u.name { without.values[i] - 0.5 * direction[i] } else { without.values[i] };
            let found = &with[name].values;
            assert!((0..found.len()).all(|i| (found[i] - expected(i)).abs() < 1e-6), "{name}");
        }
    }

    #[test]
    fn moments_that_do_not_fit_are_named_in_one_error() {
        let Attached { model, trainable, .. } = attached();
        let mut optimizer = AdamW::new(OptimizerConfig::default(), &trainable);
        optimizer.step(model, gradients(&trainable, 0.1), 1.0, Decoupled::default());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("moments.safetensors");
        optimizer.save(&path, &trainable).unwrap();
        let load = |trainable: &[Trainable]| {
            AdamW::load(OptimizerConfig::default(), &path, trainable, 1, &Device::flex()).map(|_| ())
        };
        assert!(load(&trainable).is_ok());
        let mut other = trainable.clone();
        other[0].shape = vec![7];
        other[1].name = "elsewhere".to_owned();
        let AdapterError::Mismatch { faults, .. } = load(&other).unwrap_err() else { panic!("another error") };
        assert_eq!(faults.len(), 4, "{faults:?}");
    }
}
