//! Memory of the start of an adapter, from shapes alone.

use sorsa_ops::PackedFormat;

use crate::attach::Target;
use crate::config::AdapterConfig;

/// The share of the smaller side at which the iteration of an SVD ends at the latest.
const LARGEST_BASIS: f64 = 2.0 / 3.0;
/// The most blocks of an iteration, and the widths of one.
const BLOCKS: usize = 64;
const BLOCK_WIDTHS: std::ops::RangeInclusive<usize> = 8..=48;

impl Target {
    /// Numbers of the factors that stay in memory beside the trained ones, for the adapter's files: those at the start if the method splits
    /// the weight, frozen ones, and those that were subtracted before a residual was packed. `packed` is whether the weight is.
    pub fn numbers_at_start(&self, config: &AdapterConfig, packed: bool) -> usize {
        let size = |factors: &[crate::factors::Factor]| -> usize {
            factors.iter().map(|factor| factor.shape(self.shape, self.rank).iter().product::<usize>()).sum()
        };
        let saved = size(&config.method().saved_with_start());
        match packs_residual(config, packed) {
            true => saved + size(config.method().factors()),
            false => saved,
        }
    }

    /// Bytes that one thread takes to make the start of this layer, beside the weight as the model has it; 0 if nothing is decomposed.
    /// `packed` is whether the weight is.
    pub fn start_bytes(&self, config: &AdapterConfig, packed: bool) -> usize {
        let packs = packs_residual(config, packed);
        let decomposes = config.method().factored().is_some_and(|method| method.decomposes());
        if !(decomposes || packs) {
            return 0;
        }
        let [d_in, d_out] = self.shape;
        let (dense, small) = (4 * d_in * d_out, d_in.min(d_out));
        let block = (self.rank / 4).next_multiple_of(8).clamp(*BLOCK_WIDTHS.start(), *BLOCK_WIDTHS.end());
        let basis = (BLOCKS * block).min((LARGEST_BASIS * small as f64) as usize);
        let iteration = 4 * basis * (d_in + d_out + basis);
        let copies = match (packs, packed) {
            // The widened weight, its transpose, and the error of the packing or what is packed next.
            (true, _) => 3 * dense + dense / 8,
            (false, true) => dense,
            (false, false) => 0,
        };
        copies + iteration
    }
}

fn packs_residual(config: &AdapterConfig, packed: bool) -> bool {
    packed && config.residual_packing(PackedFormat::NF4).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Method;

    #[test]
    fn packed_residuals_keep_two_sets_of_factors_and_qlora_none() {
        let target = Target { path: "q_proj".to_owned(), shape: [64, 96], rank: 4, scale: 1.0 };
        let of = |method: Method, packed: bool| {
            let config = AdapterConfig::new(method, 4, &["q_proj"]);
            (target.numbers_at_start(&config, packed), target.start_bytes(&config, packed))
        };
        let factors = 4 * (64 + 96 + 1);
        assert_eq!((of(Method::Lora, false), of(Method::Lora, true)), ((0, 0), (0, 0)));
        assert_eq!((of(Method::Sorsa, false).0, of(Method::Sorsa, true).0), (factors, 2 * factors));
        let more = of(Method::Sorsa, true).1 - of(Method::Sorsa, false).1;
        assert_eq!(more, 25 * 4 * 64 * 96 / 8);
    }
}
