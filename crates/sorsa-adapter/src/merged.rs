//! The weights of a model with its adapter merged, one at a time: the model itself stays as it is, and no more than one weight is widened.

use burn::module::Module;
use burn::tensor::FloatDType;
use sorsa_files::HostTensor;

use crate::attach::Attached;
use crate::host_tensor::HostTensorExt;
use crate::parameters::weights;
use crate::state::SavedAdapter;

/// The adapted weights of a model, to be merged one at a time.
#[derive(Debug)]
pub struct MergedWeights<'a, M: Module> {
    model: &'a M,
    adapter: SavedAdapter,
}

impl<M: Module> Attached<M> {
    /// The adapted weights with the adapter added, one at a time; [`merge`](Self::merge) has all of them in memory.
    pub fn merged_weights(&self) -> MergedWeights<'_, M> {
        MergedWeights { model: &self.model, adapter: self.snapshot() }
    }
}

impl<M: Module> MergedWeights<'_, M> {
    /// The weight `[d_out, d_in]` of the linear layer at `path` with the adapter added, f32; nothing if no adapter is attached there.
    pub fn weight(&self, path: &str) -> Option<HostTensor> {
        let state = &self.adapter.state;
        let definition = state.config.method_at(path).factored()?;
        let module = state.modules.iter().find(|module| module.path == path)?;
        let frozen = weights(self.model, &[path].into()).remove(path)?;
        let adapter = self.adapter.adapter_of(module, &definition, &frozen);
        Some(HostTensor::from_tensor(adapter.compose(frozen.into_dense().cast(FloatDType::F32)).transpose()))
    }
}

#[cfg(test)]
mod tests {
    use burn::prelude::*;

    use super::*;
    use crate::{AdapterConfig, AttachOptions, Linear, Method, PackedFormat, PackedMatrix};

    #[derive(Module, Debug)]
    struct Model {
        layer: Linear,
    }

    #[test]
    fn a_weight_that_is_merged_alone_is_that_of_the_merged_model_packed_or_not() {
        let device = Device::flex();
        let values: Vec<f32> = (0..96 * 64).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 300.0).collect();
        let matrix = PackedMatrix::pack(PackedFormat::NF4, [96, 64], &values).unwrap();
        let dense = Linear::from(burn::nn::LinearConfig::new(64, 96).with_bias(false).init(&device));
        for layer in [dense.clone(), dense.with_packed(&matrix)] {
            for method in [Method::Lora, Method::Sorsa, Method::Dora] {
                let config = AdapterConfig::new(method, 4, &["layer"]);
                let attached = config.attach(Model { layer: layer.clone() }, &AttachOptions::default()).unwrap();
                let alone = attached.merged_weights().weight("layer").unwrap();
                assert_eq!(alone.shape, [96, 64]);
                assert!(attached.merged_weights().weight("other").is_none());
                let merged = HostTensor::from_tensor(attached.merge().0.layer.weight.val().transpose());
                let far = alone.values.iter().zip(&merged.values).fold(0f32, |far, (a, b)| far.max((a - b).abs()));
                assert!(far < 1e-5, "{method}: {far}");
            }
        }
    }
}
