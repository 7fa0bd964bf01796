//! One file for each command.

pub mod devices;
pub mod eval;
pub mod finetune;
pub mod generate;
pub mod grade;
pub mod inspect;
pub mod merge;
pub mod pretrain;
