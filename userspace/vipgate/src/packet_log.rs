//! Logs packets that the programs dropped or left to the stack: takes the programs' records (`loader::PacketRecords`), and adds the
//! names of the services and guests from the store. Which reasons are recorded is a setting that may change at any time.

use std::{borrow::Cow, io, time::Duration};

use nix::{
    net::if_::if_indextoname,
    time::{ClockId, clock_gettime},
};
use tracing::{info, warn};
use vipgate_abi::counters::{Reason, Severity};
use vipgate_agent::loader::{PacketRecord, PacketRecords};
use vipgate_controller::store::{
    self, Store,
    packet_names::{self, PacketNames},
};

use crate::config::Packets;

/// A record older than this is logged with its age: no controller ran when it was written.
const OLD: Duration = Duration::from_secs(2);

impl Packets {
    /// The reasons that the programs record, a set of [`Reason::bit`]s.
    pub const fn reasons(self) -> u64 {
        match self {
            Self::Off => 0,
            Self::Warn => Reason::at_least(Severity::Warn),
            Self::Info => Reason::at_least(Severity::Info),
            Self::Debug => Reason::at_least(Severity::Debug),
        }
    }
}

/// Logs what the programs record. Ends only if the records cannot be read, and logs that.
pub async fn run(records: PacketRecords, store: Store) {
    if let Err(error) = log_all(records, &store).await {
        warn!(%error, "the programs' records of packets cannot be read: packets are not logged until a restart");
    }
}

async fn log_all(records: PacketRecords, store: &Store) -> io::Result<()> {
    let mut records = records.watched()?;
    loop {
        let mut ready = records.readable_mut().await?;
        let heard = ready.get_inner_mut().take();
        ready.clear_ready();
        for record in heard {
            let names = names(store, &record).await.unwrap_or_else(|error| {
                warn!(%error, "the names of a packet's services and guests cannot be read");
                PacketNames::default()
            });
            log(&record, &names);
        }
    }
}

async fn names(store: &Store, record: &PacketRecord) -> Result<PacketNames, store::Error> {
    let mut tx = store.read().await?;
    packet_names::of_packet(&mut tx, record.from.into(), record.to.into(), record.protocol).await
}

fn log(record: &PacketRecord, names: &PacketNames) {
    let PacketRecord { reason, from, to, protocol, device, at } = record;
    let device = if_indextoname(*device).ok().and_then(|name| name.into_string().ok());
    let protocol = self::protocol(*protocol);
    let seconds_ago = age(*at).filter(|age| *age > OLD).map(|age| age.as_secs());
    let PacketNames { vip, listener, rule, eip, backend, guest } = names;
    let became = if reason.is_drop() { "dropped" } else { "left to the stack" };
    let reason_name = reason.name();
    // A macro, since tracing takes the level as part of the call site.
    macro_rules! say {
        ($level:ident) => {
            $level!(
                target: "vipgate::packets",
                reason = reason_name, %from, %to, protocol = &*protocol, device, vip, listener, rule, eip, backend, guest, seconds_ago,
                "a packet was {became}"
            )
        };
    }
    match reason.severity() {
        Severity::Warn => say!(warn),
        Severity::Info | Severity::Debug | Severity::Silent => say!(info),
    }
}

/// An IANA protocol by its name where it has one, else by its number.
pub fn protocol(number: u8) -> Cow<'static, str> {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        other => other.to_string().into(),
    }
}

/// How long ago something was, of which the time since the machine started is known.
fn age(at: Duration) -> Option<Duration> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?;
    Duration::from(now).checked_sub(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_tells_of_more_than_the_one_before() {
        let sets = [Packets::Off, Packets::Warn, Packets::Info, Packets::Debug].map(Packets::reasons);
        assert_eq!(sets[0], 0);
        assert!(sets.windows(2).all(|pair| pair[0] & pair[1] == pair[0] && pair[0] != pair[1]));
        assert_ne!(sets[1] & Reason::TableFull.bit(), 0);
        assert_eq!(sets[1] & Reason::TooManyConnections.bit(), 0);
    }
}
