//! What must hold of every method, on any burn module and any backend.

use burn::nn::Linear;
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use sorsa_adapter::{
    Adapter, AdapterConfig, AdapterFactors, Attached, HostTensor, HostTensorExt, Init, LoraConfig, Method, Scaling,
    project,
};

use crate::common::*;

/// Every method with scale absent, 1, not 1, rank-stabilized, under the author's convention, and with every start.
fn variants() -> Vec<AdapterConfig> {
    let mut variants = Vec::new();
    for method in Method::ALL {
        variants.push(config(method));
        if method.is_factored() {
            variants.push(config(method).with_alpha(4.0));
            variants.push(config(method).with_alpha(10.0));
            variants.push(AdapterConfig { scaling: Scaling::RankStabilized, ..config(method).with_alpha(10.0) });
            variants.push(authors(&config(method).with_alpha(8.0)));
        }
        if method.setting_names().contains(&"init") {
            variants.extend(["gaussian", "orthogonal"].map(|init| with_setting(&config(method), "init", init)));
        }
        if method.setting_names().contains(&"band") {
            let scaled = config(method).with_alpha(10.0);
            variants.extend(["minor", "middle"].map(|band| with_setting(&scaled, "band", band)));
            variants.push(with_setting(&config(method), "band", 1));
        }
        if method.setting_names().contains(&"train") {
            let scaled = config(method).with_alpha(10.0);
            variants.extend(["vectors", "singular-values"].map(|trained| with_setting(&scaled, "train", trained)));
        }
        if method.setting_names().contains(&"retraction") {
            let forms = ["polar", "qr", "newton-schulz"];
            variants.extend(forms.map(|form| with_setting(&config(method), "retraction", form)));
        }
    }
    variants
}

fn authors(config: &AdapterConfig) -> AdapterConfig {
    with_setting(config, "alpha_convention", "author")
}

#[test]
fn attaching_preserves_the_output() {
    let device = device();
    let before = Net::new(&device).forward_dense(input(&device));
    for config in variants().into_iter().filter(|config| config.method().keeps_output()) {
        // LoRA-XS starts near nothing, by a deviation that is a setting.
        let config = match config.method().setting_names().contains(&"deviation") {
            true => with_setting(&config, "deviation", 0.0),
            false => config,
        };
        let model = attach(&config, &device).model;
        assert_near(model.forward(input(&device)), before.clone(), &format!("factored {config:?}"));
        assert_near(model.forward_dense(input(&device)), before.clone(), &format!("dense {config:?}"));
    }
}

#[test]
fn factored_dense_and_merged_outputs_agree() {
    let device = device();
    for config in variants() {
        let adapted = disturbed(attach(&config, &device));
        let factored = adapted.model.forward(input(&device));
        let untouched = Net::new(&device).forward(input(&device));
        assert!(largest(factored.clone() - untouched) > 0.1, "the disturbed adapter does nothing: {config:?}");
        assert_near(adapted.model.forward_dense(input(&device)), factored.clone(), &format!("dense {config:?}"));
        let (merged, _) = adapted.merge();
        assert!(merged.first.weight.reparameterization::<Adapter>().is_none());
        assert_near(merged.forward(input(&device)), factored, &format!("merged {config:?}"));
    }
}

#[test]
fn the_factored_forward_takes_any_number_of_leading_axes() {
    let device = device();
    let model = disturbed(attach(&config(Method::Sorsa), &device)).model;
    let deep = project(&model.first, tensor(5, [6, 12], &device).reshape([2, 3, 12]));
    assert_near(deep.reshape([6, 20]), project(&model.first, tensor(5, [6, 12], &device)), "three axes");
}

#[test]
fn only_trained_parameters_get_gradients() {
    // Attached with autodiff, or without and then put in training.
    for device in [device().autodiff(), device()] {
        for config in variants() {
            let method = config.method();
            let adapted = disturbed(attach(&config, &device));
            let model = adapted.model.train();
            let gradients = model.forward(input(&device).autodiff()).square().sum().backward();
            assert_eq!(model.first.weight.base().grad(&gradients).is_some(), !method.is_factored(), "{method}");
            let bias = model.first.bias.as_ref().unwrap().val();
            assert_eq!(bias.grad(&gradients).is_some(), method == Method::Full, "{method}");
            let gradients = GradientsParams::from_grads(gradients, &model);
            assert_eq!(gradients.len(), adapted.trainable.len(), "{config:?}");
        }
    }
}

#[test]
fn both_routes_give_the_factors_the_same_gradients() {
    let device = device().autodiff();
    for config in variants().into_iter().filter(|config| config.method().is_factored()) {
        let Attached { model, trainable, .. } = disturbed(attach(&config, &device));
        let factored = model.forward(input(&device)).square().mean().backward();
        let factored = GradientsParams::from_grads(factored, &model);
        let dense = model.forward_dense(input(&device)).square().mean().backward();
        let dense = GradientsParams::from_grads(dense, &model);
        for parameter in trainable {
            let what = format!("{} {config:?}", parameter.name);
            match parameter.shape.len() {
                1 => assert_near(factored.get::<1>(parameter.id).unwrap(), dense.get(parameter.id).unwrap(), &what),
                _ => assert_near(factored.get::<2>(parameter.id).unwrap(), dense.get(parameter.id).unwrap(), &what),
            }
        }
    }
}

#[test]
fn trainable_parameters_have_their_closed_form() {
    let device = device();
    let pairs = RANK * (12 + 20) + RANK * (20 + 9);
    let (dense, magnitudes, squares) = (12 * 20 + 20 * 9, 20 + 9, 2 * RANK * RANK);
    let expected = [
        pairs + 2 * RANK,
        pairs,
        pairs,
        pairs + magnitudes,
        pairs,
        squares,
        pairs + squares,
        pairs + 2 * RANK,
        RANK * (12 + 20),
        RANK * (12 + 9),
        pairs,
        dense,
        dense + 20,
    ];
    assert_eq!(expected.len(), Method::ALL.len());
    for (method, expected) in Method::ALL.into_iter().zip(expected) {
        assert_eq!(attach(&config(method), &device).trainable_parameters(), expected, "{method}");
        let targets = config(method).targets(&Net::new(&device)).unwrap();
        let planned: usize = targets.iter().map(|target| target.trainable_parameters(method)).sum();
        assert_eq!(planned, if method == Method::Full { 0 } else { expected }, "{method}");
    }
}

#[test]
fn what_is_trained_of_sorsa_is_what_is_counted_and_saved() {
    let device = device();
    let pairs = RANK * (12 + 20) + RANK * (20 + 9);
    for (trained, expected) in [("all", pairs + 2 * RANK), ("vectors", pairs), ("singular-values", 2 * RANK)] {
        let config = with_setting(&config(Method::Sorsa), "train", trained);
        let attached = attach(&config, &device);
        let planned: usize =
            config.targets(&Net::new(&device)).unwrap().iter().map(|t| config.trained_parameters(t)).sum();
        assert_eq!((attached.trainable_parameters(), planned), (expected, expected), "{trained}");
        let frozen: usize =
            config.targets(&Net::new(&device)).unwrap().iter().map(|t| config.frozen_parameters(t)).sum();
        assert_eq!(frozen, pairs + 2 * RANK - expected, "{trained}");
        let saved: usize = attached.snapshot().trained.values().map(|tensor| tensor.values.len()).sum();
        assert_eq!(saved, expected, "{trained}");
    }
}

#[test]
fn stella_starts_with_random_orthonormal_bases_and_with_nothing_or_the_identity_between_them() {
    let device = device();
    let basis = |saved: &HostTensor| saved.to_tensor::<2>(&device);
    let fresh = attach(&config(Method::Stella), &device).snapshot().trained;
    for module in ["first", "second"] {
        let (u, vt) = (basis(&fresh[&format!("{module}.stella.u")]), basis(&fresh[&format!("{module}.stella.vt")]));
        let identity = Tensor::<2>::eye(RANK, &device);
        assert_within(u.clone().transpose().matmul(u), identity.clone(), 1e-6, "U");
        assert_within(vt.clone().matmul(vt.transpose()), identity, 1e-6, "V");
    }
    assert_ne!(fresh["first.stella.u"].values[..8], fresh["second.stella.u"].values[..8]);
    // As published: the product of the bases, times the scale, joins the weight.
    let published = with_setting(&config(Method::Stella).with_alpha(8.0), "initial_s", 1.0);
    let attached = attach(&published, &device);
    let (u, vt) = (basis(&fresh["first.stella.u"]), basis(&fresh["first.stella.vt"]));
    let change = attached.model.first.weight.val() - Net::new(&device).first.weight.val();
    assert_near(change, u.matmul(vt) * 2.0, "the start of the paper");
}

#[test]
fn residual_and_principal_part_sum_to_the_weight() {
    let device = device();
    let weight = Net::new(&device).first.weight.val();
    for config in variants().into_iter().filter(|config| config.method().splits_weight()) {
        let adapted = attach(&config, &device).model.first;
        let adapter = adapted.weight.reparameterization::<Adapter>().unwrap();
        assert_near(adapter.compose(adapted.weight.base()), weight.clone(), &format!("{config:?}"));
    }
}

/// `U_p^T W_r`: what of the principal directions is left in the residual.
fn left_in_residual(config: &AdapterConfig, device: &Device) -> (Tensor<2>, Tensor<2>) {
    let layer = attach(config, device).model.first;
    let Some(AdapterFactors::Sorsa(factors)) = layer.weight.reparameterization().map(Adapter::factors) else {
        panic!("no SORSA")
    };
    let principal = factors.s.val().unsqueeze_dim(1) * factors.vt.val();
    (factors.u.val().transpose().matmul(layer.weight.base()), principal)
}

#[test]
fn the_residual_is_the_tail_of_the_svd_and_under_the_authors_convention_keeps_the_head_with_its_sign_turned() {
    let device = device();
    for alpha in [4.0, 8.0] {
        let (left, principal) = left_in_residual(&config(Method::Sorsa).with_alpha(alpha), &device);
        assert_within(left, principal.zeros_like(), TOLERANCE, "the default");
    }
    // At scale 2, twice the principal part has left the weight.
    let (left, principal) = left_in_residual(&authors(&config(Method::Sorsa).with_alpha(8.0)), &device);
    assert_near(left, -principal, "the author's");
}

#[test]
fn merging_and_unmerging_restores_the_adapter() {
    let device = device();
    let trained = ["vectors", "singular-values"].map(|trained| with_setting(&config(Method::Sorsa), "train", trained));
    for config in factored().map(config).chain(trained) {
        let method = config.method();
        let adapted = disturbed(attach(&config.with_alpha(6.0), &device));
        let (before, base) = (adapted.model.forward(input(&device)), adapted.model.first.weight.base());
        let factors = adapted.snapshot().trained;
        let (merged, adapter) = adapted.merge();
        let again = adapter.unmerge(merged).unwrap();
        assert_eq!(again.snapshot().trained, factors);
        assert_near(again.model.first.weight.base(), base, &method.to_string());
        assert_near(again.model.forward(input(&device)), before, &method.to_string());
    }
}

#[test]
fn dropout_takes_elements_from_the_adapters_input_while_training_only() {
    let device = device();
    for method in factored() {
        let adapted = disturbed(attach(&config(method).with_dropout(0.5), &device));
        let second = &adapted.model.second;
        // Each row of the identity carries one element of the input: it reaches the adapter doubled or not at all.
        let x = Tensor::<2>::eye(20, &device);
        let base = match method.keeps_output() {
            true => second.weight.base(),
            // What the start takes away is a part of the frozen weight.
            false => attach(&config(method), &device).model.second.weight.val(),
        };
        let delta = second.weight.val() - base.clone();
        assert_near(project(second, x.clone()), base.clone() + delta.clone(), "evaluation");
        let training = adapted.model.train();
        let added = values(project(&training.second, x).inner() - base);
        let (mut dropped, mut kept) = (0, 0);
        for (row, delta) in added.chunks(9).zip(values(delta).chunks(9)) {
            let near = |factor: f32| row.iter().zip(delta).all(|(a, d)| (a - factor * d).abs() < TOLERANCE);
            match (near(0.0), near(2.0)) {
                (true, false) => dropped += 1,
                (false, true) => kept += 1,
                _ => panic!("{method}: {row:?} is neither nothing nor twice {delta:?}"),
            }
        }
        // Each of these fails once in a million runs.
        assert!(dropped > 0 && kept > 0, "{method}: {dropped} dropped, {kept} kept");
    }
}

/// The output of the net whose weights lack the minor components of [`RANK`]: what KaSA starts from.
fn without_minor_components(device: &Device) -> Tensor<2> {
    let mut net = Net::new(device);
    let truncated = |layer: &Linear| {
        let weight = HostTensor::from_tensor(layer.weight.val());
        let svd = sorsa_linalg::faer::linalg::solvers::Svd::new_thin(weight.matrix()).unwrap();
        let kept = weight.shape[0].min(weight.shape[1]) - RANK;
        let scaled = svd.U().subcols(0, kept) * svd.S().column_vector().subrows(0, kept).as_diagonal();
        let product = scaled * svd.V().subcols(0, kept).transpose();
        burn::module::Param::from_tensor(HostTensor::from_matrix(product.as_ref()).to_tensor(device))
    };
    net.first.weight = truncated(&net.first);
    net.second.weight = truncated(&net.second);
    net.forward(input(device))
}

#[test]
fn kasa_starts_from_the_weights_without_their_minor_components_and_says_so() {
    let device = device();
    let expected = without_minor_components(&device);
    for config in [config(Method::Kasa), config(Method::Kasa).with_alpha(10.0)] {
        let model = attach(&config, &device).model;
        assert_near(model.forward(input(&device)), expected.clone(), "factored");
        assert_near(model.forward_dense(input(&device)), expected.clone(), "dense");
        assert_near(model.first.weight.base(), Net::new(&device).first.weight.val(), "the weight is as it was");
    }
    assert_eq!(Method::ALL.into_iter().filter(|method| !method.keeps_output()).collect::<Vec<_>>(), [Method::Kasa]);
    // Of a weight of 9 singular values, 9 cannot be taken away.
    let all = AdapterConfig::new(Method::Kasa, 9, &["second"]).attach(Net::new(&device), &Default::default());
    let error = all.unwrap_err().to_string();
    let expected = "matrix `second` has 9 singular values: with the 9 smallest taken away, nothing of it is left";
    assert_eq!(error, format!("decomposition of the weights: {expected}"));
}

#[test]
fn mica_adds_in_the_directions_that_the_weight_uses_least() {
    let device = device();
    let adapted = disturbed(attach(&config(Method::Mica), &device)).model.first;
    let weight = Net::new(&device).first.weight.val();
    let (_, _, b) = adapted.weight.reparameterization::<Adapter>().unwrap().parts();
    assert_near(b.clone().matmul(b.clone().transpose()), Tensor::eye(RANK, &device), "orthonormal rows");
    // What the weight makes of these directions are its smallest singular values.
    let made = weight.clone().matmul(b.transpose());
    let gram = made.clone().transpose().matmul(made);
    let smallest = HostTensor::from_tensor(weight);
    let values_of = sorsa_linalg::faer::linalg::solvers::Svd::new_thin(smallest.matrix()).unwrap();
    let squares: Vec<f32> = values_of.S().column_vector().iter().skip(12 - RANK).map(|s| s * s).collect();
    let diagonal: Vec<f32> = (0..RANK).map(|i| values(gram.clone())[i * (RANK + 1)]).collect();
    for (found, expected) in diagonal.iter().zip(&squares) {
        assert!((found - expected).abs() < 1e-4, "{diagonal:?}, expected {squares:?}");
    }
}

#[test]
fn svft_trains_diagonals_of_a_matrix_between_whole_bases() {
    let device = device();
    for rank in 1..=5 {
        let config = AdapterConfig { rank, ..config(Method::Svft) };
        let mut attached = attach(&config, &device);
        let mut ones = attached.snapshot().trained;
        ones.values_mut().for_each(|tensor| tensor.values.fill(1.0));
        attached = with_values(attached, &ones);
        let layer = &attached.model.second;
        let svd = HostTensor::from_tensor(layer.weight.base());
        let svd = sorsa_linalg::faer::linalg::solvers::Svd::new_thin(svd.matrix()).unwrap();
        let inner = HostTensor::from_tensor(layer.weight.val() - layer.weight.base());
        let inner = svd.U().transpose() * inner.matrix() * svd.V();
        // Up to the signs of the vectors, which change those of elements beside the main diagonal.
        for (i, j) in (0..9).flat_map(|i| (0..9).map(move |j| (i, j))) {
            let within = j + (rank - 1) / 2 >= i && j <= i + rank / 2;
            let expected = f32::from(within);
            assert!((inner[(i, j)].abs() - expected).abs() < 1e-4, "{rank}: {i} {j} {}", inner[(i, j)]);
        }
    }
}

#[test]
fn lora_ga_needs_gradients_and_says_so() {
    let net = Net::new(&device());
    let error = config(Method::LoraGa).attach(net, &Default::default()).unwrap_err().to_string();
    assert_eq!(
        error,
        "adapter configuration: lora-ga starts from gradients of the loss, and there are no data for them here"
    );
    assert_eq!(Method::ALL.into_iter().filter(|method| method.needs_gradients()).collect::<Vec<_>>(), [Method::LoraGa]);
}

fn to_bf16(mut net: Net) -> Net {
    net.first.weight = net.first.weight.map(|weight| weight.cast(FloatDType::BF16));
    net.first.bias = net.first.bias.map(|bias| bias.map(|bias| bias.cast(FloatDType::BF16)));
    net.second.weight = net.second.weight.map(|weight| weight.cast(FloatDType::BF16));
    net
}

#[test]
fn a_bf16_base_gets_a_rounded_residual_and_f32_factors_and_what_was_lost_is_reported() {
    let device = device();
    if !device.supports_dtype(DType::BF16) {
        eprintln!("no bf16 on this device: nothing tested");
        return;
    }
    let before = to_bf16(Net::new(&device)).first.weight.val().cast(FloatDType::F32);
    let adapted = config(Method::Sorsa).attach(to_bf16(Net::new(&device)), &Default::default()).unwrap();
    let weight = &adapted.model.first.weight;
    assert_eq!(weight.base().dtype(), DType::BF16);
    let Some(AdapterFactors::Sorsa(factors)) = weight.reparameterization().map(Adapter::factors) else {
        panic!("no SORSA")
    };
    assert_eq!([factors.u.val().dtype(), factors.s.val().dtype(), factors.vt.val().dtype()], [DType::F32; 3]);

    let residual = before.clone() - weight.reparameterization::<Adapter>().unwrap().compose(before.zeros_like());
    let norm = |tensor: Tensor<2>| values(tensor).into_iter().map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let lost = norm(residual.clone() - weight.base().cast(FloatDType::F32)) / norm(residual);
    let reported = adapted.modules[0].rounding.unwrap();
    assert!((reported - lost).abs() < 0.01 * lost, "{reported} reported, {lost} measured");
    // Half a unit in the last of 8 bits at most.
    assert!(lost > 1e-5 && lost < 1.0 / 256.0, "{lost}");

    let x = input(&device);
    let exact = Net::new(&device).forward(x.clone());
    let narrow = adapted.model.forward(x.cast(FloatDType::BF16));
    assert_eq!(narrow.dtype(), DType::BF16);
    assert_within(narrow.cast(FloatDType::F32), exact.clone(), 0.03 * largest(exact), "output in bf16");
    assert!(attach(&config(Method::Sorsa), &device).modules.iter().all(|module| module.rounding.is_none()));
}

#[test]
fn every_method_computes_in_the_dtype_of_its_input() {
    let device = device();
    if !device.supports_dtype(DType::BF16) {
        eprintln!("no bf16 on this device: nothing tested");
        return;
    }
    let exact = Net::new(&device).forward(input(&device));
    for method in factored() {
        let config = config(method).with_alpha(10.0).with_dropout(0.1);
        let model = config.attach(to_bf16(Net::new(&device)), &with_gradients()).unwrap().model;
        let x = input(&device).cast(FloatDType::BF16);
        let y = model.forward(x.clone());
        assert_eq!(y.dtype(), DType::BF16, "{method}");
        let exact = if method.keeps_output() { exact.clone() } else { without_minor_components(&device) };
        assert_within(y.cast(FloatDType::F32), exact.clone(), 0.04 * largest(exact.clone()), &method.to_string());
        // In training too, where dropout takes another way.
        let trained = model.train().forward(x.autodiff());
        assert_eq!(trained.dtype(), DType::BF16, "{method}");
        assert!(largest(trained.cast(FloatDType::F32)).is_finite(), "{method}");
    }
}

#[test]
fn every_method_takes_f32_beside_bf16_weights_with_a_bias_and_dropout() {
    // Of the backends it is the CPU's that takes it.
    let device = Device::flex();
    let exact = Net::new(&device).forward(input(&device));
    for method in factored() {
        let config = config(method).with_alpha(10.0).with_dropout(0.1);
        let model = config.attach(to_bf16(Net::new(&device)), &with_gradients()).unwrap().model;
        let trained = model.clone().train().forward(input(&device).autodiff()).inner();
        for y in [model.forward(input(&device)), trained] {
            assert_eq!(y.dtype(), DType::F32, "{method}");
            // Beside SORSA's and its like's residual, the dropped part is as large as the output.
            assert!(largest(y.clone()).is_finite(), "{method}");
            if !method.splits_weight() && method.keeps_output() {
                assert_within(y, exact.clone(), 0.04 * largest(exact.clone()), &method.to_string());
            }
        }
    }
}

#[test]
fn loras_start_depends_on_seed_and_path_only() {
    let device = device();
    let start = |seed, targets: &[&str]| -> HostTensor {
        let config = AdapterConfig { seed, ..AdapterConfig::new(Method::Lora, RANK, targets) };
        attach(&config, &device).snapshot().trained["first.lora.a"].clone()
    };
    assert_eq!(start(1, &["first"]), start(1, &["second", "first"]));
    assert_ne!(start(1, &["first"]), start(2, &["first"]));
    let both = attach(&config(Method::Lora), &device).snapshot().trained;
    assert_ne!(both["first.lora.a"].values[..8], both["second.lora.a"].values[..8]);
    // Kaiming-uniform with a = sqrt(5): within 1 / sqrt(d_in), and near it somewhere.
    let bound = 1.0 / 12f32.sqrt();
    let top = both["first.lora.a"].values.iter().fold(0f32, |top, value| top.max(value.abs()));
    assert!(top <= bound && top > 0.8 * bound, "{top} of {bound}");
    assert!(both["first.lora.b"].values.iter().all(|value| *value == 0.0));
}

#[test]
fn other_starts_of_lora_are_those_of_peft() {
    let device = device();
    let start = |init| {
        let method = LoraConfig { init }.into();
        attach(&AdapterConfig { method, ..config(Method::Lora) }, &device)
    };
    let root_mean_square = |factor: &HostTensor| {
        (factor.values.iter().map(|value| value * value).sum::<f32>() / factor.values.len() as f32).sqrt()
    };
    // Normal with deviation 1 / rank, to within what 48 numbers say.
    for (name, factor) in start(Init::Gaussian).snapshot().trained {
        let expected = if name.ends_with(".a") { 1.0 / RANK as f32 } else { 0.0 };
        let found = root_mean_square(&factor);
        assert!((found - expected).abs() <= expected / 3.0, "{name}: {found} of {expected}");
    }
    // Half of the squares of an orthogonal matrix, over 100; the product of both factors is zero.
    let orthogonal = start(Init::Orthogonal);
    for (name, factor) in orthogonal.snapshot().trained {
        let (found, expected) = (root_mean_square(&factor), 0.005f32.sqrt());
        assert!((found - expected).abs() <= expected / 3.0, "{name}: {found} of {expected}");
    }
    let layer = orthogonal.model.first;
    let (a, _, b) = layer.weight.reparameterization::<Adapter>().unwrap().parts();
    assert_within(a.matmul(b), layer.weight.base().zeros_like(), 1e-7, "orthogonal");
}

#[test]
fn olora_takes_the_first_rows_of_the_weight_and_their_directions_from_the_rest() {
    let device = device();
    let layer = attach(&config(Method::Olora), &device).model.first;
    let (_, _, b) = layer.weight.reparameterization::<Adapter>().unwrap().parts();
    assert_near(b.clone().matmul(b.clone().transpose()), Tensor::eye(RANK, &device), "orthonormal rows");
    let residual = layer.weight.base();
    let nothing = residual.zeros_like();
    assert_within(residual.clone().slice([..RANK]), nothing.clone().slice([..RANK]), 1e-6, "the first rows");
    assert_within(residual.matmul(b.transpose()), nothing.slice_dim(1, ..RANK), 1e-6, "the directions");
    // At scale 2.5 the residual keeps 1.5 times that part, with its sign turned, as PEFT has it.
    let scaled = attach(&config(Method::Olora).with_alpha(10.0), &device).model.first;
    let weight = Net::new(&device).first.weight.val();
    assert_near(scaled.weight.base().slice([..RANK]), weight.slice([..RANK]) * -1.5, "scaled");
}

#[test]
fn doras_columns_have_the_lengths_of_its_magnitudes() {
    let device = device();
    let adapted = disturbed(attach(&config(Method::Dora).with_alpha(10.0), &device));
    let Some(AdapterFactors::Dora(factors)) = adapted.model.first.weight.reparameterization().map(Adapter::factors)
    else {
        panic!("no DoRA")
    };
    let lengths = adapted.model.first.weight.val().square().sum_dim(0).sqrt().squeeze_dim(0);
    assert_near(lengths, factors.magnitude.val().abs(), "lengths");
}

#[test]
fn no_gradient_flows_through_doras_norm() {
    let device = device().autodiff();
    let adapted = disturbed(attach(&config(Method::Dora).with_alpha(10.0), &device));
    let layer = &adapted.model.first;
    let Some(AdapterFactors::Dora(factors)) = layer.weight.reparameterization().map(Adapter::factors) else {
        panic!("no DoRA")
    };
    let loss = |y: Tensor<2>| y.square().mean().backward();
    let found = loss(project(layer, input(&device)));
    // The same equation with the norm as a number.
    let changed = layer.weight.base() + factors.a.val().matmul(factors.b.val()) * 2.5;
    let norm = changed.clone().square().sum_dim(0).sqrt().inner();
    let gain = factors.magnitude.val().unsqueeze() / Tensor::from_inner(norm);
    let bias = layer.bias.as_ref().unwrap().val();
    let expected = loss(input(&device).matmul(changed) * gain + bias.unsqueeze());
    for (factor, name) in [(factors.a.val(), "a"), (factors.b.val(), "b")] {
        assert_near(factor.grad(&found).unwrap(), factor.grad(&expected).unwrap(), name);
    }
    let magnitude = factors.magnitude.val();
    assert_near(magnitude.grad(&found).unwrap(), magnitude.grad(&expected).unwrap(), "magnitude");
}

#[test]
fn a_column_of_zeros_stays_one_under_dora() {
    // Its magnitude over its norm would be 0 by 0.
    let device = device();
    let mut net = Net::new(&device);
    let mask = HostTensor::new([1, 20], (0..20).map(|j| f32::from(j != 7)).collect()).to_tensor::<2>(&device);
    net.first.weight = net.first.weight.map(|weight| weight * mask.clone());
    let before = net.forward(input(&device));
    let adapted = config(Method::Dora).attach(net.clone(), &Default::default()).unwrap();
    assert_near(adapted.model.forward(input(&device)), before, "attached");
    let (merged, adapter) = adapted.merge();
    let again = adapter.unmerge(merged).unwrap();
    assert_near(again.model.first.weight.base(), net.first.weight.val(), "unmerged");
}

#[test]
fn lora_xs_trains_a_small_random_matrix_between_the_triplets_of_the_weight() {
    let device = device();
    let layer = attach(&config(Method::LoraXs), &device).model.first;
    assert_near(layer.weight.base(), Net::new(&device).first.weight.val(), "the weight is not split");
    let Some(AdapterFactors::LoraXs(factors)) = layer.weight.reparameterization().map(Adapter::factors) else {
        panic!("no LoRA-XS")
    };
    let deviation = values(factors.r.val()).iter().map(|value| value * value).sum::<f32>().sqrt() / RANK as f32;
    assert!((0.5e-5..1.5e-5).contains(&deviation), "{deviation}");
    // With the identity in place of R, the adapter is the principal part that SORSA splits off.
    let attached = attach(&config(Method::LoraXs), &device);
    let mut identity = attached.snapshot().trained;
    for tensor in identity.values_mut() {
        tensor.values = (0..RANK * RANK).map(|i| f32::from(i % (RANK + 1) == 0)).collect();
    }
    let layer = with_values(attached, &identity).model.first;
    let principal = layer.weight.val() - layer.weight.base();
    let sorsa = attach(&config(Method::Sorsa), &device).model.first;
    assert_near(principal, sorsa.weight.val() - sorsa.weight.base(), "principal part");
}
