//! The optimizers: the trait that each implements, the list of them, and the code that they share.
//!
//! An optimizer is a type that implements [`UpdateRule`], in its own file, and its name in the list below. [`Optimizer`]
//! keeps its buffers for every trained parameter, gives each kind of parameter its own rate and weight decay, and writes
//! and reads the buffers. Buffers and updates are f32 whatever the dtype of the parameter.

mod adamw;
mod lion;
mod muon;
mod rmsprop;
mod sgd;

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::path::Path;
use std::str::FromStr;

use burn::module::{ModuleMapper, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};
use sorsa_adapter::{AdapterError, HostTensor, HostTensorExt, NamedTensors, ParameterGroup, Stiefel, Trainable};
use sorsa_files::{read_tensors, write_tensors};

use crate::config::{OptimizerConfig, PeakRates};

use adamw::AdamW;
use lion::Lion;
use muon::Muon;
use rmsprop::RmsProp;
use sgd::Sgd;

/// How an optimizer changes one parameter.
pub trait UpdateRule: Debug + Send {
    /// Names of the buffers that it keeps of each parameter, as a checkpoint has them: `<parameter>.<name>`.
    fn buffers(&self) -> &'static [&'static str];

    /// Those of them that it keeps of a parameter of `shape`: all, unless the rule treats vectors and matrices in different ways.
    fn buffers_of(&self, _shape: &[usize]) -> &'static [&'static str] {
        self.buffers()
    }

    /// Those of the buffers that are directions, such as a running mean of gradients. They follow a parameter that is kept on a
    /// manifold; others, such as running means of squares, stay as they are.
    fn directions(&self) -> &'static [&'static str] {
        &[]
    }

    /// Returns the parameter after the step, and puts new values into the buffers.
    ///
    /// # Shapes
    ///
    /// `parameter`, `gradient` and each of `buffers` are f32, flat, and of one length. Buffers start as zeros and come in
    /// the order of [`buffers_of`](Self::buffers_of). [`StepRates::shape`] is the parameter's own shape.
    fn update(
        &self,
        parameter: Tensor<1>,
        gradient: Tensor<1>,
        buffers: &mut [Tensor<1>],
        step: &StepRates,
    ) -> Tensor<1>;
}

/// Learning rate, weight decay and number of one update, and the shape of what is updated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepRates<'a> {
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
    /// Shape of the parameter.
    pub shape: &'a [usize],
}

macro_rules! optimizers {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Names of the optimizers, as a recipe spells them.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum OptimizerKind {
            $($(#[$doc])* $name,)+
        }

        impl OptimizerKind {
            /// Every optimizer.
            pub const ALL: [Self; [$(stringify!($name)),+].len()] = [$(Self::$name),+];

            fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// The settings of a recipe that names none.
            pub fn defaults(self) -> OptimizerConfig {
                match self { $(Self::$name => $name::defaults(),)+ }
            }

            /// The usual learning rate as a multiple of AdamW's.
            pub fn relative_rate(self) -> f64 {
                match self { $(Self::$name => $name::RELATIVE_RATE,)+ }
            }

            /// The checks of the settings that this optimizer uses besides rate and weight decay: whether each holds, and
            /// what to say if not.
            pub(crate) fn checks(self, config: &OptimizerConfig) -> Vec<(bool, &'static str)> {
                match self { $(Self::$name => $name::checks(config),)+ }
            }

            /// The rule with the settings of a recipe.
            pub fn rule(self, config: &OptimizerConfig) -> Box<dyn UpdateRule> {
                match self { $(Self::$name => Box::new($name::new(config)),)+ }
            }
        }
    };
}

optimizers! {
    /// AdamW (Loshchilov and Hutter, arXiv 1711.05101).
    #[default]
    AdamW,
    /// Lion (Chen et al., arXiv 2302.06675).
    Lion,
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// RMSprop (Tieleman and Hinton, 2012).
    RmsProp,
    /// Muon for matrices (Jordan et al., 2024), AdamW for vectors.
    Muon,
}

impl fmt::Display for OptimizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().to_ascii_lowercase())
    }
}

impl FromStr for OptimizerKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == text).ok_or_else(|| {
            let names = Self::ALL.map(|kind| kind.to_string()).join(" or ");
            format!("unknown optimizer `{text}`, expected {names}")
        })
    }
}

/// An update rule with its buffers for every trained parameter.
#[derive(Debug)]
pub struct Optimizer {
    rule: Box<dyn UpdateRule>,
    rates: PeakRates,
    groups: BTreeMap<ParamId, ParameterGroup>,
    /// Multiples of the learning rate of some parameters.
    multiples: BTreeMap<ParamId, f64>,
    /// The manifolds of the parameters that stay on one.
    manifolds: BTreeMap<ParamId, Stiefel>,
    buffers: BTreeMap<ParamId, Vec<Tensor<1>>>,
    steps: u64,
}

/// A step taken beside the optimizer's: `p <- p - rate * direction`.
#[derive(Debug, Default)]
pub struct Decoupled {
    /// The rate.
    pub rate: f64,
    /// The direction by parameter.
    pub directions: BTreeMap<ParamId, Tensor<2>>,
}

impl Optimizer {
    /// Makes the optimizer that `config` names, with no step done.
    pub fn new(config: OptimizerConfig, trainable: &[Trainable]) -> Self {
        let optimizer = Self::with_rule(config.kind.rule(&config), config.rates(), trainable);
        optimizer.with_factor_rates(&config.factor_rates, trainable)
    }

    /// Makes an optimizer with an update rule of the caller's own, with no step done.
    pub fn with_rule(rule: Box<dyn UpdateRule>, rates: PeakRates, trainable: &[Trainable]) -> Self {
        let groups = trainable.iter().map(|parameter| (parameter.id, parameter.group)).collect();
        let manifold = |parameter: &Trainable| Some((parameter.id, *parameter.stiefel()?));
        let manifolds = trainable.iter().filter_map(manifold).collect();
        Self { rule, rates, groups, multiples: BTreeMap::new(), manifolds, buffers: BTreeMap::new(), steps: 0 }
    }

    /// The same optimizer with multiples of the learning rate by the names of factors, like `b` (LoRA+, arXiv 2402.12354).
    pub fn with_factor_rates(mut self, factor_rates: &BTreeMap<String, f64>, trainable: &[Trainable]) -> Self {
        for parameter in trainable.iter().filter(|parameter| parameter.group != ParameterGroup::Dense) {
            let factor = parameter.name.rsplit('.').next().unwrap_or_default();
            if let Some(multiple) = factor_rates.get(factor) {
                self.multiples.insert(parameter.id, *multiple);
            }
        }
        self
    }

    /// The peak learning rate of parameters that have none of their own.
    pub fn learning_rate(&self) -> f64 {
        self.rates.learning_rate
    }

    /// Updates every parameter that has a gradient. `factor` is the schedule's multiplier of the peak rates.
    pub fn step<M: Module>(&mut self, model: M, gradients: GradientsParams, factor: f64, decoupled: Decoupled) -> M {
        self.steps += 1;
        model.map(&mut Update { optimizer: self, gradients, factor, decoupled })
    }

    /// Goes on from where another optimizer of the same rule and parameters stands, at its own rates.
    pub(crate) fn take_buffers_of(&mut self, other: &Self) {
        self.buffers = other.buffers.clone();
        self.steps = other.steps;
    }

    /// Writes the buffers.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] with the file.
    pub fn save(&self, path: &Path, trainable: &[Trainable]) -> Result<(), AdapterError> {
        Ok(write_tensors(path, &self.tensors(trainable))?)
    }

    /// The buffers on the host, by name.
    pub(crate) fn tensors(&self, trainable: &[Trainable]) -> NamedTensors {
        let mut tensors = NamedTensors::new();
        for parameter in trainable {
            let Some(buffers) = self.buffers.get(&parameter.id) else { continue };
            for (name, buffer) in self.rule.buffers_of(&parameter.shape).iter().zip(buffers) {
                tensors.insert(format!("{}.{name}", parameter.name), HostTensor::from_tensor(buffer.clone()));
            }
        }
        tensors
    }

    /// Reads the buffers back, as they were after `steps` updates.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if the file cannot be read or does not fit the parameters; every fault is listed.
    pub fn load(
        mut self,
        path: &Path,
        trainable: &[Trainable],
        steps: u64,
        device: &Device,
    ) -> Result<Self, AdapterError> {
        self.steps = steps;
        let tensors = read_tensors(path)?;
        let mut faults = Vec::new();
        for parameter in trainable {
            let size: usize = parameter.shape.iter().product();
            let (mut buffers, names) = (Vec::new(), self.rule.buffers_of(&parameter.shape));
            for suffix in names {
                let name = format!("{}.{suffix}", parameter.name);
                match tensors.get(&name) {
                    Some(tensor) if tensor.shape == [size] => buffers.push(tensor.to_tensor::<1>(device)),
                    Some(tensor) => faults.push(format!("`{name}` should be [{size}], found {:?}", tensor.shape)),
                    None => faults.push(format!("`{name}` is missing")),
                }
            }
            if buffers.len() == names.len() {
                self.buffers.insert(parameter.id, buffers);
            }
        }
        // Before the first step there are no buffers.
        if faults.is_empty() || steps == 0 {
            Ok(self)
        } else {
            Err(AdapterError::Mismatch { path: path.to_owned(), faults })
        }
    }
}

struct Update<'a> {
    optimizer: &'a mut Optimizer,
    gradients: GradientsParams,
    factor: f64,
    decoupled: Decoupled,
}

impl ModuleMapper for Update<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Optimizer { rule, rates, groups, multiples, manifolds, buffers, steps } = &mut *self.optimizer;
        let Some(group) = groups.get(&param.id) else { return param };
        let Some(gradient) = self.gradients.remove::<D>(param.id) else { return param };
        let (rate, weight_decay) = rates.of(*group);
        let id = param.id;
        let learning_rate = match multiples.get(&id) {
            Some(multiple) => rate * multiple * self.factor,
            None => rate * self.factor,
        };
        let dims = param.lazy_shape().to_vec();
        let step_rates = StepRates { learning_rate, weight_decay, step: *steps, shape: &dims };
        let manifold = manifolds.get(&id);
        param.map(|old| {
            let (shape, dtype) = (old.shape(), FloatDType::from(old.dtype()));
            let size = shape.num_elements();
            let mut gradient = gradient.cast(FloatDType::F32).reshape([size]);
            let old = old.without_autodiff().cast(FloatDType::F32).reshape([size]);
            let matrix = |flat: Tensor<1>| flat.reshape([shape[0], size / shape[0]]);
            let point = manifold.map(|manifold| (manifold, matrix(old.clone())));
            if let Some((manifold, point)) = &point {
                gradient = manifold.gradient(point, matrix(gradient)).reshape([size]);
            }
            let fresh = || rule.buffers_of(&dims).iter().map(|_| gradient.zeros_like()).collect();
            let mut kept = buffers.remove(&id).unwrap_or_else(fresh);
            let mut new = rule.update(old, gradient, &mut kept, &step_rates);
            if let Some(direction) = self.decoupled.directions.remove(&id) {
                new = new - direction.reshape([size]) * self.decoupled.rate;
            }
            if let Some((manifold, point)) = &point {
                let end = manifold.step(point, matrix(new), *steps);
                for (name, buffer) in rule.buffers_of(&dims).iter().zip(&mut kept) {
                    if rule.directions().contains(name)
                        && let Some(carried) = manifold.transport(&end, matrix(buffer.clone()))
                    {
                        *buffer = carried.reshape([size]);
                    }
                }
                new = end.reshape([size]);
            }
            buffers.insert(id, kept);
            Tensor::from_inner(new.reshape(shape).cast(dtype)).require_grad()
        })
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use burn::nn::{Linear, LinearConfig};
    use sorsa_adapter::{AdapterConfig, Attached, Method};

    use super::*;

    #[derive(Module, Debug)]
    pub(crate) struct Net {
        proj: Linear,
    }

    /// A linear layer `[5, 4]` with SORSA of rank 2.
    pub(crate) fn attached() -> Attached<Net> {
        let net = Net { proj: LinearConfig::new(5, 4).with_bias(false).init(&Device::flex()) };
        let attached = AdapterConfig::new(Method::Sorsa, 2, &["proj"]).attach(net, &Default::default()).unwrap();
        Attached { model: attached.model.train(), ..attached }
    }

    /// The same gradient for every number of every trained parameter.
    pub(crate) fn gradients(trainable: &[Trainable], value: f64) -> GradientsParams {
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
}

#[cfg(test)]
mod tests {
    use super::testing::{attached, gradients};
    use super::*;
    use burn::tensor::Distribution;
    use sorsa_adapter::{Attached, export_trainable};

    #[test]
    fn an_optimizer_is_called_the_same_everywhere() {
        for kind in OptimizerKind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(kind.defaults().kind, kind);
        }
        let error = "adam".parse::<OptimizerKind>().unwrap_err();
        assert!(error.starts_with("unknown optimizer `adam`, expected adamw or lion"), "{error}");
    }

    #[test]
    fn a_factor_with_a_multiple_of_its_own_moves_by_it_and_the_others_do_not() {
        let Attached { model, trainable, .. } = attached();
        let start = export_trainable(&model, &trainable);
        for kind in [OptimizerKind::Lion, OptimizerKind::Sgd] {
            let after = |factor_rates: &[(&str, f64)]| {
                let factor_rates = factor_rates.iter().map(|(name, rate)| ((*name).to_owned(), *rate)).collect();
                let config = OptimizerConfig { learning_rate: 0.01.into(), factor_rates, ..kind.defaults() };
                let mut optimizer = Optimizer::new(config, &trainable);
                let moved = optimizer.step(model.clone(), gradients(&trainable, 0.1), 0.5, Decoupled::default());
                export_trainable(&moved, &trainable)
            };
            let (plain, other) = (after(&[]), after(&[("vt", 16.0), ("s", 0.0)]));
            for (name, start) in &start {
                let multiple = match name.rsplit('.').next().unwrap() {
                    "vt" => 16.0,
                    "s" => 0.0,
                    _ => 1.0,
                };
                for ((start, plain), other) in start.values.iter().zip(&plain[name].values).zip(&other[name].values) {
                    assert!((other - (start + multiple * (plain - start))).abs() < 1e-5, "{kind} {name}");
                }
            }
        }
    }

    #[test]
    fn the_decoupled_direction_is_taken_beside_the_optimizers_step_at_its_own_rate() {
        let Attached { model, trainable, .. } = attached();
        let u = trainable.iter().find(|parameter| parameter.name.ends_with(".u")).unwrap();
        let direction = Tensor::<2>::random([5, 2], Distribution::Normal(0.0, 1.0), &Device::flex());
        for kind in OptimizerKind::ALL {
            let after = |rate| {
                let directions = BTreeMap::from([(u.id, direction.clone())]);
                let mut optimizer = Optimizer::new(kind.defaults(), &trainable);
                let decoupled = Decoupled { rate, directions };
                let moved = optimizer.step(model.clone(), gradients(&trainable, 0.1), 1.0, decoupled);
                export_trainable(&moved, &trainable)
            };
            let (without, with) = (after(0.0), after(0.5));
            let direction = HostTensor::from_tensor(direction.clone()).values;
            for (name, without) in &without {
                let expected =
                    |i: usize| if *name == u.name { without.values[i] - 0.5 * direction[i] } else { without.values[i] };
                let found = &with[name].values;
                assert!((0..found.len()).all(|i| (found[i] - expected(i)).abs() < 1e-6), "{kind} {name}");
            }
        }
    }

    #[test]
    fn buffers_that_do_not_fit_are_named_in_one_error() {
        for kind in OptimizerKind::ALL {
            let Attached { model, trainable, .. } = attached();
            let mut optimizer = Optimizer::new(kind.defaults(), &trainable);
            optimizer.step(model, gradients(&trainable, 0.1), 1.0, Decoupled::default());
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("optimizer.safetensors");
            optimizer.save(&path, &trainable).unwrap();
            let load = |trainable: &[Trainable]| {
                let fresh = Optimizer::new(kind.defaults(), trainable);
                fresh.load(&path, trainable, 1, &Device::flex()).map(|_| ())
            };
            assert!(load(&trainable).is_ok());
            let mut other = trainable.clone();
            other[0].shape = vec![7];
            other[1].name = "elsewhere".to_owned();
            let AdapterError::Mismatch { faults, .. } = load(&other).unwrap_err() else { panic!("another error") };
            assert_eq!(faults.len(), 2 * kind.rule(&kind.defaults()).buffers().len(), "{faults:?}");
        }
    }

    #[test]
    fn a_step_goes_on_from_saved_buffers_to_the_bit() {
        for kind in OptimizerKind::ALL {
            let Attached { mut model, trainable, .. } = attached();
            let mut optimizer = Optimizer::new(kind.defaults(), &trainable);
            for value in [0.3, -0.1] {
                model = optimizer.step(model, gradients(&trainable, value), 1.0, Decoupled::default());
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("optimizer.safetensors");
            optimizer.save(&path, &trainable).unwrap();
            let fresh = Optimizer::new(kind.defaults(), &trainable);
            let mut loaded = fresh.load(&path, &trainable, 2, &Device::flex()).unwrap();
            let step = |optimizer: &mut Optimizer| {
                let moved = optimizer.step(model.clone(), gradients(&trainable, 0.2), 1.0, Decoupled::default());
                export_trainable(&moved, &trainable)
            };
            assert_eq!(step(&mut optimizer), step(&mut loaded), "{kind}");
        }
    }
}
