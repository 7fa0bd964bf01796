//! The files of a model beside its weights.

use std::path::Path;

use sorsa_files::{at, write_atomic};

use super::{Files, ModelSource, SourceError};
use crate::weights::{GENERATION_CONFIG, TOKENIZER_FILES, WeightsError};

impl ModelSource {
    /// Writes the files of the tokenizer, and the settings for generating text if there are any, into `folder`: copies of a folder's,
    /// or what a GGUF file says.
    ///
    /// # Errors
    ///
    /// [`SourceError`] of a file that cannot be read or written, and of a tokenizer that is not known here.
    pub fn write_tokenizer(&self, folder: &Path) -> Result<(), SourceError> {
        if let Files::Gguf(model) = &self.files {
            for (name, json) in model.tokenizer_files()? {
                write_atomic(folder.join(name), format!("{json:#}\n")).map_err(WeightsError::from)?;
            }
            return Ok(());
        }
        for name in [GENERATION_CONFIG].into_iter().chain(TOKENIZER_FILES) {
            let from = self.path.join(name);
            if from.exists() {
                std::fs::copy(&from, folder.join(name)).map_err(at("copy", &from)).map_err(WeightsError::from)?;
            }
        }
        Ok(())
    }

    /// Whether the model is a folder in Hugging Face's layout, and not a GGUF file.
    pub fn is_folder(&self) -> bool {
        matches!(self.files, Files::Folder(_))
    }
}
