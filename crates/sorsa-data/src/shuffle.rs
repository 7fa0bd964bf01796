//! Random order that is the same on all platforms and with all versions of the random number crates.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A generator for (`seed`, `stream`): streams of one seed are independent.
pub(crate) fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&stream.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Fisher-Yates shuffle. `rand` has one, but promises no stable order. The bias of the multiplication is below 2^-32.
pub(crate) fn shuffle<T>(items: &mut [T], generator: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        let choices = last as u128 + 1;
        items.swap(last, ((u128::from(generator.next_u64()) * choices) >> 64) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seed: u64, stream: u64) -> [u8; 8] {
        let mut items = [0, 1, 2, 3, 4, 5, 6, 7];
        shuffle(&mut items, &mut generator(seed, stream));
        items
    }

    /// Expected values from a ChaCha8 written in another language.
    #[test]
    fn the_order_follows_from_chacha8_alone() {
        assert_eq!(order(42, 0), [4, 5, 0, 3, 6, 7, 1, 2]);
        assert_eq!(order(42, 1), [6, 0, 5, 3, 7, 2, 1, 4]);
    }

    #[test]
    fn every_place_is_reached_equally_often() {
        let mut counts = [[0u32; 8]; 8];
        for seed in 0..8000 {
            for (place, &item) in order(seed, 0).iter().enumerate() {
                counts[place][usize::from(item)] += 1;
            }
        }
        assert!(counts.iter().flatten().all(|&count| (850..1150).contains(&count)), "{counts:?}");
    }
}
