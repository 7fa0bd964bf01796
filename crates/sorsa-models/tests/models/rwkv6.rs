//! RWKV-6 against its definition (Peng et al., 2024, arXiv 2404.05892, section 4.2), written down here token by token
//! in f64, for gradients too. The logits of its author's package are compared in `long_and_recurrent.rs`.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::prelude::*;
use burn::tensor::Distribution;
use serde_json::json;
use sorsa_adapter::{AdapterConfig, Method};
use sorsa_checkpoint::WeightFormat;
use sorsa_checkpoint::weights::Checkpoint;
use sorsa_models::{CausalLm, GenerateOptions, ModelConfig, ModelInput, Sampling};
use tempfile::tempdir;

const D: usize = 16;
const FFN: usize = 24;
const LAYERS: usize = 2;
const VOCABULARY: usize = 30;
const HEAD: usize = 8;
/// Longer than two chunks of the parallel form, and no multiple of one.
const LENGTH: usize = 41;

/// A small model whose every parameter, vectors too, is away from its start.
fn model() -> CausalLm {
    struct Noise;
    impl ModuleMapper for Noise {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|value| value.clone() + value.random_like(Distribution::Normal(0.0, 0.2)))
        }
    }
    let fields = json!({
        "model_type": "rwkv6", "hidden_size": D, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "vocab_size": VOCABULARY, "head_size": HEAD, "head_size_divisor": 3, "initializer_range": 0.2,
    });
    let config = ModelConfig::parse(fields.as_object().unwrap().clone()).unwrap();
    CausalLm::init(&config, &Device::flex()).map(&mut Noise)
}

fn ids() -> Vec<usize> {
    (0..LENGTH).map(|i| (i * i * 7 + i * 3 + 1) % VOCABULARY).collect()
}

/// The definition, over the tensors of a checkpoint.
#[derive(Clone)]
struct Literal {
    tensors: BTreeMap<String, Vec<f64>>,
}

/// What a block keeps.
struct State {
    attention: Vec<f64>,
    feed_forward: Vec<f64>,
    /// `[head][key][value]`.
    wkv: Vec<Vec<Vec<f64>>>,
}

impl Literal {
    fn of(model: &CausalLm) -> Self {
        let folder = tempdir().unwrap();
        model.save(folder.path(), WeightFormat::F32).unwrap();
        Self::read(folder.path())
    }

    fn read(folder: &Path) -> Self {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let values = |name: &str| checkpoint.to_f32(name).unwrap().into_iter().map(f64::from).collect();
        Self { tensors: checkpoint.names().map(|name| (name.to_owned(), values(name))).collect() }
    }

    fn get(&self, name: &str) -> &[f64] {
        &self.tensors[name]
    }

    /// `W x` with `W` `[d_out, d_in]`.
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let dot = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum();
        self.get(&format!("{name}.weight")).chunks_exact(x.len()).map(dot).collect()
    }

    fn norm(&self, name: &str, x: &[f64], epsilon: f64, width: usize) -> Vec<f64> {
        let (weight, bias) = (self.get(&format!("{name}.weight")), self.get(&format!("{name}.bias")));
        let mut y = Vec::new();
        for part in x.chunks_exact(width) {
            let mean = part.iter().sum::<f64>() / width as f64;
            let variance = part.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
            y.extend(part.iter().map(|x| (x - mean) / (variance + epsilon).sqrt()));
        }
        y.iter().zip(weight).zip(bias).map(|((y, w), b)| y * w + b).collect()
    }

    /// `x + (last - x) * share`.
    fn lerp(x: &[f64], last: &[f64], share: impl Fn(usize) -> f64) -> Vec<f64> {
        (0..x.len()).map(|i| x[i] + (last[i] - x[i]) * share(i)).collect()
    }

    fn time_mix(&self, prefix: &str, x: &[f64], state: &mut State) -> Vec<f64> {
        let get = |name: &str| self.get(&format!("{prefix}.{name}"));
        let last = &state.attention;
        // ddlerp: a share of each channel that depends on the token through a low-rank map.
        let share = get("time_maa_x");
        let inner = Self::lerp(x, last, |i| share[i]);
        let (w1, w2) = (get("time_maa_w1"), get("time_maa_w2"));
        let rank = w1.len() / D / 5;
        let low: Vec<f64> =
            (0..5 * rank).map(|j| (0..D).map(|i| inner[i] * w1[i * 5 * rank + j]).sum::<f64>().tanh()).collect();
        let blend = |index: usize, name: &str| {
            let share = get(name);
            let added =
                |i: usize| (0..rank).map(|j| low[index * rank + j] * w2[(index * rank + j) * D + i]).sum::<f64>();
            Self::lerp(x, last, |i| share[i] + added(i))
        };
        let for_decay = blend(0, "time_maa_w");
        let k = self.linear(&format!("{prefix}.key"), &blend(1, "time_maa_k"));
        let v = self.linear(&format!("{prefix}.value"), &blend(2, "time_maa_v"));
        let r = self.linear(&format!("{prefix}.receptance"), &blend(3, "time_maa_r"));
        let g = self.linear(&format!("{prefix}.gate"), &blend(4, "time_maa_g"));
        let (w1, w2, base) = (get("time_decay_w1"), get("time_decay_w2"), get("time_decay"));
        let rank = w1.len() / D;
        let low: Vec<f64> =
            (0..rank).map(|j| (0..D).map(|i| for_decay[i] * w1[i * rank + j]).sum::<f64>().tanh()).collect();
        let decay: Vec<f64> =
            (0..D).map(|i| (-(base[i] + (0..rank).map(|j| low[j] * w2[j * D + i]).sum::<f64>()).exp()).exp()).collect();
        let bonus = get("time_faaaa");
        let mut out = vec![0.0; D];
        for (head, wkv) in state.wkv.iter_mut().enumerate() {
            for (key, row) in wkv.iter_mut().enumerate() {
                let i = head * HEAD + key;
                for (value, sum) in row.iter_mut().enumerate() {
                    let product = k[i] * v[head * HEAD + value];
                    out[head * HEAD + value] += r[i] * (*sum + bonus[i] * product);
                    *sum = decay[i] * *sum + product;
                }
            }
        }
        let normed = self.norm(&format!("{prefix}.ln_x"), &out, 1e-5 * 9.0, HEAD);
        let gated: Vec<f64> = normed.iter().zip(g).map(|(y, g)| y * g / (1.0 + (-g).exp())).collect();
        state.attention = x.to_vec();
        self.linear(&format!("{prefix}.output"), &gated)
    }

    fn channel_mix(&self, prefix: &str, x: &[f64], state: &mut State) -> Vec<f64> {
        let blend = |name: &str| {
            let share = self.get(&format!("{prefix}.{name}"));
            Self::lerp(x, &state.feed_forward, |i| share[i])
        };
        let key = self.linear(&format!("{prefix}.key"), &blend("time_maa_k"));
        let key: Vec<f64> = key.iter().map(|k| k.max(0.0).powi(2)).collect();
        let receptance = self.linear(&format!("{prefix}.receptance"), &blend("time_maa_r"));
        let value = self.linear(&format!("{prefix}.value"), &key);
        state.feed_forward = x.to_vec();
        value.iter().zip(receptance).map(|(v, r)| v / (1.0 + (-r).exp())).collect()
    }

    /// Logits of each token in turn.
    fn logits(&self, ids: &[usize]) -> Vec<Vec<f64>> {
        let empty = || State {
            attention: vec![0.0; D],
            feed_forward: vec![0.0; D],
            wkv: vec![vec![vec![0.0; HEAD]; HEAD]; D / HEAD],
        };
        let mut states: Vec<State> = (0..LAYERS).map(|_| empty()).collect();
        let mut logits = Vec::new();
        for id in ids {
            let mut x = self.get("rwkv.embeddings.weight")[id * D..(id + 1) * D].to_vec();
            for (layer, state) in states.iter_mut().enumerate() {
                let block = format!("rwkv.blocks.{layer}");
                if layer == 0 {
                    x = self.norm(&format!("{block}.pre_ln"), &x, 1e-5, D);
                }
                let normed = self.norm(&format!("{block}.ln1"), &x, 1e-5, D);
                let mixed = self.time_mix(&format!("{block}.attention"), &normed, state);
                x.iter_mut().zip(mixed).for_each(|(x, y)| *x += y);
                let normed = self.norm(&format!("{block}.ln2"), &x, 1e-5, D);
                let mixed = self.channel_mix(&format!("{block}.feed_forward"), &normed, state);
                x.iter_mut().zip(mixed).for_each(|(x, y)| *x += y);
            }
            logits.push(self.linear("head", &self.norm("rwkv.ln_out", &x, 1e-5, D)));
        }
        logits
    }

    /// Cross-entropy of each next token, summed.
    fn loss(&self, ids: &[usize]) -> f64 {
        let nll = |(logits, next): (&Vec<f64>, &usize)| {
            logits.iter().map(|logit| logit.exp()).sum::<f64>().ln() - logits[*next]
        };
        self.logits(ids).iter().zip(&ids[1..]).map(nll).sum()
    }
}

/// Arrays of a batch of one row.
struct Row {
    ids: Vec<i32>,
    positions: Vec<i32>,
    segments: Vec<i32>,
}

impl Row {
    fn new() -> Self {
        let ids = ids().into_iter().map(|id| id as i32).collect();
        Self { ids, positions: (0..LENGTH as i32).collect(), segments: vec![1; LENGTH] }
    }

    fn input(&self) -> ModelInput<'_> {
        let Self { ids, positions, segments } = self;
        ModelInput { rows: 1, len: LENGTH, input_ids: ids, positions, segments }
    }

    fn targets(&self) -> Vec<i32> {
        self.ids[1..].iter().copied().chain([-100]).collect()
    }
}

#[test]
fn the_parallel_form_gives_the_logits_of_the_recurrence_in_f64() {
    let model = model();
    let expected = Literal::of(&model).logits(&ids()).concat();
    let found = model.logits(model.hidden(&Row::new().input())).into_data().try_into_vec::<f32>().unwrap();
    let largest = expected.iter().fold(0f64, |largest, logit| largest.max(logit.abs()));
    let worst = found.iter().zip(&expected).fold(0f64, |worst, (f, e)| worst.max((f64::from(*f) - e).abs()));
    assert!(worst < 2e-5 * largest && largest > 1.0, "{worst} of {largest}");
}

#[test]
fn greedy_tokens_of_the_recurrent_form_are_those_of_the_recurrence_in_f64() {
    let model = model();
    let literal = Literal::of(&model);
    let mut ids = ids()[..19].to_vec();
    let prompt = ids.iter().map(|id| *id as u32).collect();
    for _ in 0..20 {
        let last = literal.logits(&ids).pop().unwrap();
        ids.push((0..VOCABULARY).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap());
    }
    let options = GenerateOptions { max_new_tokens: 20, sampling: Sampling::Greedy, stop: vec![] };
    let found = model.generate(&[prompt], &options, |_, _| ()).unwrap();
    assert_eq!(found[0].ids, ids[19..].iter().map(|id| *id as u32).collect::<Vec<_>>());
}

#[test]
fn the_gradient_of_every_parameter_is_the_difference_of_losses_of_the_recurrence_in_f64() {
    let model = model();
    let literal = Literal::of(&model);
    let mut attached = AdapterConfig::new(Method::Full, 1, &[]).attach(model, &Default::default()).unwrap();
    attached.model = attached.model.train();
    let row = Row::new();
    let loss = attached.model.loss_sum(&row.input(), &row.targets()).unwrap();
    let expected = literal.loss(&ids());
    assert!((f64::from(loss.clone().into_scalar::<f32>()) - expected).abs() < 1e-5 * expected);

    let found = crate::common::gradients(&attached, loss);
    assert_eq!(found.keys().collect::<Vec<_>>(), literal.tensors.keys().collect::<Vec<_>>());
    for (name, gradient) in found {
        let largest = gradient.iter().fold(0f64, |largest, value| largest.max(f64::from(value.abs())));
        assert!(largest > 0.0, "{name} has no gradient");
        // The steepest element of each, and another.
        let steepest = (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs())).unwrap();
        for at in [steepest, gradient.len() / 3] {
            let shifted = |offset: f64| {
                let mut moved = literal.clone();
                moved.tensors.get_mut(&name).unwrap()[at] += offset;
                moved.loss(&ids())
            };
            let expected = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            let difference = (f64::from(gradient[at]) - expected).abs();
            assert!(difference < 2e-4 * largest, "{name}[{at}]: {} is not {expected}", gradient[at]);
        }
    }
}
