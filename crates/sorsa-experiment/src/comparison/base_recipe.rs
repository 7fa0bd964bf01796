//! The fields that all runs of a comparison share, and the recipes of its runs.

use toml::Table;

use super::fields::{FieldValue, takes_effect};
use crate::recipe::set_field;
use crate::{ExperimentError, Recipe};

/// The settings of all runs. Every recipe of a comparison is resolved here.
#[derive(Debug, Clone)]
pub struct BaseRecipe {
    /// Fields of all runs.
    pub fields: Table,
    /// Fields of only those runs in which they have an effect. In other runs they would change nothing but the key.
    pub fields_if_used: Vec<FieldValue>,
    /// Name of their source, for errors.
    pub source: String,
}

impl BaseRecipe {
    /// Sets a field of all runs.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::NotATable`].
    pub fn set(&mut self, field: FieldValue) -> Result<(), ExperimentError> {
        set_field(&mut self.fields, &field.field, field.value)
    }

    /// Resolves the recipe without the fields of an arm.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::NotATable`]; what [`Recipe::from_table`] says of the fields.
    pub fn common(&self) -> Result<Recipe, ExperimentError> {
        resolve(self.fields.clone(), &self.fields_if_used, &self.source)
    }

    /// Resolves the recipe of a run: `fields` replace the settings of all runs, and later fields replace earlier ones.
    ///
    /// # Errors
    ///
    /// Like [`common`](Self::common).
    pub fn with(&self, fields: &[FieldValue]) -> Result<Recipe, ExperimentError> {
        let mut base = self.fields.clone();
        // The run has no test: another process tests the chosen runs, so the peak memory is that of training.
        if let Some(toml::Value::Table(data)) = base.get_mut("data") {
            data.remove("test");
        }
        let resolved = resolve(base.clone(), fields, &self.source)?;
        let mut all = self.fields_if_used.clone();
        all.retain(|field| takes_effect(&field.field, &resolved));
        all.extend_from_slice(fields);
        let mut recipe = resolve(base, &all, &self.source)?;
        recipe.eval.problems = 0;
        Ok(recipe)
    }
}

fn resolve(mut table: Table, fields: &[FieldValue], source: &str) -> Result<Recipe, ExperimentError> {
    for field in fields {
        set_field(&mut table, &field.field, field.value.clone())?;
    }
    Recipe::from_table(table, source)
}
