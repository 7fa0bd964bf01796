//! What cannot be trained beside packed weights, and settings that need such weights.

use std::collections::BTreeMap;

use sorsa_ops::PackedFormat;

use crate::Method;
use crate::attach::Target;
use crate::config::AdapterConfig;
use crate::parameters::weight_path;

impl AdapterConfig {
    /// A line for each part of the configuration that does not fit the weights of a model. `packed` has the format of each module
    /// whose weight is packed.
    pub(crate) fn packed_faults(&self, targets: &[Target], packed: &BTreeMap<String, PackedFormat>) -> Vec<String> {
        let mut faults = Vec::new();
        let is_packed = |target: &Target| packed.contains_key(&target.path);
        if !targets.iter().any(is_packed) {
            let settings =
                [("quantization_rounds", self.quantization_rounds.is_some()), ("residual", self.residual.is_some())];
            let set = settings.into_iter().filter(|(_, is_set)| *is_set);
            faults
                .extend(set.map(|(name, _)| format!("{name} is a setting of packed weights, but no target is packed")));
        }
        if self.method().needs_gradients()
            && let Some(target) = targets.iter().find(|target| is_packed(target))
        {
            let method = self.method();
            faults.push(format!(
                "{method} starts from gradients of dense weights, but `{}` is packed ({})",
                target.path, packed[&target.path]
            ));
        }
        faults.extend(self.trained_and_packed(targets, packed));
        faults
    }

    /// A line if weights that are trained themselves are packed: their gradients would have nowhere to go.
    fn trained_and_packed(&self, targets: &[Target], packed: &BTreeMap<String, PackedFormat>) -> Option<String> {
        let method = self.method();
        let is_trained = |path: &str| match method.whole() {
            Some(whole) if whole.has_targets => targets.iter().any(|target| target.path == path),
            Some(_) => true,
            None => self.saves(&weight_path(path)),
        };
        let found: Vec<String> = packed
            .iter()
            .filter(|(path, _)| is_trained(path))
            .map(|(path, format)| format!("`{path}` ({format})"))
            .collect();
        let shown = match found.as_slice() {
            [] => return None,
            [first, second, third, _, ..] => format!("{first}, {second}, {third} and {} more", found.len() - 3),
            few => few.join(", "),
        };
        let others =
            Method::ALL.into_iter().filter(|method| method.is_factored()).map(Method::name).collect::<Vec<_>>();
        let way_out = match method.is_factored() {
            true => "leave them out of modules_to_save".to_owned(),
            false => format!("take a method that trains factors beside them ({})", others.join(", ")),
        };
        Some(format!(
            "packed weights cannot be trained themselves: {shown}; {way_out}, or a model whose weights are dense"
        ))
    }
}
