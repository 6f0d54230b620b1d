//! Packets that the stack refuses by an ICMP error, and what the error quotes to their sender.

use super::*;

const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
/// Guests and their elastic IPs; the third guest's network is behind another device.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 11);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 12);
const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 101);
const AWAY: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 13);
const AWAY_VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 102);
const THIRD_MAC: [u8; 6] = [0x02, 0, 0, 0, 3, 1];
const MTU: u32 = 1000;

const fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

fn meeting(bench: &mut Bench) -> Result<()> {
    for words in [
        "ip link add third0 type veth peer name third1",
        "ip link set third1 up",
        "ip link set third0 address 02:00:00:00:03:01 up",
        "ip addr add 10.3.0.1/24 dev third0",
        "ip neigh add 10.3.0.13 lladdr 02:00:00:00:03:0d dev third0",
    ] {
        command(words)?;
    }
    bench.add_device(3, "third0", THIRD_MAC)?;
    for (vip, guest) in [(Bench::VIP, GUEST), (OTHER_VIP, OTHER), (AWAY_VIP, AWAY)] {
        bench.elastic(vip, guest, true)?;
    }
    Ok(())
}

/// Runs a packet that the stack refuses for this reason. The stack gets it from its sender, addressed to where it would have
/// gone, and the stack's error must quote what was sent.
fn expect_error(bench: &mut Bench, sent: &Frame, shown: &Frame, reason: Reason) -> Result<()> {
    ensure!(shown.src == sent.src);
    expect_handed_over(bench, sent, shown, reason).with_context(|| format!("{sent:?}"))?;
    let (kind, rest) = if reason == Reason::OverMtu { ([3, 4], MTU) } else { ([11, 0], 0) };
    for length in [sent.ip_options.len() + 28, sent.ip_options.len() + 44, 500] {
        let length = length.min(sent.bytes().len() - 14);
        let error = |about| Frame::icmp_error(ROUTER, sent.src, kind, rest, about, length);
        let got = bench.run_egress(&error(shown))?;
        ensure!(got == error(sent).bytes(), "{length} bytes of {sent:?} become {got:02x?}");
    }
    Ok(())
}

/// [`expect_error`] for a packet whose TTL ends, and for one that does not fit.
fn expect_both_errors(bench: &mut Bench, sent: &Frame, shown: &Frame) -> Result<()> {
    let old = |frame: &Frame| Frame { ttl: 1, ..frame.clone() };
    let large = |frame: &Frame| frame.clone().payload(&[7; 1400]);
    expect_error(bench, &old(sent), &old(shown), Reason::TtlExpired)?;
    expect_error(bench, &large(sent), &large(shown), Reason::OverMtu)?;
    // The stack checks the TTL first, whether or not the packet may be fragmented.
    let both = |frame: &Frame, fragment| Frame { fragment, ..large(&old(frame)) };
    expect_error(bench, &both(sent, sent.fragment), &both(shown, sent.fragment), Reason::TtlExpired)?;
    expect_error(bench, &both(sent, 0), &both(shown, 0), Reason::TtlExpired)
}

fn narrow(bench: &mut Bench) -> Result<()> {
    (1..=3).try_for_each(|port| bench.set_mtu(port, MTU))
}

both_hooks! {
    fn guests_that_reach_each_other_get_errors_about_their_own_packets(bench: &mut Bench) -> Result<()> {
        meeting(bench)?;
        narrow(bench)?;
        for (vip, other, mac) in [(OTHER_VIP, OTHER, Bench::PRIVATE_MAC), (AWAY_VIP, AWAY, THIRD_MAC)] {
            for protocol in [UDP, TCP] {
                let frame = |from, to, flags| match protocol {
                    TCP => Frame::tcp(from, to, flags),
                    _ => Frame::udp(from, to),
                };
                let ask = |to| frame(at(GUEST, 40_000), at(to, 80), tcp::SYN);
                expect_both_errors(bench, &ask(vip), &ask(other))?;
                let answer = |to| Frame { dst_mac: mac, ..frame(at(other, 80), at(to, 40_000), tcp::SYN | tcp::ACK) };
                expect_both_errors(bench, &answer(Bench::VIP), &answer(GUEST))?;
                let routed = |frame: Frame| frame.ip_options(&[1; 12]);
                expect_both_errors(bench, &routed(ask(vip)), &routed(ask(other)))?;
            }
            let ping = |to| Frame::icmp_query(GUEST, to, 8, 9, &[0; 40]);
            let pong = |to| Frame { dst_mac: mac, ..Frame::icmp_query(other, to, 0, 9, &[0; 40]) };
            let old = |frame: Frame| Frame { ttl: 1, ..frame };
            expect_error(bench, &old(ping(vip)), &old(ping(other)), Reason::TtlExpired)?;
            expect_error(bench, &old(pong(Bench::VIP)), &old(pong(GUEST)), Reason::TtlExpired)?;
            for protocol in [47, 132] {
                let other_protocol = |to| Frame::other(GUEST, to, protocol).payload(&[3; 50]);
                expect_both_errors(bench, &other_protocol(vip), &other_protocol(other))?;
            }
        }
        Ok(())
    }

    fn a_guest_that_asks_its_own_elastic_ip_gets_errors_about_its_own_packets(bench: &mut Bench) -> Result<()> {
        meeting(bench)?;
        narrow(bench)?;
        // Also from the port that it asks, which is replaced by another one.
        for port in [40_000, 5060] {
            let ask = |to| Frame::udp(at(GUEST, port), at(to, 5060));
            expect_both_errors(bench, &ask(Bench::VIP), &ask(GUEST))?;
        }
        Ok(())
    }

    fn a_client_in_its_backends_network_and_the_backend_get_errors_about_their_own_packets(bench: &mut Bench) -> Result<()> {
        const NEIGHBOUR: SocketAddrV4 = at(Ipv4Addr::new(10, 2, 0, 20), 8080);
        bench.serve(VIP, UDP, Algorithm::RoundRobin, &[NEIGHBOUR])?;
        narrow(bench)?;
        // The second client's port is taken by the first one at the router.
        for (client, keeps_port) in [(GUEST, true), (OTHER, false)] {
            let ask = |to| Frame { dst_mac: Bench::PRIVATE_MAC, ..Frame::udp(at(client, 40_000), to) };
            expect_both_errors(bench, &ask(VIP), &ask(NEIGHBOUR))?;
            let seen = bench.run(&ask(VIP))?.bytes;
            let port = u16::from_be_bytes([seen[34], seen[35]]);
            ensure!((port == 40_000) == keeps_port, "port {port}");
            let answer = |to| Frame { dst_mac: Bench::PRIVATE_MAC, ..Frame::udp(NEIGHBOUR, to) };
            expect_both_errors(bench, &answer(at(ROUTER, port)), &answer(at(client, 40_000)))?;
        }
        Ok(())
    }

    fn an_error_quotes_the_clients_own_port_if_it_was_replaced(bench: &mut Bench) -> Result<()> {
        let second = at(OTHER_VIP, 80);
        for vip in [VIP, second] {
            bench.serve(vip, UDP, Algorithm::RoundRobin, &[BACKEND])?;
            bench.run(&Frame::udp(CLIENT, vip))?;
        }
        narrow(bench)?;
        let to = |to| Frame::udp(CLIENT, to);
        for vip in [VIP, second, VIP] {
            expect_both_errors(bench, &to(vip), &to(BACKEND))?;
        }
        Ok(())
    }

    fn an_error_about_a_packet_without_an_interface_to_leave_by_quotes_what_was_sent_too(bench: &mut Bench) -> Result<()> {
        meeting(bench)?;
        let ask = |to| Frame::udp(at(GUEST, 40_000), at(to, 80));
        bench.run(&ask(AWAY_VIP))?;
        bench.remove_interface(3)?;
        let old = |to| Frame { ttl: 1, ..ask(to) };
        expect_error(bench, &old(AWAY_VIP), &old(AWAY), Reason::TtlExpired)?;
        expect_handed_over(bench, &ask(AWAY_VIP), &ask(AWAY).between(at(Bench::VIP, 40_000), at(AWAY, 80)), Reason::NoNeighbour)
    }

    fn a_packet_that_may_be_fragmented_is_handed_over_translated(bench: &mut Bench) -> Result<()> {
        meeting(bench)?;
        narrow(bench)?;
        let ask = Frame { fragment: 0, ..Frame::udp(at(GUEST, 40_000), at(OTHER_VIP, 80)).payload(&[7; 1400]) };
        expect_handed_over(bench, &ask, &ask.clone().between(at(Bench::VIP, 40_000), at(OTHER, 80)), Reason::OverMtu)
    }

    fn only_an_error_that_follows_a_refusal_at_once_is_rewritten(bench: &mut Bench) -> Result<()> {
        meeting(bench)?;
        let ask = |to| Frame { ttl: 1, ..Frame::udp(at(GUEST, 40_000), at(to, 80)) };
        expect_error(bench, &ask(OTHER_VIP), &ask(OTHER), Reason::TtlExpired)?;
        bench.age_refused(300)?;
        let error = Frame::icmp_error(ROUTER, GUEST, [11, 0], 0, &ask(OTHER), 28);
        ensure!(bench.run_egress(&error)? == error.bytes());
        Ok(())
    }
}

#[test]
fn a_gso_packet_of_segments_that_fit_reaches_its_guest_whole() -> Result<()> {
    let bench = &mut Bench::new(Hook::Tc)?;
    meeting(bench)?;
    narrow(bench)?;
    let data = |to| Frame::tcp(at(GUEST, 40_000), at(to, 80), tcp::ACK).payload(&[7; 2880]);
    bench.set_segments(3, MTU - 40);
    let sent = data(OTHER).between(at(Bench::VIP, 40_000), at(OTHER, 80));
    bench.expect_sent(&data(OTHER_VIP), &sent.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(12)))?;
    bench.set_segments(3, MTU - 39);
    expect_handed_over(bench, &data(OTHER_VIP), &data(OTHER), Reason::OverMtu)
}
