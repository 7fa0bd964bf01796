//! The tests of the whole: rules of the workspace, files made by other frameworks, the real binary from end to end.
//!
//! This package has no code of its own; see its `tests` folder.
