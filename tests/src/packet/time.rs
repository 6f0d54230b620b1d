//! Lets time pass for what the programs remember: instead of the clock, what was noted of it is moved.

use anyhow::Result;
use vipgate_abi::{
    backend::BackendRoute,
    flow::{Bucket, Flow, Mark, State, WAYS, Word},
    maps,
};

use super::Bench;

impl Bench {
    /// Lets so many jiffies pass for all flows, for the ways to backends, and since next hops were confirmed.
    pub fn let_pass(&mut self, jiffies: u32) -> Result<()> {
        let mut flows = Vec::new();
        let mut buckets = self.array::<Bucket>(maps::FLOW_BUCKETS)?;
        for number in 0..buckets.len() {
            let mut bucket = buckets.get(&number, 0)?;
            for (way, held) in (0u32..).zip(&mut bucket.words) {
                let word = Word(*held);
                if word.state() > State::Busy {
                    let older = u64::from(word.seen().wrapping_sub(jiffies)) << 32;
                    *held = older | u64::from(word.0 as u32);
                    flows.push((number * WAYS as u32 + way, Word(*held)));
                }
            }
            buckets.set(number, bucket, 0)?;
        }
        for (slot, word) in flows {
            let flow = self.array::<Flow>(maps::FLOWS)?.get(&slot, 0)?;
            let mark = Mark::of(word, flow.mark.flags());
            self.array(maps::FLOWS)?.set(slot, Flow { mark, ..flow }, 0)?;
        }
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
