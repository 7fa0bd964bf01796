//! Each operation of a training step, forward and backward, in its fused and its plain form, at the shapes of one layer of
//! the models S and L of `docs/performance.md`.
//!
//! ```text
//! cargo bench --workspace --bench operations            # -- gated, to run the benches of that name only
//! RAYON_NUM_THREADS=1 cargo bench --workspace --bench operations
//! ```

use burn::prelude::*;
use burn::tensor::{Distribution, FloatDType};
use divan::{Bencher, Divan};
use sorsa_ops::{AttentionMask, LowRankFactors, RotaryAngles, without_fused};

/// The binary's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    Divan::default().sample_count(20).sample_size(1).config_with_args().main();
}

/// One layer of a model, and the size of its batch.
#[derive(Debug, Clone, Copy)]
struct Layer {
    name: &'static str,
    batch: usize,
    width: usize,
    heads: usize,
    feed_forward: usize,
}

const SEQ: usize = 256;
const RANK: usize = 16;
const VOCABULARY: usize = 32_000;
const LAYERS: [Layer; 2] = [
    Layer { name: "S", batch: 4, width: 288, heads: 6, feed_forward: 768 },
    Layer { name: "L", batch: 1, width: 768, heads: 12, feed_forward: 2048 },
];

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Whether operations run fused.
#[derive(Debug, Clone, Copy)]
enum Form {
    Fused,
    Plain,
}

/// Every layer in both forms.
fn cases() -> impl Iterator<Item = Case> {
    LAYERS.into_iter().flat_map(|layer| [Form::Fused, Form::Plain].map(|form| Case { layer, form }))
}

#[derive(Debug, Clone, Copy)]
struct Case {
    layer: Layer,
    form: Form,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.layer, self.form)
    }
}

impl Case {
    /// Times `operation` and the gradient of the sum of its result.
    fn time<const D: usize>(&self, bencher: Bencher<'_, '_>, operation: impl Fn() -> Tensor<D>) {
        bencher.bench_local(|| {
            let result = match self.form {
                Form::Fused => operation(),
                Form::Plain => without_fused(&operation),
            };
            result.sum().backward()
        });
    }
}

fn device() -> Device {
    Device::flex().autodiff()
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 0.1), &device())
}

fn leaf<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    random(shape).require_grad()
}

/// Head and cross-entropy in one. The head is frozen.
#[divan::bench(args = cases())]
fn head_loss(bencher: Bencher<'_, '_>, case: Case) {
    let Layer { batch, width, .. } = case.layer;
    let (hidden, head) = (leaf([batch * SEQ, width]), random([width, VOCABULARY]));
    let targets: Vec<i32> = (0..batch * SEQ).map(|row| (row * 7919 % VOCABULARY) as i32).collect();
    let targets = Tensor::<1, Int>::from_data(TensorData::new::<i32, _>(targets, [batch * SEQ]), &device());
    case.time(bencher, || sorsa_ops::head_loss_sum(hidden.clone(), head.clone(), targets.clone()));
}

/// Causal attention with rotation of queries and keys.
#[divan::bench(args = cases())]
fn attention(bencher: Bencher<'_, '_>, case: Case) {
    let Layer { batch, width, heads, .. } = case.layer;
    let head = width / heads;
    let [q, k, v] = [(); 3].map(|()| leaf([batch, heads, SEQ, head]));
    let frequencies: Vec<f64> = (0..head / 2).map(|i| 1e4f64.powf(-2.0 * i as f64 / head as f64)).collect();
    let positions: Vec<i32> = (0..batch).flat_map(|_| 0..SEQ as i32).collect();
    let plain = device().without_autodiff();
    let angles = RotaryAngles::new(&frequencies, 1.0, &positions, [batch, SEQ], &plain);
    let mask = AttentionMask::causal(&vec![0; batch * SEQ], [batch, SEQ], None, &plain);
    let scale = (head as f64).powf(-0.5);
    case.time(bencher, || sorsa_ops::rotary_attention(q.clone(), k.clone(), v.clone(), &angles, &mask, scale));
}

/// The projection up, frozen, with an adapter of SORSA beside it.
#[divan::bench(args = cases())]
fn factored_linear(bencher: Bencher<'_, '_>, case: Case) {
    time_factored(bencher, case, FloatDType::F32);
}

/// The same projection with its frozen weight in bf16.
#[divan::bench(args = cases())]
fn factored_linear_bf16(bencher: Bencher<'_, '_>, case: Case) {
    time_factored(bencher, case, FloatDType::BF16);
}

fn time_factored(bencher: Bencher<'_, '_>, case: Case, weights: FloatDType) {
    let Layer { batch, width, feed_forward, .. } = case.layer;
    let (x, weight) = (leaf([batch, SEQ, width]), random([width, feed_forward]).cast(weights));
    let (u, s, vt) = (leaf([width, RANK]), leaf([RANK]), leaf([RANK, feed_forward]));
    case.time(bencher, || {
        let factors = LowRankFactors { a: u.clone(), s: Some(s.clone()), b: vt.clone(), scale: 1.0 };
        sorsa_ops::factored_linear(x.clone(), weight.clone(), None, None, factors)
    });
}

/// The gated unit of Llama.
#[divan::bench(args = cases())]
fn gated_silu(bencher: Bencher<'_, '_>, case: Case) {
    let shape = [case.layer.batch, SEQ, case.layer.feed_forward];
    let (gate, up) = (leaf(shape), leaf(shape));
    case.time(bencher, || sorsa_ops::gated_silu(gate.clone(), up.clone(), FloatDType::F32));
}

/// The normalization before attention and feed-forward. Its weight is frozen.
#[divan::bench(args = cases())]
fn rms_norm(bencher: Bencher<'_, '_>, case: Case) {
    let Layer { batch, width, .. } = case.layer;
    let (x, weight) = (leaf([batch, SEQ, width]), random([width]));
    case.time(bencher, || sorsa_ops::rms_norm(x.clone(), weight.clone(), 1e-6));
}
