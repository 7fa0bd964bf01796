//! A small language for sentence patterns, so that the grammar of corpus and task is data.
//!
//! | pattern | becomes |
//! |---|---|
//! | `(a\|b)` | one of the alternatives, drawn |
//! | `<gave/gives>` | the first in a scene of the past, the second in one of the present |
//! | `{he}` | the text of a slot |
//! | `{a thing}` | the number of slot `a` and the noun of slot `thing`, agreeing: `1 apple`, `2 apples` |
//! | `{a more thing}` | the same with words between: `1 more apple` |
//!
//! A slot of an equation reads as the equation, and a noun after it agrees with the result. Sentences are
//! capitalised afterwards, so `{he}` may open one.

use super::draw::Draw;
use super::equation::Equation;
use super::lexicon::{BOXES, COIN, Noun, PEOPLE, PLACES, THINGS};

enum Slot {
    Text(String),
    Number(i64),
    Noun(Noun),
    Equation(Equation),
}

/// The people and things of a text: the slots that patterns refer to.
pub(super) struct Scene {
    slots: Vec<(&'static str, Slot)>,
    present: bool,
}

impl Scene {
    /// Draws three people, a kind of thing, a kind of box and two places.
    pub fn draw(draw: &mut Draw, present: bool) -> Self {
        let mut scene = Self { slots: Vec::new(), present };
        let [hero, friend, third] = draw.some_of(&PEOPLE);
        let [thing] = draw.some_of(&THINGS);
        let [container] = draw.some_of(&BOXES);
        let [place, elsewhere] = draw.some_of(&PLACES);
        let pronouns = if hero.she { ["she", "her", "her"] } else { ["he", "him", "his"] };
        for (key, pronoun) in ["he", "him", "his"].into_iter().zip(pronouns) {
            scene.text(key, pronoun);
        }
        scene.text("N", hero.name);
        scene.text("F", friend.name);
        scene.text("T", third.name);
        scene.thing(thing);
        scene.container(container);
        scene.noun("coin", COIN);
        scene.text("place", place);
        scene.text("elsewhere", elsewhere);
        scene
    }

    /// Sets the slots `{.. thing}`, `{one_thing}` and `{things}`.
    pub fn thing(&mut self, noun: Noun) {
        self.noun("thing", noun);
        self.text("one_thing", noun.one);
        self.text("things", noun.many);
    }

    /// Sets the slots `{.. box}`, `{one_box}` and `{boxes}`.
    fn container(&mut self, noun: Noun) {
        self.noun("box", noun);
        self.text("one_box", noun.one);
        self.text("boxes", noun.many);
    }

    pub fn text(&mut self, key: &'static str, text: impl ToString) {
        self.set(key, Slot::Text(text.to_string()));
    }

    pub fn number(&mut self, key: &'static str, number: i64) {
        self.set(key, Slot::Number(number));
    }

    pub fn noun(&mut self, key: &'static str, noun: Noun) {
        self.set(key, Slot::Noun(noun));
    }

    pub fn equation(&mut self, key: &'static str, equation: Equation) {
        self.set(key, Slot::Equation(equation));
    }

    fn set(&mut self, key: &'static str, slot: Slot) {
        self.slots.retain(|(k, _)| *k != key);
        self.slots.push((key, slot));
    }

    fn get(&self, key: &str) -> &Slot {
        let found = self.slots.iter().find(|(k, _)| *k == key);
        &found.unwrap_or_else(|| panic!("a pattern names the slot {key:?}, which its scene does not have")).1
    }

    /// Draws one of the patterns and expands it.
    pub fn say_one(&self, draw: &mut Draw, patterns: &[&str]) -> String {
        let pattern = draw.one_of(patterns);
        self.say(draw, pattern)
    }

    /// Expands a pattern, and capitalises each sentence of it.
    ///
    /// # Panics
    /// If the pattern names a slot that the scene does not have. Patterns are part of the program.
    pub fn say(&self, draw: &mut Draw, pattern: &str) -> String {
        let mut text = String::new();
        self.expand(draw, pattern, &mut text);
        capitalise(&text)
    }

    fn expand(&self, draw: &mut Draw, pattern: &str, out: &mut String) {
        let mut rest = pattern;
        while let Some(at) = rest.find(['(', '<', '{']) {
            out.push_str(&rest[..at]);
            let close = match rest.as_bytes()[at] {
                b'(' => ')',
                b'<' => '>',
                _ => '}',
            };
            let Some(length) = rest[at..].find(close) else { panic!("unclosed bracket in the pattern {pattern:?}") };
            let inner = &rest[at + 1..at + length];
            rest = &rest[at + length + 1..];
            match close {
                ')' => {
                    let alternatives: Vec<&str> = inner.split('|').collect();
                    let chosen = draw.one_of(&alternatives);
                    self.expand(draw, chosen, out);
                }
                '>' => {
                    let (past, present) = inner.split_once('/').unwrap_or((inner, inner));
                    out.push_str(if self.present { present } else { past });
                }
                _ => self.fill(inner, out),
            }
        }
        out.push_str(rest);
    }

    fn fill(&self, slot: &str, out: &mut String) {
        let words: Vec<&str> = slot.split(' ').collect();
        let mut count = 0;
        for (i, word) in words.iter().enumerate() {
            if i > 0 {
                out.push(' ');
            }
            if i > 0 && i + 1 < words.len() {
                out.push_str(word);
                continue;
            }
            match self.get(word) {
                Slot::Text(text) => out.push_str(text),
                Slot::Noun(noun) => out.push_str(noun.form(count)),
                Slot::Number(number) => {
                    count = *number;
                    out.push_str(&number.to_string());
                }
                Slot::Equation(equation) => {
                    count = equation.result;
                    out.push_str(&equation.to_string());
                }
            }
        }
    }
}

/// Capitalises every sentence, also one in quotes: `"Where is it?" asks Tom.`
fn capitalise(text: &str) -> String {
    let mut opens = true;
    let mut before = ' ';
    text.chars()
        .map(|c| {
            let shown = if opens { c.to_ascii_uppercase() } else { c };
            let holds_open = c.is_whitespace() || (c == '"' && before.is_whitespace());
            opens = matches!(c, '.' | '?' | '!') || (opens && holds_open);
            before = c;
            shown
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_capitalised_and_what_follows_a_quoted_question_is_not() {
        let text = "\"where is it?\" asks Tom. \"here,\" says Anna. they go.";
        assert_eq!(capitalise(text), "\"Where is it?\" asks Tom. \"Here,\" says Anna. They go.");
    }

    #[test]
    fn nouns_agree_with_numbers_and_with_results_of_equations() {
        let draw = &mut Draw::new(0);
        let mut scene = Scene::draw(draw, true);
        scene.thing(THINGS[6]);
        scene.number("a", 1);
        scene.number("b", 2);
        scene.equation("x", Equation::subtract(9, 8));
        assert_eq!(
            scene.say(draw, "she <had/has> {a more thing} and {b thing}. so {x thing}."),
            "She has 1 more berry and 2 berries. So 9 - 8 = 1 berry."
        );
    }
}
