//! What the fused forms share: flex tensors as the kernels' views, and nodes of the autodiff graph.

pub(crate) mod recomputation;
pub(crate) mod rounding;
pub(crate) mod tensors;

#[cfg(test)]
mod tests;
