//! Finds what the assistant writes in a rendered conversation: the text between the prompt of each of its turns and the turn's
//! end, its end token included.
//!
//! `{% generation %}` marks say it, if the template has them. Otherwise two things do. The text of the conversation up to
//! the turn, rendered with the generation prompt and without it, ends where the turn begins. If the template writes an
//! earlier turn otherwise once more turns follow, the marks of the whole text say which part a turn is and which bytes are the
//! message's own ([`MarkKind`]); the generation prompt says how the turn opens. A turn that remains ambiguous is an error.

use std::ops::Range;

use crate::jinja::{MarkKind, Rendered};
use crate::{ChatTemplate, Conversation, DataError, Message};

/// A rendered conversation, and what the assistant writes in it.
#[derive(Debug)]
pub(crate) struct AssistantSpans {
    pub(crate) rendered: Rendered,
    /// Bytes of the text that are trained, in order.
    pub(crate) trained: Vec<Range<usize>>,
}

/// Renders a conversation and finds what the assistant writes.
///
/// # Errors
///
/// [`DataError::ChatTemplate`] if the template fails, [`DataError::AmbiguousTurn`] if a turn cannot be told from the rest.
pub(crate) fn assistant_spans(
    template: &ChatTemplate,
    conversation: &Conversation,
) -> Result<AssistantSpans, DataError> {
    let rendered = template.render_marked(conversation, false)?;
    let finder = Finder { template, conversation, whole: Layout::new(&rendered, conversation.messages.len()) };
    let trained = match template.has_generation_blocks(conversation) {
        true => finder.generated(&rendered)?,
        false => finder.turns()?,
    };
    Ok(AssistantSpans { rendered, trained })
}

/// A rendered text by messages.
struct Layout<'a> {
    text: &'a str,
    /// For each message, where the template writes while it is at the message.
    turns: Vec<Vec<Range<usize>>>,
    /// For each message, where its own text stands.
    said: Vec<Vec<Range<usize>>>,
}

impl<'a> Layout<'a> {
    fn new(rendered: &'a Rendered, messages: usize) -> Self {
        let (mut turns, mut said) = (vec![Vec::new(); messages], vec![Vec::new(); messages]);
        for mark in &rendered.marks {
            match mark.kind {
                MarkKind::Turn(message) => turns[message].push(mark.range.clone()),
                MarkKind::Said { message, .. } => said[message].push(mark.range.clone()),
                MarkKind::Generation => {}
            }
        }
        for ranges in turns.iter_mut().chain(&mut said) {
            ranges.sort_by_key(|range| (range.start, range.end));
        }
        Self { text: &rendered.text, turns, said }
    }

    /// The one part of the text that is the turn of a message: the part that holds its own text, if there are several.
    fn turn(&self, message: usize) -> Option<Range<usize>> {
        let turns = &self.turns[message];
        let holds = |turn: &&Range<usize>| self.said[message].iter().any(|said| contains(turn, said));
        match turns.as_slice() {
            [only] => Some(only.clone()),
            several => {
                let mut holding = several.iter().filter(holds);
                let found = holding.next()?;
                holding.next().is_none().then(|| found.clone())
            }
        }
    }

    /// Where the last turn ends.
    fn last_turn_end(&self) -> Option<usize> {
        self.turns.iter().flatten().map(|turn| turn.end).max()
    }

    /// From the first to the last byte of a message's own text, within `range`.
    fn said_within(&self, message: usize, range: &Range<usize>) -> Option<Range<usize>> {
        let mut inside = self.said[message].iter().filter(|said| contains(range, said));
        let first = inside.next()?;
        let end = inside.map(|said| said.end).max().unwrap_or(first.end);
        Some(first.start..end.max(first.end))
    }
}

fn contains(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn overlap(left: &Range<usize>, right: &Range<usize>) -> bool {
    left.start < right.end && right.start < left.end
}

struct Finder<'a> {
    template: &'a ChatTemplate,
    conversation: &'a Conversation,
    whole: Layout<'a>,
}

impl Finder<'_> {
    fn messages(&self) -> &[Message] {
        &self.conversation.messages
    }

    fn ambiguous(&self, message: usize, reason: impl Into<String>) -> DataError {
        DataError::AmbiguousTurn { message: message + 1, reason: reason.into() }
    }

    /// The parts inside `{% generation %}` that belong to turns that are trained.
    fn generated(&self, rendered: &Rendered) -> Result<Vec<Range<usize>>, DataError> {
        let blocks = rendered.marks.iter().filter(|mark| mark.kind == MarkKind::Generation);
        let mut blocks: Vec<Range<usize>> = blocks.map(|mark| mark.range.clone()).collect();
        blocks.sort_by_key(|block| block.start);
        let untrained = |message: &Message| message.is_assistant() && !message.trained;
        if !self.messages().iter().any(untrained) {
            return Ok(blocks);
        }
        let mut trained = Vec::new();
        for block in blocks {
            let owner = self.owner(&block);
            match owner.map(|message| self.messages()[message].trained) {
                Some(true) => trained.push(block),
                Some(false) => {}
                None => {
                    let untrained = self.messages().iter().position(untrained).unwrap_or_default();
                    return Err(self.ambiguous(untrained, "a {% generation %} block belongs to none of the messages"));
                }
            }
        }
        Ok(trained)
    }

    /// The message that the template is at when it writes `block`, otherwise whose text is in it, otherwise the last one before.
    fn owner(&self, block: &Range<usize>) -> Option<usize> {
        let all = 0..self.messages().len();
        let inside = |ranges: &[Range<usize>]| ranges.iter().any(|range| overlap(range, block));
        let mut owners = all.clone().filter(|&message| inside(&self.whole.turns[message]));
        if let (Some(only), None) = (owners.next(), owners.next()) {
            return Some(only);
        }
        let mut owners = all.clone().filter(|&message| inside(&self.whole.said[message]));
        match (owners.next(), owners.next()) {
            (Some(only), None) => Some(only),
            (Some(_), Some(_)) => None,
            (None, _) => {
                let ends = |ranges: &[Range<usize>]| ranges.iter().map(|range| range.end).max();
                let end = |message: usize| ends(&self.whole.turns[message]).or_else(|| ends(&self.whole.said[message]));
                all.filter(|&message| end(message).is_some_and(|end| end <= block.start))
                    .max_by_key(|&message| end(message))
            }
        }
    }

    /// The turns of the assistant that are trained.
    fn turns(&self) -> Result<Vec<Range<usize>>, DataError> {
        let mut spans: Vec<Range<usize>> = Vec::new();
        for (index, message) in self.messages().iter().enumerate() {
            if !message.is_assistant() || !message.trained {
                continue;
            }
            let span = self.span(index)?;
            self.check(index, &span, spans.last().map_or(0, |span| span.end))?;
            spans.push(span);
        }
        Ok(spans)
    }

    /// What the assistant writes in the message with this index.
    fn span(&self, index: usize) -> Result<Range<usize>, DataError> {
        let turn = self.whole.turn(index);
        let within = turn.clone().unwrap_or(0..self.whole.text.len());
        let said = self.whole.said_within(index, &within);
        if said.is_none() && self.messages()[index].says_anything() {
            return Err(self.ambiguous(index, "the template leaves out what it says"));
        }
        let start = self.start(index, turn.as_ref(), said.as_ref())?;
        let end = self.end(index, turn.as_ref(), said.as_ref())?;
        if start > end {
            return Err(self.ambiguous(index, "its end comes before its start"));
        }
        Ok(start..end)
    }

    /// Where the prompt of a turn ends.
    fn start(
        &self,
        index: usize,
        turn: Option<&Range<usize>>,
        said: Option<&Range<usize>>,
    ) -> Result<usize, DataError> {
        let before = if index == 0 { None } else { self.render_before(index, true) };
        // A prompt that opens a thought may be the beginning of what the message says.
        let fits = |at: usize| {
            said.is_none_or(|said| at <= said.end) && turn.is_none_or(|turn| (turn.start..=turn.end).contains(&at))
        };
        if let Some(before) = &before
            && self.whole.text.starts_with(&before.text)
            && fits(before.text.len())
        {
            return Ok(before.text.len());
        }
        let prompt = self.generation_prompt(index, before.as_ref())?;
        // The opening of the turn: up to its own text, or all of it.
        let from = match (turn, said) {
            (Some(turn), _) => turn.start,
            (None, Some(said)) => self.end_of_text_before(said.start),
            (None, None) => return Err(self.ambiguous(index, "the template writes nothing of it")),
        };
        let to = match (said, turn) {
            (Some(said), _) => said.start,
            (None, Some(turn)) => turn.end,
            (None, None) => from,
        };
        let opening = &self.whole.text[from..to];
        if let Some(at) = opening.find(&prompt).filter(|_| !prompt.is_empty()) {
            return Ok(from + at + prompt.len());
        }
        // The blanks around it may differ.
        let (trimmed, blanks) = (prompt.trim(), &prompt[prompt.trim_end().len()..]);
        if let Some(at) = opening.find(trimmed).filter(|_| !trimmed.is_empty()) {
            let rest = &opening[at + trimmed.len()..];
            if blanks.is_empty() || rest.is_empty() || rest.starts_with(char::is_whitespace) {
                return Ok(to - rest.len() + common_prefix(rest, blanks));
            }
        }
        let common = whole_pieces(&prompt, common_prefix(opening, &prompt));
        if common > 0 || opening.trim().is_empty() || prompt.is_empty() {
            return Ok(from + common);
        }
        let reason = format!("the template opens it with {opening:?}, its generation prompt is {prompt:?}");
        Err(self.ambiguous(index, reason))
    }

    /// Where a turn ends.
    fn end(&self, index: usize, turn: Option<&Range<usize>>, said: Option<&Range<usize>>) -> Result<usize, DataError> {
        let length = self.whole.text.len();
        if index + 1 == self.messages().len() {
            return Ok(length);
        }
        let so_far = self.render_first(index + 1, false);
        if let Some(so_far) = &so_far
            && self.whole.text.starts_with(&so_far.text)
            && turn.is_none_or(|turn| so_far.text.len() >= turn.end)
            && said.is_none_or(|said| so_far.text.len() >= said.end)
        {
            return Ok(so_far.text.len());
        }
        if let Some(turn) = turn {
            return Ok(turn.end);
        }
        // What the template writes after the last text of the message, if it comes after it in the whole text too.
        if let (Some(said), Some(so_far)) = (said, &so_far) {
            let layout = Layout::new(so_far, index + 1);
            if let Some(last) = layout.said_within(index, &(0..so_far.text.len())) {
                let ending = &so_far.text[last.end..];
                if self.whole.text[said.end..].starts_with(ending) {
                    return Ok(said.end + ending.len());
                }
            }
        }
        Err(self.ambiguous(index, "the template writes it otherwise if more messages follow"))
    }

    /// The end of the last text of any message before `at`.
    fn end_of_text_before(&self, at: usize) -> usize {
        let ends = self.whole.said.iter().flatten().map(|said| said.end);
        ends.filter(|end| *end <= at).max().unwrap_or(0)
    }

    /// The text of the first `count` messages, if the template can render them alone.
    fn render_first(&self, count: usize, add_generation_prompt: bool) -> Option<Rendered> {
        self.template.render_marked(&self.conversation.first(count), add_generation_prompt).ok()
    }

    fn render_before(&self, index: usize, add_generation_prompt: bool) -> Option<Rendered> {
        self.render_first(index, add_generation_prompt)
    }

    /// What the template writes for the assistant to go on: after the messages before the one at `index`, or after a question.
    fn generation_prompt(&self, index: usize, before: Option<&Rendered>) -> Result<String, DataError> {
        let question =
            Conversation { messages: vec![Message::new("user", "?")], variables: self.conversation.variables.clone() };
        let (with, without, messages) = match before {
            Some(with) => (with.clone(), self.render_before(index, false), index),
            None => {
                let with = self.template.render_marked(&question, true)?;
                (with, self.template.render_marked(&question, false).ok(), 1)
            }
        };
        let Some(without) = without else {
            return Err(self.ambiguous(index, "the template does not render the messages before it"));
        };
        if let Some(prompt) = with.text.strip_prefix(&without.text) {
            return Ok(prompt.to_owned());
        }
        let layout = Layout::new(&with, messages);
        let end = layout
            .last_turn_end()
            .filter(|end| without.text.as_bytes().get(..*end) == with.text.as_bytes().get(..*end));
        let start = end.unwrap_or_else(|| whole_pieces(&with.text, common_prefix(&with.text, &without.text)));
        Ok(with.text[start..].to_owned())
    }

    /// Refuses a span that has text of other messages, or not all text of its turn.
    fn check(&self, index: usize, span: &Range<usize>, last_end: usize) -> Result<(), DataError> {
        if span.start < last_end {
            return Err(self.ambiguous(index, "it overlaps the turn before it"));
        }
        for (other, said) in self.whole.said.iter().enumerate() {
            if other != index && said.iter().any(|said| overlap(said, span)) {
                return Err(self.ambiguous(index, format!("the template writes text of message {} into it", other + 1)));
            }
        }
        let turn = self.whole.turn(index).unwrap_or(0..self.whole.text.len());
        let mut own = self.whole.said[index].iter().filter(|said| overlap(said, &turn));
        if own.any(|said| said.end > span.end || said.end <= span.start) {
            return Err(self.ambiguous(index, "the template writes a part of it before its prompt or after its end"));
        }
        Ok(())
    }
}

/// Length of the common beginning of two texts, in bytes.
fn common_prefix(left: &str, right: &str) -> usize {
    let same = left.chars().zip(right.chars()).take_while(|(left, right)| left == right);
    same.map(|(c, _)| c.len_utf8()).sum()
}

/// The largest length up to `length` at which a prompt is not cut inside of a word, or inside of a tag with what follows it.
fn whole_pieces(prompt: &str, length: usize) -> usize {
    let opens_tag = |rest: &str| rest.starts_with(['<', '[', '{']);
    let is_end = length == prompt.len() || opens_tag(&prompt[length..]);
    match prompt[..length].rfind(['<', '[', '{']) {
        _ if is_end => length,
        // Inside of a tag, or in the text after one: the tag opens what the other text has not.
        Some(tag) if tag > 0 => tag,
        _ => prompt[..length].trim_end_matches(|c: char| c.is_alphanumeric() || c == '_').len(),
    }
}
