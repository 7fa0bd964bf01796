//! Factors of a method: names, shapes and products.

use std::collections::BTreeMap;
use std::ops::Range;

use sorsa_files::HostTensor;
use sorsa_linalg::faer::{Mat, Scale};

use crate::host_tensor::HostTensorExt;
use crate::parameters::ParameterGroup;

/// The factors of one module, by their short names.
pub(crate) type FactorSet = BTreeMap<&'static str, HostTensor>;

/// The axes of a factor of a weight `[d_in, d_out]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axes {
    /// `[d_in, r]`.
    InRank,
    /// `[r]`.
    Rank,
    /// `[r, r]`.
    RankRank,
    /// `[r, d_out]`.
    RankOut,
    /// `[d_out]`.
    Out,
    /// `[d_in, k]` with the smaller side `k` of the weight.
    InSide,
    /// `[k, d_out]`.
    SideOut,
    /// `[k, r]`.
    SideRank,
}

/// Which vectors of a factor the regularizer compares with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vectors {
    Columns,
    Rows,
}

/// One tensor of a method.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factor {
    /// The short name.
    pub name: &'static str,
    pub axes: Axes,
    /// The group by which the optimizer treats it.
    pub group: ParameterGroup,
    /// Which of its vectors the method's own regularizer keeps orthonormal, if any.
    pub orthonormal: Option<Vectors>,
}

impl Factor {
    /// A matrix factor that no regularizer of the method's own keeps orthonormal.
    pub const fn new(name: &'static str, axes: Axes) -> Self {
        Self { name, axes, group: ParameterGroup::Factor, orthonormal: None }
    }

    /// Its `r` vectors, if it is a matrix between the rank and a side of the weight.
    pub fn vectors(&self) -> Option<Vectors> {
        match self.axes {
            Axes::InRank => Some(Vectors::Columns),
            Axes::RankOut => Some(Vectors::Rows),
            Axes::Rank | Axes::RankRank | Axes::Out | Axes::InSide | Axes::SideOut | Axes::SideRank => None,
        }
    }

    /// Its shape for a weight `[d_in, d_out]`.
    pub fn shape(&self, [d_in, d_out]: [usize; 2], rank: usize) -> Vec<usize> {
        match self.axes {
            Axes::InRank => vec![d_in, rank],
            Axes::Rank => vec![rank],
            Axes::RankRank => vec![rank, rank],
            Axes::RankOut => vec![rank, d_out],
            Axes::Out => vec![d_out],
            Axes::InSide => vec![d_in, d_in.min(d_out)],
            Axes::SideOut => vec![d_in.min(d_out), d_out],
            Axes::SideRank => vec![d_in.min(d_out), rank],
        }
    }
}

/// Two factors of one weight, without the scale.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FactorPair {
    /// `[d_in, r]`.
    pub a: HostTensor,
    /// `[r, d_out]`.
    pub b: HostTensor,
}

impl FactorPair {
    /// The pair with `scale` in the factor `A`.
    pub fn scaled(mut self, scale: f64) -> Self {
        self.a.values.iter_mut().for_each(|value| *value *= scale as f32);
        self
    }

    /// The columns of `A`, and beside them the rows of `B`: `[r, d_in + d_out]`.
    pub fn side_by_side(&self) -> HostTensor {
        let (rank, d_out) = (self.b.shape[0], self.b.shape[1]);
        let mut values = Vec::with_capacity(self.a.values.len() + self.b.values.len());
        for k in 0..rank {
            values.extend(self.a.values.iter().skip(k).step_by(rank));
            values.extend_from_slice(&self.b.values[k * d_out..(k + 1) * d_out]);
        }
        HostTensor::new([rank, self.a.shape[0] + d_out], values)
    }

    /// The product times `scale`, `[d_in, d_out]`.
    pub fn dense(&self, scale: f64) -> Mat<f32> {
        self.a.matrix() * self.b.matrix() * Scale(scale as f32)
    }

    /// The same product with no more vectors than the smaller side: if there are more, one factor becomes the identity.
    pub fn within_sides(self) -> Self {
        let (d_in, rank, d_out) = (self.a.shape[0], self.a.shape[1], self.b.shape[1]);
        if rank <= d_in.min(d_out) {
            return self;
        }
        let product = HostTensor::from_matrix(self.dense(1.0).as_ref());
        let identity = |size| HostTensor::from_matrix(Mat::<f32>::identity(size, size).as_ref());
        match d_in < d_out {
            true => Self { a: identity(d_in), b: product },
            false => Self { a: product, b: identity(d_out) },
        }
    }

    /// `[A, A_0]` and `[B; -B_0]`, of rank `2 r`: their product is this pair's minus that of `start`.
    pub fn minus(&self, start: &Self) -> Self {
        let negative = start.b.values.iter().map(|value| -value).collect();
        self.beside(&Self { a: start.a.clone(), b: HostTensor::new(start.b.shape.clone(), negative) })
    }

    /// `[A, A_2]` and `[B; B_2]`: their product is the sum of the two products.
    pub fn beside(&self, other: &Self) -> Self {
        let (d_in, one, two) = (self.a.shape[0], self.a.shape[1], other.a.shape[1]);
        let mut a = Vec::with_capacity(d_in * (one + two));
        for i in 0..d_in {
            a.extend_from_slice(&self.a.values[i * one..(i + 1) * one]);
            a.extend_from_slice(&other.a.values[i * two..(i + 1) * two]);
        }
        let b = self.b.values.iter().chain(&other.b.values).copied().collect();
        Self { a: HostTensor::new([d_in, one + two], a), b: HostTensor::new([one + two, self.b.shape[1]], b) }
    }
}

/// The leading triplets of one weight, or those of another band: `u` `[d_in, r]`, `s` `[r]` descending, `vt` `[r, d_out]`.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    pub u: HostTensor,
    pub s: Vec<f32>,
    pub vt: HostTensor,
}

impl Principal {
    /// The triplets of these indexes, which are within those that there are.
    pub fn part(&self, indexes: Range<usize>) -> Self {
        let (d_in, d_out) = (self.u.shape[0], self.vt.shape[1]);
        let columns = self.u.values.chunks_exact(self.s.len()).flat_map(|row| &row[indexes.clone()]).copied().collect();
        let rows = self.vt.values[indexes.start * d_out..indexes.end * d_out].to_vec();
        Self {
            u: HostTensor::new([d_in, indexes.len()], columns),
            s: self.s[indexes.clone()].to_vec(),
            vt: HostTensor::new([indexes.len(), d_out], rows),
        }
    }

    /// `U diag(s)` and `V^T`.
    pub fn pair(&self) -> FactorPair {
        let mut a = self.u.clone();
        for row in a.values.chunks_exact_mut(self.s.len()) {
            row.iter_mut().zip(&self.s).for_each(|(value, s)| *value *= s);
        }
        FactorPair { a, b: self.vt.clone() }
    }

    /// `U sqrt(s / divisor)` and `sqrt(s / divisor) V^T`.
    pub fn balanced(self, divisor: f32) -> [HostTensor; 2] {
        let root: Vec<f32> = self.s.iter().map(|value| (value / divisor).sqrt()).collect();
        let (mut a, mut b) = (self.u, self.vt);
        for row in a.values.chunks_exact_mut(root.len()) {
            row.iter_mut().zip(&root).for_each(|(value, root)| *value *= root);
        }
        let d_out = b.shape[1];
        for (row, root) in b.values.chunks_exact_mut(d_out).zip(&root) {
            row.iter_mut().for_each(|value| *value *= root);
        }
        [a, b]
    }
}
