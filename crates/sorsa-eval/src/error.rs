/// What can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A figure has no finite point to draw.
    #[error("figure `{title}` has no finite point")]
    EmptyFigure {
        /// The figure's title.
        title: String,
    },
    /// The drawing library refused a figure.
    #[error("cannot draw figure `{title}`: {reason}")]
    Draw {
        /// The figure's title.
        title: String,
        /// What the library says.
        reason: String,
    },
    /// Two samples that should be paired differ in length.
    #[error("paired samples differ in length: {left} and {right}")]
    Unpaired {
        /// Length of the first sample.
        left: usize,
        /// Length of the second sample.
        right: usize,
    },
}
