//! Which layers are adapted, how they are decomposed, and what is refused.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use sorsa_adapter::{AdapterConfig, AdapterError, Algorithm, AttachOptions, Attached, Method, Placement, SvdOptions};

use crate::common::*;

#[derive(Module, Debug)]
struct Tower {
    blocks: Vec<Net>,
    lm_head: Linear,
}

impl Tower {
    fn new(device: &Device) -> Self {
        let blocks = (0..2).map(|_| Net::new(device)).collect();
        Self { blocks, lm_head: linear(6, [9, 30], None, device) }
    }
}

fn chosen(targets: &[&str]) -> Vec<String> {
    let targets = AdapterConfig::new(Method::Lora, 2, targets).targets(&Tower::new(&device())).unwrap();
    targets.into_iter().map(|target| target.path).collect()
}

#[test]
fn names_globs_and_regexes_choose_layers_in_the_models_order() {
    assert_eq!(
        chosen(&["second", "first"]),
        ["blocks.0.first", "blocks.0.second", "blocks.1.first", "blocks.1.second"]
    );
    assert_eq!(chosen(&["blocks.*.first", "lm_head"]), ["blocks.0.first", "blocks.1.first", "lm_head"]);
    assert_eq!(chosen(&[r"re:blocks\.1\..*"]), ["blocks.1.first", "blocks.1.second"]);
    assert_eq!(chosen(&["all-linear"]).len(), 4);
}

#[test]
fn ranks_and_alphas_of_patterns_reach_factors_and_scales() {
    let mut config = AdapterConfig::new(Method::Sorsa, 4, &["all-linear"]).with_alpha(8.0);
    config.rank_pattern.insert("blocks.1.*".into(), 2);
    config.alpha_pattern.insert("second".into(), 4.0);
    let attached = config.attach(Tower::new(&device()), &Default::default()).unwrap();
    let sizes: Vec<_> = attached.modules.iter().map(|module| (module.rank.unwrap(), module.scale)).collect();
    assert_eq!(sizes, [(4, 2.0), (4, 1.0), (2, 4.0), (2, 2.0)]);
    let trained = attached.snapshot().trained;
    assert_eq!(trained["blocks.1.second.sorsa.u"].shape, [20, 2]);
    assert_eq!(trained["blocks.0.second.sorsa.vt"].shape, [4, 9]);
}

#[test]
fn choosing_targets_leaves_lazy_weights_lazy() {
    let device = device();
    let net = Net { first: LinearConfig::new(12, 20).init(&device), second: LinearConfig::new(20, 9).init(&device) };
    assert_eq!(config(Method::Sorsa).targets(&net).unwrap().len(), 2);
    assert!(!net.first.weight.is_initialized() && !net.second.weight.is_initialized());
    // Attaching makes them.
    assert_eq!(config(Method::Sorsa).attach(net, &Default::default()).unwrap().modules.len(), 2);
}

fn faults_of<M: Module>(config: &AdapterConfig, model: M) -> Vec<String> {
    match config.attach(model, &Default::default()).expect_err("accepted") {
        AdapterError::Targets { faults } | AdapterError::Decomposition { faults } => faults,
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
fn everything_wrong_with_targets_is_reported_at_once() {
    let mut config = AdapterConfig::new(Method::Sorsa, 10, &["first", "second", "third", "re:.*fourth"]);
    config.rank_pattern.insert("first".into(), 13);
    config.alpha_pattern.insert("frist".into(), 1.0);
    let faults = faults_of(&config, Net::new(&device()));
    let expected = ["`third` matches no", "`re:.*fourth` matches no", "larger than 12", "larger than 9", "`frist`"];
    assert_names(&faults, &expected);
    assert!(faults.iter().any(|fault| fault.contains("there are: first, second")), "{faults:#?}");
}

#[test]
fn weights_that_are_not_finite_are_all_named() {
    let mut net = Net::new(&device());
    net.second.weight = net.second.weight.map(|weight| weight.slice_fill([3..4, 2..3], f32::NAN));
    assert_names(&faults_of(&config(Method::Pissa), net.clone()), &["`second`"]);
    net.first.weight = net.first.weight.map(|weight| weight.slice_fill([0..1, 0..1], f32::INFINITY));
    assert_names(&faults_of(&config(Method::Sorsa), net), &["`first`", "`second`"]);
}

#[test]
fn a_second_adapter_on_the_same_model_is_refused() {
    let device = device();
    let saved = attach(&config(Method::Lora), &device).snapshot();
    for method in Method::ALL {
        let adapted = attach(&config(Method::Lora), &device).model;
        assert_names(&faults_of(&config(method), adapted), &["adapter already"]);
    }
    for refused in [
        saved.attach(attach(&config(Method::Lora), &device).model),
        saved.unmerge(attach(&config(Method::Sorsa), &device).model),
    ] {
        assert!(matches!(refused, Err(AdapterError::Mismatch { .. })));
    }
    // Merged, the model is plain again.
    let (merged, _) = attach(&config(Method::Lora), &device).merge();
    assert!(config(Method::Sorsa).attach(merged, &Default::default()).is_ok());
}

#[test]
fn a_bare_linear_layer_has_no_path_to_name_and_is_refused() {
    let layer = linear(1, [12, 20], None, &device());
    assert_names(&faults_of(&AdapterConfig::new(Method::Lora, 2, &["all-linear"]), layer), &["`all-linear`"]);
}

#[test]
fn the_svd_on_the_device_splits_the_weight_as_the_one_on_the_host_does() {
    let device = device();
    let svd = SvdOptions { algorithm: Algorithm::BlockKrylov, ..Default::default() };
    let options = AttachOptions { svd, placement: Placement::Device, ..Default::default() };
    let there = config(Method::Sorsa).attach(Net::new(&device), &options).unwrap();
    let here = attach(&config(Method::Sorsa), &device);
    let base = |attached: &Attached<Net>| attached.model.second.weight.base();
    assert_within(base(&there), base(&here), 1e-4, "residuals");
    assert_near(there.model.forward(input(&device)), here.model.forward(input(&device)), "outputs");
    assert!(there.modules.iter().all(|module| module.svd_residual.unwrap() < 1e-5));
}

#[test]
fn progress_counts_every_matrix() {
    let counts = std::sync::Mutex::new(Vec::new());
    let progress = |done, of| counts.lock().unwrap().push((done, of));
    let options = AttachOptions { progress: Some(&progress), ..Default::default() };
    config(Method::Sorsa).attach(Net::new(&device()), &options).unwrap();
    let mut counts = counts.into_inner().unwrap();
    counts.sort_unstable();
    assert_eq!(counts, [(1, 2), (2, 2)]);
}

/// A start with the SVD cache in a folder, and how many SVDs came from it.
fn cached_start(method: Method, rank: usize, net: Net, folder: &std::path::Path) -> (Attached<Net>, usize) {
    let options = AttachOptions { cache: Some(folder.into()), ..Default::default() };
    let attached = AdapterConfig::new(method, rank, &["first", "second"]).attach(net, &options).unwrap();
    let cached = attached.modules.iter().filter(|module| module.cached).count();
    (attached, cached)
}

#[test]
fn a_second_start_takes_the_same_factors_from_the_cache() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let start = |method, rank, net| cached_start(method, rank, net, folder.path());
    let (first, none) = start(Method::Sorsa, 4, Net::new(&device));
    let (second, all) = start(Method::Sorsa, 4, Net::new(&device));
    assert_eq!((none, all), (0, 2));
    assert_eq!(first.snapshot().trained, second.snapshot().trained);
    assert_eq!(start(Method::Pissa, 4, Net::new(&device)).1, 2, "PiSSA starts from the same SVD");
    assert_eq!(start(Method::Sorsa, 3, Net::new(&device)).1, 0, "another rank is another SVD");
    let mut other = Net::new(&device);
    other.first.weight = other.first.weight.map(|weight| weight * 1.5);
    assert_eq!(start(Method::Sorsa, 4, other).1, 1, "another weight is another SVD");
}

#[test]
fn a_corrupt_entry_of_the_cache_is_computed_again_and_replaced() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let start = || cached_start(Method::Sorsa, 4, Net::new(&device), folder.path());
    let expected = start().0.snapshot().trained;
    let entries = || std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let damages: [fn(&mut Vec<u8>); 3] = [
        |bytes| bytes.clear(),
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.iter_mut().rev().take(64).for_each(|byte| *byte = 0xff),
    ];
    for (index, damage) in damages.into_iter().enumerate() {
        for entry in entries() {
            let mut bytes = std::fs::read(&entry).unwrap();
            damage(&mut bytes);
            std::fs::write(&entry, bytes).unwrap();
        }
        let (again, cached) = start();
        assert_eq!(cached, 0, "damage {index}");
        assert_eq!(again.snapshot().trained, expected, "damage {index}");
        assert_eq!(start().1, 2, "damage {index} is repaired");
    }
}
