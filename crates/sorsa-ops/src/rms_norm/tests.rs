use burn::prelude::*;

use super::{rms_norm, rms_norm_offset};
use crate::testing::{flat, ones, same};

#[test]
fn a_weight_of_zero_is_a_scale_of_one() {
    let device = Device::flex();
    let x = Tensor::<2>::from_floats([[1.0, -2.0, 3.0], [0.5, 0.25, -4.0]], &device);
    let found = rms_norm_offset(x.clone(), Tensor::zeros([3], &device), 1e-6);
    let expected = rms_norm(x, Tensor::ones([3], &device), 1e-6);
    assert_eq!(found.into_data(), expected.into_data());
}

#[test]
fn a_row_of_equal_values_becomes_the_weight() {
    let device = Device::flex();
    let x = Tensor::<2>::full([2, 4], -3.0, &device);
    let y = rms_norm(x, Tensor::from_floats([1.0, 2.0, 3.0, 4.0], &device), 0.0);
    let values = y.into_data().try_into_vec::<f32>().unwrap();
    for (value, weight) in values.iter().zip([1.0, 2.0, 3.0, 4.0].iter().cycle()) {
        assert!((value + weight).abs() < 1e-6);
    }
}

#[test]
fn rms_norm_equals_its_plain_form() {
    for (rows, width) in [(1, 1), (1, 7), (3, 16), (70, 33)] {
        for tracked in [[true, true], [true, false], [false, true]] {
            same("rms norm", &[rows * width, width], &tracked, |t| {
                flat(rms_norm(t[0].clone().reshape([1, rows, width]), t[1].clone(), 1e-5))
            });
        }
    }
}

#[test]
fn rms_norm_takes_strided_rows() {
    same("rms norm of a transposed tensor", &[5 * 6, 5], &[true, true], |t| {
        flat(rms_norm(t[0].clone().reshape([5, 6]).transpose(), t[1].clone() + 1.0, 1e-6))
    });
}

#[test]
#[should_panic(expected = "the weight has another width than x")]
fn a_norm_of_another_width_is_not_cut() {
    rms_norm(ones([4, 6]), ones([1]), 1e-6);
}
