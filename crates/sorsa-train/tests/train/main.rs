//! The training from outside: one program, since every program of tests compiles burn's generic code anew.

mod common;
mod golden;
mod optimizers;
mod own_model;
mod perplexity;
mod rate_search;
mod step;
mod stiefel;
mod weight_gradients;
