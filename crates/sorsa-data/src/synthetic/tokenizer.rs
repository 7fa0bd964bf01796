//! A byte-level BPE tokenizer for the corpus and the task.
//!
//! It encodes every text, because all 256 bytes are tokens, and decoding is exact. Each digit is a token, so that the
//! model reads and writes numbers digit by digit.

use std::io::Write;
use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use super::write::write_whole;
use super::{SyntheticError, corpus, task};

/// Number of tokens: 3 special tokens, 256 bytes and 509 merges. 94 % of the corpus's words are one token.
pub const VOCABULARY: usize = 768;
/// Padding token, with id 0.
pub const PAD: &str = "<pad>";
/// Begin token of every text, with id 1.
pub const BOS: &str = "<s>";
/// End token of every text, with id 2.
pub const EOS: &str = "</s>";

/// Number of corpus documents that [`write_tokenizer`] trains on, and seed of corpus and task.
const TRAINING_DOCUMENTS: usize = 20_000;
const SEED: u64 = 0;
/// Context length of the embedded model.
const CONTEXT: usize = 256;

/// Prompt of the task, from Alpaca (Taori et al. 2023).
const PROMPT: &str = "Below is an instruction that describes a task. Write a response that appropriately completes the \
                      request.\n\n### Instruction:\n\n### Response:";

/// Trains a tokenizer of [`VOCABULARY`] tokens on texts. Encoding with special tokens puts [`BOS`] before a text.
///
/// Equal texts give equal tokenizers.
///
/// # Errors
/// [`SyntheticError::Tokenizer`] if the tokenizer library fails.
pub fn train_tokenizer(texts: impl Iterator<Item = String> + Send) -> Result<Tokenizer, SyntheticError> {
    trained(texts).map_err(|source| SyntheticError::Tokenizer { source })
}

fn trained(texts: impl Iterator<Item = String> + Send) -> tokenizers::Result<Tokenizer> {
    let byte_level = ByteLevel::new(false, true, true);
    let split = Sequence::new(vec![PreTokenizerWrapper::Digits(Digits::new(true)), byte_level.into()]);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<NormalizerWrapper>)
        .with_pre_tokenizer(Some(split))
        .with_post_processor(Some(
            TemplateProcessing::builder().try_single(format!("{BOS} $A"))?.special_tokens(vec![(BOS, 1)]).build()?,
        ))
        .with_decoder(Some(byte_level))
        .build()?;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens([PAD, BOS, EOS].map(|token| AddedToken::from(token, true)).to_vec())
        .build();
    tokenizer.train(&mut trainer, texts)?;
    Ok(tokenizer.into())
}

/// Trains a tokenizer on the corpus, the task's training split and the prompt, and writes `tokenizer.json`,
/// `tokenizer_config.json` and `special_tokens_map.json` into `folder`.
///
/// Most words of the prompt do not occur in the corpus. They are tokens to keep the prompt short; their embeddings are
/// what pretraining leaves of the random initialization.
///
/// # Errors
/// [`SyntheticError::Tokenizer`] if training fails, [`SyntheticError::File`] if a file cannot be written.
pub fn write_tokenizer(folder: &Path) -> Result<(), SyntheticError> {
    let problems = task(SEED).train.into_iter().map(|p| format!("{PROMPT}{}\n{}", p.query, p.response));
    let tokenizer = train_tokenizer(corpus(SEED).take(TRAINING_DOCUMENTS).chain(problems))?;
    let json = tokenizer.to_string(true).map_err(|source| SyntheticError::Tokenizer { source })?;

    let special = json!({ "bos_token": BOS, "eos_token": EOS, "pad_token": PAD });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": true,
        "add_eos_token": false,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": false,
        "model_max_length": CONTEXT,
    });
    let write =
        |name: &str, text: String| write_whole(&folder.join(name), |out| out.write_all(format!("{text}\n").as_bytes()));
    write("tokenizer.json", json)?;
    write("tokenizer_config.json", format!("{config:#}"))?;
    write("special_tokens_map.json", format!("{special:#}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    /// Reads back the files of [`write_tokenizer`].
    static WRITTEN: LazyLock<Tokenizer> = LazyLock::new(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_tokenizer(folder.path()).expect("the tokenizer is written");
        let config = fs::read_to_string(folder.path().join("tokenizer_config.json")).expect("its settings");
        let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
        assert_eq!((&config["bos_token"], &config["eos_token"]), (&json!(BOS), &json!(EOS)));
        Tokenizer::from_file(folder.path().join("tokenizer.json")).expect("a readable tokenizer")
    });

    #[test]
    fn digits_are_single_tokens_and_the_special_tokens_come_first() {
        let tokenizer = &*WRITTEN;
        assert_eq!(tokenizer.get_vocab_size(true), VOCABULARY);
        assert_eq!([PAD, BOS, EOS].map(|token| tokenizer.token_to_id(token)), [Some(0), Some(1), Some(2)]);
        let vocabulary = tokenizer.get_vocab(true);
        for token in vocabulary.keys().filter(|token| token.contains(|c: char| c.is_ascii_digit())) {
            assert_eq!(token.len(), 1, "{token:?} is more than a digit");
        }
        let encoded = tokenizer.encode("47 + 28 = 175", true).expect("encoded");
        let expected = ["<s>", "4", "7", "Ġ+", "Ġ", "2", "8", "Ġ=", "Ġ", "1", "7", "5"];
        assert_eq!(encoded.get_tokens(), expected);
    }

    #[test]
    fn the_prompt_costs_few_tokens_and_every_problem_fits_the_context() {
        let tokenizer = &*WRITTEN;
        let count = |text: &str| tokenizer.encode(text, true).expect("encoded").len();
        assert!(count(PROMPT) <= 32, "{} tokens", count(PROMPT));
        for problem in task(SEED).test {
            let tokens = count(&format!("{PROMPT}{} {}{EOS}", problem.query, problem.response));
            assert!(tokens <= CONTEXT, "{tokens} tokens: {problem:?}");
        }
    }

    #[test]
    fn equal_texts_give_equal_tokenizers() {
        let train = || {
            train_tokenizer(corpus(9).take(2_000))
                .and_then(|t| t.to_string(false).map_err(|source| SyntheticError::Tokenizer { source }))
        };
        assert_eq!(train().expect("trained"), train().expect("trained"));
    }

    #[test]
    fn every_text_is_encoded_and_decoded_back() {
        let tokenizer = &*WRITTEN;
        proptest!(|(text in "\\PC{0,40}|[ -~\n\t]{0,80}")| {
            let encoded = tokenizer.encode(text.as_str(), true).expect("encoded");
            prop_assert_eq!(tokenizer.decode(encoded.get_ids(), true).expect("decoded"), text);
        });
    }
}
