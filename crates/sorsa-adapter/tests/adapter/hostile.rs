//! Adapter folders that somebody damaged or made up: an error, never a panic. `PROPTEST_CASES=1000000` searches for longer.

use std::path::Path;

use proptest::prelude::*;
use sorsa_adapter::author::AuthorConfig;
use sorsa_adapter::peft::{CONFIG_FILE, PeftAdapter, PeftConfig, PeftExport, TENSORS_FILE};
use sorsa_adapter::{AdapterConfig, AttachOptions, Method, SavedAdapter};

use crate::common::*;

/// The files of a whole adapter with a layer trained whole, in PEFT's form and in this crate's.
struct Files {
    config: Vec<u8>,
    tensors: Vec<u8>,
    manifest: Vec<u8>,
    trained: Vec<u8>,
}

fn files() -> &'static Files {
    static FILES: std::sync::OnceLock<Files> = std::sync::OnceLock::new();
    FILES.get_or_init(|| {
        let mut config = AdapterConfig::new(Method::Lora, RANK, &["first"]).with_alpha(6.0);
        config.modules_to_save = vec!["second".into()];
        let saved = attach(&config, &device()).snapshot();
        let [of_peft, own] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let net = Net::new(&device());
        PeftAdapter::from_saved(&saved, &net, &PeftExport::default()).unwrap().0.save(of_peft.path()).unwrap();
        saved.save(own.path()).unwrap();
        let read = |folder: &tempfile::TempDir, name: &str| std::fs::read(folder.path().join(name)).unwrap();
        Files {
            config: read(&of_peft, CONFIG_FILE),
            tensors: read(&of_peft, TENSORS_FILE),
            manifest: read(&own, "adapter.json"),
            trained: read(&own, "adapter.safetensors"),
        }
    })
}

/// Bytes changed, taken out and put in, most of them near the start, where the headers are.
fn damaged(whole: &[u8], edits: &[(f64, u8, u8)]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for (place, kind, byte) in edits {
        let at = (place.powi(3) * bytes.len() as f64) as usize;
        match kind % 4 {
            0 if at < bytes.len() => bytes[at] = *byte,
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.insert(at.min(bytes.len()), *byte),
            _ => bytes.truncate(at.max(8)),
        }
    }
    bytes
}

/// Whatever the folder holds, it is read or refused; what is attached computes.
fn read(folder: &Path) {
    let net = Net::new(&device());
    if let Ok(saved) = SavedAdapter::load_any(folder, &net)
        && let Ok(attached) = saved.attach(net)
    {
        attached.model.forward(input(&device()));
    }
}

fn edits() -> impl Strategy<Value = Vec<(f64, u8, u8)>> {
    prop::collection::vec((0.0..1.0f64, any::<u8>(), prop_oneof![any::<u8>(), 0x20..0x7fu8]), 1..6)
}

proptest! {
    #[test]
    fn damaged_folders_of_peft_are_read_or_refused(config in edits(), tensors in edits(), which in 0..3u8) {
        let folder = tempfile::tempdir().unwrap();
        let one = |name: &str, whole: &[u8], edits: &[(f64, u8, u8)], damage: bool| {
            let bytes = if damage { damaged(whole, edits) } else { whole.to_vec() };
            std::fs::write(folder.path().join(name), bytes).unwrap();
        };
        one(CONFIG_FILE, &files().config, &config, which != 1);
        one(TENSORS_FILE, &files().tensors, &tensors, which != 0);
        read(folder.path());
    }

    #[test]
    fn damaged_folders_of_this_crate_are_read_or_refused(manifest in edits(), trained in edits(), which in 0..3u8) {
        let folder = tempfile::tempdir().unwrap();
        let one = |name: &str, whole: &[u8], edits: &[(f64, u8, u8)], damage: bool| {
            let bytes = if damage { damaged(whole, edits) } else { whole.to_vec() };
            std::fs::write(folder.path().join(name), bytes).unwrap();
        };
        one("adapter.json", &files().manifest, &manifest, which != 1);
        one("adapter.safetensors", &files().trained, &trained, which != 0);
        read(folder.path());
    }

    #[test]
    fn configurations_of_any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,200}") {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            let _ = PeftConfig::parse(bytes);
            let _ = AuthorConfig::parse(bytes);
        }
    }
}

#[test]
fn whole_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(CONFIG_FILE), &files().config).unwrap();
    std::fs::write(folder.path().join(TENSORS_FILE), &files().tensors).unwrap();
    let net = Net::new(&device());
    let saved = PeftAdapter::load(folder.path()).unwrap().attachable(&net, &AttachOptions::default()).unwrap();
    let whole = ["first.lora.a", "first.lora.b", "second.weight"];
    assert_eq!(saved.trained.keys().collect::<Vec<_>>(), whole);
    assert_eq!(saved.state.config.modules_to_save, ["second"]);
}
