//! Memory of the start of an adapter, from shapes alone.

use sorsa_ops::PackedFormat;

use crate::attach::Target;
use crate::config::AdapterConfig;
use crate::packed_residual::{PackingTime, ResidualStorage};

/// The share of the smaller side at which the iteration of an SVD ends at the latest.
const LARGEST_BASIS: f64 = 2.0 / 3.0;
/// The most blocks of an iteration, and the widths of one.
const BLOCKS: usize = 64;
const BLOCK_WIDTHS: std::ops::RangeInclusive<usize> = 8..=48;

impl Target {
    /// Numbers of the factors that stay in memory beside the trained ones: for the adapter's files those at the start if the method splits
    /// the weight, frozen ones, and those that were subtracted before a residual was packed; for the products those that are subtracted
    /// beside a packed weight. `packed` says when the weight was packed; absent for a dense one.
    pub fn numbers_at_start(&self, config: &AdapterConfig, packed: Option<PackingTime>) -> usize {
        let size = |factors: &[crate::factors::Factor]| -> usize {
            factors.iter().map(|factor| factor.shape(self.shape, self.rank).iter().product::<usize>()).sum()
        };
        let method = config.method_at(&self.path);
        let saved = size(&method.saved_with_start());
        if self.packs_residual(config, packed) {
            return saved + size(method.factors());
        }
        let is_exact = packed
            .is_some_and(|packed| method.splits_weight() && config.residual_storage(packed) == ResidualStorage::Exact);
        let subtracted = (self.shape[0] + self.shape[1]) * self.rank;
        if is_exact { saved + subtracted } else { saved }
    }

    /// Bytes that one thread takes to make the start of this layer, beside the weight as the model has it; 0 if nothing is decomposed.
    /// `packed` says when the weight was packed; absent for a dense one.
    pub fn start_bytes(&self, config: &AdapterConfig, packed: Option<PackingTime>) -> usize {
        let packs = self.packs_residual(config, packed);
        let decomposes = config.method_at(&self.path).factored().is_some_and(|method| method.decomposes());
        if !(decomposes || packs) {
            return 0;
        }
        let [d_in, d_out] = self.shape;
        let (dense, small) = (4 * d_in * d_out, d_in.min(d_out));
        let block = (self.rank / 4).next_multiple_of(8).clamp(*BLOCK_WIDTHS.start(), *BLOCK_WIDTHS.end());
        let basis = (BLOCKS * block).min((LARGEST_BASIS * small as f64) as usize);
        let iteration = 4 * basis * (d_in + d_out + basis);
        let copies = match (packs, packed.is_some()) {
            // The widened weight, its transpose, and the error of the packing or what is packed next.
            (true, _) => 3 * dense + dense / 8,
            (false, true) => dense,
            (false, false) => 0,
        };
        copies + iteration
    }

    fn packs_residual(&self, config: &AdapterConfig, packed: Option<PackingTime>) -> bool {
        let method = config.method_config_at(&self.path);
        packed.is_some_and(|packed| config.residual_packing(method, PackedFormat::NF4, packed).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Method;

    #[test]
    fn packed_and_exact_residuals_keep_two_sets_of_factors_and_qlora_none() {
        let target = Target { path: "q_proj".to_owned(), shape: [64, 96], rank: 4, scale: 1.0 };
        let of = |method: Method, packed: Option<PackingTime>| {
            let config = AdapterConfig::new(method, 4, &["q_proj"]);
            (target.numbers_at_start(&config, packed), target.start_bytes(&config, packed))
        };
        let (factors, product) = (4 * (64 + 96 + 1), 4 * (64 + 96));
        let [dense, read, file] = [None, Some(PackingTime::WhileRead), Some(PackingTime::InFile)];
        assert_eq!([dense, read, file].map(|packed| of(Method::Lora, packed)), [(0, 0); 3]);
        let numbers = [dense, read, file].map(|packed| of(Method::Sorsa, packed).0);
        assert_eq!(numbers, [factors, 2 * factors, factors + product]);
        let [dense, read, file] = [dense, read, file].map(|packed| of(Method::Sorsa, packed).1);
        assert_eq!([read - dense, file - dense], [25 * 4 * 64 * 96 / 8, 4 * 64 * 96]);
    }
}
