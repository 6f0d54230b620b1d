//! `vipgate flows`: the flow table's connections, chosen and sorted, as a table for people or as JSON.

mod sort;
mod table;

use std::{
    borrow::Cow,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddrV4},
    str::FromStr,
};

use clap::{Args, ValueEnum};
use ipnet::Ipv4Net;
use serde::Serialize;
use vipgate::packet_log::protocol;
use vipgate_abi::flow::State;
use vipgate_agent::loader::Connection;

use self::sort::Sort;
use crate::{cli::Output, status::flow_state};

/// Which connections are wanted, and in which order. All conditions must hold.
#[derive(Args, Debug)]
pub(crate) struct Wanted {
    /// Connections through this VIP, or through those of a network
    #[arg(long, value_name = "ADDRESS[/LENGTH]")]
    vip: Option<Network>,

    /// Connections through this port of a VIP
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,

    /// Connections that this client began, or those of a network; of outward ones the client is the guest
    #[arg(long, value_name = "ADDRESS[/LENGTH]")]
    client: Option<Network>,

    /// Connections that this backend answers, or those of a network; of outward ones the outside end that the guest talks to
    #[arg(long, value_name = "ADDRESS[/LENGTH]")]
    backend: Option<Network>,

    #[arg(long, value_enum)]
    direction: Option<Direction>,

    /// tcp, udp, icmp, or a number from 0 to 255
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<Protocol>,

    #[arg(long, value_enum)]
    state: Option<Stage>,

    /// Connections without a packet for at least so many seconds
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u32>,

    /// The order: the most packets, bytes or idle seconds first, addresses ascending [default: the table's own, which
    /// is none; with --top: packets]
    #[arg(long, value_enum)]
    sort: Option<Sort>,

    /// Only the first so many
    #[arg(long, value_name = "NUMBER")]
    top: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// Begun by clients of a VIP
    In,
    /// Begun by guests, through an elastic IP or source NAT
    Out,
}

impl Direction {
    const fn of(flow: &Connection) -> Self {
        if flow.outward { Self::Out } else { Self::In }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// A protocol's IANA number, or its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Protocol(u8);

impl FromStr for Protocol {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = (0..=u8::MAX).find(|number| protocol(*number) == text);
        let number = named.or_else(|| text.parse().ok());
        number.map(Self).ok_or("give tcp, udp, icmp, or a protocol's number from 0 to 255, such as 47")
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Stage {
    /// Only the client was heard
    Opening,
    /// TCP, the client's last word of the handshake outstanding
    Answered,
    /// TCP, handshake complete
    Established,
    /// UDP, answered
    Datagrams,
    /// TCP, one side has ended
    Closing,
    /// TCP, ended by both
    Closed,
    /// TCP, reset: it lives on if both sides do
    Reset,
}

impl Stage {
    const fn state(self) -> State {
        match self {
            Self::Opening => State::Opening,
            Self::Answered => State::Answered,
            Self::Established => State::Established,
            Self::Datagrams => State::Datagrams,
            Self::Closing => State::Closing,
            Self::Closed => State::Closed,
            Self::Reset => State::Reset,
        }
    }
}

/// A network, or an address, which is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network(Ipv4Net);

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let network = text.parse::<Ipv4Net>().or_else(|_| text.parse::<Ipv4Addr>().map(Ipv4Net::from));
        network.map(Self).map_err(|_| "give an IPv4 address, such as 10.1.0.10, or a network, such as 10.1.0.0/24")
    }
}

impl Wanted {
    /// Whether a connection meets all conditions.
    pub(crate) fn includes(&self, flow: &Connection) -> bool {
        let within =
            |network: Option<Network>, of: SocketAddrV4| network.is_none_or(|network| network.0.contains(of.ip()));
        within(self.vip, flow.vip)
            && within(self.client, flow.client)
            && within(self.backend, flow.backend)
            && self.port.is_none_or(|port| flow.vip.port() == port)
            && self.direction.is_none_or(|direction| Direction::of(flow) == direction)
            && self.protocol.is_none_or(|protocol| flow.protocol == protocol.0)
            && self.state.is_none_or(|stage| flow.state == stage.state())
            && self.idle.is_none_or(|seconds| flow.idle >= seconds)
    }

    /// Puts what was found in order and leaves the first ones.
    fn arrange(&self, flows: &mut Vec<Connection>) {
        if let Some(sort) = self.sort.or(self.top.map(|_| Sort::Packets)) {
            sort.arrange(flows, self.top);
        }
    }
}

/// Prints those that were found.
pub(crate) fn print(mut flows: Vec<Connection>, wanted: &Wanted, output: Output, to: impl Write) -> io::Result<()> {
    let found = flows.len();
    wanted.arrange(&mut flows);
    let mut to = io::BufWriter::with_capacity(1 << 16, to);
    match output {
        Output::Text => table::write(&flows, found, &mut to)?,
        Output::Json => json(&flows, found, &mut to)?,
    }
    to.flush()
}

/// A row of the JSON form.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    direction: &'static str,
    protocol: Cow<'static, str>,
    client: SocketAddrV4,
    vip: SocketAddrV4,
    backend: SocketAddrV4,
    state: &'static str,
    idle_seconds: u32,
    packets_in: u32,
    bytes_in: u64,
    packets_out: u32,
    bytes_out: u64,
}

fn json(flows: &[Connection], found: usize, to: &mut impl Write) -> io::Result<()> {
    write!(to, "{{\"found\":{found},\"connections\":[")?;
    for (index, flow) in flows.iter().enumerate() {
        to.write_all(if index == 0 { b"\n" } else { b",\n" })?;
        let row = Row {
            direction: Direction::of(flow).name(),
            protocol: protocol(flow.protocol),
            client: flow.client,
            vip: flow.vip,
            backend: flow.backend,
            state: flow_state(flow.state),
            idle_seconds: flow.idle,
            packets_in: flow.packets_in,
            bytes_in: flow.bytes_in,
            packets_out: flow.packets_out,
            bytes_out: flow.bytes_out,
        };
        serde_json::to_writer(&mut *to, &row)?;
    }
    writeln!(to, "]}}")
}

#[cfg(test)]
mod tests;
