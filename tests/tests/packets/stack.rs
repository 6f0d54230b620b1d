//! Packets that the stack gets because it answers them properly.

use super::*;

both_hooks! {
    fn the_stack_reports_the_end_of_a_clients_ttl(bench: &mut Bench) -> Result<()> {
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

    fn the_stack_gets_a_backends_packet_whose_ttl_ends_unchanged(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        bench.run(&Frame::udp(CLIENT, VIP))?;
        let mut answer = Frame::udp(BACKEND, CLIENT);
        answer.ttl = 1;
        bench.expect_refused(&answer, Reason::TtlExpired)
    }

    fn a_packet_larger_than_the_mtu_goes_to_the_stack(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        bench.run(&Frame::udp(CLIENT, VIP))?;
        bench.set_mtu(1, 1400)?;
        bench.set_mtu(2, 1400)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[7; 1373]);
        let outcome = bench.run(&ask)?;
        ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == ask.between(CLIENT, BACKEND).bytes());
        // If it may not be fragmented, the error quotes the backend's own packet; else the client gets translated fragments.
        let mut answer = Frame::udp(BACKEND, CLIENT).payload(&[7; 1373]);
        bench.expect_refused(&answer, Reason::OverMtu)?;
        answer.fragment = 0;
        let outcome = bench.run(&answer)?;
        ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == answer.between(VIP, CLIENT).bytes());
        let fits = Frame::udp(CLIENT, VIP).payload(&[7; 1372]);
        bench.expect_sent(&fits, &to_backend(fits.clone()))
    }

    fn a_changed_epoch_makes_a_flow_look_its_route_up_again(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP);
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        command("ip neigh replace 10.2.0.11 lladdr 02:00:00:00:02:ee dev priv0")?;
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        bench.move_epoch()?;
        let mut expected = to_backend(ask.clone());
        expected.dst_mac[5] = 0xee;
        bench.expect_sent(&ask, &expected)
    }

    fn the_kernel_resolves_a_backend_without_a_neighbour_entry(bench: &mut Bench) -> Result<()> {
        bench.serve(VIP, UDP, Algorithm::RoundRobin, &[SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 77), 53)])?;
        let ask = Frame::udp(CLIENT, VIP).payload(b"who has");
        let translated = ask.clone().between(CLIENT, SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 77), 53));
        expect_by_neighbour(bench, &ask, &unresolved(translated.clone(), Bench::PRIVATE_MAC))?;
        ensure!(bench.reason(Reason::NoNeighbour)? == 0);
        // Once it is resolved, the flow takes the fast path without a change of the epoch.
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
}
