//! Which form an operation takes.
//!
//! A fused form computes the result of the plain form in fewer passes over memory, with fewer and smaller temporaries, on all
//! threads. An operation takes it if [`fused_form_applies`] to its operands: f32 tensors of `flex`. A frozen weight may have
//! another storage format ([`crate::WeightStorage`]). Other backends take the plain form, and so does code inside
//! [`without_fused`].
//!
//! Each operation asks for the device before it calls its extension trait: burn panics if an extension operation meets a backend
//! that its trait does not list.

use std::cell::Cell;

use burn::backend::DispatchDevice;
use burn::prelude::*;
use burn::tensor::DType;

/// The two forms of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// By kernels of the CPU backend `flex`, with a backward pass of its own.
    Fused,
    /// In burn's operations, on any backend.
    Plain,
}

thread_local! {
    static PLAIN: Cell<bool> = const { Cell::new(false) };
    #[cfg(test)]
    pub(crate) static FUSED_CALLS: Cell<usize> = const { Cell::new(0) };
}

/// Runs `body` with every operation of this crate that this thread calls in its plain form, to compare the two forms in tests
/// and benches. The backward pass follows the form of the forward pass.
pub fn without_fused<R>(body: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            PLAIN.set(self.0);
        }
    }
    let _restore = Restore(PLAIN.replace(true));
    body()
}

/// Whether this thread is inside [`without_fused`].
pub(crate) fn plain_is_forced() -> bool {
    PLAIN.get()
}

/// Whether an operation of these operands, each a device and a dtype, takes its fused form.
pub(crate) fn fused_form_applies<const N: usize>(operands: [(Device, DType); N]) -> bool {
    !plain_is_forced() && operands.into_iter().all(|(device, dtype)| dtype == DType::F32 && is_flex(&device))
}

/// Whether a device is burn's CPU backend.
pub(crate) fn is_flex(device: &Device) -> bool {
    matches!(device.clone().without_autodiff().as_dispatch(), DispatchDevice::Flex(_))
}

/// An operand of [`fused_form_applies`].
pub(crate) fn operand<const D: usize>(tensor: &Tensor<D>) -> (Device, DType) {
    (tensor.device(), tensor.dtype())
}

/// Counts the calls of fused forms, for tests.
pub(crate) fn count_fused_call() {
    #[cfg(test)]
    FUSED_CALLS.set(FUSED_CALLS.get() + 1);
}

#[cfg(test)]
mod tests {
    use burn::tensor::FloatDType::BF16;

    use super::*;
    use crate::weight::fused_form_takes_weight;

    #[test]
    fn half_precision_and_other_devices_keep_the_plain_form() {
        let flex = Device::flex();
        assert!(fused_form_applies([(flex.clone(), DType::F32), (flex.clone().autodiff(), DType::F32)]));
        assert!(!fused_form_applies([(flex.clone(), DType::F32), (flex.clone(), DType::BF16)]));
        let narrow = Tensor::<2>::ones([2, 2], &flex).cast(BF16);
        let weight = narrow.clone().into();
        assert!(fused_form_takes_weight(&weight) && !fused_form_applies([operand(&narrow)]));
        without_fused(|| assert!(!fused_form_takes_weight(&weight)));
        without_fused(|| assert!(!fused_form_applies([(flex.clone(), DType::F32)])));
        assert!(fused_form_applies([(flex, DType::F32)]));
    }
}
