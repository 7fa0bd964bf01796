//! Adapters that PEFT and the author's code wrote, read, written again, and taken to other forms.

use std::path::Path;

use burn::prelude::*;
use sorsa_adapter::author::{AuthorConfig, AuthorExport, attachable};
use sorsa_adapter::peft::{PeftAdapter, PeftExport, PeftForm, PeftInit};
use sorsa_adapter::{
    AdapterConfig, AdapterError, AttachOptions, HostTensor, HostTensorExt, Method, NamedTensors, SavedAdapter,
};
use sorsa_checkpoint::weights::Checkpoint;
use sorsa_models::CausalLm;

use super::reference::*;
use super::{committed, golden, peft_folders, place, projections};
use crate::common::larger::larger;

fn export(saved: &SavedAdapter, model: &CausalLm, form: PeftForm) -> PeftAdapter {
    PeftAdapter::from_saved(saved, model, &PeftExport { form, ..PeftExport::default() }).unwrap().0
}

/// PEFT's folder gives PEFT's logits, comes out again as it went in, and leaves as a LoRA of the original weights.
fn check(place: &Place, folder: &Path) {
    let what = folder.display().to_string();
    let (batch, expected) = (place.batch(), tensors(&folder.join("expected.safetensors")));
    let peft = PeftAdapter::load(&folder.join("adapter")).unwrap();
    let approximate = matches!(peft.config.init, PeftInit::PissaApproximate(_));
    let alone = peft.attachable(&place.model(), &AttachOptions::default());
    let start = PeftAdapter::load(&folder.join("init_adapter")).ok();
    let saved = match start {
        None => alone.unwrap(),
        Some(start) if approximate => {
            let error = alone.unwrap_err();
            assert!(error.to_string().contains("a random approximation"), "{error}");
            peft.attachable_from(&start, &place.model(), &AttachOptions::default()).unwrap()
        }
        Some(start) => {
            // Two decompositions in f32 mix neighbouring vectors differently: without the start the logits are near only.
            let logits = batch.logits(&alone.unwrap().attach(place.model()).unwrap().model);
            let pairs = logits.values.iter().zip(&expected["logits"].values);
            // The first of the two rows, which has no padding.
            let differences = pairs.take(logits.values.len() / 2).map(|(a, b)| (a - b).abs());
            let worst = differences.fold(0f32, larger);
            assert!(worst < 2e-3, "{what}: {worst}");
            peft.attachable_from(&start, &place.model(), &AttachOptions::default()).unwrap()
        }
    };
    batch.assert_gives(&saved.attach(place.model()).unwrap().model, &expected, &what);

    let written = tempfile::tempdir().unwrap();
    let options = PeftExport { form: PeftForm::AsTrained, ..PeftExport::default() };
    let again = PeftAdapter::from_saved(&saved, &place.model(), &options);
    if approximate {
        let error = again.unwrap_err();
        assert!(error.to_string().contains("did not start from the exact decomposition"), "{error}");
    } else {
        let again = again.unwrap().0;
        assert_eq!(again.tensors, peft.tensors, "{what}: to the bit");
        again.save(written.path()).unwrap();
        assert_eq!(PeftAdapter::load(written.path()).unwrap().config, again.config);
    }

    let lora = export(&saved, &place.model(), PeftForm::Difference);
    lora.save(written.path()).unwrap();
    let saved = SavedAdapter::load_any(written.path(), &place.model()).unwrap();
    assert!(!saved.state.config.method().splits_weight(), "{what}");
    let attached = saved.attach(place.model()).unwrap();
    batch.assert_gives(&attached.model, &expected, &format!("{what}, as a LoRA of the original weights"));
    // Merged or beside, the model is the same.
    batch.assert_gives(&attached.merge().0, &expected, &format!("{what}, merged"));
}

#[test]
fn a_peft_folder_comes_in_and_goes_out_to_the_bit() {
    let (place, folder) = committed();
    check(&place, &folder.join("lora"));
}

#[test]
fn every_peft_folder_comes_in_and_goes_out_to_the_bit() {
    let Some(golden) = golden() else { return };
    for folder in peft_folders(&golden) {
        check(&place(&golden), &folder);
    }
}

#[test]
fn the_difference_to_the_start_is_what_peft_converts_to() {
    let Some(golden) = golden() else { return };
    let place = place(&golden);
    for method in ["pissa", "olora"] {
        let folder = golden.join("adapters/tiny_llama").join(method);
        let saved = SavedAdapter::load_any(&folder.join("adapter"), &place.model()).unwrap();
        let (ours, theirs) = (
            export(&saved, &place.model(), PeftForm::Difference),
            PeftAdapter::load(&folder.join("converted_to_lora")).unwrap(),
        );
        assert_eq!(ours.config.rank, theirs.config.rank, "{method}");
        let product = |adapter: &PeftAdapter| -> NamedTensors {
            let device = Device::flex();
            let one = |(module, a, b, scale): (&str, &HostTensor, &HostTensor, f64)| {
                let dense = b.to_tensor::<2>(&device).matmul(a.to_tensor::<2>(&device)) * scale;
                (module.to_owned(), HostTensor::from_tensor(dense))
            };
            adapter.matrices().map(one).collect()
        };
        let (ours, theirs) = (product(&ours), product(&theirs));
        assert_eq!(ours.len(), projections(&golden));
        for (name, theirs) in &theirs {
            let worst = ours[name].values.iter().zip(&theirs.values).map(|(a, b)| (a - b).abs()).fold(0.0, larger);
            assert!(worst < 1e-4, "{method}: {name} differs by {worst}");
        }
    }
}

#[test]
fn a_lower_rank_says_what_it_leaves_out_and_the_whole_rank_leaves_out_nothing() {
    let (place, _) = committed();
    let mut dense = AdapterConfig::new(Method::Partial, 1, &["q_proj", "down_proj"])
        .attach(place.model(), &Default::default())
        .unwrap()
        .snapshot();
    for (seed, tensor) in dense.trained.values_mut().enumerate() {
        let moved = |(i, value): (usize, &mut f32)| *value += 0.05 * ((i * 7 + seed) as f32).sin();
        tensor.values.iter_mut().enumerate().for_each(moved);
    }
    let at = |rank| {
        let options = PeftExport { rank: Some(rank), ..PeftExport::default() };
        PeftAdapter::from_saved(&dense, &place.model(), &options).unwrap()
    };
    let (_, lost) = at(1);
    assert_eq!(lost.len(), 4);
    assert!(lost.iter().all(|lost| lost.relative_error > 1e-3), "{lost:?}");
    let (whole, lost) = at(1000);
    assert!(lost.iter().all(|lost| lost.relative_error < 1e-5), "{lost:?}");
    let saved = whole.attachable(&place.model(), &AttachOptions::default());
    // PEFT's form may have a rank above a weight's smaller side; an adapter here may not.
    assert!(saved.is_err());
    let (whole, _) = at(32);
    let saved = whole.attachable(&place.model(), &AttachOptions::default()).unwrap();
    let batch = place.batch();
    let logits = |model: &CausalLm| {
        NamedTensors::from([
            ("logits".to_owned(), batch.logits(model)),
            ("loss".to_owned(), HostTensor::from_tensor(batch.loss(model))),
        ])
    };
    let expected = logits(&dense.attach(place.model()).unwrap().model);
    batch.assert_gives(&saved.attach(place.model()).unwrap().model, &expected, "the dense change as a LoRA");
    let error = PeftAdapter::from_saved(&dense, &place.model(), &PeftExport::default()).unwrap_err();
    assert!(error.to_string().contains("only with a rank"), "{error}");
}

#[test]
fn the_authors_checkpoint_comes_in_and_goes_out() {
    let Some(golden) = golden() else { return };
    let place = place(&golden);
    let folder = golden.join("sorsa/tiny_llama");
    let checkpoint = Checkpoint::open(&folder.join("author_checkpoint")).unwrap();
    let config = AuthorConfig::parse(&bytes(&folder.join("author_checkpoint/config.json"))).unwrap().unwrap();
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    let read = |name: &str| -> Result<HostTensor, AdapterError> {
        let shape = checkpoint.info(name).unwrap().shape.clone();
        Ok(HostTensor::new(shape, checkpoint.to_f32(name).unwrap()))
    };
    let saved = attachable(&config, &names, read, &place.model(), &folder).unwrap();
    let expected = tensors(&folder.join("expected.safetensors"));
    let batch = place.batch();
    batch.assert_gives(&saved.attach(place.model()).unwrap().model, &expected, "the author's adapter");
    let peft = export(&saved, &place.model(), PeftForm::Difference);
    let lora = peft.attachable(&place.model(), &AttachOptions::default()).unwrap();
    batch.assert_gives(&lora.attach(place.model()).unwrap().model, &expected, "the author's adapter in PEFT's form");

    let model = place.model();
    let export = AuthorExport::new(&saved, &model, None).unwrap();
    assert_eq!(export.config.rank, config.rank);
    let base = Checkpoint::open(&place.checkpoint).unwrap();
    for name in &names {
        let original = name.strip_prefix("model.").and_then(|name| {
            let shape = base.info(name)?.shape.clone();
            Some(HostTensor::new(shape, base.to_f32(name).ok()?))
        });
        let (ours, theirs) = (export.tensor(name, original).unwrap(), read(name).unwrap());
        assert_eq!(ours.shape, theirs.shape, "{name}");
        let worst = ours.values.iter().zip(&theirs.values).map(|(a, b)| (a - b).abs()).fold(0.0, larger);
        assert!(worst < 1e-5, "{name} differs by {worst}");
    }

    // Another base: the difference is no longer of the adapter's rank.
    let up = AdapterConfig::new(Method::Partial, 1, &["layers.1.mlp.up_proj"]);
    let mut changed = up.attach(place.model(), &Default::default()).unwrap().snapshot();
    changed.trained.values_mut().flat_map(|tensor| &mut tensor.values).for_each(|value| *value *= 1.5);
    let other = changed.attach(place.model()).unwrap().merge().0;
    let error = attachable(&config, &names, read, &other, &folder).unwrap_err();
    assert!(error.to_string().contains("layers.1.mlp.up_proj.weight` less the residual"), "{error}");
    assert_eq!(projections(&golden), saved.state.modules.len());
}

#[test]
fn everything_that_does_not_fit_is_reported_at_once() {
    let (place, folder) = committed();
    let mut peft = PeftAdapter::load(&folder.join("lora/adapter")).unwrap();
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    peft.tensors.remove(&format!("{q}.lora_B.weight")).unwrap();
    let v = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight";
    peft.tensors.insert(v.to_owned(), HostTensor::new([1, 2], vec![0.0; 2])).unwrap();
    let extra = HostTensor::new([1, 1], vec![0.0]);
    for name in ["base_model.model.model.layers.9.x_proj.lora_A.weight", "base_model.model.lm_head2.weight", "stray"] {
        peft.tensors.insert(name.to_owned(), extra.clone());
    }
    let error = peft.attachable(&place.model(), &AttachOptions::default()).unwrap_err();
    let AdapterError::Mismatch { faults, .. } = &error else { panic!("{error}") };
    assert_eq!(faults.len(), 5, "{faults:#?}");
}
