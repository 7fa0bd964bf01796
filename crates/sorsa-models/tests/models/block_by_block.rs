//! Gradients block by block are those of one tape. Alone in its process: dropout draws from burn's one generator, which
//! tests beside this one would draw from too.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use sorsa_adapter::{AdapterConfig, Method};
use sorsa_models::{ActivationFormat, CausalLm, ModelConfig, ModelInput, Pass};

use crate::common::larger::larger;

const LEN: usize = 9;
/// Dropout draws from burn's one generator: one test at a time.
static GENERATOR: Mutex<()> = Mutex::new(());

fn model(adapter: &AdapterConfig, tied: bool) -> CausalLm {
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3,
        "num_attention_heads": 2, "vocab_size": 11, "max_position_embeddings": 32, "initializer_range": 0.3,
        "tie_word_embeddings": tied,
    });
    let config = ModelConfig::parse(config.as_object().unwrap().clone()).unwrap();
    let device = Device::flex();
    device.seed(3);
    adapter.attach(CausalLm::init(&config, &device), &Default::default()).unwrap().model.train()
}

struct OnHost<'a> {
    gradients: &'a GradientsParams,
    found: BTreeMap<ParamId, Vec<f32>>,
}

impl ModuleVisitor for OnHost<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.found.insert(param.id, gradient.into_data().try_into_vec::<f32>().unwrap());
        }
    }
}

fn loss_and_gradients(model: &CausalLm, seed: u64, checkpoint_blocks: bool) -> (f32, BTreeMap<ParamId, Vec<f32>>) {
    with_activations(model, seed, checkpoint_blocks, ActivationFormat::F32)
}

fn with_activations(
    model: &CausalLm,
    seed: u64,
    checkpoint_blocks: bool,
    activations: ActivationFormat,
) -> (f32, BTreeMap<ParamId, Vec<f32>>) {
    let ids: Vec<i32> = (0..2 * LEN).map(|i| (i * i % 11) as i32).collect();
    let targets: Vec<i32> = (0..2 * LEN).map(|i| if i % 4 == 0 { -100 } else { (i * 5 % 11) as i32 }).collect();
    let positions: Vec<i32> = (0..2 * LEN).map(|i| (i % LEN) as i32).collect();
    let segments = vec![1; 2 * LEN];
    let input = ModelInput { rows: 2, len: LEN, input_ids: &ids, positions: &positions, segments: &segments };
    let pass = Pass { divisor: 13.0, seed, checkpoint_blocks, activations };
    let (loss, gradients) = model.loss_gradients(&input, &targets, &pass).unwrap();
    let mut on_host = OnHost { gradients: &gradients, found: BTreeMap::new() };
    model.visit(&mut on_host);
    (loss.into_scalar::<f32>(), on_host.found)
}

fn distance(a: &BTreeMap<ParamId, Vec<f32>>, b: &BTreeMap<ParamId, Vec<f32>>) -> f32 {
    assert!(a.keys().eq(b.keys()), "other parameters have gradients");
    let pairs = a.iter().flat_map(|(id, values)| values.iter().zip(&b[id]));
    pairs.fold(0f32, |worst, (a, b)| larger(worst, (a - b).abs()))
}

#[test]
fn block_by_block_the_loss_and_all_gradients_are_those_of_one_tape_with_the_same_dropout() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let adapter = |method| AdapterConfig::new(method, 2, &["q_proj", "up_proj", "down_proj"]).with_dropout(0.4);
    let full = AdapterConfig::new(Method::Full, 1, &[]);
    let above = AdapterConfig::new(Method::Partial, 1, &["model.layers.1.*"]);
    let cases = [
        (adapter(Method::Sorsa), false),
        (adapter(Method::Lora), true),
        (full.clone(), false),
        (full, true),
        (above, false),
    ];
    for (config, tied) in cases {
        let model = model(&config, tied);
        let (loss, one_tape) = loss_and_gradients(&model, 7, false);
        let (by_blocks_loss, by_blocks) = loss_and_gradients(&model, 7, true);
        let method = config.method();
        assert!((loss - by_blocks_loss).abs() < 1e-6, "{method}: {loss} and {by_blocks_loss}");
        let distance_of_ways = distance(&one_tape, &by_blocks);
        assert!(!one_tape.is_empty() && distance_of_ways < 1e-6, "{method}: {distance_of_ways}");
        if config.dropout > 0.0 {
            let (_, other_seed) = loss_and_gradients(&model, 8, false);
            assert!(distance(&one_tape, &other_seed) > 1e-4, "{method}: dropout does not depend on the seed");
        }
    }
}

#[test]
fn activations_kept_in_bf16_change_gradients_by_their_rounding_alone_and_no_loss() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let adapter = |method| AdapterConfig::new(method, 2, &["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"]);
    let full = AdapterConfig::new(Method::Full, 1, &[]);
    for config in [adapter(Method::Sorsa), adapter(Method::Lora).with_dropout(0.4), full] {
        let (model, method) = (model(&config, false), config.method());
        let (loss, exact) = loss_and_gradients(&model, 7, false);
        let (rounded_loss, rounded) = with_activations(&model, 7, false, ActivationFormat::Bf16);
        assert_eq!(loss, rounded_loss, "{method}");
        assert!(exact.keys().eq(rounded.keys()), "{method}: other parameters have gradients");
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
        let differences = exact.iter().flat_map(|(id, values)| values.iter().zip(&rounded[id])).map(|(a, b)| a - b);
        let relative = norm(&mut differences.into_iter()) / norm(&mut exact.values().flatten().copied());
        assert!(relative > 1e-5 && relative < 5e-3, "{method}: {relative}");
        // Block by block, the same numbers are rounded.
        let (_, by_blocks) = with_activations(&model, 7, true, ActivationFormat::Bf16);
        let distance_of_ways = distance(&rounded, &by_blocks);
        assert!(distance_of_ways < 1e-6, "{method}: {distance_of_ways}");
    }
}
