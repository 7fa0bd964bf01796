//! Splits a set of rows into training and validation.

use crate::DataError;
use crate::shuffle::{generator, shuffle};

/// Two parts of one set, each in the original order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split<T> {
    /// Items to train on.
    pub train: Vec<T>,
    /// Items to validate on.
    pub validation: Vec<T>,
}

/// Random stream of the split. The streams of epochs count up from 0.
const STREAM: u64 = u64::MAX;

/// Moves `validation` random items into the validation set. Equal seeds and numbers of items give equal choices.
///
/// # Errors
///
/// [`DataError::Options`] if no item is left to train on.
pub fn split<T>(items: Vec<T>, validation: usize, seed: u64) -> Result<Split<T>, DataError> {
    if validation >= items.len() {
        let found = format!("{validation} rows for validation leave nothing to train on: there are {}", items.len());
        return Err(DataError::Options { problems: vec![found] });
    }
    let mut chosen: Vec<bool> = (0..items.len()).map(|index| index < validation).collect();
    shuffle(&mut chosen, &mut generator(seed, STREAM));
    let mut parts = Split { train: Vec::new(), validation: Vec::with_capacity(validation) };
    for (item, chosen) in items.into_iter().zip(chosen) {
        if chosen { parts.validation.push(item) } else { parts.train.push(item) }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_is_a_partition_in_order_that_the_seed_decides() {
        let items: Vec<u32> = (0..1000).collect();
        let first = split(items.clone(), 100, 7).unwrap();
        assert_eq!((first.train.len(), first.validation.len()), (900, 100));
        assert!(first.train.is_sorted() && first.validation.is_sorted());
        let mut all = [first.train.clone(), first.validation.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, items);
        assert_eq!(split(items.clone(), 100, 7).unwrap(), first);
        assert_ne!(split(items, 100, 8).unwrap(), first);
    }

    #[test]
    fn a_split_that_leaves_nothing_is_refused() {
        insta::assert_snapshot!(split(vec![1, 2], 2, 0).unwrap_err(), @"2 rows for validation leave nothing to train on: there are 2");
    }
}
