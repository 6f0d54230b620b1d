//! Counters, to the byte.

use super::*;

/// Packets and bytes in and out, and connections.
fn traffic(bench: &mut Bench, backend: u32) -> Result<[u64; 5]> {
    let traffic = bench.traffic(backend)?;
    Ok([traffic.packets_in, traffic.bytes_in, traffic.packets_out, traffic.bytes_out, traffic.connections])
}

both_hooks! {
    fn both_directions_are_counted_from_the_ethernet_header(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        for length in [0, 1, 17, 1400] {
            let payload = vec![1; length];
            let (ask, answer) = (Frame::udp(CLIENT, VIP).payload(&payload), Frame::udp(BACKEND, CLIENT).payload(&payload));
            ask_and_answer(bench, &ask, &answer)?;
            bench.expect_sent(&answer, &to_client(answer.clone()))?;
        }
        let bytes = 4 * 42 + 1418;
        ensure!(traffic(bench, backend)? == [4, bytes, 8, 2 * bytes, 1], "{:?}", bench.traffic(backend)?);
        Ok(())
    }

    fn a_flow_counts_what_its_backend_counts(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(&[1; 100]);
        bench.expect_sent(&data, &to_backend(data.clone()))?;
        let flows = bench.flows()?;
        let of = |reply| flows.iter().find(|(_, flow)| flow.mark.is_reply() == reply).map(|(_, flow)| (flow.packets, flow.bytes()));
        ensure!(of(false) == Some((3, 54 + 54 + 154)) && of(true) == Some((1, 54)), "{flows:?}");
        ensure!(traffic(bench, backend)? == [3, 262, 1, 54, 1]);
        Ok(())
    }

    fn each_backend_counts_its_own(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, UDP, Algorithm::RoundRobin, &backends([11, 12]))?;
        for (port, length) in [(1, 10), (2, 20), (3, 30)] {
            bench.run(&Frame::udp(SocketAddrV4::new(Bench::CLIENT, port), VIP).payload(&vec![0; length]))?;
        }
        ensure!(traffic(bench, numbers[0])? == [2, 2 * 42 + 40, 0, 0, 2]);
        ensure!(traffic(bench, numbers[1])? == [1, 42 + 20, 0, 0, 1]);
        Ok(())
    }

    fn every_fragment_is_counted_once(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[1; 2000]);
        let mut bytes = 0;
        for fragment in ask.fragments(&[0, 800, 1600]) {
            bench.run(&fragment)?;
            bytes += fragment.bytes().len() as u64;
        }
        ensure!(traffic(bench, backend)? == [3, bytes, 0, 0, 1], "{:?}", bench.traffic(backend)?);
        Ok(())
    }

    fn a_packet_to_an_unresolved_backend_is_counted_and_one_that_the_stack_refuses_is_not(bench: &mut Bench) -> Result<()> {
        let far = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 77), 53);
        let backend = bench.serve(VIP, UDP, Algorithm::RoundRobin, &[far])?[0];
        let ask = Frame::udp(CLIENT, VIP);
        expect_by_neighbour(bench, &ask, &unresolved(ask.clone().between(CLIENT, far), Bench::PRIVATE_MAC))?;
        bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::ACK), Reason::NotOurs)?;
        // With XDP, the stage that sends the packet counts it.
        let sent = if bench.hook() == Hook::Tc { [1, 42] } else { [0, 0] };
        ensure!(traffic(bench, backend)? == [sent[0], sent[1], 0, 0, 1]);
        Ok(())
    }

    fn a_reused_port_counts_as_another_connection(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        let second = bench.slow_down()?;
        for _ in 0..3 {
            exchange(bench, &[(Side::Client, tcp::SYN), (Side::Client, tcp::RST)])?;
            bench.age_flows(second + 1)?;
        }
        ensure!(traffic(bench, backend)? == [6, 6 * 54, 0, 0, 3]);
        ensure!(bench.load(backend)? == 0);
        Ok(())
    }

    fn an_icmp_error_does_not_count_as_its_flows_traffic(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP);
        bench.run(&ask)?;
        let arrived = ask.clone().between(CLIENT, BACKEND);
        let error = Frame::icmp_error(*BACKEND.ip(), Bench::CLIENT, [3, 3], 0, &arrived, 28);
        ensure!(bench.run(&error)?.verdict == Verdict::Redirect);
        ensure!(traffic(bench, backend)? == [1, 42, 0, 0, 1]);
        Ok(())
    }
}
