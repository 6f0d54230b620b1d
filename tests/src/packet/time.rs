//! Lets time pass for what the programs remember: moves the noted times instead of the clock.

use anyhow::Result;
use vipgate_abi::{
    backend::BackendRoute,
    config::Config,
    flow::{Bucket, Flow, Mark, State, WAYS, Word},
    maps,
};

use super::Bench;

impl Bench {
    /// Makes the programs' second longer than any test; returns it in jiffies.
    pub fn slow_down(&mut self) -> Result<u32> {
        let config = Config { tick: 10, ..self.config()? };
        self.set_config(config)?;
        Ok(config.second())
    }

    /// Makes all flows older by this many jiffies, in the main and the secondary table.
    pub fn age_flows(&mut self, jiffies: u32) -> Result<()> {
        for (buckets, flows) in [(maps::FLOW_BUCKETS, maps::FLOWS), (maps::OTHER_BUCKETS, maps::OTHER_FLOWS)] {
            let mut aged = Vec::new();
            let mut buckets = self.array::<Bucket>(buckets)?;
            for number in 0..buckets.len() {
                let mut bucket = buckets.get(&number, 0)?;
                for (way, held) in (0u32..).zip(&mut bucket.words) {
                    let word = Word(*held);
                    if word.state() > State::Busy {
                        let older = u64::from(word.seen().wrapping_sub(jiffies)) << 32;
                        *held = older | u64::from(word.0 as u32);
                        aged.push((number * WAYS as u32 + way, Word(*held)));
                    }
                }
                buckets.set(number, bucket, 0)?;
            }
            for (slot, word) in aged {
                let flow = self.array::<Flow>(flows)?.get(&slot, 0)?;
                let mark = Mark::of(word, flow.mark.flags());
                self.array(flows)?.set(slot, Flow { mark, ..flow }, 0)?;
            }
        }
        Ok(())
    }

    /// [`Self::age_flows`], also for routes to backends and confirmations of next hops.
    pub fn let_pass(&mut self, jiffies: u32) -> Result<()> {
        self.age_flows(jiffies)?;
        let mut confirmed = self.array::<u32>(maps::CONFIRMED)?;
        for place in 0..confirmed.len() {
            match confirmed.get(&place, 0)? {
                0 => {}
                at => confirmed.set(place, at.wrapping_sub(jiffies), 0)?,
            }
        }
        let mut routes = self.array::<BackendRoute>(maps::BACKEND_ROUTES)?;
        for number in 0..routes.len() {
            let route = routes.get(&number, 0)?;
            routes.set(number, BackendRoute { found: route.found.wrapping_sub(jiffies), ..route }, 0)?;
        }
        Ok(())
    }
}
