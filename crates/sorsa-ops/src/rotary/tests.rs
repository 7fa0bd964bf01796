use burn::prelude::*;

use super::*;
use crate::testing::{leaf, same_forward};

fn rotated(x: [f32; 4], frequencies: &[f64], position: i32) -> Vec<f32> {
    let device = Device::flex();
    let x = Tensor::<1>::from_floats(x, &device).reshape([1, 1, 1, 4]);
    let angles = RotaryAngles::new(frequencies, 1.0, &[position], [1, 1], &device);
    rotate_half(x, &angles).into_data().try_into_vec::<f32>().unwrap()
}

#[test]
fn rotation_keeps_lengths_and_depends_on_the_difference_of_positions() {
    let at = |x, position| rotated(x, &[1.0, 0.1], position);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let (q, k) = ([0.3, -1.0, 2.0, 0.7], [1.5, 0.2, -0.4, 1.0]);
    assert!((dot(&at(q, 5), &at(q, 5)) - dot(&q, &q)).abs() < 1e-5);
    assert!((dot(&at(q, 7), &at(k, 3)) - dot(&at(q, 13), &at(k, 9))).abs() < 1e-5);
}

#[test]
fn planes_pair_the_first_half_with_the_second() {
    let y = rotated([1.0, 0.0, 0.0, 0.0], &[1.0, 0.0], 1);
    let expected = [1f32.cos(), 0.0, 1f32.sin(), 0.0];
    assert!(y.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{y:?}");
}

#[test]
fn rotation_alone_equals_its_plain_form() {
    let device = Device::flex();
    for (batch, heads, seq, width, rows) in [(1, 1, 1, 2, 1), (2, 3, 1, 8, 2), (2, 2, 5, 6, 1)] {
        let frequencies: Vec<f64> = (0..width / 2).map(|plane| 0.5f64.powi(plane)).collect();
        let positions: Vec<i32> = (0..rows * seq).map(|i| 3 + 2 * i as i32).collect();
        let angles = RotaryAngles::new(&frequencies, 1.1, &positions, [rows, seq], &device);
        let x = leaf(batch * heads * seq * width as usize, 1, &device).reshape([batch, seq, heads, width as usize]);
        same_forward("rotation", || rotate_half(x.clone().swap_dims(1, 2), &angles));
    }
}
