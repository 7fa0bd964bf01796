//! Shows what a run did: figures as SVG and PNG, learning curves, tables, and reports in one HTML file each.
//!
//! Nothing here trains, grades or reads files: whoever has the numbers hands them in.
//!
//! ```
//! use sorsa_report::plot::{Axis, Figure, Marks, Point, Scale, Series};
//!
//! let points = [(1.0, 4.0), (2.0, 2.5), (3.0, 2.0)].map(Point::from);
//! let figure = Figure {
//!     title: "Loss".into(),
//!     x: Axis::new("optimizer step", Scale::Linear),
//!     y: Axis::new("nats per token", Scale::Linear),
//!     series: vec![Series::new("training", Marks::Line, points)],
//! };
//! assert!(figure.svg()?.starts_with("<svg"));
//! # Ok::<(), sorsa_report::ReportError>(())
//! ```

pub mod analysis;
mod error;
pub mod page;
pub mod plot;
pub mod report;
pub mod table;

pub use error::ReportError;
