//! Several linear maps of one input, with or without an adapter each: queries, keys and values, or gate and up. With `H = X [A1 A2 ..]`,
//! `Ti = Hi * scale s` and gradients `dYi`:
//!
//! ```text
//! Yi = X Wi + Ti Bi + bias
//! dBi = Ti^T dYi        Ei = dYi Bi^T        dsi = scale colsum(Ei * Hi)        [dA1 dA2 ..] = X^T [E1 * t1, E2 * t2, ..]
//! dX = dY1 W1^T + dY2 W2^T + .. + [E1 * t1, E2 * t2, ..] [A1 A2 ..]^T
//! ```
//!
//! So `X` is read, or rounded to bf16, once for all maps, products with the narrow factors are three times as wide, and `dX` is formed
//! without a temporary of its size for each map.

use std::ops::Range;

use crate::linear::add_bias;
use crate::matrix::Matrix;
use crate::product::{Product, Update};
use crate::simd::wide;
use crate::sums::{Summand, sums};
use crate::weight::Weight;

/// The factors of an adapter: `A diag(s) B * scale`.
///
/// # Shapes
///
/// - `a`: `[d_in, rank]`
/// - `s`: `[rank]`
/// - `b`: `[rank, d_out]`
#[derive(Debug, Clone, Copy)]
pub struct Factors<'a> {
    /// The first factor.
    pub a: Matrix<'a>,
    /// Scales the rank dimensions; all ones if absent.
    pub s: Option<&'a [f32]>,
    /// The second factor.
    pub b: Matrix<'a>,
    /// Multiplies the product of the factors.
    pub scale: f32,
}

/// One map.
#[derive(Debug, Clone, Copy)]
pub struct LinearMap<'a> {
    /// `[d_in, d_out]`, in any storage format.
    pub weight: Weight<'a>,
    /// `[d_out]`, added to each row.
    pub bias: Option<&'a [f32]>,
    /// The adapter.
    pub factors: Option<Factors<'a>>,
}

/// The operands of both passes: `x` `[rows, d_in]`, contiguous, and its maps.
#[derive(Debug, Clone, Copy)]
pub struct LinearMaps<'a> {
    /// The input.
    pub x: Matrix<'a>,
    /// The maps.
    pub maps: &'a [LinearMap<'a>],
}

/// The result.
#[derive(Debug)]
pub struct Output {
    /// The output of each map, `[rows, d_out]`.
    pub y: Vec<Vec<f32>>,
    /// `x A` of all maps beside each other, `[rows, sum of ranks]`; the backward pass needs it.
    pub h: Vec<f32>,
}

/// The gradients of one adapter.
#[derive(Debug)]
pub struct FactorGradients {
    /// `[d_in, rank]`.
    pub a: Vec<f32>,
    /// `[rank]`.
    pub s: Vec<f32>,
    /// `[rank, d_out]`.
    pub b: Vec<f32>,
}

impl<'a> LinearMaps<'a> {
    /// The forward pass.
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit each other.
    pub fn forward(&self) -> Output {
        let (rows, rank) = (self.x.rows(), self.rank());
        let mut h = vec![0.0; rows * rank];
        let a = self.first_factors();
        Product::new(self.x, self.beside(&a)).compute(&mut h, Update::Overwrite);
        let scaled = self.scaled(&h);
        let list = |(map, columns): (&LinearMap<'a>, Range<usize>)| {
            let mut list = vec![Summand::of_weight(self.x, map.weight)];
            list.extend(map.factors.map(|Factors { b, .. }| {
                let x = Matrix::new(&scaled, rows, rank).column_range(columns.start, columns.end);
                Summand::of_factor(x, b)
            }));
            list
        };
        let lists: Vec<_> = self.maps.iter().zip(self.columns()).map(list).collect();
        let mut y = sums(rows, &lists);
        for (y, map) in y.iter_mut().zip(self.maps) {
            if let Some(bias) = map.bias {
                add_bias(y, bias, map.weight.columns());
            }
        }
        Output { y, h }
    }

    /// Begins the backward pass for the gradients `d_y` `[rows, d_out]` of the outputs, with `h` of the forward pass. An output that has no
    /// gradient adds nothing.
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit each other.
    pub fn backward(self, h: &'a [f32], d_y: &[Option<&'a [f32]>]) -> Backward<'a> {
        let (rows, rank) = (self.x.rows(), self.rank());
        assert_eq!(d_y.len(), self.maps.len(), "a gradient of each output");
        let matrix = |(d_y, map): (&Option<&'a [f32]>, &LinearMap<'a>)| {
            d_y.map(|d_y| Matrix::new(d_y, rows, map.weight.columns()))
        };
        let d_y: Vec<Option<Matrix<'a>>> = d_y.iter().zip(self.maps).map(matrix).collect();
        let products = self
            .maps
            .iter()
            .zip(&d_y)
            .filter_map(|(map, d_y)| Some(vec![Summand::of_factor((*d_y)?, map.factors?.b.transposed())]));
        let products = sums(rows, &products.collect::<Vec<_>>());
        // The narrow results beside each other.
        let mut e = vec![0.0; rows * rank];
        let with_gradient = self.maps.iter().zip(&d_y).zip(self.columns());
        let columns =
            with_gradient.filter(|((map, d_y), _)| map.factors.is_some() && d_y.is_some()).map(|(_, columns)| columns);
        for (columns, product) in columns.zip(products) {
            for (row, values) in e.chunks_exact_mut(rank).zip(product.chunks_exact(columns.len())) {
                row[columns.clone()].copy_from_slice(values);
            }
        }
        let d_h = self.scaled(&e);
        Backward { operands: self, h, d_y, e, d_h }
    }

    /// The sum of ranks.
    fn rank(&self) -> usize {
        self.maps.iter().map(LinearMap::rank).sum()
    }

    /// The columns of each map's rank dimensions among all of them.
    fn columns(&self) -> impl Iterator<Item = Range<usize>> {
        self.maps.iter().scan(0, |end, map| {
            let start = *end;
            *end += map.rank();
            Some(start..*end)
        })
    }

    /// The first factors beside each other, `[d_in, sum of ranks]`.
    fn first_factors(&self) -> Vec<f32> {
        let (width, rank) = (self.x.columns(), self.rank());
        let mut beside = vec![0.0; width * rank];
        for (map, columns) in self.maps.iter().zip(self.columns()) {
            let Some(Factors { a, .. }) = map.factors else { continue };
            assert_eq!([a.rows(), a.columns()], [width, columns.len()], "a first factor");
            for (row, out) in beside.chunks_exact_mut(rank).enumerate() {
                out[columns.clone()].iter_mut().enumerate().for_each(|(column, out)| *out = a.at(row, column));
            }
        }
        beside
    }

    fn beside<'b>(&self, first_factors: &'b [f32]) -> Matrix<'b> {
        Matrix::new(first_factors, self.x.columns(), self.rank())
    }

    /// `h * scale s`, map by map.
    fn scaled(&self, h: &[f32]) -> Vec<f32> {
        let mut factors = Vec::with_capacity(self.rank());
        for Factors { a, s, scale, .. } in self.maps.iter().filter_map(|map| map.factors) {
            match s {
                Some(s) => factors.extend(s.iter().map(|s| s * scale)),
                None => factors.extend(std::iter::repeat_n(scale, a.columns())),
            }
        }
        assert_eq!(factors.len(), self.rank(), "as many singular values as the rank");
        let mut scaled = h.to_vec();
        wide(
            #[inline(always)]
            || {
                for row in scaled.chunks_exact_mut(factors.len().max(1)) {
                    row.iter_mut().zip(&factors).for_each(|(value, factor)| *value *= factor);
                }
            },
        );
        scaled
    }
}

impl LinearMap<'_> {
    fn rank(&self) -> usize {
        self.factors.map_or(0, |factors| factors.a.columns())
    }
}

/// The backward pass.
#[derive(Debug)]
pub struct Backward<'a> {
    operands: LinearMaps<'a>,
    h: &'a [f32],
    d_y: Vec<Option<Matrix<'a>>>,
    /// `dY B^T` of all maps beside each other.
    e: Vec<f32>,
    /// The same, times `scale s`.
    d_h: Vec<f32>,
}

impl Backward<'_> {
    /// The gradient of the input, `[rows, d_in]`.
    pub fn x(&self) -> Vec<f32> {
        let (rows, rank) = (self.operands.x.rows(), self.operands.rank());
        let a = self.operands.first_factors();
        let gradients = self.operands.maps.iter().zip(&self.d_y);
        let mut list: Vec<Summand<'_>> =
            gradients.filter_map(|(map, d_y)| Some(Summand::of_weight((*d_y)?, map.weight.transposed()))).collect();
        if rank > 0 {
            let x = Matrix::new(&self.d_h, rows, rank);
            list.push(Summand::of_factor(x, self.operands.beside(&a).transposed()));
        }
        if list.is_empty() {
            return vec![0.0; rows * self.operands.x.columns()];
        }
        sums(rows, &[list]).into_iter().next().unwrap_or_default()
    }

    /// The gradients of each map's factors; absent if it has none.
    pub fn factors(&self) -> Vec<Option<FactorGradients>> {
        let LinearMaps { x, maps } = self.operands;
        let (rows, width, rank) = (x.rows(), x.columns(), self.operands.rank());
        let mut d_a = vec![0.0; width * rank];
        Product::new(x.transposed(), Matrix::new(&self.d_h, rows, rank)).compute(&mut d_a, Update::Overwrite);
        let scaled = self.operands.scaled(self.h);
        let of_one = |((map, columns), d_y): ((&LinearMap<'_>, Range<usize>), &Option<Matrix<'_>>)| {
            let factors = map.factors?;
            let a = d_a.chunks_exact(rank).flat_map(|row| &row[columns.clone()]).copied().collect();
            let mut b = vec![0.0; columns.len() * map.weight.columns()];
            if let Some(d_y) = d_y {
                let t = Matrix::new(&scaled, rows, rank).column_range(columns.start, columns.end);
                Product::new(t.transposed(), *d_y).compute(&mut b, Update::Overwrite);
            }
            let mut s = vec![0.0; columns.len()];
            for (e, h) in self.e.chunks_exact(rank).zip(self.h.chunks_exact(rank)) {
                let pairs = e[columns.clone()].iter().zip(&h[columns.clone()]);
                s.iter_mut().zip(pairs).for_each(|(s, (e, h))| *s += e * h * factors.scale);
            }
            Some(FactorGradients { a, s, b })
        };
        maps.iter().zip(self.operands.columns()).zip(&self.d_y).map(of_one).collect()
    }

    /// The gradient of each map's bias; absent if it has none or if its output has no gradient.
    pub fn biases(&self) -> Vec<Option<Vec<f32>>> {
        let sums = |(map, d_y): (&LinearMap<'_>, &Option<Matrix<'_>>)| {
            map.bias?;
            Some(crate::linear::column_sums((*d_y)?.data(), map.weight.columns()))
        };
        self.operands.maps.iter().zip(&self.d_y).map(sums).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factored::FactoredLinear;
    use crate::testing::values;

    #[test]
    fn several_maps_give_what_each_gives_alone() {
        let (rows, width) = (37, 50);
        let shapes = [(24, 3), (10, 0), (70, 5)];
        let numbers = |seed: u32, count| values(count, seed);
        let x = numbers(1, rows * width);
        let parts: Vec<[Vec<f32>; 6]> = (2u32..)
            .zip(shapes)
            .map(|(seed, (d_out, rank))| {
                let sizes = [width * d_out, d_out, width * rank, rank, rank * d_out, rows * d_out];
                let mut seed = 10 * seed;
                sizes.map(|size| {
                    seed += 1;
                    numbers(seed, size)
                })
            })
            .collect();
        let map = |([weight, bias, a, s, b, _], (d_out, rank)): (&'_ [Vec<f32>; 6], (usize, usize))| LinearMap {
            weight: Weight::F32(Matrix::new(leak(weight), width, d_out)),
            bias: Some(leak(bias)),
            factors: (rank > 0).then(|| Factors {
                a: Matrix::new(leak(a), width, rank),
                s: Some(leak(s)),
                b: Matrix::new(leak(b), rank, d_out),
                scale: 0.7,
            }),
        };
        let maps: Vec<LinearMap<'_>> = parts.iter().zip(shapes).map(map).collect();
        let operands = LinearMaps { x: Matrix::new(&x, rows, width), maps: &maps };
        let Output { y, h } = operands.forward();
        let d_y: Vec<Option<&[f32]>> = parts.iter().map(|part| Some(part[5].as_slice())).collect();
        let backward = operands.backward(&h, &d_y);
        let (found, biases) = (backward.factors(), backward.biases());
        let mut d_x = vec![0.0; rows * width];
        let near = |a: &[f32], b: &[f32]| {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{a} and {b}"));
        };
        for (index, map) in maps.iter().enumerate() {
            let d_y = parts[index].each_ref()[5];
            let Some(Factors { a, s, b, scale }) = map.factors else {
                near(&y[index], &crate::linear::forward(&x, rows, map.weight, map.bias));
                let more = crate::linear::input_gradient(d_y, rows, map.weight);
                d_x.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
                assert!(found[index].is_none());
                continue;
            };
            let alone = FactoredLinear {
                x: operands.x,
                weight: map.weight,
                bias: map.bias,
                adapter_input: None,
                a,
                s,
                b,
                scale,
            };
            let output = alone.forward();
            near(&y[index], &output.y);
            let gradients = alone.backward(&output.h, d_y);
            let FactorGradients { a, s, b } = found[index].as_ref().unwrap();
            near(a, &gradients.a());
            near(s, &gradients.s());
            near(b, &gradients.b());
            near(biases[index].as_ref().unwrap(), &gradients.bias());
            d_x.iter_mut().zip(gradients.x()).for_each(|(sum, more)| *sum += more);
        }
        near(&backward.x(), &d_x);
        // An output that is not used adds nothing.
        let only = operands.backward(&h, &[None, d_y[1], None]);
        near(&only.x(), &crate::linear::input_gradient(d_y[1].unwrap(), rows, maps[1].weight));
        assert!(only.factors()[0].as_ref().unwrap().b.iter().all(|value| *value == 0.0));
    }

    fn leak(values: &[f32]) -> &'static [f32] {
        values.to_vec().leak()
    }
}
