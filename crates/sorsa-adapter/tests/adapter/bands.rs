//! Bands of singular triplets: what PiSSA and SORSA split off, against NumPy and against the exact SVD of faer in f64.

use std::path::Path;

use burn::nn::Linear;
use sorsa_adapter::peft::{PeftAdapter, PeftExport, PeftForm};
use sorsa_adapter::{
    Adapter, AdapterConfig, AdapterError, AdapterFactors, AttachOptions, Band, HostTensor, HostTensorExt, Method,
    PissaConfig, SavedAdapter,
};
use sorsa_linalg::faer::Mat;

use crate::common::reference::*;
use crate::common::*;

const BANDS: [(&str, Band); 4] =
    [("principal", Band::Principal), ("middle", Band::Middle), ("minor", Band::Minor), ("1", Band::After(1))];

fn with_band(method: Method, band: Band) -> AdapterConfig {
    with_setting(&config(method), "band", serde_json::to_value(band).unwrap())
}

fn split(method: Method) -> bool {
    method.setting_names().contains(&"band")
}

#[test]
fn a_band_splits_off_the_triplets_that_numpy_finds() {
    let device = device();
    let file =
        Reference::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bands/bands.safetensors"));
    for (weight, name) in [("wide", "first"), ("tall", "second")] {
        for (band_name, band) in BANDS {
            for (method, alpha) in factored().filter(|method| split(*method)).flat_map(|m| [(m, 4.0), (m, 10.0)]) {
                let what = format!("{weight} {band_name} {method} {alpha}");
                let turned = file.turned(&format!("{weight}.weight"));
                let mut layer: Linear = linear(1, [turned.shape[0], turned.shape[1]], None, &device);
                layer.weight = burn::module::Param::from_tensor(turned.to_tensor(&device));
                let config =
                    AdapterConfig { target_modules: vec!["layer".into()], ..with_band(method, band).with_alpha(alpha) };
                let attached = config.attach(Layer { layer: layer.clone() }, &Default::default()).unwrap();
                let part = layer.weight.val() - attached.model.layer.weight.base();
                let expected = file.turned(&format!("{weight}.{band_name}.product")).to_tensor::<2>(&device);
                assert_within(part, expected, 1e-5, &format!("{what} ({name})"));
                if let Some(AdapterFactors::Sorsa(factors)) =
                    attached.model.layer.weight.reparameterization().map(Adapter::factors)
                {
                    let s = factors.s.val() * (alpha / RANK as f64);
                    let expected = file.get(&format!("{weight}.{band_name}.s")).to_tensor::<1>(&device);
                    assert_within(s, expected, 1e-5, &what);
                }
                assert!(attached.modules[0].svd_residual.unwrap() < 1e-6, "{what}");
            }
        }
    }
}

#[test]
fn milora_splits_off_the_smallest_triplets_of_the_exact_svd() {
    let device = device();
    let config =
        AdapterConfig::new(PissaConfig { band: Band::Minor, ..PissaConfig::default() }, RANK, &["first", "second"]);
    let attached = attach(&config, &device);
    let plain = Net::new(&device);
    for (name, before, after) in [
        ("first", plain.first.weight.val(), attached.model.first.weight.base()),
        ("second", plain.second.weight.val(), attached.model.second.weight.base()),
    ] {
        let host = HostTensor::from_tensor(before.clone());
        let wide = Mat::from_fn(host.shape[0], host.shape[1], |i, j| f64::from(host.matrix()[(i, j)]));
        let svd = wide.thin_svd().unwrap();
        let side = host.shape[0].min(host.shape[1]);
        let element = |i: usize, j: usize| -> f32 {
            let triplets = side - RANK..side;
            triplets.map(|k| svd.U()[(i, k)] * svd.S().column_vector()[k] * svd.V()[(j, k)]).sum::<f64>() as f32
        };
        let minor = Mat::from_fn(host.shape[0], host.shape[1], element);
        let minor = HostTensor::from_matrix(minor.as_ref()).to_tensor::<2>(&device);
        assert_within(before - after, minor.clone(), 1e-6, name);
        // PiSSA's form: both factors have the roots of the singular values.
        let initial = &attached.state.initial;
        let (a, b) = (&initial[&format!("{name}.pissa.a")], &initial[&format!("{name}.pissa.b")]);
        assert_within(a.to_tensor::<2>(&device).matmul(b.to_tensor(&device)), minor, 1e-6, name);
        let norm = |values: &[f32]| values.iter().map(|x| x * x).sum::<f32>();
        assert!((norm(&a.values) - norm(&b.values)).abs() < 1e-5 * norm(&a.values));
    }
}

#[test]
fn the_cache_keeps_the_bands_apart() {
    let folder = tempfile::tempdir().unwrap();
    let options = AttachOptions { cache: Some(folder.path().to_owned()), ..AttachOptions::default() };
    let attach = |band: Band| {
        let attached = with_band(Method::Sorsa, band).attach(Net::new(&device()), &options).unwrap();
        (attached.modules.iter().all(|module| module.cached), attached.state.initial)
    };
    for (name, band) in BANDS {
        let (cached, fresh) = attach(band);
        assert!(!cached, "{name}");
        assert_eq!(attach(band), (true, fresh), "{name}");
    }
    // The middle of the smaller side 9 is after 2, and PiSSA has the same triplets.
    assert!(with_band(Method::Pissa, Band::Minor).attach(Net::new(&device()), &options).unwrap().modules[0].cached);
}

#[test]
fn a_band_that_does_not_fit_names_the_module_and_one_of_another_method_its_methods() {
    let config = with_band(Method::Pissa, Band::After(6));
    let Err(AdapterError::Targets { faults }) = config.attach(Net::new(&device()), &Default::default()) else {
        panic!("accepted")
    };
    assert_eq!(faults, ["band 6 of rank 4 ends beyond 9, the smaller side of `second` [20, 9]: at most 5 fits"]);
    let mut json = serde_json::to_value(self::config(Method::Lora)).unwrap();
    json["band"] = "minor".into();
    let error = serde_json::from_value::<AdapterConfig>(json).unwrap_err().to_string();
    assert_eq!(error, "`band` is a setting of sorsa and pissa, not of lora");
    let Err(AdapterError::Config { faults }) =
        (AdapterConfig { quantization_rounds: Some(1), ..with_band(Method::Sorsa, Band::Minor) }).validate()
    else {
        panic!("accepted")
    };
    let expected =
        "quantization_rounds take the leading triplets of what packing loses, so that they must be 0 with band minor";
    assert_eq!(faults, [expected]);
}

#[test]
fn only_another_band_than_the_principal_one_is_written() {
    for method in factored().filter(|method| split(*method)) {
        for (name, band) in BANDS {
            let json = serde_json::to_string(&with_band(method, band)).unwrap();
            assert_eq!(json.contains("band"), band != Band::Principal, "{name}");
            assert_eq!(serde_json::from_str::<AdapterConfig>(&json).unwrap(), with_band(method, band));
        }
    }
}

#[test]
fn an_adapter_of_another_band_leaves_as_the_exact_difference_and_not_as_pefts_pissa() {
    let device = device();
    for method in factored().filter(|method| split(*method)) {
        let attached = disturbed(attach(&with_band(method, Band::Minor).with_alpha(10.0), &device));
        let folder = tempfile::tempdir().unwrap();
        attached.snapshot().save(folder.path()).unwrap();
        let saved = SavedAdapter::load(folder.path()).unwrap();
        let (peft, _) = PeftAdapter::from_saved(&saved, &Net::new(&device), &PeftExport::default()).unwrap();
        assert_eq!(peft.config.rank, 2 * RANK);
        let again =
            peft.attachable(&Net::new(&device), &Default::default()).unwrap().attach(Net::new(&device)).unwrap();
        let (found, expected) = (again.model.forward(input(&device)), attached.model.forward(input(&device)));
        assert_near(found, expected, &method.to_string());
        let as_trained = PeftExport { form: PeftForm::AsTrained, ..PeftExport::default() };
        let error = PeftAdapter::from_saved(&saved, &Net::new(&device), &as_trained).unwrap_err().to_string();
        assert!(error.contains("`first` did not start from the exact decomposition, which PEFT would make"), "{error}");
    }
}
