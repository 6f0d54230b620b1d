//! ICMP errors about translated packets.

use super::*;

both_hooks! {
    fn an_error_about_an_answer_reaches_the_backend(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        let answer = Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(&[9; 60]);
        let on_the_way = answer.clone().between(VIP, CLIENT);
        for (kind, rest) in [([3, 4], 1400), ([3, 1], 0), ([11, 0], 0), ([12, 0], 0)] {
            // With as long a quote as RFC 792 asks for, and as long a one as routers send today.
            for length in [28, 38, 68] {
                let error = Frame::icmp_error(Bench::CLIENT, Bench::VIP, kind, rest, &on_the_way, length);
                let expected = Frame::icmp_error(Bench::CLIENT, *BACKEND.ip(), kind, rest, &answer, length)
                    .forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11));
                bench.expect_sent(&error, &expected)?;
            }
        }
        Ok(())
    }

    fn an_error_about_a_request_reaches_the_client_from_the_vip(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(b"anybody?");
        bench.run(&ask)?;
        let arrived = ask.clone().between(CLIENT, BACKEND);
        let error = |from, length| Frame::icmp_error(from, Bench::CLIENT, [3, 3], 0, &arrived, length);
        let expected = |length| Frame::icmp_error(Bench::VIP, Bench::CLIENT, [3, 3], 0, &ask, length)
            .forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10));
        for length in [28, 36] {
            bench.expect_sent(&error(*BACKEND.ip(), length), &expected(length))?;
        }
        // If a router is before the backend, its address means nothing to the client.
        command("ip route add 10.2.0.11 via 10.2.0.30 dev priv0")?;
        bench.expect_sent(&error(Ipv4Addr::new(10, 2, 0, 30), 28), &expected(28))
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
            // The data of a later fragment may look like ports.
            let later = Frame { fragment: 0x20, ..error };
            ensure!(bench.run_egress(&later)? == later.bytes());
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
        // An echo and a redirect are not errors about a packet.
        for kind in [[8, 0], [0, 0], [5, 1]] {
            bench.expect_refused(&Frame::icmp_error(router, Bench::VIP, kind, 0, &answer, 28), Reason::OtherProtocol)?;
        }
        // The quote is too short to tell which flow it belongs to, or is of a fragment without ports.
        bench.expect_refused(&Frame::icmp_error(router, Bench::VIP, [3, 1], 0, &answer, 27), Reason::OtherProtocol)?;
        let mut fragment = answer.clone();
        fragment.fragment = 5;
        bench.expect_refused(&Frame::icmp_error(router, Bench::VIP, [3, 1], 0, &fragment, 28), Reason::OtherProtocol)
    }
}
