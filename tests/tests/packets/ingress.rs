//! Sources that must not come in: those that no host has, and those of other hosts.

use super::*;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 12);
const ELASTIC: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 101);
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 443);

/// Addresses that no host has (RFC 1812, section 5.3.7).
const MARTIANS: [Ipv4Addr; 9] = [
    Ipv4Addr::UNSPECIFIED,
    Ipv4Addr::new(0, 1, 2, 3),
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::new(127, 255, 0, 9),
    Ipv4Addr::new(224, 0, 0, 5),
    Ipv4Addr::new(239, 1, 2, 3),
    Ipv4Addr::new(240, 0, 0, 1),
    Ipv4Addr::new(254, 1, 1, 1),
    Ipv4Addr::BROADCAST,
];

both_hooks! {
    fn sources_that_no_host_has_are_dropped(bench: &mut Bench) -> Result<()> {
        for door in doors(bench, ELASTIC, GUEST)? {
            for source in MARTIANS.into_iter().chain([*door.ip()]) {
                bench.expect_refused(&Frame::udp(SocketAddrV4::new(source, 40_000), door), Reason::Martian)?;
            }
        }
        for source in [Ipv4Addr::LOCALHOST, ELASTIC] {
            bench.expect_refused(&Frame::icmp_query(source, ELASTIC, 8, 1, b"ping"), Reason::Martian)?;
            bench.expect_refused(&Frame::other(source, ELASTIC, 47).payload(&[0; 40]), Reason::Martian)?;
        }
        ensure!(bench.flows()?.is_empty());
        // The addresses next to these are hosts'.
        let first = SocketAddrV4::new(Ipv4Addr::new(1, 0, 0, 1), 40_000);
        let ask = Frame::udp(first, VIP);
        bench.expect_sent(&ask, &to_backend(ask.clone()))
    }

    fn sources_with_the_routers_own_addresses_are_dropped(bench: &mut Bench) -> Result<()> {
        let doors = doors(bench, ELASTIC, GUEST)?;
        command("ip addr add 10.1.0.101/32 dev pub0")?;
        let own = [Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 2, 0, 1)];
        own.into_iter().try_for_each(|own| bench.add_to_address_filter(Bit::own(u32::from(own).to_be())))?;
        for source in own.into_iter().chain([ELASTIC]) {
            for door in doors {
                let ask = Frame::udp(SocketAddrV4::new(source, 40_000), door);
                bench.expect_refused(&ask, Reason::Martian)?;
            }
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn sources_with_the_routers_own_addresses_do_not_reach_the_stack_either(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let (router, guest) = (Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 2, 0, 12));
        bench.add_to_address_filter(Bit::own(u32::from(router).to_be()))?;
        command(&format!("ip addr add {}/32 dev pub0", VIP.ip()))?;
        let elsewhere = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 9);
        for source in [router, *VIP.ip()] {
            let from = SocketAddrV4::new(source, 40_000);
            for to in [elsewhere, SocketAddrV4::new(guest, 9), SocketAddrV4::new(router, 9), SocketAddrV4::new(*VIP.ip(), 9)] {
                let mut frames = vec![
                    Frame::udp(from, to).payload(b"forged"),
                    Frame::tcp(from, to, tcp::ACK),
                    Frame::icmp_query(source, *to.ip(), 8, 1, b"ping"),
                    Frame::other(source, *to.ip(), 47).payload(&[0; 40]),
                    Frame::tcp(from, to, tcp::SYN).ip_options(&[1; 4]),
                    Frame { total_len: Some(21), ..Frame::udp(from, to) },
                ];
                let later = Frame { fragment: 8, ..Frame::udp(from, to).payload(b"forged") };
                frames.push(later);
                for frame in frames {
                    for frame in [frame.clone(), by(Bench::PRIVATE_MAC, frame)] {
                        bench.expect_refused(&frame, Reason::Martian)?;
                    }
                }
            }
        }
        // A source that shares a bit of the address filter with one of them passes.
        let frame = Frame::udp(CLIENT, elsewhere);
        bench.add_to_address_filter(Bit::own(u32::from(Bench::CLIENT).to_be()))?;
        bench.expect_refused(&frame, Reason::NotOurs)
    }

    fn the_routers_own_address_is_not_a_guests(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, false)?;
        let own = Ipv4Addr::new(10, 2, 0, 1);
        bench.add_to_address_filter(Bit::own(u32::from(own).to_be()))?;
        bench.expect_refused(&Frame::udp(SocketAddrV4::new(own, 40_000), SERVER), Reason::Martian)?;
        bench.elastic(ELASTIC, own, true)?;
        bench.expect_refused(&Frame::udp(SocketAddrV4::new(own, 40_000), SERVER), Reason::Martian)?;
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn a_client_that_shares_a_filter_bit_with_the_routers_address_is_served(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        bench.add_to_address_filter(Bit::own(u32::from(Bench::CLIENT).to_be()))?;
        bench.add_to_address_filter(Bit::to(u32::from(Bench::CLIENT).to_be()))?;
        let ask = Frame::udp(CLIENT, VIP);
        bench.expect_sent(&ask, &to_backend(ask.clone()))
    }

    fn an_answer_is_accepted_only_from_its_backends_side(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let (ask, answer) = (Frame::udp(CLIENT, VIP), Frame::udp(BACKEND, CLIENT).payload(b"forged?"));
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        let forged = by(Bench::PUBLIC_MAC, answer.clone());
        for _ in 0..2 {
            bench.expect_refused(&forged, Reason::WrongSide)?;
            ensure!(states(bench)? == [State::Opening; 2], "a forged answer was accepted");
        }
        bench.expect_sent(&answer, &to_client(answer.clone()))?;
        bench.expect_refused(&forged, Reason::WrongSide)?;
        // Clients may come by another device.
        let ask = by(Bench::PRIVATE_MAC, ask);
        bench.expect_sent(&ask, &to_backend(ask.clone()))
    }

    fn a_forged_answer_changes_no_connection(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        exchange(bench, &[(Side::Client, tcp::SYN)])?;
        let forged = |flags| by(Bench::PUBLIC_MAC, Frame::tcp(BACKEND, CLIENT, flags));
        bench.expect_refused(&forged(tcp::SYN | tcp::ACK), Reason::WrongSide)?;
        bench.expect_refused(&forged(tcp::RST), Reason::WrongSide)?;
        ensure!(states(bench)? == [State::Opening; 2]);
        exchange(bench, &[(Side::Backend, tcp::SYN | tcp::ACK), (Side::Client, tcp::ACK)])?;
        bench.expect_refused(&forged(tcp::RST), Reason::WrongSide)?;
        bench.expect_refused(&forged(tcp::FIN | tcp::ACK), Reason::WrongSide)?;
        ensure!(states(bench)? == [State::Established; 2]);
        Ok(())
    }

    fn a_backends_later_connections_know_its_side_like_the_first(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        for port in 40_000..40_003 {
            let client = SocketAddrV4::new(Bench::CLIENT, port);
            let ask = Frame::udp(client, VIP);
            bench.expect_sent(&ask, &to_backend(ask.clone()))?;
            bench.expect_refused(&by(Bench::PUBLIC_MAC, Frame::udp(BACKEND, client)), Reason::WrongSide)?;
        }
        Ok(())
    }

    fn the_side_of_an_unresolved_backend_is_known_too(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        command("ip neigh del 10.2.0.11 dev priv0")?;
        for port in [40_000, 40_001] {
            let client = SocketAddrV4::new(Bench::CLIENT, port);
            bench.run(&Frame::udp(client, VIP))?;
            let answer = Frame::udp(BACKEND, client);
            bench.expect_refused(&by(Bench::PUBLIC_MAC, answer.clone()), Reason::WrongSide)?;
            let sent = answer.clone().between(VIP, client).forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10));
            bench.expect_sent(&answer, &sent)?;
        }
        Ok(())
    }

    fn a_backend_that_moves_to_another_device_answers_from_there(bench: &mut Bench) -> Result<()> {
        let third = third(bench)?;
        serve(bench, UDP)?;
        let (ask, answer) = (Frame::udp(CLIENT, VIP), Frame::udp(BACKEND, CLIENT));
        ask_and_answer(bench, &ask, &answer)?;
        let moved = by(third, answer.clone());
        bench.expect_refused(&moved, Reason::WrongSide)?;
        command("ip route add 10.2.0.11 dev third0")?;
        // Whether or not the controller has advanced the epoch.
        bench.expect_sent(&moved, &to_client(moved.clone()))?;
        bench.expect_sent(&moved, &to_client(moved.clone()))?;
        bench.expect_refused(&answer, Reason::WrongSide)?;
        command("ip route del 10.2.0.11 dev third0")?;
        bench.expect_sent(&answer, &to_client(answer.clone()))
    }

    fn a_guests_own_connection_accepts_answers_only_from_outside(bench: &mut Bench) -> Result<()> {
        let third = third(bench)?;
        bench.masquerade(Bench::VIP, false)?;
        let from = SocketAddrV4::new(GUEST, 40_000);
        let vip = SocketAddrV4::new(Bench::VIP, 40_000);
        let ask = Frame::udp(from, SERVER);
        let sent = ask.clone().between(vip, SERVER).forwarded(Bench::PUBLIC_MAC, Bench::GATEWAY_MAC);
        bench.expect_sent(&ask, &sent)?;
        for mac in [third, Bench::PUBLIC_MAC] {
            bench.expect_refused(&by(mac, ask.clone()), Reason::WrongSide)?;
        }
        let answer = Frame::udp(SERVER, vip);
        for mac in [third, Bench::PRIVATE_MAC] {
            bench.expect_refused(&by(mac, answer.clone()), Reason::WrongSide)?;
        }
        let back = answer.clone().between(SERVER, from).forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(12));
        bench.expect_sent(&answer, &back)?;
        bench.expect_sent(&ask, &sent)
    }

    fn an_elastic_ips_answers_come_only_from_its_guest(bench: &mut Bench) -> Result<()> {
        bench.elastic(ELASTIC, GUEST, true)?;
        let ping = Frame::icmp_query(Bench::CLIENT, ELASTIC, 8, 5, b"in");
        let asked = Frame::icmp_query(Bench::CLIENT, GUEST, 8, 5, b"in");
        bench.expect_sent(&ping, &asked.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(12)))?;
        let pong = Frame::icmp_query(GUEST, Bench::CLIENT, 0, 5, b"in");
        bench.expect_refused(&by(Bench::PUBLIC_MAC, pong.clone()), Reason::WrongSide)?;
        let answered = Frame::icmp_query(ELASTIC, Bench::CLIENT, 0, 5, b"in");
        bench.expect_sent(&pong, &answered.forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10)))
    }

    fn an_error_about_a_backends_connection_comes_only_from_its_side(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP);
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        let seen = ask.clone().between(CLIENT, BACKEND);
        let error = |from| Frame::icmp_error(from, Bench::CLIENT, [3, 4], 600, &seen, 28);
        // By a third guest, with its own address or one that no host has, and from outside.
        for from in [Ipv4Addr::new(10, 2, 0, 30), Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::LOCALHOST, Bench::VIP] {
            bench.expect_refused(&by(Bench::PRIVATE_MAC, error(from)), Reason::WrongSide)?;
        }
        bench.expect_refused(&by(Bench::PUBLIC_MAC, error(*BACKEND.ip())), Reason::WrongSide)?;
        let known = Frame::icmp_error(Bench::VIP, Bench::CLIENT, [3, 4], 600, &ask, 28);
        bench.expect_sent(&error(*BACKEND.ip()), &known.forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10)))
    }

    fn an_error_about_a_clients_connection_comes_from_its_side(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let near = SocketAddrV4::new(Bench::CLIENT, 40_000);
        let (far, hop) = (SocketAddrV4::new(*SERVER.ip(), 40_000), Ipv4Addr::new(198, 51, 100, 1));
        for (client, by_router) in [(near, false), (far, true)] {
            let ask = Frame::udp(client, VIP);
            bench.expect_sent(&ask, &to_backend(ask.clone()))?;
            let answer = Frame::udp(BACKEND, client);
            let seen = answer.clone().between(VIP, client);
            let error = |from| Frame::icmp_error(from, Bench::VIP, [3, 4], 600, &seen, 28);
            let turned = |from| Frame::icmp_error(from, *BACKEND.ip(), [3, 4], 600, &answer, 28)
                .forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11));
            bench.expect_sent(&error(*client.ip()), &turned(*client.ip()))?;
            // A guest claims to be the client, or a router on the way.
            for from in [GUEST, *client.ip(), hop] {
                bench.expect_refused(&by(Bench::PRIVATE_MAC, error(from)), Reason::WrongSide)?;
            }
            // Only a far client has routers on the way.
            if by_router {
                bench.expect_sent(&error(hop), &turned(hop))?;
            } else {
                bench.expect_refused(&error(hop), Reason::WrongSide)?;
            }
        }
        Ok(())
    }

    fn a_guests_source_is_accepted_only_by_its_networks_device(bench: &mut Bench) -> Result<()> {
        let third = third(bench)?;
        bench.masquerade(Bench::VIP, false)?;
        bench.elastic(ELASTIC, GUEST, true)?;
        bench.keep_guests_at((GUEST, 32), "priv0")?;
        bench.keep_guests_at((Ipv4Addr::new(10, 2, 0, 0), 24), "priv0")?;
        let other = Ipv4Addr::new(10, 2, 0, 30);
        for source in [GUEST, other] {
            let ask = Frame::udp(SocketAddrV4::new(source, 40_000), SERVER);
            let ping = Frame::icmp_query(source, *SERVER.ip(), 8, 7, b"ping");
            bench.expect_refused(&by(third, ask.clone()), Reason::Spoofed)?;
            bench.expect_refused(&by(third, ping), Reason::Spoofed)?;
            ensure!(bench.flows()?.is_empty());
        }
        let ask = Frame::udp(SocketAddrV4::new(GUEST, 40_000), SERVER);
        let left = ask.clone().between(SocketAddrV4::new(ELASTIC, 40_000), SERVER);
        bench.expect_sent(&ask, &left.forwarded(Bench::PUBLIC_MAC, Bench::GATEWAY_MAC))
    }

    fn a_guest_reaches_an_elastic_ip_only_by_its_own_device(bench: &mut Bench) -> Result<()> {
        let third = third(bench)?;
        let second = Ipv4Addr::new(10, 1, 0, 102);
        bench.elastic(ELASTIC, GUEST, true)?;
        bench.elastic(second, Ipv4Addr::new(10, 2, 0, 11), true)?;
        bench.keep_guests_at((GUEST, 32), "priv0")?;
        let ask = Frame::udp(SocketAddrV4::new(GUEST, 40_000), SocketAddrV4::new(second, 53));
        for mac in [third, Bench::PUBLIC_MAC] {
            bench.expect_refused(&by(mac, ask.clone()), Reason::Spoofed)?;
        }
        ensure!(bench.flows()?.is_empty());
        let met = ask.clone().between(SocketAddrV4::new(ELASTIC, 40_000), SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 53));
        bench.expect_sent(&by(Bench::PRIVATE_MAC, ask), &met.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11)))
    }

    fn a_backend_is_reached_only_by_its_networks_device(bench: &mut Bench) -> Result<()> {
        third(bench)?;
        let rule = SocketAddrV4::new(Bench::VIP, 53);
        let backend = serve(bench, UDP)?;
        let guest = bench.forward(rule, UDP, ServiceKey::EXACT, SocketAddrV4::new(GUEST, 53))?;
        let elastic = bench.elastic(ELASTIC, GUEST, true)?;
        for (number, door) in [(backend, VIP), (guest, rule), (elastic, SocketAddrV4::new(ELASTIC, 53))] {
            bench.keep_backend_at(number, "third0")?;
            for _ in 0..2 {
                bench.expect_refused(&Frame::udp(CLIENT, door), Reason::Elsewhere)?;
            }
            ensure!(bench.flows()?.is_empty());
        }
        bench.keep_backend_at(backend, "priv0")?;
        let ask = Frame::udp(CLIENT, VIP);
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        bench.expect_sent(&ask, &to_backend(ask.clone()))
    }

    fn a_backend_that_claims_the_routers_address_is_not_reached(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, UDP, Algorithm::RoundRobin, &[SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 1), 22)])?;
        bench.keep_backend_at(numbers[0], "priv0")?;
        bench.expect_refused(&Frame::udp(CLIENT, VIP), Reason::Elsewhere)?;
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn a_connection_ends_if_its_route_leads_to_another_network(bench: &mut Bench) -> Result<()> {
        third(bench)?;
        let backend = serve(bench, UDP)?;
        bench.keep_backend_at(backend, "priv0")?;
        let ask = Frame::udp(CLIENT, VIP);
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        command("ip route add 10.2.0.11/32 dev third0")?;
        bench.move_epoch()?;
        bench.expect_refused(&ask, Reason::Elsewhere)?;
        command("ip route del 10.2.0.11/32 dev third0")?;
        bench.move_epoch()?;
        bench.expect_sent(&ask, &to_backend(ask.clone()))
    }
}
