//! Bandwidth limits: their meters, and the queues that hold their packets back. Pure.

use vipgate_abi::meter::{Meter, Rate, class};
use vipgate_state::LimitState;

use crate::net::queue::Class;

/// Above this rate, in bits per second, there is no queue: it would cost a core to run, and a burst that TCP needs without one
/// is short there.
const QUEUED_UP_TO: u64 = 10_000_000_000;

/// A limit's rates in bits per second, by direction; `None` if the direction is not limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates(pub [Option<u64>; 2]);

impl Rates {
    pub fn of(limit: &LimitState) -> Self {
        Self([limit.inbound, limit.outbound])
    }

    /// The meter, given the device that has its queues, if there is one.
    pub fn meter(self, device: Option<u32>) -> Meter {
        let rate = |rate: Option<u64>| match (rate, device) {
            (None, _) => Rate::default(),
            (Some(rate), Some(device)) if rate <= QUEUED_UP_TO => Rate::queued(rate, device),
            (Some(rate), _) => Rate::policed(rate),
        };
        Meter { rates: self.0.map(rate) }
    }

    /// The queues that the limit of this number needs.
    pub fn classes(self, number: u32) -> impl Iterator<Item = Class> {
        let queued = |rate: &u64| *rate <= QUEUED_UP_TO;
        let rates = self.0.into_iter().enumerate();
        rates.filter_map(move |(direction, rate)| {
            let minor = u16::try_from(class(number, direction)).ok()?;
            rate.filter(queued).map(|rate| Class { minor, rate })
        })
    }
}

#[cfg(test)]
mod tests {
    use vipgate_abi::maps::DEFAULT_LIMITS;

    use super::*;

    #[test]
    fn a_rate_gets_a_queue_where_there_is_one_and_it_is_not_too_fast_for_it() {
        let rates = Rates([Some(1 << 20), Some(QUEUED_UP_TO + 1)]);
        let meter = rates.meter(Some(7));
        assert_eq!(meter.rates, [Rate::queued(1 << 20, 7), Rate::policed(QUEUED_UP_TO + 1)]);
        assert_eq!(rates.meter(None).rates[0], Rate::policed(1 << 20));
        assert_eq!(rates.classes(3).collect::<Vec<_>>(), [Class { minor: 6, rate: 1 << 20 }]);
    }

    #[test]
    fn a_direction_without_a_rate_is_not_limited() {
        let rates = Rates([None, Some(1 << 20)]);
        assert!(!rates.meter(Some(7)).rates[0].is_limited());
        assert_eq!(rates.classes(3).collect::<Vec<_>>(), [Class { minor: 7, rate: 1 << 20 }]);
    }

    #[test]
    fn every_limit_has_classes_of_its_own() {
        let both = Rates([Some(QUEUED_UP_TO); 2]);
        let mut minors: Vec<_> = (1..DEFAULT_LIMITS).flat_map(|number| both.classes(number)).collect();
        assert_eq!(minors.len() as u32, 2 * (DEFAULT_LIMITS - 1));
        minors.dedup_by_key(|class| class.minor);
        assert!(minors.len() as u32 == 2 * (DEFAULT_LIMITS - 1) && minors.iter().all(|class| class.minor > 1));
    }
}
