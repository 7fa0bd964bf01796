//! What the processor that the tests run on can do.

/// Whether a product with a weight in bf16 rounds the activations, so that its result is not that in f32.
pub fn rounds_activations() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}
