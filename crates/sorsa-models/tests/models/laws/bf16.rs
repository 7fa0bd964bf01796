//! Weights in bf16 beside activations in f32.

use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::DType;
use serde_json::json;
use sorsa_adapter::{AdapterConfig, Method};
use sorsa_checkpoint::WeightFormat;
use sorsa_models::{CausalLm, Mlp};
use tempfile::tempdir;

use super::{A, B, Rows, families, generate, greedy, logits, model, prompts, values};
use crate::common::larger::larger;
use crate::common::processor::rounds_activations;

/// The model with matrices that are the same in every run: burn's generator is shared by tests that run beside.
fn repeatable(model: CausalLm) -> CausalLm {
    struct Repeatable(u64);
    impl ModuleMapper for Repeatable {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if D == 1 {
                return param;
            }
            param.map(|old| {
                // Uniform, of the deviation that the configuration asks for.
                let mut next = || {
                    self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    0.3 * 3f32.sqrt() * ((self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0)
                };
                let numbers: Vec<f32> = (0..old.shape().num_elements()).map(|_| next()).collect();
                Tensor::from_data(TensorData::new(numbers, old.shape()), &old.device())
            })
        }
    }
    model.map(&mut Repeatable(1))
}

fn up_proj(model: &CausalLm) -> Tensor<2> {
    let CausalLm::Transformer(transformer) = model else { panic!("a transformer") };
    let Mlp::Separate(mlp) = &transformer.model.layers[0].mlp else { panic!("not fused") };
    mlp.up_proj.weight.val()
}

fn first_norm(model: &CausalLm) -> Tensor<1> {
    let CausalLm::Transformer(transformer) = model else { panic!("a transformer") };
    transformer.model.layers[0].input_layernorm.weight.val()
}

#[test]
fn weights_kept_as_bf16_are_those_of_the_file_and_norms_stay_f32() {
    let folder = tempdir().unwrap();
    model(json!({})).save(folder.path(), WeightFormat::Bf16).unwrap();
    let load = |format| CausalLm::load(folder.path(), format, &Device::flex()).unwrap();
    let (narrow, wide) = (load(WeightFormat::Bf16), load(WeightFormat::F32));
    let (narrow_weights, narrow_norm) = (up_proj(&narrow), first_norm(&narrow));
    assert_eq!(narrow_weights.dtype(), DType::BF16);
    assert_eq!(narrow_norm.dtype(), DType::F32);
    assert_eq!(values(narrow_weights), values(up_proj(&wide)));

    // Computed in bf16, with its 8 bits of precision.
    let (found, expected) = (logits(&narrow, A), logits(&wide, A));
    let largest = expected.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
    let worst = found.iter().zip(&expected).fold(0f32, |worst, (f, e)| larger(worst, (f - e).abs()));
    assert!(worst < 0.1 * largest, "{worst} of {largest}");
    let loss = |model| Rows::new(&[&[A]]).loss(model) / (A.len() - 1) as f32;
    assert!((loss(&narrow) / loss(&wide) - 1.0).abs() < 0.02, "{} {}", loss(&narrow), loss(&wide));
    let rewritten = tempdir().unwrap();
    narrow.save(rewritten.path(), WeightFormat::Bf16).unwrap();
    let bytes = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(bytes(rewritten.path()), bytes(folder.path()));
}

#[test]
fn every_family_computes_in_bf16_what_it_computes_in_f32_to_its_precision() {
    for family in families() {
        let folder = tempdir().unwrap();
        model(family).save(folder.path(), WeightFormat::Bf16).unwrap();
        let loss = |format| {
            let model = CausalLm::load(folder.path(), format, &Device::flex()).unwrap();
            Rows::new(&[&[A], &[B]]).loss(&model)
        };
        let (narrow, wide) = (loss(WeightFormat::Bf16), loss(WeightFormat::F32));
        assert!((narrow / wide - 1.0).abs() < 0.03, "{}: {narrow} {wide}", folder.path().display());
        assert!(narrow != wide || !rounds_activations(), "{}: {narrow}", folder.path().display());
    }
}

#[test]
fn prompts_of_a_batch_in_bf16_are_continued_as_if_alone() {
    for family in families() {
        let folder = tempdir().unwrap();
        repeatable(model(family)).save(folder.path(), WeightFormat::Bf16).unwrap();
        let model = CausalLm::load(folder.path(), WeightFormat::Bf16, &Device::flex()).unwrap();
        let together = generate(&model, &prompts(), &greedy(12, &[]));
        for (prompt, together) in prompts().iter().zip(&together) {
            assert_eq!(
                generate(&model, std::slice::from_ref(prompt), &greedy(12, &[])),
                std::slice::from_ref(together)
            );
        }
    }
}

#[test]
fn gradients_of_an_adapter_beside_weights_in_bf16_are_those_beside_f32_to_its_precision() {
    let folder = tempdir().unwrap();
    repeatable(model(json!({}))).save(folder.path(), WeightFormat::Bf16).unwrap();
    for method in [Method::Lora, Method::Sorsa, Method::Dora] {
        let gradients = |format| {
            let base = CausalLm::load(folder.path(), format, &Device::flex().autodiff()).unwrap();
            let attached = AdapterConfig::new(method, 4, &["all-linear"]).attach(base, &Default::default()).unwrap();
            let loss = attached.model.loss_sum(&Rows::new(&[&[A], &[B]]).input(), &Rows::new(&[&[A], &[B]]).targets());
            let gradients = GradientsParams::from_grads(loss.unwrap().backward(), &attached.model);
            let of_factors = Flattened::of(&attached.model, &gradients);
            assert!(!of_factors.is_empty(), "{method}: no gradients");
            of_factors
        };
        let (narrow, wide) = (gradients(WeightFormat::Bf16), gradients(WeightFormat::F32));
        assert_eq!(narrow.len(), wide.len());
        let norm = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let difference: Vec<f32> = narrow.iter().zip(&wide).map(|(n, w)| n - w).collect();
        let relative = norm(&difference) / norm(&wide);
        // A wrong product would be off by about 1, rounding is by about 0.01.
        assert!(relative < 0.02, "{method}: {relative}");
    }
}

/// The gradients of all parameters that have one, after each other.
struct Flattened<'a> {
    gradients: &'a GradientsParams,
    values: Vec<f32>,
}

impl<'a> Flattened<'a> {
    fn of(model: &CausalLm, gradients: &'a GradientsParams) -> Vec<f32> {
        let mut all = Self { gradients, values: Vec::new() };
        model.visit(&mut all);
        all.values
    }
}

impl ModuleVisitor for Flattened<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.values.extend(values(gradient));
        }
    }
}
