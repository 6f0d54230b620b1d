//! The packet path, byte for byte, in both hooks.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use vipgate_abi::{
    address_filter::Bit,
    counters::Reason,
    flow::{State, TOUCH_PERIOD, Word},
    service::{Algorithm, Kind, Service, ServiceKey},
    snat::{SnatKind, SnatRule},
};
use vipgate_tests::packet::{Bench, Filling, Frame, Hook, Scratch, Transport, Verdict, tcp};

const TCP: u8 = 6;
const UDP: u8 = 17;

const CLIENT: SocketAddrV4 = SocketAddrV4::new(Bench::CLIENT, 40_000);
const VIP: SocketAddrV4 = SocketAddrV4::new(Bench::VIP, 80);
const BACKEND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 8080);

/// Each function becomes two tests, one for each hook.
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
mod checksums;
mod connection_limits;
mod connections;
mod counters;
mod datagrams;
mod direct;
mod elastic;
mod fill;
mod forwarding;
mod fragments;
mod gso;
mod guesses;
mod hairpin;
mod icmp;
mod ingress;
mod jumbo;
mod log;
mod malformed;
mod masquerade;
mod meters;
mod objects;
mod options;
mod ports;
mod quotes;
mod refused;
mod resets;
mod reverse_path;
mod rewriting;
mod routes;
mod secondary_table;
mod services;
mod sizes;
mod stack;
mod states;
mod takeover;
mod untouched;
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

/// The sender of a segment.
#[derive(Clone, Copy)]
enum Side {
    Client,
    Backend,
}

/// Runs segments with these flags; each must arrive at the other side.
fn exchange(bench: &mut Bench, segments: &[(Side, u8)]) -> Result<()> {
    for &(side, flags) in segments {
        let (frame, translate): (_, fn(Frame) -> Frame) = match side {
            Side::Client => (Frame::tcp(CLIENT, VIP, flags), to_backend),
            Side::Backend => (Frame::tcp(BACKEND, CLIENT, flags), to_client),
        };
        bench.expect_sent(&frame, &translate(frame.clone())).with_context(|| format!("flags {flags:#x}"))?;
    }
    Ok(())
}

/// Completes the handshake of a connection.
fn establish(bench: &mut Bench) -> Result<()> {
    exchange(bench, &[(Side::Client, tcp::SYN), (Side::Backend, tcp::SYN | tcp::ACK), (Side::Client, tcp::ACK)])
}

/// Sends a datagram each way; both must arrive.
fn ask_and_answer(bench: &mut Bench, ask: &Frame, answer: &Frame) -> Result<()> {
    bench.expect_sent(ask, &to_backend(ask.clone()))?;
    bench.expect_sent(answer, &to_client(answer.clone()))
}

/// Runs a frame that its flow translates and that is handed over to the stack to send or refuse.
fn expect_handed_over(bench: &mut Bench, frame: &Frame, translated: &Frame, reason: Reason) -> Result<()> {
    let before = bench.reason(reason)?;
    let outcome = bench.run(frame)?;
    ensure!(outcome.verdict == Verdict::Pass, "verdict {:?}", outcome.verdict);
    ensure!(outcome.bytes == translated.bytes(), "handed over {:02x?}", outcome.bytes);
    ensure!(bench.reason(reason)? == before + 1, "not counted as {}", reason.name());
    Ok(())
}

/// Runs a frame whose next hop the kernel must resolve or confirm: XDP hands the frame over for that, unchanged.
fn expect_by_neighbour(bench: &mut Bench, frame: &Frame, sent: &Frame) -> Result<()> {
    let (outcome, scratch) = bench.run_with_scratch(frame)?;
    match bench.hook() {
        Hook::Xdp => {
            ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == frame.bytes(), "{outcome:?}");
            ensure!(scratch == Scratch::Metadata(b"vgtn".to_vec()), "{scratch:?}");
        }
        Hook::Tc => ensure!(outcome.verdict == Verdict::Redirect && outcome.bytes == sent.bytes(), "{outcome:?}"),
    }
    Ok(())
}

/// A frame that leaves by a device before the next hop's MAC is known.
fn unresolved(frame: Frame, device_mac: [u8; 6]) -> Frame {
    frame.forwarded(device_mac, [0; 6])
}

/// Backends in the private network, by their last byte.
fn backends<const N: usize>(hosts: [u8; N]) -> [SocketAddrV4; N] {
    hosts.map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080))
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

/// Runs a frame at XDP, which hands it over to the TC stage unchanged.
fn expect_left(bench: &mut Bench, frame: &Frame) -> Result<()> {
    let (outcome, scratch) = bench.run_with_scratch(frame)?;
    ensure!(outcome.verdict == Verdict::Pass && scratch == Scratch::Metadata(b"vgtc".to_vec()), "{scratch:?}");
    ensure!(outcome.bytes == frame.bytes(), "the frame was changed");
    Ok(())
}

/// Adds a listener, a rule and an elastic IP of a guest; returns their addresses.
fn doors(bench: &mut Bench, elastic: Ipv4Addr, guest: Ipv4Addr) -> Result<[SocketAddrV4; 3]> {
    let rule = SocketAddrV4::new(Bench::VIP, 53);
    serve(bench, UDP)?;
    bench.forward(rule, UDP, ServiceKey::EXACT, SocketAddrV4::new(guest, 53))?;
    bench.elastic(elastic, guest, true)?;
    Ok([VIP, rule, SocketAddrV4::new(elastic, 53)])
}

/// The frame as it comes in by the device with this address.
fn by(dst_mac: [u8; 6], frame: Frame) -> Frame {
    Frame { dst_mac, ..frame }
}

const THIRD_MAC: [u8; 6] = [0x02, 0, 0, 0, 3, 0x01];

/// Adds a third device with a program, 10.3.0.0/24; returns its MAC.
fn third(bench: &mut Bench) -> Result<[u8; 6]> {
    command("ip link add third0 address 02:00:00:00:03:01 type veth peer name third1")?;
    command("ip link set third1 up")?;
    command("ip link set third0 up")?;
    command("ip addr add 10.3.0.1/24 dev third0")?;
    bench.add_device(3, "third0", THIRD_MAC)?;
    Ok(THIRD_MAC)
}
