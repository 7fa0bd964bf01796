//! The comparison, apart from running it: what is asked for (`request`, made of `arm`, `sweep`, `suite` and `defaults`), the plan
//! and the identity of its runs, the results of finished runs (`run_result`, `row_result`, `results`), and the reports made of
//! them. Nothing here starts a process or prints.

pub mod arm;
pub mod base_recipe;
mod csv;
pub mod defaults;
mod estimate;
pub mod fields;
mod figures;
mod findings;
mod identity;
pub mod measurement;
mod notes;
mod page;
pub mod plan;
pub mod rate_grid;
pub mod report;
pub mod request;
pub mod results;
mod row_result;
pub mod run_conditions;
pub mod run_result;
pub mod run_spec;
pub mod suite;
pub mod sweep;
mod tables;
mod texts;
