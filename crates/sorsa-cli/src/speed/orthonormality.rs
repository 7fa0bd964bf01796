//! What it costs to keep SORSA's vectors orthonormal: one evaluation of each form of the regularizer, and one step on the Stiefel
//! manifold by each retraction.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::optim::GradientsParams;
use sorsa_adapter::{Probes, Regularizer, RegularizerForm, Retraction, Trainable, add_regularizer};
use sorsa_files::cpu_seconds;
use sorsa_train::{Decoupled, Optimizer, OptimizerConfig};

const EVALUATIONS: u32 = 5;

/// CPU seconds of one evaluation of each form of the regularizer, by the settings of a recipe. Empty if the system does not say.
pub fn regularizer_cpu_seconds<M: Module>(model: &M, trainable: &[Trainable]) -> BTreeMap<String, f64> {
    let forms = [RegularizerForm::Paper, RegularizerForm::Spectral, RegularizerForm::Nuclear];
    let computed = forms.map(|form| (format!("{form:?}").to_lowercase(), Regularizer::from(form)));
    let estimated = [1, 4].map(|count| {
        let probes = Some(Probes { count, seed: 0 });
        (format!("probes={count}"), Regularizer { probes, ..Regularizer::default() })
    });
    let mut found = BTreeMap::new();
    for (name, regularizer) in computed.into_iter().chain(estimated) {
        let seconds = mean_cpu_seconds(|| {
            add_regularizer(model, trainable, regularizer, 1e-4, &mut GradientsParams::new());
        });
        found.extend(seconds.map(|seconds| (name, seconds)));
    }
    found
}

/// CPU seconds that each retraction adds to a step of AdamW: projections of gradient, step and running mean to the tangent space, and
/// the retraction itself. Empty if the system does not say.
pub fn retraction_cpu_seconds<M: Module>(model: &M, trainable: &[Trainable]) -> BTreeMap<String, f64> {
    let step = |retraction: Retraction| {
        let mut parameters = trainable.to_vec();
        if retraction != Retraction::None {
            parameters = parameters.into_iter().map(|parameter| parameter.retracted_by(retraction)).collect();
        }
        let config = OptimizerConfig { learning_rate: 1e-4.into(), ..OptimizerConfig::default() };
        let mut optimizer = Optimizer::new(config, &parameters);
        let mut moved = Some(model.clone());
        // The gradient of the regularizer, as one is needed; each step takes the same time for it.
        mean_cpu_seconds(|| {
            let mut gradients = GradientsParams::new();
            add_regularizer(model, trainable, RegularizerForm::Paper, 1e-4, &mut gradients);
            moved = moved.take().map(|model| optimizer.step(model, gradients, 1.0, Decoupled::default()));
        })
    };
    let mut found = BTreeMap::new();
    let Some(free) = step(Retraction::None) else { return found };
    let retractions =
        [("polar", Retraction::Polar), ("qr", Retraction::Qr), ("newton-schulz", Retraction::NewtonSchulz)];
    for (name, retraction) in retractions {
        found.extend(step(retraction).map(|seconds| (name.to_owned(), (seconds - free).max(0.0))));
    }
    found
}

/// The mean over some calls after the first one.
fn mean_cpu_seconds(mut call: impl FnMut()) -> Option<f64> {
    call();
    let before = cpu_seconds()?;
    for _ in 0..EVALUATIONS {
        call();
    }
    Some((cpu_seconds()? - before) / f64::from(EVALUATIONS))
}

#[cfg(test)]
mod tests {
    use burn::prelude::*;
    use sorsa_adapter::{AdapterConfig, AttachOptions, Method};
    use sorsa_models::{CausalLm, ModelConfig};

    use super::*;

    #[test]
    fn every_form_and_every_retraction_has_a_cost() {
        let config: ModelConfig = super::super::args::Sizes {
            dim: 16,
            layers: 1,
            heads: 2,
            kv_heads: 2,
            ffn: 24,
            vocab: 30,
            batch: 1,
            seq: 8,
        }
        .config()
        .unwrap();
        let model = CausalLm::init(&config, &Device::flex().autodiff());
        let attached =
            AdapterConfig::new(Method::Sorsa, 4, &["q_proj"]).attach(model, &AttachOptions::default()).unwrap();
        let names = |found: BTreeMap<String, f64>| found.into_keys().collect::<Vec<_>>().join(" ");
        let regularizer = regularizer_cpu_seconds(&attached.model, &attached.trainable);
        assert_eq!(names(regularizer), "nuclear paper probes=1 probes=4 spectral");
        let retraction = retraction_cpu_seconds(&attached.model, &attached.trainable);
        assert!(retraction.values().all(|seconds| seconds.is_finite() && *seconds >= 0.0));
        assert_eq!(names(retraction), "newton-schulz polar qr");
    }
}
