//! Measures what training did to the weights of a run.

mod measure;

pub use measure::{Measured, StartingWeight};

#[cfg(test)]
mod tests;
