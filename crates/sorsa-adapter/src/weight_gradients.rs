//! Gradients of the loss with respect to dense weights, for methods that start from them.

use std::collections::BTreeMap;

use sorsa_files::HostTensor;

use crate::attach::Target;
use crate::error::AdapterError;

/// Computes gradients of the loss with respect to the weights of a plain model. Whoever has the data implements it.
pub trait WeightGradients {
    /// The mean gradient `[d_in, d_out]` of the weight of each target over `batches` batches, by path.
    ///
    /// # Errors
    ///
    /// Whatever keeps the model from having gradients.
    fn mean(&self, targets: &[Target], batches: usize) -> Result<BTreeMap<String, HostTensor>, AdapterError>;
}

/// The targets in groups whose gradients take at most `bytes` together; a larger one is a group alone.
pub(crate) fn groups(targets: &[Target], bytes: usize) -> Vec<&[Target]> {
    let (mut groups, mut first, mut sum) = (Vec::new(), 0, 0);
    for (index, target) in targets.iter().enumerate() {
        let size = 4 * target.shape[0] * target.shape[1];
        if index > first && sum + size > bytes {
            groups.push(&targets[first..index]);
            (first, sum) = (index, 0);
        }
        sum += size;
    }
    groups.push(&targets[first..]);
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_stay_below_the_limit_and_hold_every_target_once() {
        let target = |side: usize| Target { path: side.to_string(), shape: [side, 10], rank: 1, scale: 1.0 };
        let targets: Vec<Target> = [1, 2, 9, 1, 1, 1].map(target).into();
        let paths = |bytes: usize| -> Vec<String> {
            let joined = |group: &[Target]| group.iter().map(|t| t.path.clone()).collect::<Vec<_>>().join(" ");
            groups(&targets, bytes).into_iter().map(joined).collect()
        };
        assert_eq!(paths(120), ["1 2", "9", "1 1 1"]);
        assert_eq!(paths(1), ["1", "2", "9", "1", "1", "1"]);
        assert_eq!(paths(1 << 20), ["1 2 9 1 1 1"]);
    }
}
