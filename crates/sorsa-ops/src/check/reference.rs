//! Operations in f64, in the order of their definitions, with gradients by the chain rule.

/// A product `[m, k] [k, n]`.
pub(super) fn product(a: &[f64], b: &[f64], [m, k, n]: [usize; 3]) -> Vec<f64> {
    let cell = |row: usize, column: usize| (0..k).map(|i| a[row * k + i] * b[i * n + column]).sum();
    (0..m * n).map(|at| cell(at / n, at % n)).collect()
}

/// The transpose of `[rows, columns]`.
pub(super) fn transpose(a: &[f64], [rows, columns]: [usize; 2]) -> Vec<f64> {
    (0..rows * columns).map(|at| a[at % rows * columns + at / rows]).collect()
}

/// `x W`, and the gradient of `x` for a gradient of the output.
pub(super) fn linear(x: &[f64], w: &[f64], d_y: &[f64], [rows, d_in, d_out]: [usize; 3]) -> Vec<Vec<f64>> {
    let y = product(x, w, [rows, d_in, d_out]);
    vec![y, product(d_y, &transpose(w, [d_in, d_out]), [rows, d_out, d_in])]
}

/// `x / rms(x) * weight`, and the gradient of `x`.
pub(super) fn rms_norm(x: &[f64], weight: &[f64], d_y: &[f64], epsilon: f64) -> Vec<Vec<f64>> {
    let width = weight.len();
    let (mut y, mut d_x) = (Vec::new(), Vec::new());
    for (x, d_y) in x.chunks_exact(width).zip(d_y.chunks_exact(width)) {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let factor = (mean + epsilon).sqrt().recip();
        y.extend(x.iter().zip(weight).map(|(x, w)| x * factor * w));
        let d: Vec<f64> = d_y.iter().zip(weight).map(|(d, w)| d * w).collect();
        let along = d.iter().zip(x).map(|(d, x)| d * x).sum::<f64>() * factor.powi(3) / width as f64;
        d_x.extend(d.iter().zip(x).map(|(d, x)| d * factor - along * x));
    }
    vec![y, d_x]
}

/// `silu(gate) * up`, and the gradients of both.
pub(super) fn gated(gate: &[f64], up: &[f64], d_y: &[f64]) -> Vec<Vec<f64>> {
    let sigmoid = |x: f64| ((-x).exp() + 1.0).recip();
    let silu = |x: f64| x * sigmoid(x);
    let slope = |x: f64| sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)));
    let each = |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
        gate.iter().zip(up).zip(d_y).map(|((gate, up), d)| f(*gate, *up, *d)).collect()
    };
    vec![
        each(&|gate, up, _| silu(gate) * up),
        each(&|gate, up, d| d * up * slope(gate)),
        each(&|gate, _, d| d * silu(gate)),
    ]
}

/// The summed loss of `softmax(x W)`, and the gradient of `x` for `d_loss`.
pub(super) fn head_loss(
    x: &[f64],
    w: &[f64],
    targets: &[usize],
    d_loss: f64,
    [d_in, vocabulary]: [usize; 2],
) -> Vec<Vec<f64>> {
    let rows = targets.len();
    let mut logits = product(x, w, [rows, d_in, vocabulary]);
    let mut loss = 0.0;
    for (row, target) in logits.chunks_exact_mut(vocabulary).zip(targets) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|logit| (logit - largest).exp()).sum();
        loss += sum.ln() + largest - row[*target];
        row.iter_mut().for_each(|logit| *logit = d_loss * (*logit - largest).exp() / sum);
        row[*target] -= d_loss;
    }
    vec![vec![loss], product(&logits, &transpose(w, [d_in, vocabulary]), [rows, vocabulary, d_in])]
}

/// Causal attention of heads `[heads, seq, width]`, and the gradients of queries, keys and values.
pub(super) fn attention(
    [q, k, v]: [&[f64]; 3],
    d_y: &[f64],
    [heads, seq, width]: [usize; 3],
    scale: f64,
) -> Vec<Vec<f64>> {
    let mut results = vec![Vec::new(); 4];
    for head in 0..heads {
        let part = |all: &'_ [f64]| all[head * seq * width..][..seq * width].to_vec();
        let [q, k, v, d_y] = [q, k, v, d_y].map(part);
        let mut p = product(&q, &transpose(&k, [seq, width]), [seq, width, seq]);
        for (query, row) in p.chunks_exact_mut(seq).enumerate() {
            row[query + 1..].fill(f64::NEG_INFINITY);
            row.iter_mut().for_each(|score| *score *= scale);
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.iter_mut().for_each(|score| *score = (*score - largest).exp());
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|score| *score /= sum);
        }
        let mut d_p = product(&d_y, &transpose(&v, [seq, width]), [seq, width, seq]);
        for (d_row, row) in d_p.chunks_exact_mut(seq).zip(p.chunks_exact(seq)) {
            let mean: f64 = d_row.iter().zip(row).map(|(d, p)| d * p).sum();
            d_row.iter_mut().zip(row).for_each(|(d, p)| *d = (*d - mean) * p * scale);
        }
        let values = [
            product(&p, &v, [seq, seq, width]),
            product(&d_p, &k, [seq, seq, width]),
            product(&transpose(&d_p, [seq, seq]), &q, [seq, seq, width]),
            product(&transpose(&p, [seq, seq]), &d_y, [seq, seq, width]),
        ];
        results.iter_mut().zip(values).for_each(|(all, part)| all.extend(part));
    }
    results
}
