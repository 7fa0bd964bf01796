//! PEFT and the author's code on one linear layer. The files of `tests/golden` are compared always; more of them where
//! `SORSA_GOLDEN` names the folder of reference results.

use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::FloatDType;
use serde_json::Value;
use sorsa_adapter::{
    Adapter, AdapterConfig, AdapterFactors, AlphaConvention, Attached, HostTensor, HostTensorExt, Init, LoraConfig,
    Method, MethodConfig, NamedTensors, RegularizerForm, Scaling, SorsaConfig, regularizer_gradients,
};

use crate::common::reference::*;
use crate::common::*;

/// Folders of layers under `group` of the reference results.
fn folders(group: &str) -> Vec<PathBuf> {
    let Some(golden) = std::env::var_os("SORSA_GOLDEN").map(PathBuf::from) else {
        eprintln!("SORSA_GOLDEN is not set: nothing more to compare with");
        return Vec::new();
    };
    let entries = std::fs::read_dir(golden.join(group)).unwrap().map(|entry| entry.unwrap());
    let layers = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("linear_"));
    let mut folders: Vec<PathBuf> = layers.map(|entry| entry.path()).collect();
    folders.sort();
    assert!(!folders.is_empty(), "no layers in {}", golden.join(group).display());
    folders
}

/// The layer of `tests/golden`, and those of the reference results.
fn peft_folders() -> Vec<PathBuf> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/linear");
    [vec![committed], folders("adapters")].concat()
}

/// PEFT's name of a method and its settings as a configuration.
fn peft_config(name: &str, meta: &Value) -> AdapterConfig {
    let method: MethodConfig = match name {
        "lora" | "rslora" => Method::Lora.into(),
        "lora_gaussian" => LoraConfig { init: Init::Gaussian }.into(),
        "orthogonal" => LoraConfig { init: Init::Orthogonal }.into(),
        "dora" => Method::Dora.into(),
        "olora" => Method::Olora.into(),
        "pissa" | "pissa_niter_16" => Method::Pissa.into(),
        other => panic!("no method {other}"),
    };
    let rank = meta["r"].as_u64().unwrap() as usize;
    let config = AdapterConfig::new(method, rank, &["layer"]).with_alpha(meta["lora_alpha"].as_f64().unwrap());
    let scaling = if name == "rslora" { Scaling::RankStabilized } else { Scaling::Standard };
    AdapterConfig { scaling, ..config }
}

/// PEFT's factors by our names: its A `[r, in]` is our `a` turned, its B `[out, r]` our `b`.
fn peft_factors(file: &Reference, method: Method, suffix: &str) -> NamedTensors {
    let name = |factor: &str| format!("layer.{method}.{factor}");
    let mut factors = NamedTensors::from([
        (name("a"), file.turned(&format!("A{suffix}"))),
        (name("b"), file.turned(&format!("B{suffix}"))),
    ]);
    if method == Method::Dora {
        factors.insert(name("magnitude"), file.get(&format!("magnitude{suffix}")));
    }
    factors
}

/// Runs `check` on every method of every layer.
fn each_peft_method(check: impl Fn(&str, &AdapterConfig, &Value, &Reference, &Reference)) {
    for folder in peft_folders() {
        let meta = json(&folder.join("meta.json"));
        let base = Reference::read(&folder.join("base.safetensors"));
        let mut count = 0;
        for (method, of_method) in meta["methods"].as_object().unwrap() {
            let file = folder.join(format!("{method}.safetensors"));
            let what = format!("{} {method}", folder.file_name().unwrap().display());
            check(&what, &peft_config(method, &meta), of_method, &base, &Reference::read(&file));
            count += 1;
        }
        assert!(count >= 3, "{} has {count} methods", folder.display());
    }
}

#[test]
fn outputs_gradients_and_merged_weights_are_those_of_peft() {
    each_peft_method(|what, config, meta, base, file| {
        let device = Device::flex().autodiff();
        let initial = peft_factors(file, config.method(), "_init");
        let trained = peft_factors(file, config.method(), "");
        let attach = |trained: &NamedTensors| attach_given(config, base.layer(&device), &initial, trained);
        let (x, t) = (base.get("x"), base.get("t"));
        let scale = attach(&trained).state.modules[0].scale;
        assert!((scale - meta["scaling"].as_f64().unwrap()).abs() < 1e-12, "{what}: scale {scale}");

        let fresh = attach(&initial);
        assert_same(project_once(&fresh, &x), &file.get("y_init"), &format!("{what}: y at the start"));
        if file.has("W_base_after_init") {
            let expected = file.turned("W_base_after_init");
            assert_same(fresh.model.layer.weight.base().inner(), &expected, &format!("{what}: residual"));
        }
        for dense in [false, true] {
            let what = format!("{what}, {}", if dense { "dense" } else { "factored" });
            let step = Step::run(attach(&trained), &x, &t, dense);
            assert_same(step.y.clone(), &file.get("y"), &format!("{what}: y"));
            let loss = file.get("loss").values[0];
            assert!((step.loss - loss).abs() < 1e-5, "{what}: loss {}, expected {loss}", step.loss);
            assert_gradient(step.of_x.clone(), &file.get("grad_x"), &format!("{what}: gradient of x"));
            assert_gradient(step.of::<2>("a"), &file.turned("grad_A"), &format!("{what}: gradient of A"));
            assert_gradient(step.of::<2>("b"), &file.turned("grad_B"), &format!("{what}: gradient of B"));
            if config.method() == Method::Dora {
                let expected = file.get("grad_magnitude");
                assert_gradient(step.of::<1>("magnitude"), &expected, &format!("{what}: gradient of the magnitude"));
            }
        }
        // Not in the files of the largest layer.
        if file.has("W_merged") {
            let (merged, _) = attach(&trained).merge();
            assert_same(merged.layer.weight.val(), &file.turned("W_merged"), &format!("{what}: merged"));
        }
    });
}

fn project_once(attached: &Attached<Layer>, x: &HostTensor) -> Tensor<2> {
    let layer = &attached.model.layer;
    sorsa_adapter::project(layer, x.to_tensor(&layer.weight.base().device())).inner()
}

#[test]
fn our_own_start_is_that_of_peft_up_to_signs() {
    each_peft_method(|what, config, meta, base, file| {
        let device = Device::flex();
        let attached = config.attach(base.layer(&device), &Default::default()).unwrap();
        // Attaching changes nothing, whatever is drawn.
        assert_same(project_once(&attached, &base.get("x")), &base.get("y_base"), &format!("{what}: y"));
        let weight = &attached.model.layer.weight;
        let adapter = weight.reparameterization::<Adapter>().unwrap();
        let AdapterFactors::Dora(dora) = adapter.factors() else {
            if !config.method().splits_weight() {
                return;
            }
            let residual = weight.base();
            if what.ends_with("pissa_niter_16") {
                // Theirs is random: ours must be nearer to the optimum, which is the tail of the singular values.
                let found = norm(residual);
                let best = meta["optimal_frob_error"].as_f64().unwrap();
                let theirs = meta["principal_frob_error"].as_f64().unwrap();
                assert!(found <= theirs + 1e-5 && found >= best - 1e-5, "{what}: {best} <= {found} <= {theirs}");
            } else {
                let head = adapter.compose(residual.zeros_like());
                let (a, b) = (file.turned("A_init").to_tensor::<2>(&device), file.turned("B_init").to_tensor(&device));
                let theirs = a.matmul(b) * meta["scaling"].as_f64().unwrap();
                assert_within(head, theirs, 1e-5, &format!("{what}: the product"));
                assert_same(residual, &file.turned("W_base_after_init"), &format!("{what}: residual"));
            }
            return;
        };
        assert_same(dora.magnitude.val(), &file.get("magnitude_init"), &format!("{what}: magnitude"));
    });
}

fn norm(tensor: Tensor<2>) -> f64 {
    values(tensor).into_iter().map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

/// The author's settings of a layer. He keeps the singular values and scales what leaves the weight.
fn authors_config(meta: &Value) -> AdapterConfig {
    let rank = meta["r"].as_u64().unwrap() as usize;
    let sorsa = SorsaConfig { alpha_convention: AlphaConvention::Author, ..SorsaConfig::default() };
    AdapterConfig { alpha: meta["alpha"].as_f64(), ..AdapterConfig::new(sorsa, rank, &["layer"]) }
}

/// The author's factors by our names.
fn authors_factors(file: &Reference, suffix: &str) -> NamedTensors {
    NamedTensors::from([
        ("layer.sorsa.u".to_owned(), file.turned(&format!("A{suffix}"))),
        ("layer.sorsa.s".to_owned(), file.get(&format!("S{suffix}"))),
        ("layer.sorsa.vt".to_owned(), file.turned(&format!("B{suffix}"))),
    ])
}

#[test]
fn outputs_gradients_and_merged_weights_are_those_of_the_authors_layer() {
    for folder in folders("sorsa") {
        let what = folder.display();
        let (meta, file) = (json(&folder.join("meta.json")), Reference::read(&folder.join("sorsa.safetensors")));
        let device = Device::flex().autodiff();
        let initial = authors_factors(&file, "_init");
        let config = authors_config(&meta);
        let attach = |trained| attach_given(&config, file.layer(&device), &initial, trained);

        let fresh = attach(&initial);
        assert_eq!(fresh.state.modules[0].scale, meta["scale"].as_f64().unwrap(), "{what}");
        let residual = fresh.model.layer.weight.base().inner();
        assert_same(residual.clone(), &file.turned("W_res"), &format!("{what}: residual"));
        assert_same(project_once(&fresh, &file.get("x")), &file.get("y_init"), &format!("{what}: y at the start"));
        // In bf16, one number in a hundred may fall to the other side of a tie, not farther.
        let narrow = values(residual.cast(FloatDType::BF16));
        let expected = file.turned("W_res_bf16").values;
        let other = narrow.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
        assert!(100 * other <= narrow.len(), "{what}: {other} of {}", narrow.len());
        assert!(narrow.iter().zip(&expected).all(|(f, e)| (f - e).abs() <= f.abs() / 128.0), "{what}");

        let trained = authors_factors(&file, "");
        for dense in [false, true] {
            let step = Step::run(attach(&trained), &file.get("x"), &file.get("t"), dense);
            assert_same(step.y.clone(), &file.get("y"), &format!("{what}: y"));
            assert!((f64::from(step.loss) - meta["task_loss"].as_f64().unwrap()).abs() < 1e-5, "{what}");
            assert_gradient(step.of_x.clone(), &file.get("grad_x"), &format!("{what}: gradient of x"));
            assert_gradient(step.of::<2>("u"), &file.turned("grad_A"), &format!("{what}: gradient of A"));
            assert_gradient(step.of::<1>("s"), &file.get("grad_S"), &format!("{what}: gradient of S"));
            assert_gradient(step.of::<2>("vt"), &file.turned("grad_B"), &format!("{what}: gradient of B"));
        }
        let (merged, _) = attach(&trained).merge();
        assert_same(merged.layer.weight.val(), &file.turned("W_merged"), &format!("{what}: merged"));
    }
}

#[test]
fn our_own_start_is_that_of_the_authors_layer_up_to_signs() {
    for folder in folders("sorsa") {
        let what = folder.display();
        let (meta, file) = (json(&folder.join("meta.json")), Reference::read(&folder.join("sorsa.safetensors")));
        let attached = authors_config(&meta).attach(file.layer(&Device::flex()), &Default::default()).unwrap();
        let weight = &attached.model.layer.weight;
        assert_same(weight.base(), &file.turned("W_res"), &format!("{what}: residual"));
        assert_same(project_once(&attached, &file.get("x")), &file.get("y_base"), &format!("{what}: y"));
        let Some(AdapterFactors::Sorsa(factors)) = weight.reparameterization().map(Adapter::factors) else {
            panic!("no SORSA")
        };
        assert_same(factors.s.val(), &file.get("S_init"), &format!("{what}: singular values"));
    }
}

#[test]
fn the_regularizer_has_the_value_and_gradient_of_the_authors_code() {
    for folder in folders("sorsa") {
        let what = folder.display();
        let (meta, file) = (json(&folder.join("meta.json")), Reference::read(&folder.join("sorsa.safetensors")));
        let (initial, trained) = (authors_factors(&file, "_init"), authors_factors(&file, ""));
        let attached = attach_given(&authors_config(&meta), file.layer(&Device::flex()), &initial, &trained);
        let (gradients, stats) = regularizer_gradients(&attached.model, &attached.trainable, RegularizerForm::Author);
        let value = stats.unwrap().value;
        assert!((value - meta["ortho"].as_f64().unwrap()).abs() < 1e-5, "{what}: {value}");
        assert_eq!(gradients.len(), 2, "{what}");
        let Some(AdapterFactors::Sorsa(factors)) =
            attached.model.layer.weight.reparameterization().map(Adapter::factors)
        else {
            panic!()
        };
        for (id, name) in [(factors.u.id, "A"), (factors.vt.id, "B")] {
            let found = gradients[&id].clone() * meta["s_gamma"].as_f64().unwrap();
            let expected = file.turned(&format!("ortho_grad_{name}_times_s_gamma"));
            assert_gradient(found, &expected, &format!("{what}: gradient of {name}"));
        }
    }
}

#[test]
fn at_exactly_orthonormal_factors_the_regularizer_is_zero_as_the_authors() {
    // `ortho_at_exact_zero.json`: A = eye(6)[:3], B = eye(5)[:, :3] give 0 and gradients of 0, no NaN.
    if let Some(golden) = std::env::var_os("SORSA_GOLDEN") {
        let reference = json(&PathBuf::from(golden).join("sorsa/ortho_at_exact_zero.json"));
        assert_eq!((reference["ortho"].as_f64(), reference["any_nan"].as_bool()), (Some(0.0), Some(false)));
    }
    let eye =
        |rows, cols| HostTensor::new([rows, cols], (0..rows * cols).map(|i| f32::from(i / cols == i % cols)).collect());
    let factors = NamedTensors::from([
        ("layer.sorsa.u".to_owned(), eye(6, 3)),
        ("layer.sorsa.s".to_owned(), HostTensor::new([3], vec![1.0; 3])),
        ("layer.sorsa.vt".to_owned(), eye(3, 5)),
    ]);
    let layer = Layer { layer: linear(1, [6, 5], None, &Device::flex()) };
    let attached = attach_given(&AdapterConfig::new(Method::Sorsa, 3, &["layer"]), layer, &factors, &factors);
    let (gradients, stats) = regularizer_gradients(&attached.model, &attached.trainable, RegularizerForm::Author);
    assert_eq!(stats.unwrap().value, 0.0);
    assert_eq!(gradients.len(), 2);
    assert!(gradients.into_values().all(|gradient| values(gradient).iter().all(|value| *value == 0.0)));
}
