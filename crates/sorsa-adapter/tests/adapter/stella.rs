//! The layer of StelLA against PyTorch, and the adapters of StelLA and of SORSA's forms as LoRAs of PEFT.

use std::path::Path;

use burn::prelude::*;
use sorsa_adapter::peft::{PeftAdapter, PeftExport};
use sorsa_adapter::{AdapterConfig, Method, NamedTensors};

use crate::common::reference::*;
use crate::common::*;

#[test]
fn output_gradients_and_the_merged_weight_are_those_of_pytorch() {
    let file =
        Reference::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/stella/layer.safetensors"));
    let device = Device::flex().autodiff();
    // PyTorch's U [out, r], S and V [in, r] are V, S^T and U here.
    let trained = NamedTensors::from([
        ("layer.stella.u".to_owned(), file.get("V")),
        ("layer.stella.s".to_owned(), file.turned("S")),
        ("layer.stella.vt".to_owned(), file.turned("U")),
    ]);
    let config = AdapterConfig::new(Method::Stella, 3, &["layer"]).with_alpha(7.0);
    let attached = || attach_given(&config, file.layer(&device), &NamedTensors::new(), &trained);
    for dense in [false, true] {
        let what = if dense { "dense" } else { "factored" };
        let step = Step::run(attached(), &file.get("x"), &file.get("t"), dense);
        assert_same(step.y.clone(), &file.get("y"), &format!("{what}: y"));
        assert!((step.loss - file.get("loss").values[0]).abs() < 1e-5, "{what}: loss {}", step.loss);
        assert_gradient(step.of_x.clone(), &file.get("grad_x"), &format!("{what}: x"));
        assert_gradient(step.of::<2>("u"), &file.get("grad_V"), &format!("{what}: U"));
        assert_gradient(step.of::<2>("s"), &file.turned("grad_S"), &format!("{what}: S"));
        assert_gradient(step.of::<2>("vt"), &file.turned("grad_U"), &format!("{what}: V"));
    }
    let (merged, _) = attached().merge();
    assert_same(merged.layer.weight.val(), &file.turned("W_merged"), "merged");
}

#[test]
fn stella_leaves_as_an_exact_lora_of_its_rank_and_sorsas_forms_as_the_exact_difference() {
    let device = device();
    let sorsa = |name: &str, value: &str| with_setting(&config(Method::Sorsa), name, value);
    for (config, rank) in [
        (config(Method::Stella), RANK),
        (with_setting(&config(Method::Stella), "initial_s", 1.0), RANK),
        (sorsa("train", "vectors"), 2 * RANK),
        (sorsa("train", "singular-values"), 2 * RANK),
        (sorsa("retraction", "newton-schulz"), 2 * RANK),
    ] {
        let attached = disturbed(attach(&config.with_alpha(10.0), &device));
        let saved = attached.snapshot();
        let (peft, _) = PeftAdapter::from_saved(&saved, &Net::new(&device), &PeftExport::default()).unwrap();
        assert_eq!(peft.config.rank, rank);
        let again =
            peft.attachable(&Net::new(&device), &Default::default()).unwrap().attach(Net::new(&device)).unwrap();
        let (found, expected) = (again.model.forward(input(&device)), attached.model.forward(input(&device)));
        assert_near(found, expected, &format!("{:?}", saved.state.config));
    }
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let faults = |config: AdapterConfig| config.validate().unwrap_err().to_string();
    let sorsa = |name: &str, value: serde_json::Value| with_setting(&config(Method::Sorsa), name, value);
    assert!(faults(sorsa("retract_every", 0.into())).contains("retract_every must be at least 1"));
    assert!(faults(sorsa("retract_every", 4.into())).contains("retract_every has no meaning without a retraction"));
    let both = with_setting(&sorsa("retraction", "qr".into()), "train", "singular-values");
    assert!(faults(both).contains("a retraction has no meaning with train = \"singular-values\""));
    let endless = sorsa_adapter::StellaConfig { initial_s: f64::NAN, ..Default::default() };
    assert!(faults(AdapterConfig::new(endless, 4, &["first"])).contains("initial_s must be a finite number"));
}
