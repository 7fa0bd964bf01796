//! Equations over small whole numbers. Corpus and task write them alike: `47 + 28 = 75`.

use std::fmt;

use super::draw::Draw;

/// Operation of an equation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Add,
    Subtract,
    Multiply,
}

/// `left op right = result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Equation {
    pub left: i64,
    pub op: Op,
    pub right: i64,
    pub result: i64,
}

impl Equation {
    pub fn new(left: i64, op: Op, right: i64) -> Self {
        let result = match op {
            Op::Add => left + right,
            Op::Subtract => left - right,
            Op::Multiply => left * right,
        };
        Self { left, op, right, result }
    }

    pub fn add(left: i64, right: i64) -> Self {
        Self::new(left, Op::Add, right)
    }

    pub fn subtract(left: i64, right: i64) -> Self {
        Self::new(left, Op::Subtract, right)
    }

    pub fn multiply(left: i64, right: i64) -> Self {
        Self::new(left, Op::Multiply, right)
    }

    /// Draws a sum or a difference, or once in ten a product of digits. Results are of `0..=200`; of the sums and
    /// differences, six in seven stay within `0..=100`.
    pub fn draw(draw: &mut Draw) -> Self {
        if draw.once_in(10) {
            return Self::multiply(draw.between(1, 9), draw.between(1, 9));
        }
        let whole = match draw.below(14) {
            0 => draw.between(0, 20),
            1 | 2 => draw.between(101, 200),
            _ => draw.between(10, 100),
        };
        // Three-digit wholes are split so that each part has two digits at most.
        let part = if whole > 100 { draw.between(whole - 99, 99.min(whole)) } else { draw.between(0, whole) };
        if draw.once_in(2) { Self::add(part, whole - part) } else { Self::subtract(whole, part) }
    }
}

impl fmt::Display for Equation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let sign = match self.op {
            Op::Add => '+',
            Op::Subtract => '-',
            Op::Multiply => '*',
        };
        write!(f, "{} {sign} {} = {}", self.left, self.right, self.result)
    }
}
