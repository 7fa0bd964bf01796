//! The words of the corpus and the task.
//!
//! The list is short on purpose: a vocabulary of a few hundred tokens then has one token for most of these words, and
//! sentences of the task have few tokens.

/// A person, and whether the pronoun is "she".
#[derive(Clone, Copy)]
pub(super) struct Person {
    pub name: &'static str,
    pub she: bool,
}

/// A countable thing: singular, plural.
#[derive(Clone, Copy)]
pub(super) struct Noun {
    pub one: &'static str,
    pub many: &'static str,
}

impl Noun {
    /// Singular or plural, for `count` things.
    pub fn form(&self, count: i64) -> &'static str {
        if count == 1 { self.one } else { self.many }
    }
}

const fn he(name: &'static str) -> Person {
    Person { name, she: false }
}

const fn she(name: &'static str) -> Person {
    Person { name, she: true }
}

const fn thing(one: &'static str, many: &'static str) -> Noun {
    Noun { one, many }
}

pub(super) const PEOPLE: [Person; 20] = [
    he("Tom"),
    she("Anna"),
    he("Ben"),
    she("Mia"),
    he("Sam"),
    she("Lily"),
    he("Max"),
    she("Emma"),
    he("Leo"),
    she("Ella"),
    he("Jack"),
    she("Rosa"),
    he("Tim"),
    she("Nina"),
    he("Paul"),
    she("Eva"),
    he("Omar"),
    she("Zoe"),
    he("Adam"),
    she("Ruth"),
];

pub(super) const COIN: Noun = thing("coin", "coins");

pub(super) const THINGS: [Noun; 20] = [
    thing("apple", "apples"),
    thing("pear", "pears"),
    thing("plum", "plums"),
    thing("egg", "eggs"),
    thing("nut", "nuts"),
    thing("cookie", "cookies"),
    thing("berry", "berries"),
    thing("ball", "balls"),
    thing("book", "books"),
    thing("stone", "stones"),
    thing("shell", "shells"),
    thing("card", "cards"),
    thing("bead", "beads"),
    thing("pen", "pens"),
    thing("toy", "toys"),
    thing("cup", "cups"),
    thing("flower", "flowers"),
    thing("leaf", "leaves"),
    thing("stamp", "stamps"),
    thing("key", "keys"),
];

pub(super) const BOXES: [Noun; 5] = [
    thing("box", "boxes"),
    thing("bag", "bags"),
    thing("jar", "jars"),
    thing("basket", "baskets"),
    thing("pot", "pots"),
];

pub(super) const ANIMALS: [Noun; 6] = [
    thing("dog", "dogs"),
    thing("cat", "cats"),
    thing("bird", "birds"),
    thing("duck", "ducks"),
    thing("horse", "horses"),
    thing("hen", "hens"),
];

pub(super) const PLACES: [&str; 10] = [
    "in the garden",
    "at school",
    "at the market",
    "in the park",
    "by the river",
    "at home",
    "on the farm",
    "in the forest",
    "in the shop",
    "on the beach",
];

pub(super) const COLOURS: [&str; 6] = ["red", "blue", "green", "white", "black", "brown"];

pub(super) const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

pub(super) const TIMES: [&str; 6] =
    ["one day", "in the morning", "after school", "on a sunny day", "on a cold day", "in the evening"];
