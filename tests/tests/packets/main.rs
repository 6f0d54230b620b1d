//! The packet path, byte for byte, in both hooks.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use vipgate_abi::{
    counters::Reason,
    flow::State,
    service::{Algorithm, Kind, Service, ServiceKey},
};
use vipgate_tests::packet::{Bench, Frame, Hook, Transport, Verdict, tcp};

const TCP: u8 = 6;
const UDP: u8 = 17;

const CLIENT: SocketAddrV4 = SocketAddrV4::new(Bench::CLIENT, 40_000);
const VIP: SocketAddrV4 = SocketAddrV4::new(Bench::VIP, 80);
const BACKEND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 8080);

/// Each function becomes two tests, one a hook.
macro_rules! both_hooks {
    ($($(#[$attribute:meta])* fn $name:ident($bench:ident: &mut Bench) -> Result<()> $body:block)+) => {$(
        mod $name {
            use super::*;

            fn case($bench: &mut Bench) -> Result<()> $body

            #[test]
            fn xdp() -> Result<()> {
                case(&mut Bench::new(Hook::Xdp)?)
            }

            #[test]
            fn tc() -> Result<()> {
                case(&mut Bench::new(Hook::Tc)?)
            }
        }
    )+};
}

mod balancing;
mod connections;
mod fragments;
mod hairpin;
mod icmp;
mod jumbo;
mod limits;
mod malformed;
mod options;
mod rewriting;
mod services;
mod stack;
mod vlan;

fn serve(bench: &mut Bench, protocol: u8) -> Result<u32> {
    Ok(bench.serve(VIP, protocol, Algorithm::RoundRobin, &[BACKEND])?[0])
}

fn to_backend(frame: Frame) -> Frame {
    let source = match frame.transport {
        Transport::Tcp { sport, .. } | Transport::Udp { sport, .. } => SocketAddrV4::new(frame.src, sport),
        Transport::Other(_) => SocketAddrV4::new(frame.src, 0),
    };
    frame.between(source, BACKEND).forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11))
}

fn to_client(frame: Frame) -> Frame {
    frame.between(VIP, CLIENT).forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10))
}

/// Drives the handshake to an established connection.
fn establish(bench: &mut Bench) -> Result<()> {
    for (flags, reply) in [(tcp::SYN, false), (tcp::SYN | tcp::ACK, true), (tcp::ACK, false)] {
        if reply {
            let frame = Frame::tcp(BACKEND, CLIENT, flags);
            bench.expect_sent(&frame, &to_client(frame.clone()))?;
        } else {
            let frame = Frame::tcp(CLIENT, VIP, flags);
            bench.expect_sent(&frame, &to_backend(frame.clone()))?;
        }
    }
    Ok(())
}

fn states(bench: &mut Bench) -> Result<Vec<State>> {
    let mut states: Vec<_> = bench.flows()?.into_iter().map(|(word, _)| word.state()).collect();
    states.sort();
    Ok(states)
}

fn command(words: &str) -> Result<()> {
    let mut words = words.split_whitespace();
    let status = std::process::Command::new(words.next().unwrap_or_default()).args(words).status()?;
    ensure!(status.success());
    Ok(())
}
