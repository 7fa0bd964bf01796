//! The recipe that all runs of a comparison share, and the recipes of its runs.

use super::fields::{FieldValue, GAMMA, RANK, takes_effect};
use crate::args::RecipeArgs;
use crate::recipe::Recipe;

/// The settings of all runs. Every recipe of a comparison is resolved here.
#[derive(Debug, Clone)]
pub struct BaseRecipe {
    options: RecipeArgs,
}

impl BaseRecipe {
    /// The user's options over `settings` (`field=value`).
    pub fn new(mut options: RecipeArgs, settings: &[&str]) -> Self {
        let typed = std::mem::take(&mut options.set);
        options.set = settings.iter().map(ToString::to_string).chain(typed).collect();
        Self { options }
    }

    /// Sets a field that the user does not set with `--set`.
    pub fn set_unless_given(&mut self, field: &FieldValue) {
        let prefix = format!("{}=", field.field);
        if !self.options.set.iter().any(|given| given.starts_with(&prefix)) {
            self.options.set.push(field.to_string());
        }
    }

    /// The recipe of all runs, with the defaults of the default method.
    pub fn common(&self) -> anyhow::Result<Recipe> {
        Recipe::resolve(&self.options)
    }

    /// The recipe of a run: `fields` replace the settings of all runs, and later fields replace earlier ones.
    pub fn with(&self, fields: &[FieldValue]) -> anyhow::Result<Recipe> {
        // The run has no test: a process of its own tests the chosen runs, so that its memory is not training's.
        let mut options = RecipeArgs { test: None, ..self.options.clone() };
        options.set.extend(fields.iter().map(ToString::to_string));
        let resolved = Recipe::resolve(&options)?;
        // An option without effect must not change the key of the run.
        if !takes_effect(RANK, &resolved) {
            options.rank = None;
        }
        if !takes_effect(GAMMA, &resolved) {
            options.gamma = None;
        }
        let mut recipe = Recipe::resolve(&options)?;
        recipe.eval.problems = 0;
        Ok(recipe)
    }
}
