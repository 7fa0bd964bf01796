//! What a run was begun with: `inputs.json`. A run that is resumed notices by it that its model, data or recipe changed.

use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::content;
use crate::error::ExperimentError;
use crate::host::Sources;
use crate::inputs::data_file;
use crate::recipe::Recipe;

/// Fingerprints of the files that a run was begun with, and its recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInputs {
    /// `config.json` of the model.
    pub config: String,
    /// The model's weights; see [`content::of_weights`].
    pub weights: String,
    /// The tokenizer and the chat template; see [`content::of_tokenizer`].
    pub tokenizer: String,
    /// The training data.
    pub train: DataFingerprint,
    /// The validation data, if they are in a file of their own.
    pub validation: Option<DataFingerprint>,
    /// The test, if there is one.
    pub test: Option<DataFingerprint>,
    /// The adapter under `start/`; see [`content::of_adapter`]. Absent for methods without factors.
    pub start: Option<String>,
    /// The instructions that the CPU's kernels used; absent on other devices and of runs of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// The recipe (TOML).
    pub recipe: String,
}

/// A data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFingerprint {
    /// Its size.
    pub bytes: u64,
    /// Its content; see [`content::of_file`].
    pub content: String,
}

impl RunInputs {
    /// Of the model in `folder` and the data of a recipe. The start comes later.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::File`], [`ExperimentError::Weights`] and what else reading the files finds.
    pub fn new(recipe: &Recipe, folder: &Path, sources: &Sources) -> Result<Self, ExperimentError> {
        let file = |name: &str, split: &str| -> Result<DataFingerprint, ExperimentError> {
            let path = data_file(name, split, sources)?;
            let metadata = std::fs::metadata(&path);
            let metadata = metadata.map_err(|source| ExperimentError::Read { path: path.clone(), source })?;
            // A pipe can be read once.
            let content = if metadata.is_file() { content::of_file(&path)? } else { String::new() };
            Ok(DataFingerprint { bytes: metadata.len(), content })
        };
        let optional = |name: &Option<String>, split: &str| name.as_deref().map(|name| file(name, split)).transpose();
        Ok(Self {
            config: content::of_config(folder)?,
            weights: content::of_weights(folder)?,
            tokenizer: content::of_tokenizer(folder)?,
            train: file(&recipe.data.train, "train")?,
            validation: optional(&recipe.data.validation, "validation")?,
            test: match recipe.eval.problems {
                0 => None,
                _ => optional(&recipe.data.test, "test")?,
            },
            start: None,
            instructions: None,
            recipe: recipe.to_toml()?,
        })
    }

    /// The files that differ from those of `now`, in words. `recipe` says where the files of now are.
    pub fn file_changes(&self, now: &Self, recipe: &Recipe) -> Vec<String> {
        let mut changes = Vec::new();
        let parts = [
            ("config.json", self.config == now.config),
            ("weights", self.weights == now.weights),
            ("tokenizer or chat template", self.tokenizer == now.tokenizer),
        ];
        let model: Vec<&str> = parts.iter().filter(|(_, is_same)| !is_same).map(|(part, _)| *part).collect();
        if !model.is_empty() {
            changes.push(format!("model than {} is now ({})", recipe.model.path, model.join(", ")));
        }
        let files = [
            ("training file", Some(&self.train), Some(&now.train), Some(&recipe.data.train)),
            ("validation file", self.validation.as_ref(), now.validation.as_ref(), recipe.data.validation.as_ref()),
            ("test file", self.test.as_ref(), now.test.as_ref(), recipe.data.test.as_ref()),
        ];
        for (what, then, now, path) in files {
            // A file that is named or not named any more is a change of the recipe.
            let (Some(then), Some(now), Some(path)) = (then, now, path) else { continue };
            if then != now {
                changes.push(format!("{what} than {path} is now ({} bytes then, {} now)", then.bytes, now.bytes));
            }
        }
        changes
    }

    /// The fields of the recipe that differ from those of `now`, in words. None if the recipe of then cannot be read any more.
    pub fn recipe_changes(&self, now: &Recipe) -> Vec<String> {
        let then = self.recipe.parse::<Table>().ok().and_then(|table| Recipe::from_table(table, "inputs.json").ok());
        match then {
            Some(then) => field_changes(&then, now),
            None => Vec::new(),
        }
    }
}

/// The fields of two values that differ, like `train.max_steps was 12 and is 20`.
pub fn field_changes(then: &impl Serialize, now: &impl Serialize) -> Vec<String> {
    let (Ok(then), Ok(now)) = (Table::try_from(then), Table::try_from(now)) else { return Vec::new() };
    let mut changes = Vec::new();
    compare("", &then, &now, &mut changes);
    changes
}

fn compare(path: &str, then: &Table, now: &Table, changes: &mut Vec<String>) {
    let mut names: Vec<&String> = then.keys().chain(now.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let field = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match (then.get(name), now.get(name)) {
            (then, now) if then == now => {}
            (Some(Value::Table(then)), Some(Value::Table(now))) => compare(&field, then, now, changes),
            (then, now) => {
                let shown = |value: Option<&Value>| value.map_or_else(|| "absent".to_owned(), Value::to_string);
                changes.push(format!("{field} was {} and is {}", shown(then), shown(now)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(fields: &str) -> Recipe {
        Recipe::from_table(fields.parse().unwrap(), "test").unwrap()
    }

    fn inputs(recipe: &Recipe) -> RunInputs {
        let data = DataFingerprint { bytes: 100, content: "a".to_owned() };
        RunInputs {
            config: "c".to_owned(),
            weights: "w".to_owned(),
            tokenizer: "t".to_owned(),
            train: data.clone(),
            validation: Some(data),
            test: None,
            start: None,
            instructions: None,
            recipe: recipe.to_toml().unwrap(),
        }
    }

    #[test]
    fn every_change_is_named_and_nothing_else() {
        let first = recipe("data.train = \"rows.jsonl\"\ntrain.max_steps = 12\nmodel.path = \"base\"");
        let then = inputs(&first);
        assert!(then.file_changes(&then, &first).is_empty() && then.recipe_changes(&first).is_empty());

        let mut now = then.clone();
        now.train = DataFingerprint { bytes: 60, content: "b".to_owned() };
        (now.weights, now.tokenizer) = ("x".to_owned(), "y".to_owned());
        let changes = then.file_changes(&now, &first);
        let expected = [
            "model than base is now (weights, tokenizer or chat template)",
            "training file than rows.jsonl is now (100 bytes then, 60 now)",
        ];
        assert_eq!(changes, expected);

        let mut second = first.clone();
        second.train.max_steps = Some(20);
        second.adapter.rank = 3;
        second.data.limit = Some(5);
        let rank = first.adapter.rank;
        let expected = [
            format!("adapter.rank was {rank} and is 3"),
            "data.limit was absent and is 5".to_owned(),
            "train.max_steps was 12 and is 20".to_owned(),
        ];
        assert_eq!(then.recipe_changes(&second), expected);
    }

    #[test]
    fn a_recipe_of_an_earlier_build_has_no_changes() {
        let now = recipe("");
        let then = RunInputs { recipe: "train.field_of_then = 1".to_owned(), ..inputs(&now) };
        assert!(then.recipe_changes(&now).is_empty());
    }
}
