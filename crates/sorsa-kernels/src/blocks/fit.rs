//! Scales of a sub-block by least squares: candidates of the step between levels are tried, each value takes its nearest level, and the
//! scale (and minimum) that fit those levels best are computed in closed form. Large values weigh more.

/// The scale and minimum of values `scale * q - minimum`, for levels `q` from 0 to `last`. Neither is negative.
pub fn scale_and_minimum(values: &[f32], last: f32) -> (f32, f32) {
    let least = values.iter().copied().fold(0f32, f32::min);
    let range = values.iter().copied().fold(0f32, f32::max) - least;
    if range == 0.0 {
        return (0.0, 0.0);
    }
    let typical = (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt();
    let mut best = (range / last, -least);
    let mut best_error = f32::INFINITY;
    for candidate in -10..=10 {
        let inverse = (last + 0.1 * candidate as f32) / range;
        let level = |value: f32| ((value - least) * inverse).round().clamp(0.0, last);
        let (mut w, mut wq, mut wqq, mut wx, mut wqx) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for value in values {
            let (weight, q) = (typical + value.abs(), level(*value));
            w += weight;
            wq += weight * q;
            wqq += weight * q * q;
            wx += weight * value;
            wqx += weight * q * value;
        }
        let determinant = w * wqq - wq * wq;
        if determinant <= 0.0 {
            continue;
        }
        let mut fit = ((w * wqx - wx * wq) / determinant, -(wqq * wx - wq * wqx) / determinant);
        if fit.1 < 0.0 {
            fit = (wqx / wqq, 0.0);
        }
        let error = |value: &f32| (typical + value.abs()) * (fit.0 * level(*value) - fit.1 - value).powi(2);
        let error = values.iter().map(error).sum();
        if error < best_error && fit.0 > 0.0 {
            (best, best_error) = (fit, error);
        }
    }
    best
}

/// The scale of values `scale * q`, for levels `q` from -32 to 31. It may be negative.
pub fn signed_scale(values: &[f32]) -> f32 {
    let widest =
        values.iter().copied().fold(0f32, |widest, value| if value.abs() > widest.abs() { value } else { widest });
    if widest == 0.0 {
        return 0.0;
    }
    let mut best = 0.0;
    let mut best_gain = 0.0;
    for candidate in -9..=9 {
        let inverse = -(32.0 + 0.1 * candidate as f32) / widest;
        let (mut wqx, mut wqq) = (0f64, 0f64);
        for value in values {
            let q = f64::from((value * inverse).round().clamp(-32.0, 31.0));
            let value = f64::from(*value);
            wqx += value * value * q * value;
            wqq += value * value * q * q;
        }
        // The weighted squared error is that of zeros less this gain.
        if wqq > 0.0 && wqx * wqx / wqq > best_gain {
            best_gain = wqx * wqx / wqq;
            best = (wqx / wqq) as f32;
        }
    }
    best
}
