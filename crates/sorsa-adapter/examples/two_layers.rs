//! SORSA on a plain network of two linear layers: no language model, burn's own optimizer.
//!
//! A network fits one function, then is fine-tuned to a shifted one by adapters alone. One line decides how the adapted
//! layers run: see `forward`.

use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::prelude::*;
use sorsa_adapter::{AdapterConfig, Attached, Method, RegularizerForm, add_regularizer, project};

#[derive(Module, Debug)]
struct Net {
    first: Linear,
    second: Linear,
}

impl Net {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        // `self.first.forward(x)` is right too, but forms the dense adapted weight in every step. This is the line to change.
        let h = project(&self.first, x).tanh();
        project(&self.second, h)
    }

    fn loss(&self, x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
        (self.forward(x) - y).square().mean()
    }
}

/// Points on a grid, and a wave over them.
fn data(shift: f64, device: &Device) -> (Tensor<2>, Tensor<2>) {
    let x = Tensor::<1, Int>::arange(-32..32, device).float() / 16.0;
    let y = (x.clone() * 2.0 + shift).sin();
    (x.clone().unsqueeze_dim(1), y.unsqueeze_dim(1))
}

fn main() {
    let device = Device::flex().autodiff();
    device.seed(1);
    let mut net = Net { first: LinearConfig::new(1, 64).init(&device), second: LinearConfig::new(64, 1).init(&device) };

    let (x, y) = data(0.0, &device);
    let mut optimizer: ModuleOptimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    for _ in 0..300 {
        let gradients = GradientsParams::from_grads(net.loss(x.clone(), y.clone()).backward(), &net);
        net = optimizer.step(1e-2, net, gradients);
    }
    let pretrained = net.loss(x, y).into_scalar::<f32>();

    // From here on: two adapters of rank 1 on a new target. Everything else is frozen.
    let config = AdapterConfig::new(Method::Sorsa, 1, &["first", "second"]);
    let Attached { mut model, state, trainable, modules } = config.attach(net, &Default::default()).unwrap();
    let count: usize = trainable.iter().map(|parameter| parameter.shape.iter().product::<usize>()).sum();

    let (x, y) = data(0.7, &device);
    let before = model.loss(x.clone(), y.clone()).into_scalar::<f32>();
    let mut optimizer: ModuleOptimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    let (rate, gamma) = (1e-2, 1e-4);
    for _ in 0..300 {
        let mut gradients = GradientsParams::from_grads(model.loss(x.clone(), y.clone()).backward(), &model);
        add_regularizer(&model, &trainable, RegularizerForm::Paper, gamma / rate, &mut gradients);
        model = optimizer.step(rate, model, gradients);
    }
    let after = model.loss(x.clone(), y.clone()).into_scalar::<f32>();

    let (merged, _) = Attached { model, state, trainable, modules }.merge();
    let (x, y) = data(0.7, &device.without_autodiff());
    let merged = merged.loss(x, y).into_scalar::<f32>();
    println!("pretrained: loss {pretrained:.5}");
    println!("fine-tuned: {count} numbers trained, loss {before:.5} before, {after:.5} after, {merged:.5} merged");
    assert!(after < before / 4.0, "the adapters did not learn");
    assert!((merged - after).abs() < 1e-5, "merging changed the network");
}
