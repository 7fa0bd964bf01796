//! Whether a folder can be the start of an adapter that split its weights.

use std::collections::BTreeSet;

use burn::prelude::*;
use sorsa_files::{HostTensor, NamedTensors};
use sorsa_linalg::faer::{Mat, MatRef};
use sorsa_linalg::leading_qr;

use crate::HostTensorExt;
use crate::parameters::weights;
use crate::state::{AdapterState, ModuleState};

/// The largest error of a start, as a part of its norm. Starts that were saved in bf16 have 0.004.
const TOLERANCE: f64 = 0.02;

/// A line if `state.initial` cannot be the start of the adapter with the values `trained`: every start splits off the
/// projection of the weight on the columns or on the rows of its factors, whether it came from an SVD, from a randomized
/// one, or from a QR decomposition.
pub(super) fn start_faults<M: Module>(state: &AdapterState, trained: &NamedTensors, model: &M) -> Vec<String> {
    if state.initial.iter().all(|(name, tensor)| trained.get(name) == Some(tensor)) {
        return vec!["the start is the trained adapter itself: nothing of what was trained would be left".to_owned()];
    }
    let paths: BTreeSet<&str> = state.modules.iter().map(|module| module.path.as_str()).collect();
    let weights = weights(model, &paths);
    let is_other = |module: &&ModuleState| {
        let weight = HostTensor::from_tensor(module.narrowed(weights[&module.path].clone().into_dense()));
        error(state, module, weight.matrix()) > TOLERANCE
    };
    let others: Vec<&str> = state.modules.iter().filter(is_other).map(|module| module.path.as_str()).collect();
    match others.as_slice() {
        [] => Vec::new(),
        [first, rest @ ..] => vec![format!(
            "the start is no part of the model's weights ({} of {} modules, `{first}` first): it is not the start of this \
             adapter, or the model is another one",
            1 + rest.len(),
            state.modules.len()
        )],
    }
}

/// `||P - c W'|| / ||P||` of the start's product `P` and the projection `W'` of the weight on the start's columns or rows,
/// whichever is nearer. The factor `c` is free, because methods divide by the scale or do not.
fn error(state: &AdapterState, module: &ModuleState, weight: MatRef<'_, f32>) -> f64 {
    let definition = state.config.method().factored().expect("an adapter of PEFT has factors");
    let pair = (definition.product)(&state.all_factors(module, &state.initial));
    let wide = |matrix: MatRef<'_, f32>| Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| f64::from(matrix[(i, j)]));
    let (product, weight) = (wide(pair.dense(1.0).as_ref()), wide(weight));
    let (a, b) = (wide(pair.a.matrix()), wide(pair.b.matrix().transpose()));
    let basis = |vectors: &Mat<f64>| leading_qr(&module.path, vectors.as_ref(), vectors.ncols()).map(|qr| qr.q);
    let distance = |projection: Mat<f64>| {
        let square = projection.squared_norm_l2();
        let inner: f64 = (0..product.ncols()).map(|j| product.col(j).transpose() * projection.col(j)).sum();
        if square == 0.0 {
            return f64::INFINITY;
        }
        (&product - &projection * sorsa_linalg::faer::Scale(inner / square)).norm_l2() / product.norm_l2()
    };
    let on_columns = basis(&a).map(|q| distance(&q * (q.transpose() * &weight)));
    let on_rows = basis(&b).map(|q| distance((&weight * &q) * q.transpose()));
    on_columns.unwrap_or(f64::INFINITY).min(on_rows.unwrap_or(f64::INFINITY))
}
