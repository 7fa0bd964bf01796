//! The frequencies of rotary embeddings and how long-context checkpoints rescale them, as Transformers 4.57 does.

mod long;

use serde_json::{Map, Value, json};

use crate::fields::Fields;

pub use long::LongRope;

/// Base and scaling of the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How the frequencies are rescaled.
    pub scaling: RopeScaling,
}

/// Rescaling of frequencies for contexts longer than the pretraining's.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Positions are divided by a factor (Chen et al., 2023).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// The base grows with the sequence once it is longer than the pretraining's ("NTK-aware", bloc97 and emozilla,
    /// 2023). The length is that of the longest sequence in the batch; keys that are cached keep the frequencies
    /// that they were made with.
    Dynamic {
        /// How fast the base grows.
        factor: f64,
        /// Context of the pretraining.
        max_position_embeddings: usize,
    },
    /// Long wavelengths are divided by the factor, short ones kept, with a ramp over the planes between (Peng et
    /// al., 2023).
    Yarn(Yarn),
    /// A divisor for each plane, from one of two lists by the length of the sequence (Ding et al., 2024). As with
    /// [`Dynamic`](Self::Dynamic), the longest sequence of the batch counts; cached keys are computed again when the
    /// list changes.
    LongRope(LongRope),
    /// Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between interpolated.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are scaled fully.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of the pretraining.
        original_max_position_embeddings: usize,
    },
}

/// The settings of YaRN (arXiv 2309.00071), named as in `rope_scaling`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// How much longer the context becomes.
    pub factor: f64,
    /// Context of the pretraining.
    pub original_max_position_embeddings: usize,
    /// Planes that turn more often than this within the original context are kept.
    pub beta_fast: f64,
    /// Planes that turn less often than this within the original context are scaled fully.
    pub beta_slow: f64,
    /// What sines and cosines are multiplied by; absent: it follows from the factor.
    pub attention_factor: Option<f64>,
    /// Weight of `ln(factor)` above the bar of the attention factor; counts only if `mscale_all_dim` is given.
    pub mscale: Option<f64>,
    /// Weight of `ln(factor)` below the bar.
    pub mscale_all_dim: Option<f64>,
    /// Whether the ends of the ramp are whole planes.
    pub truncate: bool,
}

/// Frequencies and amplitude of one forward pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    /// Radians per position of each plane.
    pub inverse: Vec<f64>,
    /// What sines and cosines are multiplied by.
    pub amplitude: f64,
}

impl Rope {
    /// The frequencies of the `dim / 2` planes for sequences of `length` tokens.
    pub fn frequencies(&self, dim: usize, length: usize) -> Frequencies {
        let planes = |theta: f64| (0..dim / 2).map(move |plane| theta.powf(-2.0 * plane as f64 / dim as f64));
        let (inverse, amplitude) = match self.scaling {
            RopeScaling::None => (planes(self.theta).collect(), 1.0),
            RopeScaling::Linear { factor } => (planes(self.theta).map(|frequency| frequency / factor).collect(), 1.0),
            RopeScaling::Dynamic { factor, max_position_embeddings } => {
                let context = max_position_embeddings as f64;
                let stretch = factor * (length as f64).max(context) / context - (factor - 1.0);
                let theta = self.theta * stretch.powf(dim as f64 / (dim as f64 - 2.0));
                (planes(theta).collect(), 1.0)
            }
            RopeScaling::Yarn(yarn) => {
                let [low, high] = yarn.ramp(self.theta, dim);
                let scaled = planes(self.theta).enumerate().map(|(plane, frequency)| {
                    let scaled_share = ((plane as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / yarn.factor * scaled_share + frequency * (1.0 - scaled_share)
                });
                (scaled.collect(), yarn.amplitude())
            }
            RopeScaling::LongRope(ref long) => {
                let scaled = planes(self.theta).zip(long.factors(length)).map(|(frequency, factor)| frequency / factor);
                (scaled.collect(), long.amplitude())
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = original_max_position_embeddings as f64;
                let scaled = planes(self.theta).map(|frequency| {
                    let turns = original * frequency / std::f64::consts::TAU;
                    let kept_share = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let kept_share = kept_share.clamp(0.0, 1.0);
                    frequency / factor * (1.0 - kept_share) + frequency * kept_share
                });
                (scaled.collect(), 1.0)
            }
        };
        Frequencies { inverse, amplitude }
    }

    /// The longest sequence that the scaling is made for, for a model that says `max_position_embeddings`.
    pub(crate) fn context(&self, max_position_embeddings: usize) -> usize {
        match self.scaling {
            RopeScaling::Dynamic { factor, max_position_embeddings: trained } => (factor * trained as f64) as usize,
            RopeScaling::Yarn(Yarn { factor, original_max_position_embeddings: trained, .. }) => {
                max_position_embeddings.max((factor * trained as f64) as usize)
            }
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::LongRope(_) | RopeScaling::Llama3 { .. } => {
                max_position_embeddings
            }
        }
    }

    /// Whether keys of a sequence of `length` tokens have to be made with other frequencies than those of one within
    /// the original context.
    pub fn is_long(&self, length: usize) -> bool {
        matches!(&self.scaling, RopeScaling::LongRope(long) if long.is_long(length))
    }

    /// Takes `rope_theta` and `rope_scaling` of Transformers 4, or the `rope_parameters` of Transformers 5 that hold both.
    /// A file with both forms has to say the same twice.
    pub(crate) fn read(fields: &mut Fields, default_theta: f64, max_position_embeddings: usize) -> Self {
        let theta = fields.number("rope_theta", default_theta);
        let mut read = |name| Self::read_object(fields, name, theta, max_position_embeddings);
        let (newer, older) = (read("rope_parameters"), read("rope_scaling"));
        match (newer, older) {
            (Some(newer), Some(older)) if newer != older => {
                fields.faults.push("`rope_parameters` and `rope_scaling` should say the same".to_owned());
                newer
            }
            (Some(rope), _) | (None, Some(rope)) => rope,
            (None, None) => Self { theta, scaling: RopeScaling::None },
        }
    }

    /// Takes the object `name`, whose `rope_theta` comes before `theta`.
    fn read_object(
        fields: &mut Fields,
        name: &'static str,
        theta: f64,
        max_position_embeddings: usize,
    ) -> Option<Self> {
        let object = match fields.take(name)? {
            Value::Object(object) => object,
            other => {
                fields.wrong(name, "an object", &other);
                return None;
            }
        };
        let mut inner = Fields::new(object);
        let theta = inner.number("rope_theta", theta);
        let older_name = inner.take("type");
        let kind = inner.take("rope_type").or(older_name);
        let scaling = RopeScaling::read(kind.as_ref().and_then(Value::as_str), &mut inner, max_position_embeddings);
        fields.faults.extend(inner.finish_inner(name));
        Some(Self { theta, scaling })
    }

    /// Takes the `rope_parameters` that Transformers 5 writes for a model whose layers with a window have another rotary
    /// embedding, one object for each kind of layer: that of the other layers stays, that of the layers with a window is
    /// returned.
    pub(crate) fn take_local(fields: &mut Fields, default_theta: f64, max_position_embeddings: usize) -> Option<Self> {
        let mut by_layer_type = fields.take_object("rope_parameters")?;
        if !by_layer_type.has("full_attention") && !by_layer_type.has("sliding_attention") {
            fields.put_back("rope_parameters", by_layer_type);
            return None;
        }
        let local = Self::read_object(&mut by_layer_type, "sliding_attention", default_theta, max_position_embeddings);
        let full = by_layer_type.take("full_attention");
        fields.faults.extend(by_layer_type.finish_inner("rope_parameters"));
        fields.put("rope_parameters", full.unwrap_or(Value::Null));
        local
    }

    /// Writes `rope_theta` and `rope_scaling`.
    pub(crate) fn write(&self, json: &mut Map<String, Value>) {
        json.insert("rope_theta".to_owned(), self.theta.into());
        if let Some(scaling) = self.scaling.to_json() {
            json.insert("rope_scaling".to_owned(), scaling);
        }
    }
}

impl RopeScaling {
    fn read(kind: Option<&str>, inner: &mut Fields, max_position_embeddings: usize) -> Self {
        let original =
            |inner: &mut Fields| inner.size("original_max_position_embeddings", Some(max_position_embeddings));
        match kind {
            None | Some("default") => Self::None,
            Some("linear") => Self::Linear { factor: inner.required_number("factor") },
            Some("dynamic") => {
                // Transformers counts from `max_position_embeddings`; another number would have no effect there.
                inner.only("original_max_position_embeddings", max_position_embeddings);
                Self::Dynamic { factor: inner.required_number("factor"), max_position_embeddings }
            }
            Some("yarn") => Self::Yarn(Yarn {
                factor: inner.required_number("factor"),
                original_max_position_embeddings: original(inner),
                beta_fast: inner.number("beta_fast", 32.0),
                beta_slow: inner.number("beta_slow", 1.0),
                attention_factor: inner.optional_number("attention_factor", None),
                mscale: inner.optional_number("mscale", None),
                mscale_all_dim: inner.optional_number("mscale_all_dim", None),
                truncate: inner.flag("truncate", true),
            }),
            Some("llama3") => Self::Llama3 {
                factor: inner.required_number("factor"),
                low_freq_factor: inner.number("low_freq_factor", 1.0),
                high_freq_factor: inner.number("high_freq_factor", 4.0),
                original_max_position_embeddings: original(inner),
            },
            Some(other) => {
                let known = "default, linear, dynamic, yarn, llama3";
                inner.faults.push(format!("rope type `{other}` is not supported ({known})"));
                inner.clear();
                Self::None
            }
        }
    }

    fn to_json(&self) -> Option<Value> {
        match self {
            Self::None => None,
            Self::Linear { factor } => Some(json!({"rope_type": "linear", "factor": factor})),
            Self::Dynamic { factor, .. } => Some(json!({"rope_type": "dynamic", "factor": factor})),
            Self::Yarn(yarn) => {
                let mut object = json!({
                    "rope_type": "yarn",
                    "factor": yarn.factor,
                    "original_max_position_embeddings": yarn.original_max_position_embeddings,
                    "beta_fast": yarn.beta_fast,
                    "beta_slow": yarn.beta_slow,
                    "truncate": yarn.truncate,
                });
                let optional = [
                    ("attention_factor", yarn.attention_factor),
                    ("mscale", yarn.mscale),
                    ("mscale_all_dim", yarn.mscale_all_dim),
                ];
                for (name, value) in optional {
                    if let Some(value) = value {
                        object[name] = value.into();
                    }
                }
                Some(object)
            }
            Self::LongRope(long) => Some(long.to_json()),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                Some(json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings,
                }))
            }
        }
    }
}

impl Yarn {
    /// The first and the last plane of the ramp from kept to scaled frequencies.
    fn ramp(&self, theta: f64, dim: usize) -> [f64; 2] {
        // The plane that turns `rotations` times within the original context.
        let plane = |rotations: f64| {
            let original = self.original_max_position_embeddings as f64;
            dim as f64 * (original / (rotations * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (plane(self.beta_fast), plane(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        [low, if low == high { high + 0.001 } else { high }]
    }

    fn amplitude(&self) -> f64 {
        let temperature = |weight: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * weight * self.factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(factor), _, _) => factor,
            (None, Some(above), Some(below)) => temperature(above) / temperature(below),
            (None, _, _) => temperature(1.0),
        }
    }
}

#[cfg(test)]
mod tests;
