//! Clients that reach guests' own addresses without a VIP, and what leaves with the router's own address.

use super::*;

const OUTSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 40_000);
const ELASTIC: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 101);
/// A guest whose network has source NAT, and one that also has an elastic IP.
const GUESTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 2, 0, 11), Ipv4Addr::new(10, 2, 0, 12)];

fn translate(bench: &mut Bench) -> Result<()> {
    bench.masquerade(Bench::VIP, false)?;
    bench.elastic(ELASTIC, GUESTS[1], true).map(drop)
}

fn expect_passed(bench: &mut Bench, frame: &Frame) -> Result<()> {
    let portless = matches!(frame.transport, Transport::Other(_));
    bench.expect_refused(frame, if portless { Reason::OtherProtocol } else { Reason::NotOurs })
}

both_hooks! {
    fn an_answer_to_a_direct_client_keeps_the_guests_own_address(bench: &mut Bench) -> Result<()> {
        translate(bench)?;
        for guest in GUESTS {
            let at = |port| SocketAddrV4::new(guest, port);
            expect_passed(bench, &Frame::tcp(OUTSIDE, at(80), tcp::SYN))?;
            expect_passed(bench, &Frame::udp(OUTSIDE, at(53)))?;
            expect_passed(bench, &Frame::icmp_query(*OUTSIDE.ip(), guest, 8, 7, b"ping"))?;
            expect_passed(bench, &Frame::other(*OUTSIDE.ip(), guest, 47))?;
        }
        ensure!(bench.flows()?.is_empty(), "the stack forwards these, without a flow");
        for (remembered, guest) in GUESTS.into_iter().enumerate() {
            let at = |port| SocketAddrV4::new(guest, port);
            let segments = [tcp::SYN | tcp::ACK, tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST];
            let segments = segments.map(|flags| Frame::tcp(at(80), OUTSIDE, flags));
            let datagrams = [
                Frame::udp(at(53), OUTSIDE),
                Frame::icmp_query(guest, *OUTSIDE.ip(), 0, 7, b"ping"),
                Frame::other(guest, *OUTSIDE.ip(), 47),
            ];
            for answer in segments.into_iter().chain(datagrams) {
                expect_passed(bench, &answer)?;
                ensure!(bench.leaves(&answer, "pub0")?, "{answer:?}");
            }
            let fragments = Frame::udp(at(53), OUTSIDE).payload(&[7; 2000]).fragments(&[0, 1480]);
            for (fragment, reason) in fragments.iter().zip([Reason::NotOurs, Reason::Fragment]) {
                bench.expect_refused(fragment, reason)?;
            }
            ensure!(bench.fragments()? == remembered, "the stack forwards these, without remembering fragments");
            // At egress the first fragment determines what later ones may do: the stack may have made them, too.
            ensure!(!bench.leaves(&fragments[1], "pub0")?, "a later fragment leaves before the first one");
            for fragment in &fragments {
                ensure!(bench.leaves(fragment, "pub0")?, "{fragment:?}");
            }
            // No client has come from these hosts or ports.
            for stray in [Frame::tcp(at(81), OUTSIDE, tcp::ACK), Frame::icmp_query(guest, *OUTSIDE.ip(), 0, 8, b"")] {
                ensure!(!bench.leaves(&stray, "pub0")?);
            }
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn a_connection_that_a_guest_begins_to_a_direct_client_is_translated(bench: &mut Bench) -> Result<()> {
        translate(bench)?;
        let at = |guest: usize, port| SocketAddrV4::new(GUESTS[guest], port);
        for guest in 0..2 {
            expect_passed(bench, &Frame::tcp(OUTSIDE, at(guest, 80), tcp::SYN))?;
            expect_passed(bench, &Frame::udp(OUTSIDE, at(guest, 53)))?;
        }
        for (guest, vip) in [(0, Bench::VIP), (1, ELASTIC)] {
            let begun = [
                (Frame::tcp(at(guest, 80), OUTSIDE, tcp::SYN), 80),
                (Frame::udp(at(guest, 5353), OUTSIDE), 5353),
                (Frame::udp(at(guest, 53), SocketAddrV4::new(*OUTSIDE.ip(), 41_000)), 53),
            ];
            for (frame, port) in begun {
                let outcome = bench.run(&frame)?;
                ensure!(outcome.verdict == Verdict::Redirect, "verdict {:?} for {frame:?}", outcome.verdict);
                let source = [&vip.octets()[..], &OUTSIDE.ip().octets()].concat();
                ensure!(outcome.bytes[26..34] == source, "port {port}");
            }
        }
        Ok(())
    }

    fn an_error_about_a_direct_clients_packet_keeps_its_source(bench: &mut Bench) -> Result<()> {
        // Also from a router inside, whose packets are otherwise translated.
        const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 30);
        translate(bench)?;
        let errors = [([3, 2], 0), ([3, 3], 0), ([3, 4], 1200), ([11, 0], 0), ([12, 0], 20 << 24)];
        for guest in GUESTS {
            let at = |port| SocketAddrV4::new(guest, port);
            let asks = [
                Frame::tcp(OUTSIDE, at(80), tcp::ACK).payload(&[7; 40]),
                Frame::udp(OUTSIDE, at(53)).payload(b"anybody?"),
                Frame::icmp_query(*OUTSIDE.ip(), guest, 8, 7, b"ping"),
                Frame::other(*OUTSIDE.ip(), guest, 132).payload(&[0; 20]),
                Frame::udp(OUTSIDE, at(54)).payload(b"routed").ip_options(&[1; 8]),
            ];
            for ask in asks {
                let about = |from, to, (kind, rest)| Frame::icmp_error(from, to, kind, rest, &ask, 28 + ask.ip_options.len());
                let error = about(guest, *OUTSIDE.ip(), errors[0]);
                ensure!(!bench.leaves(&error, "pub0")?, "the error leaves without a direct client: {ask:?}");
                expect_passed(bench, &ask)?;
                for (from, error) in [guest, INSIDE].into_iter().flat_map(|from| errors.map(|error| (from, error))) {
                    let error = about(from, *OUTSIDE.ip(), error);
                    bench.expect_refused(&error, Reason::OtherProtocol)?;
                    ensure!(bench.leaves(&error, "pub0")?, "{error:?}");
                    ensure!(bench.leaves(&error.tagged(&[[0x8100, 0xe000]]), "pub0")?);
                }
                // To a host other than the client, and an ICMP message that is not an error.
                ensure!(!bench.leaves(&about(guest, Bench::CLIENT, errors[0]), "pub0")?);
                ensure!(!bench.leaves(&about(guest, *OUTSIDE.ip(), ([5, 1], 0)), "pub0")?);
            }
        }
        // About a packet that no client sent.
        let stray = Frame::udp(OUTSIDE, SocketAddrV4::new(GUESTS[0], 55));
        ensure!(!bench.leaves(&Frame::icmp_error(GUESTS[0], *OUTSIDE.ip(), [3, 3], 0, &stray, 28), "pub0")?);
        let asked = Frame::udp(OUTSIDE, SocketAddrV4::new(GUESTS[0], 53));
        let error = Frame::icmp_error(GUESTS[0], *OUTSIDE.ip(), [3, 3], 0, &asked, 28);
        let tick = u64::from(bench.config()?.tick);
        bench.age_direct(u32::try_from(310 * 1_000_000_000 / tick)?)?;
        ensure!(!bench.leaves(&error, "pub0")?, "forgotten");
        Ok(())
    }

    fn a_direct_datagram_may_be_answered_for_five_minutes(bench: &mut Bench) -> Result<()> {
        const SECONDS: u64 = 1_000_000_000;
        translate(bench)?;
        let guest = SocketAddrV4::new(GUESTS[0], 5000);
        let ask = Frame::udp(OUTSIDE, guest);
        expect_passed(bench, &ask)?;
        expect_passed(bench, &Frame::tcp(OUTSIDE, guest, tcp::SYN))?;
        let tick = u64::from(bench.config()?.tick);
        bench.age_direct(u32::try_from(290 * SECONDS / tick)?)?;
        let answer = Frame::udp(guest, OUTSIDE);
        expect_passed(bench, &answer)?;
        bench.age_direct(u32::try_from(20 * SECONDS / tick)?)?;
        ensure!(!bench.leaves(&answer, "pub0")? && bench.run(&answer)?.verdict == Verdict::Redirect);
        expect_passed(bench, &Frame::tcp(guest, OUTSIDE, tcp::ACK))
    }

    fn a_client_from_another_network_of_guests_is_not_a_direct_client(bench: &mut Bench) -> Result<()> {
        translate(bench)?;
        let (here, there) = (SocketAddrV4::new(GUESTS[0], 80), SocketAddrV4::new(Ipv4Addr::new(10, 3, 0, 9), 40_000));
        expect_passed(bench, &Frame { dst_mac: Bench::PRIVATE_MAC, ..Frame::tcp(there, here, tcp::SYN) })?;
        ensure!(!bench.leaves(&Frame::tcp(here, there, tcp::SYN | tcp::ACK), "pub0")?);
        Ok(())
    }

    fn the_routers_own_addresses_among_guests_may_be_seen_outside(bench: &mut Bench) -> Result<()> {
        translate(bench)?;
        // A VIP on the guests' network is one of them.
        let own = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 1), 80);
        bench.serve(own, TCP, Algorithm::RoundRobin, &[BACKEND])?;
        for answer in [Frame::tcp(own, OUTSIDE, tcp::SYN | tcp::ACK), Frame::udp(own, OUTSIDE)] {
            ensure!(bench.leaves(&answer, "pub0")?);
            ensure!(bench.leaves_as_own(&answer, "pub0")?);
        }
        for fragment in Frame::udp(own, OUTSIDE).payload(&[7; 2000]).fragments(&[0, 1480]) {
            ensure!(bench.leaves(&fragment, "pub0")?);
        }
        ensure!(!bench.leaves(&Frame::tcp(SocketAddrV4::new(GUESTS[0], 80), OUTSIDE, tcp::SYN | tcp::ACK), "pub0")?);
        Ok(())
    }
}
