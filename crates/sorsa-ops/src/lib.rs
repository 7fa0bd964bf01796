//! The differentiable operations a decoder-only transformer is made of. Each has a plain form in burn's own operations,
//! which runs on every backend and is the oracle; most have a fused form for the CPU backend `flex`, with a backward
//! pass of its own, which is taken where it applies.
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
mod factored;
mod fused;
mod gated;
mod layer_norm;
mod linear;
mod loss;
mod norm;
mod rotary;
mod soft_cap;
mod sum;
#[cfg(test)]
mod testing;
mod wkv4;
mod wkv6;

pub use attention::{AttentionMask, causal_attention, rotary_attention, soft_capped_attention};
pub use factored::{factored_linear, low_rank_product};
pub use fused::{on_pool, without_fused};
pub use gated::{gated_gelu, gated_silu};
pub use layer_norm::{group_norm, layer_norm};
pub use linear::{activation_dtype, linear};
pub use loss::{cross_entropy_sum, head_loss_sum};
pub use norm::{rms_norm, rms_norm_offset};
pub use rotary::{RotaryAngles, rotate_half};
pub use soft_cap::{soft_cap, soft_capped_head_loss_sum};
pub use sum::add_product;
pub use wkv4::{Wkv4State, wkv4};
pub use wkv6::wkv6;
