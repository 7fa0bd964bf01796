//! Turns data files into batches of token ids for a language model.
//!
//! ```text
//! file --load--> Record --PromptTemplate, TextTokenizer, Encoder--> Example --Batcher--> Batch
//! ```
//!
//! The crate uses no tensors and no devices. A [`Batch`] holds a few `Vec<i32>`, which the trainer converts to tensors.
//!
//! ```
//! use std::sync::Arc;
//! use sorsa_data::{BatchOptions, Batcher, EncodeOptions, Encoder, IGNORED, PromptTemplate, Record, TextTokenizer};
//!
//! # fn main() -> Result<(), sorsa_data::DataError> {
//! let tokenizer = Arc::new(TextTokenizer::from_bytes(
//!     br#"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
//!          "post_processor": {"type": "BertProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]}, "decoder": null, "truncation": null, "padding": null,
//!          "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "<s>": 1, "</s>": 2, "one": 3, "two": 4, "three": 5}}}"#,
//!     Some(br#"{"bos_token": "<s>", "eos_token": "</s>"}"#),
//! )?);
//! let records = [Record::instruction(1, "one two", "three")];
//!
//! let encoder = Encoder::new(tokenizer, PromptTemplate::Raw, EncodeOptions::default())?;
//! let set = encoder.encode_all(&records)?;
//! assert_eq!(set.examples[0].ids, [1, 3, 4, 5, 2]); // <s> one two three </s>
//!
//! let batcher = Batcher::new(Arc::new(set.examples), BatchOptions::default())?;
//! let batch = batcher.batch(0, 0);
//! assert_eq!(batch.input_ids, [1, 3, 4, 5]);
//! assert_eq!(batch.targets, [IGNORED, IGNORED, 5, 2]); // the loss counts the answer and the end token, not the prompt
//! # Ok(())
//! # }
//! ```

mod assistant_spans;
mod batch;
mod chat;
mod conversation;
mod csv_rows;
mod data_file;
mod encode;
mod epoch_order;
mod error;
mod expansion;
mod formats;
mod jinja;
mod load;
mod measure;
mod names;
mod panics;
mod parquet_pages;
mod parquet_rows;
mod prompt;
mod record;
mod row_file;
mod rows;
mod shuffle;
mod split;
pub mod synthetic;
mod tokenizer;
mod turn_end;
mod turns;

pub use batch::{Batch, BatchOptions, Batcher, DataPosition, IGNORED};
pub use chat::ChatTemplate;
pub use conversation::{Conversation, Message};
pub use encode::{EncodeOptions, EncodedPrompts, EncodedSet, Encoder, Example, Truncation};
pub use error::{BadRow, BadRows, DataError, LongPrompt};
pub use formats::{AnswerStyle, Format};
pub use load::{LoadOptions, Loaded, load};
pub use prompt::{PromptTemplate, TemplateName};
pub use record::{Content, Record};
pub use rows::{Rows, read_rows};
pub use split::{Split, split};
pub use tokenizer::{DecodeStream, StopFilter, TextTokenizer};
pub use turn_end::TurnEnd;
pub use turns::{Around, SystemPlace, Turns};
