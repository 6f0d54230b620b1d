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

both_hooks! {
    fn a_syn_goes_to_the_backend_with_the_clients_address(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        bench.expect_sent(&syn, &to_backend(syn.clone()))?;
        ensure!(states(bench)? == [State::Opening, State::Opening]);
        ensure!(bench.load(backend)? == 1);
        let traffic = bench.traffic(backend)?;
        ensure!((traffic.connections, traffic.packets_in, traffic.bytes_in) == (1, 1, 54), "{traffic:?}");
        Ok(())
    }

    fn an_answer_goes_to_the_client_from_the_vip(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        let data = Frame::tcp(BACKEND, CLIENT, tcp::ACK | tcp::PSH).payload(b"hello");
        bench.expect_sent(&data, &to_client(data.clone()))?;
        let traffic = bench.traffic(backend)?;
        ensure!((traffic.packets_out, traffic.bytes_out) == (2, 54 + 59), "{traffic:?}");
        Ok(())
    }

    fn tcp_options_and_odd_payloads_keep_right_checksums(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let mut syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        if let Transport::Tcp { options, .. } = &mut syn.transport {
            options.extend([2, 4, 5, 0xb4, 1, 3, 3, 7]);
        }
        bench.expect_sent(&syn, &to_backend(syn.clone()))?;
        for length in [1, 2, 3, 17, 536, 1446] {
            let payload: Vec<u8> = (0..length).map(|byte: u16| byte.to_be_bytes()[1] ^ 0x5a).collect();
            let data = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(&payload);
            bench.expect_sent(&data, &to_backend(data.clone()))?;
        }
        Ok(())
    }

    fn a_datagram_is_balanced_and_answered(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(b"ping?");
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        ensure!(states(bench)? == [State::Opening, State::Opening]);
        let answer = Frame::udp(BACKEND, CLIENT).payload(b"pong");
        bench.expect_sent(&answer, &to_client(answer.clone()))?;
        ensure!(states(bench)? == [State::Datagrams, State::Datagrams]);
        ensure!(bench.load(backend)? == 1);
        Ok(())
    }

    fn a_datagram_without_checksum_stays_without(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let mut ask = Frame::udp(CLIENT, VIP).payload(b"odd");
        ask.transport = Transport::Udp { sport: CLIENT.port(), dport: VIP.port(), checksum: false };
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        Ok(())
    }

    fn a_datagram_whose_new_checksum_is_zero_is_sent_as_ffff(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let found = (0..=u16::MAX).map(|filler| Frame::udp(CLIENT, VIP).payload(&filler.to_be_bytes()));
        let mut zeros = found.filter(|frame| to_backend(frame.clone()).bytes()[40..42] == [0xff, 0xff]);
        let Some(frame) = zeros.next() else { anyhow::bail!("no payload gives this checksum") };
        bench.expect_sent(&frame, &to_backend(frame.clone()))
    }

    fn type_of_service_and_identification_are_kept(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let mut syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        syn.tos = 0xb9;
        syn.id = 0xfffe;
        syn.fragment = 0;
        bench.expect_sent(&syn, &to_backend(syn.clone()))
    }

    fn every_time_to_live_above_one_is_one_less(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        for ttl in [2, 3, 127, 128, 255] {
            let mut frame = Frame::udp(CLIENT, VIP);
            frame.ttl = ttl;
            bench.expect_sent(&frame, &to_backend(frame.clone()))?;
        }
        Ok(())
    }

    fn a_clients_last_hop_is_the_stacks_to_tell(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        for (count, ttl) in [(1, 1), (2, 0)] {
            let mut frame = Frame::udp(CLIENT, VIP);
            frame.ttl = ttl;
            let outcome = bench.run(&frame)?;
            ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == frame.between(CLIENT, BACKEND).bytes());
            ensure!(bench.reason(Reason::TtlExpired)? == count);
        }
        Ok(())
    }

    fn a_backends_last_hop_goes_to_the_stack_as_it_came(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        bench.run(&Frame::udp(CLIENT, VIP))?;
        let mut answer = Frame::udp(BACKEND, CLIENT);
        answer.ttl = 1;
        bench.expect_refused(&answer, Reason::TtlExpired)
    }

    fn a_packet_larger_than_the_way_out_goes_to_the_stack(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        bench.run(&Frame::udp(CLIENT, VIP))?;
        bench.set_mtu(1, 1400)?;
        bench.set_mtu(2, 1400)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[7; 1373]);
        let outcome = bench.run(&ask)?;
        ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == ask.between(CLIENT, BACKEND).bytes());
        // A backend learns of its own packet when it may not be cut; a packet that may be is cut as the client knows it.
        let mut answer = Frame::udp(BACKEND, CLIENT).payload(&[7; 1373]);
        bench.expect_refused(&answer, Reason::OverMtu)?;
        answer.fragment = 0;
        let outcome = bench.run(&answer)?;
        ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == answer.between(VIP, CLIENT).bytes());
        let fits = Frame::udp(CLIENT, VIP).payload(&[7; 1372]);
        bench.expect_sent(&fits, &to_backend(fits.clone()))
    }

    fn an_error_about_an_answer_reaches_the_backend(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        let answer = Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(&[9; 60]);
        let on_the_way = answer.clone().between(VIP, CLIENT);
        let router = Ipv4Addr::new(10, 1, 0, 20);
        for (kind, rest) in [([3, 4], 1400), ([3, 1], 0), ([11, 0], 0), ([12, 0], 0)] {
            // As much as RFC 792 asks for, and as much as routers quote today.
            for length in [28, 38, 68] {
                for from in [router, Bench::CLIENT] {
                    let error = Frame::icmp_error(from, Bench::VIP, kind, rest, &on_the_way, length);
                    let expected = Frame::icmp_error(from, *BACKEND.ip(), kind, rest, &answer, length)
                        .forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11));
                    bench.expect_sent(&error, &expected)?;
                }
            }
        }
        Ok(())
    }

    fn an_error_about_a_request_reaches_the_client_from_the_vip(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(b"anybody?");
        bench.run(&ask)?;
        let arrived = ask.clone().between(CLIENT, BACKEND);
        for (from, seen) in [(*BACKEND.ip(), Bench::VIP), (Ipv4Addr::new(10, 2, 0, 30), Ipv4Addr::new(10, 2, 0, 30))] {
            for length in [28, 36] {
                let error = Frame::icmp_error(from, Bench::CLIENT, [3, 3], 0, &arrived, length);
                let expected = Frame::icmp_error(seen, Bench::CLIENT, [3, 3], 0, &ask, length)
                    .forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10));
                bench.expect_sent(&error, &expected)?;
            }
        }
        Ok(())
    }

    fn the_stacks_own_errors_quote_what_the_client_sent(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[1; 40]);
        bench.run(&ask)?;
        let translated = ask.clone().between(CLIENT, BACKEND);
        let router = Ipv4Addr::new(10, 1, 0, 1);
        for (kind, rest) in [([3, 4], 1400), ([11, 0], 0)] {
            let error = Frame::icmp_error(router, Bench::CLIENT, kind, rest, &translated, 68);
            let expected = Frame::icmp_error(router, Bench::CLIENT, kind, rest, &ask, 68);
            ensure!(bench.run_egress(&error)? == expected.bytes());
        }
        for other in [Frame::udp(CLIENT, VIP), Frame::tcp(CLIENT, VIP, tcp::SYN), Frame::other(router, Bench::CLIENT, 1)] {
            ensure!(bench.run_egress(&other)? == other.bytes());
        }
        Ok(())
    }

    fn errors_about_other_traffic_are_not_ours(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        bench.run(&Frame::udp(CLIENT, VIP))?;
        let router = Ipv4Addr::new(10, 1, 0, 20);
        let answer = Frame::udp(VIP, CLIENT);
        let stranger = Frame::udp(VIP, SocketAddrV4::new(Bench::CLIENT, 9));
        bench.expect_refused(&Frame::icmp_error(router, Bench::VIP, [3, 1], 0, &stranger, 28), Reason::OtherProtocol)?;
        // An echo, and a redirect, are no errors about a packet.
        for kind in [[8, 0], [0, 0], [5, 1]] {
            bench.expect_refused(&Frame::icmp_error(router, Bench::VIP, kind, 0, &answer, 28), Reason::OtherProtocol)?;
        }
        // Too little quoted to tell whose it is, and a fragment without ports.
        bench.expect_refused(&Frame::icmp_error(router, Bench::VIP, [3, 1], 0, &answer, 27), Reason::OtherProtocol)?;
        let mut fragment = answer.clone();
        fragment.fragment = 5;
        bench.expect_refused(&Frame::icmp_error(router, Bench::VIP, [3, 1], 0, &fragment, 28), Reason::OtherProtocol)
    }

    fn round_robin_takes_every_backend_in_turn(bench: &mut Bench) -> Result<()> {
        let backends = [11, 12, 13].map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080));
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends)?;
        for port in 0..12 {
            bench.run(&Frame::tcp(SocketAddrV4::new(Bench::CLIENT, 1000 + port), VIP, tcp::SYN))?;
        }
        for number in numbers {
            ensure!(bench.load(number)? == 4);
        }
        Ok(())
    }

    fn least_connections_takes_the_idlest_backend(bench: &mut Bench) -> Result<()> {
        let backends = [11, 12, 13].map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080));
        let numbers = bench.serve(VIP, TCP, Algorithm::LeastConnections, &backends)?;
        for port in 0..30 {
            bench.run(&Frame::tcp(SocketAddrV4::new(Bench::CLIENT, 1000 + port), VIP, tcp::SYN))?;
        }
        for &number in &numbers {
            ensure!(bench.load(number)? == 10, "{} connections", bench.load(number)?);
        }
        // Two connections of the second backend end: it gets the next two.
        let ended: Vec<_> = bench.flows()?.into_iter().filter(|(_, flow)| flow.backend == numbers[1] && !flow.mark.is_reply()).take(2).collect();
        for (_, flow) in &ended {
            let client = SocketAddrV4::new(Bench::CLIENT, u16::from_be(flow.key.sport));
            bench.run(&Frame::tcp(client, VIP, tcp::RST))?;
        }
        ensure!(bench.load(numbers[1])? == 8);
        for port in 0..2 {
            bench.run(&Frame::tcp(SocketAddrV4::new(Bench::CLIENT, 2000 + port), VIP, tcp::SYN))?;
        }
        ensure!(bench.load(numbers[1])? == 10);
        Ok(())
    }

    fn source_keeps_a_client_on_its_backend(bench: &mut Bench) -> Result<()> {
        let backends = [11, 12, 13, 14].map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080));
        bench.serve(VIP, TCP, Algorithm::Source, &backends)?;
        for port in 0..20 {
            bench.run(&Frame::tcp(SocketAddrV4::new(Bench::CLIENT, 1000 + port), VIP, tcp::SYN))?;
        }
        let mut chosen: Vec<_> = bench.flows()?.into_iter().map(|(_, flow)| flow.backend).collect();
        chosen.dedup();
        ensure!(chosen.len() == 1, "{chosen:?}");
        Ok(())
    }

    fn maglev_spreads_one_clients_ports(bench: &mut Bench) -> Result<()> {
        let backends = [11, 12].map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080));
        let numbers = bench.serve(VIP, TCP, Algorithm::Maglev, &backends)?;
        for port in 0..100 {
            bench.run(&Frame::tcp(SocketAddrV4::new(Bench::CLIENT, 1000 + port), VIP, tcp::SYN))?;
        }
        for number in numbers {
            let load = bench.load(number)?;
            ensure!((30..=70).contains(&load), "{load} of 100");
        }
        Ok(())
    }

    fn a_flow_keeps_its_backend_when_the_ring_changes(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        bench.serve(VIP, TCP, Algorithm::RoundRobin, &[SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 12), 8080)])?;
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(b"still there");
        bench.expect_sent(&data, &to_backend(data.clone()))
    }

    fn the_handshake_establishes_and_two_fins_close(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        ensure!(states(bench)? == [State::Established, State::Established]);
        bench.run(&Frame::tcp(CLIENT, VIP, tcp::FIN | tcp::ACK))?;
        ensure!(states(bench)? == [State::Closing, State::Established]);
        ensure!(bench.load(backend)? == 1);
        bench.run(&Frame::tcp(BACKEND, CLIENT, tcp::FIN | tcp::ACK))?;
        ensure!(states(bench)? == [State::Closed, State::Closed]);
        ensure!(bench.load(backend)? == 0);
        let last = Frame::tcp(CLIENT, VIP, tcp::ACK);
        bench.expect_sent(&last, &to_backend(last.clone()))
    }

    fn what_comes_late_does_not_revive_a_closed_connection(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        let (end, answer) = (Frame::tcp(CLIENT, VIP, tcp::FIN | tcp::ACK), Frame::tcp(BACKEND, CLIENT, tcp::FIN | tcp::ACK));
        for frame in [&end, &answer, &end, &answer] {
            bench.run(frame)?;
        }
        ensure!(states(bench)? == [State::Closed, State::Closed]);
        ensure!(bench.load(backend)? == 0);
        bench.run(&Frame::tcp(CLIENT, VIP, tcp::SYN))?;
        ensure!(bench.load(backend)? == 1);
        Ok(())
    }

    fn a_reset_closes_once_and_travels_on(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        for _ in 0..2 {
            let reset = Frame::tcp(BACKEND, CLIENT, tcp::RST | tcp::ACK);
            bench.expect_sent(&reset, &to_client(reset.clone()))?;
            ensure!(states(bench)? == [State::Closed, State::Closed]);
            ensure!(bench.load(backend)? == 0);
        }
        Ok(())
    }

    fn an_ack_without_an_answer_establishes_nothing(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        bench.run(&Frame::tcp(CLIENT, VIP, tcp::SYN))?;
        bench.run(&Frame::tcp(CLIENT, VIP, tcp::ACK))?;
        ensure!(states(bench)? == [State::Opening, State::Opening]);
        Ok(())
    }

    fn a_reused_port_starts_anew_after_a_close(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        bench.run(&Frame::tcp(CLIENT, VIP, tcp::RST))?;
        bench.run(&Frame::tcp(CLIENT, VIP, tcp::SYN))?;
        ensure!(states(bench)? == [State::Opening, State::Opening]);
        ensure!(bench.load(backend)? == 1 && bench.traffic(backend)?.connections == 2);
        Ok(())
    }

    fn a_repeated_syn_goes_to_the_same_backend(bench: &mut Bench) -> Result<()> {
        let backends = [11, 12].map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080));
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends)?;
        for _ in 0..5 {
            bench.run(&Frame::tcp(CLIENT, VIP, tcp::SYN))?;
        }
        ensure!(bench.load(numbers[0])? + bench.load(numbers[1])? == 1);
        Ok(())
    }

    fn a_segment_without_a_connection_goes_to_the_stack_that_resets_it(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        for flags in [tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST, tcp::SYN | tcp::ACK, tcp::SYN | tcp::RST, 0] {
            bench.expect_refused(&Frame::tcp(CLIENT, VIP, flags), Reason::NoFlow)?;
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn a_listener_without_backend_leaves_the_refusal_to_the_stack(bench: &mut Bench) -> Result<()> {
        bench.serve(VIP, TCP, Algorithm::RoundRobin, &[])?;
        bench.serve(VIP, UDP, Algorithm::Maglev, &[])?;
        bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::SYN), Reason::NoBackend)?;
        bench.expect_refused(&Frame::udp(CLIENT, VIP), Reason::NoBackend)?;
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn a_disabled_vip_drops_everything(bench: &mut Bench) -> Result<()> {
        let service = Service { kind: Kind::Disabled as u8, ..Service::default() };
        bench.set_service(VIP, 0, ServiceKey::WHOLE_VIP, service)?;
        bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::SYN), Reason::Disabled)?;
        bench.expect_refused(&Frame::udp(CLIENT, SocketAddrV4::new(Bench::VIP, 9)), Reason::Disabled)?;
        // Echo requests, too: the stack would answer them.
        bench.expect_refused(&Frame::other(Bench::CLIENT, Bench::VIP, 1).payload(&[0; 40]), Reason::Disabled)
    }

    fn other_ports_protocols_and_addresses_are_not_ours(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        bench.expect_refused(&Frame::tcp(CLIENT, SocketAddrV4::new(Bench::VIP, 81), tcp::SYN), Reason::NotOurs)?;
        bench.expect_refused(&Frame::udp(CLIENT, VIP), Reason::NotOurs)?;
        let other = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 80);
        bench.expect_refused(&Frame::tcp(CLIENT, other, tcp::SYN), Reason::NotOurs)
    }

    fn a_listener_wins_over_the_whole_vip(bench: &mut Bench) -> Result<()> {
        let service = Service { kind: Kind::Disabled as u8, ..Service::default() };
        bench.set_service(VIP, 0, ServiceKey::WHOLE_VIP, service)?;
        serve(bench, TCP)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        bench.expect_sent(&syn, &to_backend(syn.clone()))
    }

    fn a_new_generation_ends_the_flows_at_once(bench: &mut Bench) -> Result<()> {
        let number = serve(bench, TCP)?;
        establish(bench)?;
        let mut backend = bench.backend(number)?;
        backend.generation += 1;
        bench.set_backend(number, backend)?;
        bench.expect_refused(&Frame::tcp(BACKEND, CLIENT, tcp::ACK), Reason::FlowEnded)?;
        ensure!(bench.flows()?.is_empty());
        ensure!(bench.load(number)? == 0);
        bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::ACK), Reason::NoFlow)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        bench.expect_sent(&syn, &to_backend(syn.clone()))
    }

    fn a_changed_epoch_finds_the_way_out_again(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP);
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        command("ip neigh replace 10.2.0.11 lladdr 02:00:00:00:02:ee dev priv0")?;
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        let mut config = bench.config()?;
        config.epoch += 1;
        bench.set_config(config)?;
        let mut expected = to_backend(ask.clone());
        expected.dst_mac[5] = 0xee;
        bench.expect_sent(&ask, &expected)
    }

    fn without_a_neighbour_the_translated_packet_goes_to_the_stack(bench: &mut Bench) -> Result<()> {
        bench.serve(VIP, UDP, Algorithm::RoundRobin, &[SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 77), 53)])?;
        let ask = Frame::udp(CLIENT, VIP).payload(b"who has");
        let outcome = bench.run(&ask)?;
        let translated = ask.clone().between(CLIENT, SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 77), 53));
        ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == translated.bytes());
        ensure!(bench.reason(Reason::NoNeighbour)? == 1);
        // Once the stack has resolved it, the flow takes the fast way without a change of epoch.
        command("ip neigh add 10.2.0.77 lladdr 02:00:00:00:02:4d dev priv0")?;
        bench.expect_sent(&ask, &translated.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(77)))
    }

    fn a_forbidden_destination_drops(bench: &mut Bench) -> Result<()> {
        for (kind, host) in [("unreachable", 1), ("blackhole", 2), ("prohibit", 3)] {
            command(&format!("ip route add {kind} 10.9.0.{host}"))?;
            let vip = SocketAddrV4::new(Bench::VIP, 100 + u16::from(host));
            bench.serve(vip, UDP, Algorithm::RoundRobin, &[SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, host), 53)])?;
            bench.expect_refused(&Frame::udp(CLIENT, vip), Reason::Unroutable)?;
        }
        Ok(())
    }

    fn a_client_behind_the_gateway_is_answered_through_it(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let far = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 5353);
        let ask = Frame::udp(far, VIP);
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        let answer = Frame::udp(BACKEND, far);
        bench.expect_sent(&answer, &answer.clone().between(VIP, far).forwarded(Bench::PUBLIC_MAC, Bench::GATEWAY_MAC))
    }

    fn what_cannot_be_parsed_goes_up_unchanged(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let syn = || Frame::tcp(CLIENT, VIP, tcp::SYN);
        let mut ipv6 = syn();
        ipv6.ethertype = 0x86dd;
        bench.expect_refused(&ipv6, Reason::NotIpv4)?;
        let mut arp = syn();
        arp.ethertype = 0x0806;
        bench.expect_refused(&arp, Reason::NotIpv4)?;
        let mut tagged = syn();
        tagged.ethertype = 0x8100;
        bench.expect_refused(&tagged, Reason::NotIpv4)?;
        let mut options = syn();
        options.ip_options = vec![1, 1, 1, 0];
        bench.expect_refused(&options, Reason::IpOptions)?;
        for fragment in [0x0001, 0x2001, 0x1fff] {
            let mut fragmented = syn();
            fragmented.fragment = fragment;
            bench.expect_refused(&fragmented, Reason::Fragment)?;
        }
        for protocol in [1, 47, 50, 132] {
            bench.expect_refused(&Frame::other(Bench::CLIENT, Bench::VIP, protocol).payload(&[0; 40]), Reason::OtherProtocol)?;
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn fragments_follow_their_first_one(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[0xa5; 3001]);
        let sent = to_backend(ask.clone());
        // The last one holds a single byte.
        let offsets = [0, 1480, 2960, 3008];
        for (fragment, expected) in ask.fragments(&offsets).iter().zip(sent.fragments(&offsets)) {
            bench.expect_sent(fragment, &expected)?;
        }
        let answer = Frame::udp(BACKEND, CLIENT).payload(&[0x5a; 2000]);
        for (fragment, expected) in answer.fragments(&[0, 1480]).iter().zip(to_client(answer.clone()).fragments(&[0, 1480])) {
            bench.expect_sent(fragment, &expected)?;
        }
        ensure!(bench.traffic(backend)?.connections == 1);
        Ok(())
    }

    fn a_fragment_before_its_first_one_is_the_stacks(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[1; 2000]);
        let [first, second] = &ask.fragments(&[0, 1480])[..] else { anyhow::bail!("two fragments") };
        bench.expect_refused(second, Reason::Fragment)?;
        bench.expect_sent(first, &to_backend(ask.clone()).fragments(&[0, 1480])[0])?;
        bench.expect_sent(second, &to_backend(ask.clone()).fragments(&[0, 1480])[1])?;
        // Another packet's: other identification, other protocol, other source.
        let mut other = second.clone();
        other.id += 1;
        bench.expect_refused(&other, Reason::Fragment)?;
        let mut other = second.clone();
        other.transport = Transport::Other(TCP);
        bench.expect_refused(&other, Reason::Fragment)?;
        let mut other = second.clone();
        other.src = Ipv4Addr::new(10, 1, 0, 11);
        bench.expect_refused(&other, Reason::Fragment)
    }

    fn a_segment_in_fragments_reaches_the_backend(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK | tcp::PSH).payload(&[3; 900]);
        for (fragment, expected) in data.fragments(&[0, 512]).iter().zip(to_backend(data.clone()).fragments(&[0, 512])) {
            bench.expect_sent(fragment, &expected)?;
        }
        Ok(())
    }

    fn a_first_fragment_without_room_for_its_ports_is_malformed(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN).payload(&[0; 8]);
        let first = &syn.fragments(&[0, 8])[0];
        bench.expect_refused(first, Reason::Malformed)
    }

    fn contradicting_lengths_are_malformed(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        serve(bench, UDP)?;
        for version_ihl in [0x44, 0x40, 0x55, 0x65, 0x05] {
            let mut frame = Frame::tcp(CLIENT, VIP, tcp::SYN);
            frame.version_ihl = Some(version_ihl);
            bench.expect_refused(&frame, Reason::Malformed)?;
        }
        for total_len in [0, 19, 20, 39, 41, 0xffff] {
            let mut frame = Frame::tcp(CLIENT, VIP, tcp::SYN);
            frame.total_len = Some(total_len);
            bench.expect_refused(&frame, Reason::Malformed)?;
        }
        // A UDP length beyond the packet, and below its own header.
        for udp_len in [0u16, 7, 13, 0xffff] {
            let mut bytes = Frame::udp(CLIENT, VIP).payload(b"1234").bytes();
            bytes[38..40].copy_from_slice(&udp_len.to_be_bytes());
            let outcome = bench.run_bytes(&bytes)?;
            ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == bytes, "length {udp_len}");
        }
        // A TCP data offset below the header, and beyond the packet.
        for offset in [0x00, 0x40, 0x60, 0xf0] {
            let mut bytes = Frame::tcp(CLIENT, VIP, tcp::SYN).bytes();
            bytes[46] = offset;
            let outcome = bench.run_bytes(&bytes)?;
            ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == bytes, "offset {offset:#x}");
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn every_truncation_goes_up_unchanged(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let whole = Frame::tcp(CLIENT, VIP, tcp::SYN).bytes();
        // The kernel makes no test socket buffer of less than an IPv4 header.
        for length in 34..whole.len() {
            let outcome = bench.run_bytes(&whole[..length]).with_context(|| format!("{length} bytes"))?;
            ensure!(outcome.verdict == Verdict::Pass, "{length} bytes: {:?}", outcome.verdict);
            ensure!(outcome.bytes == whole[..length], "{length} bytes were changed");
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn padding_after_the_packet_is_kept(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        let padding = [0; 6];
        let outcome = bench.run_bytes(&[syn.bytes(), padding.to_vec()].concat())?;
        ensure!(outcome.verdict == Verdict::Redirect);
        ensure!(outcome.bytes == [to_backend(syn).bytes(), padding.to_vec()].concat());
        ensure!(bench.traffic(backend)?.bytes_in == 54);
        Ok(())
    }

    fn one_client_port_through_two_vips_to_one_backend_is_refused_not_mixed_up(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        let other_vip = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 80);
        bench.serve(other_vip, TCP, Algorithm::RoundRobin, &[BACKEND])?;
        bench.expect_refused(&Frame::tcp(CLIENT, other_vip, tcp::SYN), Reason::ReplyInUse)?;
        let data = Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(b"mine");
        bench.expect_sent(&data, &to_client(data.clone()))
    }

    fn a_flood_of_syns_evicts_embryos_and_never_an_established_flow(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        let slots = Bench::BUCKETS * 8;
        for number in 0..slots * 2 {
            let host = Ipv4Addr::from(0x0b00_0000 + number);
            bench.run(&Frame::tcp(SocketAddrV4::new(host, 7), VIP, tcp::SYN))?;
        }
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(b"alive");
        bench.expect_sent(&data, &to_backend(data.clone()))?;
        let answer = Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(b"alive too");
        bench.expect_sent(&answer, &to_client(answer.clone()))?;
        // What was evicted was taken off the load: each flow in the table is whole, and counted once.
        let flows = bench.flows()?;
        let firsts = u32::try_from(flows.iter().filter(|(_, flow)| !flow.mark.is_reply()).count())?;
        ensure!(flows.len() == 2 * firsts as usize, "{} flows, {firsts} of them first", flows.len());
        ensure!(bench.load(backend)? == firsts, "load {} for {firsts} connections", bench.load(backend)?);
        Ok(())
    }
}

fn command(words: &str) -> Result<()> {
    let mut words = words.split_whitespace();
    let status = std::process::Command::new(words.next().unwrap_or_default()).args(words).status()?;
    ensure!(status.success());
    Ok(())
}
