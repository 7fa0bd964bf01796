//! Several linear maps of one input on flex.
//!
//! An operation of burn's graph has one output. So the maps are one node without a value, which computes all gradients, and each output is
//! a node behind it, which leaves its gradient for that node.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, ExtensionType, Flex, backend_extension};
use burn::prelude::*;
use sorsa_kernels::linear_maps::{Factors, LinearMap as KernelMap, LinearMaps as Kernel, Output};

use super::LinearMap;
use crate::factored::LowRankFactors;
use crate::flex::tensors::{
    FlexTensor, KernelWeight, Tracked, absent, contiguous, floats, gradient_of, is_absent, matrix, optional_floats,
    rows, shape_with_last, tensor, weight_operands, with_matrix_strides,
};
use crate::form::count_fused_call;

/// The most maps of one operation.
pub(super) const MOST: usize = 3;

/// One map. `weight` or `words` is absent; `bias`, `s`, and both of `a` and `b` may be. If all are absent, there is no map.
#[derive(Debug, Clone, ExtensionType)]
pub(crate) struct MapOperands<B: Backend> {
    weight: FloatTensor<B>,
    words: IntTensor<B>,
    bias: FloatTensor<B>,
    a: FloatTensor<B>,
    s: FloatTensor<B>,
    b: FloatTensor<B>,
    scale: f64,
}

/// The operands of one call.
#[derive(Debug, Clone, ExtensionType)]
pub(crate) struct Operands<B: Backend> {
    x: FloatTensor<B>,
    #[extension_type]
    first: MapOperands<B>,
    #[extension_type]
    second: MapOperands<B>,
    #[extension_type]
    third: MapOperands<B>,
}

/// The outputs. The third is absent if there are two maps.
#[derive(Debug, Clone, ExtensionType)]
pub(crate) struct Outputs<B: Backend> {
    first: FloatTensor<B>,
    second: FloatTensor<B>,
    third: FloatTensor<B>,
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait LinearMapsExtension: Backend {
    fn fused_linear_maps(#[extension_type] operands: Operands<Self>) -> Outputs<Self>;
}

impl LinearMapsExtension for Flex {
    fn fused_linear_maps(operands: Operands<Self>) -> Outputs<Self> {
        let Operands { x, first, second, third } = operands;
        let x = contiguous(x);
        let maps: Vec<Map> = [first, second, third].into_iter().filter_map(Map::new).collect();
        let (outputs, _) = forward(&x, &maps);
        let [first, second, third] = padded(outputs);
        Outputs { first, second, third }
    }
}

impl<C: CheckpointStrategy> LinearMapsExtension for Autodiff<Flex, C> {
    fn fused_linear_maps(operands: Operands<Self>) -> Outputs<Self> {
        tracked::<C>(operands)
    }
}

pub(super) fn linear_maps<const D: usize, const N: usize>(x: Tensor<D>, maps: [LinearMap; N]) -> [Tensor<D>; N] {
    count_fused_call();
    let device = x.device().without_autodiff();
    let operands = |map: Option<LinearMap>| {
        let Some(LinearMap { weight, bias, factors }) = map else {
            let words = Tensor::<1, Int>::empty([0], (&device, burn::tensor::DType::I32)).into_dispatch();
            let [weight, a, b] = [(); 3].map(|()| absent::<2>(&device).into_dispatch());
            let [bias, s] = [(); 2].map(|()| absent::<1>(&device).into_dispatch());
            return MapOperands { weight, words, bias, a, s, b, scale: 0.0 };
        };
        let (weight, words) = weight_operands(weight, &device);
        let bias = bias.unwrap_or_else(|| absent(&device)).into_dispatch();
        let (a, s, b, scale) = match factors {
            Some(LowRankFactors { a, s, b, scale }) => (a, s, b, scale),
            None => (absent(&device), None, absent(&device), 0.0),
        };
        let s = s.unwrap_or_else(|| absent(&device));
        MapOperands {
            weight: weight.into_dispatch(),
            words: words.into_dispatch(),
            bias,
            a: a.into_dispatch(),
            s: s.into_dispatch(),
            b: b.into_dispatch(),
            scale,
        }
    };
    let mut maps = maps.into_iter();
    let [first, second, third] = [maps.next(), maps.next(), maps.next()].map(operands);
    let Outputs { first, second, third } =
        Dispatch::fused_linear_maps(Operands { x: x.into_dispatch(), first, second, third });
    let mut outputs = [first, second, third].into_iter().take(N).map(Tensor::<D>::from_dispatch);
    std::array::from_fn(|_| outputs.next().expect("as many outputs as maps"))
}

/// One map of the kernel.
#[derive(Debug, Clone)]
struct Map {
    weight: KernelWeight,
    bias: FlexTensor,
    a: FlexTensor,
    s: FlexTensor,
    b: FlexTensor,
    scale: f64,
}

impl Map {
    /// The map of its operands; none if all are absent.
    fn new(operands: MapOperands<Flex>) -> Option<Self> {
        let MapOperands { weight, words, bias, a, s, b, scale } = operands;
        if is_absent(&weight) && words.layout().num_elements() == 0 {
            return None;
        }
        Some(Self {
            weight: KernelWeight::new(weight, words),
            bias: contiguous(bias),
            a: with_matrix_strides(a),
            s: contiguous(s),
            b: with_matrix_strides(b),
            scale,
        })
    }

    fn kernel(&self) -> KernelMap<'_> {
        let factors = || Factors {
            a: matrix(&self.a),
            s: optional_floats(&self.s),
            b: matrix(&self.b),
            scale: self.scale as f32,
        };
        KernelMap {
            weight: self.weight.view(),
            bias: optional_floats(&self.bias),
            factors: if is_absent(&self.a) { None } else { Some(factors()) },
        }
    }
}

/// The outputs, and `x A` of all maps for the backward pass.
fn forward(x: &FlexTensor, maps: &[Map]) -> (Vec<FlexTensor>, Vec<f32>) {
    let kernels: Vec<KernelMap<'_>> = maps.iter().map(Map::kernel).collect();
    let Output { y, h } = Kernel { x: rows(x), maps: &kernels }.forward();
    let outputs = y.into_iter().zip(&kernels).map(|(y, map)| tensor(y, shape_with_last(x, map.weight.columns())));
    (outputs.collect(), h)
}

/// The outputs, and absent tensors up to three.
fn padded(outputs: Vec<FlexTensor>) -> [FlexTensor; MOST] {
    let mut outputs = outputs.into_iter();
    [(); MOST].map(|()| outputs.next().unwrap_or_else(|| tensor(Vec::new(), [0])))
}

fn tracked<C: CheckpointStrategy>(operands: Operands<Autodiff<Flex, C>>) -> Outputs<Autodiff<Flex, C>> {
    let Operands { x, first, second, third } = operands;
    let mut nodes = vec![x.node()];
    for map in [&first, &second, &third] {
        nodes.extend([&map.a, &map.s, &map.b].map(|factor| factor.node()));
    }
    let nodes = nodes.try_into().unwrap_or_else(|_| unreachable!("one input and three factors of each map"));
    let prepared = LinearMaps.prepare::<C>(nodes).compute_bound().stateful();
    let in_graph = x.primitive().is_contiguous();
    let input = contiguous(x.clone().into_primitive());
    let maps: Vec<Map> = [first, second, third].map(without_graph).into_iter().filter_map(Map::new).collect();
    let (outputs, h) = forward(&input, &maps);
    let outputs = padded(outputs);
    let [first, second, third] = match prepared {
        OpsKind::Tracked(mut prepared) => {
            let input = if in_graph { Input::Node(prepared.checkpoint(&x)) } else { Input::Copy(input) };
            let gradients = Slots::default();
            let parent = prepared.finish(State { input, maps, h, gradients: gradients.clone() }, nothing());
            let mut index = 0;
            outputs.map(|output| {
                let prepared = Part.prepare::<C>([parent.node()]).compute_bound().stateful();
                let part = (gradients.clone(), index);
                index += 1;
                match prepared {
                    OpsKind::Tracked(prepared) => prepared.finish(part, output),
                    OpsKind::UnTracked(prepared) => prepared.finish(output),
                }
            })
        }
        OpsKind::UnTracked(_) => outputs.map(<Autodiff<Flex, C> as AutodiffBackend>::from_inner),
    };
    Outputs { first, second, third }
}

fn without_graph<C: CheckpointStrategy>(map: MapOperands<Autodiff<Flex, C>>) -> MapOperands<Flex> {
    let MapOperands { weight, words, bias, a, s, b, scale } = map;
    let [weight, bias, a, s, b] = [weight, bias, a, s, b].map(|operand: Tracked| operand.into_primitive());
    MapOperands { weight, words, bias, a, s, b, scale }
}

/// The value of a node that has none.
fn nothing() -> FlexTensor {
    tensor(vec![0.0], [1])
}

/// The gradients of the outputs, which their nodes leave for the node of the maps.
#[derive(Debug, Clone, Default)]
struct Slots(Arc<Mutex<[Option<FlexTensor>; MOST]>>);

impl Slots {
    fn lock(&self) -> MutexGuard<'_, [Option<FlexTensor>; MOST]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Part;

impl Backward<Flex, 1> for Part {
    /// The slots, and the index of the output.
    type State = (Slots, usize);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = contiguous(gradients.consume::<Flex>(&ops.node));
        let (slots, index) = ops.state;
        slots.lock()[index] = Some(gradient);
        if let [Some(parent)] = ops.parents {
            gradients.register::<Flex>(parent.id, nothing());
        }
    }
}

#[derive(Debug)]
struct LinearMaps;

#[derive(Debug, Clone)]
struct State {
    input: Input,
    maps: Vec<Map>,
    h: Vec<f32>,
    gradients: Slots,
}

/// The input in the backward pass.
#[derive(Debug, Clone)]
enum Input {
    /// The graph keeps it at this node, or computes it again.
    Node(NodeId),
    /// It was not contiguous; this copy is.
    Copy(FlexTensor),
}

impl Backward<Flex, 10> for LinearMaps {
    type State = State;

    fn backward(self, ops: Ops<State, 10>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        gradients.consume::<Flex>(&ops.node);
        let State { input, maps, h, gradients: slots } = ops.state;
        let x = match input {
            Input::Node(node) => contiguous(checkpointer.retrieve_node_output(node)),
            Input::Copy(x) => x,
        };
        let d_y = std::mem::take(&mut *slots.lock());
        let kernels: Vec<KernelMap<'_>> = maps.iter().map(Map::kernel).collect();
        let d_y: Vec<Option<&[f32]>> = d_y[..maps.len()].iter().map(|d_y| d_y.as_ref().map(floats)).collect();
        let backward = Kernel { x: rows(&x), maps: &kernels }.backward(&h, &d_y);
        let [x_node, factor_nodes @ ..] = ops.parents;
        let mut factor_nodes = factor_nodes.into_iter();
        // The factors of an output without a gradient get zeros, as the nodes before them ask for one.
        for (found, map) in backward.factors().into_iter().zip(&maps) {
            let nodes = [factor_nodes.next(), factor_nodes.next(), factor_nodes.next()].map(Option::flatten);
            let Some(found) = found else { continue };
            for (node, (gradient, factor)) in
                nodes.into_iter().zip([(found.a, &map.a), (found.s, &map.s), (found.b, &map.b)])
            {
                if let Some(node) = node {
                    gradients.register::<Flex>(node.id, gradient_of(gradient, factor));
                }
            }
        }
        if let Some(node) = x_node {
            gradients.register::<Flex>(node.id, gradient_of(backward.x(), &x));
        }
    }
}
