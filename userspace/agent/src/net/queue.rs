//! The devices whose queues hold limited packets back: pairs of veth devices of vipgate's own, with an HTB class for each
//! limited direction at the sending end. What comes out of the classes arrives at the other end, where a program sends it on.
//! So the router's own devices keep the queueing disciplines that their operator gave them.
//!
//! When a class is made, the kernel walks all that its discipline has. So a pair serves [`LIMITS`] limits, by their numbers.
//!
//! A packet whose class is not there passes at once: HTB has no default class here.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, stream::FuturesUnordered};
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcHeader, TcMessage, TcOption},
};
use rtnetlink::{Error, LinkUnspec, LinkVeth};

use super::{Device, Link, NetError, Netlink, dump::dump, netlink::failed, sysctl};

/// Limits that share one pair.
const LIMITS: u32 = 512;
/// What the names of all ends begin with.
const PREFIX: &str = "vipgate-q";
/// What the names of the receiving ends end with.
const END: &str = "-end";

/// A super-packet fits, and none is cut before it has to be.
const MTU: u32 = 65_535;
/// Packets that a class holds at most. Its meter keeps it much shorter, but for floods of very small packets.
const CLASS_PACKETS: u32 = 16_384;

const HTB: &str = "htb";
/// Of the discipline: its classes are 1:1 and so on.
const MAJOR: u16 = 1;
const ROOT: TcHandle = TcHandle { major: MAJOR, minor: 0 };
/// Attributes of HTB (linux/pkt_sched.h).
const PARAMETERS: u16 = 1;
const INIT: u16 = 2;
const RATE64: u16 = 6;
const CEIL64: u16 = 7;
/// Version of HTB's interface.
const HTB_VERSION: u32 = 3;
const ETHERNET: u8 = 1;
/// Nanoseconds of the kernel's packet scheduler's tick.
const TICK: u64 = 64;
/// What a class may send at once after it was idle, in nanoseconds at its rate: what a router's timers may be late.
const BURST: u64 = 10_000_000;
/// Bytes that a class sends before the next one's turn: a super-packet.
const QUANTUM: u32 = 65_536;
/// By this part a class is faster than its limit, which is the meter's to keep: so a queue that became longer than the meter
/// knows, because the machine stood still for more than the burst, becomes as short again.
const HEADROOM: u64 = 256;
/// Classes that are asked for at once.
const BATCH: usize = 512;

/// A class: minor number and rate in bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    pub minor: u16,
    pub rate: u64,
}

/// The number of the pair that has a limit's queues.
pub fn pair_of(limit: u32) -> u32 {
    limit / LIMITS
}

/// Name of the end at which a pair's queues are.
pub fn sending(pair: u32) -> String {
    format!("{PREFIX}{pair}")
}

/// Name of the end at which packets come out of them.
pub fn receiving(pair: u32) -> String {
    format!("{PREFIX}{pair}{END}")
}

/// The number of the pair that this is an end of.
pub fn pair_with(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    rest.strip_suffix(END).unwrap_or(rest).parse().ok()
}

/// A pair's ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub sending: Device,
    pub receiving: Device,
}

impl Netlink {
    /// The pairs that are there and up, with their discipline, by number.
    pub async fn queue_pairs(&self) -> Result<BTreeMap<u32, Pair>, NetError> {
        let mut pairs = self.pairs_that_are_up().await?;
        let bare = self.without_discipline(&pairs).await?;
        pairs.retain(|number, _| !bare.contains(number));
        Ok(pairs)
    }

    /// The numbers of the pairs that lack their discipline.
    pub async fn without_discipline(&self, pairs: &BTreeMap<u32, Pair>) -> Result<BTreeSet<u32>, NetError> {
        let mut bare = BTreeSet::new();
        for (number, pair) in pairs {
            // Each alone: what the kernel says of the disciplines of others need not be read.
            let ours = vec![TcAttribute::Kind(HTB.to_owned())];
            let message = TcMessage::from_parts(header(pair, ROOT, TcHandle::ROOT), ours);
            match self.ask(RouteNetlinkMessage::GetQueueDiscipline(message), 0).await {
                Ok(()) => {}
                // One of another kind or handle is invalid.
                Err(Error::NetlinkError(error))
                    if [libc::EINVAL, libc::ENOENT, libc::ENODEV].contains(&error.raw_code().abs()) =>
                {
                    bare.insert(*number);
                }
                Err(error) => return Err(failed("look for a queueing discipline", &error)),
            }
        }
        Ok(bare)
    }

    async fn pairs_that_are_up(&self) -> Result<BTreeMap<u32, Pair>, NetError> {
        let links = self.links().await?;
        let up: BTreeMap<&str, &Link> =
            links.iter().filter(|link| link.device.up).map(|link| (link.device.name.as_str(), link)).collect();
        let pair = |name: &&str| {
            let number = pair_with(name)?;
            let (one, other) = (*up.get(sending(number).as_str())?, *up.get(receiving(number).as_str())?);
            let is_peer = one.device.veth && one.peer == Some(other.device.ifindex);
            let pair = is_peer.then(|| Pair { sending: one.device.clone(), receiving: other.device.clone() })?;
            Some((number, pair))
        };
        Ok(up.keys().filter_map(pair).collect())
    }

    /// Makes a pair, with its discipline and no class.
    pub async fn make_queue_pair(&self, number: u32) -> Result<Pair, NetError> {
        let (sending, receiving) = (sending(number), receiving(number));
        // What is there is half made, or not ours: then making it fails, and says that the name is taken.
        self.remove_queue_pair(number).await?;
        let ends = LinkVeth::new(&sending, &receiving).mtu(MTU).txqueuelen(CLASS_PACKETS).arp(false).build();
        let made = self.handle().link().add(ends).execute().await;
        made.map_err(|error| failed(&format!("make the devices {sending} and {receiving}"), &error))?;
        for name in [&sending, &receiving] {
            sysctl::disable_ipv6(name)?;
            let up = LinkUnspec::new_with_name(name).mtu(MTU).arp(false).up().build();
            let set = self.handle().link().change(up).execute().await;
            set.map_err(|error| failed(&format!("set the device {name} up"), &error))?;
        }
        let missing = || NetError::Netlink {
            what: format!("find the devices {sending} and {receiving}"),
            reason: "they are gone again".to_owned(),
        };
        let pair = self.pairs_that_are_up().await?.remove(&number).ok_or_else(missing)?;
        let options = vec![option(INIT, [HTB_VERSION, 1, 0, 0, 0].map(u32::to_ne_bytes).concat())];
        let attributes = vec![TcAttribute::Kind(HTB.to_owned()), TcAttribute::Options(options)];
        let message = TcMessage::from_parts(header(&pair, ROOT, TcHandle::ROOT), attributes);
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.ask(RouteNetlinkMessage::NewQueueDiscipline(message), flags).await {
            Ok(()) => Ok(pair),
            Err(error) => {
                self.remove_queue_pair(number).await?;
                Err(failed("make an HTB queueing discipline", &error))
            }
        }
    }

    /// Removes a pair, and what is in its queues. None there is no error, nor is a device of that name that is no veth, which
    /// stays.
    pub async fn remove_queue_pair(&self, number: u32) -> Result<(), NetError> {
        self.remove_pairs_of(|name| name == sending(number)).await
    }

    /// The same for all pairs.
    pub async fn remove_queue_pairs(&self) -> Result<(), NetError> {
        self.remove_pairs_of(|name| pair_with(name).is_some_and(|number| name == sending(number))).await
    }

    /// Removes the pairs whose sending end has one of these names.
    async fn remove_pairs_of(&self, names: impl Fn(&str) -> bool) -> Result<(), NetError> {
        for device in self.devices().await?.into_iter().filter(|device| device.veth && names(&device.name)) {
            match self.handle().link().del(device.ifindex).execute().await {
                Err(Error::NetlinkError(error)) if error.raw_code().abs() == libc::ENODEV => {}
                removed => removed.map_err(|error| failed(&format!("remove the device {}", device.name), &error))?,
            }
        }
        Ok(())
    }

    /// The minor numbers of the classes that a pair has.
    pub async fn classes(&self, pair: &Pair) -> Result<BTreeSet<u16>, NetError> {
        let message = TcMessage::from_parts(header(pair, TcHandle::UNSPEC, TcHandle::UNSPEC), Vec::new());
        let request = RouteNetlinkMessage::GetTrafficClass(message);
        let minor = |answer: &RouteNetlinkMessage| match answer {
            RouteNetlinkMessage::NewTrafficClass(message) => Some(message.header.handle.minor),
            _ => None,
        };
        Ok(dump(&self.handle(), "list the queues", request).await?.iter().filter_map(minor).collect())
    }

    /// Makes classes, or gives those that are there another rate.
    pub async fn set_classes(&self, pair: &Pair, classes: &[Class]) -> Result<(), NetError> {
        let messages = classes.iter().map(|class| {
            let handle = TcHandle { major: MAJOR, minor: class.minor };
            let attributes = vec![TcAttribute::Kind(HTB.to_owned()), TcAttribute::Options(parameters(class.rate))];
            RouteNetlinkMessage::NewTrafficClass(TcMessage::from_parts(header(pair, handle, ROOT), attributes))
        });
        let result = self.ask_all(messages.collect(), NLM_F_CREATE | NLM_F_REPLACE).await;
        result.map_err(|error| failed("make a queue", &error))
    }

    /// Removes classes, and what they hold. Those that are not there are no error.
    pub async fn remove_classes(&self, pair: &Pair, minors: &[u16]) -> Result<(), NetError> {
        let messages = minors.iter().map(|minor| {
            let handle = TcHandle { major: MAJOR, minor: *minor };
            RouteNetlinkMessage::DelTrafficClass(TcMessage::from_parts(header(pair, handle, ROOT), Vec::new()))
        });
        match self.ask_all(messages.collect(), 0).await {
            Err(Error::NetlinkError(error)) if [libc::ENOENT, libc::ENODEV].contains(&error.raw_code().abs()) => Ok(()),
            result => result.map_err(|error| failed("remove a queue", &error)),
        }
    }

    /// Asks for many changes without waiting for each; all are made; returns the first error.
    async fn ask_all(&self, messages: Vec<RouteNetlinkMessage>, flags: u16) -> Result<(), Error> {
        let mut result = Ok(());
        for batch in messages.chunks(BATCH) {
            let mut answers: FuturesUnordered<_> =
                batch.iter().map(|message| self.ask(message.clone(), flags)).collect();
            while let Some(answer) = answers.next().await {
                result = result.and(answer);
            }
        }
        result
    }

    async fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.handle().request(request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(Error::NetlinkError(error));
            }
        }
        Ok(())
    }
}

fn header(pair: &Pair, handle: TcHandle, parent: TcHandle) -> TcHeader {
    TcHeader { index: pair.sending.ifindex.cast_signed(), handle, parent, ..TcHeader::default() }
}

fn option(kind: u16, value: Vec<u8>) -> TcOption {
    TcOption::Other(DefaultNla::new(kind, value))
}

/// A class' parameters: `struct tc_htb_opt`, and the rates in full, in bytes a second.
fn parameters(rate: u64) -> Vec<TcOption> {
    let rate = (rate + rate / HEADROOM) / 8;
    let short = u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes();
    // cell_log, linklayer, overhead, cell_align, mpu, rate.
    let specification = [&[0, ETHERNET, 0, 0, 0, 0, 0, 0][..], &short].concat();
    let burst = ((BURST / TICK) as u32).to_ne_bytes();
    let numbers = [burst, burst, QUANTUM.to_ne_bytes(), [0; 4], [0; 4]].concat();
    let structure = [&specification[..], &specification, &numbers].concat();
    let long = rate.to_ne_bytes().to_vec();
    vec![option(PARAMETERS, structure), option(RATE64, long.clone()), option(CEIL64, long)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ends_are_short_enough_for_the_kernel_and_tell_their_pair() {
        for number in [0, 7, pair_of(vipgate_abi::maps::DEFAULT_LIMITS - 1)] {
            for name in [sending(number), receiving(number)] {
                assert!(name.len() < libc::IFNAMSIZ, "{name}");
                assert_eq!(pair_with(&name), Some(number));
            }
        }
        assert!(["eth0", "vipgate-q", "vipgate-qx", "vipgate-q1-"].into_iter().all(|name| pair_with(name).is_none()));
    }

    #[test]
    fn limits_that_follow_one_another_share_a_pair() {
        assert_eq!([0, LIMITS - 1, LIMITS, 2 * LIMITS].map(pair_of), [0, 0, 1, 2]);
    }
}
