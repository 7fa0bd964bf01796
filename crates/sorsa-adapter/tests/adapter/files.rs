//! Adapters apart from their models: saved, loaded, refused.

use burn::module::Module;
use burn::nn::conv::{Conv1d, Conv1dConfig};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use sorsa_adapter::peft::{PeftAdapter, PeftExport, PeftForm};
use sorsa_adapter::{AdapterConfig, AdapterError, AlphaConvention, HostTensor, Method, SavedAdapter, SorsaConfig};

use crate::common::*;

#[test]
fn a_saved_adapter_loads_onto_the_original_model() {
    let device = device();
    let mut configs: Vec<AdapterConfig> = Method::ALL.into_iter().map(|m| config(m).with_alpha(10.0)).collect();
    let mut patterned = config(Method::Sorsa);
    patterned.rank_pattern.insert("second".into(), 2);
    configs.push(patterned);
    for (name, value) in
        [("band", "minor"), ("train", "vectors"), ("train", "singular-values"), ("retraction", "polar")]
    {
        configs.push(with_setting(&config(Method::Sorsa).with_alpha(10.0), name, value));
    }
    for config in configs {
        let folder = tempfile::tempdir().unwrap();
        let adapted = disturbed(attach(&config, &device));
        adapted.snapshot().save(folder.path()).unwrap();
        let loaded = SavedAdapter::load(folder.path()).unwrap().attach(Net::new(&device)).unwrap();
        assert_eq!(loaded.state, adapted.state);
        assert_eq!(loaded.snapshot().trained, adapted.snapshot().trained);
        let (x, y) = (loaded.model.forward(input(&device)), adapted.model.forward(input(&device)));
        match is_repeatable() {
            true => assert_eq!(values(x), values(y), "{config:?}"),
            false => assert_near(x, y, &format!("{config:?}")),
        }
    }
}

#[test]
fn an_adapter_unmerged_and_saved_again_still_fits_the_original_model() {
    let device = device();
    let adapted = disturbed(attach(&config(Method::Sorsa), &device));
    let before = adapted.model.forward(input(&device));
    let (merged, adapter) = adapted.merge();
    let again = adapter.unmerge(merged).unwrap().snapshot();
    let loaded = again.attach(Net::new(&device)).unwrap();
    assert_near(loaded.model.forward(input(&device)), before, "unmerged");
}

#[test]
fn doras_adapter_is_taken_out_with_the_norms_of_the_merge_and_not_without() {
    let device = device();
    let adapted = disturbed(attach(&config(Method::Dora).with_alpha(10.0), &device));
    let (before, early) = (adapted.model.forward(input(&device)), adapted.snapshot());
    let (merged, adapter) = adapted.merge();
    let folder = tempfile::tempdir().unwrap();
    adapter.save(folder.path()).unwrap();
    let loaded = SavedAdapter::load(folder.path()).unwrap();
    assert_eq!(loaded.unmerge(merged.clone()).unwrap().snapshot().trained, early.trained);
    assert_near(loaded.unmerge(merged.clone()).unwrap().model.forward(input(&device)), before.clone(), "unmerged");
    assert_near(loaded.attach(Net::new(&device)).unwrap().model.forward(input(&device)), before, "attached");
    let expected = ["of the merge, `first.dora.norm` is missing", "of the merge, `second.dora.norm` is missing"];
    assert_names(&faults(early.unmerge(merged.clone())), &expected);
    // Saved over the other, it does not inherit its norms.
    early.save(folder.path()).unwrap();
    assert_names(&faults(SavedAdapter::load(folder.path()).unwrap().unmerge(merged)), &expected);
}

fn faults<T>(result: Result<T, AdapterError>) -> Vec<String> {
    match result.err().expect("accepted") {
        AdapterError::Mismatch { faults, .. } => faults,
        other => panic!("{other}"),
    }
}

#[track_caller]
fn assert_names(faults: &[String], expected: &[&str]) {
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
    for words in expected {
        assert!(faults.iter().any(|fault| fault.contains(words)), "nothing about {words} in {faults:#?}");
    }
}

#[test]
fn everything_that_does_not_fit_is_reported_at_once() {
    let device = device();
    let mut saved = attach(&config(Method::Sorsa), &device).snapshot();
    let mut missing = saved.state.modules[0].clone();
    missing.path = "third".into();
    saved.trained.remove("first.sorsa.s");
    saved.trained.insert("first.sorsa.u".into(), HostTensor::new([12, 3], vec![0.0; 36]));
    saved.trained.insert("first.lora.a".into(), HostTensor::new([1], vec![0.0]));
    for name in ["u", "s", "vt"] {
        let start = saved.state.initial[&format!("first.sorsa.{name}")].clone();
        saved.trained.insert(format!("third.sorsa.{name}"), start.clone());
        saved.state.initial.insert(format!("third.sorsa.{name}"), start);
    }
    saved.state.initial.remove("second.sorsa.vt");
    saved.state.modules.push(missing);
    let mut other = Net::new(&device);
    other.first.weight = other.first.weight.map(|weight| weight * 1.5);
    other.second = LinearConfig::new(20, 8).with_bias(false).init(&device);
    let found = faults(saved.attach(other));
    let expected = [
        "no linear layer `third`",
        "`second` is [20, 9] in the adapter, [20, 8] in the model",
        "`first.weight` is not the weight",
        "`first.sorsa.s` is missing",
        "`first.sorsa.u` should be [12, 4], found [12, 3]",
        "`first.lora.a` is not in the model",
        "at the start, `second.sorsa.vt` is missing",
    ];
    assert_names(&found, &expected);
}

#[test]
fn dense_values_that_do_not_fit_are_reported_at_once() {
    let device = device();
    for method in [Method::Partial, Method::Full] {
        let mut saved = attach(&config(method), &device).snapshot();
        saved.trained.remove("first.weight");
        saved.trained.insert("second.weight".into(), HostTensor::new([9, 20], vec![0.0; 180]));
        assert_names(&faults(saved.attach(Net::new(&device))), &["`first.weight` is missing", "should be [20, 9]"]);
    }
}

#[test]
fn an_adapter_that_was_split_from_its_base_is_refused_by_another_and_lora_is_not() {
    let device = device();
    let other = || {
        let mut net = Net::new(&device);
        net.first.weight = net.first.weight.map(|weight| weight * 1.5);
        net.second.weight = net.second.weight.map(|weight| weight * 1.5);
        net
    };
    for method in [Method::Sorsa, Method::Pissa, Method::Olora] {
        let saved = attach(&config(method), &device).snapshot();
        assert_names(&faults(saved.attach(other())), &["`first.weight` is not", "`second.weight` is not"]);
    }
    for method in [Method::Lora, Method::Dora] {
        assert!(attach(&config(method), &device).snapshot().attach(other()).is_ok(), "{method}");
    }
}

#[test]
fn unmerging_from_a_model_without_the_modules_is_refused() {
    // Regression: a module that the model lacked was passed over, and the adapter came back without it.
    let device = device();
    let mut saved = attach(&config(Method::Lora), &device).snapshot();
    saved.state.modules[0].path = "elsewhere".into();
    for name in ["a", "b"] {
        let tensor = saved.trained.remove(&format!("first.lora.{name}")).unwrap();
        saved.trained.insert(format!("elsewhere.lora.{name}"), tensor);
    }
    assert_names(&faults(saved.unmerge(Net::new(&device))), &["`elsewhere`"]);
}

#[test]
fn damaged_files_are_named_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let save = || attach(&config(Method::Sorsa), &device()).snapshot().save(folder.path()).unwrap();
    let error = || SavedAdapter::load(folder.path()).unwrap_err().to_string();
    for file in ["adapter.safetensors", "initial.safetensors", "adapter.json"] {
        save();
        let path = folder.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        assert!(error().contains(file), "{}", error());
        std::fs::remove_file(&path).unwrap();
        assert!(error().contains(file), "{}", error());
    }
    save();
    let manifest = folder.path().join("adapter.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("\"format\": 1", "\"format\": 7")).unwrap();
    assert!(error().contains("format should be 1, found 7"), "{}", error());
    std::fs::write(&manifest, text.replace("\"rank\": 4", "\"rank\": 0")).unwrap();
    assert!(error().contains("adapter.json: ") && error().contains("rank must be at least 1"), "{}", error());
}

/// [`Net`] with its weights rounded to bf16.
fn narrow(device: &Device) -> Net {
    let mut net = Net::new(device);
    net.first.weight = net.first.weight.map(|weight| weight.cast(FloatDType::BF16));
    net.second.weight = net.second.weight.map(|weight| weight.cast(FloatDType::BF16));
    net
}

#[test]
fn an_adapter_of_bf16_weights_fits_the_f32_ones_that_they_were_rounded_from() {
    let device = Device::flex();
    for method in factored().filter(|method| method.splits_weight()) {
        let trained = disturbed(config(method).attach(narrow(&device), &with_gradients()).unwrap());
        let folder = tempfile::tempdir().unwrap();
        trained.snapshot().save(folder.path()).unwrap();
        let saved = SavedAdapter::load(folder.path()).unwrap();
        // The residual is that of the run, to the bit: what is merged is what was trained.
        let wide = saved.attach(Net::new(&device)).unwrap();
        for (found, expected) in [
            (&wide.model.first.weight, &trained.model.first.weight),
            (&wide.model.second.weight, &trained.model.second.weight),
        ] {
            assert_eq!(found.base().dtype(), DType::F32);
            assert_eq!(values(found.base()), values(expected.base()), "{method}");
        }
        let again = saved.attach(narrow(&device)).unwrap();
        assert_eq!(values(again.model.first.weight.base()), values(trained.model.first.weight.base()), "{method}");
        // The other way the weights are others, and it is said why.
        let saved = attach(&config(method), &device).snapshot();
        assert_names(&faults(saved.attach(narrow(&device))), &["`first.weight`", "was rounded to BF16"]);
        // Where no digit was lost they are the same.
        let widened = |mut net: Net| {
            net.first.weight = net.first.weight.map(|weight| weight.cast(FloatDType::F32));
            net.second.weight = net.second.weight.map(|weight| weight.cast(FloatDType::F32));
            net
        };
        let saved = config(method).attach(widened(narrow(&device)), &with_gradients()).unwrap().snapshot();
        saved.attach(narrow(&device)).unwrap();
    }
}

#[test]
fn a_layer_that_is_no_longer_linear_is_named() {
    #[derive(Module, Debug)]
    struct Changed {
        first: Conv1d,
        second: LayerNorm,
    }
    let device = device();
    let saved = attach(&config(Method::Sorsa), &device).snapshot();
    let first = Conv1dConfig::new(12, 20, 3).init(&device);
    let changed = Changed { first, second: LayerNormConfig::new(20).init(&device) };
    assert_names(&faults(saved.attach(changed)), &["no linear layer `first`", "no linear layer `second`"]);
}

#[test]
fn what_peft_would_read_otherwise_does_not_leave_for_it() {
    let device = device();
    // Patterns are burn's side alone: PEFT gets the paths that they mean.
    let mut config = AdapterConfig::new(Method::Lora, RANK, &["fir*"]);
    config.modules_to_save = vec!["sec*".into()];
    let saved = attach(&config, &device).snapshot();
    let (peft, _) = PeftAdapter::from_saved(&saved, &Net::new(&device), &PeftExport::default()).unwrap();
    assert_eq!(peft.config.target_modules, ["first"]);
    assert_eq!(peft.config.modules_to_save, ["second"]);
    // PEFT divides the singular values by the scale; the author's code does not.
    let as_trained = PeftExport { form: PeftForm::AsTrained, ..PeftExport::default() };
    for (convention, fits) in [(AlphaConvention::Peft, true), (AlphaConvention::Author, false)] {
        let method = SorsaConfig { alpha_convention: convention, ..SorsaConfig::default() }.into();
        let config = AdapterConfig { method, ..crate::common::config(Method::Sorsa).with_alpha(10.0) };
        let saved = attach(&config, &device).snapshot();
        assert_eq!(PeftAdapter::from_saved(&saved, &Net::new(&device), &as_trained).is_ok(), fits, "{convention:?}");
    }
}

#[test]
fn a_lora_xs_adapter_keeps_its_frozen_factors_beside_other_weights_and_is_an_exact_lora_in_peft() {
    let device = device();
    let adapted = disturbed(attach(&config(Method::LoraXs).with_alpha(6.0), &device));
    let saved = adapted.snapshot();
    assert_eq!(saved.trained.keys().collect::<Vec<_>>(), ["first.lora-xs.r", "second.lora-xs.r"]);
    let mut other = Net::new(&device);
    other.first.weight = other.first.weight.map(|weight| weight * 1.5);
    let moved = saved.attach(other).unwrap().model.first;
    let change = |layer: &Linear| layer.weight.val() - layer.weight.base();
    assert_near(change(&moved), change(&adapted.model.first), "the same change of other weights");
    let (peft, errors) = PeftAdapter::from_saved(&saved, &Net::new(&device), &PeftExport::default()).unwrap();
    assert_eq!((peft.config.rank, peft.config.method(), errors.len()), (RANK, Method::Lora, 0));
    let lora = peft.attachable(&Net::new(&device), &Default::default()).unwrap();
    let lora = lora.attach(Net::new(&device)).unwrap();
    assert_near(lora.model.forward(input(&device)), adapted.model.forward(input(&device)), "as a LoRA");
    // A start without the frozen factors is refused.
    let mut without = saved;
    without.state.initial.remove("second.lora-xs.b");
    assert_names(&faults(without.attach(Net::new(&device))), &["at the start, `second.lora-xs.b` is missing"]);
}

#[test]
fn saving_leaves_nothing_but_the_adapters_files() {
    let folder = tempfile::tempdir().unwrap();
    for method in factored() {
        let folder = folder.path().join(method.to_string());
        attach(&config(method), &device()).snapshot().save(&folder).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        let expected = ["adapter.json", "adapter.safetensors", "initial.safetensors"];
        let saves_start = method.splits_weight() || FROZEN.contains(&method);
        assert_eq!(names, if saves_start { &expected[..] } else { &expected[..2] });
    }
}
