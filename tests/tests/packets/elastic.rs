//! Elastic IPs: a VIP that belongs to one guest, for every protocol, both ways.

use super::*;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 11);
/// Another guest and its elastic IP.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 12);
const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 101);
/// Far away, behind the gateway.
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 443);

const fn vip(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Bench::VIP, port)
}

const fn guest(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(GUEST, port)
}

fn to_guest(frame: Frame) -> Frame {
    frame.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11))
}

fn to_other(frame: Frame) -> Frame {
    frame.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(12))
}

fn back_to_client(frame: Frame) -> Frame {
    frame.forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10))
}

fn to_gateway(frame: Frame) -> Frame {
    frame.forwarded(Bench::PUBLIC_MAC, Bench::GATEWAY_MAC)
}

/// Connections of a backend and of its service.
fn loads(bench: &mut Bench, number: u32) -> Result<[u32; 2]> {
    let service = bench.backend(number)?.service;
    Ok([bench.load(number)?, bench.service_load(service)?])
}

both_hooks! {
    fn every_port_of_both_protocols_reaches_the_guest(bench: &mut Bench) -> Result<()> {
        let number = bench.elastic(Bench::VIP, GUEST, true)?;
        for port in [22, 443, 65_535] {
            for (frame, answer) in [(tcp::SYN, tcp::SYN | tcp::ACK), (tcp::ACK, tcp::ACK)] {
                let ask = Frame::tcp(CLIENT, vip(port), frame);
                bench.expect_sent(&ask, &to_guest(ask.clone().between(CLIENT, guest(port))))?;
                let answer = Frame::tcp(guest(port), CLIENT, answer);
                bench.expect_sent(&answer, &back_to_client(answer.clone().between(vip(port), CLIENT)))?;
            }
            let ask = Frame::udp(CLIENT, vip(port)).payload(b"odd");
            bench.expect_sent(&ask, &to_guest(ask.clone().between(CLIENT, guest(port))))?;
            let answer = Frame::udp(guest(port), CLIENT);
            bench.expect_sent(&answer, &back_to_client(answer.clone().between(vip(port), CLIENT)))?;
        }
        let traffic = bench.traffic(number)?;
        ensure!((traffic.packets_in, traffic.packets_out, traffic.connections) == (9, 9, 6), "{traffic:?}");
        ensure!(loads(bench, number)? == [6; 2]);
        Ok(())
    }

    fn connections_that_the_guest_begins_leave_by_its_vip(bench: &mut Bench) -> Result<()> {
        let number = bench.elastic(Bench::VIP, GUEST, true)?;
        for (ask, answer) in [(tcp::SYN, tcp::SYN | tcp::ACK), (tcp::ACK, tcp::ACK)] {
            let out = Frame::tcp(guest(40_000), SERVER, ask);
            bench.expect_sent(&out, &to_gateway(out.clone().between(vip(40_000), SERVER)))?;
            let back = Frame::tcp(SERVER, vip(40_000), answer);
            bench.expect_sent(&back, &to_guest(back.clone().between(SERVER, guest(40_000))))?;
        }
        ensure!(states(bench)? == [State::Established; 2]);
        // Inbound is towards the guest, whichever side began.
        let traffic = bench.traffic(number)?;
        ensure!((traffic.packets_in, traffic.packets_out, traffic.connections) == (2, 2, 1), "{traffic:?}");
        ensure!(loads(bench, number)? == [1; 2]);
        for _ in 0..2 {
            for (from, fin) in [(guest(40_000), SERVER), (SERVER, vip(40_000))] {
                ensure!(bench.run(&Frame::tcp(from, fin, tcp::FIN | tcp::ACK))?.verdict == Verdict::Redirect);
            }
        }
        ensure!(loads(bench, number)? == [0; 2]);
        Ok(())
    }

    fn echoes_go_both_ways(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        for (id, data) in [(0, &b"even"[..]), (7, b"odd"), (0xffff, b"")] {
            let ask = Frame::icmp_query(Bench::CLIENT, Bench::VIP, 8, id, data);
            let arrived = Frame::icmp_query(Bench::CLIENT, GUEST, 8, id, data);
            bench.expect_sent(&ask, &to_guest(arrived))?;
            let answer = Frame::icmp_query(GUEST, Bench::CLIENT, 0, id, data);
            let seen = Frame::icmp_query(Bench::VIP, Bench::CLIENT, 0, id, data);
            bench.expect_sent(&answer, &back_to_client(seen))?;
            // The same identifier in the other direction is another flow.
            let out = Frame::icmp_query(GUEST, Bench::CLIENT, 8, id, data);
            bench.expect_sent(&out, &back_to_client(Frame::icmp_query(Bench::VIP, Bench::CLIENT, 8, id, data)))?;
            let back = Frame::icmp_query(Bench::CLIENT, Bench::VIP, 0, id, data);
            bench.expect_sent(&back, &to_guest(Frame::icmp_query(Bench::CLIENT, GUEST, 0, id, data)))?;
        }
        Ok(())
    }

    fn other_protocols_are_translated_by_address(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        // Encapsulations without ports (4, 47, 50), one with a checksum of its own (132), and one of 3 bytes.
        for (protocol, payload) in [(4, &[0x45; 24][..]), (47, &[7; 13]), (50, &[9; 40]), (132, &[1; 12]), (253, &[3; 3])] {
            let of = |src, dst| Frame::other(src, dst, protocol).payload(payload);
            bench.expect_sent(&of(Bench::CLIENT, Bench::VIP), &to_guest(of(Bench::CLIENT, GUEST)))?;
            bench.expect_sent(&of(GUEST, Bench::CLIENT), &back_to_client(of(Bench::VIP, Bench::CLIENT)))?;
            bench.expect_sent(&of(GUEST, *SERVER.ip()), &to_gateway(of(Bench::VIP, *SERVER.ip())))?;
        }
        Ok(())
    }

    fn tags_and_options_do_not_matter(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        let ask = Frame::icmp_query(Bench::CLIENT, Bench::VIP, 8, 5, b"routed").ip_options(&[1, 1, 1, 0]);
        let arrived = Frame::icmp_query(Bench::CLIENT, GUEST, 8, 5, b"routed").ip_options(&[1, 1, 1, 0]);
        bench.expect_sent(&ask.clone().tagged(&[[0x8100, 0xe000]]), &to_guest(arrived))?;
        let gre = Frame::other(Bench::CLIENT, Bench::VIP, 47).payload(&[5; 30]).tagged(&[[0x8100, 0xe000]]);
        bench.expect_sent(&gre, &to_guest(Frame::other(Bench::CLIENT, GUEST, 47).payload(&[5; 30])))
    }

    fn a_large_echos_fragments_follow_the_first_one(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        let ask = Frame::icmp_query(Bench::CLIENT, Bench::VIP, 8, 5, &[0xa5; 3001]);
        let sent = to_guest(Frame::icmp_query(Bench::CLIENT, GUEST, 8, 5, &[0xa5; 3001]));
        let offsets = [0, 1480, 2960];
        for (fragment, expected) in ask.fragments(&offsets).iter().zip(sent.fragments(&offsets)) {
            bench.expect_sent(fragment, &expected)?;
        }
        let mut late = ask.fragments(&offsets).swap_remove(1);
        late.id += 1;
        bench.expect_refused(&late, Reason::Unreadable)?;
        // Without ports nothing needs to be known of the first fragment.
        let (ask, sent) = (Frame::other(Bench::CLIENT, Bench::VIP, 47), Frame::other(Bench::CLIENT, GUEST, 47));
        let fragments = |frame: Frame| frame.payload(&[1; 2000]).fragments(&[0, 1480]);
        for (fragment, expected) in fragments(ask).iter().zip(fragments(to_guest(sent))).rev() {
            bench.expect_sent(fragment, &expected)?;
        }
        Ok(())
    }

    fn answers_leave_by_the_vip_that_was_asked_and_the_guests_own_flows_by_the_leading_one(bench: &mut Bench) -> Result<()> {
        let first = bench.elastic(Bench::VIP, GUEST, false)?;
        let second = bench.elastic(OTHER_VIP, GUEST, true)?;
        for (address, number) in [(Bench::VIP, first), (OTHER_VIP, second)] {
            let asked = SocketAddrV4::new(address, 53);
            let ask = Frame::udp(SERVER, asked);
            bench.expect_sent(&ask, &to_guest(ask.clone().between(SERVER, guest(53))))?;
            let answer = Frame::udp(guest(53), SERVER);
            bench.expect_sent(&answer, &to_gateway(answer.clone().between(asked, SERVER)))?;
            // The same client port asks both.
            bench.end_flows(number)?;
            bench.expect_refused(&Frame::udp(guest(53), SERVER), Reason::FlowEnded)?;
        }
        let own = Frame::udp(guest(9000), SERVER);
        bench.expect_sent(&own, &to_gateway(own.clone().between(SocketAddrV4::new(OTHER_VIP, 9000), SERVER)))
    }

    fn guests_reach_each_other_by_elastic_ips(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        bench.elastic(OTHER_VIP, OTHER, true)?;
        let other = |port| SocketAddrV4::new(OTHER, port);
        let asked = SocketAddrV4::new(OTHER_VIP, 80);
        for (ask, answer) in [(tcp::SYN, tcp::SYN | tcp::ACK), (tcp::ACK, tcp::ACK)] {
            let ask = Frame::tcp(guest(40_000), asked, ask);
            bench.expect_sent(&ask, &to_other(ask.clone().between(vip(40_000), other(80))))?;
            let answer = Frame::tcp(other(80), vip(40_000), answer);
            bench.expect_sent(&answer, &to_guest(answer.clone().between(asked, guest(40_000))))?;
        }
        let ping = Frame::icmp_query(GUEST, OTHER_VIP, 8, 9, b"hello");
        bench.expect_sent(&ping, &to_other(Frame::icmp_query(Bench::VIP, OTHER, 8, 9, b"hello")))?;
        let pong = Frame::icmp_query(OTHER, Bench::VIP, 0, 9, b"hello");
        bench.expect_sent(&pong, &to_guest(Frame::icmp_query(OTHER_VIP, GUEST, 0, 9, b"hello")))
    }

    fn a_guest_reaches_itself_by_its_elastic_ip(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        let ask = Frame::udp(guest(40_000), vip(80));
        bench.expect_sent(&ask, &to_guest(ask.clone().between(vip(40_000), guest(80))))?;
        let answer = Frame::udp(guest(80), vip(40_000));
        bench.expect_sent(&answer, &to_guest(answer.clone().between(vip(80), guest(40_000))))?;
        let ping = Frame::icmp_query(GUEST, Bench::VIP, 8, 9, b"me");
        bench.expect_sent(&ping, &to_guest(Frame::icmp_query(Bench::VIP, GUEST, 8, 9, b"me")))?;
        let pong = Frame::icmp_query(GUEST, Bench::VIP, 0, 9, b"me");
        bench.expect_sent(&pong, &to_guest(Frame::icmp_query(Bench::VIP, GUEST, 0, 9, b"me")))?;
        // Asking from the port that it asks gets another source port, so that the two directions differ.
        let same = Frame::udp(guest(5060), vip(5060));
        let outcome = bench.run(&same)?;
        let port = u16::from_be_bytes([outcome.bytes[34], outcome.bytes[35]]);
        ensure!(port != 5060 && outcome.bytes == to_guest(same.between(vip(port), guest(5060))).bytes(), "port {port}");
        let answer = Frame::udp(guest(5060), vip(port));
        bench.expect_sent(&answer, &to_guest(answer.clone().between(vip(5060), guest(5060))))
    }

    fn a_connection_that_the_table_forgot_goes_on(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        let data = Frame::tcp(CLIENT, vip(22), tcp::ACK | tcp::PSH).payload(b"still there");
        bench.expect_sent(&data, &to_guest(data.clone().between(CLIENT, guest(22))))?;
        let data = Frame::tcp(guest(40_000), SERVER, tcp::ACK).payload(b"still there");
        bench.expect_sent(&data, &to_gateway(data.clone().between(vip(40_000), SERVER)))?;
        // A segment that ends or answers an unknown connection opens none.
        for flags in [tcp::RST, tcp::RST | tcp::ACK, tcp::SYN | tcp::ACK, tcp::FIN, 0] {
            bench.expect_refused(&Frame::tcp(CLIENT, vip(23), flags), Reason::NoFlow)?;
            bench.expect_refused(&Frame::tcp(guest(41_000), SERVER, flags), Reason::NoFlow)?;
        }
        Ok(())
    }

    fn untranslated_packets_of_a_guest_do_not_leave(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        let own = Frame::tcp(guest(41_000), SERVER, tcp::RST);
        ensure!(bench.leaves(&own, "priv0")?);
        ensure!(!bench.leaves(&own, "pub0")? && bench.reason(Reason::Untranslated)? == 1);
        ensure!(!bench.leaves(&own.clone().tagged(&[[0x8100, 0xe000]]), "pub0")?);
        for other in [Frame::tcp(vip(41_000), SERVER, tcp::RST), Frame::udp(SocketAddrV4::new(OTHER, 1), SERVER)] {
            ensure!(bench.leaves(&other, "pub0")?);
        }
        Ok(())
    }

    fn the_stack_handles_a_guests_traffic_to_its_router_and_neighbours(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        for host in [Ipv4Addr::new(10, 2, 0, 1), Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 2, 0, 30)] {
            bench.expect_refused(&Frame::udp(guest(4000), SocketAddrV4::new(host, 53)), Reason::NotOurs)?;
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn errors_reach_both_sides(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        let hop = Ipv4Addr::new(198, 51, 100, 1);
        // About an outbound ping whose TTL ended, and about an inbound ping that the guest refuses.
        let (out, seen) = (Frame::icmp_query(GUEST, *SERVER.ip(), 8, 77, b"far"), Frame::icmp_query(Bench::VIP, *SERVER.ip(), 8, 77, b"far"));
        bench.expect_sent(&out, &to_gateway(seen.clone()))?;
        let error = Frame::icmp_error(hop, Bench::VIP, [11, 0], 0, &seen, 31);
        bench.expect_sent(&error, &to_guest(Frame::icmp_error(hop, GUEST, [11, 0], 0, &out, 31)))?;
        let (ask, seen) = (Frame::icmp_query(Bench::CLIENT, Bench::VIP, 8, 5, b"in"), Frame::icmp_query(Bench::CLIENT, GUEST, 8, 5, b"in"));
        bench.expect_sent(&ask, &to_guest(seen.clone()))?;
        let error = Frame::icmp_error(GUEST, Bench::CLIENT, [3, 1], 0, &seen, 30);
        bench.expect_sent(&error, &back_to_client(Frame::icmp_error(Bench::VIP, Bench::CLIENT, [3, 1], 0, &ask, 30)))?;
        // About another protocol's packet.
        let of = |src, dst| Frame::other(src, dst, 47).payload(&[0; 40]);
        bench.expect_sent(&of(GUEST, *SERVER.ip()), &to_gateway(of(Bench::VIP, *SERVER.ip())))?;
        let error = Frame::icmp_error(hop, Bench::VIP, [3, 4], 1400, &of(Bench::VIP, *SERVER.ip()), 28);
        bench.expect_sent(&error, &to_guest(Frame::icmp_error(hop, GUEST, [3, 4], 1400, &of(GUEST, *SERVER.ip()), 28)))?;
        // About a packet of no known flow.
        let stray = Frame::icmp_error(hop, Bench::VIP, [3, 3], 0, &Frame::udp(vip(1), SERVER), 28);
        bench.expect_refused(&stray, Reason::OtherProtocol)
    }

    fn an_outbound_packet_that_does_not_fit_is_handed_over_unchanged(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        bench.set_mtu(1, 1000)?;
        let out = Frame::udp(guest(4000), SERVER).payload(&[1; 1200]);
        expect_handed_over(bench, &out, &out, Reason::OverMtu)?;
        let mut old = Frame::udp(guest(4000), SERVER);
        old.ttl = 1;
        expect_handed_over(bench, &old, &old, Reason::TtlExpired)?;
        let may_be_cut = Frame { fragment: 0, ..out };
        expect_handed_over(bench, &may_be_cut, &may_be_cut.clone().between(vip(4000), SERVER), Reason::OverMtu)
    }

    fn an_outbound_packet_whose_ttl_ends_is_handed_over_unchanged_even_without_a_neighbour(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        command("ip neigh del 10.1.0.10 dev pub0")?;
        let out = Frame::udp(guest(4000), CLIENT);
        let old = Frame { ttl: 1, ..out.clone() };
        match bench.hook() {
            // The TC stage finds that out.
            Hook::Xdp => expect_by_neighbour(bench, &old, &old)?,
            Hook::Tc => expect_handed_over(bench, &old, &old, Reason::TtlExpired)?,
        }
        expect_by_neighbour(bench, &out, &unresolved(out.clone().between(vip(4000), CLIENT), Bench::PUBLIC_MAC))
    }

    fn a_flow_may_begin_with_a_packet_that_the_device_cannot_send_whole(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        bench.set_mtu(1, 1000)?;
        command("ip link set pub0 mtu 1000")?;
        let may_be_cut = Frame { fragment: 0, ..Frame::udp(guest(4000), SERVER).payload(&[1; 1200]) };
        expect_handed_over(bench, &may_be_cut, &may_be_cut.clone().between(vip(4000), SERVER), Reason::OverMtu)
    }

    fn a_detached_guests_flows_end(bench: &mut Bench) -> Result<()> {
        let number = bench.elastic(Bench::VIP, GUEST, true)?;
        let (ask, out) = (Frame::udp(CLIENT, vip(53)), Frame::udp(guest(4000), SERVER));
        bench.expect_sent(&ask, &to_guest(ask.clone().between(CLIENT, guest(53))))?;
        bench.expect_sent(&out, &to_gateway(out.clone().between(vip(4000), SERVER)))?;
        bench.remove_service(vip(0), 0, ServiceKey::WHOLE_VIP)?;
        bench.remove_source(GUEST, 32)?;
        bench.end_flows(number)?;
        bench.expect_refused(&ask, Reason::NotOurs)?;
        bench.expect_refused(&out, Reason::NotOurs)?;
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn a_disabled_vip_stops_both_directions(bench: &mut Bench) -> Result<()> {
        let disabled = SnatRule { kind: SnatKind::Disabled as u8, ..SnatRule::default() };
        bench.set_source("pub0", (GUEST, 32), Bench::VIP, disabled)?;
        let service = Service { kind: Kind::Disabled as u8, ..Service::default() };
        bench.set_service(vip(0), 0, ServiceKey::WHOLE_VIP, service)?;
        for frame in [
            Frame::udp(CLIENT, vip(53)),
            Frame::icmp_query(Bench::CLIENT, Bench::VIP, 8, 1, b""),
            Frame::other(Bench::CLIENT, Bench::VIP, 47).payload(&[0; 20]),
            Frame::udp(guest(53), SERVER),
            Frame::icmp_query(GUEST, *SERVER.ip(), 8, 1, b""),
        ] {
            bench.expect_refused(&frame, Reason::Disabled)?;
        }
        Ok(())
    }
}
