//! Turns records into examples: token ids, and a mask of the ids that the loss counts.
//!
//! The encoder tokenizes prompt and answer separately and joins their ids, like the code of the SORSA paper: no token
//! spans the border, and a prompt has the same ids in training and in generation. SentencePiece tokenizers put the space
//! before the answer themselves.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::assistant_spans::{AssistantSpans, assistant_spans};
use crate::measure::{beginning, encode_in_pieces, ending};
use crate::names::parse_name;
use crate::{
    BadRows, ChatTemplate, Content, Conversation, DataError, LongPrompt, PromptTemplate, Record, TextTokenizer,
};

/// The token ids of one sequence, and the mask of the loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids, begin and end tokens included.
    pub ids: Vec<u32>,
    /// For each id, whether the loss counts its prediction. The entry of the first id is unused.
    pub target_mask: Vec<bool>,
    /// [`Record::row`] of its record.
    pub row: usize,
    /// Whether truncation removed tokens of the record.
    pub truncated: bool,
}

impl Example {
    /// Number of tokens that the loss counts.
    pub fn target_tokens(&self) -> usize {
        self.target_mask.iter().skip(1).filter(|&&target| target).count()
    }
}

/// What the encoder does with a record of more than `max_length` tokens. It never truncates plain text: it splits it
/// into several examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Truncation {
    /// Fail, and name the row.
    #[default]
    Error,
    /// Drop the record, and count it.
    DropRow,
    /// Cut the beginning of the prompt, after the begin token. If the answer alone is too long, cut its end, before
    /// the end token.
    KeepEnd,
    /// Cut prompt and answer at `max_length` each, like the code of the SORSA paper: the example may have twice
    /// `max_length` tokens, and an answer that is cut has no end token. Use it only to compare with that code.
    AuthorEach,
}

impl Truncation {
    /// All ways to truncate.
    pub const ALL: [Self; 4] = [Self::Error, Self::DropRow, Self::KeepEnd, Self::AuthorEach];

    /// The name, as a recipe spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::DropRow => "drop-row",
            Self::KeepEnd => "keep-end",
            Self::AuthorEach => "author-each",
        }
    }
}

impl fmt::Display for Truncation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Truncation {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        parse_name("truncation", &Self::ALL, name)
    }
}

/// Options of an [`Encoder`].
#[derive(Debug, Clone)]
pub struct EncodeOptions {
    /// Maximum number of tokens in an example, begin and end tokens included; at least 2.
    pub max_length: usize,
    /// What the encoder does with longer records.
    pub truncation: Truncation,
    /// Count the prompt in the loss too.
    pub train_on_prompt: bool,
    /// Append the end token to the answer. Chat templates write their own.
    pub append_eos: bool,
    /// Text to append to the prompt for generation, but not for training: ` Let's think step by step.`
    pub prompt_suffix: String,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self {
            max_length: 1024,
            truncation: Truncation::Error,
            train_on_prompt: false,
            append_eos: true,
            prompt_suffix: String::new(),
        }
    }
}

/// The examples of a set of records, and their counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedSet {
    /// Examples in the order of the records.
    pub examples: Vec<Example>,
    /// Number of records without an example: they are too long, or have no token to predict.
    pub dropped: usize,
    /// Those of the dropped records that have no token to predict.
    pub without_target: usize,
    /// Number of truncated examples.
    pub truncated: usize,
    /// Number of tokens that the loss counts.
    pub target_tokens: usize,
    /// Number of all tokens.
    pub tokens: usize,
}

/// Records with the tokens of their prompts.
#[derive(Debug, Clone)]
pub struct EncodedPrompts {
    /// Records that a model can be asked.
    pub usable: Vec<(Record, Vec<u32>)>,
    /// Prompts that leave no room for an answer.
    pub too_long: Vec<LongPrompt>,
    /// Rows that the template or the tokenizer refuses.
    pub bad: BadRows,
}

/// Turns records into examples.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokenizer: Arc<TextTokenizer>,
    template: PromptTemplate,
    options: EncodeOptions,
    /// Size of the model's vocabulary; `None` accepts every token.
    vocabulary: Option<usize>,
}

impl Encoder {
    /// Makes an encoder.
    ///
    /// # Errors
    ///
    /// [`DataError::Options`] if `max_length` is below 2, or if `append_eos` is set and the tokenizer has no end token.
    pub fn new(
        tokenizer: Arc<TextTokenizer>,
        template: PromptTemplate,
        options: EncodeOptions,
    ) -> Result<Self, DataError> {
        let mut problems = Vec::new();
        if options.max_length < 2 {
            problems.push(format!("max_length is {}, at least 2 tokens are needed", options.max_length));
        }
        if options.append_eos && tokenizer.eos().is_none() && !matches!(template, PromptTemplate::Chat(_)) {
            problems.push("append_eos is set, and the tokenizer has no end token".to_owned());
        }
        if problems.is_empty() {
            Ok(Self { tokenizer, template, options, vocabulary: None })
        } else {
            Err(DataError::Options { problems })
        }
    }

    /// Makes the encoder refuse tokens from `size` on, because the model's embedding has only `size` rows.
    pub fn for_vocabulary(self, size: usize) -> Self {
        Self { vocabulary: Some(size), ..self }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<TextTokenizer> {
        &self.tokenizer
    }

    /// The template of the prompts.
    pub fn template(&self) -> &PromptTemplate {
        &self.template
    }

    /// Encodes one record into one example, or into none if the record is dropped. Plain text of more than `max_length`
    /// tokens becomes several examples. Each begins with the last token of the one before, so that every token but the
    /// first is predicted once.
    ///
    /// # Errors
    ///
    /// If the record is too long under [`Truncation::Error`], the template cannot render it, the tokenizer fails, or a
    /// token is beyond the vocabulary.
    pub fn encode(&self, record: &Record) -> Result<Vec<Example>, DataError> {
        Ok(self.encode_or_drop(record)?.unwrap_or_default())
    }

    /// Like [`Encoder::encode`]. The inner error says why the record is dropped.
    fn encode_or_drop(&self, record: &Record) -> Result<Result<Vec<Example>, Dropped>, DataError> {
        let draft = match (&self.template, &record.content) {
            (_, Content::Text(text)) => {
                let windows = self.windows(text, record.row)?;
                return Ok(if windows.is_empty() { Err(Dropped::WithoutTarget) } else { Ok(windows) });
            }
            (PromptTemplate::Chat(template), _) => {
                let conversation = record.conversation().unwrap_or_default();
                if self.is_much_too_long(&conversation)? {
                    return Ok(Err(Dropped::TooLong));
                }
                self.conversation(template, &conversation)?
            }
            _ => self.exchange(record)?,
        };
        let Some(example) = self.fit(draft, record.row)? else { return Ok(Err(Dropped::TooLong)) };
        self.check_vocabulary(&example.ids)?;
        Ok(if example.target_tokens() > 0 { Ok(vec![example]) } else { Err(Dropped::WithoutTarget) })
    }

    /// Whether a conversation is dropped because a turn alone has more tokens than fit, by far. If it is not dropped, that is
    /// an error: such a turn is not rendered.
    fn is_much_too_long(&self, conversation: &Conversation) -> Result<bool, DataError> {
        /// Turns below this size may be cut.
        const SMALL: usize = 1 << 20;
        let max_length = self.options.max_length;
        let cuts = matches!(self.options.truncation, Truncation::KeepEnd | Truncation::AuthorEach);
        for message in conversation.messages.iter().filter(|message| !cuts || message.content.len() > SMALL) {
            let part = beginning(&self.tokenizer, &message.content, max_length)?;
            if part.len() < message.content.len() {
                if self.options.truncation == Truncation::DropRow {
                    return Ok(true);
                }
                let tokens = self.tokenizer.encode(part)?.len();
                return Err(DataError::MuchTooLong { bytes: message.content.len(), tokens, max_length });
            }
        }
        Ok(false)
    }

    /// Fields of messages that the chat template writes in none of these records, with the number of records that have them.
    pub fn unwritten_fields(&self, records: &[Record]) -> Vec<(String, usize)> {
        let PromptTemplate::Chat(template) = &self.template else { return Vec::new() };
        let of_record = |record: &Record| match &record.content {
            // A record that cannot be rendered is an error of its own.
            Content::Chat(conversation) => template.unwritten_fields(conversation).unwrap_or_default(),
            _ => Vec::new(),
        };
        let mut counts: Vec<(String, usize)> = Vec::new();
        for name in records.par_iter().map(of_record).collect::<Vec<_>>().into_iter().flatten() {
            match counts.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += 1,
                None => counts.push((name, 1)),
            }
        }
        counts
    }

    /// Encodes the prompt of a record for generation: everything before the (last) answer, and the prompt suffix. It
    /// truncates nothing.
    ///
    /// # Errors
    ///
    /// If the template cannot render the record, the tokenizer fails, or a token is beyond the vocabulary.
    pub fn encode_prompt(&self, record: &Record) -> Result<Vec<u32>, DataError> {
        self.encode_continued(record, "", usize::MAX)
    }

    /// The text of the prompt of a record, with the texts of its special tokens and the prompt suffix.
    ///
    /// # Errors
    ///
    /// If the template cannot render the record.
    pub fn prompt_text(&self, record: &Record) -> Result<String, DataError> {
        Ok(self.template.prompt(record)? + &self.options.prompt_suffix)
    }

    /// Encodes the prompt of a record and a text after it, such as a choice whose likelihood is asked for.
    ///
    /// # Errors
    ///
    /// Those of [`encode_prompt`](Self::encode_prompt), and [`DataError::PromptTooLong`] for more than `longest` tokens.
    pub fn encode_continued(&self, record: &Record, continuation: &str, longest: usize) -> Result<Vec<u32>, DataError> {
        let text = self.prompt_text(record)? + continuation;
        let part = beginning(&self.tokenizer, &text, longest)?;
        let mut ids = match self.template {
            PromptTemplate::Chat(_) => Vec::new(),
            _ => self.before(),
        };
        ids.extend(self.tokenizer.encode(part)?);
        if ids.len() > longest {
            return Err(DataError::PromptTooLong { tokens: ids.len(), partial: part.len() < text.len(), longest });
        }
        if ids.is_empty() {
            // A model reads something before it writes.
            ids.extend(self.tokenizer.bos());
        }
        self.check_vocabulary(&ids)?;
        Ok(ids)
    }

    /// Refuses ids without a row in the model's embedding: a tokenizer may have more tokens than the model.
    fn check_vocabulary(&self, ids: &[u32]) -> Result<(), DataError> {
        let Some(vocabulary) = self.vocabulary else { return Ok(()) };
        match ids.iter().find(|id| **id as usize >= vocabulary) {
            Some(&token) => Err(DataError::BeyondVocabulary { token, vocabulary }),
            None => Ok(()),
        }
    }

    /// Encodes the prompts of all records like [`Encoder::encode_prompt`], on all cores. `context` is the number of tokens that
    /// a prompt and its answer may have together, so that a usable prompt has fewer.
    pub fn encode_prompts(&self, records: Vec<Record>, context: usize) -> EncodedPrompts {
        let longest = context.saturating_sub(1);
        let encode = |record: &Record| self.encode_continued(record, "", longest);
        let encoded: Vec<_> = records.par_iter().map(encode).collect();
        let mut prompts = EncodedPrompts {
            usable: Vec::with_capacity(records.len()),
            too_long: Vec::new(),
            bad: BadRows::new("row"),
        };
        for (record, prompt) in records.into_iter().zip(encoded) {
            match prompt {
                Ok(prompt) => prompts.usable.push((record, prompt)),
                Err(DataError::PromptTooLong { tokens, partial, .. }) => {
                    prompts.too_long.push(LongPrompt { row: record.row, tokens, partial });
                }
                Err(error) => prompts.bad.push(record.row, error.to_string()),
            }
        }
        prompts
    }

    /// Encodes all records like [`Encoder::encode`], on all cores.
    ///
    /// # Errors
    ///
    /// [`DataError::Encode`] with every record for which [`Encoder::encode`] failed.
    pub fn encode_all(&self, records: &[Record]) -> Result<EncodedSet, DataError> {
        let (set, bad) = self.encode_usable(records);
        if bad.count > 0 { Err(DataError::Encode { records: records.len(), bad }) } else { Ok(set) }
    }

    /// Encodes all records like [`Encoder::encode_all`], and leaves out those for which [`Encoder::encode`] failed: the second
    /// part.
    pub fn encode_usable(&self, records: &[Record]) -> (EncodedSet, BadRows) {
        let encoded: Vec<_> = records.par_iter().map(|record| self.encode_or_drop(record)).collect();
        let mut set = EncodedSet::default();
        let mut bad = BadRows::new("row");
        for (record, examples) in records.iter().zip(encoded) {
            match examples {
                Ok(Ok(examples)) => set.examples.extend(examples),
                Ok(Err(reason)) => {
                    set.dropped += 1;
                    set.without_target += usize::from(reason == Dropped::WithoutTarget);
                }
                Err(error) => bad.push(record.row, error.to_string()),
            }
        }
        for example in &set.examples {
            set.truncated += usize::from(example.truncated);
            set.target_tokens += example.target_tokens();
            set.tokens += example.ids.len();
        }
        (set, bad)
    }

    /// The tokens before a prompt: those that the tokenizer itself puts there. The code of the SORSA paper writes the begin token into
    /// Alpaca's prompt.
    fn before(&self) -> Vec<u32> {
        match (&self.template, self.tokenizer.before()) {
            (PromptTemplate::Alpaca, []) => self.tokenizer.bos().into_iter().collect(),
            (_, before) => before.to_vec(),
        }
    }

    /// End token that the encoder appends to a text, if any.
    fn eos(&self) -> Option<u32> {
        self.tokenizer.eos().filter(|_| self.options.append_eos)
    }

    /// Encodes the prompt, written by the template, and the answer.
    fn exchange(&self, record: &Record) -> Result<Draft, DataError> {
        let (prompt, answer) = (self.template.prompt(record)?, record.answer().unwrap_or_default());
        let (tokenizer, max_length) = (&self.tokenizer, self.options.max_length);
        // Of a text that is much too long, the part that truncation keeps is enough.
        let prompt_part = match self.options.truncation {
            Truncation::KeepEnd => ending(tokenizer, &prompt, max_length)?,
            _ => beginning(tokenizer, &prompt, max_length)?,
        };
        let answer_part = beginning(tokenizer, answer, max_length)?;
        let bytes = prompt.len() + answer.len();
        let whole = prompt_part.len() + answer_part.len() == bytes;
        let (prompt, answer) = (tokenizer.encode(prompt_part)?, tokenizer.encode(answer_part)?);
        let mut ids: Vec<u32> = self.before().into_iter().chain(prompt).collect();
        let answer_start = ids.len();
        ids.extend(answer.into_iter().chain(self.eos()));
        let target_mask = (0..ids.len()).map(|at| at >= answer_start || self.options.train_on_prompt).collect();
        Ok(Draft { ids, target_mask, answer_start, bytes_of_part: (!whole).then_some(bytes) })
    }

    /// Encodes a conversation as one text. A token is a target if any of its text is the assistant's.
    fn conversation(&self, template: &ChatTemplate, conversation: &Conversation) -> Result<Draft, DataError> {
        let AssistantSpans { rendered, trained } = assistant_spans(template, conversation)?;
        let encoding = self.tokenizer.encode_with_offsets(&rendered.text)?;
        let offsets = encoding.get_offsets();
        let mut target_mask = vec![self.options.train_on_prompt; offsets.len()];
        let mut answer_start = offsets.len();
        for span in trained.iter().filter(|span| !span.is_empty()) {
            let touches = |&(start, end): &(usize, usize)| start < span.end && end > span.start;
            if let (Some(first), Some(last)) = (offsets.iter().position(touches), offsets.iter().rposition(touches)) {
                target_mask[first..=last].fill(true);
                answer_start = first;
            }
        }
        Ok(Draft { ids: encoding.get_ids().to_vec(), target_mask, answer_start, bytes_of_part: None })
    }

    /// Splits plain text into windows of at most `max_length` tokens. Each begins with the last token of the one before.
    fn windows(&self, text: &str, row: usize) -> Result<Vec<Example>, DataError> {
        let mut ids = self.tokenizer.before().to_vec();
        ids.extend(encode_in_pieces(&self.tokenizer, text)?);
        match self.eos() {
            Some(eos) => ids.push(eos),
            None => ids.extend(self.tokenizer.after()),
        }
        self.check_vocabulary(&ids)?;
        let step = self.options.max_length - 1;
        let window = |start| {
            let ids = ids[start..ids.len().min(start + step + 1)].to_vec();
            Example { target_mask: vec![true; ids.len()], ids, row, truncated: false }
        };
        Ok((0..ids.len().saturating_sub(1)).step_by(step).map(window).collect())
    }

    /// Truncates a draft to `max_length`, or drops it.
    fn fit(&self, mut draft: Draft, row: usize) -> Result<Option<Example>, DataError> {
        let (tokens, max_length) = (draft.ids.len(), self.options.max_length);
        match self.options.truncation {
            Truncation::AuthorEach => draft.cut_each(max_length),
            _ if tokens <= max_length => {}
            Truncation::Error => {
                return Err(match draft.bytes_of_part {
                    Some(bytes) => DataError::MuchTooLong { bytes, tokens, max_length },
                    None => DataError::TooLong { tokens, max_length },
                });
            }
            Truncation::DropRow => return Ok(None),
            Truncation::KeepEnd => draft.keep_end(max_length, self.tokenizer.bos(), self.tokenizer.eos()),
        }
        let truncated = draft.ids.len() < tokens;
        Ok(Some(Example { ids: draft.ids, target_mask: draft.target_mask, row, truncated }))
    }
}

/// Why a record has no example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    TooLong,
    /// The loss counts none of its tokens.
    WithoutTarget,
}

/// An example before truncation.
struct Draft {
    ids: Vec<u32>,
    target_mask: Vec<bool>,
    /// Index of the first token of the (last) answer.
    answer_start: usize,
    /// Bytes of the whole text, if only a part of it was made tokens.
    bytes_of_part: Option<usize>,
}

impl Draft {
    fn remove(&mut self, range: std::ops::Range<usize>) {
        self.ids.drain(range.clone());
        self.target_mask.drain(range);
    }

    fn cut_each(&mut self, max_length: usize) {
        let answer_end = self.ids.len().min(self.answer_start + max_length);
        self.remove(answer_end..self.ids.len());
        self.remove(self.answer_start.min(max_length)..self.answer_start);
    }

    fn keep_end(&mut self, max_length: usize, bos: Option<u32>, eos: Option<u32>) {
        let kept = usize::from(bos.is_some() && self.ids.first().copied() == bos).min(self.answer_start);
        let excess = self.ids.len() - max_length;
        let from_prompt = excess.min(self.answer_start - kept);
        self.remove(kept..kept + from_prompt);
        if from_prompt == excess {
            return;
        }
        let end = eos.filter(|eos| self.ids[kept..].contains(eos));
        self.remove(max_length..self.ids.len());
        if let (Some(end), Some(last)) = (end, self.ids.last_mut()) {
            *last = end;
        }
    }
}

#[cfg(test)]
mod tests;
