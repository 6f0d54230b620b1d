//! Port forwarding: ports of a VIP that lead to a guest's ports, one by one or in ranges.

use super::*;

const GUEST: SocketAddrV4 = BACKEND;
/// Prefix length of a key that covers 16 ports.
const SIXTEEN: u32 = ServiceKey::EXACT - 4;

const fn vip(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Bench::VIP, port)
}

const fn guest(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(*GUEST.ip(), port)
}

fn arrives(bench: &mut Bench, frame: &Frame, to: SocketAddrV4) -> Result<()> {
    let sent = frame.clone().between(CLIENT, to).forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11));
    bench.expect_sent(frame, &sent)
}

fn returns(bench: &mut Bench, frame: &Frame, from: SocketAddrV4) -> Result<()> {
    let sent = frame.clone().between(from, CLIENT).forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10));
    bench.expect_sent(frame, &sent)
}

both_hooks! {
    fn a_port_leads_to_the_guests_port_and_answers_come_from_the_vip(bench: &mut Bench) -> Result<()> {
        let number = bench.forward(vip(2222), TCP, ServiceKey::EXACT, guest(22))?;
        for (frame, answer) in [(tcp::SYN, tcp::SYN | tcp::ACK), (tcp::ACK, tcp::ACK)] {
            arrives(bench, &Frame::tcp(CLIENT, vip(2222), frame), guest(22))?;
            returns(bench, &Frame::tcp(guest(22), CLIENT, answer), vip(2222))?;
        }
        ensure!(bench.load(number)? == 1 && bench.traffic(number)?.connections == 1);
        ensure!(states(bench)? == [State::Established; 2]);
        bench.expect_refused(&Frame::udp(CLIENT, vip(2222)), Reason::NotOurs)?;
        bench.expect_refused(&Frame::tcp(CLIENT, vip(22), tcp::SYN), Reason::NotOurs)
    }

    fn each_port_of_a_range_leads_to_its_own_port_of_an_equal_range(bench: &mut Bench) -> Result<()> {
        // Ports 8000 to 8015 lead to 20000 to 20015.
        bench.forward(vip(8000), UDP, SIXTEEN, guest(20_000))?;
        for offset in [0, 1, 7, 15] {
            arrives(bench, &Frame::udp(CLIENT, vip(8000 + offset)), guest(20_000 + offset))?;
            returns(bench, &Frame::udp(guest(20_000 + offset), CLIENT), vip(8000 + offset))?;
        }
        for port in [7999, 8016] {
            bench.expect_refused(&Frame::udp(CLIENT, vip(port)), Reason::NotOurs)?;
        }
        Ok(())
    }

    fn a_range_may_lead_to_lower_ports(bench: &mut Bench) -> Result<()> {
        bench.forward(vip(65_520), UDP, SIXTEEN, guest(1))?;
        arrives(bench, &Frame::udp(CLIENT, vip(65_520)), guest(1))?;
        arrives(bench, &Frame::udp(CLIENT, vip(65_535)), guest(16))
    }

    fn a_listeners_port_wins_over_a_range(bench: &mut Bench) -> Result<()> {
        bench.forward(vip(80), TCP, SIXTEEN, SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 12), 80))?;
        serve(bench, TCP)?;
        establish(bench)
    }

    fn only_the_allowed_network_gets_in(bench: &mut Bench) -> Result<()> {
        bench.forward(vip(8000), TCP, SIXTEEN, guest(8000))?;
        let network = |last: u8, bits: u8| [Ipv4Addr::new(10, 1, 0, last), Ipv4Addr::new(255, 255, 255, bits)];
        let syn = Frame::tcp(CLIENT, vip(8001), tcp::SYN);
        // The network's last address is 11; the client is 10.
        bench.allow(vip(8000), TCP, SIXTEEN, network(11, 255))?;
        bench.expect_refused(&syn, Reason::SourceNotAllowed)?;
        // A client that is not allowed gets no answer.
        bench.expect_refused(&Frame::tcp(CLIENT, vip(8001), tcp::ACK), Reason::SourceNotAllowed)?;
        bench.allow(vip(8000), TCP, SIXTEEN, network(12, 252))?;
        bench.expect_refused(&syn, Reason::SourceNotAllowed)?;
        ensure!(bench.flows()?.is_empty());
        bench.allow(vip(8000), TCP, SIXTEEN, network(8, 252))?;
        arrives(bench, &syn, guest(8001))
    }

    fn a_removed_rules_flows_end_and_no_others(bench: &mut Bench) -> Result<()> {
        let number = bench.forward(vip(8000), UDP, SIXTEEN, guest(8000))?;
        bench.forward(vip(9000), UDP, ServiceKey::EXACT, guest(9000))?;
        for port in [8003, 9000] {
            arrives(bench, &Frame::udp(CLIENT, vip(port)), guest(port))?;
            returns(bench, &Frame::udp(guest(port), CLIENT), vip(port))?;
        }
        // In the controller's order: first the key, then the backend.
        bench.remove_service(vip(8000), UDP, SIXTEEN)?;
        let generation = bench.backend(number)?.generation + 1;
        bench.set_backend(number, vipgate_abi::backend::Backend { generation, ..Default::default() })?;
        bench.expect_refused(&Frame::udp(guest(8003), CLIENT), Reason::FlowEnded)?;
        bench.expect_refused(&Frame::udp(CLIENT, vip(8003)), Reason::NotOurs)?;
        arrives(bench, &Frame::udp(CLIENT, vip(9000)), guest(9000))?;
        returns(bench, &Frame::udp(guest(9000), CLIENT), vip(9000))
    }

    fn a_segment_of_no_connection_is_left_to_the_stack(bench: &mut Bench) -> Result<()> {
        bench.forward(vip(2222), TCP, ServiceKey::EXACT, guest(22))?;
        bench.expect_refused(&Frame::tcp(CLIENT, vip(2222), tcp::ACK), Reason::NoFlow)
    }

    fn a_rule_whose_guest_is_gone_accepts_nothing(bench: &mut Bench) -> Result<()> {
        let number = bench.forward(vip(2222), UDP, ServiceKey::EXACT, guest(22))?;
        bench.set_backend(number, vipgate_abi::backend::Backend::default())?;
        bench.expect_refused(&Frame::udp(CLIENT, vip(2222)), Reason::NoBackend)
    }

    fn odd_lengths_and_datagrams_without_checksum_are_forwarded(bench: &mut Bench) -> Result<()> {
        bench.forward(vip(8000), UDP, SIXTEEN, guest(9000))?;
        for length in [0, 1, 2, 255, 1371] {
            let payload: Vec<u8> = (0..length).map(|at: usize| (at * 7) as u8).collect();
            let mut frame = Frame::udp(CLIENT, vip(8004)).payload(&payload);
            arrives(bench, &frame, guest(9004))?;
            if let Transport::Udp { checksum, .. } = &mut frame.transport {
                *checksum = false;
            }
            arrives(bench, &frame, guest(9004))?;
        }
        Ok(())
    }

    fn fragments_and_options_are_forwarded(bench: &mut Bench) -> Result<()> {
        bench.forward(vip(8000), UDP, SIXTEEN, guest(9000))?;
        let ask = Frame::udp(CLIENT, vip(8002)).payload(&[0xa5; 3001]);
        let sent = ask.clone().between(CLIENT, guest(9002)).forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11));
        let offsets = [0, 1480, 2960];
        for (fragment, expected) in ask.fragments(&offsets).iter().zip(sent.fragments(&offsets)) {
            bench.expect_sent(fragment, &expected)?;
        }
        arrives(bench, &Frame::udp(CLIENT, vip(8003)).ip_options(&[1, 1, 1, 0]).payload(b"routed"), guest(9003))
    }

    fn errors_about_forwarded_packets_reach_their_senders(bench: &mut Bench) -> Result<()> {
        bench.forward(vip(8000), UDP, SIXTEEN, guest(9000))?;
        let ask = Frame::udp(CLIENT, vip(8005)).payload(b"anybody?");
        arrives(bench, &ask, guest(9005))?;
        // Nothing listens at the guest.
        let sent = ask.clone().between(CLIENT, guest(9005));
        let error = Frame::icmp_error(*GUEST.ip(), Bench::CLIENT, [3, 3], 0, &sent, 36);
        let turned = Frame::icmp_error(Bench::VIP, Bench::CLIENT, [3, 3], 0, &ask, 36);
        bench.expect_sent(&error, &turned.forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10)))?;
        // The client's own network has a smaller MTU.
        let answer = Frame::udp(guest(9005), CLIENT).payload(&[7; 1400]);
        returns(bench, &answer, vip(8005))?;
        let delivered = answer.clone().between(vip(8005), CLIENT);
        let error = Frame::icmp_error(Bench::CLIENT, Bench::VIP, [3, 4], 1280, &delivered, 36);
        let turned = Frame::icmp_error(Bench::CLIENT, *GUEST.ip(), [3, 4], 1280, &answer, 36);
        bench.expect_sent(&error, &turned.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11)))
    }

    fn a_client_in_the_guests_network_has_the_routers_address(bench: &mut Bench) -> Result<()> {
        bench.arrive_by("pub0")?;
        let beside = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 20), 9001);
        bench.forward(vip(8000), UDP, SIXTEEN, SocketAddrV4::new(*beside.ip(), 9000))?;
        let router = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 1), CLIENT.port());
        let ask = Frame::udp(CLIENT, vip(8001)).payload(b"neighbour");
        let sent = ask.clone().between(router, beside).forwarded(Bench::PUBLIC_MAC, Bench::client_mac(20));
        bench.expect_sent(&ask, &sent)?;
        let answer = Frame::udp(beside, router).payload(b"yes");
        let delivered = answer.clone().between(vip(8001), CLIENT);
        bench.expect_sent(&answer, &delivered.forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10)))
    }
}
