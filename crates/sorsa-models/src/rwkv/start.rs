//! The vectors that a fresh RWKV starts with, which depend on the layer and the channel: the initial values of the
//! reference implementation (BlinkDL/RWKV-LM).

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;

/// The place of a layer among all.
pub(super) struct Start<'a> {
    /// 0 in the first layer, 1 in the last.
    rising: f64,
    /// 1 in the first layer, almost 0 in the last.
    falling: f64,
    device: &'a Device,
}

impl<'a> Start<'a> {
    pub fn new(layer: usize, layers: usize, device: &'a Device) -> Self {
        let rising = if layers > 1 { layer as f64 / (layers as f64 - 1.0) } else { 0.0 };
        Self { rising, falling: 1.0 - layer as f64 / layers as f64, device }
    }

    /// A parameter of this shape whose element `i` (row-major) of `n` is `value(i, n)`.
    pub fn parameter<const D: usize>(&self, shape: [usize; D], value: impl Fn(f64, f64) -> f64) -> Param<Tensor<D>> {
        let count: usize = shape.iter().product();
        let values = (0..count).map(|index| value(index as f64, count as f64) as f32).collect();
        let data = TensorData::new::<f32, _>(values, shape);
        Param::from_tensor(Tensor::from_data(data, (self.device, DType::F32)))
    }

    /// Share of the token itself, against its predecessor, `[1, 1, width]`: `(i/n)^(power * falling)` and, towards
    /// the last layers, `lift` more.
    pub fn own_share(&self, width: usize, power: f64, lift: f64) -> Param<Tensor<3>> {
        self.parameter([1, 1, width], |i, n| (i / n).powf(power * self.falling) + lift * self.rising)
    }

    /// One minus [`Self::own_share`].
    pub fn predecessor_share(&self, width: usize, power: f64, lift: f64) -> Param<Tensor<3>> {
        self.parameter([1, 1, width], |i, n| 1.0 - (i / n).powf(power * self.falling) - lift * self.rising)
    }

    /// Logarithms of decay rates from `from` to `from + span` over the channels.
    pub fn decay<const D: usize>(&self, shape: [usize; D], from: f64, span: f64) -> Param<Tensor<D>> {
        let power = 0.7 + 1.3 * self.rising;
        self.parameter(shape, |i, n| from + span * (i / (n - 1.0).max(1.0)).powf(power))
    }

    /// RWKV-4's bonus of the token itself.
    pub fn first(&self, width: usize) -> Param<Tensor<1>> {
        self.parameter([width], |i, _| 0.3f64.ln() + 0.5 * zigzag(i))
    }

    /// RWKV-6's bonus of the token itself, `[heads, head_size]`.
    pub fn bonus(&self, shape: [usize; 2]) -> Param<Tensor<2>> {
        self.parameter(shape, |i, n| (1.0 - i / (n - 1.0).max(1.0)) * self.rising + 0.1 * zigzag(i))
    }
}

/// 0, 1, -1, 0, 1, -1, ..
fn zigzag(i: f64) -> f64 {
    (i + 1.0) % 3.0 - 1.0
}
