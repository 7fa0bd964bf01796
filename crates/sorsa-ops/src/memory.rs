//! The memory of an operation in a training step. Each operation states its own in a function `<operation>_memory` beside it;
//! whoever estimates a step sums them.

use std::iter::Sum;
use std::ops::{Add, Mul};

/// The memory of one call of an operation in a training step, in bytes. Buffers of one number a row are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OperationMemory {
    /// Kept from the forward pass for the backward pass, beside weights.
    pub kept: u64,
    /// The largest temporaries of either pass, beside operands, results and gradients.
    pub workspace: u64,
}

impl OperationMemory {
    /// An operation that keeps this many f32 numbers and needs no workspace.
    pub fn keeping(numbers: usize) -> Self {
        Self { kept: 4 * numbers as u64, workspace: 0 }
    }
}

/// Two operations of one step, one after the other.
impl Add for OperationMemory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { kept: self.kept + other.kept, workspace: self.workspace.max(other.workspace) }
    }
}

/// The same operation several times in one step.
impl Mul<u64> for OperationMemory {
    type Output = Self;

    fn mul(self, times: u64) -> Self {
        Self { kept: self.kept * times, workspace: self.workspace }
    }
}

impl Sum for OperationMemory {
    fn sum<I: Iterator<Item = Self>>(operations: I) -> Self {
        operations.fold(Self::default(), Self::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_memory_adds_up_and_workspace_is_the_largest() {
        let [small, large] = [(8, 100), (24, 60)].map(|(kept, workspace)| OperationMemory { kept, workspace });
        let expected = OperationMemory { kept: 40, workspace: 100 };
        assert_eq!(small * 2 + large, expected);
        assert_eq!([small, small, large].into_iter().sum::<OperationMemory>(), expected);
    }
}
