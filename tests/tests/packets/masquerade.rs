//! Source NAT: a network's guests share a VIP; each of their connections has its own port.

use std::collections::BTreeSet;

use vipgate_abi::snat::{FIRST_PORT, OWN_PORTS, PORTS};

use super::*;

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 443);
const GUESTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 2, 0, 11), Ipv4Addr::new(10, 2, 0, 12)];

const fn vip(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Bench::VIP, port)
}

fn to_gateway(frame: Frame) -> Frame {
    frame.forwarded(Bench::PUBLIC_MAC, Bench::GATEWAY_MAC)
}

fn to_guest(frame: Frame, guest: usize) -> Frame {
    frame.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11 + u8::try_from(guest).unwrap_or(0)))
}

/// Sends a guest's datagram and its answer; returns the source port that it got.
fn exchange_by(bench: &mut Bench, guest: usize, port: u16, server: SocketAddrV4) -> Result<u16> {
    let from = SocketAddrV4::new(GUESTS[guest], port);
    let ask = Frame::udp(from, server).payload(b"ask");
    let outcome = bench.run(&ask)?;
    ensure!(outcome.verdict == Verdict::Redirect, "verdict {:?}", outcome.verdict);
    let given = u16::from_be_bytes([outcome.bytes[34], outcome.bytes[35]]);
    ensure!(outcome.bytes == to_gateway(ask.between(vip(given), server)).bytes());
    let answer = Frame::udp(server, vip(given)).payload(b"answer");
    bench.expect_sent(&answer, &to_guest(answer.clone().between(server, from), guest))?;
    Ok(given)
}

both_hooks! {
    fn a_guests_connection_keeps_its_port_if_it_is_free(bench: &mut Bench) -> Result<()> {
        let number = bench.masquerade(Bench::VIP, false)?;
        ensure!(exchange_by(bench, 0, 40_000, SERVER)? == 40_000);
        // Another destination is another connection: the port is free there.
        let other = SocketAddrV4::new(*SERVER.ip(), 80);
        ensure!(exchange_by(bench, 1, 40_000, other)? == 40_000);
        let taken = exchange_by(bench, 1, 40_000, SERVER)?;
        ensure!(taken != 40_000 && (FIRST_PORT..OWN_PORTS).contains(&taken), "port {taken}");
        // Both go on by their own ports.
        ensure!(exchange_by(bench, 0, 40_000, SERVER)? == 40_000 && exchange_by(bench, 1, 40_000, SERVER)? == taken);
        let traffic = bench.traffic(number)?;
        ensure!((traffic.packets_in, traffic.packets_out, traffic.connections) == (5, 5, 3), "{traffic:?}");
        Ok(())
    }

    // NFS and rsh need it (RFC 4787, REQ-3).
    fn a_system_port_is_replaced_by_another_one_while_one_is_free(bench: &mut Bench) -> Result<()> {
        let mut bench = Bench::with_buckets(bench.hook(), 1 << 11)?;
        bench.masquerade(Bench::VIP, false)?;
        let mut given = BTreeSet::new();
        for port in 1..FIRST_PORT {
            ensure!(exchange_by(&mut bench, 0, port, SERVER)? == port);
            given.insert(port);
        }
        ensure!(exchange_by(&mut bench, 1, 700, SERVER)? >= FIRST_PORT, "no system port was free");
        for port in [1, 500, 1023] {
            bench.forget(SocketAddrV4::new(GUESTS[0], port), SERVER)?;
        }
        // Each packet tries some more ports.
        let found = (0..100).find_map(|_| {
            let port = exchange_by(&mut bench, 1, 800, SERVER).ok()?;
            bench.forget(SocketAddrV4::new(GUESTS[1], 800), SERVER).ok()?;
            (port < FIRST_PORT).then_some(port)
        });
        ensure!(found.is_some_and(|port| [1, 500, 1023].contains(&port)), "found {found:?}");
        // Other ports are not replaced by system ports.
        ensure!(exchange_by(&mut bench, 1, 40_000, SERVER)? == 40_000);
        ensure!(exchange_by(&mut bench, 0, 40_000, SERVER)? >= FIRST_PORT);
        Ok(())
    }

    fn connections_are_followed_and_free_their_port_at_their_end(bench: &mut Bench) -> Result<()> {
        let number = bench.masquerade(Bench::VIP, false)?;
        let from = SocketAddrV4::new(GUESTS[0], 40_000);
        for (ask, answer) in [(tcp::SYN, tcp::SYN | tcp::ACK), (tcp::ACK, tcp::ACK), (tcp::FIN | tcp::ACK, tcp::FIN | tcp::ACK)] {
            let out = Frame::tcp(from, SERVER, ask);
            bench.expect_sent(&out, &to_gateway(out.clone().between(vip(40_000), SERVER)))?;
            let back = Frame::tcp(SERVER, vip(40_000), answer);
            bench.expect_sent(&back, &to_guest(back.clone().between(SERVER, from), 0))?;
        }
        ensure!(states(bench)? == [State::Closed; 2] && bench.load(number)? == 0);
        let next = Frame::tcp(SocketAddrV4::new(GUESTS[1], 40_000), SERVER, tcp::SYN);
        let outcome = bench.run(&next)?;
        ensure!(outcome.verdict == Verdict::Redirect);
        let given = u16::from_be_bytes([outcome.bytes[34], outcome.bytes[35]]);
        ensure!(given != 40_000, "a closed connection's port rests while others are free");
        Ok(())
    }

    fn identifiers_of_pings_are_translated_like_ports(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, false)?;
        let server = *SERVER.ip();
        let mut given = BTreeSet::new();
        for (number, guest) in GUESTS.into_iter().enumerate() {
            for (id, data) in [(5000, &b"even"[..]), (0, b"odd")] {
                let outcome = bench.run(&Frame::icmp_query(guest, server, 8, id, data))?;
                ensure!(outcome.verdict == Verdict::Redirect);
                let new = u16::from_be_bytes([outcome.bytes[38], outcome.bytes[39]]);
                ensure!(outcome.bytes == to_gateway(Frame::icmp_query(Bench::VIP, server, 8, new, data)).bytes());
                ensure!(given.insert(new) && (FIRST_PORT..OWN_PORTS).contains(&new), "identifier {new}");
                let answer = Frame::icmp_query(server, Bench::VIP, 0, new, data);
                bench.expect_sent(&answer, &to_guest(Frame::icmp_query(server, guest, 0, id, data), number))?;
                // The same for an error that quotes a query.
                let (hop, seen) = (Ipv4Addr::new(198, 51, 100, 1), Frame::icmp_query(Bench::VIP, server, 8, new, data));
                let error = Frame::icmp_error(hop, Bench::VIP, [11, 0], 0, &seen, 28 + data.len());
                let asked = Frame::icmp_query(guest, server, 8, id, data);
                let turned = Frame::icmp_error(hop, guest, [11, 0], 0, &asked, 28 + data.len());
                bench.expect_sent(&error, &to_guest(turned, number))?;
                // And for one from inside, about the answer.
                let answered = Frame::icmp_query(server, guest, 0, id, data);
                let error = Frame::icmp_error(guest, server, [3, 1], 0, &answered, 28 + data.len());
                let known = Frame::icmp_error(Bench::VIP, server, [3, 1], 0, &answer, 28 + data.len());
                bench.expect_sent(&error, &to_gateway(known))?;
            }
        }
        Ok(())
    }

    fn an_icmp_answer_without_a_query_gets_no_identifier(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, false)?;
        for kind in [0, 14, 16, 18, 9] {
            let stray = Frame::icmp_query(GUESTS[0], *SERVER.ip(), kind, 5000, b"pong");
            bench.expect_refused(&stray, Reason::NoFlow)?;
            let fragments = stray.payload(&[kind; 2000]).fragments(&[0, 1480]);
            for (fragment, reason) in fragments.iter().zip([Reason::NoFlow, Reason::Fragment]) {
                bench.expect_refused(fragment, reason)?;
                ensure!(!bench.leaves(fragment, "pub0")?);
            }
        }
        ensure!(bench.flows()?.is_empty());
        // A message that is not a query has no identifier, even if it has a query's bytes.
        let ask = Frame::icmp_query(GUESTS[0], *SERVER.ip(), 8, 0, b"ping");
        ensure!(!bench.run(&ask)?.bytes.is_empty());
        bench.expect_refused(&Frame::icmp_query(GUESTS[0], *SERVER.ip(), 9, 0, b"here"), Reason::NoFlow)
    }

    fn another_protocol_belongs_to_one_guest_for_each_destination(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, false)?;
        let of = |src, dst| Frame::other(src, dst, 47).payload(&[0; 24]);
        bench.expect_sent(&of(GUESTS[0], *SERVER.ip()), &to_gateway(of(Bench::VIP, *SERVER.ip())))?;
        bench.expect_sent(&of(*SERVER.ip(), Bench::VIP), &to_guest(of(*SERVER.ip(), GUESTS[0]), 0))?;
        bench.expect_refused(&of(GUESTS[1], *SERVER.ip()), Reason::ReplyInUse)
    }

    fn fragments_follow_the_first_ones_port(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, false)?;
        exchange_by(bench, 0, 40_000, SERVER)?;
        let from = SocketAddrV4::new(GUESTS[1], 40_000);
        let ask = Frame::udp(from, SERVER).payload(&[0xa5; 3001]);
        let offsets = [0, 1480, 2960];
        let fragments = ask.fragments(&offsets);
        let first = bench.run(&fragments[0])?;
        let given = u16::from_be_bytes([first.bytes[34], first.bytes[35]]);
        let sent = to_gateway(ask.between(vip(given), SERVER)).fragments(&offsets);
        ensure!(given != 40_000 && first.bytes == sent[0].bytes());
        for (fragment, expected) in fragments[1..].iter().zip(&sent[1..]) {
            bench.expect_sent(fragment, expected)?;
        }
        Ok(())
    }

    fn guests_get_no_port_of_the_vips_services(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, true)?;
        bench.forward(vip(40_000), UDP, ServiceKey::EXACT - 4, SocketAddrV4::new(GUESTS[1], 9000))?;
        for port in [40_000, 40_007, 40_015] {
            let given = exchange_by(bench, 0, port, SERVER)?;
            ensure!(!(40_000..40_016).contains(&given), "port {given}");
        }
        ensure!(exchange_by(bench, 0, 40_016, SERVER)? == 40_016);
        // A request to the service from an address that a guest talks to reaches the service.
        let ask = Frame::udp(SERVER, vip(40_001));
        bench.expect_sent(&ask, &to_guest(ask.clone().between(SERVER, SocketAddrV4::new(GUESTS[1], 9001)), 1))
    }

    fn an_elastic_ip_wins_over_source_nat(bench: &mut Bench) -> Result<()> {
        let elastic = Ipv4Addr::new(10, 1, 0, 101);
        bench.masquerade(Bench::VIP, false)?;
        bench.elastic(elastic, GUESTS[0], true)?;
        let from = SocketAddrV4::new(GUESTS[0], 53);
        let ask = Frame::udp(from, SERVER);
        bench.expect_sent(&ask, &to_gateway(ask.clone().between(SocketAddrV4::new(elastic, 53), SERVER)))?;
        exchange_by(bench, 1, 40_000, SERVER).map(drop)
    }

    fn a_service_wins_over_source_nat(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, false)?;
        let balanced = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 102), 80);
        bench.serve(balanced, UDP, Algorithm::RoundRobin, &[SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 20), 8080)])?;
        let from = SocketAddrV4::new(GUESTS[0], 40_000);
        let ask = Frame::udp(from, balanced);
        let sent = ask.clone().between(from, SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 20), 8080));
        bench.expect_sent(&ask, &sent.forwarded(Bench::PUBLIC_MAC, Bench::client_mac(20)))
    }

    fn packets_that_are_no_guests_requests_go_to_the_stack_and_are_dropped_at_egress(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, false)?;
        let from = SocketAddrV4::new(GUESTS[0], 40_000);
        let stray = Frame::tcp(from, SERVER, tcp::RST);
        bench.expect_refused(&stray, Reason::NoFlow)?;
        ensure!(!bench.leaves(&stray, "pub0")?);
        // From outside, only hosts that a guest has asked reach it.
        bench.expect_refused(&Frame::tcp(SERVER, vip(40_000), tcp::SYN), Reason::NotOurs)?;
        bench.expect_refused(&Frame::udp(SERVER, vip(40_000)), Reason::NotOurs)?;
        bench.expect_refused(&Frame::icmp_query(*SERVER.ip(), Bench::VIP, 8, 5, b"router?"), Reason::OtherProtocol)?;
        // The router's own packets leave, also those from its public address.
        ensure!(bench.leaves(&Frame::tcp(vip(22), SERVER, tcp::ACK), "pub0")?);
        Ok(())
    }

    fn an_outside_host_with_a_guests_source_is_not_let_out(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, false)?;
        let forged = Frame { dst_mac: Bench::PUBLIC_MAC, ..Frame::udp(SocketAddrV4::new(GUESTS[0], 40_000), SERVER) };
        bench.expect_refused(&forged, Reason::NotOurs)?;
        ensure!(!bench.leaves(&forged, "pub0")?);
        Ok(())
    }

    fn every_free_port_is_found_and_none_is_used_twice(bench: &mut Bench) -> Result<()> {
        // Enough buckets that none overflows: idle flows would be evicted.
        let mut bench = Bench::with_buckets(bench.hook(), 1 << 18)?;
        let number = bench.masquerade(Bench::VIP, false)?;
        let mut given = BTreeSet::new();
        // One guest uses all ports towards one destination.
        for port in FIRST_PORT..OWN_PORTS {
            ensure!(given.insert(exchange_by(&mut bench, 0, port, SERVER)?));
        }
        ensure!(given.len() == PORTS as usize);
        let other = SocketAddrV4::new(GUESTS[1], 40_000);
        bench.expect_refused(&Frame::udp(other, SERVER), Reason::NoFreePort)?;
        // Towards another destination they are all free.
        ensure!(exchange_by(&mut bench, 1, 40_000, SocketAddrV4::new(*SERVER.ip(), 444))? == 40_000);
        // A port that becomes free is found soon: each packet tries some more.
        bench.forget(SocketAddrV4::new(GUESTS[0], 5555), SERVER)?;
        let found = (0..2 * PORTS / 32).find_map(|_| exchange_by(&mut bench, 1, 40_000, SERVER).ok());
        ensure!(found == Some(5555), "found {found:?}");
        ensure!(bench.traffic(number)?.connections == u64::from(PORTS) + 2);
        Ok(())
    }

    fn half_open_connections_give_up_their_ports_when_none_is_free(bench: &mut Bench) -> Result<()> {
        let mut bench = Bench::with_buckets(bench.hook(), 1 << 15)?;
        bench.masquerade(Bench::VIP, false)?;
        let kept = exchange_by(&mut bench, 0, 40_000, SERVER)?;
        // A guest floods the destination from every port.
        for port in FIRST_PORT..OWN_PORTS {
            bench.run(&Frame::udp(SocketAddrV4::new(GUESTS[0], port), SERVER))?;
        }
        let given = exchange_by(&mut bench, 1, 40_000, SERVER)?;
        ensure!(given != kept && exchange_by(&mut bench, 0, 40_000, SERVER)? == kept);
        Ok(())
    }

    fn a_detached_networks_flows_end(bench: &mut Bench) -> Result<()> {
        let number = bench.masquerade(Bench::VIP, false)?;
        exchange_by(bench, 0, 40_000, SERVER)?;
        bench.remove_source(Ipv4Addr::new(10, 2, 0, 0), 24)?;
        bench.end_flows(number)?;
        bench.expect_refused(&Frame::udp(SERVER, vip(40_000)), Reason::FlowEnded)?;
        bench.expect_refused(&Frame::udp(SocketAddrV4::new(GUESTS[0], 40_000), SERVER), Reason::NotOurs)
    }
}
