//! The regularizer against burn's autodiff of the same equation, through a whole model.

use std::collections::BTreeMap;

use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::prelude::*;
use sorsa_adapter::{
    Adapter, AdapterFactors, Attached, Method, RegularizerForm, Sorsa, add_regularizer, orthonormality_defect,
    regularizer_gradients,
};

use crate::common::*;

const FORMS: [RegularizerForm; 3] = [RegularizerForm::Paper, RegularizerForm::Author, RegularizerForm::Squared];

fn factors(net: &Net) -> [&Sorsa; 2] {
    [&net.first, &net.second].map(|layer| match layer.weight.reparameterization().map(Adapter::factors) {
        Some(AdapterFactors::Sorsa(factors)) => factors,
        _ => panic!("no SORSA"),
    })
}

/// `L_reg` as the equation says, on the tape.
fn on_tape(net: &Net, form: RegularizerForm) -> Tensor<1> {
    let norm = |rows: Tensor<2>| {
        let identity = Tensor::<2>::eye(rows.dims()[0], &rows.device());
        let squares = (rows.clone().matmul(rows.transpose()) - identity).square().sum();
        if form == RegularizerForm::Squared { squares } else { squares.sqrt() }
    };
    let sides = |factors: &Sorsa| norm(factors.u.val().transpose()) + norm(factors.vt.val());
    let [first, second] = factors(net);
    let sum = sides(first) + sides(second);
    if form == RegularizerForm::Author { sum / 4.0 } else { sum }
}

fn task_loss(net: &Net, device: &Device) -> Tensor<1> {
    net.forward(input(device)).square().mean()
}

fn trained() -> (Attached<Net>, Device) {
    let device = device().autodiff();
    let mut config = config(Method::Sorsa).with_alpha(10.0);
    // Factors of two ranks: a mean over them is not a mean over numbers.
    config.rank_pattern.insert("second".into(), 2);
    (disturbed(attach(&config, &device)), device)
}

#[track_caller]
fn assert_gradients(found: &GradientsParams, expected: &GradientsParams, net: &Net, what: &str) {
    for factors in factors(net) {
        for id in [factors.u.id, factors.vt.id] {
            assert_near(found.get::<2>(id).unwrap(), expected.get::<2>(id).unwrap(), what);
        }
        match (found.get::<1>(factors.s.id), expected.get::<1>(factors.s.id)) {
            (Some(found), Some(expected)) => assert_near(found, expected, what),
            (found, expected) => assert_eq!(found.is_some(), expected.is_some(), "{what}"),
        }
    }
}

#[test]
fn every_form_has_the_gradient_and_the_value_that_autodiff_finds() {
    let (Attached { model, trainable, .. }, _) = trained();
    for form in FORMS {
        let loss = on_tape(&model, form);
        let value = f64::from(loss.clone().inner().into_scalar::<f32>());
        let expected = GradientsParams::from_grads((loss * 0.3).backward(), &model);
        let mut found = GradientsParams::new();
        let stats = add_regularizer(&model, &trainable, form, 0.3, &mut found).unwrap();
        assert_gradients(&found, &expected, &model, &format!("{form:?}"));
        assert_eq!(found.len(), 4, "{form:?}");
        assert!((stats.value - value).abs() < 1e-5 * value, "{form:?}: {} for {value}", stats.value);
    }
}

#[test]
fn added_to_the_gradient_of_the_task_it_is_the_gradient_of_the_sum() {
    let (Attached { model, trainable, .. }, device) = trained();
    for form in FORMS {
        let sum = task_loss(&model, &device) + on_tape(&model, form) * 0.3;
        let expected = GradientsParams::from_grads(sum.backward(), &model);
        let mut found = GradientsParams::from_grads(task_loss(&model, &device).backward(), &model);
        add_regularizer(&model, &trainable, form, 0.3, &mut found);
        assert_gradients(&found, &expected, &model, &format!("{form:?}"));
    }
}

#[test]
fn the_authors_form_is_the_mean_of_what_the_papers_sums() {
    let (Attached { model, trainable, .. }, _) = trained();
    let (paper, sum) = regularizer_gradients(&model, &trainable, RegularizerForm::Paper);
    let (author, mean) = regularizer_gradients(&model, &trainable, RegularizerForm::Author);
    let (sum, mean) = (sum.unwrap(), mean.unwrap());
    assert!((sum.value / 4.0 - mean.value).abs() < 1e-9 && mean.value > 0.0);
    assert_eq!((sum.mean_defect, sum.max_defect), (mean.mean_defect, mean.max_defect));
    assert_eq!((paper.len(), author.len()), (4, 4));
    for (id, gradient) in paper {
        assert_near(author[&id].clone(), gradient / 4.0, "author");
    }
}

#[test]
fn the_gradients_alone_are_what_would_be_added() {
    let (Attached { model, trainable, .. }, _) = trained();
    for form in FORMS {
        let mut added = GradientsParams::new();
        let first = add_regularizer(&model, &trainable, form, 1.0, &mut added);
        let (alone, second): (BTreeMap<ParamId, _>, _) = regularizer_gradients(&model, &trainable, form);
        assert_eq!(first, second);
        for (id, gradient) in alone {
            assert_near(added.get::<2>(id).unwrap(), gradient, &format!("{form:?}"));
        }
    }
}

#[test]
fn a_fresh_start_is_orthonormal_and_is_not_pushed_by_rounding_noise() {
    let device = device();
    let Attached { model, trainable, .. } = attach(&config(Method::Sorsa), &device);
    for form in [RegularizerForm::Paper, RegularizerForm::Author] {
        let (gradients, stats) = regularizer_gradients(&model, &trainable, form);
        assert!(stats.unwrap().max_defect < 1e-5);
        assert!(gradients.into_values().all(|gradient| largest(gradient) == 0.0));
    }
}

#[test]
fn a_descent_along_the_gradient_makes_the_factors_orthonormal() {
    let (mut attached, _) = trained();
    let defect = |attached: &Attached<Net>| {
        regularizer_gradients(&attached.model, &attached.trainable, RegularizerForm::Squared).1.unwrap().max_defect
    };
    let start = defect(&attached);
    for _ in 0..200 {
        let (gradients, _) = regularizer_gradients(&attached.model, &attached.trainable, RegularizerForm::Squared);
        let mut values = attached.snapshot().trained;
        for parameter in &attached.trainable {
            let Some(gradient) = gradients.get(&parameter.id) else { continue };
            let tensor = values.get_mut(&parameter.name).unwrap();
            tensor.values.iter_mut().zip(crate::common::values(gradient.clone())).for_each(|(v, g)| *v -= 0.05 * g);
        }
        attached = with_values(attached, &values);
    }
    assert!(defect(&attached) < 1e-3 * start, "{} after {start}", defect(&attached));
}

#[test]
fn a_weight_of_zero_measures_and_adds_nothing() {
    let (Attached { model, trainable, .. }, _) = trained();
    let mut gradients = GradientsParams::new();
    assert!(add_regularizer(&model, &trainable, RegularizerForm::Paper, 0.0, &mut gradients).unwrap().value > 0.0);
    assert!(gradients.is_empty());
}

#[test]
fn a_retraction_takes_the_place_of_the_regularizer_and_fixed_vectors_have_none() {
    let device = device();
    for (name, value) in [("retraction", "polar"), ("train", "singular-values")] {
        let config = with_setting(&config(Method::Sorsa), name, value);
        assert!(!config.method.is_regularized());
        let Attached { model, trainable, .. } = attach(&config, &device);
        let mut gradients = GradientsParams::new();
        assert!(add_regularizer(&model, &trainable, RegularizerForm::Paper, 1.0, &mut gradients).is_none(), "{value}");
        assert_eq!(orthonormality_defect(&model, &trainable).is_some(), name == "retraction");
    }
    let vectors = with_setting(&config(Method::Sorsa), "train", "vectors");
    assert!(vectors.method.is_regularized());
}

#[test]
fn methods_without_orthonormal_factors_have_no_regularizer() {
    let device = device();
    for method in Method::ALL.into_iter().filter(|method| *method != Method::Sorsa) {
        let Attached { model, trainable, .. } = attach(&config(method), &device);
        let mut gradients = GradientsParams::new();
        assert!(add_regularizer(&model, &trainable, RegularizerForm::Paper, 1.0, &mut gradients).is_none(), "{method}");
        assert!(gradients.is_empty(), "{method}");
    }
}

/// The factors `A` and `B` of each layer, whatever the method calls them.
fn pairs(net: &Net) -> [[Tensor<2>; 2]; 2] {
    [&net.first, &net.second].map(|layer| {
        let (a, _, b) = layer.weight.reparameterization::<Adapter>().unwrap().parts();
        [a, b]
    })
}

const PAIRS: [Method; 5] = [Method::Pissa, Method::Lora, Method::Dora, Method::Olora, Method::LoraGa];

#[test]
fn a_method_of_two_factors_may_have_the_regularizer_that_leaves_lengths_free() {
    let device = device().autodiff();
    for method in PAIRS {
        let mut attached = disturbed(attach(&config(method).with_alpha(10.0), &device));
        attached.keep_vectors_orthogonal().unwrap();
        let Attached { model, trainable, .. } = attached;
        for form in FORMS {
            let term = |rows: Tensor<2>| {
                let gram = rows.clone().matmul(rows.transpose());
                let others = gram.ones_like() - Tensor::<2>::eye(gram.dims()[0], &gram.device());
                let squares = (gram * others).square().sum();
                if form == RegularizerForm::Squared { squares } else { squares.sqrt() }
            };
            let [first, second] = pairs(&model).map(|[a, b]| term(a.transpose()) + term(b));
            let loss = if form == RegularizerForm::Author { (first + second) / 4.0 } else { first + second };
            let value = f64::from(loss.clone().inner().into_scalar::<f32>());
            let expected = GradientsParams::from_grads((loss * 0.3).backward(), &model);
            let mut found = GradientsParams::new();
            let stats = add_regularizer(&model, &trainable, form, 0.3, &mut found).unwrap();
            assert!((stats.value - value).abs() < 1e-5 * value, "{method} {form:?}: {} for {value}", stats.value);
            assert_eq!(found.len(), 4, "{method} {form:?}");
            for parameter in trainable.iter().filter(|parameter| found.get::<2>(parameter.id).is_some()) {
                let (found, expected) = (found.get::<2>(parameter.id), expected.get::<2>(parameter.id));
                assert_near(found.unwrap(), expected.unwrap(), &format!("{method} {form:?} {}", parameter.name));
            }
        }
    }
}

#[test]
fn the_start_of_pissa_is_orthogonal_and_a_descent_brings_it_back_there() {
    let device = device();
    let defect = |attached: &Attached<Net>| {
        regularizer_gradients(&attached.model, &attached.trainable, RegularizerForm::Paper).1.unwrap().max_defect
    };
    let mut fresh = attach(&config(Method::Pissa), &device);
    fresh.keep_vectors_orthogonal().unwrap();
    let (gradients, stats) = regularizer_gradients(&fresh.model, &fresh.trainable, RegularizerForm::Paper);
    assert!(stats.unwrap().max_defect < 1e-5);
    assert!(gradients.into_values().all(|gradient| largest(gradient) == 0.0));

    let mut attached = disturbed(fresh);
    attached.keep_vectors_orthogonal().unwrap();
    let (start, lengths) = (defect(&attached), pairs(&attached.model).map(|[a, _]| largest(a)));
    for _ in 0..400 {
        let (gradients, _) = regularizer_gradients(&attached.model, &attached.trainable, RegularizerForm::Squared);
        let mut values = attached.snapshot().trained;
        for parameter in &attached.trainable {
            let tensor = values.get_mut(&parameter.name).unwrap();
            let gradient = crate::common::values(gradients[&parameter.id].clone());
            tensor.values.iter_mut().zip(gradient).for_each(|(v, g)| *v -= 0.02 * g);
        }
        attached = with_values(attached, &values);
    }
    assert!(defect(&attached) < 1e-2 * start, "{} after {start}", defect(&attached));
    // The vectors are turned, not taken away.
    for (before, [a, _]) in lengths.iter().zip(pairs(&attached.model)) {
        assert!(largest(a) > 0.5 * before);
    }
}

#[test]
fn methods_that_do_not_train_two_factors_say_so_and_stay_without_a_regularizer() {
    let device = device();
    for method in Method::ALL.into_iter().filter(|method| !PAIRS.contains(method)) {
        let mut attached = attach(&config(method), &device);
        let error = attached.keep_vectors_orthogonal().unwrap_err().to_string();
        let fault = match method {
            Method::Sorsa => "has a regularizer of its own, of orthonormal vectors",
            Method::Stella => "keeps its vectors orthonormal by a retraction",
            Method::Kasa => "has penalties of its own, of orthonormal vectors",
            _ => "does not train two factors, whose vectors could be kept orthogonal",
        };
        assert_eq!(error, format!("adapter configuration: {method} {fault}"));
    }
}
