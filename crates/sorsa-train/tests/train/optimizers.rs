//! Every optimizer against PyTorch's and, for Muon, against a statement of the published algorithm: `tests/golden/optimizers`.

use std::path::Path;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use serde_json::Value;
use sorsa_adapter::{AdapterConfig, Attached, Method, export_trainable};
use sorsa_train::{Decoupled, Optimizer, OptimizerConfig};

/// A model of a tall matrix, a wide one and a vector.
#[derive(Module, Debug)]
struct Three {
    tall: Param<Tensor<2>>,
    wide: Param<Tensor<2>>,
    vector: Param<Tensor<1>>,
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn matrix(values: &Value, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(floats(values), shape), device)
}

#[test]
fn five_steps_of_matrices_and_a_vector_are_those_of_the_reference() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/optimizers/steps.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (start, gradients) = (&golden["start"], &golden["gradients"]);
    let (device, plain) = (Device::flex().autodiff(), Device::flex());
    let cases = golden["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 5);
    for (name, case) in cases {
        let model = Three {
            tall: Param::from_tensor(matrix(&start["tall"], [5, 3], &device)),
            wide: Param::from_tensor(matrix(&start["wide"], [3, 6], &device)),
            vector: Param::from_tensor(Tensor::<1>::from_floats(floats(&start["vector"]).as_slice(), &device)),
        };
        let attached = AdapterConfig::new(Method::Full, 0, &[]).attach(model, &Default::default()).unwrap();
        let Attached { mut model, trainable, .. } = attached;
        let mut config: OptimizerConfig = serde_json::from_value(case["settings"].clone()).unwrap();
        config.learning_rate = golden["rate"].as_f64().unwrap().into();
        config.weight_decay = golden["weight_decay"].as_f64().unwrap();
        let mut optimizer = Optimizer::new(config, &trainable);
        for (step, factor) in golden["factors"].as_array().unwrap().iter().enumerate() {
            let mut given = GradientsParams::new();
            given.register(model.tall.id, matrix(&gradients["tall"][step], [5, 3], &plain));
            given.register(model.wide.id, matrix(&gradients["wide"][step], [3, 6], &plain));
            let vector = floats(&gradients["vector"][step]);
            given.register(model.vector.id, Tensor::<1>::from_floats(vector.as_slice(), &plain));
            model = optimizer.step(model, given, factor.as_f64().unwrap(), Decoupled::default());
        }
        for (parameter, found) in export_trainable(&model, &trainable) {
            let expected = floats(&case["end"][&parameter]);
            for (found, expected) in found.values.iter().zip(&expected) {
                assert!((found - expected).abs() < 2e-6, "{name}, {parameter}: {found}, expected {expected}");
            }
        }
    }
}
