//! Splits a template into text and tokens, with jinja2's rules of blanks: `trim_blocks`, `lstrip_blocks`, `-` and `+` in tags.

use super::Fault;

/// A token and its line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) line: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum TokenKind {
    /// Text outside of tags.
    Text(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

const OPERATORS: [&str; 25] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",",
];

/// Splits `source` into tokens.
pub(super) fn tokenize(source: &str) -> Result<Vec<Token>, Fault> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { source, at: 0, line: 1, line_starting: true, tokens: Vec::new() };
    while lexer.at < source.len() {
        lexer.text_and_tag()?;
    }
    lexer.push(TokenKind::End);
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    source: &'a str,
    /// Byte that comes next.
    at: usize,
    line: u32,
    /// Whether what came last ended with a line break.
    line_starting: bool,
    tokens: Vec<Token>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, kind: TokenKind) {
        self.tokens.push(Token { kind, line: self.line });
    }

    fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::new(format!("syntax error: {}", message.into())).at(self.line)
    }

    fn advance(&mut self, bytes: usize) {
        let passed = &self.rest()[..bytes];
        self.line += passed.matches('\n').count() as u32;
        if !passed.is_empty() {
            self.line_starting = passed.ends_with('\n');
        }
        self.at += bytes;
    }

    /// Reads the text up to the next tag, and that tag.
    fn text_and_tag(&mut self) -> Result<(), Fault> {
        let rest = self.rest();
        let opens = |at: &usize| matches!(rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#'));
        let begin = rest.match_indices('{').map(|(at, _)| at).find(opens);
        let Some(begin) = begin else {
            self.push(TokenKind::Text(rest.to_owned()));
            self.advance(rest.len());
            return Ok(());
        };
        let open = &rest[begin..begin + 2];
        let sign = rest[begin + 2..].chars().next().filter(|sign| matches!(sign, '-' | '+'));
        // A `+` in front of a variable is its sign.
        let sign = sign.filter(|&sign| sign == '-' || open != "{{");
        let text = self.strip_before(&rest[..begin], open, sign);
        if !text.is_empty() {
            self.push(TokenKind::Text(text.to_owned()));
        }
        self.advance(begin + 2 + sign.map_or(0, char::len_utf8));
        match open {
            "{#" => self.comment(),
            "{%" if self.is_raw_tag() => self.raw(),
            "{%" => self.tag(TokenKind::BlockBegin, TokenKind::BlockEnd, "%}"),
            _ => self.tag(TokenKind::VariableBegin, TokenKind::VariableEnd, "}}"),
        }
    }

    /// The text before a tag without the blanks that the tag takes.
    fn strip_before<'t>(&self, text: &'t str, open: &str, sign: Option<char>) -> &'t str {
        match sign {
            Some('-') => text.trim_end_matches(is_python_space),
            Some(_) => text,
            None if open == "{{" => text,
            None => {
                let line = text.rfind('\n').map_or(0, |at| at + 1);
                let blank = text[line..].chars().all(is_python_space);
                if blank && (line > 0 || self.line_starting) { &text[..line] } else { text }
            }
        }
    }

    fn skip_spaces(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start_matches(is_python_space).len());
    }

    fn comment(&mut self) -> Result<(), Fault> {
        let Some(end) = self.rest().find("#}") else {
            return Err(self.fault("missing end of comment tag"));
        };
        let sign = self.rest()[..end].chars().next_back().filter(|sign| matches!(sign, '-' | '+'));
        self.advance(end + 2);
        self.after_block(sign);
        Ok(())
    }

    /// Takes the blanks after the end of a block or a comment.
    fn after_block(&mut self, sign: Option<char>) {
        match sign {
            Some('-') => self.skip_spaces(),
            Some(_) => {}
            None => self.advance(usize::from(self.rest().starts_with('\n'))),
        }
    }

    /// Whether the tag that was opened is `raw`.
    fn is_raw_tag(&self) -> bool {
        let Some(rest) = self.rest().trim_start().strip_prefix("raw") else { return false };
        let rest = rest.trim_start();
        rest.starts_with("%}") || rest.starts_with("-%}")
    }

    fn raw(&mut self) -> Result<(), Fault> {
        let end = self.rest().find("%}").unwrap_or_default();
        let strips = self.rest()[..end].ends_with('-');
        self.advance(end + 2);
        if strips {
            self.skip_spaces();
        }
        let mut from = 0;
        loop {
            let Some(open) = self.rest()[from..].find("{%").map(|open| open + from) else {
                return Err(self.fault("missing end of raw tag"));
            };
            from = open + 2;
            let inside = &self.rest()[from..];
            let sign = inside.chars().next().filter(|sign| matches!(sign, '-' | '+'));
            let after = inside[sign.map_or(0, char::len_utf8)..].trim_start();
            let Some(after) = after.strip_prefix("endraw") else { continue };
            let after = after.trim_start();
            let end_sign = after.chars().next().filter(|sign| matches!(sign, '-' | '+'));
            if !after[end_sign.map_or(0, char::len_utf8)..].starts_with("%}") {
                continue;
            }
            let text = self.strip_before(&self.rest()[..open], "{%", sign);
            self.push(TokenKind::Text(text.to_owned()));
            let end = self.rest().len() - after.len() + end_sign.map_or(0, char::len_utf8) + 2;
            self.advance(end);
            self.after_block(end_sign);
            return Ok(());
        }
    }

    /// Reads the tokens of a tag up to its end.
    fn tag(&mut self, begin: TokenKind, end: TokenKind, close: &str) -> Result<(), Fault> {
        self.push(begin);
        let mut open_brackets: Vec<&str> = Vec::new();
        loop {
            self.skip_spaces();
            let rest = self.rest();
            if open_brackets.is_empty() {
                let sign = rest.chars().next().filter(|&sign| sign == '-' || (sign == '+' && close == "%}"));
                let sign = sign.filter(|_| rest[1..].starts_with(close));
                if sign.is_some() || rest.starts_with(close) {
                    self.push(end);
                    self.advance(close.len() + sign.map_or(0, char::len_utf8));
                    match close {
                        "%}" => self.after_block(sign),
                        _ if sign.is_some() => self.skip_spaces(),
                        _ => {}
                    }
                    return Ok(());
                }
            }
            let Some(first) = rest.chars().next() else {
                return Err(self.fault(format!("unexpected end of template, expected `{close}`")));
            };
            match first {
                '0'..='9' => self.number()?,
                '\'' | '"' => self.string(first)?,
                _ if first == '_' || first.is_alphabetic() => {
                    let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                    self.push(TokenKind::Name(rest[..end].to_owned()));
                    self.advance(end);
                }
                _ => {
                    let Some(operator) = OPERATORS.into_iter().find(|operator| rest.starts_with(operator)) else {
                        return Err(self.fault(format!("unexpected character {first:?}")));
                    };
                    self.bracket(operator, &mut open_brackets)?;
                    self.push(TokenKind::Operator(operator));
                    self.advance(operator.len());
                }
            }
        }
    }

    fn bracket(&self, operator: &'static str, open: &mut Vec<&'static str>) -> Result<(), Fault> {
        match operator {
            "(" => open.push(")"),
            "[" => open.push("]"),
            "{" => open.push("}"),
            ")" | "]" | "}" => match open.pop() {
                Some(expected) if expected == operator => {}
                Some(expected) => return Err(self.fault(format!("unexpected `{operator}`, expected `{expected}`"))),
                None => return Err(self.fault(format!("unexpected `{operator}`"))),
            },
            _ => {}
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Fault> {
        let rest = self.rest();
        let digits = |from: usize| {
            let length = rest[from..].find(|c: char| !c.is_ascii_digit() && c != '_');
            length.map_or(rest.len(), |length| from + length)
        };
        let prefix = rest.get(..2).unwrap_or_default().to_ascii_lowercase();
        if let Some(radix) = [("0b", 2), ("0o", 8), ("0x", 16)].iter().find(|(name, _)| *name == prefix) {
            let end = rest[2..].find(|c: char| !c.is_ascii_hexdigit() && c != '_').map_or(rest.len(), |end| end + 2);
            let value = i128::from_str_radix(&rest[2..end].replace('_', ""), radix.1);
            let value = value.map_err(|_| self.fault(format!("invalid number {}", &rest[..end])))?;
            self.push(TokenKind::Int(value));
            self.advance(end);
            return Ok(());
        }
        let mut end = digits(0);
        let mut is_float = false;
        let digit_at = |at: usize| rest[at..].starts_with(|c: char| c.is_ascii_digit());
        if rest[end..].starts_with('.') && digit_at(end + 1) {
            is_float = true;
            end = digits(end + 1);
        }
        if rest[end..].starts_with(['e', 'E']) {
            let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
            if digit_at(end + 1 + sign) {
                is_float = true;
                end = digits(end + 1 + sign);
            }
        }
        let text = rest[..end].replace('_', "");
        let token =
            if is_float { text.parse().ok().map(TokenKind::Float) } else { text.parse().ok().map(TokenKind::Int) };
        self.push(token.ok_or_else(|| self.fault(format!("invalid number {text}")))?);
        self.advance(end);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<(), Fault> {
        let rest = &self.rest()[1..];
        let mut value = String::new();
        let mut chars = rest.chars();
        while let Some(c) = chars.next() {
            if c == quote {
                self.push(TokenKind::Str(value));
                self.advance(1 + rest.len() - chars.as_str().len());
                return Ok(());
            }
            if c != '\\' {
                value.push(c);
                continue;
            }
            let Some(escape) = chars.next() else { break };
            let mut code = |length: usize| {
                let digits: String = chars.as_str().chars().take(length).collect();
                let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == length);
                chars = chars.as_str()[digits.len()..].chars();
                code.and_then(char::from_u32)
            };
            let decoded = match escape {
                '\n' => continue,
                '\\' | '\'' | '"' => Some(escape),
                'n' => Some('\n'),
                't' => Some('\t'),
                'r' => Some('\r'),
                'a' => Some('\x07'),
                'b' => Some('\x08'),
                'f' => Some('\x0c'),
                'v' => Some('\x0b'),
                'x' => code(2),
                'u' => code(4),
                'U' => code(8),
                'N' => None,
                '0'..='7' => {
                    let mut octal = escape.to_digit(8).unwrap_or_default();
                    let more = chars.as_str().chars().take(2).take_while(|c| c.is_digit(8)).count();
                    for _ in 0..more {
                        octal = octal * 8 + chars.next().and_then(|c| c.to_digit(8)).unwrap_or_default();
                    }
                    char::from_u32(octal)
                }
                _ => {
                    value.push('\\');
                    Some(escape)
                }
            };
            value.push(decoded.ok_or_else(|| self.fault("a string has an escape that is no character"))?);
        }
        Err(self.fault("unexpected end of string"))
    }
}

/// What Python's `str.isspace` and `\s` call white space.
pub(super) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}
