//! The linear assignment problem: the exact best one-to-one matching of rows and columns.
//!
//! Each row is matched along a shortest augmenting path in reduced costs (Jonker and Volgenant 1987). This takes at most
//! `n^3` steps, and about `n^2` if most rows have their best entry in different columns.

use faer::MatRef;

/// Finds the column for each row of `gain [n, n]` such that the sum of the matched entries is maximal. Entries must be
/// finite.
pub(crate) fn best_assignment(gain: MatRef<'_, f64>) -> Vec<usize> {
    let n = gain.nrows();
    assert_eq!(n, gain.ncols(), "a square table");
    // Potentials: gain(i, j) <= row[i] + column[j] for all i and j, with equality for matched pairs.
    let mut row: Vec<f64> = (0..n).map(|i| gain.row(i).iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b))).collect();
    let mut column = vec![0.0; n];
    let mut owner: Vec<Option<usize>> = vec![None; n];
    for start in 0..n {
        // Dijkstra over columns, from an unmatched row. A step costs the slack of the potentials.
        let mut distance = vec![f64::INFINITY; n];
        let mut from = vec![start; n];
        let mut settled: Vec<usize> = Vec::new();
        let mut open: Vec<usize> = (0..n).collect();
        let (mut current, mut reached) = (start, 0.0);
        let end = loop {
            let mut nearest = 0;
            for (place, &j) in open.iter().enumerate() {
                let through = reached + (row[current] + column[j] - gain[(current, j)]).max(0.0);
                if through < distance[j] {
                    (distance[j], from[j]) = (through, current);
                }
                if distance[j] < distance[open[nearest]] {
                    nearest = place;
                }
            }
            let j = open.swap_remove(nearest);
            reached = distance[j];
            match owner[j] {
                None => break j,
                Some(next) => current = next,
            }
            settled.push(j);
        };
        row[start] -= reached;
        for &j in &settled {
            let shift = reached - distance[j];
            column[j] += shift;
            if let Some(i) = owner[j] {
                row[i] -= shift;
            }
        }
        // Follow the path back: each row on it takes the next column.
        let mut j = end;
        loop {
            let i = from[j];
            let before = owner.iter().position(|owner| *owner == Some(i));
            owner[j] = Some(i);
            match before.filter(|_| i != start) {
                Some(left) => j = left,
                None => break,
            }
        }
    }
    let mut matched = vec![0; n];
    for (j, i) in owner.into_iter().enumerate() {
        if let Some(i) = i {
            matched[i] = j;
        }
    }
    matched
}

#[cfg(test)]
mod tests {
    use faer::Mat;
    use proptest::prelude::*;

    use super::*;

    fn sum(gain: &Mat<f64>, matched: &[usize]) -> f64 {
        matched.iter().enumerate().map(|(i, &j)| gain[(i, j)]).sum()
    }

    /// The maximal sum over all permutations.
    fn by_trying_all(gain: &Mat<f64>, used: &mut Vec<usize>) -> f64 {
        let i = used.len();
        if i == gain.nrows() {
            return 0.0;
        }
        let mut best = f64::NEG_INFINITY;
        for j in 0..gain.nrows() {
            if !used.contains(&j) {
                used.push(j);
                best = best.max(gain[(i, j)] + by_trying_all(gain, used));
                used.pop();
            }
        }
        best
    }

    #[test]
    fn taking_the_largest_first_is_not_the_best() {
        let gain = Mat::from_fn(2, 2, |i, j| [[10.0, 9.0], [9.0, 1.0]][i][j]);
        assert_eq!(best_assignment(gain.as_ref()), [1, 0]);
    }

    #[test]
    fn a_permutation_is_found_again() {
        let to = [3, 0, 4, 1, 2];
        let gain = Mat::from_fn(5, 5, |i, j| f64::from(u8::from(to[i] == j)));
        assert_eq!(best_assignment(gain.as_ref()), to);
        assert!(best_assignment(Mat::<f64>::zeros(0, 0).as_ref()).is_empty());
    }

    proptest! {
        #[test]
        fn no_permutation_is_better(n in 1usize..7, seed in proptest::collection::vec(0u8..12, 36)) {
            // Few different entries: many rows compete for a column, and many permutations are optimal.
            let gain = Mat::from_fn(n, n, |i, j| f64::from(seed[6 * i.min(5) + j.min(5)]));
            let matched = best_assignment(gain.as_ref());
            let mut columns = matched.clone();
            columns.sort_unstable();
            prop_assert_eq!(columns, (0..n).collect::<Vec<_>>());
            prop_assert!((sum(&gain, &matched) - by_trying_all(&gain, &mut Vec::new())).abs() < 1e-9);
        }
    }
}
