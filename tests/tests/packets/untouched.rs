//! Packets that belong to no service are passed up unchanged.

use super::*;

/// Runs a frame with another host's MAC than the device's: the stack gets it, at XDP after the TC stage, which checks that.
fn expect_others(bench: &mut Bench, frame: &Frame) -> Result<()> {
    match bench.hook() {
        Hook::Xdp => expect_left(bench, frame),
        Hook::Tc => bench.expect_refused(frame, Reason::OtherHost),
    }
}

both_hooks! {
    fn link_layer_protocols_are_passed_up_unchanged(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        // LLDP, EAPOL, MPLS, PPPoE, 802.3 by length: none of them IPv4, whatever follows.
        for ethertype in [0x88cc, 0x888e, 0x8847, 0x8864, 0x0026] {
            let mut frame = Frame::tcp(CLIENT, VIP, tcp::SYN);
            frame.ethertype = ethertype;
            bench.expect_refused(&frame, Reason::NotIpv4)?;
        }
        Ok(())
    }

    fn the_stack_gets_multicast_and_broadcast(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        for (host, mac) in [
            (Ipv4Addr::new(224, 0, 0, 251), [0x01, 0, 0x5e, 0, 0, 0xfb]),
            (Ipv4Addr::BROADCAST, [0xff; 6]),
            (Ipv4Addr::new(10, 1, 0, 255), [0xff; 6]),
        ] {
            let mut frame = Frame::udp(CLIENT, SocketAddrV4::new(host, VIP.port()));
            frame.dst_mac = mac;
            bench.expect_refused(&frame, Reason::OtherHost)?;
        }
        Ok(())
    }

    fn the_stack_gets_a_vips_packets_to_a_group(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP);
        for dst_mac in [[0xff; 6], [0x01, 0, 0x5e, 0, 0, 0xfb], [0x33, 0x33, 0, 0, 0, 1]] {
            let ask = Frame { dst_mac, ..ask.clone() };
            for frame in [ask.clone(), ask.clone().tagged(&[[0x8100, 0xe000]]), ask.ip_options(&[1; 4])] {
                bench.expect_refused(&frame, Reason::OtherHost)?;
            }
        }
        ensure!(bench.flows()?.is_empty());
        // The flow of a packet that came to the router does not match them either.
        bench.run(&ask)?;
        bench.expect_refused(&Frame { dst_mac: [0xff; 6], ..ask }, Reason::OtherHost)
    }

    fn the_stack_gets_a_vips_packets_to_another_hosts_mac(bench: &mut Bench) -> Result<()> {
        bench.arrive_by("pub0")?;
        serve(bench, TCP)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        for dst_mac in [Bench::GATEWAY_MAC, Bench::PRIVATE_MAC, [0x02, 0, 0, 0, 0, 0x01]] {
            let syn = Frame { dst_mac, ..syn.clone() };
            for frame in [syn.clone(), syn.clone().tagged(&[[0x8100, 0xe000]]), syn.ip_options(&[1; 4])] {
                expect_others(bench, &frame)?;
            }
        }
        ensure!(bench.flows()?.is_empty());
        bench.expect_sent(&syn, &to_backend(syn.clone()))
    }

    fn the_stack_gets_an_error_to_another_hosts_mac(bench: &mut Bench) -> Result<()> {
        bench.arrive_by("pub0")?;
        serve(bench, UDP)?;
        bench.run(&Frame::udp(CLIENT, VIP))?;
        let answer = Frame::udp(VIP, CLIENT);
        let error = Frame::icmp_error(Bench::CLIENT, Bench::VIP, [3, 3], 0, &answer, 28);
        expect_others(bench, &Frame { dst_mac: Bench::GATEWAY_MAC, ..error.clone() })?;
        bench.expect_refused(&Frame { dst_mac: [0xff; 6], ..error.clone() }, Reason::OtherHost)?;
        let turned = Frame::icmp_error(Bench::CLIENT, *BACKEND.ip(), [3, 3], 0, &answer.between(BACKEND, CLIENT), 28);
        bench.expect_sent(&error, &turned.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11)))
    }

    // Their first bytes look like the listener's ports.
    fn the_stack_gets_tunnels_to_a_vip(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let inside = &Frame::tcp(CLIENT, VIP, tcp::SYN).bytes()[34..];
        for protocol in [4, 41, 47, 50, 51, 89, 112, 132, 255] {
            let frame = Frame::other(Bench::CLIENT, Bench::VIP, protocol).payload(inside);
            bench.expect_refused(&frame, Reason::OtherProtocol)?;
        }
        let packet = &Frame::tcp(CLIENT, VIP, tcp::SYN).bytes()[14..];
        bench.expect_refused(&Frame::other(Bench::CLIENT, Bench::VIP, 4).payload(packet), Reason::OtherProtocol)?;
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn the_stack_answers_an_echo_to_a_vip(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        for kind in [8, 0, 13, 17] {
            let echo = Frame::other(Bench::CLIENT, Bench::VIP, 1).payload(&[kind, 0, 0, 0, 0, 1, 0, 1, b'p', b'i']);
            bench.expect_refused(&echo, Reason::OtherProtocol)?;
        }
        Ok(())
    }

    fn connections_that_a_backend_opens_are_not_ours(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let far = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), 443);
        let own = SocketAddrV4::new(*BACKEND.ip(), 50_000);
        bench.expect_refused(&Frame::tcp(own, far, tcp::SYN), Reason::NotOurs)?;
        bench.expect_refused(&Frame::tcp(far, own, tcp::SYN | tcp::ACK), Reason::NotOurs)?;
        bench.expect_refused(&Frame::udp(BACKEND, far), Reason::NotOurs)?;
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn an_answer_of_a_backend_without_a_request_is_not_ours(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        for flags in [tcp::SYN, tcp::SYN | tcp::ACK, tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST] {
            bench.expect_refused(&Frame::tcp(BACKEND, CLIENT, flags), Reason::NotOurs)?;
        }
        Ok(())
    }

    fn the_stack_routes_traffic_to_a_backends_own_address(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        bench.expect_refused(&Frame::tcp(CLIENT, BACKEND, tcp::SYN), Reason::NotOurs)?;
        bench.expect_refused(&Frame::tcp(CLIENT, BACKEND, tcp::ACK), Reason::NotOurs)?;
        ensure!(states(bench)? == [State::Established, State::Established]);
        Ok(())
    }

    fn another_protocol_with_a_flows_ports_does_not_match_the_flow(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        bench.expect_refused(&Frame::udp(CLIENT, VIP), Reason::NotOurs)?;
        bench.expect_refused(&Frame::udp(BACKEND, CLIENT), Reason::NotOurs)?;
        ensure!(states(bench)? == [State::Established, State::Established]);
        Ok(())
    }

    fn another_clients_segment_does_not_match_the_flow(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        let beside = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 11), CLIENT.port());
        bench.expect_refused(&Frame::tcp(beside, VIP, tcp::RST), Reason::NoFlow)?;
        let other_port = SocketAddrV4::new(Bench::CLIENT, CLIENT.port() + 1);
        bench.expect_refused(&Frame::tcp(other_port, VIP, tcp::RST), Reason::NoFlow)?;
        ensure!(states(bench)? == [State::Established, State::Established]);
        Ok(())
    }
}
