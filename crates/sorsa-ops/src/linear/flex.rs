//! The linear map `Y = X W + bias`, for weights in f32 or bf16 beside f32 activations.
//!
//! ```text
//! dX = dY W^T        dW = X^T dY where W is trained        dbias = colsum(dY)
//! ```

use burn::backend::Flex;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

use super::product::{Matrix, Threads, multiply};
use super::simd::{add_scaled, wide};
use super::storage::{Tracked, Values, contiguous, floats, into_vec, of_dtype, rows_and_width, shape, tensor};
use super::weight::{Weight, with_weight_strides};

/// `x` `[.., d_in]`, `weight` `[d_in, d_out]` of either dtype, `bias` `[d_out]` or nothing; the result `[.., d_out]`.
pub(super) fn forward(x: &Values, weight: &Values, bias: &Values) -> Values {
    let [rows, _] = rows_and_width(x);
    let w = Weight::of(weight);
    let d_out = w.columns();
    let mut y = vec![0.0; rows * d_out];
    w.multiply(&mut y, floats(x), false);
    if bias.layout().num_elements() > 0 {
        assert_eq!(floats(bias).len(), d_out, "the bias has another width than the output");
        y.chunks_exact_mut(d_out).for_each(|row| add_scaled(row, floats(bias), 1.0));
    }
    let mut shape = shape(x);
    if let Some(last) = shape.last_mut() {
        *last = d_out;
    }
    tensor(y, shape)
}

/// `sum + factor a b`, in the memory of `sum` where nothing else holds it.
pub(super) fn add_product(sum: Values, a: Values, b: Values, factor: f64) -> Values {
    let (shape, a, b) = (shape(&sum), with_weight_strides(a), with_weight_strides(b));
    let mut sum = into_vec(contiguous(sum));
    let matrix = |t| Matrix::of(t).expect("two axes, strides of zero or more");
    let (a, b) = (matrix(&a), matrix(&b));
    assert_eq!(shape[..], [a.rows(), b.columns()], "the sum has another shape than the product");
    multiply(&mut sum, a, b, factor as f32, true, Threads::All);
    tensor(sum, shape)
}

/// The operands in the order of memory that [`forward`] takes.
pub(super) fn arranged(x: Values, weight: Values, bias: Values) -> [Values; 3] {
    [contiguous(x), with_weight_strides(weight), contiguous(bias)]
}

/// `X^T dY`, the gradient of a weight, in the weight's dtype.
pub(super) fn weight_gradient(x: Matrix<'_>, dy: Matrix<'_>, weight: &Values) -> Values {
    let mut dw = vec![0.0; weight.layout().num_elements()];
    multiply(&mut dw, x.transposed(), dy, 1.0, false, Threads::All);
    of_dtype(tensor(dw, shape(weight)), weight.dtype())
}

/// The sum of rows.
pub(super) fn column_sums(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    wide(
        #[inline(always)]
        || rows.chunks_exact(width.max(1)).for_each(|row| add_scaled(&mut sums, row, 1.0)),
    );
    sums
}

#[derive(Debug)]
struct Linear;

impl Backward<Flex, 3> for Linear {
    /// Where the weight is trained, `x` or its node; the weight; the shapes of `x` and of the bias.
    type State = (Option<Values>, Option<NodeId>, Values, [Vec<usize>; 2]);

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = contiguous(gradients.consume::<Flex>(&ops.node));
        let (x, x_at, weight, [x_shape, bias_shape]) = ops.state;
        let x = x_at.map_or(x, |node| Some(contiguous(checkpointer.retrieve_node_output(node))));
        let [x_node, weight_node, bias_node] = ops.parents;
        let [rows, d_out] = rows_and_width(&dy);
        if let Some(node) = x_node {
            let mut dx = vec![0.0; x_shape.iter().product()];
            Weight::of(&weight).transposed().multiply(&mut dx, floats(&dy), false);
            gradients.register::<Flex>(node.id, tensor(dx, x_shape));
        }
        if let (Some(node), Some(x)) = (weight_node, x) {
            let x = Matrix::new(floats(&x), rows, rows_and_width(&x)[1]);
            let dw = weight_gradient(x, Matrix::new(floats(&dy), rows, d_out), &weight);
            gradients.register::<Flex>(node.id, dw);
        }
        if let Some(node) = bias_node {
            gradients.register::<Flex>(node.id, tensor(column_sums(floats(&dy), d_out), bias_shape));
        }
    }
}

pub(super) fn tracked<C: CheckpointStrategy>(x: Tracked, weight: Tracked, bias: Tracked) -> Tracked {
    let trained = weight.is_tracked();
    let prepared = Linear.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful();
    let input = x.clone();
    let kept_as_it_is = input.primitive().is_contiguous();
    let [x, weight, bias] = arranged(x.into_primitive(), weight.into_primitive(), bias.into_primitive());
    let y = forward(&x, &weight, &bias);
    match prepared {
        OpsKind::Tracked(mut prepared) => {
            let shapes = [shape(&x), shape(&bias)];
            // The graph keeps it, or computes it again.
            let x_at = (trained && kept_as_it_is).then(|| prepared.checkpoint(&input));
            let x = (trained && !kept_as_it_is).then_some(x);
            prepared.finish((x, x_at, weight, shapes), y)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    }
}
