//! UDP: flows without a handshake.

use super::*;

fn ask() -> Frame {
    Frame::udp(CLIENT, VIP).payload(b"ask")
}

fn answer() -> Frame {
    Frame::udp(BACKEND, CLIENT).payload(b"answer")
}

both_hooks! {
    fn unanswered_datagrams_stay_one_half_open_flow(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        for _ in 0..5 {
            bench.expect_sent(&ask(), &to_backend(ask()))?;
        }
        ensure!(states(bench)? == [State::Opening, State::Opening]);
        ensure!(bench.load(backend)? == 1 && bench.traffic(backend)?.connections == 1);
        Ok(())
    }

    fn an_active_flow_keeps_its_slot_among_single_datagrams(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        ask_and_answer(bench, &ask(), &answer())?;
        ask_and_answer(bench, &ask(), &answer())?;
        // The time of its last packet is stored once a period.
        bench.age_flows((1 << TOUCH_PERIOD) / 2)?;
        let many = Bench::BUCKETS * 8;
        for number in 0..many {
            let client = SocketAddrV4::new(Ipv4Addr::from(0x0b00_0000 + number), 7);
            bench.run(&Frame::udp(client, VIP))?;
            bench.run(&Frame::udp(BACKEND, client))?;
        }
        ensure!(bench.traffic(backend)?.connections == u64::from(many) + 1);
        ensure!(bench.load(backend)? < many, "no flow gave way");
        ask_and_answer(bench, &ask(), &answer())?;
        ensure!(bench.traffic(backend)?.connections == u64::from(many) + 1, "the flow was opened again");
        Ok(())
    }

    fn empty_datagrams_are_forwarded_both_ways(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        ask_and_answer(bench, &ask().payload(&[]), &answer().payload(&[]))
    }

    fn an_answer_from_another_port_does_not_match_the_flow(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        bench.expect_sent(&ask(), &to_backend(ask()))?;
        let other = SocketAddrV4::new(*BACKEND.ip(), BACKEND.port() + 1);
        bench.expect_refused(&Frame::udp(other, CLIENT), Reason::NotOurs)?;
        ensure!(states(bench)? == [State::Opening, State::Opening]);
        Ok(())
    }

    fn an_answer_to_another_port_does_not_match_the_flow(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        bench.expect_sent(&ask(), &to_backend(ask()))?;
        let other = SocketAddrV4::new(Bench::CLIENT, CLIENT.port() + 1);
        bench.expect_refused(&Frame::udp(BACKEND, other), Reason::NotOurs)
    }

    fn tcp_and_udp_of_one_port_are_two_services(bench: &mut Bench) -> Result<()> {
        let by_tcp = serve(bench, TCP)?;
        let by_udp = bench.serve(VIP, UDP, Algorithm::RoundRobin, &backends([12]))?[0];
        establish(bench)?;
        let to_other = ask().between(CLIENT, backends([12])[0]);
        bench.expect_sent(&ask(), &to_other.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(12)))?;
        ensure!(bench.traffic(by_tcp)?.connections == 1 && bench.traffic(by_udp)?.connections == 1);
        Ok(())
    }

    fn ended_flows_of_datagrams_are_balanced_anew(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, UDP, Algorithm::RoundRobin, &backends([11, 12]))?;
        ask_and_answer(bench, &ask(), &answer())?;
        bench.end_flows(numbers[0])?;
        let to_other = ask().between(CLIENT, backends([12])[0]);
        bench.expect_sent(&ask(), &to_other.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(12)))?;
        ensure!(bench.load(numbers[0])? == 0 && bench.load(numbers[1])? == 1);
        bench.expect_refused(&answer(), Reason::NotOurs)
    }

    // RFC 768: the length covers header and data; further bytes of the IP packet belong to neither.
    fn a_datagram_shorter_than_its_packet_is_forwarded_whole(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let longer = |frame: Frame| Frame { total_len: Some(20 + 8 + 3 + 5), ..frame };
        let trailer = [1, 2, 3, 4, 5];
        let outcome = bench.run_bytes(&[longer(ask()).bytes(), trailer.to_vec()].concat())?;
        ensure!(outcome.verdict == Verdict::Redirect);
        ensure!(outcome.bytes == [longer(to_backend(ask())).bytes(), trailer.to_vec()].concat());
        Ok(())
    }

    fn the_lowest_and_highest_ports_are_valid(bench: &mut Bench) -> Result<()> {
        for (client, vip) in [(1, 65535), (65535, 1), (65535, 65535)] {
            let (client, vip) = (SocketAddrV4::new(Bench::CLIENT, client), SocketAddrV4::new(Bench::VIP, vip));
            let backend = SocketAddrV4::new(*BACKEND.ip(), 65535 - vip.port() + 1);
            bench.serve(vip, UDP, Algorithm::RoundRobin, &[backend])?;
            let ask = Frame::udp(client, vip).payload(b"edge");
            let expected = ask.clone().between(client, backend).forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11));
            bench.expect_sent(&ask, &expected)?;
            let answer = Frame::udp(backend, client).payload(b"edge");
            let expected = answer.clone().between(vip, client).forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10));
            bench.expect_sent(&answer, &expected)?;
        }
        Ok(())
    }
}
