//! The connections in the flow table, read from the pins alone: works with and without a running controller, and
//! changes nothing. A flow is copied between two looks at its slot's word, as the race rules of `vipgate_abi::flow` want.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};

use nix::time::{ClockId, clock_getres};
use vipgate_abi::{
    Be16, Be32,
    flow::{Bucket, Flow, State, WAYS, Word},
    maps,
};

use super::{bpffs::PinDir, error::LoadError, fill::Fill, mapping::View, object, tables::view};

/// A connection: both directions of it. Of ICMP the port is the identifier, of what has no ports it is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// A guest began it, and its packets leave with the VIP as their source.
    pub outward: bool,
    /// IANA protocol number.
    pub protocol: u8,
    /// The end that began it.
    pub client: SocketAddrV4,
    pub vip: SocketAddrV4,
    /// The end that answers: the VIP's backend, or the outside end that a guest talks to.
    pub backend: SocketAddrV4,
    pub state: State,
    /// Seconds since the last packet in either direction.
    pub idle: u32,
    /// From the client; the counts wrap at 2^32 packets and 2^48 bytes.
    pub packets_in: u32,
    pub bytes_in: u64,
    /// To the client; as those.
    pub packets_out: u32,
    pub bytes_out: u64,
}

/// Gives every connection to `take`, in the table's order. `None` if nothing is pinned under this bpffs root.
pub fn read_connections(bpffs: &Path, take: impl FnMut(Connection)) -> Result<Option<()>, LoadError> {
    let dir = PinDir::new(bpffs);
    if !dir.is_there()? {
        return Ok(None);
    }
    let now = object::prepare_reading(&dir)?.jiffies()?;
    FlowReader::open(&dir)?.connections(now, hz()?, take);
    Ok(Some(()))
}

/// Jiffies a second.
pub fn hz() -> Result<u32, LoadError> {
    let nanoseconds = tick()?;
    Ok((1_000_000_000 + nanoseconds / 2) / nanoseconds)
}

/// Nanoseconds of a jiffy: the kernel's coarse clocks move once a jiffy, and report that resolution.
pub(super) fn tick() -> Result<u32, LoadError> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|error| LoadError::io("ask for the resolution of the coarse clock", error.into()))?;
    Ok(u32::try_from(tick.tv_nsec()).unwrap_or(u32::MAX).max(1))
}

/// The flow table, mapped for reading only.
#[derive(Debug)]
pub struct FlowReader {
    buckets: View<Bucket>,
    flows: View<Flow>,
}

impl FlowReader {
    pub(super) fn open(dir: &PinDir) -> Result<Self, LoadError> {
        Ok(Self { buckets: view(dir, maps::FLOW_BUCKETS)?, flows: view(dir, maps::FLOWS)? })
    }

    /// Number of flows that fit.
    pub(super) fn capacity(&self) -> u64 {
        u64::from(self.buckets.len()) * WAYS as u64
    }

    pub(super) fn buckets(&self) -> u32 {
        self.buckets.len()
    }

    /// How full it is.
    #[must_use]
    pub fn fill(&self) -> Fill {
        Fill::of(self)
    }

    fn connections(&self, now: u32, hz: u32, mut take: impl FnMut(Connection)) {
        for slot in 0..self.flows.len() {
            if let Some(connection) = self.connection(slot, now, hz) {
                take(connection);
            }
        }
    }

    /// The connection whose first flow is in this slot.
    fn connection(&self, slot: u32, now: u32, hz: u32) -> Option<Connection> {
        let (word, flow) = self.stable(slot).filter(|(_, flow)| !flow.mark.is_reply())?;
        // The other direction may just be gone, or its slot be another connection's.
        let reply = self.stable(flow.peer).filter(|(_, reply)| reply.peer == slot && reply.mark.is_reply());
        let idle = reply.map_or(word.age(now), |(reply, _)| reply.age(now).min(word.age(now)));
        let answer = reply.map(|(_, reply)| reply).unwrap_or_default();
        let outward = flow.mark.is_outward();
        let vip = match outward {
            true => address(flow.new_src, flow.new_sport),
            false => address(flow.key.dst, flow.key.dport),
        };
        Some(Connection {
            outward,
            protocol: flow.key.protocol,
            client: address(flow.key.src, flow.key.sport),
            vip,
            backend: address(flow.new_dst, flow.new_dport),
            state: reply.map_or(word.state(), |(reply, _)| both(word.state(), reply.state())),
            idle: idle / hz,
            packets_in: flow.packets,
            bytes_in: flow.bytes(),
            packets_out: answer.packets,
            bytes_out: answer.bytes(),
        })
    }

    pub(super) fn word(&self, slot: u32) -> Option<Word> {
        self.buckets.word(slot / WAYS as u32, slot as usize % WAYS).map(Word)
    }

    /// A slot's flow and the word under which it was read whole (rule 2).
    fn stable(&self, slot: u32) -> Option<(Word, Flow)> {
        let before = self.word(slot).filter(|word| !matches!(word.state(), State::Empty | State::Busy))?;
        let flow = self.flows.read(slot)?;
        let after = self.word(slot)?;
        let same = after.same_flow(before) && !matches!(after.state(), State::Empty | State::Busy);
        same.then_some((after, flow))
    }
}

/// What the states of both directions come to: over while one is, else as far as the further one.
fn both(one: State, other: State) -> State {
    if one == State::Reset || other == State::Reset {
        State::Reset
    } else if one.is_over() || other.is_over() {
        State::Closed
    } else if one == State::Closing || other == State::Closing {
        State::Closing
    } else {
        one.max(other)
    }
}

/// An address and a port as packets have them.
pub fn address(addr: Be32, port: Be16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(u32::from_be(addr)), u16::from_be(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jiffy_is_what_kernels_are_built_with() {
        assert!([100, 250, 300, 1000].contains(&hz().expect("a clock")));
    }

    #[test]
    fn a_connection_is_over_when_one_direction_is() {
        use State::{Answered, Closed, Closing, Established, Opening, Reset, Resumed};
        assert_eq!(both(Established, Closing), Closing);
        assert_eq!(both(Closed, Closing), Closed);
        assert_eq!(both(Closed, Resumed), Closed);
        assert_eq!(both(Resumed, Reset), Reset);
        assert_eq!(both(Opening, Answered), Answered);
        assert_eq!(both(Established, Answered), Established);
    }
}
