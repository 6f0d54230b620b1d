//! Hairpins: clients in the backend's own network, and the backend itself. All are on pub0.

use super::*;

const NEIGHBOUR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 20), 8080);
/// The client's address as the backend sees it.
const ROUTER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 1), CLIENT.port());

fn serve_neighbours(bench: &mut Bench, protocol: u8) -> Result<u32> {
    bench.arrive_by("pub0")?;
    Ok(bench.serve(VIP, protocol, Algorithm::RoundRobin, &[NEIGHBOUR])?[0])
}

fn to_neighbour(frame: Frame) -> Frame {
    frame.between(ROUTER, NEIGHBOUR).forwarded(Bench::PUBLIC_MAC, Bench::client_mac(20))
}

both_hooks! {
    fn a_client_in_its_backends_network_has_the_routers_address(bench: &mut Bench) -> Result<()> {
        let backend = serve_neighbours(bench, TCP)?;
        for (flags, reply) in [(tcp::SYN, false), (tcp::SYN | tcp::ACK, true), (tcp::ACK, false), (tcp::ACK, true)] {
            if reply {
                let frame = Frame::tcp(NEIGHBOUR, ROUTER, flags).payload(b"answer");
                bench.expect_sent(&frame, &to_client(frame.clone()))?;
            } else {
                let frame = Frame::tcp(CLIENT, VIP, flags).payload(b"ask");
                bench.expect_sent(&frame, &to_neighbour(frame.clone()))?;
            }
        }
        ensure!(states(bench)? == [State::Established, State::Established]);
        ensure!(bench.load(backend)? == 1);
        Ok(())
    }

    fn a_backend_is_its_own_client(bench: &mut Bench) -> Result<()> {
        serve_neighbours(bench, UDP)?;
        let own = SocketAddrV4::new(*NEIGHBOUR.ip(), CLIENT.port());
        let ask = Frame::udp(own, VIP).payload(b"me?");
        bench.expect_sent(&ask, &to_neighbour(ask.clone()))?;
        let answer = Frame::udp(NEIGHBOUR, ROUTER).payload(b"me.");
        let expected = answer.clone().between(VIP, own).forwarded(Bench::PUBLIC_MAC, Bench::client_mac(20));
        bench.expect_sent(&answer, &expected)
    }

    fn a_port_that_is_taken_is_replaced_by_another_one_of_the_routers(bench: &mut Bench) -> Result<()> {
        serve_neighbours(bench, UDP)?;
        for host in 10..15 {
            let client = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, host), CLIENT.port());
            let ask = Frame::udp(client, VIP).payload(b"who?");
            let outcome = bench.run(&ask)?;
            ensure!(outcome.verdict == Verdict::Redirect);
            let port = u16::from_be_bytes([outcome.bytes[34], outcome.bytes[35]]);
            let source = SocketAddrV4::new(*ROUTER.ip(), port);
            ensure!((port == CLIENT.port()) == (host == 10) && port >= 1024, "port {port}");
            let sent = ask.clone().between(source, NEIGHBOUR).forwarded(Bench::PUBLIC_MAC, Bench::client_mac(20));
            ensure!(outcome.bytes == sent.bytes());
            let answer = Frame::udp(NEIGHBOUR, source).payload(b"you");
            let expected = answer.clone().between(VIP, client).forwarded(Bench::PUBLIC_MAC, Bench::client_mac(host));
            bench.expect_sent(&answer, &expected)?;
        }
        Ok(())
    }

    fn a_client_behind_a_gateway_in_the_backends_network_keeps_its_address(bench: &mut Bench) -> Result<()> {
        serve_neighbours(bench, UDP)?;
        let far = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 5353);
        let ask = Frame::udp(far, VIP);
        let expected = ask.clone().between(far, NEIGHBOUR).forwarded(Bench::PUBLIC_MAC, Bench::client_mac(20));
        bench.expect_sent(&ask, &expected)
    }

    fn errors_about_a_hairpin_reach_both_sides(bench: &mut Bench) -> Result<()> {
        serve_neighbours(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(b"anybody?");
        bench.run(&ask)?;
        let arrived = ask.clone().between(ROUTER, NEIGHBOUR);
        let error = Frame::icmp_error(*NEIGHBOUR.ip(), *ROUTER.ip(), [3, 3], 0, &arrived, 36);
        let expected = Frame::icmp_error(Bench::VIP, Bench::CLIENT, [3, 3], 0, &ask, 36)
            .forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10));
        bench.expect_sent(&error, &expected)?;
        let answer = Frame::udp(NEIGHBOUR, ROUTER).payload(b"too late");
        let delivered = answer.clone().between(VIP, CLIENT);
        let error = Frame::icmp_error(Bench::CLIENT, Bench::VIP, [3, 3], 0, &delivered, 36);
        let expected = Frame::icmp_error(*ROUTER.ip(), *NEIGHBOUR.ip(), [3, 3], 0, &answer, 36)
            .forwarded(Bench::PUBLIC_MAC, Bench::client_mac(20));
        bench.expect_sent(&error, &expected)
    }

    fn packets_to_the_router_itself_stay_its_own(bench: &mut Bench) -> Result<()> {
        serve_neighbours(bench, UDP)?;
        bench.run(&Frame::udp(CLIENT, VIP))?;
        let other = SocketAddrV4::new(*ROUTER.ip(), 53);
        bench.expect_refused(&Frame::udp(NEIGHBOUR, other), Reason::NotOurs)?;
        bench.expect_refused(&Frame::tcp(NEIGHBOUR, ROUTER, tcp::SYN), Reason::NotOurs)
    }
}
