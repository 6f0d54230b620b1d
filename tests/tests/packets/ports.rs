//! Connections whose answers would match another connection's: such a connection gets another source port.

use vipgate_abi::snat::FIRST_PORT;

use super::*;

const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
/// A second listener, and a second VIP, with the same backend.
const OTHER_PORT: SocketAddrV4 = SocketAddrV4::new(Bench::VIP, 8080);
const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 101);
const GUEST: Ipv4Addr = *BACKEND.ip();
/// A peer that talks to a guest from the guest's own port number.
const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

const fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

/// A segment, or a datagram, which has no flags.
fn packet(protocol: u8, from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> Frame {
    if protocol == TCP { Frame::tcp(from, to, flags) } else { Frame::udp(from, to) }
}

/// The source port of a frame.
fn sport(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[34], bytes[35]])
}

fn to_guest(frame: Frame, from: SocketAddrV4, port: u16) -> Frame {
    frame.between(from, at(GUEST, port)).forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11))
}

fn from_vip(frame: Frame, vip: SocketAddrV4, to: SocketAddrV4) -> Frame {
    let (mac, next_hop) = match *to.ip() {
        Bench::CLIENT => (Bench::PUBLIC_MAC, Bench::client_mac(10)),
        _ => (Bench::PUBLIC_MAC, Bench::GATEWAY_MAC),
    };
    frame.between(vip, to).forwarded(mac, next_hop)
}

/// Connects the client to the VIP, which leads to the guest's `port`: a handshake, if there is one, and a packet each way.
/// Returns the port that the guest sees as the client's.
fn connect(bench: &mut Bench, protocol: u8, client: SocketAddrV4, vip: SocketAddrV4, port: u16) -> Result<u16> {
    let first = packet(protocol, client, vip, tcp::SYN);
    let outcome = bench.run(&first)?;
    ensure!(outcome.verdict == Verdict::Redirect, "verdict {:?} for {first:?}", outcome.verdict);
    let seen = at(*client.ip(), sport(&outcome.bytes));
    ensure!(outcome.bytes == to_guest(first, seen, port).bytes(), "{:02x?}", outcome.bytes);
    converse(bench, protocol, (client, vip), (seen, port)).map(|()| seen.port())
}

/// The rest of [`connect`].
fn converse(
    bench: &mut Bench,
    protocol: u8,
    (client, vip): (SocketAddrV4, SocketAddrV4),
    (seen, port): (SocketAddrV4, u16),
) -> Result<()> {
    for (flags, is_answer) in [(SYN_ACK, true), (tcp::ACK, false), (tcp::ACK, true)] {
        if is_answer {
            let answer = packet(protocol, at(GUEST, port), seen, flags).payload(b"answer");
            bench.expect_sent(&answer, &from_vip(answer.clone(), vip, client))?;
        } else {
            let ask = packet(protocol, client, vip, flags).payload(b"ask");
            bench.expect_sent(&ask, &to_guest(ask.clone(), seen, port))?;
        }
    }
    Ok(())
}

/// Connects the client from the same port to both VIPs; the second one must see another port, of the same kind.
fn collide(bench: &mut Bench, protocol: u8, client: SocketAddrV4, vips: [SocketAddrV4; 2]) -> Result<()> {
    let port = BACKEND.port();
    ensure!(connect(bench, protocol, client, vips[0], port)? == client.port());
    let other = connect(bench, protocol, client, vips[1], port)?;
    ensure!(other != client.port() && (other < FIRST_PORT) == (client.port() < FIRST_PORT), "port {other}");
    // Each goes on by its own port.
    converse(bench, protocol, (client, vips[0]), (client, port))?;
    converse(bench, protocol, (client, vips[1]), (at(*client.ip(), other), port))
}

/// Sends a guest's datagram to the peer; returns its source outside.
fn say(bench: &mut Bench, from: SocketAddrV4, peer: SocketAddrV4) -> Result<SocketAddrV4> {
    let frame = Frame::udp(from, peer).payload(b"from inside");
    let outcome = bench.run(&frame)?;
    ensure!(outcome.verdict == Verdict::Redirect, "verdict {:?} for {frame:?}", outcome.verdict);
    let seen = at(Bench::VIP, sport(&outcome.bytes));
    ensure!(outcome.bytes == from_vip(frame, seen, peer).bytes(), "{:02x?}", outcome.bytes);
    Ok(seen)
}

both_hooks! {
    fn two_listeners_of_one_backend_accept_a_client_from_one_port(bench: &mut Bench) -> Result<()> {
        for protocol in [TCP, UDP] {
            let first = bench.serve(VIP, protocol, Algorithm::RoundRobin, &[BACKEND])?[0];
            let second = bench.serve(OTHER_PORT, protocol, Algorithm::RoundRobin, &[BACKEND])?[0];
            collide(bench, protocol, CLIENT, [VIP, OTHER_PORT])?;
            ensure!(bench.load(first)? == 1 && bench.load(second)? == 1);
            // A system port is replaced by another one.
            collide(bench, protocol, at(Bench::CLIENT, 700), [OTHER_PORT, VIP])?;
        }
        Ok(())
    }

    fn two_vips_of_one_backend_accept_a_client_from_one_port(bench: &mut Bench) -> Result<()> {
        let other = at(OTHER_VIP, VIP.port());
        for protocol in [TCP, UDP] {
            for vip in [VIP, other] {
                bench.serve(vip, protocol, Algorithm::Source, &[BACKEND])?;
            }
            collide(bench, protocol, CLIENT, [other, VIP])?;
        }
        Ok(())
    }

    fn a_rule_and_an_elastic_ip_of_one_guest_accept_a_client_from_one_port(bench: &mut Bench) -> Result<()> {
        bench.elastic(OTHER_VIP, GUEST, true)?;
        let elastic = at(OTHER_VIP, BACKEND.port());
        for protocol in [TCP, UDP] {
            bench.forward(VIP, protocol, ServiceKey::EXACT, BACKEND)?;
            collide(bench, protocol, CLIENT, [VIP, elastic])?;
            collide(bench, protocol, at(Bench::CLIENT, 41_000), [elastic, VIP])?;
        }
        Ok(())
    }

    fn a_client_may_use_one_port_for_any_number_of_listeners(bench: &mut Bench) -> Result<()> {
        let mut seen = std::collections::BTreeSet::new();
        for port in 80..100 {
            let vip = at(Bench::VIP, port);
            bench.serve(vip, UDP, Algorithm::RoundRobin, &[BACKEND])?;
            ensure!(seen.insert(connect(bench, UDP, CLIENT, vip, BACKEND.port())?));
        }
        Ok(())
    }

    fn a_client_keeps_its_port_if_another_backend_can_be_chosen(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        bench.serve(OTHER_PORT, UDP, Algorithm::RoundRobin, &backends([11, 12]))?;
        connect(bench, UDP, CLIENT, VIP, BACKEND.port())?;
        // The first backend in turn has a flow from that port.
        let ask = Frame::udp(CLIENT, OTHER_PORT);
        let sent = ask.clone().between(CLIENT, backends([12])[0]);
        bench.expect_sent(&ask, &sent.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(12)))
    }

    // Both handshakes at once: neither replaces the other.
    fn half_open_connections_of_one_port_both_complete(bench: &mut Bench) -> Result<()> {
        for vip in [VIP, OTHER_PORT] {
            bench.serve(vip, TCP, Algorithm::RoundRobin, &[BACKEND])?;
        }
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        bench.expect_sent(&syn, &to_guest(syn.clone(), CLIENT, BACKEND.port()))?;
        let other = bench.run(&Frame::tcp(CLIENT, OTHER_PORT, tcp::SYN))?;
        ensure!(other.verdict == Verdict::Redirect && sport(&other.bytes) != CLIENT.port());
        converse(bench, TCP, (CLIENT, VIP), (CLIENT, BACKEND.port()))?;
        converse(bench, TCP, (CLIENT, OTHER_PORT), (at(Bench::CLIENT, sport(&other.bytes)), BACKEND.port()))
    }

    // Its backend may still wait for late segments of the old connection (RFC 9293, section 3.6.1).
    fn an_ended_connection_keeps_its_port_for_a_while(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        bench.serve(OTHER_PORT, TCP, Algorithm::RoundRobin, &[BACKEND])?;
        establish(bench)?;
        exchange(bench, &[(Side::Client, tcp::FIN | tcp::ACK), (Side::Backend, tcp::FIN | tcp::ACK)])?;
        ensure!(connect(bench, TCP, CLIENT, OTHER_PORT, BACKEND.port())? != CLIENT.port());
        ensure!(states(bench)?.starts_with(&[State::Closed; 2]));
        Ok(())
    }

    fn errors_about_another_port_reach_both_sides(bench: &mut Bench) -> Result<()> {
        for vip in [VIP, OTHER_PORT] {
            bench.serve(vip, UDP, Algorithm::RoundRobin, &[BACKEND])?;
        }
        connect(bench, UDP, CLIENT, VIP, BACKEND.port())?;
        let seen = at(Bench::CLIENT, connect(bench, UDP, CLIENT, OTHER_PORT, BACKEND.port())?);
        let ask = Frame::udp(CLIENT, OTHER_PORT).payload(b"anybody?");
        let arrived = ask.clone().between(seen, BACKEND);
        let error = Frame::icmp_error(GUEST, Bench::CLIENT, [3, 3], 0, &arrived, 36);
        let turned = Frame::icmp_error(Bench::VIP, Bench::CLIENT, [3, 3], 0, &ask, 36);
        bench.expect_sent(&error, &turned.forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10)))?;
        let answer = Frame::udp(BACKEND, seen).payload(b"too late");
        let delivered = answer.clone().between(OTHER_PORT, CLIENT);
        let error = Frame::icmp_error(Bench::CLIENT, Bench::VIP, [3, 3], 0, &delivered, 36);
        let turned = Frame::icmp_error(Bench::CLIENT, GUEST, [3, 3], 0, &answer, 36);
        bench.expect_sent(&error, &turned.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11)))
    }

    fn pings_of_one_identifier_to_two_elastic_ips_of_one_guest_are_both_answered(bench: &mut Bench) -> Result<()> {
        let mut seen = Vec::new();
        for vip in [Bench::VIP, OTHER_VIP] {
            bench.elastic(vip, GUEST, false)?;
            let outcome = bench.run(&Frame::icmp_query(Bench::CLIENT, vip, 8, 5, b"ping"))?;
            let id = u16::from_be_bytes([outcome.bytes[38], outcome.bytes[39]]);
            let arrived = Frame::icmp_query(Bench::CLIENT, GUEST, 8, id, b"ping");
            ensure!(outcome.bytes == arrived.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11)).bytes());
            seen.push((vip, id));
        }
        ensure!(seen[0].1 == 5 && seen[1].1 != 5, "{seen:?}");
        for (vip, id) in seen {
            let answer = Frame::icmp_query(GUEST, Bench::CLIENT, 0, id, b"pong");
            let delivered = Frame::icmp_query(vip, Bench::CLIENT, 0, 5, b"pong");
            bench.expect_sent(&answer, &delivered.forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10)))?;
        }
        Ok(())
    }

    // SIP, IKE, WireGuard: the guest's and its peer's datagrams are one connection, whichever side begins.
    fn a_guest_that_talks_from_its_forwarded_port_is_seen_by_that_port(bench: &mut Bench) -> Result<()> {
        for (port, begins_inside) in [(5060, true), (5060, false), (500, true), (500, false)] {
            let bench = &mut Bench::new(bench.hook())?;
            bench.masquerade(Bench::VIP, true)?;
            let (guest, peer, vip) = (at(GUEST, port), at(PEER, port), at(Bench::VIP, port));
            bench.forward(vip, UDP, ServiceKey::EXACT, guest)?;
            if begins_inside {
                ensure!(say(bench, guest, peer)? == vip);
            }
            let answer = Frame::udp(peer, vip).payload(b"from outside");
            for _ in 0..4 {
                bench.expect_sent(&answer, &to_guest(answer.clone(), peer, port))?;
                ensure!(say(bench, guest, peer)? == vip);
            }
            ensure!(bench.flows()?.len() == 2, "{:?}", bench.flows()?);
        }
        Ok(())
    }

    fn a_port_that_is_forwarded_to_another_guest_or_another_port_is_not_a_guests(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, true)?;
        bench.forward(at(Bench::VIP, 5060), UDP, ServiceKey::EXACT, at(Ipv4Addr::new(10, 2, 0, 12), 5060))?;
        bench.forward(at(Bench::VIP, 5070), UDP, ServiceKey::EXACT, at(GUEST, 5071))?;
        for port in [5060, 5070] {
            ensure!(say(bench, at(GUEST, port), at(PEER, 5060))?.port() != port);
        }
        Ok(())
    }

    // The rule belongs to another VIP than the one that guests leave by, or leads to another port.
    fn a_forwarded_port_accepts_a_peer_that_the_guest_already_talks_to(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, true)?;
        let (guest, peer) = (at(GUEST, 5060), at(PEER, 5060));
        let rules = [at(OTHER_VIP, 5060), at(Bench::VIP, 6060)];
        for vip in rules {
            bench.forward(vip, UDP, ServiceKey::EXACT, guest)?;
        }
        let own = say(bench, guest, peer)?;
        for vip in rules {
            let ask = Frame::udp(peer, vip).payload(b"from outside");
            let first = bench.run(&ask)?;
            let seen = at(PEER, sport(&first.bytes));
            ensure!(first.verdict == Verdict::Redirect && seen != peer, "{seen}");
            for _ in 0..4 {
                bench.expect_sent(&ask, &to_guest(ask.clone(), seen, 5060))?;
                let answer = Frame::udp(guest, seen).payload(b"from inside");
                bench.expect_sent(&answer, &from_vip(answer.clone(), vip, peer))?;
            }
        }
        let answer = Frame::udp(peer, own).payload(b"from outside");
        bench.expect_sent(&answer, &to_guest(answer.clone(), peer, 5060))
    }
}
