//! One file for each command.

pub mod analyze;
pub mod convert;
pub mod devices;
pub mod eval;
pub mod export;
pub mod finetune;
pub mod generate;
pub mod grade;
pub mod import;
pub mod inspect;
pub mod lr_find;
pub mod merge;
pub mod pretrain;
pub mod processor_check;
pub mod unpack;
pub mod verify;
