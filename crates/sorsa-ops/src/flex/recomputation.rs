//! Results that are cheap to compute again: a norm, a gated unit. burn's graph holds how to compute them instead of
//! their values; what needs them in the backward pass asks for them there.
//!
//! This is burn's own mechanism of memory-bound operations. Its switch, a device's checkpointing strategy, is for all
//! operations or none, and sums along a residual stream, each formed again from all sums before it, gain nothing. So
//! these operations take part whatever the switch says, and no others do.

use std::fmt::Debug;

use burn::backend::Flex;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
use burn::backend::autodiff::ops::{Backward, OpsKind};

use super::storage::{Tracked, Values};

/// An operation of two operands whose result need not be kept.
pub(super) trait Again: Debug + Send + 'static {
    /// The result.
    fn forward(&self, a: Values, b: Values) -> Values;
}

/// Where an operand is found in the backward pass: at its node, or, for one without gradients, here.
#[derive(Debug)]
enum Operand {
    Node(NodeId),
    Values(Values),
}

#[derive(Debug)]
struct Retro<A> {
    operands: [Operand; 2],
    again: A,
}

#[cfg(test)]
thread_local! {
    /// Results of this thread that were computed again.
    pub(super) static COUNT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl<A: Again> RetroForward for Retro<A> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        #[cfg(test)]
        COUNT.set(COUNT.get() + 1);
        let [a, b] = self.operands.each_ref().map(|operand| match operand {
            Operand::Node(node) => states.get_state::<Values>(node),
            Operand::Values(values) => values.clone(),
        });
        states.save(out_node, self.again.forward(a, b));
    }
}

/// Prepares `backward` of `operands`, whose result the graph does not keep.
pub(super) fn prepare<B: Backward<Flex, 2>>(
    backward: B,
    operands: [&Tracked; 2],
    again: impl Again,
) -> OpsKind<B, Flex, B::State, BalancedCheckpointing, 2> {
    let prepared = backward.prepare::<BalancedCheckpointing>(operands.map(|operand| operand.node()));
    let tracked = operands.into_iter().filter(|operand| operand.is_tracked());
    if tracked.clone().next().is_none() {
        // Not in the graph: there would be no one to ask.
        return prepared.compute_bound().stateful();
    }
    let operands = operands.map(|operand| match operand.is_tracked() {
        true => Operand::Node(operand.node().id()),
        false => Operand::Values(operand.clone().into_primitive()),
    });
    prepared.memory_bound().retro_forward(Retro { operands, again }).parents(tracked).stateful()
}
