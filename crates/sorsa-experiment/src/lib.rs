//! The experiment as a library.

pub mod analysis;
