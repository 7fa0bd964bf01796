//! What a PEFT adapter's configuration says and its tensors do not.

use std::collections::BTreeSet;

use burn::prelude::*;

use super::pattern::PathPattern;
use super::read::saves;
use super::{PeftAdapter, PeftConfig};
use crate::AdapterDoubt;
use crate::parameters::{linear_layers, parameters};
use crate::target::Pattern;

/// A line for each pattern that cannot be compared with the paths of the adapted modules.
pub(super) fn choice_faults<'a>(config: &PeftConfig, paths: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    let keys = config.rank_pattern.iter().map(|(key, _)| key).chain(config.alpha_pattern.iter().map(|(key, _)| key));
    let fault = |key: &String| match PathPattern::key(key) {
        Ok(pattern) => paths.clone().find_map(|path| pattern.matches(path).err()),
        Err(fault) => Some(fault),
    };
    keys.filter_map(fault).collect()
}

impl PeftAdapter {
    /// What its user should know before the adapter is used with `model`: settings that reach nothing, modules without
    /// tensors, tensors of modules that PEFT would not adapt, and ranks that the configuration has otherwise.
    pub fn doubts<M: Module>(&self, model: &M) -> Vec<AdapterDoubt> {
        let (config, adapted) = (&self.config, self.adapted());
        let mut doubts = Vec::new();
        let fields = [
            ("rank_pattern", config.rank_pattern.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>()),
            ("alpha_pattern", config.alpha_pattern.iter().map(|(key, _)| key.clone()).collect()),
        ];
        for (field, keys) in fields {
            let dead = |key: &String| match PathPattern::key(key) {
                Ok(pattern) => !adapted.iter().any(|path| pattern.matches(path) == Ok(true)),
                Err(_) => true,
            };
            push_dead(&mut doubts, field, keys.into_iter().filter(dead).collect());
        }
        let linear: Vec<String> = linear_layers(model).into_iter().map(|(path, _)| path).collect();
        let choice = Choice::of(config);
        if let Choice::Names(names) = &choice {
            let dead = |name: &&String| !linear.iter().any(|path| is_named(name, path));
            push_dead(&mut doubts, "target_modules", names.iter().filter(dead).cloned().collect());
        }
        let whole = self.whole();
        let dead = |name: &&String| {
            !parameters(model)
                .iter()
                .filter_map(|parameter| parameter.path.rsplit_once('.'))
                .any(|(module, _)| saves(name, module))
        };
        push_dead(&mut doubts, "modules_to_save", config.modules_to_save.iter().filter(dead).cloned().collect());
        let saved_without = config.modules_to_save.iter().filter(|name| !dead(name));
        let saved_without = saved_without.filter(|name| {
            !whole.iter().filter_map(|path| path.rsplit_once('.')).any(|(module, _)| saves(name, module))
        });
        let mut without: Vec<String> = saved_without.cloned().collect();
        if !matches!(choice, Choice::Unknown) {
            let chosen: BTreeSet<&str> =
                linear.iter().map(String::as_str).filter(|path| choice.takes(config, path)).collect();
            without.extend(chosen.difference(&adapted).map(|path| (*path).to_owned()));
            let others: Vec<String> = adapted.difference(&chosen).map(|path| (*path).to_owned()).collect();
            if !others.is_empty() {
                doubts.push(AdapterDoubt::NotTargeted { modules: others });
            }
        }
        if !without.is_empty() {
            doubts.push(AdapterDoubt::WithoutTensors { modules: without });
        }
        let other = self.ranks().into_iter().filter(|(path, rank)| config.rank(path) != *rank);
        let other: Vec<String> = other.map(|(path, _)| path.to_owned()).collect();
        if !other.is_empty() {
            doubts.push(AdapterDoubt::OtherRanks { modules: other });
        }
        doubts
    }
}

fn push_dead(doubts: &mut Vec<AdapterDoubt>, field: &'static str, keys: Vec<String>) {
    if !keys.is_empty() {
        doubts.push(AdapterDoubt::ReachesNothing { field, keys });
    }
}

/// `target_modules`.
enum Choice {
    /// It is not set, or a pattern that cannot be read: PEFT's own lists for each architecture count.
    Unknown,
    AllLinear,
    Names(Vec<String>),
    Pattern(PathPattern),
}

impl Choice {
    fn of(config: &PeftConfig) -> Self {
        match config.target_modules.as_slice() {
            [] => Self::Unknown,
            [text] if config.selection.by_pattern && text.to_lowercase() == "all-linear" => Self::AllLinear,
            [text] if config.selection.by_pattern => PathPattern::whole(text).map_or(Self::Unknown, Self::Pattern),
            names => Self::Names(names.to_vec()),
        }
    }

    /// Whether PEFT adapts the linear layer at `path`.
    fn takes(&self, config: &PeftConfig, path: &str) -> bool {
        let selection = &config.selection;
        let is_excluded = match selection.exclude.as_slice() {
            [text] if selection.exclude_by_pattern => {
                PathPattern::whole(text).and_then(|pattern| pattern.matches(path)) == Ok(true)
            }
            names => names.iter().any(|name| is_named(name, path)),
        };
        let is_saved = config.modules_to_save.iter().any(|name| is_named_or_inside(name, path));
        if is_excluded || is_saved {
            return false;
        }
        match self {
            Self::Unknown => false,
            Self::AllLinear => Pattern::AllLinear.matches(path),
            Self::Pattern(pattern) => pattern.matches(path) == Ok(true),
            Self::Names(names) if names.iter().any(|name| name == path) => true,
            Self::Names(names) => {
                let in_layers = match &selection.layers {
                    Some(layers) if !layers.is_empty() => {
                        layer(path, &selection.layer_lists).is_some_and(|layer| layers.contains(&layer))
                    }
                    _ => true,
                };
                in_layers && names.iter().any(|name| is_named(name, path))
            }
        }
    }
}

/// Whether `name` is `path` or its last components.
fn is_named(name: &str, path: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether `name` names `path` or a module around it.
fn is_named_or_inside(name: &str, path: &str) -> bool {
    let around = path.match_indices('.').map(|(end, _)| &path[..end]);
    around.chain([path]).any(|module| is_named(name, module))
}

/// The number of the layer that the module at `path` is in: the first number in the path, or the one after one of the
/// `lists`.
fn layer(path: &str, lists: &[String]) -> Option<usize> {
    let components: Vec<&str> = path.split('.').collect();
    let pairs = components.windows(2).filter(|pair| lists.is_empty() || lists.iter().any(|list| list == pair[0]));
    // Something comes before the list, if it is not named, and after the number.
    pairs.filter_map(|pair| pair[1].parse().ok()).next()
}
