//! The records that the programs write about packets that they refuse or leave to the stack (`ebpf/src/log.rs`), read from
//! aya-log's ring buffer.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd, RawFd},
    str::{FromStr, SplitWhitespace},
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tokio::io::{Interest, unix::AsyncFd};
use vipgate_abi::{counters::Reason, maps};

use super::{LoadError, Plane, object};

/// What the programs recorded of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketRecord {
    pub reason: Reason,
    /// IANA protocol number; 0: the packet is no IPv4.
    pub protocol: u8,
    /// Its source and destination at that moment: a translated packet has those that it would have left with. Ports are 0 if it has
    /// none.
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    /// Interface index of the device that it came by, at egress of the one that it was to leave by.
    pub device: u32,
    /// When that was, since the machine started (`CLOCK_MONOTONIC`).
    pub at: Duration,
}

impl FromStr for PacketRecord {
    type Err = ();

    /// `reason 12 protocol 6 from 10.1.0.101 40000 to 10.1.0.10 80 by 3 at 123456789`
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split_whitespace();
        let reason = Reason::of(after("reason", &mut words)?).ok_or(())?;
        let protocol = after("protocol", &mut words)?;
        let from = SocketAddrV4::new(after::<Ipv4Addr>("from", &mut words)?, next(&mut words)?);
        let to = SocketAddrV4::new(after::<Ipv4Addr>("to", &mut words)?, next(&mut words)?);
        let device = after("by", &mut words)?;
        let at = Duration::from_nanos(after("at", &mut words)?);
        Ok(Self { reason, protocol, from, to, device, at })
    }
}

/// The value that follows this word, which is next.
fn after<T: FromStr>(word: &str, words: &mut SplitWhitespace<'_>) -> Result<T, ()> {
    if words.next() == Some(word) { next(words) } else { Err(()) }
}

fn next<T: FromStr>(words: &mut SplitWhitespace<'_>) -> Result<T, ()> {
    words.next().and_then(|word| word.parse().ok()).ok_or(())
}

/// The reading end of the ring buffer. Its descriptor is readable when there are records. One reader at a time.
pub struct PacketRecords {
    logger: EbpfLogger<Messages>,
    messages: Receiver<String>,
}

impl PacketRecords {
    /// Of loaded programs, or of those that have the same tables.
    ///
    /// # Errors
    /// The object has no ring.
    pub fn of(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let (sender, messages) = channel();
        let missing = |_| LoadError::Incomplete { kind: "map", name: maps::AYA_LOGS };
        Ok(Self { logger: EbpfLogger::init_with_logger(ebpf, Messages(sender)).map_err(missing)?, messages })
    }

    /// To be waited for until there is something to read. Within an async runtime.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn watched(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the descriptor is the ring's, which `self` holds open, always the same one.
        Ok(unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }?)
    }

    /// The records since the last call.
    pub fn take(&mut self) -> Vec<PacketRecord> {
        self.logger.flush();
        self.messages.try_iter().filter_map(|message| message.parse().ok()).collect()
    }
}

impl AsRawFd for PacketRecords {
    fn as_raw_fd(&self) -> RawFd {
        self.logger.as_raw_fd()
    }
}

impl fmt::Debug for PacketRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PacketRecords").finish_non_exhaustive()
    }
}

/// Where aya-log brings what it reads.
struct Messages(Sender<String>);

impl Log for Messages {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // The receiver is there while this is called.
        let _ = self.0.send(record.args().to_string());
    }

    fn flush(&self) {}
}

impl Plane {
    /// The records that were written while nobody read, and those to come.
    pub fn packet_records(&self) -> Result<PacketRecords, LoadError> {
        // Handles of its own: a program that is loaded later needs those that the others were loaded with.
        object::open_packet_records(&self.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_the_programs_write_it() {
        let text = "reason 12 protocol 6 from 10.1.0.101 40000 to 10.1.0.10 80 by 3 at 1500000000";
        let told = PacketRecord {
            reason: Reason::TableFull,
            protocol: 6,
            from: SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 40_000),
            to: SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 10), 80),
            device: 3,
            at: Duration::from_millis(1500),
        };
        assert_eq!(text.parse(), Ok(told));
        for wrong in ["", "reason 99 protocol 6", &text.replace("12", "250"), &text.replace("from", "to")] {
            assert_eq!(wrong.parse::<PacketRecord>(), Err(()), "{wrong}");
        }
    }
}
