/// What can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
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
}
