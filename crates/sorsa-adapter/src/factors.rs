//! Factors of a method: names, shapes and products; and the tensors on the host that are saved, loaded, cached and turned
//! into parameters.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;
use sorsa_linalg::faer::{Mat, MatRef, Scale};

use crate::parameters::ParameterGroup;

/// An f32 tensor in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Axes.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub values: Vec<f32>,
}

/// Tensors by name.
pub type NamedTensors = BTreeMap<String, HostTensor>;

/// A line for each tensor that holds NaN or infinity, with how many.
pub fn not_finite(tensors: &NamedTensors) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, tensor) in tensors {
        match tensor.values.iter().filter(|value| !value.is_finite()).count() {
            0 => {}
            count => faults.push(format!("{count} of {} in `{name}`", tensor.values.len())),
        }
    }
    faults
}

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
            Axes::Rank | Axes::RankRank | Axes::Out => None,
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
    /// The product times `scale`, `[d_in, d_out]`.
    pub fn dense(&self, scale: f64) -> Mat<f32> {
        self.a.matrix() * self.b.matrix() * Scale(scale as f32)
    }

    /// `[A, A_0]` and `[B; -B_0]`, of rank `2 r`: their product is this pair's minus that of `start`.
    pub fn minus(&self, start: &Self) -> Self {
        let (rank, d_in) = (self.a.shape[1], self.a.shape[0]);
        let rows = self.a.values.chunks_exact(rank).zip(start.a.values.chunks_exact(rank));
        let a = rows.flat_map(|(now, before)| now.iter().chain(before).copied()).collect();
        let b = self.b.values.iter().copied().chain(start.b.values.iter().map(|value| -value)).collect();
        Self { a: HostTensor::new([d_in, 2 * rank], a), b: HostTensor::new([2 * rank, self.b.shape[1]], b) }
    }
}

/// The principal triplets of one weight: `u` `[d_in, r]`, `s` `[r]` descending, `vt` `[r, d_out]`.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    pub u: HostTensor,
    pub s: Vec<f32>,
    pub vt: HostTensor,
}

impl HostTensor {
    /// A tensor from its shape and elements.
    ///
    /// # Panics
    ///
    /// Panics where their number differs from the product of the shape.
    pub fn new(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), values.len(), "elements of a tensor of shape {shape:?}");
        Self { shape, values }
    }

    /// A copy of a burn tensor of any float dtype.
    pub fn from_tensor<const D: usize>(tensor: Tensor<D>) -> Self {
        let shape = tensor.dims().to_vec();
        let values = tensor.into_data().convert::<f32>().try_into_vec::<f32>().expect("converted to f32");
        Self { shape, values }
    }

    /// A tensor of two axes as faer sees it.
    ///
    /// # Panics
    ///
    /// Panics for any other number of axes.
    pub fn matrix(&self) -> MatRef<'_, f32> {
        let [rows, cols] = self.shape[..] else { panic!("a matrix has two axes, not {:?}", self.shape) };
        MatRef::from_row_major_slice(&self.values, rows, cols)
    }

    /// A copy of a matrix of faer's.
    pub(crate) fn from_matrix(matrix: MatRef<'_, f32>) -> Self {
        let mut values = Vec::with_capacity(matrix.nrows() * matrix.ncols());
        matrix.row_iter().for_each(|row| values.extend(row.iter()));
        Self::new([matrix.nrows(), matrix.ncols()], values)
    }

    /// The transpose of a matrix.
    pub(crate) fn transposed(&self) -> Self {
        Self::from_matrix(self.matrix().transpose())
    }

    /// The tensor on a device, f32.
    ///
    /// # Panics
    ///
    /// Panics where `D` is not the number of axes.
    pub fn to_tensor<const D: usize>(&self, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new::<f32, _>(self.values.clone(), self.shape.clone()), (device, DType::F32))
    }

    /// A trainable parameter on a device, f32.
    pub(crate) fn param<const D: usize>(&self, device: &Device) -> Param<Tensor<D>> {
        Param::from_tensor(self.to_tensor(device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transpose_exchanges_rows_and_columns() {
        let matrix = HostTensor::new([2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let turned = matrix.transposed();
        assert_eq!(turned, HostTensor::new([3, 2], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
        assert_eq!(turned.transposed(), matrix);
    }
}
