//! The benchmark: speed as ratios and differences, measured in turns within one run.

mod report;
pub mod testrun;

pub use report::{Report, Row, Series};
