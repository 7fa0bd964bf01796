//! What an adapter's run says about how the adapter is used: later commands take it from there.

use std::path::Path;

use sorsa_checkpoint::WeightFormat;
use sorsa_data::TemplateName;

use crate::adapter::recipe_of_run;
use crate::error::ExperimentError;
use crate::recipe::Recipe;

/// What the recipe of a run decides about its model's use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFacts {
    /// Name of the base model.
    pub model: String,
    /// Storage dtype of the base model's weights.
    pub dtype: WeightFormat,
    /// Template of the prompts that it was trained on.
    pub template: TemplateName,
    /// Name of the chat template, if it is not the default one.
    pub chat_template: Option<String>,
    /// Text at the end of each prompt of its test.
    pub prompt_suffix: String,
    /// Most tokens of an answer in its test.
    pub max_new_tokens: usize,
}

impl RunFacts {
    /// Of the run that an adapter is in. `None` of an adapter outside a run.
    ///
    /// # Errors
    ///
    /// A recipe that cannot be read.
    pub fn of(adapter: &Path) -> Result<Option<Self>, ExperimentError> {
        let Some(path) = recipe_of_run(adapter) else { return Ok(None) };
        let recipe = Recipe::read(&path)?;
        Ok(Some(Self {
            model: recipe.model.path,
            dtype: recipe.model.dtype,
            template: recipe.data.template,
            chat_template: recipe.data.chat_template,
            prompt_suffix: recipe.eval.prompt_suffix,
            max_new_tokens: recipe.eval.max_new_tokens,
        }))
    }
}
