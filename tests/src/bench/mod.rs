//! The benchmark: speed as ratios and differences, measured in turns within one run.

mod report;
pub mod testrun;
pub mod wire;

pub use report::{Report, Row, Series};
