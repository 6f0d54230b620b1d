//! The flow table and other tables that remember packets: reads them, and changes them behind the programs' backs.

use std::net::SocketAddrV4;

use anyhow::{Context as _, Result};
use aya::{Pod, maps::HashMap};
use vipgate_abi::{
    backend::Backend,
    flow::{Bucket, Flow, FlowKey, Mark, State, WAYS, Word},
    fragment::{FragmentKey, FragmentPorts},
    maps,
    refused::OriginalDestination,
};

use super::Bench;

impl Bench {
    /// Exchanges the flows of the main and the secondary table.
    pub fn swap_flows(&mut self) -> Result<()> {
        self.change_tables::<Flow>([maps::FLOWS, maps::OTHER_FLOWS], |[own, other]| [other, own])?;
        self.change_tables::<Bucket>([maps::FLOW_BUCKETS, maps::OTHER_BUCKETS], |[own, other]| [other, own])
    }

    /// Replaces the secondary table's flows by copies of the main table's.
    pub fn copy_flows_to_secondary(&mut self) -> Result<()> {
        self.change_tables::<Flow>([maps::FLOWS, maps::OTHER_FLOWS], |[own, _]| [own, own])?;
        self.change_tables::<Bucket>([maps::FLOW_BUCKETS, maps::OTHER_BUCKETS], |[own, _]| [own, own])
    }

    /// Removes all flows from the secondary table.
    pub fn clear_secondary_flows(&mut self) -> Result<()> {
        let empty = Bucket { words: [0; WAYS] };
        let mut buckets = self.array::<Bucket>(maps::OTHER_BUCKETS)?;
        (0..buckets.len()).try_for_each(|index| Ok(buckets.set(index, empty, 0)?))
    }

    /// Replaces each pair of elements of two tables by what `change` makes of them.
    fn change_tables<V: Pod>(&mut self, names: [&str; 2], change: fn([V; 2]) -> [V; 2]) -> Result<()> {
        let [own, other] = names;
        for index in 0..self.array::<V>(own)?.len() {
            let held = [self.array::<V>(own)?.get(&index, 0)?, self.array::<V>(other)?.get(&index, 0)?];
            for (name, value) in names.into_iter().zip(change(held)) {
                self.array(name)?.set(index, value, 0)?;
            }
        }
        Ok(())
    }

    /// The slot of the flow from `from` to `to`.
    pub fn slot_of(&mut self, from: SocketAddrV4, to: SocketAddrV4) -> Result<u32> {
        let is_its = |flow: &Flow| {
            let at = |addr: u32, port: u16| SocketAddrV4::new(u32::from_be(addr).into(), u16::from_be(port));
            at(flow.key.src, flow.key.sport) == from && at(flow.key.dst, flow.key.dport) == to
        };
        let slots = self.slots()?;
        let at = slots.iter().position(|(word, flow)| word.state().is_live() && is_its(flow));
        Ok(u32::try_from(at.context("no such flow")?)?)
    }

    /// Empties both slots of this connection.
    pub fn forget(&mut self, from: SocketAddrV4, to: SocketAddrV4) -> Result<()> {
        let at = self.slot_of(from, to)?;
        let mut flows = self.array::<Flow>(maps::FLOWS)?;
        let peer = flows.get(&at, 0)?.peer;
        for index in [at, peer] {
            flows.set(index, Flow::default(), 0)?;
        }
        let mut buckets = self.array::<Bucket>(maps::FLOW_BUCKETS)?;
        for index in [at, peer] {
            let mut bucket = buckets.get(&(index / WAYS as u32), 0)?;
            bucket.words[index as usize % WAYS] = 0;
            buckets.set(index / WAYS as u32, bucket, 0)?;
        }
        Ok(())
    }

    /// Changes which slot a flow holds to be that of its other direction.
    pub fn set_peer(&mut self, slot: u32, peer: u32) -> Result<()> {
        let mut flows = self.array::<Flow>(maps::FLOWS)?;
        let flow = flows.get(&slot, 0)?;
        Ok(flows.set(slot, Flow { peer, ..flow }, 0)?)
    }

    /// Every flow in the table, with its slot word.
    pub fn flows(&mut self) -> Result<Vec<(Word, Flow)>> {
        self.flows_of(maps::FLOW_BUCKETS, maps::FLOWS)
    }

    /// Every flow in the secondary table, with its slot word.
    pub fn secondary_flows(&mut self) -> Result<Vec<(Word, Flow)>> {
        self.flows_of(maps::OTHER_BUCKETS, maps::OTHER_FLOWS)
    }

    fn flows_of(&mut self, buckets: &str, entries: &str) -> Result<Vec<(Word, Flow)>> {
        let mut flows = Vec::new();
        let buckets = self.array::<Bucket>(buckets)?.iter().collect::<Result<Vec<_>, _>>()?;
        let entries = self.array::<Flow>(entries)?;
        for (number, bucket) in (0u32..).zip(buckets) {
            for (way, word) in (0u32..).zip(bucket.words.map(Word)) {
                if word.state() > State::Busy {
                    flows.push((word, entries.get(&(number * WAYS as u32 + way), 0)?));
                }
            }
        }
        Ok(flows)
    }

    /// The word and the flow of every slot, by index.
    pub fn slots(&mut self) -> Result<Vec<(Word, Flow)>> {
        let words = self.array::<Bucket>(maps::FLOW_BUCKETS)?.iter().collect::<Result<Vec<_>, _>>()?;
        let flows = self.array::<Flow>(maps::FLOWS)?.iter().collect::<Result<Vec<_>, _>>()?;
        Ok(words.into_iter().flat_map(|bucket| bucket.words).map(Word).zip(flows).collect())
    }

    /// Number of first fragments that the programs remember.
    pub fn fragments(&mut self) -> Result<usize> {
        let fragments = HashMap::<_, FragmentKey, FragmentPorts>::try_from(self.map(maps::FRAGMENTS)?)?;
        Ok(fragments.keys().collect::<Result<Vec<_>, _>>()?.len())
    }

    /// Makes the remembered first fragments older by this much.
    pub fn age_fragments(&mut self, jiffies: u32) -> Result<()> {
        let mut fragments = HashMap::<_, FragmentKey, FragmentPorts>::try_from(self.map(maps::FRAGMENTS)?)?;
        for (key, ports) in fragments.iter().collect::<Result<Vec<_>, _>>()? {
            fragments.insert(key, FragmentPorts { seen: ports.seen.wrapping_sub(jiffies), ..ports }, 0)?;
        }
        Ok(())
    }

    /// Makes the remembered direct connections to guests' own addresses older by this much.
    pub fn age_direct(&mut self, jiffies: u32) -> Result<()> {
        let mut direct = HashMap::<_, FlowKey, u32>::try_from(self.map(maps::DIRECT)?)?;
        for (key, seen) in direct.iter().collect::<Result<Vec<_>, _>>()? {
            direct.insert(key, seen.wrapping_sub(jiffies), 0)?;
        }
        Ok(())
    }

    /// Makes the remembered refusals by the stack older by this much.
    pub fn age_refused(&mut self, jiffies: u32) -> Result<()> {
        let mut refused = HashMap::<_, FlowKey, OriginalDestination>::try_from(self.map(maps::REFUSED)?)?;
        for (key, sent) in refused.iter().collect::<Result<Vec<_>, _>>()? {
            refused.insert(key, OriginalDestination { seen: sent.seen.wrapping_sub(jiffies), ..sent }, 0)?;
        }
        Ok(())
    }

    /// Ends all flows of a backend.
    pub fn end_flows(&mut self, number: u32) -> Result<()> {
        let backend = self.backend(number)?;
        self.set_backend(number, Backend { generation: backend.generation + 1, ..backend })
    }

    /// Moves every flow in the table to this state, as traffic would.
    pub fn set_states(&mut self, state: State) -> Result<u32> {
        let mut slots = Vec::new();
        let mut buckets = self.array::<Bucket>(maps::FLOW_BUCKETS)?;
        for number in 0..buckets.len() {
            let mut bucket = buckets.get(&number, 0)?;
            for (way, word) in (0u32..).zip(&mut bucket.words) {
                if Word(*word).state().is_live() {
                    *word = Word(*word).with_state(state).0;
                    slots.push((number * WAYS as u32 + way, Word(*word)));
                }
            }
            buckets.set(number, bucket, 0)?;
        }
        let mut flows = self.array::<Flow>(maps::FLOWS)?;
        for &(slot, word) in &slots {
            let flow = flows.get(&slot, 0)?;
            flows.set(slot, Flow { mark: Mark::of(word, flow.mark.flags()), ..flow }, 0)?;
        }
        Ok(u32::try_from(slots.len())?)
    }
}
