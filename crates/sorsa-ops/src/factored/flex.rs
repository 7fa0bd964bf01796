//! The factored linear map: three products into one output, and a backward pass without temporaries of the size of
//! its input or output. With `h = x_a A`, `t = scale s` and a gradient `dY`:
//!
//! ```text
//! Y = X W + (h * t) B + bias
//! dB = (h * t)^T dY      e = dY B^T      ds = scale colsum(e * h)      dA = X_a^T (e * t)
//! dX = dY W^T            dX_a = (e * t) A^T                            dW = X^T dY where W is trained
//! ```

use burn::backend::Flex;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

use super::linear::weight_gradient;
use super::product::{Matrix, Threads, multiply};
use super::simd::{add_scaled, scale, wide};
use super::storage::{Tracked, Values, contiguous, floats, rows_and_width, shape, tensor};
use super::weight::{Weight, with_weight_strides};

/// What both passes read; absent ones have no elements.
#[derive(Debug, Clone)]
pub(super) struct Inputs {
    /// `[.., d_in]`, contiguous.
    x: Values,
    /// f32 or bf16; the rest is f32.
    weight: Values,
    bias: Values,
    adapter_input: Values,
    a: Values,
    s: Values,
    b: Values,
    scale: f32,
}

fn is_absent(tensor: &Values) -> bool {
    tensor.layout().num_elements() == 0
}

fn matrix(tensor: &Values) -> Matrix<'_> {
    Matrix::of(tensor).expect("two axes, strides of zero or more")
}

impl Inputs {
    #[allow(clippy::too_many_arguments, reason = "the terms of one equation")]
    pub fn new(
        x: Values,
        weight: Values,
        bias: Values,
        adapter_input: Values,
        a: Values,
        s: Values,
        b: Values,
        scale: f64,
    ) -> Self {
        let strided = |t: Values| if Matrix::of(&t).is_some() { t } else { t.to_contiguous() };
        Self {
            x: contiguous(x),
            weight: with_weight_strides(weight),
            bias: contiguous(bias),
            adapter_input: contiguous(adapter_input),
            a: strided(a),
            s: contiguous(s),
            b: strided(b),
            scale: scale as f32,
        }
    }

    fn rows(&self) -> usize {
        rows_and_width(&self.x)[0]
    }

    fn rank(&self) -> usize {
        matrix(&self.a).columns()
    }

    fn x(&self) -> Matrix<'_> {
        let [rows, width] = rows_and_width(&self.x);
        Matrix::new(floats(&self.x), rows, width)
    }

    fn adapter_input(&self) -> Matrix<'_> {
        if is_absent(&self.adapter_input) {
            return self.x();
        }
        let [rows, width] = rows_and_width(&self.adapter_input);
        Matrix::new(floats(&self.adapter_input), rows, width)
    }

    /// `h * scale s`.
    fn scaled(&self, h: &[f32]) -> Vec<f32> {
        let mut scaled = h.to_vec();
        wide(
            #[inline(always)]
            || {
                scale(&mut scaled, self.scale);
                if !is_absent(&self.s) {
                    let s = floats(&self.s);
                    for row in scaled.chunks_exact_mut(s.len()) {
                        row.iter_mut().zip(s).for_each(|(h, s)| *h *= s);
                    }
                }
            },
        );
        scaled
    }
}

/// The output `[.., d_out]` and `h` `[rows, rank]`.
pub(super) fn forward(inputs: &Inputs) -> (Values, Vec<f32>) {
    let (rows, rank) = (inputs.rows(), inputs.rank());
    let weight = Weight::of(&inputs.weight);
    let d_out = weight.columns();
    assert!(
        is_absent(&inputs.s) || floats(&inputs.s).len() == rank,
        "there are not as many singular values as the rank"
    );
    let mut h = vec![0.0; rows * rank];
    multiply(&mut h, inputs.adapter_input(), matrix(&inputs.a), 1.0, false, Threads::All);
    let mut y = vec![0.0; rows * d_out];
    weight.multiply(&mut y, floats(&inputs.x), false);
    multiply(&mut y, Matrix::new(&inputs.scaled(&h), rows, rank), matrix(&inputs.b), 1.0, true, Threads::All);
    if !is_absent(&inputs.bias) {
        assert_eq!(floats(&inputs.bias).len(), d_out, "the bias has another width than the output");
        y.chunks_exact_mut(d_out).for_each(|row| add_scaled(row, floats(&inputs.bias), 1.0));
    }
    let mut shape = shape(&inputs.x);
    if let Some(last) = shape.last_mut() {
        *last = d_out;
    }
    (tensor(y, shape), h)
}

#[derive(Debug)]
struct FactoredLinear;

impl Backward<Flex, 7> for FactoredLinear {
    /// The inputs, `h`, and the node of `x` where that is asked for and not among the inputs.
    type State = (Inputs, Vec<f32>, Option<NodeId>);

    fn backward(self, ops: Ops<Self::State, 7>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = contiguous(gradients.consume::<Flex>(&ops.node));
        let (mut inputs, h, x_at) = ops.state;
        if let Some(node) = x_at {
            inputs.x = contiguous(checkpointer.retrieve_node_output(node));
        }
        let [x_node, weight_node, bias_node, adapter_input_node, a_node, s_node, b_node] = ops.parents;
        let (rows, rank, d_out) = (inputs.rows(), inputs.rank(), Weight::of(&inputs.weight).columns());
        let dy_rows = floats(&dy);
        let dy = Matrix::new(dy_rows, rows, d_out);
        let of_shape = |values: Vec<f32>, like: &Values| tensor(values, shape(like));
        let product = |lhs: Matrix<'_>, rhs: Matrix<'_>, like: &Values| {
            let mut out = vec![0.0; like.layout().num_elements()];
            multiply(&mut out, lhs, rhs, 1.0, false, Threads::All);
            out
        };

        if let Some(node) = b_node {
            let scaled = inputs.scaled(&h);
            let db = product(Matrix::new(&scaled, rows, rank).transposed(), dy, &inputs.b);
            gradients.register::<Flex>(node.id, of_shape(db, &inputs.b));
        }
        let mut e = vec![0.0; rows * rank];
        multiply(&mut e, dy, matrix(&inputs.b).transposed(), 1.0, false, Threads::All);
        if let Some(node) = s_node {
            let mut ds = vec![0.0; rank];
            wide(
                #[inline(always)]
                || {
                    for (e, h) in e.chunks_exact(rank).zip(h.chunks_exact(rank)) {
                        for ((ds, e), h) in ds.iter_mut().zip(e).zip(h) {
                            *ds += e * h * inputs.scale;
                        }
                    }
                },
            );
            gradients.register::<Flex>(node.id, of_shape(ds, &inputs.s));
        }
        let dh = inputs.scaled(&e);
        let dh = Matrix::new(&dh, rows, rank);
        if let Some(node) = a_node {
            let da = product(inputs.adapter_input().transposed(), dh, &inputs.a);
            gradients.register::<Flex>(node.id, of_shape(da, &inputs.a));
        }
        if let Some(node) = adapter_input_node {
            let dx = product(dh, matrix(&inputs.a).transposed(), &inputs.adapter_input);
            gradients.register::<Flex>(node.id, of_shape(dx, &inputs.adapter_input));
        }
        if let Some(node) = x_node {
            let mut dx = vec![0.0; inputs.x.layout().num_elements()];
            Weight::of(&inputs.weight).transposed().multiply(&mut dx, dy_rows, false);
            if is_absent(&inputs.adapter_input) {
                multiply(&mut dx, dh, matrix(&inputs.a).transposed(), 1.0, true, Threads::All);
            }
            gradients.register::<Flex>(node.id, of_shape(dx, &inputs.x));
        }
        if let Some(node) = weight_node {
            gradients.register::<Flex>(node.id, weight_gradient(inputs.x(), dy, &inputs.weight));
        }
        if let Some(node) = bias_node {
            let ones = vec![1.0; rows];
            let d_bias = product(Matrix::new(&ones, 1, rows), dy, &inputs.bias);
            gradients.register::<Flex>(node.id, of_shape(d_bias, &inputs.bias));
        }
    }
}

pub(super) fn tracked<C: CheckpointStrategy>(operands: [Tracked; 7], scale: f64) -> Tracked {
    let prepared = FactoredLinear.prepare::<C>(operands.each_ref().map(|t| t.node())).compute_bound().stateful();
    let input = operands[0].clone();
    let [x, weight, bias, adapter_input, a, s, b] = operands.map(|t| t.into_primitive());
    let kept_as_it_is = x.is_contiguous();
    let mut inputs = Inputs::new(x, weight, bias, adapter_input, a, s, b, scale);
    let (y, h) = forward(&inputs);
    match prepared {
        OpsKind::Tracked(mut prepared) => {
            // The graph keeps it, or computes it again.
            let x_at = kept_as_it_is.then(|| prepared.checkpoint(&input));
            if x_at.is_some() {
                inputs.x = tensor(Vec::new(), [0]);
            }
            prepared.finish((inputs, h, x_at), y)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    }
}
