//! Rotary embeddings and how long-context checkpoints rescale them, in llama.cpp's terms.

use serde_json::Value;

use super::fields::Fields;

/// Base and scaling of the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    pub theta: f64,
    pub scaling: Scaling,
    /// Part of a head that is rotated.
    pub partial: f64,
}

/// Rescaling of frequencies for contexts longer than the pretraining's.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scaling {
    None,
    /// Positions are divided by a factor: a number in the metadata.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: a tensor of divisors, one for each plane.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original: usize,
    },
    /// Phi 3: two tensors of divisors, for contexts up to the original and beyond it.
    LongRope {
        short: Vec<f32>,
        long: Vec<f32>,
    },
}

impl Rope {
    /// Reads `rope_theta`, and `rope_scaling` or `rope_parameters`.
    pub fn take(fields: &mut Fields, theta: f64, context: usize) -> Self {
        let mut rope = Self { theta: fields.number("rope_theta", theta), scaling: Scaling::None, partial: 1.0 };
        rope.partial = fields.number("partial_rotary_factor", 1.0);
        let nested = fields.take("rope_parameters").or_else(|| fields.take("rope_scaling"));
        let object = match nested {
            None => return rope,
            Some(Value::Object(object)) => object,
            Some(other) => {
                fields.wrong("rope_scaling", "an object", &other);
                return rope;
            }
        };
        let mut inner = Fields::new(object, "rope_scaling.");
        rope.theta = inner.number("rope_theta", rope.theta);
        rope.partial = inner.number("partial_rotary_factor", rope.partial);
        let old_name = inner.take("type");
        let kind = inner.take("rope_type").or(old_name);
        rope.scaling = match kind.as_ref().and_then(Value::as_str) {
            None | Some("default") => Scaling::None,
            Some("linear") => Scaling::Linear { factor: inner.number("factor", 1.0) },
            Some("llama3") => Scaling::Llama3 {
                factor: inner.number("factor", 8.0),
                low_freq_factor: inner.number("low_freq_factor", 1.0),
                high_freq_factor: inner.number("high_freq_factor", 4.0),
                original: inner.size("original_max_position_embeddings", Some(context)),
            },
            Some("longrope" | "su") => {
                // Transformers takes the factor from the lengths of the contexts, whatever stands here.
                inner.take("factor");
                Scaling::LongRope {
                    short: inner.numbers("short_factor").unwrap_or_default(),
                    long: inner.numbers("long_factor").unwrap_or_default(),
                }
            }
            Some(other) => {
                fields.faults.push(format!("rope type `{other}` is not supported (default, linear, llama3, longrope)"));
                return rope;
            }
        };
        fields.faults.extend(inner.finish());
        rope
    }

    /// What llama.cpp divides the frequency of each of the `dim / 2` planes by, for Llama 3's scaling: 1 for wavelengths
    /// below `original / high_freq_factor`, `factor` above `original / low_freq_factor`, between them interpolated.
    pub fn llama3_divisors(&self, dim: usize) -> Option<Vec<f32>> {
        let Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } = self.scaling else { return None };
        let original = original as f64;
        let divisor = |plane: usize| {
            let frequency = self.theta.powf(-2.0 * plane as f64 / dim as f64);
            let wavelength = std::f64::consts::TAU / frequency;
            if wavelength < original / high_freq_factor {
                1.0
            } else if wavelength > original / low_freq_factor {
                factor
            } else {
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        Some((0..dim / 2).map(|plane| divisor(plane) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rope(json: Value) -> (Rope, Vec<String>) {
        let mut fields = Fields::new(json.as_object().unwrap().clone(), "");
        let rope = Rope::take(&mut fields, 10_000.0, 4096);
        (rope, fields.finish())
    }

    #[test]
    fn llama_3_divides_long_wavelengths_and_keeps_short_ones() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        let (rope, faults) = rope(json!({"rope_theta": 500_000.0, "rope_scaling": scaling}));
        assert!(faults.is_empty(), "{faults:?}");
        let divisors = rope.llama3_divisors(128).unwrap();
        assert_eq!((divisors.len(), divisors[0], divisors[63]), (64, 1.0, 8.0));
        assert!(divisors.windows(2).all(|pair| pair[0] <= pair[1]));
        // Plane 32 has wavelength 2 pi sqrt(500000) = 4442.9, between 8192 / 4 and 8192.
        let smooth = (8192.0 / (std::f64::consts::TAU * 500_000f64.sqrt()) - 1.0) / 3.0;
        assert!((f64::from(divisors[32]) - 1.0 / ((1.0 - smooth) / 8.0 + smooth)).abs() < 1e-6);
    }

    #[test]
    fn what_is_not_known_is_said() {
        let (_, faults) = rope(json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}));
        assert_eq!(faults.len(), 1);
        assert!(faults[0].contains("`yarn`"));
        let (_, faults) = rope(json!({"rope_scaling": {"type": "linear", "factor": -1, "odd": 3}}));
        assert_eq!(faults.len(), 2, "{faults:?}");
        let (rope, faults) = rope(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}));
        assert_eq!((rope.theta, faults.len()), (5e5, 0));
    }
}
