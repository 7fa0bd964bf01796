//! The differentiable operations of a decoder-only transformer, one folder each. An operation has a plain form in burn's own
//! operations (`plain.rs`), which runs on every backend and is the oracle of the tests. Most operations also have a fused form
//! for the CPU backend `flex` (`flex.rs`), which calls the kernels of `sorsa-kernels` and has its own backward pass. The public
//! function takes the fused form if it applies to its operands.
//!
//! Softmax, norms and losses are computed in f32 whatever the dtype of their input.
//!
//! ```
//! use burn::prelude::*;
//!
//! let device = Device::flex();
//! let logits = Tensor::<2>::zeros([3, 8], &device);
//! let targets = Tensor::<1, Int>::from_ints([0, 5, 7], &device);
//! let loss = sorsa_ops::cross_entropy_sum(logits, targets).into_scalar::<f32>();
//! assert!((loss - 3.0 * 8f32.ln()).abs() < 1e-5);
//! ```

mod attention;
pub mod check;
mod embedding;
mod factored;
mod flex;
mod form;
mod gated;
mod layer_norm;
mod linear;
mod linear_maps;
mod loss;
mod memory;
mod packed;
mod pool;
mod rms_norm;
mod rotary;
mod soft_cap;
mod stored;
mod sum;
#[cfg(test)]
mod testing;
mod weight;
mod wkv4;
mod wkv6;

pub use attention::{
    AttentionMask, AttentionShape, attention_memory, causal_attention, rotary_attention, soft_capped_attention,
};
pub use embedding::packed_embedding;
pub use factored::{FactoredLinearShape, LowRankFactors, factored_linear, factored_linear_memory, low_rank_product};
pub use form::{Form, without_fused};
pub use gated::{gated_gelu, gated_memory, gated_silu};
pub use layer_norm::{group_norm, layer_norm, layer_norm_memory};
pub use linear::linear;
pub use linear_maps::{LinearMap, linear_maps};
pub use loss::{HeadLossShape, cross_entropy_sum, head_loss_memory, head_loss_sum};
pub use memory::OperationMemory;
pub use packed::{PackedFormat, PackedMatrix, PackedWeight, Precision, WeightOperand, narrow_factors, rounded};
pub use pool::on_pool;
pub use rms_norm::{rms_norm, rms_norm_memory, rms_norm_offset};
pub use rotary::{RotaryAngles, rotate_half, rotate_half_memory};
pub use soft_cap::{soft_cap, soft_capped_head_loss_sum};
pub use sorsa_kernels::packed::PackedError;
pub use sorsa_kernels::{Arithmetic, Instructions, MatmulPrecision};
pub use stored::stored_as;
pub use sum::add_product;
pub use weight::{WeightStorage, activation_dtype, multiplies_packed_weights};
pub use wkv4::{Wkv4State, wkv4, wkv4_memory};
pub use wkv6::{wkv6, wkv6_memory};
