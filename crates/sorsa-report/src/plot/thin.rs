//! Long curves with fewer points.

/// At most two points a bucket, its lowest and highest, so that a long run stays a small picture without losing a spike.
pub(super) fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    const BUCKETS: usize = 400;
    if points.len() <= 2 * BUCKETS {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(2 * BUCKETS);
    for bucket in points.chunks(points.len().div_ceil(BUCKETS)) {
        let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let mut ends: Vec<_> =
            bucket.iter().min_by(by_y).into_iter().chain(bucket.iter().max_by(by_y)).copied().collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        ends.dedup();
        kept.extend(ends);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_every_spike() {
        let mut points: Vec<_> = (0..100_000).map(|step| (f64::from(step), 1.0 + f64::from(step % 7) * 0.01)).collect();
        points[54_321].1 = 50.0;
        points[60_000].1 = -3.0;
        let kept = thin(&points);
        assert!(kept.len() <= 800, "{} points", kept.len());
        assert!(kept.contains(&(54_321.0, 50.0)) && kept.contains(&(60_000.0, -3.0)));
        assert!(kept.is_sorted_by(|a, b| a.0 <= b.0));
    }
}
