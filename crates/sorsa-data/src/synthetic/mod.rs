//! The data of the embedded model: a corpus to pretrain a small model on, a tokenizer for it, and a task to fine-tune it
//! on. The corpus teaches the skills of the task, but never shows its form.
//!
//! Everything is drawn from a seed with integers, and is the same on every platform. Each artefact has one function that
//! makes it and one that writes it:
//!
//! | artefact | made by | written by |
//! |---|---|---|
//! | corpus of small documents | [`corpus`] | [`write_corpus`] |
//! | word problems in MetaMathQA's schema | [`task`] | [`write_task`] |
//! | byte-level BPE, [`VOCABULARY`] tokens | [`train_tokenizer`] | [`write_tokenizer`] |
//!
//! ```
//! use sorsa_data::synthetic;
//!
//! let task = synthetic::task(0);
//! let problem = &task.test[0];
//! assert!(problem.response.ends_with(&format!("The answer is: {}", problem.answer)));
//! assert!(synthetic::corpus(0).take(100).all(|document| !document.contains("The answer is")));
//! ```

mod corpus;
mod draw;
mod equation;
mod lexicon;
mod numbers;
mod scene;
mod story;
mod task;
mod template;
mod tokenizer;
mod write;

pub use corpus::corpus;
pub use task::{Problem, TEST_PROBLEMS, TRAIN_PROBLEMS, TaskSplits, VALIDATION_PROBLEMS, task};
pub use tokenizer::{BOS, EOS, PAD, VOCABULARY, train_tokenizer, write_tokenizer};
pub use write::{SyntheticError, write_corpus, write_task};

/// What is added to the seed of the training texts for that of the validation texts.
pub const VALIDATION_SEED_OFFSET: u64 = 1_000_003;
/// Validation texts that are generated.
pub const VALIDATION_DOCUMENTS: usize = 500;
