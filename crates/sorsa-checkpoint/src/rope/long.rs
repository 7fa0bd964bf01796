//! LongRoPE (Ding et al., 2024, arXiv 2402.13753), as Phi-3 and 4 have it: the frequency of each plane is divided by a
//! number of its own, from one list up to the context of the pretraining and from another beyond it.

use serde_json::{Value, json};

use crate::fields::Fields;

/// The settings of LongRoPE, named as in `rope_scaling`.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// Divisor of each plane's frequency within the original context.
    pub short_factor: Vec<f64>,
    /// Divisor of each plane's frequency beyond it.
    pub long_factor: Vec<f64>,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Context of the pretraining.
    pub original_max_position_embeddings: usize,
    /// What sines and cosines are multiplied by; absent: it follows from the two contexts.
    pub attention_factor: Option<f64>,
}

impl LongRope {
    /// Whether a sequence is longer than the context of the pretraining.
    pub(super) fn is_long(&self, length: usize) -> bool {
        length > self.original_max_position_embeddings
    }

    /// The divisors for sequences of `length` tokens.
    pub(super) fn factors(&self, length: usize) -> impl Iterator<Item = f64> + '_ {
        let factors = if self.is_long(length) { &self.long_factor } else { &self.short_factor };
        factors.iter().copied()
    }

    /// `sqrt(1 + ln(max / original) / ln(original))`, for short sequences too.
    pub(crate) fn amplitude(&self) -> f64 {
        let original = self.original_max_position_embeddings as f64;
        let stretch = self.max_position_embeddings as f64 / original;
        let derived = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / original.ln()).sqrt() };
        self.attention_factor.unwrap_or(derived)
    }

    /// Takes a LongRoPE out of `rope_parameters` or `rope_scaling`, if there is one; what else is in there stays.
    /// Files of the first Phi-3 call it `su`.
    pub(crate) fn take(fields: &mut Fields, default_context: usize) -> Option<Self> {
        let context = match fields.peek_size("max_position_embeddings", usize::MAX) {
            0 => default_context,
            context => context,
        };
        ["rope_parameters", "rope_scaling"].into_iter().find_map(|name| {
            let mut inner = fields.take_object(name)?;
            let kind = inner.peek_text("rope_type").or_else(|| inner.peek_text("type"));
            let long = matches!(kind, Some("longrope" | "su")).then(|| {
                inner.take("rope_type");
                inner.take("type");
                // Transformers takes the ratio of the two contexts, whatever stands here.
                inner.take("factor");
                // Transformers 5 has it in here, 4 beside the others.
                let name = "original_max_position_embeddings";
                let original = inner.optional_size(name, None).or_else(|| fields.optional_size(name, None));
                let original = original.filter(|original| *original > 1).unwrap_or_else(|| {
                    inner.faults.push(format!("a longrope asks for `{name}`, of more than 1"));
                    context
                });
                Self {
                    short_factor: inner.numbers("short_factor"),
                    long_factor: inner.numbers("long_factor"),
                    max_position_embeddings: context,
                    original_max_position_embeddings: original,
                    attention_factor: inner.optional_number("attention_factor", None),
                }
            });
            fields.put_back(name, inner);
            long
        })
    }

    /// Notes a list of another length than the number of rotated planes.
    pub(crate) fn check_planes(&self, planes: usize, fields: &mut Fields) {
        for (name, factors) in [("short_factor", &self.short_factor), ("long_factor", &self.long_factor)] {
            // An empty list is noted already.
            if !factors.is_empty() && factors.len() != planes {
                let found = factors.len();
                fields.faults.push(format!("`{name}` should have {planes} numbers, one for each plane, found {found}"));
            }
        }
    }

    /// Three fields, and a fourth only if it is needed: Transformers 4 refuses a fourth in a Phi-3.
    pub(super) fn to_json(&self) -> Value {
        let mut object =
            json!({"type": "longrope", "short_factor": self.short_factor, "long_factor": self.long_factor});
        if let Some(factor) = self.attention_factor {
            object["attention_factor"] = factor.into();
        }
        object
    }
}
