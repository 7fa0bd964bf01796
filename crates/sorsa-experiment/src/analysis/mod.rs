//! Measures what training did to the weights of a run, over its checkpoints.

mod adapter;
mod measure;
mod run;

pub use adapter::{AdapterSpectra, KindSpectrum};
pub use measure::{Measured, StartingWeight};
pub use run::{BaseModel, RunToAnalyze, Triplets};

#[cfg(test)]
mod tests;
