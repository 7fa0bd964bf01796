//! The storage formats of a weight that the fused operations multiply with.
//!
//! A new format, a packed one for example, takes a variant here, a variant of `sorsa_kernels::Weight` with its kernels, and the
//! line of `flex/tensors.rs` that makes the one a view of the other.

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use crate::form::{fused_form_applies, is_flex, operand};
use crate::packed::WeightOperand;

/// The storage format of a weight beside f32 activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightStorage {
    /// f32.
    F32,
    /// bf16. Products give f32.
    Bf16,
}

impl WeightStorage {
    /// The format of a weight of this dtype; `None` if only the plain forms take it.
    pub fn from_dtype(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// The format of `weight`; `None` if only the plain forms take it.
    pub fn of<const D: usize>(weight: &Tensor<D>) -> Option<Self> {
        Self::from_dtype(weight.dtype())
    }
}

/// The dtype of activations beside `weight`: its own dtype, but f32 on the CPU backend `flex` if it has a [`WeightStorage`].
pub fn activation_dtype<const D: usize>(weight: &Tensor<D>) -> FloatDType {
    match WeightStorage::of(weight) {
        Some(_) if is_flex(&weight.device()) => FloatDType::F32,
        _ => FloatDType::from(weight.dtype()),
    }
}

/// Whether operations on `device` multiply with packed weights as they are. Elsewhere they widen them, and a graph keeps the widened
/// values until its backward pass.
pub fn multiplies_packed_weights(device: &Device) -> bool {
    fused_form_applies([(device.clone(), DType::F32)])
}

/// Whether a fused form multiplies f32 activations with this weight.
pub(crate) fn fused_form_takes_weight(weight: &WeightOperand) -> bool {
    match weight {
        WeightOperand::Dense(weight) => {
            let (device, dtype) = operand(weight);
            WeightStorage::from_dtype(dtype).is_some() && fused_form_applies([(device, DType::F32)])
        }
        WeightOperand::Packed(weight) => multiplies_packed_weights(&weight.device()),
    }
}
