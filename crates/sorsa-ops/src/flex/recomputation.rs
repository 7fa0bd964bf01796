//! Results that the backward pass computes again instead of keeping them: a norm, a gated unit. burn's graph holds how to compute
//! such a result; an operation that needs it in the backward pass asks for it there.
//!
//! This is burn's own mechanism of memory-bound operations. Its switch, a device's checkpointing strategy, covers all operations
//! or none. Sums along a residual stream gain nothing from it, because each would be computed again from all sums before it. So
//! these operations use the mechanism whatever the switch says, and no other operations do.

use std::fmt::Debug;

use burn::backend::Flex;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
use burn::backend::autodiff::ops::{Backward, OpsKind};

use super::tensors::{FlexTensor, Tracked};

/// An operation whose result the graph does not keep.
pub(crate) trait Recompute<const N: usize>: Debug + Send + 'static {
    /// Computes the result.
    fn forward(&self, operands: [FlexTensor; N]) -> FlexTensor;
}

/// Prepares the node of an operation with the backward pass `backward`, whose result the graph does not keep.
pub(crate) fn prepare<B: Backward<Flex, N>, const N: usize>(
    backward: B,
    operands: [&Tracked; N],
    recompute: impl Recompute<N>,
) -> OpsKind<B, Flex, B::State, BalancedCheckpointing, N> {
    let prepared = backward.prepare::<BalancedCheckpointing>(operands.map(|operand| operand.node()));
    let tracked = operands.into_iter().filter(|operand| operand.is_tracked());
    if tracked.clone().next().is_none() {
        // The result is not in the graph, so nothing can ask for it.
        return prepared.compute_bound().stateful();
    }
    let operands = operands.map(|operand| match operand.is_tracked() {
        true => Operand::Node(operand.node().id()),
        false => Operand::Constant(operand.clone().into_primitive()),
    });
    prepared.memory_bound().retro_forward(Recomputation { operands, recompute }).parents(tracked).stateful()
}

#[cfg(test)]
thread_local! {
    /// Results that this thread computed again.
    pub(crate) static RECOMPUTATIONS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// An operand in the backward pass.
#[derive(Debug)]
enum Operand {
    /// The graph holds it at this node.
    Node(NodeId),
    /// It has no gradient.
    Constant(FlexTensor),
}

#[derive(Debug)]
struct Recomputation<R, const N: usize> {
    operands: [Operand; N],
    recompute: R,
}

impl<R: Recompute<N>, const N: usize> RetroForward for Recomputation<R, N> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        #[cfg(test)]
        RECOMPUTATIONS.set(RECOMPUTATIONS.get() + 1);
        let operands = self.operands.each_ref().map(|operand| match operand {
            Operand::Node(node) => states.get_state::<FlexTensor>(node),
            Operand::Constant(values) => values.clone(),
        });
        states.save(out_node, self.recompute.forward(operands));
    }
}
