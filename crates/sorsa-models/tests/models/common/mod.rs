//! What several files of tests need.

pub mod larger;
pub mod processor;

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use sorsa_adapter::Attached;
use sorsa_models::CausalLm;

/// The gradient of every parameter by its name in a checkpoint, as PyTorch has it.
pub fn gradients(attached: &Attached<CausalLm>, loss: Tensor<1>) -> BTreeMap<String, Vec<f32>> {
    struct Collect<'a> {
        names: BTreeMap<ParamId, &'a str>,
        gradients: GradientsParams,
        found: BTreeMap<String, Vec<f32>>,
        container: String,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, _name: &str, container_type: &str) {
            container_type.clone_into(&mut self.container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let name = self.names[&param.id];
            let gradient = self.gradients.get::<D>(param.id).unwrap_or_else(|| panic!("no gradient of {name}"));
            let is_linear = D == 2 && self.container == "Struct:Linear";
            let gradient = if is_linear { gradient.swap_dims(0, 1) } else { gradient };
            self.found.insert(name.to_owned(), gradient.into_data().try_into_vec::<f32>().unwrap());
        }
    }
    let names = attached.trainable.iter().map(|parameter| (parameter.id, parameter.name.as_str())).collect();
    let gradients = GradientsParams::from_grads(loss.backward(), &attached.model);
    let mut collect = Collect { names, gradients, found: BTreeMap::new(), container: String::new() };
    attached.model.visit(&mut collect);
    collect.found
}
