//! Causal attention with grouped keys and values: `softmax(q k^T * scale + mask) v`.

use burn::prelude::*;
use burn::tensor::activation::softmax;
use burn::tensor::{DType, FloatDType};

use crate::soft_cap::soft_cap;

/// Which key each query may not see, `[batch or 1, 1, queries, keys]`, true = hidden.
#[derive(Debug, Clone)]
pub struct AttentionMask {
    hidden: Tensor<4, Bool>,
}

impl AttentionMask {
    /// A mask from a rule over (row, query, key).
    ///
    /// A query with every key hidden is allowed: its output is the mean of the values, never NaN.
    pub fn from_rule(
        [rows, queries, keys]: [usize; 3],
        visible: impl Fn(usize, usize, usize) -> bool,
        device: &Device,
    ) -> Self {
        let mut hidden = Vec::with_capacity(rows * queries * keys);
        for row in 0..rows {
            for query in 0..queries {
                hidden.extend((0..keys).map(|key| !visible(row, query, key)));
            }
        }
        let data = TensorData::new::<bool, _>(hidden, [rows, 1, queries, keys]);
        Self { hidden: Tensor::from_data(data, device) }
    }
}

/// Attention of `q` `[batch, heads, queries, head_dim]` over `k`, `v` `[batch, kv_heads, keys, head_dim]`; `heads` is
/// a multiple of `kv_heads`, and each key head serves `heads / kv_heads` neighbouring query heads without being
/// copied. Scores and softmax are f32. Without a mask every key is visible.
///
/// # Panics
///
/// Panics where the shapes do not fit each other.
pub fn causal_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<&AttentionMask>,
    scale: f64,
) -> Tensor<4> {
    soft_capped_attention(q, k, v, mask, scale, None)
}

/// [`causal_attention`] whose scores, before the mask, go through [`soft_cap`] where `cap` is given (Gemma 2).
///
/// # Panics
///
/// Panics where the shapes do not fit each other.
pub fn soft_capped_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<&AttentionMask>,
    scale: f64,
    cap: Option<f64>,
) -> Tensor<4> {
    let [batch, heads, queries, head_dim] = q.dims();
    let [_, kv_heads, keys, _] = k.dims();
    assert_eq!(heads % kv_heads, 0, "{heads} query heads cannot share {kv_heads} key heads");
    let dtype = FloatDType::from(q.dtype());

    let grouped = (q * scale).reshape([batch, kv_heads, heads / kv_heads * queries, head_dim]);
    let mut scores = grouped.matmul(k.swap_dims(2, 3)).reshape([batch, heads, queries, keys]);
    if scores.dtype() != DType::F32 {
        scores = scores.cast(FloatDType::F32);
    }
    if let Some(cap) = cap {
        scores = soft_cap(scores, cap);
    }
    if let Some(mask) = mask {
        // A large finite number, not infinity: a row with nothing visible stays finite.
        scores = scores.mask_fill(mask.hidden.clone().expand([batch, heads, queries, keys]), -1e30);
    }
    let probabilities = softmax(scores, 3).cast(dtype);
    probabilities
        .reshape([batch, kv_heads, heads / kv_heads * queries, keys])
        .matmul(v)
        .reshape([batch, heads, queries, head_dim])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    fn values<const D: usize>(t: Tensor<D>) -> Vec<f32> {
        t.into_data().try_into_vec::<f32>().unwrap()
    }

    #[test]
    fn grouped_heads_equal_repeated_key_heads() {
        let device = Device::flex();
        let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let (q, k, v) = (random([2, 4, 5, 6]), random([2, 2, 5, 6]), random([2, 2, 5, 6]));
        let repeat = |t: &Tensor<4>| t.clone().unsqueeze_dim::<5>(2).repeat_dim(2, 2).reshape([2, 4, 5, 6]);
        let mask = AttentionMask::from_rule([1, 5, 5], |_, query, key| key <= query, &device);
        let grouped = causal_attention(q.clone(), k.clone(), v.clone(), Some(&mask), 0.4);
        let repeated = causal_attention(q, repeat(&k), repeat(&v), Some(&mask), 0.4);
        for (a, b) in values(grouped).iter().zip(values(repeated)) {
            assert!((a - b).abs() < 1e-5);
        }
    }

    #[test]
    fn the_first_query_of_a_causal_mask_returns_the_first_value() {
        let device = Device::flex();
        let x = Tensor::<4>::random([1, 1, 3, 2], Distribution::Normal(0.0, 1.0), &device);
        let mask = AttentionMask::from_rule([1, 3, 3], |_, query, key| key <= query, &device);
        let y = causal_attention(x.clone(), x.clone(), x.clone(), Some(&mask), 1.0);
        assert_eq!(values(y.narrow(2, 0, 1)), values(x.narrow(2, 0, 1)));
    }

    #[test]
    fn a_large_cap_changes_nothing_and_a_small_one_evens_out_the_weights() {
        let device = Device::flex();
        let random = || Tensor::<4>::random([1, 2, 5, 4], Distribution::Normal(0.0, 2.0), &device);
        let (q, k, v) = (random(), random(), random());
        let mask = AttentionMask::from_rule([1, 5, 5], |_, query, key| key <= query, &device);
        let capped = |cap| values(soft_capped_attention(q.clone(), k.clone(), v.clone(), Some(&mask), 0.5, cap));
        let difference = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |worst, (x, y)| worst.max((x - y).abs()));
        let plain = capped(None);
        assert!(difference(&capped(Some(1e3)), &plain) < 1e-3);
        assert!(difference(&capped(Some(1.0)), &plain) > 1e-2);
        // Scores that are capped at nothing are all equal: each query takes the mean of what it sees, and no more.
        let mean = values(v.clone().narrow(2, 0, 3).mean_dim(2));
        let third = &capped(Some(1e-6))[2 * 4..3 * 4];
        assert!(difference(third, &mean[..4]) < 1e-4, "{third:?} {mean:?}");
    }

    #[test]
    fn a_query_that_sees_nothing_is_finite() {
        let device = Device::flex();
        let x = Tensor::<4>::ones([1, 1, 2, 2], &device);
        let mask = AttentionMask::from_rule([1, 2, 2], |_, _, _| false, &device);
        let y = values(causal_attention(x.clone(), x.clone(), x, Some(&mask), 1.0));
        assert!(y.iter().all(|value| value.is_finite()), "{y:?}");
    }
}
