//! Fills a flow table with long-lived connections: how full it gets before new ones find no room.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, bail};

use super::{Bench, Frame, Verdict, tcp};

/// Connections to a service with one backend, each from a client of its own.
#[derive(Debug)]
pub struct Filling {
    vip: SocketAddrV4,
    backend: SocketAddrV4,
    /// Number of slots in the table.
    slots: u32,
    next: Ipv4Addr,
    open: Vec<SocketAddrV4>,
}

/// What happened to the connections that clients asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub all: u32,
    pub refused: u32,
}

impl Filling {
    /// Starts without connections. The clients' addresses follow each other from `first` on.
    #[must_use]
    pub fn new(vip: SocketAddrV4, backend: SocketAddrV4, slots: u32, first: Ipv4Addr) -> Self {
        Self { vip, backend, slots, next: first, open: Vec::new() }
    }

    /// The connected clients.
    #[must_use]
    pub fn open(&self) -> &[SocketAddrV4] {
        &self.open
    }

    /// A client that has not asked for anything yet.
    pub fn next_client(&mut self) -> SocketAddrV4 {
        let client = SocketAddrV4::new(self.next, 40_000);
        self.next = Ipv4Addr::from_bits(self.next.to_bits().wrapping_add(1));
        client
    }

    /// Lets one more client connect; false if there is no room for it.
    pub fn ask(&mut self, bench: &mut Bench) -> Result<bool> {
        let client = self.next_client();
        match bench.run(&Frame::tcp(client, self.vip, tcp::SYN))?.verdict {
            Verdict::Redirect => {}
            Verdict::Drop => return Ok(false),
            other => bail!("verdict {other:?}"),
        }
        bench.run(&Frame::tcp(self.backend, client, tcp::SYN | tcp::ACK))?;
        bench.run(&Frame::tcp(client, self.vip, tcp::ACK))?;
        self.open.push(client);
        Ok(true)
    }

    /// Lets clients connect until this many percent of the table's slots are taken.
    pub fn up_to(&mut self, bench: &mut Bench, percent: u32) -> Result<Asked> {
        let wanted = u64::from(self.slots) * u64::from(percent) / 100 / 2;
        let mut asked = Asked::default();
        while (self.open.len() as u64) < wanted {
            asked.all += 1;
            asked.refused += u32::from(!self.ask(bench)?);
        }
        Ok(asked)
    }
}
