//! What the file of a method says: [`FactoredMethod`] for methods that train factors beside a frozen weight,
//! [`WholeMethod`] for those that train the weights themselves. `methods/mod.rs` has the one list of all methods.

use std::fmt::Debug;

use burn::nn::Dropout;
use burn::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sorsa_ops::{
    FactoredLinearShape, Form, LowRankFactors, OperationMemory, WeightOperand, add_product, factored_linear,
    factored_linear_memory,
};

use crate::factors::{Axes, Factor, FactorPair, FactorSet};
use crate::parameters::Parameter;
use crate::peft::PeftVariant;
use crate::penalty::Penalty;
use crate::quantized_start::StartError;
use crate::start::{StartingFactors, WeightToAdapt};
use crate::state::ModuleState;
use crate::stiefel::OrthonormalSteps;
use crate::{Adapter, AdapterConfig, AdapterFactors, Band};

/// What the factors of a method are made of at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartsFrom {
    RandomNumbers,
    /// Elements of the weight.
    Weight,
    /// Singular triplets of the weight.
    SingularTriplets,
    /// The gradient of the loss with respect to the weight.
    Gradient,
}

/// The low-rank part of one adapted weight, `scale * A diag(s) B`.
pub(crate) struct LowRank {
    /// `[d_in, r]`.
    pub a: Tensor<2>,
    /// `[r]`; if absent, all ones.
    pub s: Option<Tensor<1>>,
    /// `[r, d_out]`.
    pub b: Tensor<2>,
    pub scale: f64,
}

impl LowRank {
    /// `weight + sign * scale * A diag(s) B`, f32. This is the dense form, for merging and tests.
    ///
    /// # Shapes
    ///
    /// - weight: `[d_in, d_out]`
    /// - result: `[d_in, d_out]`
    pub fn added_to(self, weight: Tensor<2>, sign: f64) -> Tensor<2> {
        let scaled = match self.s {
            Some(s) => self.a * (s * self.scale).unsqueeze(),
            None => self.a * self.scale,
        };
        add_product(weight, scaled, self.b, sign)
    }

    /// `x W + bias + ((x_a A) * s) B * scale`. `input` is `x_a`, the adapter's input; if absent, it is `x`.
    ///
    /// # Shapes
    ///
    /// - x, input: `[.., d_in]`
    /// - base: `[d_in, d_out]`
    /// - bias: `[d_out]`
    /// - result: `[.., d_out]`
    pub fn forward<const D: usize>(
        self,
        x: Tensor<D>,
        base: WeightOperand,
        bias: Option<Tensor<1>>,
        input: Option<Tensor<D>>,
    ) -> Tensor<D> {
        let factors = LowRankFactors { a: self.a, s: self.s, b: self.b, scale: self.scale };
        factored_linear(x, base, bias, input, factors)
    }
}

/// A method that trains factors beside a frozen weight. The module is the state of one weight. By default the product
/// of the factors `a` and `b` is added to the weight.
pub(crate) trait FactoredMethod: Module {
    /// The settings that only this method has, as files and programs give them.
    type Config: Clone + Debug + Default + PartialEq + Serialize + DeserializeOwned;

    /// Name in files and on the command line.
    const NAME: &'static str;
    /// Name in tables and figures, as papers write it.
    const LABEL: &'static str;
    /// The fields of [`Config`](Self::Config).
    const SETTINGS: &'static [&'static str] = &[];
    /// The trained tensors, in the order of the struct's fields.
    const FACTORS: &'static [Factor];
    /// The method's tensors that are never trained. They are saved once, with the start.
    const FROZEN_FACTORS: &'static [Factor] = &[];
    /// The tensors that a merge saves because [`unmerge`](Self::unmerge) needs them.
    const UNMERGE_FACTORS: &'static [Factor] = &[];
    /// What the start is made of.
    const STARTS_FROM: StartsFrom;
    /// Whether the adapter at the start is a part of the weight, which is subtracted from the frozen weight.
    /// Otherwise the adapter adds nothing at the start, if [`KEEPS_OUTPUT`](Self::KEEPS_OUTPUT).
    const SPLITS_WEIGHT: bool;
    /// Whether the model computes the same with the adapter at the start.
    const KEEPS_OUTPUT: bool = true;
    /// How often the factors are fitted to the error of packing, if the configuration says nothing; absent if they are never.
    const QUANTIZATION_ROUNDS: Option<usize> = None;
    /// Whether the method leaves [`forward`](Self::forward) as it is. Then maps of one input are computed in one operation.
    const ADDS_LOW_RANK: bool = false;
    /// Whether the adapter changes the weight by exactly [`product`](Self::product) times the scale.
    const CHANGES_BY_PRODUCT: bool = true;

    /// The memory of the forward of `tokens` tokens by a weight of `shape` `[d_in, d_out]`, beside its input and its output.
    fn memory(form: Form, _shape: [usize; 2], rank: usize, tokens: usize) -> OperationMemory {
        let has_s = Self::FACTORS.iter().any(|factor| factor.axes == Axes::Rank);
        factored_linear_memory(form, FactoredLinearShape { rows: tokens, rank, has_s })
    }

    /// A line for each setting that does not fit another one of the method's or of `adapter`.
    fn faults(_config: &Self::Config, _adapter: &AdapterConfig) -> Vec<String> {
        Vec::new()
    }

    /// The terms that the method adds to the loss, each with the name of the factor that it holds small or orthonormal.
    fn penalties(_config: &Self::Config) -> Vec<(&'static str, Penalty)> {
        Vec::new()
    }

    /// How many batches the mean gradient is taken over that the method starts from, if it starts from one.
    fn gradient_batches(_config: &Self::Config) -> Option<usize> {
        None
    }

    /// Which singular triplets of the weight the start is made of.
    fn band(_config: &Self::Config) -> Band {
        Band::Principal
    }

    /// Whether the factor, one of [`FACTORS`](Self::FACTORS), is trained under these settings. Otherwise it stays as it is at the start,
    /// for methods that split the weight.
    fn trains(_config: &Self::Config, _factor: &Factor) -> bool {
        true
    }

    /// How the orthonormal ones of [`FACTORS`](Self::FACTORS) stay so; absent if the method's regularizer or nothing holds them.
    fn orthonormal_steps(_config: &Self::Config) -> Option<OrthonormalSteps> {
        None
    }

    /// The factors at the start of training, the frozen ones among them.
    fn start(config: &Self::Config, weight: &WeightToAdapt<'_>) -> Result<StartingFactors, StartError>;

    /// The module with the given factors on a device.
    fn new(factors: &FactorSet, scale: f64, dropout: Dropout, device: &Device) -> Self;

    /// The low-rank part.
    fn low_rank(&self) -> LowRank;

    /// Dropout of the adapter's input.
    fn dropout(&self) -> &Dropout;

    /// The module for its frozen weight `[d_in, d_out]`. A method may compute here what each forward needs of it.
    fn with_frozen_weight(self, _base: impl FnOnce() -> Tensor<2>) -> Self {
        self
    }

    /// `x` after the adapter's dropout; absent if nothing is dropped.
    fn drop_input<const D: usize>(&self, x: &Tensor<D>, trained: &Tensor<2>) -> Option<Tensor<D>> {
        // burn drops elements only of tensors with autodiff. In training, the input of a model may have none.
        let active = self.dropout().prob > 0.0 && trained.is_autodiff();
        active.then(|| self.dropout().forward(x.clone().autodiff()))
    }

    /// The forward without a dense adapted weight.
    ///
    /// # Shapes
    ///
    /// - x: `[.., d_in]`
    /// - base: `[d_in, d_out]`
    /// - bias: `[d_out]`
    /// - result: `[.., d_out]`
    fn forward<const D: usize>(&self, x: Tensor<D>, base: WeightOperand, bias: Option<Tensor<1>>) -> Tensor<D> {
        let low_rank = self.low_rank();
        let input = self.drop_input(&x, &low_rank.a);
        low_rank.forward(x, base, bias, input)
    }

    /// The adapted weight from the frozen one, both f32. This is the dense form, for merging and tests.
    ///
    /// # Shapes
    ///
    /// - base: `[d_in, d_out]`
    /// - result: `[d_in, d_out]`
    fn compose(&self, base: Tensor<2>) -> Tensor<2> {
        self.low_rank().added_to(base, 1.0)
    }

    /// The low-rank part, if [`forward`](Self::forward) now adds the product of `x` with it to `x W + bias` and does nothing else.
    fn low_rank_of_same_input(&self) -> Option<LowRank> {
        if !Self::ADDS_LOW_RANK {
            return None;
        }
        let low_rank = self.low_rank();
        let drops = self.dropout().prob > 0.0 && low_rank.a.is_autodiff();
        if drops { None } else { Some(low_rank) }
    }

    /// The tensors of [`UNMERGE_FACTORS`](Self::UNMERGE_FACTORS) for the frozen weight `base` `[d_in, d_out]`.
    fn unmerge_factors(&self, _base: Tensor<2>) -> FactorSet {
        FactorSet::new()
    }

    /// The inverse of [`compose`](Self::compose), given the tensors that the merge saved.
    ///
    /// # Shapes
    ///
    /// - weight: `[d_in, d_out]`
    /// - result: `[d_in, d_out]`
    fn unmerge(&self, weight: Tensor<2>, _saved: &FactorSet) -> Tensor<2> {
        self.low_rank().added_to(weight, -1.0)
    }

    /// The low-rank part without the scale, as two factors on the host.
    fn product(factors: &FactorSet) -> FactorPair {
        FactorPair { a: factors["a"].clone(), b: factors["b"].clone() }
    }

    /// Why the adapter does not fit a LoRA of rank `rank`; absent: the exact one. Nothing if it fits.
    fn peft_fault(_rank: Option<usize>) -> Option<&'static str> {
        None
    }

    /// The factors whose product is that of `pair`, if the method adds any product to the weight, and starts from any.
    fn of_product(_pair: FactorPair) -> Option<FactorSet> {
        None
    }

    /// PEFT's variant of LoRA that continues training from the same weights and factors.
    fn to_peft(config: &Self::Config) -> PeftVariant;

    /// The settings with which this method is PEFT's `variant` of LoRA; absent if it is another method.
    fn from_peft(_variant: PeftVariant) -> Option<Self::Config> {
        None
    }

    /// The settings with which this method starts like PEFT's variant of LoRA starts.
    fn starting_like_peft(config: Self::Config) -> Self::Config {
        config
    }
}

/// Names of tensors with their shapes.
pub(crate) type NamedShapes = Vec<(String, Vec<usize>)>;

/// A method that trains weights themselves. It has no settings and no factors.
pub(crate) trait WholeMethod {
    /// Name in files and on the command line.
    const NAME: &'static str;
    /// Name in tables and figures.
    const LABEL: &'static str;
    /// Whether `target_modules` chooses what is trained.
    const HAS_TARGETS: bool;

    /// Names and shapes of the trained parameters, of a model with these `parameters`.
    fn trained(modules: &[ModuleState], parameters: Vec<Parameter>) -> NamedShapes;

    /// Why the change of the weights does not fit a LoRA of rank `rank`; absent: of any rank. Nothing if it fits.
    fn peft_fault(rank: Option<usize>) -> Option<&'static str>;
}

/// The constants and functions of a [`FactoredMethod`] that need no settings and no state of a weight.
#[derive(Clone, Copy)]
pub(crate) struct FactoredDefinition {
    pub factors: &'static [Factor],
    pub frozen_factors: &'static [Factor],
    pub unmerge_factors: &'static [Factor],
    pub starts_from: StartsFrom,
    pub splits_weight: bool,
    pub keeps_output: bool,
    pub quantization_rounds: Option<usize>,
    pub changes_by_product: bool,
    pub memory: fn(Form, [usize; 2], usize, usize) -> OperationMemory,
    pub new: fn(&FactorSet, f64, Dropout, &Device) -> Adapter,
    pub product: fn(&FactorSet) -> FactorPair,
    pub peft_fault: fn(Option<usize>) -> Option<&'static str>,
    pub of_product: fn(FactorPair) -> Option<FactorSet>,
}

impl FactoredDefinition {
    pub fn of<M: FactoredMethod + Into<AdapterFactors>>() -> Self {
        Self {
            factors: M::FACTORS,
            frozen_factors: M::FROZEN_FACTORS,
            unmerge_factors: M::UNMERGE_FACTORS,
            starts_from: M::STARTS_FROM,
            splits_weight: M::SPLITS_WEIGHT,
            keeps_output: M::KEEPS_OUTPUT,
            quantization_rounds: M::QUANTIZATION_ROUNDS,
            changes_by_product: M::CHANGES_BY_PRODUCT,
            memory: M::memory,
            new: |factors, scale, dropout, device| Adapter::from(M::new(factors, scale, dropout, device).into()),
            product: M::product,
            peft_fault: M::peft_fault,
            of_product: M::of_product,
        }
    }

    /// Whether the start decomposes the weight.
    pub fn decomposes(&self) -> bool {
        self.splits_weight || self.starts_from == StartsFrom::SingularTriplets
    }

    /// The tensors that are saved with the start: the frozen ones, and the trained ones if their product at the start
    /// is subtracted from the weight.
    pub fn saved_with_start(&self) -> Vec<Factor> {
        let trained = if self.splits_weight { self.factors } else { &[] };
        trained.iter().chain(self.frozen_factors).copied().collect()
    }
}

/// The constants and functions of a [`WholeMethod`].
#[derive(Clone, Copy)]
pub(crate) struct WholeDefinition {
    pub has_targets: bool,
    pub trained: fn(&[ModuleState], Vec<Parameter>) -> NamedShapes,
    pub peft_fault: fn(Option<usize>) -> Option<&'static str>,
}

impl WholeDefinition {
    pub fn of<M: WholeMethod>() -> Self {
        Self { has_targets: M::HAS_TARGETS, trained: M::trained, peft_fault: M::peft_fault }
    }
}
