//! Hybrids: an adapter that starts from the weights of another one, and several methods in one adapter.

use std::collections::BTreeMap;

use crate::common::{Net, RANK, assert_within, attach, config, device, disturbed, factored, input, largest};
use sorsa_adapter::peft::{PeftAdapter, PeftExport, PeftForm};
use sorsa_adapter::{
    AdapterConfig, AttachOptions, Attached, DoraConfig, Init, LoraConfig, LoraXsConfig, Method, MethodConfig,
    SavedAdapter, SorsaConfig,
};

/// The largest difference that a hand-over makes, relative to the largest output.
const EXACT: f32 = 1e-5;

/// A trained adapter of a method.
fn trained(method: Method) -> Attached<Net> {
    disturbed(attach(&config(method), &device()))
}

#[track_caller]
fn assert_same_weights(one: Attached<Net>, other: Attached<Net>, what: &str) {
    let (one, other) = (one.merge().0, other.merge().0);
    for (a, b) in
        [(one.first.weight.val(), other.first.weight.val()), (one.second.weight.val(), other.second.weight.val())]
    {
        let tolerance = EXACT * largest(b.clone());
        assert_within(a, b, tolerance, what);
    }
}

fn loaded(saved: &SavedAdapter) -> SavedAdapter {
    let folder = tempfile::tempdir().unwrap();
    saved.save(folder.path()).unwrap();
    SavedAdapter::load(folder.path()).unwrap()
}

fn exported(saved: &SavedAdapter, net: &Net) -> SavedAdapter {
    let folder = tempfile::tempdir().unwrap();
    PeftAdapter::from_saved(saved, net, &PeftExport::default()).unwrap().0.save(folder.path()).unwrap();
    PeftAdapter::load(folder.path()).unwrap().attachable(net, &AttachOptions::default()).unwrap()
}

/// The methods that others go on from, and that go on from others. KaSA's start changes the model, SVFT's changes have the full rank, and
/// LoRA-GA starts from data.
fn hybrid() -> impl Iterator<Item = Method> {
    factored().filter(|method| !matches!(method, Method::Kasa | Method::Svft | Method::LoraGa))
}

/// The configuration that goes on with an adapter of rank 4: LoRA needs the rank of its change.
fn next(method: Method) -> AdapterConfig {
    match method {
        Method::Lora => AdapterConfig { rank: 2 * RANK, ..config(method) }.with_alpha(5.0),
        // Otherwise its start adds a little noise.
        Method::LoraXs => AdapterConfig { method: LoraXsConfig { deviation: 0.0 }.into(), ..config(method) },
        method => config(method),
    }
}

#[test]
fn every_method_goes_on_from_the_weights_of_every_other_and_back() {
    let (net, options) = (Net::new(&device()), AttachOptions::default());
    for from in hybrid().filter(|method| *method != Method::Dora) {
        for to in hybrid() {
            let what = format!("{from} to {to}");
            let old = trained(from);
            let start = old.snapshot().handed_over(&net, &next(to), &options).unwrap();
            let x = input(&device());
            let before = old.model.forward(x.clone());
            let attached = start.attach(net.clone()).unwrap();
            let tolerance = EXACT * largest(before.clone());
            assert_within(attached.model.forward(x.clone()), before, tolerance, &what);
            assert_same_weights(start.attach(net.clone()).unwrap(), old, &what);

            // Trained further, it is saved, read and exported with what it carries along.
            let further = disturbed(attached);
            let saved = further.snapshot();
            assert_eq!(loaded(&saved).state, saved.state, "{what}");
            assert_same_weights(loaded(&saved).attach(net.clone()).unwrap(), further, &what);
            if to == Method::Dora {
                continue;
            }
            assert_same_weights(
                exported(&saved, &net).attach(net.clone()).unwrap(),
                saved.attach(net.clone()).unwrap(),
                &format!("{what}, exported"),
            );
            // A merged model gives its adapter back.
            let (merged, adapter) = saved.attach(net.clone()).unwrap().merge();
            assert_same_weights(loaded(&adapter).unmerge(merged).unwrap(), saved.attach(net.clone()).unwrap(), &what);
            // And back, with more carried along. Two changes fill the smaller side of the second layer.
            let back = match from {
                Method::Lora => AdapterConfig { rank: 9, ..config(from) },
                from => next(from),
            };
            let again = match saved.handed_over(&net, &back, &options) {
                Ok(again) => again,
                Err(error) => {
                    assert!(from == Method::Lora && error.to_string().contains("leaves out"), "{what}: {error}");
                    continue;
                }
            };
            assert_same_weights(again.attach(net.clone()).unwrap(), saved.attach(net.clone()).unwrap(), &what);
        }
    }
}

#[test]
fn a_rank_that_is_too_small_is_refused_with_what_it_would_lose() {
    let (net, options) = (Net::new(&device()), AttachOptions::default());
    let saved = trained(Method::Sorsa).snapshot();
    let error = saved.handed_over(&net, &config(Method::Lora), &options).unwrap_err().to_string();
    assert!(
        error.contains("rank 4 leaves out ") && error.contains("of the change of `first`, whose rank is 8"),
        "{error}"
    );
    assert!(error.contains("; 1 more modules: give a larger rank"), "{error}");
}

#[test]
fn what_cannot_be_handed_over_is_refused_with_the_way_out() {
    let (net, options) = (Net::new(&device()), AttachOptions::default());
    let refused = |from: Method, to: &AdapterConfig| {
        trained(from).snapshot().handed_over(&net, to, &options).unwrap_err().to_string()
    };
    assert!(refused(Method::Dora, &config(Method::Lora)).contains("the change by dora is no product of factors"));
    assert!(refused(Method::Partial, &config(Method::Lora)).contains("merge the adapter"));
    assert!(refused(Method::Lora, &config(Method::Partial)).contains("partial trains the weights themselves"));
    let elsewhere = AdapterConfig::new(Method::Sorsa, RANK, &["first"]);
    assert!(
        refused(Method::Lora, &elsewhere).contains("1 modules that the adapter changes are no targets, `second` first")
    );
}

#[test]
fn an_adapter_that_lost_what_it_carries_is_not_read() {
    let (net, options) = (Net::new(&device()), AttachOptions::default());
    let start = trained(Method::Lora).snapshot().handed_over(&net, &config(Method::Pissa), &options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    start.save(folder.path()).unwrap();
    let path = folder.path().join("initial.safetensors");
    let mut tensors = sorsa_files::read_tensors(&path).unwrap();
    tensors.retain(|name, _| !name.starts_with("first.carried"));
    sorsa_files::write_tensors(&path, &tensors).unwrap();
    let error = SavedAdapter::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("the carried changes should have the ranks"), "{error}");
    let as_trained = PeftExport { form: PeftForm::AsTrained, ..PeftExport::default() };
    assert!(PeftAdapter::from_saved(&start, &net, &as_trained).is_err());
}

fn mixed(others: &[(&str, MethodConfig)]) -> AdapterConfig {
    let method_pattern: BTreeMap<String, MethodConfig> =
        others.iter().map(|(pattern, method)| ((*pattern).to_owned(), method.clone())).collect();
    AdapterConfig { method_pattern, ..config(Method::Sorsa) }
}

#[test]
fn one_method_on_some_modules_and_another_on_others_is_trained_saved_merged_and_exported() {
    let net = Net::new(&device());
    for other in hybrid().filter(|method| *method != Method::Sorsa) {
        let what = other.to_string();
        let config = mixed(&[("second", other.into())]);
        let fresh = attach(&config, &device());
        let x = input(&device());
        assert_within(fresh.model.forward(x.clone()), net.forward(x.clone()), 1e-4, &what);
        let names: Vec<&str> = fresh.trainable.iter().map(|parameter| parameter.name.as_str()).collect();
        assert_eq!(names[..3], ["first.sorsa.u", "first.sorsa.s", "first.sorsa.vt"]);
        assert!(names[3..].iter().all(|name| name.starts_with(&format!("second.{other}."))), "{names:?}");

        let trained = disturbed(fresh);
        let saved = trained.snapshot();
        let again = loaded(&saved).attach(net.clone()).unwrap();
        assert_within(again.model.forward(x.clone()), trained.model.forward(x.clone()), 1e-5, &what);
        let tolerance = 1e-4 * largest(trained.model.forward(x.clone()));
        let output = trained.model.forward(x.clone());
        let (merged, adapter) = trained.merge();
        assert_within(merged.forward(x.clone()), output, tolerance, &what);
        assert_same_weights(loaded(&adapter).unmerge(merged).unwrap(), saved.attach(net.clone()).unwrap(), &what);
        if other == Method::Dora {
            let error = PeftAdapter::from_saved(&saved, &net, &PeftExport::default()).unwrap_err().to_string();
            assert!(error.contains("PEFT has one method for all modules"), "{error}");
            continue;
        }
        let peft = exported(&saved, &net);
        assert_eq!(peft.state.config.method(), Method::Lora);
        assert_same_weights(peft.attach(net.clone()).unwrap(), saved.attach(net.clone()).unwrap(), &what);
    }
}

#[test]
fn patterns_of_methods_are_names_or_tables_in_files_and_are_checked() {
    let with_settings = LoraConfig { init: Init::Orthogonal };
    let config = mixed(&[("first", SorsaConfig::default().into()), ("second", with_settings.into())]);
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(
        json["method_pattern"],
        serde_json::json!({"first": "sorsa", "second": {"method": "lora", "init": "orthogonal"}})
    );
    assert_eq!(serde_json::from_value::<AdapterConfig>(json.clone()).unwrap(), config);
    let fault = |value: serde_json::Value| {
        let mut json = json.clone();
        json["method_pattern"] = value;
        let config = serde_json::from_value::<AdapterConfig>(json).map_err(|error| error.to_string())?;
        config.targets(&Net::new(&device())).map_err(|error| error.to_string())
    };
    let error = |value| fault(value).unwrap_err();
    assert!(error(serde_json::json!({"second": "vera"})).contains("method_pattern `second`: unknown method `vera`"));
    let unknown = error(serde_json::json!({"second": {"method": "lora", "gamma": 1}}));
    assert_eq!(unknown, "method_pattern `second`: `gamma` is a setting of kasa, not of lora");
    assert!(error(serde_json::json!({"third": "lora"})).contains("`third` of method_pattern matches no target"));
    assert!(error(serde_json::json!({"second": "full"})).contains("full trains the weights themselves"));
    assert!(serde_json::to_value(self::config(Method::Sorsa)).unwrap().get("method_pattern").is_none());
}

#[test]
fn a_mixed_adapter_goes_on_as_another_and_another_as_a_mixed_one() {
    let (net, options) = (Net::new(&device()), AttachOptions::default());
    let mixed_config = mixed(&[("second", DoraConfig::default().into())]);
    let old = trained(Method::Pissa);
    let start = old.snapshot().handed_over(&net, &mixed_config, &options).unwrap();
    assert_same_weights(start.attach(net.clone()).unwrap(), old, "to sorsa and dora");

    let old = disturbed(attach(&mixed(&[("second", Method::Lora.into())]), &device()));
    let start = old.snapshot().handed_over(&net, &config(Method::Pissa), &options).unwrap();
    assert_same_weights(start.attach(net.clone()).unwrap(), old, "from sorsa and lora");
}
