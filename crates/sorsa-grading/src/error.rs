/// What can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
pub enum GradingError {
    /// Two samples that should be paired differ in length.
    #[error("paired samples differ in length: {left} and {right}")]
    Unpaired {
        /// Length of the first sample.
        left: usize,
        /// Length of the second sample.
        right: usize,
    },
}
