//! Bounds the work on texts that are much longer than a sequence may be: a tokenizer takes some 400 bytes of memory for each byte
//! of a text.

use crate::{DataError, TextTokenizer};

/// Texts up to this size are made tokens whole.
const SMALL: usize = 1 << 16;

/// The beginning of a text that has more than twice `limit` tokens; the whole text if it has not.
pub(crate) fn beginning<'a>(tokenizer: &TextTokenizer, text: &'a str, limit: usize) -> Result<&'a str, DataError> {
    part(tokenizer, text, limit, |size| &text[..text.floor_char_boundary(size)])
}

/// The end of a text that has more than twice `limit` tokens; the whole text if it has not.
pub(crate) fn ending<'a>(tokenizer: &TextTokenizer, text: &'a str, limit: usize) -> Result<&'a str, DataError> {
    part(tokenizer, text, limit, |size| &text[text.ceil_char_boundary(text.len() - size)..])
}

/// Tries ever larger parts. Twice the limit, since tokens at the border of a part are others in the whole text.
fn part<'a>(
    tokenizer: &TextTokenizer,
    text: &'a str,
    limit: usize,
    cut: impl Fn(usize) -> &'a str,
) -> Result<&'a str, DataError> {
    let mut size = limit.saturating_mul(16).max(SMALL);
    while size < text.len() / 2 {
        let part = cut(size);
        if tokenizer.encode(part)?.len() / 2 > limit {
            return Ok(part);
        }
        size = size.saturating_mul(4);
    }
    Ok(text)
}

/// The tokens of a text of any length. A long text is cut into pieces at line ends that no token spans, so that the tokens are
/// those of the whole text. If there are no such line ends, the text stays whole.
pub(crate) fn encode_in_pieces(tokenizer: &TextTokenizer, text: &str) -> Result<Vec<u32>, DataError> {
    const PIECE: usize = 1 << 20;
    let (mut ids, mut rest) = (Vec::new(), text);
    while rest.len() > 4 * PIECE {
        let Some(end) = seam(tokenizer, rest, PIECE)? else { break };
        ids.extend(tokenizer.encode(&rest[..end])?);
        rest = &rest[end..];
    }
    ids.extend(tokenizer.encode(rest)?);
    Ok(ids)
}

/// A place behind `from` where a line begins and the tokens before and after it are the same whether the text is cut there or
/// not.
fn seam(tokenizer: &TextTokenizer, text: &str, from: usize) -> Result<Option<usize>, DataError> {
    /// Bytes on each side that are compared.
    const AROUND: usize = 512;
    const TRIES: usize = 8;
    let from = text.ceil_char_boundary(from);
    let begins = |at: &usize| text[*at..].starts_with(|next: char| next.is_alphabetic());
    for at in text[from..].match_indices('\n').map(|(at, _)| from + at + 1).filter(begins).take(TRIES) {
        let before = &text[text.floor_char_boundary(at - AROUND)..at];
        let after = &text[at..text.ceil_char_boundary((at + AROUND).min(text.len()))];
        let together = tokenizer.encode(&text[at - before.len()..at + after.len()])?;
        if together == [tokenizer.encode(before)?, tokenizer.encode(after)?].concat() {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::bytes;

    #[test]
    fn parts_have_more_than_twice_the_limit_or_are_the_whole_text() {
        let text = "é12 word ".repeat(100_000);
        let tokenizer = bytes();
        for part in [beginning(&tokenizer, &text, 100).unwrap(), ending(&tokenizer, &text, 100).unwrap()] {
            assert!(part.len() <= SMALL + 4 && tokenizer.encode(part).unwrap().len() > 200, "{}", part.len());
        }
        assert!(text.starts_with(beginning(&tokenizer, &text, 100).unwrap()));
        assert!(text.ends_with(ending(&tokenizer, &text, 100).unwrap()));
        assert_eq!(beginning(&tokenizer, &text, usize::MAX).unwrap().len(), text.len());
        assert_eq!(ending(&tokenizer, "short", 1).unwrap(), "short");
    }

    #[test]
    fn pieces_have_the_tokens_of_the_whole_text() {
        let text = "One line of text, and more.\n\n  indented é\nnext ".repeat(120_000);
        let tokenizer = bytes();
        assert!(seam(&tokenizer, &text, 1 << 20).unwrap().is_some());
        assert_eq!(encode_in_pieces(&tokenizer, &text).unwrap(), tokenizer.encode(&text).unwrap());
        assert!(seam(&tokenizer, &"a".repeat(3 << 20), 1 << 20).unwrap().is_none());
    }
}
