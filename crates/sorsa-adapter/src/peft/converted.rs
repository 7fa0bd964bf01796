//! A LoRA that is put together module by module, from changes of weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use sorsa_files::{HostTensor, NamedTensors};

use super::{A, B, PREFIX, PeftAdapter, PeftConfig, PeftInit, PeftSelection};
use crate::Init;
use crate::weight_change::KeptChange;

/// A LoRA of the original weights with scale 1, under construction.
#[derive(Debug, Default)]
pub struct ConvertedLora {
    tensors: NamedTensors,
    ranks: BTreeMap<String, usize>,
    whole: BTreeSet<String>,
}

impl ConvertedLora {
    /// Adds the factors of the linear layer at `path`.
    pub fn add(&mut self, path: &str, change: &KeptChange) {
        self.ranks.insert(path.to_owned(), change.a.shape[1]);
        self.tensors.insert(format!("{PREFIX}{path}{A}"), change.a.transposed());
        self.tensors.insert(format!("{PREFIX}{path}{B}"), change.b.transposed());
    }

    /// Adds a parameter that replaces the model's, in PyTorch's layout. Its module goes to `modules_to_save`.
    pub fn add_whole(&mut self, path: &str, values: HostTensor) {
        if let Some((module, _)) = path.rsplit_once('.') {
            self.whole.insert(module.to_owned());
        }
        self.tensors.insert(format!("{PREFIX}{path}"), values);
    }

    /// Number of linear layers with factors.
    pub fn modules(&self) -> usize {
        self.ranks.len()
    }

    /// The adapter. Its ranks are in `rank_pattern` if they differ.
    pub fn finish(self, base_model: Option<String>, revision: Option<String>) -> PeftAdapter {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        self.ranks.values().for_each(|rank| *counts.entry(*rank).or_default() += 1);
        let rank = counts.iter().max_by_key(|(_, count)| **count).map_or(1, |(rank, _)| *rank);
        let others = || self.ranks.iter().filter(|(_, own)| **own != rank);
        let config = PeftConfig {
            rank,
            alpha: rank as f64,
            dropout: 0.0,
            rank_stabilized: false,
            dora: false,
            init: PeftInit::Lora(Init::default()),
            target_modules: self.ranks.keys().cloned().collect(),
            rank_pattern: others().map(|(path, own)| (path.clone(), *own)).collect(),
            alpha_pattern: others().map(|(path, own)| (path.clone(), *own as f64)).collect(),
            modules_to_save: self.whole.into_iter().collect(),
            base_model,
            revision,
            selection: PeftSelection::default(),
        };
        PeftAdapter { config, tensors: self.tensors, source: PathBuf::from("memory") }
    }
}
