//! Steps of optimizers on the Stiefel manifold: StelLA's, against a statement of its published algorithm in NumPy, and SORSA's with a
//! retraction.

use std::path::Path;

use burn::nn::{Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::Distribution;
use sorsa_adapter::{
    AdapterConfig, Attached, HostTensor, HostTensorExt, Method, MethodConfig, NamedTensors, Retraction, SorsaConfig,
    Trainable, export_trainable, import_trainable, orthonormality_defect,
};
use sorsa_files::read_tensors;
use sorsa_train::{Decoupled, Optimizer, OptimizerConfig, OptimizerKind};

#[derive(Module, Debug)]
struct Net {
    layer: Linear,
}

fn attached(method: impl Into<MethodConfig>, shape: [usize; 2], rank: usize) -> Attached<Net> {
    let net = Net { layer: LinearConfig::new(shape[0], shape[1]).with_bias(false).init(&Device::flex()) };
    let attached = AdapterConfig::new(method, rank, &["layer"]).attach(net, &Default::default()).unwrap();
    Attached { model: attached.model.train(), ..attached }
}

fn factor(trainable: &[Trainable], name: &str) -> Trainable {
    trainable.iter().find(|parameter| parameter.name.ends_with(&format!(".{name}"))).unwrap().clone()
}

#[test]
fn steps_of_stella_are_those_of_its_published_algorithm_in_numpy() {
    let file = read_tensors(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/stella/steps.safetensors"))
        .unwrap();
    // NumPy has PyTorch's orientation: its V is U here, its U is V, and S is turned.
    let of = |when: &str| {
        let [u, s, v] = ["V", "S", "U"].map(|name| file[&format!("{when}.{name}")].clone());
        NamedTensors::from([
            ("layer.stella.u".to_owned(), u),
            ("layer.stella.s".to_owned(), s.transposed()),
            ("layer.stella.vt".to_owned(), v.transposed()),
        ])
    };
    let Attached { model, trainable, .. } = attached(Method::Stella, [16, 10], 3);
    let mut model = import_trainable(model, &trainable, &of("start"), Path::new("golden")).unwrap();
    let config = OptimizerConfig { learning_rate: 0.05.into(), weight_decay: 0.1, ..OptimizerKind::AdamW.defaults() };
    let mut optimizer = Optimizer::new(config, &trainable);
    for step in 0..4 {
        let mut gradients = GradientsParams::new();
        for (name, gradient) in of(&format!("gradient{step}")) {
            let parameter = trainable.iter().find(|parameter| parameter.name == name).unwrap();
            gradients.register::<2>(parameter.id, gradient.to_tensor(&Device::flex()));
        }
        model = optimizer.step(model, gradients, 1.0, Decoupled::default());
        let found = export_trainable(&model, &trainable);
        for (name, expected) in of(&format!("after{step}")) {
            let pairs = found[&name].values.iter().zip(&expected.values);
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst < 2e-5, "step {step}, {name}: {worst}");
        }
        assert!(orthonormality_defect(&model, &trainable).unwrap() <= 1e-6);
    }
}

#[test]
fn every_optimizer_stays_on_the_manifold_with_every_retraction() {
    let shape = [48, 24];
    for kind in OptimizerKind::ALL {
        for retraction in [Retraction::Polar, Retraction::Qr, Retraction::NewtonSchulz] {
            for retract_every in [1, 3] {
                let method = SorsaConfig { retraction, retract_every, ..SorsaConfig::default() };
                let Attached { mut model, trainable, .. } = attached(method, shape, 6);
                // The first step of RMSprop is ten times that of AdamW.
                let rate = if kind == OptimizerKind::RmsProp { 0.002 } else { 0.02 };
                let config = OptimizerConfig { learning_rate: rate.into(), weight_decay: 0.1, ..kind.defaults() };
                let mut optimizer = Optimizer::new(config, &trainable);
                let start = export_trainable(&model, &trainable);
                for step in 1..=6 {
                    let mut gradients = GradientsParams::new();
                    let noise = Distribution::Normal(0.0, 1.0);
                    for parameter in &trainable {
                        let device = Device::flex();
                        match *parameter.shape.as_slice() {
                            [r] => gradients.register::<1>(parameter.id, Tensor::random([r], noise, &device)),
                            [a, b] => gradients.register::<2>(parameter.id, Tensor::random([a, b], noise, &device)),
                            _ => unreachable!(),
                        }
                    }
                    model = optimizer.step(model, gradients, 1.0, Decoupled::default());
                    let defect = orthonormality_defect(&model, &trainable).unwrap();
                    let what = format!("{kind} {retraction:?} every {retract_every}, step {step}: {defect}");
                    if step % retract_every == 0 {
                        assert!(defect <= 1e-6, "{what}");
                    } else {
                        assert!(defect > 1e-5 && defect < 0.3, "{what}");
                    }
                }
                // It moved.
                let end = export_trainable(&model, &trainable);
                let moved =
                    |name: &str| end[name].values.iter().zip(&start[name].values).any(|(a, b)| (a - b).abs() > 1e-3);
                assert!(start.keys().all(|name| moved(name)), "{kind} {retraction:?}");
            }
        }
    }
}

#[test]
fn running_means_of_gradients_follow_the_factor_in_its_tangent_space() {
    for kind in OptimizerKind::ALL {
        let method = SorsaConfig { retraction: Retraction::Polar, ..SorsaConfig::default() };
        let Attached { mut model, trainable, .. } = attached(method, [20, 12], 4);
        // With momentum, RMSprop has a direction too.
        let momentum = if kind == OptimizerKind::RmsProp { 0.9 } else { kind.defaults().beta1 };
        let config = OptimizerConfig { learning_rate: 0.1.into(), beta1: momentum, ..kind.defaults() };
        let mut optimizer = Optimizer::new(config, &trainable);
        let u = factor(&trainable, "u");
        for _ in 0..3 {
            let mut gradients = GradientsParams::new();
            gradients.register::<2>(u.id, Tensor::random([20, 4], Distribution::Normal(0.0, 1.0), &Device::flex()));
            model = optimizer.step(model, gradients, 1.0, Decoupled::default());
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        optimizer.save(&path, &trainable).unwrap();
        let buffer = match kind {
            OptimizerKind::Sgd => "v",
            OptimizerKind::RmsProp => "b",
            OptimizerKind::AdamW | OptimizerKind::Lion | OptimizerKind::Muon => "m",
        };
        let kept = read_tensors(&path).unwrap()[&format!("{}.{buffer}", u.name)].clone();
        let direction = HostTensor::new([20, 4], kept.values).to_tensor::<2>(&Device::flex());
        let point = export_trainable(&model, &trainable)[&u.name].to_tensor::<2>(&Device::flex());
        let product = point.transpose().matmul(direction.clone());
        let outside = (product.clone() + product.transpose()).abs().max().into_scalar::<f32>();
        let size = direction.abs().max().into_scalar::<f32>();
        assert!(outside < 1e-5 * size.max(1e-3), "{kind}: {outside} of {size}");
    }
}
