//! Starts beside packed weights: QLoRA, LoftQ, QPiSSA, QSORSA.

use burn::prelude::*;
use sorsa_adapter::{
    AdapterConfig, AdapterError, AttachOptions, Attached, HostTensor, HostTensorExt, Linear, Method, OriginalWeights,
    PackedFormat, PackedMatrix, PackedWeight, ResidualStorage, SavedAdapter, project,
};

use crate::common::{assert_near, device, disturbed_values, largest, noise};

/// Two layers, whose weights may be packed.
#[derive(Module, Debug)]
struct Net {
    first: Linear,
    second: Linear,
}

impl Net {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        project(&self.second, project(&self.first, x).tanh())
    }
}

const SHAPES: [[usize; 2]; 2] = [[32, 64], [24, 32]];

/// The weights `[d_out, d_in]` before they are packed.
fn weights() -> [HostTensor; 2] {
    let mut seed = 0;
    SHAPES.map(|shape| {
        seed += 1;
        HostTensor::new(shape, noise(seed, shape[0] * shape[1]))
    })
}

fn dense(device: &Device) -> Net {
    let [first, second] =
        weights().map(|weight| Linear { weight: weight.transposed().param(device), bias: None, packed: None });
    Net { first, second }
}

fn packed_in(format: PackedFormat, device: &Device) -> Net {
    let net = dense(device);
    let [first, second] =
        weights().map(|weight| PackedMatrix::pack(format, [weight.shape[0], weight.shape[1]], &weight.values).unwrap());
    Net { first: net.first.with_packed(&first), second: net.second.with_packed(&second) }
}

fn packed(device: &Device) -> Net {
    packed_in(PackedFormat::NF4, device)
}

/// The weights of [`packed`] before they were packed.
struct Originals;

impl OriginalWeights for Originals {
    fn read(&self, module: &str) -> Result<Option<HostTensor>, AdapterError> {
        let [first, second] = weights();
        Ok(Some(if module == "first" { first } else { second }))
    }

    fn contains(&self, _module: &str) -> bool {
        true
    }
}

fn with_originals() -> AttachOptions<'static> {
    AttachOptions { originals: Some(&Originals), ..AttachOptions::default() }
}

fn input(device: &Device) -> Tensor<2> {
    HostTensor::new([5, 64], noise(7, 5 * 64)).to_tensor(device)
}

fn config(method: Method, rounds: Option<usize>) -> AdapterConfig {
    AdapterConfig { quantization_rounds: rounds, ..AdapterConfig::new(method, 4, &["first", "second"]).with_alpha(8.0) }
}

/// The same, with a residual that is packed again whatever the weights come from.
fn packing(method: Method, rounds: Option<usize>) -> AdapterConfig {
    let residual = method.splits_weight().then_some(ResidualStorage::Packed);
    AdapterConfig { residual, ..config(method, rounds) }
}

/// `||W - W'||_F` of both weights of an attached net, merged.
fn error(attached: Attached<Net>) -> f64 {
    let (merged, _) = attached.merge();
    let squares = [merged.first, merged.second].into_iter().zip(weights()).map(|(layer, weight)| {
        let values = HostTensor::from_tensor(layer.weight.val().transpose()).values;
        values.iter().zip(&weight.values).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    });
    squares.sum::<f64>().sqrt()
}

fn words(layer: &Linear) -> Option<PackedMatrix> {
    let words = layer.packed.as_ref().map(|words| words.val())?;
    PackedWeight::from_words(words).map(|weight| weight.matrix())
}

#[test]
fn each_start_loses_less_than_the_one_before_and_qsorsa_as_much_as_qpissa() {
    let device = device();
    let lost = |method: Method, rounds: Option<usize>| {
        error(config(method, rounds).attach(packed(&device), &with_originals()).unwrap())
    };
    let qlora = lost(Method::Lora, None);
    let loftq = [1, 5].map(|rounds| lost(Method::Lora, Some(rounds)));
    let qpissa = [0, 1, 5].map(|rounds| lost(Method::Pissa, Some(rounds)));
    assert!(qlora > loftq[0] && loftq[0] > loftq[1], "{qlora} {loftq:?}");
    assert!(qpissa[0] > qpissa[1] && qpissa[1] > qpissa[2] && qlora > qpissa[2], "{qlora} {qpissa:?}");
    for (rounds, qpissa) in [0, 1, 5].into_iter().zip(qpissa) {
        let qsorsa = lost(Method::Sorsa, Some(rounds));
        assert!((qsorsa / qpissa - 1.0).abs() < 1e-3, "{qsorsa}, {qpissa}");
    }
    assert_eq!(lost(Method::Sorsa, None), lost(Method::Sorsa, Some(5)));
}

#[test]
fn factors_of_qsorsa_are_orthonormal_at_the_start() {
    let device = device();
    let attached = config(Method::Sorsa, None).attach(packed(&device), &with_originals()).unwrap();
    for (name, tensor) in &attached.state.initial {
        let rows = match name.rsplit('.').next() {
            Some("u") => tensor.to_tensor::<2>(&device).transpose(),
            Some("vt") => tensor.to_tensor(&device),
            _ => continue,
        };
        let gram = rows.clone().matmul(rows.transpose());
        assert!(largest(gram - Tensor::<2>::eye(4, &device)) < 1e-5, "{name}");
    }
}

#[test]
fn a_resumed_adapter_has_the_same_packed_residual_to_the_bit() {
    let device = device();
    for format in ["nf4", "fp4-single", "q8_0"] {
        let format: PackedFormat = format.parse().unwrap();
        let net = || packed_in(format, &device);
        for (method, rounds, originals) in [
            (Method::Sorsa, None, true),
            (Method::Sorsa, None, false),
            (Method::Pissa, Some(2), false),
            (Method::Pissa, Some(0), true),
            (Method::Olora, None, false),
            (Method::Lora, Some(1), true),
            (Method::Lora, Some(3), true),
        ] {
            let options = if originals { with_originals() } else { AttachOptions::default() };
            let attached = packing(method, rounds).attach(net(), &options).unwrap();
            let before = [words(&attached.model.first), words(&attached.model.second)];
            // LoftQ packs the whole weight in its first round, like the base.
            let is_base = before[0] == words(&net().first);
            assert!(before[0].is_some() && is_base == (rounds == Some(1)), "{method} {rounds:?}");
            let saved = disturbed_values(attached.snapshot());
            let folder = tempfile::tempdir().unwrap();
            saved.save(folder.path()).unwrap();
            let loaded = SavedAdapter::load(folder.path()).unwrap();
            assert_eq!(loaded.state, attached.state);
            let again = match originals {
                true => loaded.attach_with(net(), &Originals).unwrap(),
                false => loaded.attach(net()).unwrap(),
            };
            assert_eq!([words(&again.model.first), words(&again.model.second)], before, "{method} {rounds:?}");
            if originals {
                let error = loaded.attach(net()).unwrap_err().to_string();
                assert!(error.contains("is not the weight that the adapter was made for"), "{error}");
                // Beside the dense weights the residual has the values of the packed one.
                let beside = loaded.attach(dense(&device)).unwrap().model.forward(input(&device));
                assert_near(beside, again.model.forward(input(&device)), &format!("{method} {rounds:?}"));
            }
        }
    }
}

#[test]
fn a_dense_residual_keeps_the_output_of_the_packed_base() {
    let device = device();
    let before = packed(&device).forward(input(&device));
    for method in [Method::Sorsa, Method::Pissa, Method::Olora] {
        let config = AdapterConfig { residual: Some(ResidualStorage::Dense), ..config(method, None) };
        let attached = config.attach(packed(&device), &Default::default()).unwrap();
        assert_near(attached.model.forward(input(&device)), before.clone(), &format!("{method}"));
        assert_eq!(words(&attached.model.first), None);
        assert!(attached.state.modules.iter().all(|module| module.residual.is_none()));
        let saved = disturbed_values(attached.snapshot());
        let [first, second] = [saved.attach(packed(&device)), saved.attach(packed(&device))];
        let outputs = [first, second].map(|again| again.unwrap().model.forward(input(&device)).to_data());
        assert_eq!(outputs[0], outputs[1]);
    }
}

#[test]
fn triplets_of_a_start_come_from_the_cache_of_the_same_format_and_rounds() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let options = || AttachOptions { cache: Some(folder.path().to_owned()), ..AttachOptions::default() };
    let attach = |method: Method, rounds: usize, format: &str| {
        let net = packed_in(format.parse().unwrap(), &device);
        config(method, Some(rounds)).attach(net, &options()).unwrap()
    };
    let first = attach(Method::Sorsa, 2, "nf4");
    assert!(first.modules.iter().all(|module| !module.cached && module.svd_residual.is_some()));
    let again = attach(Method::Sorsa, 2, "nf4");
    assert!(again.modules.iter().all(|module| module.cached));
    assert_eq!((words(&again.model.first), &again.state), (words(&first.model.first), &first.state));
    for (method, rounds, format) in
        [(Method::Sorsa, 3, "nf4"), (Method::Pissa, 2, "nf4"), (Method::Sorsa, 2, "nf4-single")]
    {
        let other = attach(method, rounds, format);
        assert!(other.modules.iter().all(|module| !module.cached), "{method} {rounds} {format}");
    }
}

#[test]
fn what_cannot_start_beside_these_weights_is_refused_with_the_way_out() {
    let device = device();
    let refused = |config: AdapterConfig, net: Net, expected: &str| {
        let error = config.attach(net, &Default::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let factored: Vec<&str> = Method::ALL.into_iter().filter(|method| method.is_factored()).map(Method::name).collect();
    let way_out = format!(
        "packed weights cannot be trained themselves: `first` (nf4), `second` (nf4); take a method that trains \
         factors beside them ({}), or a model whose weights are dense",
        factored.join(", ")
    );
    for method in [Method::Partial, Method::Full] {
        refused(config(method, None), packed(&device), &way_out);
    }
    let mut saves = AdapterConfig::new(Method::Lora, 4, &["first"]);
    saves.modules_to_save = vec!["second".to_owned()];
    refused(saves, packed(&device), "cannot be trained themselves: `second` (nf4); leave them out of modules_to_save");
    refused(
        config(Method::Sorsa, Some(2)),
        dense(&device),
        "quantization_rounds is a setting of packed weights, but no target is packed",
    );
    let residual = AdapterConfig { residual: Some(ResidualStorage::Packed), ..config(Method::Sorsa, None) };
    refused(residual, dense(&device), "residual is a setting of packed weights, but no target is packed");
    refused(
        config(Method::Lora, Some(1)),
        packed(&device),
        "`first` is packed in its file, and what that lost is not known",
    );
    let mut author = serde_json::to_value(packing(Method::Sorsa, None)).unwrap();
    author["alpha_convention"] = "author".into();
    let author: AdapterConfig = serde_json::from_value(author).unwrap();
    refused(author, packed(&device), "subtracts 2 times the principal part, which no rounds of packing can fit");
}
