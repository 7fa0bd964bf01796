//! The rules of SORSA's author, bug for bug: to reproduce the paper's scores.

pub(crate) mod gsm8k;
pub(crate) mod math;
mod python;
