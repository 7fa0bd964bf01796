//! The one list of methods. A new method is a file here that implements [`FactoredMethod`], and its entry in the list
//! at the end of this file; nothing else in the workspace names it.

use burn::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sorsa_ops::WeightOperand;

use crate::factors::{Factor, FactorSet};
use crate::method::{FactoredDefinition, FactoredMethod, LowRank, StartsFrom, WholeDefinition, WholeMethod};
use crate::peft::PeftVariant;
use crate::penalty::Penalty;
use crate::quantized_start::StartError;
use crate::start::{StartingFactors, WeightToAdapt};
use crate::stiefel::OrthonormalSteps;
use crate::{AdapterConfig, Band};

/// Makes of the list the names ([`Method`]), the settings ([`MethodConfig`]), the state of one weight ([`AdapterFactors`]),
/// and the way from each of them to the method's file.
macro_rules! methods {
    (
        factored { $($(#[$doc:meta])* $name:ident($config:ident) in $file:ident,)+ }
        whole { $($(#[$whole_doc:meta])* $whole:ident in $whole_file:ident,)+ }
    ) => {
        $(pub use $file::{$name, $config};)+

        /// How a weight is trained.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Method {
            $($(#[$doc])* $name,)+
            $($(#[$whole_doc])* $whole,)+
        }

        /// How a weight is trained, with the settings that only this method has.
        #[derive(Debug, Clone, PartialEq)]
        pub enum MethodConfig {
            $($(#[$doc])* $name($config),)+
            $($(#[$whole_doc])* $whole,)+
        }

        /// The factors that a method trains beside one weight.
        #[derive(Module, Debug)]
        #[allow(clippy::large_enum_variant, reason = "there is one for each adapted weight, hundreds at most")]
        pub enum AdapterFactors {
            $($(#[$doc])* $name($name),)+
        }

        impl Method {
            /// Every method, in the order of the documentation.
            pub const ALL: [Self; [$(stringify!($name),)+ $(stringify!($whole),)+].len()] =
                [$(Self::$name,)+ $(Self::$whole,)+];

            /// Name in files and on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $name::NAME,)+
                    $(Self::$whole => $whole_file::$whole::NAME,)+
                }
            }

            /// Name in tables and figures, as papers write it.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $name::LABEL,)+
                    $(Self::$whole => $whole_file::$whole::LABEL,)+
                }
            }

            /// The settings that this method has beside those of every method.
            pub fn setting_names(self) -> &'static [&'static str] {
                match self {
                    $(Self::$name => $name::SETTINGS,)+
                    $(Self::$whole => &[],)+
                }
            }

            /// The method as its file defines it; absent if it trains whole weights.
            pub(crate) fn factored(self) -> Option<FactoredDefinition> {
                match self {
                    $(Self::$name => Some(FactoredDefinition::of::<$name>()),)+
                    $(Self::$whole => None,)+
                }
            }

            /// The method as its file defines it; absent if it trains factors.
            pub(crate) fn whole(self) -> Option<WholeDefinition> {
                match self {
                    $(Self::$name => None,)+
                    $(Self::$whole => Some(WholeDefinition::of::<$whole_file::$whole>()),)+
                }
            }
        }

        impl From<Method> for MethodConfig {
            /// The method with its default settings.
            fn from(method: Method) -> Self {
                match method {
                    $(Method::$name => Self::$name($config::default()),)+
                    $(Method::$whole => Self::$whole,)+
                }
            }
        }

        $(impl From<$config> for MethodConfig {
            fn from(config: $config) -> Self {
                Self::$name(config)
            }
        }

        impl From<$name> for AdapterFactors {
            fn from(module: $name) -> Self {
                Self::$name(module)
            }
        })+

        impl MethodConfig {
            /// The method without its settings.
            pub fn method(&self) -> Method {
                match self {
                    $(Self::$name(_) => Method::$name,)+
                    $(Self::$whole => Method::$whole,)+
                }
            }

            /// The settings as files hold them.
            pub(crate) fn settings(&self) -> Map<String, Value> {
                let settings = match self {
                    $(Self::$name(config) => serde_json::to_value(config),)+
                    $(Self::$whole => Ok(Value::Object(Map::new())),)+
                };
                match settings {
                    Ok(Value::Object(settings)) => settings,
                    other => unreachable!("the settings of a method are a struct that serde_json writes: {other:?}"),
                }
            }

            /// The method with the settings of a file; a setting that the file does not hold has its default.
            pub(crate) fn from_settings(method: Method, settings: Map<String, Value>) -> serde_json::Result<Self> {
                let settings = Value::Object(settings);
                match method {
                    $(Method::$name => serde_json::from_value(settings).map(Self::$name),)+
                    $(Method::$whole => Ok(Self::$whole),)+
                }
            }

            /// A line for each setting of the method that does not fit another one or one of `adapter`.
            pub(crate) fn faults(&self, adapter: &AdapterConfig) -> Vec<String> {
                match self {
                    $(Self::$name(config) => $name::faults(config, adapter),)+
                    $(Self::$whole => Vec::new(),)+
                }
            }

            /// The terms that the method adds to the loss, by the name of their factor.
            pub(crate) fn penalties(&self) -> Vec<(&'static str, Penalty)> {
                match self {
                    $(Self::$name(config) => $name::penalties(config),)+
                    $(Self::$whole => Vec::new(),)+
                }
            }

            /// How many batches the mean gradient is taken over that the method starts from, if it starts from one.
            pub(crate) fn gradient_batches(&self) -> Option<usize> {
                match self {
                    $(Self::$name(config) => $name::gradient_batches(config),)+
                    $(Self::$whole => None,)+
                }
            }

            /// Which singular triplets of a weight the start is made of.
            pub fn band(&self) -> Band {
                match self {
                    $(Self::$name(config) => $name::band(config),)+
                    $(Self::$whole => Band::Principal,)+
                }
            }

            /// Whether `factor` of the method is trained under these settings.
            pub(crate) fn trains(&self, factor: &Factor) -> bool {
                match self {
                    $(Self::$name(config) => $name::trains(config, factor),)+
                    $(Self::$whole => true,)+
                }
            }

            /// How the orthonormal factors of the method stay so; absent if nothing but a regularizer holds them.
            pub(crate) fn orthonormal_steps(&self) -> Option<OrthonormalSteps> {
                match self {
                    $(Self::$name(config) => $name::orthonormal_steps(config),)+
                    $(Self::$whole => None,)+
                }
            }

            /// The factors of one weight at the start; absent for a method that has none.
            pub(crate) fn start(&self, weight: &WeightToAdapt<'_>) -> Option<Result<StartingFactors, StartError>> {
                match self {
                    $(Self::$name(config) => Some($name::start(config, weight)),)+
                    $(Self::$whole => None,)+
                }
            }

            /// PEFT's variant of LoRA that continues training; absent for a method that has no factors.
            pub(crate) fn to_peft(&self) -> Option<PeftVariant> {
                match self {
                    $(Self::$name(config) => Some($name::to_peft(config)),)+
                    $(Self::$whole => None,)+
                }
            }

            /// The method that PEFT's `variant` of LoRA is.
            pub(crate) fn from_peft(variant: PeftVariant) -> Self {
                $(if let Some(config) = $name::from_peft(variant) {
                    return Self::$name(config);
                })+
                unreachable!("every variant of PEFT's LoRA is one of the methods: {variant:?}")
            }

            /// The method with the settings with which it starts like PEFT's variant of LoRA starts.
            pub(crate) fn starting_like_peft(self) -> Self {
                match self {
                    $(Self::$name(config) => Self::$name($name::starting_like_peft(config)),)+
                    $(Self::$whole => Self::$whole,)+
                }
            }
        }

        impl AdapterFactors {
            pub(crate) fn with_frozen_weight(self, base: impl FnOnce() -> Tensor<2>) -> Self {
                match self {
                    $(Self::$name(inner) => Self::$name(inner.with_frozen_weight(base)),)+
                }
            }

            pub(crate) fn low_rank(&self) -> LowRank {
                match self {
                    $(Self::$name(inner) => inner.low_rank(),)+
                }
            }

            pub(crate) fn low_rank_of_same_input(&self) -> Option<LowRank> {
                match self {
                    $(Self::$name(inner) => inner.low_rank_of_same_input(),)+
                }
            }

            pub(crate) fn forward<const D: usize>(
                &self,
                x: Tensor<D>,
                base: WeightOperand,
                bias: Option<Tensor<1>>,
            ) -> Tensor<D> {
                match self {
                    $(Self::$name(inner) => inner.forward(x, base, bias),)+
                }
            }

            /// The adapted weight from the frozen one, both f32.
            pub(crate) fn compose(&self, base: Tensor<2>) -> Tensor<2> {
                match self {
                    $(Self::$name(inner) => inner.compose(base),)+
                }
            }

            pub(crate) fn unmerge_factors(&self, base: Tensor<2>) -> FactorSet {
                match self {
                    $(Self::$name(inner) => inner.unmerge_factors(base),)+
                }
            }

            pub(crate) fn unmerge(&self, weight: Tensor<2>, saved: &FactorSet) -> Tensor<2> {
                match self {
                    $(Self::$name(inner) => inner.unmerge(weight, saved),)+
                }
            }
        }
    };
}

impl Method {
    /// Whether the method trains factors beside a frozen weight.
    pub fn is_factored(self) -> bool {
        self.factored().is_some()
    }

    /// Whether the method needs an SVD of the weight to start.
    pub fn needs_svd(self) -> bool {
        self.factored().is_some_and(|method| method.starts_from == StartsFrom::SingularTriplets)
    }

    /// Whether the method's factors start as a part of the weight, which is subtracted from the frozen weight.
    pub fn splits_weight(self) -> bool {
        self.factored().is_some_and(|method| method.splits_weight)
    }

    /// Whether a model computes the same with the method's adapter at the start. Otherwise the start takes something away.
    pub fn keeps_output(self) -> bool {
        self.factored().is_none_or(|method| method.keeps_output)
    }

    /// Whether the method starts from gradients of the loss: [`AttachOptions::gradients`](crate::AttachOptions) must give them.
    pub fn needs_gradients(self) -> bool {
        self.factored().is_some_and(|method| method.starts_from == StartsFrom::Gradient)
    }

    /// How often the method's factors are fitted to the error of packing, if a configuration says nothing; absent if they are
    /// never.
    pub fn quantization_rounds(self) -> Option<usize> {
        self.factored().and_then(|method| method.quantization_rounds)
    }

    /// Whether the method has factors that a regularizer of its own keeps orthonormal.
    pub fn is_regularized(self) -> bool {
        MethodConfig::from(self).is_regularized()
    }

    /// Why the regularizer of orthogonal vectors makes no sense for the method; nothing if the method trains two factors
    /// and has no regularizer of its own. [`keep_vectors_orthogonal`](crate::Attached::keep_vectors_orthogonal) asks.
    pub fn orthogonality_fault(self) -> Option<String> {
        if self.is_regularized() {
            return Some(format!("{self} has a regularizer of its own, of orthonormal vectors"));
        }
        if !MethodConfig::from(self).penalties().is_empty() {
            return Some(format!("{self} has penalties of its own, of orthonormal vectors"));
        }
        if self.factors().iter().any(|factor| factor.orthonormal.is_some()) {
            return Some(format!("{self} keeps its vectors orthonormal by a retraction"));
        }
        match self.factors().iter().filter(|factor| factor.vectors().is_some()).count() {
            2 => None,
            _ => Some(format!("{self} does not train two factors, whose vectors could be kept orthogonal")),
        }
    }

    /// Whether `target_modules` chooses what the method trains. Otherwise it trains every parameter of the model.
    pub fn has_targets(self) -> bool {
        self.whole().is_none_or(|method| method.has_targets)
    }

    /// The names of the trained tensors of each weight, like `a` and `b`; none if the method trains weights themselves.
    pub fn factor_names(self) -> Vec<&'static str> {
        self.factors().iter().map(|factor| factor.name).collect()
    }

    /// The trained tensors of each weight.
    pub(crate) fn factors(self) -> &'static [Factor] {
        self.factored().map_or(&[], |method| method.factors)
    }

    /// The tensors of each weight that are saved with the start.
    pub(crate) fn saved_with_start(self) -> Vec<Factor> {
        self.factored().map_or_else(Vec::new, |method| method.saved_with_start())
    }

    /// The tensors of each weight that a merge saves for [`SavedAdapter::unmerge`](crate::SavedAdapter::unmerge).
    pub(crate) fn unmerge_factors(self) -> &'static [Factor] {
        self.factored().map_or(&[], |method| method.unmerge_factors)
    }
}

impl MethodConfig {
    /// The factors that are trained under these settings.
    pub(crate) fn trained_factors(&self) -> Vec<Factor> {
        self.method().factors().iter().filter(|factor| self.trains(factor)).copied().collect()
    }

    /// Whether a regularizer of the method's own keeps trained factors orthonormal under these settings.
    pub fn is_regularized(&self) -> bool {
        let is_held = |factor: &&Factor| factor.orthonormal.is_some() && self.trains(factor);
        self.orthonormal_steps().is_none() && self.method().factors().iter().any(|factor| is_held(&factor))
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|method| method.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            let (last, others) = names.split_last().expect("there are methods");
            format!("unknown method `{text}`, expected {} or {last}", others.join(", "))
        })
    }
}

mod dora;
mod kasa;
mod lora;
mod lora_ga;
mod lora_xs;
mod mica;
mod olora;
mod pissa;
pub(crate) mod sorsa;
mod stella;
mod svft;
mod whole;

pub use lora::Init;
pub use sorsa::SorsaTrained;

methods! {
    factored {
        /// Singular values and orthonormal regularized singular vectors (arXiv 2409.00055).
        Sorsa(SorsaConfig) in sorsa,
        /// Principal singular values and vectors (arXiv 2404.02948).
        Pissa(PissaConfig) in pissa,
        /// Low-rank adaptation (arXiv 2106.09685).
        Lora(LoraConfig) in lora,
        /// Weight-decomposed low-rank adaptation: LoRA with trained column norms (arXiv 2402.09353).
        Dora(DoraConfig) in dora,
        /// LoRA that starts from the weight's QR decomposition (arXiv 2406.01775).
        Olora(OloraConfig) in olora,
        /// A trained square matrix between two frozen factors of the weight's SVD (arXiv 2405.17604).
        LoraXs(LoraXsConfig) in lora_xs,
        /// A trained square matrix between two bases on the Stiefel manifold (arXiv 2510.01938).
        Stella(StellaConfig) in stella,
        /// An update in the form of an SVD beside a weight without its minor components (arXiv 2412.06071).
        Kasa(KasaConfig) in kasa,
        /// LoRA with one factor frozen at the minor singular vectors of the weight (arXiv 2604.01694).
        Mica(MicaConfig) in mica,
        /// Trained diagonals between the whole singular bases of the weight (arXiv 2405.19597).
        Svft(SvftConfig) in svft,
        /// LoRA that starts from the gradient of the loss (arXiv 2407.05000).
        LoraGa(LoraGaConfig) in lora_ga,
    }
    whole {
        /// The target weights themselves, dense.
        Partial in whole,
        /// Every parameter of the model.
        Full in whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::PeftInit;

    #[test]
    fn a_method_is_called_the_same_everywhere() {
        for method in Method::ALL {
            let name = method.to_string();
            assert_eq!(serde_json::to_string(&method).unwrap(), format!("\"{name}\""));
            assert_eq!(name.parse::<Method>(), Ok(method));
            assert_eq!(method.label().replace('-', "").to_lowercase(), name.replace('-', ""));
        }
        let error = "vera".parse::<Method>().unwrap_err();
        assert_eq!(
            error,
            "unknown method `vera`, expected sorsa, pissa, lora, dora, olora, lora-xs, stella, kasa, mica, svft, lora-ga, partial \
             or full"
        );
    }

    #[test]
    fn every_variant_of_pefts_lora_is_a_method_and_the_methods_that_peft_has_come_back() {
        let starts = [PeftInit::Pissa, PeftInit::PissaApproximate(4), PeftInit::Olora];
        let starts = starts.into_iter().chain([Init::Kaiming, Init::Gaussian, Init::Orthogonal].map(PeftInit::Lora));
        for init in starts {
            for dora in [false, true] {
                MethodConfig::from_peft(PeftVariant { init, dora });
            }
        }
        for method in Method::ALL {
            let Some(variant) = MethodConfig::from(method).to_peft() else { continue };
            let again = MethodConfig::from_peft(variant);
            assert_eq!(again.to_peft(), Some(variant), "{method}");
        }
    }

    #[test]
    fn the_settings_of_a_method_are_those_that_its_file_lists() {
        for method in Method::ALL {
            let config = MethodConfig::from(method);
            for name in config.settings().keys() {
                assert!(method.setting_names().contains(&name.as_str()), "{method}: {name}");
            }
            assert_eq!(MethodConfig::from_settings(method, config.settings()).unwrap(), config);
        }
    }
}
