//! Loss and gradients of one micro-batch, by one tape or block by block.
//!
//! One tape keeps what every block needs for its backward pass. Block by block (gradient checkpointing, Chen et al.,
//! 2016) the forward pass keeps the input of each block alone. The backward pass then runs each block again, last to
//! first, on a tape of its own, with the block's output multiplied by the gradient that comes from above:
//!
//! ```text
//! L = <f_i(x_i; p_i), dL/dx_{i+1}>        dL/dx_i and dL/dp_i by the tape of f_i
//! ```
//!
//! Packed weights that an operation widens stay widened on the tape. So a model with such weights is always trained block by block: the
//! tape then holds those of one block.
//!
//! Dropout is seeded before each block in both ways, so that a block which runs twice drops the same elements twice, and
//! those that it drops without checkpoints.

use burn::module::{ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;
use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};
use sorsa_ops::{multiplies_packed_weights, on_pool};

use crate::input::ModelInput;
use crate::model::CausalLm;
use crate::transformer::Transformer;

/// How the gradients of a micro-batch are computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pass {
    /// What the summed loss is divided by.
    pub divisor: f64,
    /// Seed of dropout: of each block of a transformer, of the whole pass of an RWKV.
    pub seed: u64,
    /// Keep the inputs of blocks alone, and run each block twice; done anyway if the tape would hold widened weights. Of no effect on
    /// RWKV.
    pub checkpoint_blocks: bool,
    /// The format in which the backward pass gets activations. Of no effect on RWKV.
    pub activations: ActivationFormat,
}

/// The format in which the backward pass gets what the forward pass computed: inputs of linear layers and of norms, gate and up, queries,
/// keys and values. The forward pass is the same in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivationFormat {
    /// f32; gate and up in the format of the weights.
    #[default]
    F32,
    /// bf16: half of the memory. It has an effect on the CPU's fused operations alone.
    Bf16,
}

impl ActivationFormat {
    /// All formats.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// The dtype.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
        }
    }
}

impl Pass {
    fn seed_block(&self, device: &Device, index: usize) {
        device.seed(mixed_seed(self.seed, index as u64));
    }
}

/// The seed of part `part` of what `seed` is the seed of: of a step of a run, of a micro-batch, of a block. Parts of
/// parts have seeds of their own, which a sum or an exclusive or would not give them (the finalizer of SplitMix64).
pub fn mixed_seed(seed: u64, part: u64) -> u64 {
    let mut mixed = seed.wrapping_add(part.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

impl CausalLm {
    /// The cross-entropy as [`loss_sum`](Self::loss_sum) gives it, divided, without autodiff; and the gradients of all
    /// trained parameters. Nothing where there is no target. The model must be on autodiff, in training.
    pub fn loss_gradients(
        &self,
        input: &ModelInput<'_>,
        targets: &[i32],
        pass: &Pass,
    ) -> Option<(Tensor<1>, GradientsParams)> {
        if targets.iter().all(|target| *target < 0) {
            return None;
        }
        on_pool(&self.device(), || match self {
            Self::Transformer(model) if pass.checkpoint_blocks || self.tape_holds_widened_weights() => {
                self.by_blocks(model, input, targets, pass)
            }
            Self::Transformer(model) => self.on_one_tape(model.seeded_hidden(input, pass), targets, pass),
            Self::Rwkv(model) => {
                self.device().seed(pass.seed);
                self.on_one_tape(model.hidden(input), targets, pass)
            }
        })
    }

    fn tape_holds_widened_weights(&self) -> bool {
        struct Packed(bool);
        impl ModuleVisitor for Packed {
            fn visit_int<const D: usize>(&mut self, words: &Param<Tensor<D, Int>>) {
                self.0 |= words.lazy_shape().num_elements() > 0;
            }
        }
        let mut packed = Packed(false);
        self.visit(&mut packed);
        packed.0 && !multiplies_packed_weights(&self.device())
    }

    fn on_one_tape(&self, hidden: Tensor<3>, targets: &[i32], pass: &Pass) -> Option<(Tensor<1>, GradientsParams)> {
        let loss = self.loss_of_hidden(hidden, targets)? / pass.divisor;
        let value = loss.clone().inner();
        Some((value, GradientsParams::from_grads(loss.backward(), self)))
    }

    fn by_blocks(
        &self,
        model: &Transformer,
        input: &ModelInput<'_>,
        targets: &[i32],
        pass: &Pass,
    ) -> Option<(Tensor<1>, GradientsParams)> {
        let device = self.device();
        let (views, layers) = (model.views_keeping(input, pass.activations.dtype()), &model.model.layers);
        let embedded = model.embedded(input.input_ids, [input.rows, input.len]);
        let mut x = embedded.clone().inner();
        let mut inputs = Vec::with_capacity(layers.len());
        for (index, block) in layers.iter().enumerate() {
            inputs.push(x.clone());
            pass.seed_block(&device, index);
            // On autodiff, since dropout is asleep elsewhere, but with nothing to track: burn keeps a tape that nobody
            // goes back on until the next one is used up.
            x = block.clone().no_grad().forward(Tensor::from_inner(x), &views[&block.layer_type], None).inner();
        }

        let mut gradients = GradientsAccumulator::new();
        let last = Tensor::from_inner(x).require_grad();
        let loss = self.loss_of_hidden(model.model.norm.forward(last.clone()), targets)? / pass.divisor;
        let value = loss.clone().inner();
        let mut tape = loss.backward();
        let mut above = last.grad_remove(&mut tape);
        gradients.accumulate(self, GradientsParams::from_grads(tape, self));

        for (index, (block, x)) in layers.iter().zip(inputs).enumerate().rev() {
            // Below the first block only an embedding that is trained wants a gradient.
            let x = Tensor::from_inner(x).set_require_grad(index > 0 || embedded.is_tracked());
            pass.seed_block(&device, index);
            let y = block.forward(x.clone(), &views[&block.layer_type], None);
            // Where nothing is trained from here down, there is no tape.
            let Some(from_above) = above.take().filter(|_| y.is_tracked()) else { continue };
            let mut tape = (y * Tensor::from_inner(from_above)).sum().backward();
            above = x.grad_remove(&mut tape);
            gradients.accumulate(self, GradientsParams::from_grads(tape, self));
        }
        if let Some(above) = above.filter(|_| embedded.is_tracked()) {
            let tape = (embedded * Tensor::from_inner(above)).sum().backward();
            gradients.accumulate(self, GradientsParams::from_grads(tape, self));
        }
        Some((value, gradients.grads()))
    }
}

impl Transformer {
    /// [`CausalLm::hidden`], dropout seeded before each block.
    fn seeded_hidden(&self, input: &ModelInput<'_>, pass: &Pass) -> Tensor<3> {
        let (views, device) = (self.views_keeping(input, pass.activations.dtype()), self.device());
        let mut x = self.embedded(input.input_ids, [input.rows, input.len]);
        for (index, block) in self.model.layers.iter().enumerate() {
            pass.seed_block(&device, index);
            x = block.forward(x, &views[&block.layer_type], None);
        }
        self.model.norm.forward(x)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::mixed_seed;

    #[test]
    fn every_block_of_every_micro_batch_of_every_step_drops_out_by_a_seed_of_its_own() {
        let mut seeds = HashSet::new();
        for step in 1..=100 {
            for micro_batch in 0..4 {
                let seed = mixed_seed(mixed_seed(42, step), micro_batch);
                seeds.extend((0..32).map(|block| mixed_seed(seed, block)));
            }
        }
        assert_eq!(seeds.len(), 100 * 4 * 32);
    }
}
