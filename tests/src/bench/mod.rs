//! The benchmark: speed as ratios and differences, measured alternately within one run.

pub mod api;
pub mod bulk;
pub mod connections;
pub mod control;
pub mod fill;
pub mod limits;
pub(crate) mod peers;
pub mod plot;
mod report;
pub mod testrun;
mod traffic;
pub mod wire;

pub use report::{Curve, Report, Row, Series};

/// The amount of measuring in a run.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds of each figure.
    pub rounds: u32,
    /// Packets in a round.
    pub packets: u32,
    /// Seconds of a round, for rounds of a fixed time.
    pub seconds: u32,
    /// Number of slots of a flow table that is filled.
    pub slots: u32,
}

impl Effort {
    pub const QUICK: Self = Self { rounds: 5, packets: 300_000, seconds: 1, slots: 1 << 17 };
    pub const FULL: Self = Self { rounds: 9, packets: 2_000_000, seconds: 3, slots: 1 << 20 };
}
