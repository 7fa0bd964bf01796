//! What holds for every model, on small ones with random weights.

mod bf16;
mod sizes;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::prelude::*;
use burn::tensor::Distribution;
use serde_json::{Value, json};
use sorsa_adapter::{AdapterConfig, Method};
use sorsa_checkpoint::weights::{Checkpoint, CheckpointWriter, Expected, WeightsError};
use sorsa_checkpoint::{SourceError, WeightFormat};
use sorsa_models::{
    CausalLm, Finish, GenerateError, GenerateOptions, Generation, ModelConfig, ModelError, ModelInput, Requests,
    Sampling,
};
use tempfile::tempdir;

use crate::common::larger::larger;

const CLOSE: f32 = 2e-5;

/// A llama of two blocks, 50 tokens and a context of 40, with some fields replaced. Its weights are large enough for
/// its predictions to differ.
fn config(changes: Value) -> ModelConfig {
    let mut json = json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 40,
        "initializer_range": 0.3,
    });
    let object = json.as_object_mut().unwrap();
    object.extend(changes.as_object().unwrap().clone());
    ModelConfig::parse(object.clone()).unwrap()
}

fn model(changes: Value) -> CausalLm {
    CausalLm::init(&config(changes), &Device::flex())
}

/// What makes a model of each family, with its switches on and windows shorter than any sequence here.
fn families() -> Vec<Value> {
    let no_heads = json!({"num_attention_heads": null, "num_key_value_heads": null});
    let with = |mut object: Value, more: Value| {
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object
    };
    vec![
        json!({"model_type": "llama"}),
        json!({"model_type": "mistral", "sliding_window": 3}),
        json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 3, "max_window_layers": 1}),
        json!({"model_type": "qwen3", "head_dim": 6, "attention_bias": true}),
        json!({"model_type": "gemma", "head_dim": 8, "hidden_act": "gelu"}),
        json!({"model_type": "gemma2", "head_dim": 4, "sliding_window": 3, "query_pre_attn_scalar": 7,
            "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
        json!({"model_type": "gemma3_text", "head_dim": 4, "sliding_window": 3, "query_pre_attn_scalar": 7,
            "sliding_window_pattern": 2, "rope_local_base_freq": 50.0}),
        json!({"model_type": "phi3", "partial_rotary_factor": 0.5}),
        with(json!({"model_type": "rwkv", "attention_hidden_size": 12}), no_heads.clone()),
        with(json!({"model_type": "rwkv6", "head_size": 8}), no_heads),
    ]
}

/// A model of each family.
fn all() -> Vec<CausalLm> {
    families().into_iter().map(model).collect()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec::<f32>().unwrap()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1f32, |largest, value| largest.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < CLOSE * largest, "at {i}: {found}, expected {expected}");
    }
}

/// Rows of sequences, each padded on the right to the longest row.
struct Rows {
    len: usize,
    ids: Vec<i32>,
    positions: Vec<i32>,
    segments: Vec<i32>,
}

impl Rows {
    fn new(rows: &[&[&[i32]]]) -> Self {
        let len = rows.iter().map(|row| row.concat().len()).max().unwrap();
        let mut all = Self { len, ids: vec![], positions: vec![], segments: vec![] };
        for (index, row) in (1..).zip(rows) {
            for (segment, ids) in (1..).zip(*row) {
                all.ids.extend(*ids);
                all.positions.extend(0..ids.len() as i32);
                all.segments.extend(vec![segment; ids.len()]);
            }
            all.ids.resize(index * len, 7);
            all.positions.resize(index * len, 0);
            all.segments.resize(index * len, 0);
        }
        all
    }

    fn input(&self) -> ModelInput<'_> {
        let rows = self.ids.len() / self.len;
        let (input_ids, positions, segments) = (&self.ids, &self.positions, &self.segments);
        ModelInput { rows, len: self.len, input_ids, positions, segments }
    }

    /// The next token of the same sequence, where there is one.
    fn targets(&self) -> Vec<i32> {
        let follows = |i: usize| {
            !(i + 1).is_multiple_of(self.len) && self.segments[i] > 0 && self.segments[i + 1] == self.segments[i]
        };
        (0..self.ids.len()).map(|i| if follows(i) { self.ids[i + 1] } else { -100 }).collect()
    }

    fn loss(&self, model: &CausalLm) -> f32 {
        model.loss_sum(&self.input(), &self.targets()).unwrap().into_scalar::<f32>()
    }
}

/// Logits `[len * vocab_size]` of one sequence by itself.
fn logits(model: &CausalLm, ids: &[i32]) -> Vec<f32> {
    values(model.logits(model.hidden(&Rows::new(&[&[ids]]).input())))
}

const A: &[i32] = &[1, 12, 30, 4, 41, 9, 22, 17, 3, 28];
const B: &[i32] = &[5, 49, 2, 36, 11];

#[test]
fn padding_on_the_right_changes_nothing_for_the_tokens_before_it() {
    for model in all() {
        let rows = Rows::new(&[&[A], &[B]]);
        let together = values(model.logits(model.hidden(&rows.input())));
        let start = rows.len * 50;
        assert_close(&together[..start], &logits(&model, A));
        assert_close(&together[start..start + B.len() * 50], &logits(&model, B));
        assert!(together.iter().all(|logit| logit.is_finite()));
    }
}

#[test]
fn sequences_packed_into_one_row_do_not_see_each_other() {
    for model in all() {
        let packed = Rows::new(&[&[A, B], &[B]]);
        let together = values(model.logits(model.hidden(&packed.input())));
        let apart = [logits(&model, A), logits(&model, B)].concat();
        assert_close(&together[..apart.len()], &apart);
        let loss = Rows::new(&[&[A], &[B], &[B]]).loss(&model);
        assert!((packed.loss(&model) - loss).abs() < 1e-4 * loss, "{} packed, {loss} apart", packed.loss(&model));
    }
}

#[test]
fn a_window_of_w_in_two_blocks_reaches_back_twice_w_minus_one() {
    let model = model(json!({"model_type": "mistral", "sliding_window": 3}));
    let before = logits(&model, A);
    let after = logits(&model, &[&[40], &A[1..]].concat());
    let moved = |position: usize| (0..50).any(|i| before[position * 50 + i] != after[position * 50 + i]);
    assert_eq!((0..A.len()).map(moved).collect::<Vec<_>>(), (0..A.len()).map(|p| p <= 4).collect::<Vec<_>>());
}

#[test]
fn a_window_as_long_as_the_sequence_is_none() {
    let folder = tempdir().unwrap();
    let window = |length: Value| json!({"model_type": "mistral", "sliding_window": length});
    model(window(Value::Null)).save(folder.path(), WeightFormat::F32).unwrap();
    let with = |length: Value| {
        write_config(folder.path(), &config(window(length)));
        logits(&CausalLm::load(folder.path(), WeightFormat::F32, &Device::flex()).unwrap(), A)
    };
    let without = with(Value::Null);
    assert_close(&with(A.len().into()), &without);
    assert_ne!(with((A.len() - 1).into()), without);
}

fn greedy(max_new_tokens: usize, stop: &[u32]) -> GenerateOptions {
    GenerateOptions { max_new_tokens, sampling: Sampling::Greedy, stop: stop.to_vec() }
}

fn generate(model: &CausalLm, prompts: &[Vec<u32>], options: &GenerateOptions) -> Vec<Generation> {
    let mut told = vec![Vec::new(); prompts.len()];
    let generations = model.generate(prompts, options, |row, token| told[row].push(token)).unwrap();
    let ids: Vec<_> = generations.iter().map(|generation| generation.ids.clone()).collect();
    assert_eq!(told, ids, "every token is told of, in order");
    generations
}

fn prompts() -> Vec<Vec<u32>> {
    vec![vec![1, 12, 30, 4, 41, 9, 22], vec![5], vec![49, 2, 36], vec![8, 8, 8, 8]]
}

#[test]
fn generation_with_a_cache_is_the_argmax_of_the_whole_sequence_again_and_again() {
    for model in all() {
        for prompt in prompts() {
            let mut ids: Vec<i32> = prompt.iter().map(|id| *id as i32).collect();
            for _ in 0..9 {
                let last = logits(&model, &ids)[(ids.len() - 1) * 50..].to_vec();
                ids.push((0..50).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap() as i32);
            }
            let expected: Vec<u32> = ids[prompt.len()..].iter().map(|id| *id as u32).collect();
            let found = generate(&model, &[prompt], &greedy(9, &[]));
            assert_eq!(found, [Generation { ids: expected, finish: Finish::Length }]);
        }
    }
}

#[test]
fn each_prompt_of_a_batch_is_continued_as_if_alone_also_when_others_end_before_it() {
    for model in all() {
        let free = generate(&model, &prompts(), &greedy(12, &[]));
        // Tokens that end some of the rows, at different steps.
        let stop = [free[0].ids[2], free[1].ids[5]];
        for options in [greedy(12, &[]), greedy(12, &stop)] {
            let together = generate(&model, &prompts(), &options);
            for (prompt, together) in prompts().iter().zip(&together) {
                assert_eq!(generate(&model, std::slice::from_ref(prompt), &options), std::slice::from_ref(together));
            }
        }
        let stopped = generate(&model, &prompts(), &greedy(12, &stop));
        assert!(stopped[0].finish == Finish::Stop && stopped[0].ids.len() <= 2);
        assert!(stopped.iter().all(|row| row.ids.iter().all(|id| !stop.contains(id))), "a stop token is no result");
    }
}

#[test]
fn generation_ends_where_the_context_does() {
    let prompts = [vec![3; 36], vec![4; 2]];
    let lengths = |rows: &[Generation]| rows.iter().map(|row| (row.ids.len(), row.finish)).collect::<Vec<_>>();
    for model in all().into_iter().filter(|model| model.config().context_length().is_some()) {
        let found = generate(&model, &prompts, &greedy(1000, &[]));
        assert_eq!(lengths(&found), [(4, Finish::Length), (38, Finish::Length)]);
        assert_eq!(generate(&model, &prompts[1..], &greedy(1000, &[]))[0], found[1]);
    }
    // Scaled rotary embeddings reach further.
    for kind in ["dynamic", "yarn"] {
        let model = model(json!({"rope_scaling": {"rope_type": kind, "factor": 1.5}}));
        assert_eq!(
            lengths(&generate(&model, &prompts, &greedy(1000, &[]))),
            [(24, Finish::Length), (58, Finish::Length)]
        );
    }
}

#[test]
fn a_recurrence_has_no_end() {
    for model in all().into_iter().filter(|model| model.config().context_length().is_none()) {
        let found = generate(&model, &[vec![3; 60]], &greedy(30, &[]));
        assert_eq!((found[0].ids.len(), found[0].finish), (30, Finish::Length));
    }
}

#[test]
fn dynamic_frequencies_change_only_past_the_context_of_the_pretraining() {
    let folder = tempdir().unwrap();
    let dynamic = model(json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}));
    dynamic.save(folder.path(), WeightFormat::F32).unwrap();
    write_config(folder.path(), &config(json!({})));
    let plain = CausalLm::load(folder.path(), WeightFormat::F32, &Device::flex()).unwrap();
    let ids: Vec<i32> = (0..41).map(|i| i * 7 % 50).collect();
    assert_eq!(logits(&dynamic, &ids[..40]), logits(&plain, &ids[..40]));
    assert_ne!(logits(&dynamic, &ids), logits(&plain, &ids));
}

#[test]
fn the_same_seed_draws_the_same_tokens_and_another_seed_others() {
    let model = model(json!({}));
    let draw = |seed| {
        let sampling = Sampling::Random { temperature: 2.0, top_k: None, top_p: None, seed };
        generate(&model, &prompts(), &GenerateOptions { max_new_tokens: 12, sampling, stop: vec![] })
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let same_prompt = vec![vec![5]; 2];
    let sampling = Sampling::Random { temperature: 2.0, top_k: None, top_p: None, seed: 1 };
    let rows = generate(&model, &same_prompt, &GenerateOptions { max_new_tokens: 12, sampling, stop: vec![] });
    assert_ne!(rows[0], rows[1], "rows draw from streams of their own");
}

#[test]
fn a_prompt_that_cannot_be_continued_is_an_error_that_names_it() {
    let model = model(json!({}));
    let error = |prompt: Vec<u32>| model.generate(&[vec![1], prompt], &greedy(2, &[]), |_, _| ()).unwrap_err();
    assert!(matches!(error(vec![]), GenerateError::Empty { row: 1 }));
    assert!(matches!(error(vec![1; 40]), GenerateError::TooLong { row: 1, tokens: 40, context: 40 }));
    assert!(matches!(error(vec![3, 50]), GenerateError::UnknownToken { row: 1, token: 50, vocabulary: 50 }));
}

#[test]
fn logits_that_are_not_finite_are_an_error_that_names_the_prompt() {
    for changes in [json!({}), json!({"model_type": "rwkv", "num_attention_heads": null, "num_key_value_heads": null})]
    {
        for broken in [f32::NAN, f32::INFINITY] {
            // The embedding of one token, the model's first parameter, is broken for the prompt that holds the token.
            struct Break(Option<f32>);
            impl ModuleMapper for Break {
                fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                    let Some(broken) = self.0.take() else { return param };
                    param.map(|table| {
                        let mut values = table.clone().into_data().try_into_vec::<f32>().unwrap();
                        let width = values.len() / 50;
                        values[7 * width..8 * width].fill(broken);
                        Tensor::from_data(TensorData::new(values, table.shape()), &table.device())
                    })
                }
            }
            let model = model(changes.clone()).map(&mut Break(Some(broken)));
            let sampled = Sampling::Random { temperature: 1.0, top_k: None, top_p: None, seed: 1 };
            for sampling in [Sampling::Greedy, sampled] {
                let options = GenerateOptions { sampling, ..greedy(3, &[]) };
                let prompts = [vec![3, 4], vec![7, 5]];
                let error = model.generate(&prompts, &options, |_, _| ()).unwrap_err();
                assert!(matches!(error, GenerateError::NotFinite { row: 1 }), "{changes} {error}");
                let requests = Requests { prompts: &prompts, streams: &[0, 1], slots: 2 };
                let go_on = |_: usize, _: &[u32]| ControlFlow::Continue(());
                let error =
                    model.generate_queue(requests, &options, go_on, |_, _| ControlFlow::Continue(())).unwrap_err();
                assert!(matches!(error, GenerateError::NotFinite { row: 1 }), "{changes} {error}");
            }
        }
    }
}

#[test]
fn what_is_saved_and_loaded_gives_the_same_logits_to_the_bit() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16});
    for changes in [
        json!({}),
        json!({"tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": [2, 3]}),
        json!({"attention_bias": true, "mlp_bias": true, "head_dim": 6, "rope_theta": 500.0}),
        json!({"rope_scaling": llama3, "rms_norm_eps": 1e-5}),
        json!({"rope_scaling": {"type": "linear", "factor": 2.5}}),
        json!({"rope_scaling": {"type": "dynamic", "factor": 2.5}}),
        json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10,
            "beta_fast": 8, "mscale": 0.7, "mscale_all_dim": 0.9, "truncate": false}}),
        json!({"model_type": "mistral", "sliding_window": null}),
        json!({"model_type": "phi3", "sliding_window": 5}),
        json!({"model_type": "gemma2", "head_dim": 4, "tie_word_embeddings": false,
            "layer_types": ["full_attention", "sliding_attention"], "final_logit_softcapping": null}),
        json!({"model_type": "rwkv", "num_attention_heads": null, "num_key_value_heads": null,
            "tie_word_embeddings": true, "rescale_every": 0}),
    ]
    .into_iter()
    .chain(families())
    {
        let folder = tempdir().unwrap();
        let saved = model(changes.clone());
        let expected = logits(&saved, A);
        saved.save(folder.path(), WeightFormat::F32).unwrap();
        let loaded = CausalLm::load(folder.path(), WeightFormat::F32, &Device::flex()).unwrap();
        assert_eq!(loaded.config(), saved.config(), "{changes}");
        assert_eq!(logits(&loaded, A), expected, "{changes}");
        assert_eq!(loaded.num_params(), loaded.config().num_parameters(), "{changes}");
    }
}

#[test]
fn an_adapter_on_every_linear_layer_changes_nothing_and_merges_into_what_it_was_trained_to() {
    struct Noise(Vec<ParamId>);
    impl ModuleMapper for Noise {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if !self.0.contains(&param.id) {
                return param;
            }
            param.map(|value| value.clone() + value.random_like(Distribution::Normal(0.0, 0.05)))
        }
    }
    for family in families() {
        let base = model(family);
        let name = base.config().family.model_type();
        let before = logits(&base, A);
        for method in [Method::Sorsa, Method::Lora] {
            let config = AdapterConfig::new(method, 3, &["all-linear"]).with_alpha(6.0);
            let mut attached = config.attach(base.clone(), &Default::default()).unwrap();
            assert_near(&logits(&attached.model, A), &before, &format!("attached {method} to {name}"));
            let ids = attached.trainable.iter().map(|parameter| parameter.id).collect();
            attached.model = attached.model.map(&mut Noise(ids));
            let trained = logits(&attached.model, A);
            assert_ne!(trained, before, "{name}: the noise changed nothing");
            let (merged, _) = attached.merge();
            assert_near(&logits(&merged, A), &trained, &format!("merged {method} into {name}"));
        }
    }
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    let largest = expected.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
    let difference = found.iter().zip(expected).fold(0f32, |worst, (a, b)| larger(worst, (a - b).abs()));
    assert!(difference <= 2e-4 * largest, "{what}: logits differ by {difference}, the largest is {largest}");
}

#[test]
fn adapters_are_on_the_layers_that_peft_would_name() {
    let targets = |family: &str| {
        let family = families().into_iter().find(|object| object["model_type"] == family).unwrap();
        let config = AdapterConfig::new(Method::Lora, 2, &["all-linear"]);
        let mut names: Vec<String> = config
            .targets(&model(family))
            .unwrap()
            .into_iter()
            .filter_map(|target| target.path.split_once(".0.").map(|(_, name)| name.to_owned()))
            .collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(targets("phi3"), "mlp.down_proj mlp.gate_up_proj self_attn.o_proj self_attn.qkv_proj");
    assert_eq!(
        targets("gemma3_text"),
        "mlp.down_proj mlp.gate_proj mlp.up_proj self_attn.k_proj self_attn.o_proj self_attn.q_proj self_attn.v_proj"
    );
    assert_eq!(
        targets("rwkv6"),
        "attention.gate attention.key attention.output attention.receptance attention.value feed_forward.key \
         feed_forward.receptance feed_forward.value"
    );
}

#[test]
fn linear_scaling_is_a_division_of_the_positions() {
    let folder = tempdir().unwrap();
    let scaled = model(json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}));
    let plain = {
        scaled.save(folder.path(), WeightFormat::F32).unwrap();
        write_config(folder.path(), &config(json!({})));
        CausalLm::load(folder.path(), WeightFormat::F32, &Device::flex()).unwrap()
    };
    let mut rows = Rows::new(&[&[A]]);
    rows.positions.iter_mut().for_each(|position| *position *= 2);
    assert_close(&values(scaled.logits(scaled.hidden(&rows.input()))), &logits(&plain, A));
}

fn write_config(folder: &Path, config: &ModelConfig) {
    std::fs::write(folder.join("config.json"), config.to_json().to_string()).unwrap();
}

#[test]
fn every_tensor_that_does_not_fit_is_named_in_one_error() {
    let folder = tempdir().unwrap();
    model(json!({"mlp_bias": true})).save(folder.path(), WeightFormat::F32).unwrap();
    write_config(folder.path(), &config(json!({"attention_bias": true, "vocab_size": 51})));
    let error = CausalLm::load(folder.path(), WeightFormat::F32, &Device::flex()).unwrap_err();
    let ModelError::Source(SourceError::Weights(WeightsError::Mismatch { missing, extra, misshapen, .. })) = &error
    else {
        panic!("{error}")
    };
    // Two blocks: four biases of attention each are missing, three of the feed-forward are left.
    assert_eq!((missing.len(), extra.len(), misshapen.len()), (8, 6, 2));
    let message = error.to_string();
    for name in ["layers.1.self_attn.o_proj.bias [16]", "layers.0.mlp.up_proj.bias [24]", "lm_head.weight"] {
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn weights_that_are_not_numbers_are_named_in_one_error() {
    let folder = tempdir().unwrap();
    model(json!({})).save(folder.path(), WeightFormat::F32).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = checkpoint
        .names()
        .map(|name| (name.to_owned(), (checkpoint.info(name).unwrap().shape.clone(), checkpoint.to_f32(name).unwrap())))
        .collect();
    let mut poison = |name: &str, value| tensors.get_mut(name).unwrap().1[3] = value;
    poison("model.norm.weight", f32::NAN);
    poison("model.layers.1.mlp.up_proj.weight", f32::INFINITY);
    let expected: Vec<Expected> = tensors.iter().map(|(name, (shape, _))| Expected::new(name, shape.clone())).collect();
    let poisoned = tempdir().unwrap();
    CheckpointWriter::new(poisoned.path(), WeightFormat::F32)
        .write(&expected, |tensor| Ok::<_, WeightsError>(tensors[&tensor.name].1.clone()))
        .unwrap();
    write_config(poisoned.path(), &config(json!({})));
    for format in [WeightFormat::F32, WeightFormat::Bf16] {
        let error = CausalLm::load(poisoned.path(), format, &Device::flex()).unwrap_err();
        let ModelError::NotFinite { faults, .. } = &error else { panic!("{error}") };
        assert_eq!(faults.len(), 2, "{error}");
        assert!(error.to_string().contains("`model.norm.weight` element 3 is NaN"), "{error}");
    }
}

#[test]
fn no_target_is_no_loss() {
    let rows = Rows::new(&[&[A]]);
    assert!(model(json!({})).loss_sum(&rows.input(), &vec![-100; A.len()]).is_none());
}

#[test]
fn a_queue_gives_each_prompt_what_it_gets_alone() {
    for family in families() {
        let (name, model) = (family.to_string(), model(family));
        let prompts: Vec<Vec<u32>> =
            (0..13u32).map(|row| (0..1 + row * 5 % 11).map(|at| (7 * row + 3 * at) % 40 + 1).collect()).collect();
        let sampled = Sampling::Random { temperature: 0.8, top_k: Some(20), top_p: None, seed: 5 };
        // A stop token that greedy choice reaches, so that sequences end at different times.
        let free = generate(&model, &prompts, &greedy(9, &[]));
        let stop = [free[0].ids[4], free[5].ids[2]];
        for options in [
            greedy(9, &stop),
            greedy(0, &[]),
            GenerateOptions { max_new_tokens: 7, sampling: sampled, stop: stop.to_vec() },
        ] {
            let alone = model.generate(&prompts, &options, |_, _| ()).unwrap();
            let streams: Vec<u64> = (0..prompts.len() as u64).collect();
            for slots in [1, 3, 8, 20] {
                let mut found = vec![None; prompts.len()];
                let requests = Requests { prompts: &prompts, streams: &streams, slots };
                let keep = |row: usize, generation| {
                    assert!(found[row].replace(generation).is_none(), "{name}: row {row} ended twice");
                    ControlFlow::Continue(())
                };
                model.generate_queue(requests, &options, |_, _| ControlFlow::Continue(()), keep).unwrap();
                for (row, (found, alone)) in found.into_iter().zip(&alone).enumerate() {
                    assert_eq!(found.as_ref(), Some(alone), "{name}: row {row} of {slots} slots, {options:?}");
                }
            }
        }
    }
}

#[test]
fn a_queue_ends_when_it_is_told_to() {
    let model = model(json!({}));
    let mut ended = 0;
    let requests = Requests { prompts: &prompts(), streams: &vec![0; prompts().len()], slots: 2 };
    let stop = |_, _| {
        ended += 1;
        ControlFlow::Break(())
    };
    model.generate_queue(requests, &greedy(3, &[]), |_, _| ControlFlow::Continue(()), stop).unwrap();
    assert_eq!(ended, 1);
}

#[test]
fn a_row_of_a_queue_ends_where_it_is_told_to_and_the_others_go_on() {
    let model = model(json!({}));
    let (prompts, options) = (prompts(), greedy(4, &[]));
    let free = generate(&model, &prompts, &options);
    let requests = Requests { prompts: &prompts, streams: &vec![0; prompts.len()], slots: 2 };
    let mut told = vec![Vec::new(); prompts.len()];
    let mut found = vec![None; prompts.len()];
    let on_token = |row: usize, ids: &[u32]| {
        told[row] = ids.to_vec();
        if row == 1 && ids.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let keep = |row: usize, generation| {
        found[row] = Some(generation);
        ControlFlow::Continue(())
    };
    model.generate_queue(requests, &options, on_token, keep).unwrap();
    for (row, (found, free)) in found.into_iter().zip(free).enumerate() {
        let found = found.unwrap();
        assert_eq!(found.ids, told[row]);
        match row {
            1 => assert_eq!((&found.ids[..], found.finish), (&free.ids[..2], Finish::Stop)),
            _ => assert_eq!(found, free),
        }
    }
}
