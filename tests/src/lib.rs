//! The tests of the whole: rules of the workspace, files made by other frameworks, the real binary from end to end.
//!
//! Its own code is what fuzzing needs: [`fuzz`] reads bytes the way the program reads a file. See `docs/fuzzing.md`.

pub mod fuzz;
