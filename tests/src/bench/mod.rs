//! The benchmark: speed as ratios and differences, measured in turns within one run.

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

/// How much a run measures.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds of every figure.
    pub rounds: u32,
    /// Packets of a round.
    pub packets: u32,
    /// Seconds of a round that is measured by time.
    pub seconds: u32,
    /// Slots of a flow table that is filled.
    pub slots: u32,
}

impl Effort {
    pub const QUICK: Self = Self { rounds: 5, packets: 300_000, seconds: 1, slots: 1 << 17 };
    pub const FULL: Self = Self { rounds: 9, packets: 2_000_000, seconds: 3, slots: 1 << 20 };
}
