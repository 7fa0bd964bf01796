//! Fused forms for burn's CPU backend `flex`, each with a backward pass of its own.
//!
//! A fused form computes what its plain form computes in fewer passes over memory, with fewer and smaller
//! temporaries, on all threads. [`applies`] says when it is taken: f32 tensors of `flex`; a weight may be bf16
//! ([`takes_weight`]). Any other backend keeps the plain form, and so does code inside [`without_fused`].
//!
//! Dispatch is asked by the device, before the call: burn panics where an extension operation meets a backend that
//! its trait does not list.

mod again;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bf16;
mod factored;
mod gated;
mod linear;
mod loss;
mod narrow;
mod norm;
mod product;
mod rounded;
mod simd;
mod step;
mod storage;
mod weight;

use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::prelude::*;
use burn::tensor::DType;

use crate::attention::FirstVisible;
use crate::gated::Activation;

thread_local! {
    static PLAIN: Cell<bool> = const { Cell::new(false) };
    #[cfg(test)]
    pub(crate) static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// Runs `body` with every operation of this crate that this thread calls in its plain form, for comparisons of the two
/// in tests and benches. The backward pass follows the form that the forward pass had.
pub fn without_fused<R>(body: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            PLAIN.set(self.0);
        }
    }
    let _restore = Restore(PLAIN.replace(true));
    body()
}

/// Runs `body` on one of rayon's threads, always the same, where `device` is burn's CPU backend; else on the caller's. Each
/// of the many operations of a pass shares its work with those threads: from one of them that is asking a neighbour for
/// help, from outside it is handing over everything and going to sleep. Callers from several threads wait for each other.
pub fn on_pool<R: Send>(device: &Device, body: impl FnOnce() -> R + Send) -> R {
    // A thread of the pool that waits for help takes whatever else it finds to do: another pass would begin inside the
    // first, which may hold what it needs.
    static TURN: Mutex<()> = Mutex::new(());
    if !is_flex(device) || rayon::current_thread_index().is_some() {
        return body();
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let plain = PLAIN.get();
    let body = Mutex::new(Some(body));
    // Memory that one thread frees another does not get back at once: not any thread, but the first.
    let results = rayon::broadcast(|thread| {
        let body = (thread.index() == 0).then(|| body.lock().ok()?.take()).flatten()?;
        Some(if plain { without_fused(body) } else { body() })
    });
    results.into_iter().flatten().next().expect("a pool has a first thread")
}

/// Whether tensors of these devices and dtypes take the fused form.
pub(crate) fn applies<const N: usize>(operands: [(Device, DType); N]) -> bool {
    !PLAIN.get() && operands.into_iter().all(|(device, dtype)| dtype == DType::F32 && is_flex(&device))
}

/// Whether a device is burn's CPU backend.
pub(crate) fn is_flex(device: &Device) -> bool {
    matches!(device.clone().without_autodiff().as_dispatch(), DispatchDevice::Flex(_))
}

/// Whether a weight may stand beside the f32 operands of a fused form that multiplies with it: it is f32, or bf16.
pub(crate) fn takes_weight(weight: &Tensor<2>) -> bool {
    let (device, dtype) = kind(weight);
    applies([(device, if dtype == DType::BF16 { DType::F32 } else { dtype })])
}

/// Whether a linear map has a fused form.
pub(crate) fn linear_applies<const D: usize>(x: &Tensor<D>, weight: &Tensor<2>, bias: &Option<Tensor<1>>) -> bool {
    let bias = bias.as_ref().map_or_else(|| kind(x), kind);
    takes_weight(weight) && applies([kind(x), bias])
}

/// What [`applies`] asks of a tensor.
pub(crate) fn kind<const D: usize>(tensor: &Tensor<D>) -> (Device, DType) {
    (tensor.device(), tensor.dtype())
}

/// The fused operations, at the level of backends. An operand that may be absent is then a tensor without elements.
#[backend_extension(Flex, Autodiff)]
pub trait FusedOps: Backend {
    /// Of [`rms_norm`].
    fn fused_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self>;

    /// Of [`gated`].
    fn fused_gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
        rounded: bool,
    ) -> FloatTensor<Self>;

    /// Of [`head_loss_sum`].
    fn fused_head_loss(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Of [`rotary_attention`].
    #[allow(clippy::too_many_arguments, reason = "the terms of one equation")]
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        visible: FirstVisible,
        scale: f64,
    ) -> FloatTensor<Self>;

    /// Of [`step_attention`], without a backward pass. A `cap` of 0 is none.
    fn fused_step_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first: std::sync::Arc<[usize]>,
        scale: f64,
        cap: f64,
    ) -> FloatTensor<Self>;

    /// Of [`rotate`], without a backward pass.
    fn fused_rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Of [`linear`].
    fn fused_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Of [`add_product`], without a backward pass.
    fn fused_add_product(
        sum: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        factor: f64,
    ) -> FloatTensor<Self>;

    /// Of [`factored_linear`].
    #[allow(clippy::too_many_arguments, reason = "the terms of one equation")]
    fn fused_factored_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        adapter_input: FloatTensor<Self>,
        a: FloatTensor<Self>,
        s: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self>;
}

impl FusedOps for Flex {
    fn fused_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        norm::forward(x, weight, epsilon).0
    }

    fn fused_gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
        _: bool,
    ) -> FloatTensor<Self> {
        gated::forward(gate, up, activation)
    }

    fn fused_head_loss(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        loss::forward(hidden, weight, targets, loss::Wanted::default()).loss
    }

    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        visible: FirstVisible,
        scale: f64,
    ) -> FloatTensor<Self> {
        attention::forward(&attention::Inputs::new(q, k, v, cos, sin, visible, scale)).0
    }

    fn fused_step_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first: std::sync::Arc<[usize]>,
        scale: f64,
        cap: f64,
    ) -> FloatTensor<Self> {
        step::attention([q, k, v], &first, scale, cap)
    }

    fn fused_rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        step::rotate(x, cos, sin)
    }

    fn fused_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let [x, weight, bias] = linear::arranged(x, weight, bias);
        linear::forward(&x, &weight, &bias)
    }

    fn fused_add_product(
        sum: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        factor: f64,
    ) -> FloatTensor<Self> {
        linear::add_product(sum, a, b, factor)
    }

    fn fused_factored_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        adapter_input: FloatTensor<Self>,
        a: FloatTensor<Self>,
        s: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        factored::forward(&factored::Inputs::new(x, weight, bias, adapter_input, a, s, b, scale)).0
    }
}

impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
    fn fused_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        norm::tracked(x, weight, epsilon)
    }

    fn fused_gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
        rounded: bool,
    ) -> FloatTensor<Self> {
        gated::tracked(gate, up, activation, rounded)
    }

    fn fused_head_loss(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        loss::tracked::<C>(hidden, weight, targets)
    }

    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        visible: FirstVisible,
        scale: f64,
    ) -> FloatTensor<Self> {
        attention::tracked::<C>([q, k, v], cos.into_primitive(), sin.into_primitive(), visible, scale)
    }

    fn fused_step_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first: std::sync::Arc<[usize]>,
        scale: f64,
        cap: f64,
    ) -> FloatTensor<Self> {
        Self::from_inner(step::attention([q, k, v].map(|t| t.into_primitive()), &first, scale, cap))
    }

    fn fused_rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(step::rotate(x.into_primitive(), cos.into_primitive(), sin.into_primitive()))
    }

    fn fused_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::tracked::<C>(x, weight, bias)
    }

    fn fused_add_product(
        sum: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        factor: f64,
    ) -> FloatTensor<Self> {
        Self::from_inner(linear::add_product(sum.into_primitive(), a.into_primitive(), b.into_primitive(), factor))
    }

    fn fused_factored_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        adapter_input: FloatTensor<Self>,
        a: FloatTensor<Self>,
        s: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        factored::tracked::<C>([x, weight, bias, adapter_input, a, s, b], scale)
    }
}

/// [`crate::rms_norm`], fused.
pub(crate) fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    count();
    Tensor::from_dispatch(Dispatch::fused_rms_norm(x.into_dispatch(), weight.into_dispatch(), epsilon))
}

/// [`crate::gated_silu`] and [`crate::gated_gelu`], fused; where `rounded`, they keep their inputs in bf16.
pub(crate) fn gated<const D: usize>(
    gate: Tensor<D>,
    up: Tensor<D>,
    activation: Activation,
    rounded: bool,
) -> Tensor<D> {
    count();
    Tensor::from_dispatch(Dispatch::fused_gated(gate.into_dispatch(), up.into_dispatch(), activation, rounded))
}

/// [`crate::head_loss_sum`], fused.
pub(crate) fn head_loss_sum(hidden: Tensor<2>, weight: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    count();
    let (hidden, weight) = (hidden.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_head_loss(hidden, weight, targets.into_dispatch()))
}

/// [`crate::rotary_attention`], fused. `angles` are cosines and sines `[batch or 1, 1, seq, planes]`, or nothing.
pub(crate) fn rotary_attention(
    [q, k, v]: [Tensor<4>; 3],
    angles: Option<(Tensor<4>, Tensor<4>)>,
    visible: FirstVisible,
    scale: f64,
) -> Tensor<4> {
    count();
    let device = q.device().without_autodiff();
    let (cos, sin) = angles.unwrap_or_else(|| (absent(&device), absent(&device)));
    let (cos, sin) = (cos.into_dispatch(), sin.into_dispatch());
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_attention(q, k, v, cos, sin, visible, scale))
}

/// [`crate::soft_capped_attention`] of one query a row over keys from `first[row]` on, fused.
pub(crate) fn step_attention(
    [q, k, v]: [Tensor<4>; 3],
    first: std::sync::Arc<[usize]>,
    scale: f64,
    cap: Option<f64>,
) -> Tensor<4> {
    count();
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_step_attention(q, k, v, first, scale, cap.unwrap_or(0.0)))
}

/// [`crate::rotate_half`], fused.
pub(crate) fn rotate(x: Tensor<4>, (cos, sin): (Tensor<4>, Tensor<4>)) -> Tensor<4> {
    count();
    Tensor::from_dispatch(Dispatch::fused_rotate(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch()))
}

/// [`crate::linear`], fused.
pub(crate) fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    count();
    let bias = bias.unwrap_or_else(|| absent(&x.device().without_autodiff()));
    Tensor::from_dispatch(Dispatch::fused_linear(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()))
}

/// [`crate::add_product`], fused.
pub(crate) fn add_product(sum: Tensor<2>, a: Tensor<2>, b: Tensor<2>, factor: f64) -> Tensor<2> {
    count();
    let (sum, a, b) = (sum.into_dispatch(), a.into_dispatch(), b.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_add_product(sum, a, b, factor))
}

/// [`crate::factored_linear`], fused.
#[allow(clippy::too_many_arguments, reason = "the terms of one equation")]
pub(crate) fn factored_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    adapter_input: Option<Tensor<D>>,
    a: Tensor<2>,
    s: Option<Tensor<1>>,
    b: Tensor<2>,
    scale: f64,
) -> Tensor<D> {
    count();
    let device = x.device().without_autodiff();
    Tensor::from_dispatch(Dispatch::fused_factored_linear(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.unwrap_or_else(|| absent(&device)).into_dispatch(),
        adapter_input.unwrap_or_else(|| absent(&device)).into_dispatch(),
        a.into_dispatch(),
        s.unwrap_or_else(|| absent(&device)).into_dispatch(),
        b.into_dispatch(),
        scale,
    ))
}

fn absent<const D: usize>(device: &Device) -> Tensor<D> {
    Tensor::empty([0; D], (device, DType::F32))
}

/// Tests ask whether a call went the fused way.
fn count() {
    #[cfg(test)]
    CALLS.set(CALLS.get() + 1);
}

#[cfg(test)]
mod tests;
