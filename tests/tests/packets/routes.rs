//! Routes and next hops: looked up when a flow begins, and again when something has changed.

use super::*;

fn ask() -> Frame {
    Frame::udp(CLIENT, VIP).payload(b"ask")
}

fn answer() -> Frame {
    Frame::udp(BACKEND, CLIENT).payload(b"answer")
}

/// Opens a flow and answers it.
fn answered(bench: &mut Bench) -> Result<()> {
    serve(bench, UDP)?;
    ask_and_answer(bench, &ask(), &answer())
}

/// Sets after how many jiffies routes are looked up again and next hops are confirmed.
fn confirm_every(bench: &mut Bench, jiffies: u32) -> Result<()> {
    let config = bench.config()?;
    bench.set_config(vipgate_abi::config::Config { confirm: jiffies, ..config })
}

both_hooks! {
    fn answers_follow_the_client_to_its_new_mac(bench: &mut Bench) -> Result<()> {
        answered(bench)?;
        command("ip neigh replace 10.1.0.10 lladdr 02:00:00:00:01:ee dev pub0")?;
        bench.expect_sent(&answer(), &to_client(answer()))?;
        bench.move_epoch()?;
        bench.expect_sent(&answer(), &Frame { dst_mac: Bench::client_mac(0xee), ..to_client(answer()) })
    }

    fn the_kernel_resolves_a_lost_neighbour_without_forwarding_by_the_stack(bench: &mut Bench) -> Result<()> {
        answered(bench)?;
        command("ip neigh del 10.2.0.11 dev priv0")?;
        bench.move_epoch()?;
        for _ in 0..2 {
            expect_by_neighbour(bench, &ask(), &unresolved(ask().between(CLIENT, BACKEND), Bench::PRIVATE_MAC))?;
        }
        command("ip neigh add 10.2.0.11 lladdr 02:00:00:00:02:0b dev priv0")?;
        bench.expect_sent(&ask(), &to_backend(ask()))
    }

    fn the_kernel_resolves_a_lost_client_without_forwarding_by_the_stack(bench: &mut Bench) -> Result<()> {
        answered(bench)?;
        command("ip neigh del 10.1.0.10 dev pub0")?;
        bench.move_epoch()?;
        expect_by_neighbour(bench, &answer(), &unresolved(answer().between(VIP, CLIENT), Bench::PUBLIC_MAC))?;
        command("ip neigh add 10.1.0.10 lladdr 02:00:00:00:01:0a dev pub0")?;
        bench.expect_sent(&answer(), &to_client(answer()))
    }

    fn a_next_hop_is_confirmed_from_time_to_time(bench: &mut Bench) -> Result<()> {
        // By one packet for all flows: those of another port share the confirmation.
        let other = ask().between(SocketAddrV4::new(Bench::CLIENT, 40_001), VIP);
        answered(bench)?;
        confirm_every(bench, 5000)?;
        for (frame, sent) in [(ask(), to_backend(ask())), (answer(), to_client(answer()))] {
            // A next hop without a confirmation has just been resolved.
            bench.let_pass(4096)?;
            bench.expect_sent(&frame, &sent)?;
            bench.let_pass(8192)?;
            expect_by_neighbour(bench, &frame, &sent)?;
            bench.expect_sent(&frame, &sent)?;
        }
        bench.let_pass(8192)?;
        expect_by_neighbour(bench, &other, &to_backend(other.clone()))?;
        bench.expect_sent(&ask(), &to_backend(ask()))
    }

    fn a_next_hop_that_moves_is_followed_without_the_controller(bench: &mut Bench) -> Result<()> {
        answered(bench)?;
        confirm_every(bench, 1 << 30)?;
        command("ip neigh replace 10.1.0.10 lladdr 02:00:00:00:01:ee dev pub0")?;
        command("ip neigh replace 10.2.0.11 lladdr 02:00:00:00:02:ee dev priv0")?;
        bench.let_pass(4096)?;
        bench.expect_sent(&answer(), &Frame { dst_mac: Bench::client_mac(0xee), ..to_client(answer()) })?;
        bench.expect_sent(&ask(), &Frame { dst_mac: Bench::backend_mac(0xee), ..to_backend(ask()) })
    }

    fn new_connections_follow_a_backend_that_moves_without_the_controller(bench: &mut Bench) -> Result<()> {
        answered(bench)?;
        confirm_every(bench, 5000)?;
        command("ip neigh replace 10.2.0.11 lladdr 02:00:00:00:02:ee dev priv0")?;
        bench.let_pass(8192)?;
        let other = ask().between(SocketAddrV4::new(Bench::CLIENT, 40_001), VIP);
        bench.expect_sent(&other, &Frame { dst_mac: Bench::backend_mac(0xee), ..to_backend(other.clone()) })
    }

    fn the_stack_gets_the_flows_of_a_removed_interface(bench: &mut Bench) -> Result<()> {
        answered(bench)?;
        bench.remove_interface(2)?;
        expect_handed_over(bench, &ask(), &ask().between(CLIENT, BACKEND), Reason::NoNeighbour)?;
        bench.expect_sent(&answer(), &to_client(answer()))?;
        bench.set_interface(2, "priv0", Bench::PRIVATE_MAC)?;
        bench.expect_sent(&ask(), &to_backend(ask()))
    }

    fn the_tc_stage_sends_by_an_interface_that_takes_no_xdp_frames(bench: &mut Bench) -> Result<()> {
        answered(bench)?;
        bench.set_sockets_only(2)?;
        let counters = |bench: &mut Bench| -> Result<Vec<_>> {
            Ok(bench.flows()?.into_iter().map(|(_, flow)| (flow.key, flow.packets, flow.volume)).collect())
        };
        let counted = counters(bench)?;
        for _ in 0..2 {
            let (outcome, scratch) = bench.run_with_scratch(&ask())?;
            if bench.hook() == Hook::Xdp {
                ensure!(outcome.verdict == Verdict::Pass && scratch == Scratch::Metadata(b"vgtc".to_vec()), "{scratch:?}");
                ensure!(outcome.bytes == ask().bytes(), "the frame was changed");
            } else {
                ensure!(outcome.verdict == Verdict::Redirect && outcome.bytes == to_backend(ask()).bytes());
            }
        }
        if bench.hook() == Hook::Xdp {
            ensure!(counters(bench)? == counted, "only the stage that sends the packet counts it");
            ensure!(bench.reason(Reason::HandedOver)? == 2);
        }
        bench.expect_sent(&answer(), &to_client(answer()))
    }

    fn a_flow_whose_route_becomes_prohibited_is_dropped(bench: &mut Bench) -> Result<()> {
        answered(bench)?;
        command("ip route add blackhole 10.2.0.11")?;
        bench.expect_sent(&ask(), &to_backend(ask()))?;
        bench.move_epoch()?;
        bench.expect_refused(&ask(), Reason::Unroutable)?;
        command("ip route del blackhole 10.2.0.11")?;
        bench.expect_sent(&ask(), &to_backend(ask()))
    }

    fn without_a_route_the_stack_sends_the_client_an_error(bench: &mut Bench) -> Result<()> {
        command("ip route del default")?;
        let nowhere = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), 53);
        bench.serve(VIP, UDP, Algorithm::RoundRobin, &[nowhere])?;
        expect_handed_over(bench, &ask(), &ask().between(CLIENT, nowhere), Reason::NoNeighbour)
    }

    fn a_guest_whose_way_becomes_forbidden_is_told_by_the_stack(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, false)?;
        expect_told(bench)
    }

    fn the_guest_of_an_elastic_ip_is_told_the_same(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, *BACKEND.ip(), true)?;
        expect_told(bench)
    }

    // A route by a mark, or one with an encapsulation, is seen by the stack alone.
    fn the_stack_gets_packets_translated_whose_route_the_programs_do_not_see(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, false)?;
        let [packet, translated] = outward();
        bench.expect_sent(&packet, &to_gateway(&translated))?;
        command("ip route del default")?;
        bench.move_epoch()?;
        expect_handed_over(bench, &packet, &translated, Reason::NoNeighbour)
    }

    fn a_backend_whose_client_is_forbidden_leaks_nothing(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let client = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 5353);
        let ask = Frame::udp(client, VIP);
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        let answer = Frame::udp(BACKEND, client);
        bench.expect_sent(&answer, &to_gateway(&answer.clone().between(VIP, client)))?;
        command("ip route add unreachable 203.0.113.7")?;
        bench.move_epoch()?;
        bench.expect_refused(&answer, Reason::Unroutable)
    }

    fn a_backend_behind_the_gateway_is_reached_through_it(bench: &mut Bench) -> Result<()> {
        let far = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), 53);
        bench.serve(VIP, UDP, Algorithm::RoundRobin, &[far])?;
        // From the other side: its answers come back by the router.
        let client = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 20), 40_000);
        let ask = Frame::udp(client, VIP);
        bench.expect_sent(&ask, &ask.clone().between(client, far).forwarded(Bench::PUBLIC_MAC, Bench::GATEWAY_MAC))
    }

    fn a_gateway_may_have_an_ipv6_address(bench: &mut Bench) -> Result<()> {
        answered(bench)?;
        command("ip neigh add fe80::30 lladdr 02:00:00:00:02:1e dev priv0")?;
        command("ip route add 10.2.0.11 via inet6 fe80::30 dev priv0")?;
        bench.move_epoch()?;
        bench.expect_sent(&ask(), &Frame { dst_mac: Bench::backend_mac(30), ..to_backend(ask()) })?;
        // Flows remember its MAC address, so the agent moves the epoch when it changes.
        command("ip neigh replace fe80::30 lladdr 02:00:00:00:02:ee dev priv0")?;
        bench.expect_sent(&ask(), &Frame { dst_mac: Bench::backend_mac(30), ..to_backend(ask()) })?;
        bench.move_epoch()?;
        bench.expect_sent(&ask(), &Frame { dst_mac: Bench::backend_mac(0xee), ..to_backend(ask()) })
    }

    fn a_new_route_is_taken_once_the_epoch_moves(bench: &mut Bench) -> Result<()> {
        answered(bench)?;
        command("ip route add 10.2.0.11 via 10.2.0.30 dev priv0")?;
        bench.move_epoch()?;
        bench.expect_sent(&ask(), &Frame { dst_mac: Bench::backend_mac(30), ..to_backend(ask()) })
    }

    fn the_stack_gets_packets_to_a_backend_behind_a_device_without_a_program(bench: &mut Bench) -> Result<()> {
        command("ip link add third0 type veth peer name third1")?;
        command("ip link set third1 up")?;
        command("ip link set third0 up")?;
        command("ip addr add 10.3.0.1/24 dev third0")?;
        command("ip neigh add 10.3.0.9 lladdr 02:00:00:00:03:09 dev third0")?;
        let beyond = SocketAddrV4::new(Ipv4Addr::new(10, 3, 0, 9), 53);
        bench.serve(VIP, UDP, Algorithm::RoundRobin, &[beyond])?;
        for _ in 0..2 {
            expect_handed_over(bench, &ask(), &ask().between(CLIENT, beyond), Reason::NoNeighbour)?;
        }
        Ok(())
    }

    fn answers_with_a_low_ttl_are_forwarded(bench: &mut Bench) -> Result<()> {
        answered(bench)?;
        for ttl in [2, 255] {
            let answer = Frame { ttl, ..answer() };
            bench.expect_sent(&answer, &to_client(answer.clone()))?;
        }
        bench.expect_refused(&Frame { ttl: 0, ..answer() }, Reason::TtlExpired)
    }

    fn answers_keep_type_of_service_and_identification(bench: &mut Bench) -> Result<()> {
        answered(bench)?;
        // The highest bit of the fragment field is reserved (RFC 791), and must not be cleared.
        for fragment in [0, 0x4000, 0x8000, 0xc000] {
            let answer = Frame { tos: 0x2e << 2 | 3, id: 0xffff, fragment, ..answer() };
            bench.expect_sent(&answer, &to_client(answer.clone()))?;
        }
        Ok(())
    }
}

fn to_gateway(frame: &Frame) -> Frame {
    frame.clone().forwarded(Bench::PUBLIC_MAC, Bench::GATEWAY_MAC)
}

/// A guest's packet to a server outside, and the same with the VIP as its source.
fn outward() -> [Frame; 2] {
    let server = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 443);
    let packet = Frame::udp(SocketAddrV4::new(*BACKEND.ip(), 40_000), server);
    [packet.clone(), packet.between(SocketAddrV4::new(Bench::VIP, 40_000), server)]
}

/// The stack gets a guest's packet as it came for as long as its way is forbidden.
fn expect_told(bench: &mut Bench) -> Result<()> {
    let [packet, translated] = outward();
    bench.expect_sent(&packet, &to_gateway(&translated))?;
    for kind in ["unreachable", "prohibit"] {
        command(&format!("ip route add {kind} 203.0.113.7"))?;
        bench.move_epoch()?;
        for _ in 0..2 {
            bench.expect_refused(&packet, Reason::Forbidden)?;
        }
        command(&format!("ip route del {kind} 203.0.113.7"))?;
        bench.expect_sent(&packet, &to_gateway(&translated))?;
    }
    Ok(())
}
