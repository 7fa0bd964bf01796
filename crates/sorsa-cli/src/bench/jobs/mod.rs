//! Running a comparison: each job is a child process of this binary.

pub mod job;
pub mod job_runner;
pub mod stages;
