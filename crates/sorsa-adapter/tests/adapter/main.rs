//! What must hold of the crate from outside: one program, since every program of tests compiles burn's generic code anew.

mod auto_rank;
mod bands;
mod common;
mod files;
mod golden;
mod hostile;
mod hybrids;
mod laws;
mod packed;
mod quantized_starts;
mod regularizer;
mod stella;
mod svd_methods;
mod targets;
