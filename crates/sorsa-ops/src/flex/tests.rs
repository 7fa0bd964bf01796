use burn::prelude::*;
use burn::tensor::FloatDType::F32;

use super::recomputation::RECOMPUTATIONS;
use crate::testing::{flat, same};
use crate::{LowRankFactors, factored_linear, gated_silu, rms_norm};

#[test]
fn norms_and_gated_units_are_computed_once_more_for_the_maps_that_follow() {
    const SIZES: [usize; 3] = [5, 6, 7];
    let [rows, width, inner] = SIZES;
    let (up, rank) = (width * inner, 2);
    let lengths = [rows * width, width, up, width * rank, rank * inner, up, inner * rank, rank * width];
    // The input, the weight of the norm, the first map with its factors, the second map with its factors.
    let adapters = [false, false, false, true, true, false, true, true];
    let weights = [false, true, true, false, false, true, false, false];
    for (name, mut tracked) in [("adapters", adapters), ("weights", weights), ("all", [true; 8])] {
        for input in [false, true] {
            tracked[0] = input;
            let before = RECOMPUTATIONS.get();
            let block = |t: &[Tensor<1>]| {
                let matrix = |i: usize, shape: [usize; 2]| t[i].clone().reshape(shape);
                let x = rms_norm(t[0].clone().reshape([1, rows, width]), t[1].clone(), 1e-5);
                let factored = |x: Tensor<3>, first: usize, [d_in, d_out]: [usize; 2]| {
                    let (a, b) = (matrix(first + 1, [d_in, rank]), matrix(first + 2, [rank, d_out]));
                    let factors = LowRankFactors { a, s: None, b, scale: 0.5 };
                    factored_linear(x, matrix(first, [d_in, d_out]), None, None, factors)
                };
                let (gate, up) = (factored(x.clone(), 2, [width, inner]), factored(x, 2, [width, inner]));
                flat(factored(gated_silu(gate, up, F32), 5, [inner, width]))
            };
            same(name, &lengths, &tracked, block);
            // The gated unit is always in the graph, the norm if its input or its weight is. Both maps share one result.
            let expected = 1 + usize::from(tracked[0] || tracked[1]);
            assert_eq!(RECOMPUTATIONS.get() - before, expected, "{name}, input {input}");
        }
    }
}
