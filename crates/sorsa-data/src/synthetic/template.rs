//! The templates of the task, as data. A new one is a new entry.

use super::equation::Op::{self, Add, Multiply, Subtract};

/// Template of a kind of problem: the given numbers, the question, and the steps to the answer.
pub(super) struct Template {
    pub name: &'static str,
    /// Slots of the given numbers, each with the range of its draws.
    pub given: &'static [(&'static str, i64, i64)],
    pub query: &'static str,
    pub steps: &'static [Step],
}

/// `result = left op right`, over given numbers and earlier results.
pub(super) struct Step {
    pub result: &'static str,
    pub left: &'static str,
    pub op: Op,
    pub right: &'static str,
    /// Pattern of the line in the response. The slot `result` expands to the whole equation.
    pub says: &'static str,
}

const fn step(result: &'static str, (left, op, right): (&'static str, Op, &'static str), says: &'static str) -> Step {
    Step { result, left, op, right, says }
}

pub(super) const TEMPLATES: [Template; 14] = [
    Template {
        name: "get_more",
        given: &[("a", 5, 90), ("b", 2, 60)],
        query: "{N} has {a thing}. (Then {he} finds {b more thing} {place}|{F} gives {him} {b more thing}|{place} \
                {he} gets {b more thing}). \
                How many {things} does {N} have now?",
        steps: &[step("x", ("a", Add, "b"), "{N} has {x thing}.")],
    },
    Template {
        name: "give_away",
        given: &[("a", 10, 99), ("b", 2, 70)],
        query: "{N} has {a thing}. ({he} gives {b} of them to {F}|{he} loses {b} of them {place}|{he} sells {b} of \
                them {place}). \
                How many {things} does {N} have left?",
        steps: &[step("x", ("a", Subtract, "b"), "{N} has {x thing} left.")],
    },
    Template {
        name: "together",
        given: &[("a", 3, 80), ("b", 3, 80)],
        query: "{N} has {a thing} and {F} has {b thing}. How many {things} do they have together?",
        steps: &[step("x", ("a", Add, "b"), "Together they have {x thing}.")],
    },
    Template {
        name: "difference",
        given: &[("a", 10, 99), ("b", 2, 80)],
        query: "{N} has {a thing} and {F} has {b thing}. How many more {things} does {N} have than {F}?",
        steps: &[step("x", ("a", Subtract, "b"), "{N} has {x more thing} than {F}.")],
    },
    Template {
        name: "some_more_than",
        given: &[("a", 5, 40), ("b", 2, 30)],
        query: "{N} has {a thing}. {F} has {b more thing} than {N}. How many {things} do they have together?",
        steps: &[
            step("x", ("a", Add, "b"), "{F} has {x thing}."),
            step("y", ("a", Add, "x"), "Together they have {y thing}."),
        ],
    },
    Template {
        name: "some_fewer_than",
        given: &[("a", 10, 60), ("b", 2, 40)],
        query: "{N} has {a thing}. {F} has {b} fewer {things} than {N}. How many {things} do they have together?",
        steps: &[
            step("x", ("a", Subtract, "b"), "{F} has {x thing}."),
            step("y", ("a", Add, "x"), "Together they have {y thing}."),
        ],
    },
    Template {
        name: "get_then_give",
        given: &[("a", 5, 70), ("b", 3, 50), ("c", 2, 60)],
        query: "{N} has {a thing}. {he} (finds|buys) {b more thing} {place}. Then {he} gives {c} of them to {F}. \
                How many {things} does {N} have left?",
        steps: &[
            step("x", ("a", Add, "b"), "First {N} has {x thing}."),
            step("y", ("x", Subtract, "c"), "Then {he} has {y thing} left."),
        ],
    },
    Template {
        name: "lose_get_give",
        given: &[("a", 20, 90), ("b", 2, 40), ("c", 3, 50), ("d", 2, 40)],
        query: "{N} has {a thing}. {he} loses {b} of them {place}. Then {F} gives {him} {c more thing}. \
                {N} gives {d} of them to {T}. How many {things} does {N} have left?",
        steps: &[
            step("x", ("a", Subtract, "b"), "First {N} has {x thing}."),
            step("y", ("x", Add, "c"), "Then {he} has {y thing}."),
            step("z", ("y", Subtract, "d"), "Then {he} has {z thing} left."),
        ],
    },
    Template {
        name: "three_people",
        given: &[("a", 3, 40), ("b", 3, 40), ("c", 3, 40)],
        query: "{N} has {a thing}, {F} has {b thing} and {T} has {c thing}. How many {things} do they have together?",
        steps: &[
            step("x", ("a", Add, "b"), "{N} and {F} have {x thing}."),
            step("y", ("x", Add, "c"), "Together they have {y thing}."),
        ],
    },
    Template {
        name: "need_more",
        given: &[("a", 3, 50), ("b", 3, 40), ("c", 20, 99)],
        query: "{N} wants {c thing}. {he} has {a thing}, and {F} gives {him} {b more thing}. \
                How many more {things} does {N} need?",
        steps: &[
            step("x", ("a", Add, "b"), "{N} has {x thing}."),
            step("y", ("c", Subtract, "x"), "{he} needs {y more thing}."),
        ],
    },
    Template {
        name: "change",
        given: &[("a", 3, 50), ("b", 3, 45), ("c", 20, 99)],
        query: "{N} has {c} coins. {he} buys a (ball|book|toy) for {a} coins and a (cup|pen|key) for {b} coins. \
                How many coins does {N} have left?",
        steps: &[
            step("x", ("a", Add, "b"), "{N} pays {x coin}."),
            step("y", ("c", Subtract, "x"), "{he} has {y coin} left."),
        ],
    },
    Template {
        name: "boxes_and_more",
        given: &[("n", 2, 9), ("k", 2, 9), ("a", 2, 60)],
        query: "{N} has {n box} with {k thing} in each {one_box}. {F} gives {him} {a more thing}. \
                How many {things} does {N} have now?",
        steps: &[
            step("x", ("n", Multiply, "k"), "The {boxes} hold {x thing}."),
            step("y", ("x", Add, "a"), "Now {N} has {y thing}."),
        ],
    },
    Template {
        name: "boxes_less",
        given: &[("n", 2, 9), ("k", 2, 9), ("a", 2, 60)],
        query: "{N} has {n box} with {k thing} in each {one_box}. {he} gives {a} of the {things} to {F}. \
                How many {things} does {N} have left?",
        steps: &[
            step("x", ("n", Multiply, "k"), "The {boxes} hold {x thing}."),
            step("y", ("x", Subtract, "a"), "{N} has {y thing} left."),
        ],
    },
    Template {
        name: "two_kinds_of_boxes",
        given: &[("n", 2, 9), ("k", 2, 9), ("m", 2, 9), ("j", 2, 9)],
        query: "{N} has {n box} with {k thing} in each {one_box}. {F} has {m box} with {j thing} in each {one_box}. \
                How many {things} do they have together?",
        steps: &[
            step("x", ("n", Multiply, "k"), "{N} has {x thing}."),
            step("y", ("m", Multiply, "j"), "{F} has {y thing}."),
            step("z", ("x", Add, "y"), "Together they have {z thing}."),
        ],
    },
];
