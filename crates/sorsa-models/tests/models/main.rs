//! The models from outside: one program, since every program of tests compiles burn's generic code anew.

mod adapters;
mod block_by_block;
mod common;
mod golden;
mod laws;
mod long_and_recurrent;
mod quantized_bases;
mod real_models;
mod rwkv6;
