//! The settings of a comparison that the user does not give, in full and in a quick form. No other file of the comparison names a method.

use toml::Value;

use super::arm::Arm;
use super::fields::{FieldValue, GAMMA, METHOD};
use super::sweep::Sweep;

/// Name of the reference arm, to which reports give differences.
pub const REFERENCE_ARM: &str = "lora";

/// Multiples of a method's default learning rate.
pub const RATE_FACTORS: [f64; 4] = [0.5, 1.0, 2.0, 4.0];
/// The multiples of the quick comparison.
pub const QUICK_RATE_FACTORS: [f64; 2] = [1.0, 2.0];
/// Multiples of a learning rate that is found for an arm, as for every model but the embedded one.
pub const FOUND_RATE_FACTORS: [f64; 3] = [0.5, 1.0, 2.0];
/// Seeds of the full comparison.
pub const SEEDS: [u64; 3] = [42, 43, 44];
/// Seeds of the quick comparison.
pub const QUICK_SEEDS: [u64; 2] = [42, 43];
/// How often a grid of learning rates may be extended.
pub const EXTENSIONS: usize = 2;
/// How often a grid around a found rate may be extended: enough for the best rate to lie within.
pub const FOUND_RATE_EXTENSIONS: usize = 8;
/// How often the quick comparison may extend a grid.
pub const QUICK_EXTENSIONS: usize = 0;
/// Optimizer steps of each run of the quick comparison.
pub const QUICK_STEPS: u64 = 150;

/// Settings of all runs; the user's settings replace them. The cache of decompositions is off, so each run measures the whole time of its
/// start.
pub const SETTINGS: [&str; 2] = ["svd.cache=false", "eval.problems=400"];
/// Settings of all runs of the quick comparison.
pub const QUICK_SETTINGS: [&str; 2] = ["svd.cache=false", "eval.problems=200"];

/// The arms of the full comparison.
pub fn arms() -> Vec<Arm> {
    let mut arms = quick_arms();
    arms.extend(["partial", "full"].map(Arm::of_method));
    arms
}

/// The arms of the quick comparison.
pub fn quick_arms() -> Vec<Arm> {
    let mut arms: Vec<Arm> = ["lora", "pissa", "sorsa"].map(Arm::of_method).into();
    arms.push(Arm {
        name: "sorsa-noreg".to_owned(),
        fields: vec![FieldValue::new(METHOD, "sorsa"), FieldValue::new(GAMMA, 0.0)],
    });
    arms
}

/// The arms that `--methods` takes by name: those of the full comparison, and forms of its methods.
pub fn named_arms() -> Vec<Arm> {
    let mut arms = arms();
    let forms = [
        ("pissa-reg", "pissa", "train.regularizer.orthogonal_gamma", Value::Float(4e-4)),
        ("milora", "pissa", "svd.band", text("minor")),
        ("sorsa-minor", "sorsa", "svd.band", text("minor")),
        ("sorsa-middle", "sorsa", "svd.band", text("middle")),
        ("sorsa-vectors", "sorsa", "adapter.train", text("vectors")),
        ("sorsa-values", "sorsa", "adapter.train", text("singular-values")),
        ("sorsa-polar", "sorsa", "adapter.retraction", text("polar")),
    ];
    arms.extend(forms.map(|(name, method, field, value)| {
        let fields = vec![FieldValue::new(METHOD, method), FieldValue::new(field, value)];
        Arm { name: name.to_owned(), fields }
    }));
    arms
}

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

/// The sweeps of the full comparison; the quick one has none.
pub fn sweeps() -> Vec<Sweep> {
    let gammas = [0.0, 4e-5, 4e-4, 4e-3, 4e-2].map(Value::Float).into();
    vec![Sweep { optional: true, ..Sweep::new(GAMMA, gammas) }]
}
