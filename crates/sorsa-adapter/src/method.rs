//! The methods: what the file of each must say, and the one list of them.
//!
//! A method that adds factors to a frozen weight is a type that implements [`FactoredMethod`], in its own file, and
//! its name in the list below. Nothing else in the workspace knows what is special about it.

use burn::nn::Dropout;
use burn::prelude::*;
use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};
use sorsa_linalg::LinalgError;
use sorsa_ops::{LowRankFactors, add_product, factored_linear};

use crate::factors::{Factor, FactorSet};
use crate::start::{Start, Started};
use crate::{Dora, Lora, Olora, Pissa, Sorsa};

/// What the start of a method's factors is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Random numbers.
    Nothing,
    /// Elements of the weight.
    Weight,
    /// Leading singular triplets of the weight.
    Svd,
}

/// The low-rank part of one adapted weight, `scale * A diag(s) B`.
pub(crate) struct LowRank {
    /// `[d_in, r]`.
    pub a: Tensor<2>,
    /// `[r]`; absent: ones.
    pub s: Option<Tensor<1>>,
    /// `[r, d_out]`.
    pub b: Tensor<2>,
    pub scale: f64,
}

impl LowRank {
    /// `weight + sign A diag(s) B scale`, `[d_in, d_out]`, f32. Dense: for merging and tests.
    pub fn added_to(self, weight: Tensor<2>, sign: f64) -> Tensor<2> {
        let scaled = match self.s {
            Some(s) => self.a * (s * self.scale).unsqueeze(),
            None => self.a * self.scale,
        };
        add_product(weight, scaled, self.b, sign)
    }

    /// `x W + bias + ((x_a A) * s) B * scale`; `input` is `x_a`, absent: `x`.
    pub fn forward<const D: usize>(
        self,
        x: Tensor<D>,
        base: Tensor<2>,
        bias: Option<Tensor<1>>,
        input: Option<Tensor<D>>,
    ) -> Tensor<D> {
        let factors = LowRankFactors { a: self.a, s: self.s, b: self.b, scale: self.scale };
        factored_linear(x, base, bias, input, factors)
    }
}

/// A method that trains factors beside a frozen weight; the module is the state of one weight. By default the factors'
/// product is added to the weight.
pub(crate) trait FactoredMethod: Module {
    /// The trained tensors, in the order of the struct's fields.
    const FACTORS: &'static [Factor];
    /// What of a merged weight is kept to take the adapter out again.
    const KEPT: &'static [Factor] = &[];
    /// What the start is made of.
    const SOURCE: Source;
    /// Whether the product at the start leaves the frozen weight. Otherwise the adapter does nothing at the start.
    const SPLITS: bool;

    /// How many numbers the forward of one token keeps for the backward pass, beside its input and its output.
    fn kept_per_token(_shape: [usize; 2], rank: usize) -> usize {
        rank
    }

    /// The factors at the start of training.
    fn start(at: &Start<'_>) -> Result<Started, LinalgError>;

    /// The module with the given factors on a device.
    fn new(factors: &FactorSet, scale: f64, dropout: Dropout, device: &Device) -> Self;

    /// The part of low rank.
    fn low_rank(&self) -> LowRank;

    /// Dropout of the adapter's input.
    fn dropout(&self) -> &Dropout;

    /// The module beside its frozen weight `[d_in, d_out]`, from which it may keep what the forward needs each time.
    fn beside(self, _base: impl FnOnce() -> Tensor<2>) -> Self {
        self
    }

    /// `x` after the adapter's dropout, where there is any.
    fn dropped<const D: usize>(&self, x: &Tensor<D>, trained: &Tensor<2>) -> Option<Tensor<D>> {
        // burn drops elements of tensors with autodiff alone; the input of a model in training may come without.
        let active = self.dropout().prob > 0.0 && trained.is_autodiff();
        active.then(|| self.dropout().forward(x.clone().autodiff()))
    }

    /// The forward without a dense adapted weight, for `x` `[.., d_in]` and a frozen weight `[d_in, d_out]`.
    fn forward<const D: usize>(&self, x: Tensor<D>, base: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
        let low_rank = self.low_rank();
        let input = self.dropped(&x, &low_rank.a);
        low_rank.forward(x, base, bias, input)
    }

    /// The adapted weight `[d_in, d_out]` from the frozen one, both f32. Dense: for merging and tests.
    fn compose(&self, base: Tensor<2>) -> Tensor<2> {
        self.low_rank().added_to(base, 1.0)
    }

    /// What is kept of `base` when the adapter is merged into it: the tensors named by [`KEPT`](Self::KEPT).
    fn keep(&self, _base: Tensor<2>) -> FactorSet {
        FactorSet::new()
    }

    /// The inverse of [`compose`](Self::compose), with what was kept.
    fn take_out(&self, weight: Tensor<2>, _kept: &FactorSet) -> Tensor<2> {
        self.low_rank().added_to(weight, -1.0)
    }
}

/// What the file of a method says, apart from the state of any weight.
pub(crate) struct Definition {
    pub factors: &'static [Factor],
    pub kept: &'static [Factor],
    pub source: Source,
    pub splits: bool,
    pub kept_per_token: fn([usize; 2], usize) -> usize,
    pub start: fn(&Start<'_>) -> Result<Started, LinalgError>,
    pub new: fn(&FactorSet, f64, Dropout, &Device) -> Adapter,
}

/// Makes, of the list of methods that add factors: the names ([`Method`]), the state of one weight ([`Adapter`]), and
/// the way from each of them to the method's file.
macro_rules! factored_methods {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// How a weight is trained.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum Method {
            $($(#[$doc])* $name,)+
            /// The target weights themselves, dense.
            Partial,
            /// Every parameter of the model.
            Full,
        }

        /// The adapter of one weight.
        #[derive(Module, Debug)]
        #[allow(clippy::large_enum_variant, reason = "there are as many as adapted weights, hundreds at most")]
        pub enum Adapter {
            $($(#[$doc])* $name($name),)+
        }

        impl Method {
            /// Every method, in the order of the documentation.
            pub const ALL: [Self; 2 + [$(stringify!($name)),+].len()] = [$(Self::$name,)+ Self::Partial, Self::Full];

            /// What the method's file says; none for a method without factors.
            pub(crate) fn definition(self) -> Option<Definition> {
                match self {
                    $(Self::$name => Some(Definition {
                        factors: $name::FACTORS,
                        kept: $name::KEPT,
                        source: $name::SOURCE,
                        splits: $name::SPLITS,
                        kept_per_token: $name::kept_per_token,
                        start: $name::start,
                        new: |factors, scale, dropout, device| {
                            Adapter::$name($name::new(factors, scale, dropout, device))
                        },
                    }),)+
                    Self::Partial | Self::Full => None,
                }
            }

            fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                    Self::Partial => "partial",
                    Self::Full => "full",
                }
            }
        }

        impl Adapter {
            pub(crate) fn beside(self, base: impl FnOnce() -> Tensor<2>) -> Self {
                match self {
                    $(Self::$name(inner) => Self::$name(inner.beside(base)),)+
                }
            }

            pub(crate) fn low_rank(&self) -> LowRank {
                match self {
                    $(Self::$name(inner) => inner.low_rank(),)+
                }
            }

            /// The factored forward for `x` `[.., d_in]` and the frozen weight `base` `[d_in, d_out]`: for most
            /// methods `x base + bias + ((x A) * s) B * scale`. While training, elements of the adapter's `x` are
            /// dropped, never of the base's.
            pub fn forward<const D: usize>(&self, x: Tensor<D>, base: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
                match self {
                    $(Self::$name(inner) => inner.forward(x, base, bias),)+
                }
            }

            fn compose_f32(&self, base: Tensor<2>) -> Tensor<2> {
                match self {
                    $(Self::$name(inner) => inner.compose(base),)+
                }
            }

            pub(crate) fn keep(&self, base: Tensor<2>) -> FactorSet {
                match self {
                    $(Self::$name(inner) => inner.keep(base),)+
                }
            }

            pub(crate) fn take_out(&self, weight: Tensor<2>, kept: &FactorSet) -> Tensor<2> {
                match self {
                    $(Self::$name(inner) => inner.take_out(weight, kept),)+
                }
            }
        }
    };
}

factored_methods! {
    /// Singular values and orthonormal regularized singular vectors (arXiv 2409.00055).
    Sorsa,
    /// Principal singular values and vectors (arXiv 2404.02948).
    Pissa,
    /// Low-rank adaptation (arXiv 2106.09685).
    Lora,
    /// Weight-decomposed low-rank adaptation: LoRA with trained column norms (arXiv 2402.09353).
    Dora,
    /// LoRA that starts from the weight's QR decomposition (arXiv 2406.01775).
    Olora,
}

impl Method {
    /// Whether the method adds factors to a frozen weight.
    pub fn is_factored(self) -> bool {
        self.definition().is_some()
    }

    /// Whether the method starts from the weight's singular vectors.
    pub fn needs_svd(self) -> bool {
        self.definition().is_some_and(|method| method.source == Source::Svd)
    }

    /// Whether the method's factors start as a part of the weight, which then leaves the frozen base.
    pub fn splits_weight(self) -> bool {
        self.definition().is_some_and(|method| method.splits)
    }

    /// Whether the method has factors that a regularizer keeps orthonormal.
    pub fn is_regularized(self) -> bool {
        self.factors().iter().any(|factor| factor.orthonormal.is_some())
    }

    /// The trained tensors of each weight.
    pub(crate) fn factors(self) -> &'static [Factor] {
        self.definition().map_or(&[], |method| method.factors)
    }

    /// What is kept of each weight that the adapter is merged into.
    pub(crate) fn kept(self) -> &'static [Factor] {
        self.definition().map_or(&[], |method| method.kept)
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name().to_ascii_lowercase())
    }
}

impl std::str::FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|method| method.to_string() == text).ok_or_else(|| {
            let names = Self::ALL.map(|method| method.to_string());
            let (last, others) = names.split_last().expect("there are methods");
            format!("unknown method `{text}`, expected {} or {last}", others.join(", "))
        })
    }
}

impl Adapter {
    /// The scale of the adapter's part of the weight.
    pub fn scale(&self) -> f64 {
        self.low_rank().scale
    }

    /// `A` `[d_in, r]`, `s` `[r]` where the method has singular values, `B` `[r, d_out]`.
    pub fn parts(&self) -> (Tensor<2>, Option<Tensor<1>>, Tensor<2>) {
        let LowRank { a, s, b, .. } = self.low_rank();
        (a, s, b)
    }

    /// The adapted weight `[d_in, d_out]` from the frozen one, computed in f32. Dense: for merging and tests.
    pub fn compose(&self, base: Tensor<2>) -> Tensor<2> {
        let dtype = FloatDType::from(base.dtype());
        self.compose_f32(base.cast(FloatDType::F32)).cast(dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_called_the_same_everywhere() {
        for method in Method::ALL {
            let name = method.to_string();
            assert_eq!(serde_json::to_string(&method).unwrap(), format!("\"{name}\""));
            assert_eq!(name.parse::<Method>(), Ok(method));
        }
        let error = "vera".parse::<Method>().unwrap_err();
        assert_eq!(error, "unknown method `vera`, expected sorsa, pissa, lora, dora, olora, partial or full");
    }
}
