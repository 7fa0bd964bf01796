//! PEFT's and the author's adapters on a small Llama: logits, losses and gradients with given factors. The model of
//! `tests/golden` is compared always; every method where `SORSA_GOLDEN` names the folder of reference results.

mod reference;
mod travel;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::prelude::*;
use sorsa_adapter::{
    AdapterConfig, AlphaConvention, Attached, HostTensor, HostTensorExt, Method, NamedTensors, RegularizerForm,
    SavedAdapter, SorsaConfig, regularizer_gradients,
};
use sorsa_models::{CausalLm, WeightFormat};

use reference::*;

use crate::common::larger::larger;

const PROJECTIONS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn golden() -> Option<PathBuf> {
    let folder = std::env::var_os("SORSA_GOLDEN").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("SORSA_GOLDEN is not set: nothing more to compare with");
    }
    folder
}

/// The folders of PEFT's adapters.
fn peft_folders(golden: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(golden.join("adapters/tiny_llama")).unwrap();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(!folders.is_empty(), "no adapters in {}", golden.display());
    folders
}

/// The model of the reference results, which every adapter names.
fn place(golden: &Path) -> Place {
    let config = json(&peft_folders(golden)[0].join("adapter/adapter_config.json"));
    let checkpoint = golden.join(config["base_model_name_or_path"].as_str().unwrap());
    Place { io: checkpoint.with_file_name("io.safetensors"), checkpoint }
}

/// How many layers the adapters of the reference results are on.
fn projections(golden: &Path) -> usize {
    PROJECTIONS.len() * place(golden).model().config().num_hidden_layers
}

/// The model of `tests/golden`, and the folder of it all.
fn committed() -> (Place, PathBuf) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama");
    (Place { checkpoint: folder.join("checkpoint"), io: folder.join("io.safetensors") }, folder)
}

/// Checks one adapter's folder: the logits and loss of `adapter/`, and the gradients, where they are given.
fn check_peft(place: &Place, folder: &Path) {
    let what = folder.display().to_string();
    let config = peft_config(&json(&folder.join("adapter/adapter_config.json")));
    let saved = tensors(&folder.join("adapter/adapter_model.safetensors"));
    let method = config.method();
    // What the adapter started from has left the weights of methods that split them.
    let initial = match method.splits_weight() {
        true => factors(&tensors(&folder.join("init_adapter/adapter_model.safetensors")), method),
        false => NamedTensors::new(),
    };
    let attach = |trained: NamedTensors| {
        let mut attached = place.attach(place.model(), config.clone(), &initial, trained);
        attached.model = attached.model.train();
        attached
    };
    let batch = place.batch();
    let check = |trained: NamedTensors, gradients: &str| {
        let attached = attach(trained);
        let file = folder.join(gradients);
        if file.exists() {
            let found = batch.gradients(&attached.model, names(&attached));
            assert_gradients(&found, &factors(&tensors(&file), method), 1e-4, &format!("{what}, {gradients}"));
        }
        attached
    };
    let attached = check(factors(&saved, method), "grads.safetensors");
    let expected = tensors(&folder.join("expected.safetensors"));
    batch.assert_gives(&attached.model, &expected, &what);
    let (merged, _) = attached.merge();
    batch.assert_gives(&merged, &expected, &format!("{what}, merged"));
    if folder.join("grads_at_init.safetensors").exists() {
        check(initial.clone(), "grads_at_init.safetensors");
    }
    // PEFT's way back to a LoRA of the original weights.
    let converted = folder.join("converted_to_lora");
    if converted.exists() {
        let config = peft_config(&json(&converted.join("adapter_config.json")));
        let config = AdapterConfig { method: Method::Lora.into(), ..config };
        let trained = factors(&tensors(&converted.join("adapter_model.safetensors")), Method::Lora);
        let lora = place.attach(place.model(), config, &NamedTensors::new(), trained);
        batch.assert_gives(&lora.model, &expected, &format!("{what}, converted"));
    }
}

#[test]
fn a_small_llama_and_its_lora_adapter_give_the_logits_and_gradients_of_peft() {
    let (place, folder) = committed();
    let batch = place.batch();
    batch.assert_gives(&place.model(), &tensors(&folder.join("io.safetensors")), "the bare model");
    check_peft(&place, &folder.join("lora"));
}

#[test]
fn every_gradient_of_a_small_llama_is_that_of_pytorch() {
    let (place, folder) = committed();
    let mut attached = AdapterConfig::new(Method::Full, 1, &[]).attach(place.model(), &Default::default()).unwrap();
    attached.model = attached.model.train();
    let found = place.batch().gradients(&attached.model, names(&attached));
    let turn = |(name, tensor): (String, HostTensor)| {
        let is_linear = tensor.shape.len() == 2 && !name.contains("embed_tokens");
        (name, if is_linear { turned(&tensor) } else { tensor })
    };
    let expected = tensors(&folder.join("grads.safetensors")).into_iter().map(turn).collect();
    assert_gradients(&found, &expected, 1e-4, "the bare model");
}

#[test]
fn logits_losses_and_gradients_of_every_method_are_those_of_peft() {
    let Some(golden) = golden() else { return };
    let mut count = 0;
    for folder in peft_folders(&golden) {
        // `a_head_trained_beside_the_adapter_gets_the_gradient_of_peft` compares these.
        if json(&folder.join("meta.json"))["config"]["modules_to_save"].is_null() {
            check_peft(&place(&golden), &folder);
            count += 1;
        }
    }
    assert!(count > 0, "no adapter of factors alone");
}

#[test]
fn a_lora_adapter_is_merged_into_the_weights_that_peft_writes() {
    let Some(golden) = golden() else { return };
    let (place, folder) = (place(&golden), golden.join("adapters/tiny_llama/lora"));
    let merged = CausalLm::load(&folder.join("merged"), WeightFormat::F32, &Device::flex()).unwrap();
    let config = peft_config(&json(&folder.join("adapter/adapter_config.json")));
    let trained = factors(&tensors(&folder.join("adapter/adapter_model.safetensors")), Method::Lora);
    let (ours, _) = place.attach(place.model(), config, &NamedTensors::new(), trained).merge();
    let (ours, theirs) = (weights(&ours), weights(&merged));
    assert_eq!(ours.len(), projections(&golden) + 2);
    assert_weights(&ours, &theirs, 1e-5, "merged");
}

/// Every matrix of a model by its path.
fn weights(model: &CausalLm) -> NamedTensors {
    struct Collect(Vec<String>, NamedTensors);
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.0.join(".");
            if D == 2 && path.ends_with(".weight") {
                self.1.insert(path, HostTensor::from_tensor(param.base().without_autodiff()));
            }
        }
    }
    let mut collect = Collect(Vec::new(), NamedTensors::new());
    model.visit(&mut collect);
    collect.1
}

#[track_caller]
fn assert_weights(found: &NamedTensors, expected: &NamedTensors, tolerance: f32, what: &str) {
    for (name, expected) in expected {
        let worst =
            found[name].values.iter().zip(&expected.values).fold(0f32, |worst, (f, e)| larger(worst, (f - e).abs()));
        assert!(worst <= tolerance, "{what}: {name} differs by {worst}");
    }
}

#[test]
fn the_residuals_of_pissa_are_those_of_peft() {
    let Some(golden) = golden() else { return };
    let (place, folder) = (place(&golden), golden.join("adapters/tiny_llama/pissa"));
    let config = peft_config(&json(&folder.join("adapter/adapter_config.json")));
    let expected = tensors(&folder.join("residual_weights.safetensors"));
    let expected = expected.iter().filter(|(name, _)| name.ends_with(".weight"));
    let expected: NamedTensors = expected.map(|(name, tensor)| (plain(name), turned(tensor))).collect();
    assert_eq!(expected.len(), projections(&golden));
    let initial = factors(&tensors(&folder.join("init_adapter/adapter_model.safetensors")), Method::Pissa);
    let given = place.attach(place.model(), config.clone(), &initial, initial.clone());
    assert_weights(&weights(&given.model), &expected, 1e-5, "with PEFT's factors");
    let own = config.attach(place.model(), &Default::default()).unwrap();
    assert_weights(&weights(&own.model), &expected, 1e-5, "with our own");
}

/// A module's name without what PEFT puts around it.
fn plain(name: &str) -> String {
    name.replace("base_model.model.", "").replace(".base_layer", "")
}

#[test]
fn a_head_trained_beside_the_adapter_gets_the_gradient_of_peft() {
    let Some(golden) = golden() else { return };
    let (place, folder) = (place(&golden), golden.join("adapters/tiny_llama/lora_modules_to_save"));
    let saved = SavedAdapter::load_any(&folder.join("adapter"), &place.model()).unwrap();
    let mut attached = saved.attach(place.model()).unwrap();
    attached.model = attached.model.train();

    let batch = place.batch();
    batch.assert_gives(&attached.model, &tensors(&folder.join("expected.safetensors")), "with the head");
    let file = tensors(&folder.join("grads.safetensors"));
    let mut expected = factors(&file, Method::Lora);
    let of_head = turned(&file["base_model.model.lm_head.modules_to_save.default.weight"]);
    expected.insert("lm_head.weight".to_owned(), of_head);
    assert_gradients(&batch.gradients(&attached.model, names(&attached)), &expected, 1e-4, "with the head");
}

/// The author's adapter on the model: his factors at the start, and those of the file `trained`.
fn authors(golden: &Path, trained: &str) -> Attached<CausalLm> {
    let (place, folder) = (place(golden), golden.join("sorsa/tiny_llama"));
    let meta = json(&folder.join("meta.json"));
    let (rank, alpha) = (meta["r"].as_u64().unwrap() as usize, meta["alpha"].as_f64());
    let read = |file: &str| factors(&tensors(&folder.join(file)), Method::Sorsa);
    let sorsa = SorsaConfig { alpha_convention: AlphaConvention::Author, ..SorsaConfig::default() };
    let config = AdapterConfig { alpha, ..AdapterConfig::new(sorsa, rank, &PROJECTIONS) };
    let mut attached = place.attach(place.model(), config, &read("adapter_init.safetensors"), read(trained));
    attached.model = attached.model.train();
    attached
}

#[test]
fn logits_loss_and_gradients_of_sorsa_are_those_of_the_authors_model() {
    let Some(golden) = golden() else { return };
    let (batch, folder) = (place(&golden).batch(), golden.join("sorsa/tiny_llama"));
    let attached = authors(&golden, "adapter.safetensors");
    let found = batch.gradients(&attached.model, names(&attached));
    let expected = factors(&tensors(&folder.join("grads_task.safetensors")), Method::Sorsa);
    assert_eq!(expected.len(), 3 * projections(&golden));
    assert_gradients(&found, &expected, 1e-5, "task");
    let expected = tensors(&folder.join("expected.safetensors"));
    batch.assert_gives(&attached.model, &expected, "adapted");
    batch.assert_gives(&attached.merge().0, &expected, "merged");
}

#[test]
fn residuals_of_sorsa_are_those_of_the_authors_model() {
    let Some(golden) = golden() else { return };
    let expected = tensors(&golden.join("sorsa/tiny_llama/residual_weights.safetensors"));
    let expected: NamedTensors = expected.iter().map(|(name, tensor)| (plain(name), turned(tensor))).collect();
    assert_eq!(expected.len(), projections(&golden));
    let given = authors(&golden, "adapter_init.safetensors");
    assert_weights(&weights(&given.model), &expected, 1e-5, "with the author's factors");
    let own = given.state.config.attach(place(&golden).model(), &Default::default()).unwrap();
    assert_weights(&weights(&own.model), &expected, 1e-5, "with our own");
}

#[test]
fn the_regularizers_gradient_is_that_of_the_authors_model() {
    let Some(golden) = golden() else { return };
    let folder = golden.join("sorsa/tiny_llama");
    let meta = json(&folder.join("meta.json"));
    let Attached { model, trainable, .. } = authors(&golden, "adapter.safetensors");
    let (gradients, stats) = regularizer_gradients(&model, &trainable, RegularizerForm::Author);
    let value = stats.unwrap().value;
    assert!((value - meta["ortho"].as_f64().unwrap()).abs() < 1e-5, "{value}");
    let weight = meta["s_gamma"].as_f64().unwrap();
    let names: BTreeMap<_, _> = trainable.iter().map(|parameter| (parameter.id, parameter.name.clone())).collect();
    let found =
        gradients.into_iter().map(|(id, g)| (names[&id].clone(), HostTensor::from_tensor(g * weight))).collect();
    let expected = factors(&tensors(&folder.join("grads_s_gamma_ortho.safetensors")), Method::Sorsa);
    assert_eq!(expected.len(), 2 * projections(&golden));
    assert_gradients(&found, &expected, 1e-5, "regularizer");
}
