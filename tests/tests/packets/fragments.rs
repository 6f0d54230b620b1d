//! IPv4 fragments.

use super::*;

both_hooks! {
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

    fn the_stack_gets_a_fragment_that_comes_before_the_first_one(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[1; 2000]);
        let [first, second] = &ask.fragments(&[0, 1480])[..] else { anyhow::bail!("two fragments") };
        bench.expect_refused(second, Reason::Fragment)?;
        bench.expect_sent(first, &to_backend(ask.clone()).fragments(&[0, 1480])[0])?;
        bench.expect_sent(second, &to_backend(ask.clone()).fragments(&[0, 1480])[1])?;
        // Of another packet: other identification, other protocol, other source.
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

    fn later_fragments_come_in_any_order(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[1; 4000]);
        let offsets = [0, 1000, 2000, 3000];
        let (fragments, expected) = (ask.fragments(&offsets), to_backend(ask.clone()).fragments(&offsets));
        for index in [0, 3, 1, 2, 1] {
            bench.expect_sent(&fragments[index], &expected[index])?;
        }
        Ok(())
    }

    fn a_first_fragment_may_hold_no_more_than_a_datagrams_header(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[0xff; 17]);
        let offsets = [0, 8, 16, 24];
        for (fragment, expected) in ask.fragments(&offsets).iter().zip(to_backend(ask.clone()).fragments(&offsets)) {
            bench.expect_sent(fragment, &expected)?;
        }
        Ok(())
    }

    fn mixed_fragments_of_two_datagrams_each_follow_their_first_one(bench: &mut Bench) -> Result<()> {
        bench.serve(VIP, UDP, Algorithm::RoundRobin, &backends([11, 12]))?;
        let of = |port, id, host| {
            let client = SocketAddrV4::new(Bench::CLIENT, port);
            let ask = Frame { id, ..Frame::udp(client, VIP).payload(&[9; 2000]) };
            let sent = ask.clone().between(client, backends([host])[0]);
            let sent = sent.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(host));
            (ask.fragments(&[0, 800, 1600]), sent.fragments(&[0, 800, 1600]))
        };
        let (one, other) = (of(1000, 1, 11), of(2000, 2, 12));
        for index in 0..3 {
            bench.expect_sent(&one.0[index], &one.1[index])?;
            bench.expect_sent(&other.0[index], &other.1[index])?;
        }
        Ok(())
    }

    fn a_reused_identification_belongs_to_the_later_packet(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        for port in [1000, 2000] {
            let client = SocketAddrV4::new(Bench::CLIENT, port);
            let ask = Frame::udp(client, VIP).payload(&[9; 1000]);
            for (fragment, expected) in ask.fragments(&[0, 600]).iter().zip(to_backend(ask.clone()).fragments(&[0, 600])) {
                bench.expect_sent(fragment, &expected)?;
            }
        }
        let flows = bench.flows()?;
        let of = |port: u16| flows.iter().find(|(_, flow)| flow.key.sport == port.to_be()).map(|(_, flow)| flow.packets);
        ensure!(of(1000) == Some(2) && of(2000) == Some(2), "{flows:?}");
        Ok(())
    }

    fn an_old_first_fragment_is_forgotten(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[1; 2000]);
        let (fragments, expected) = (ask.fragments(&[0, 1480]), to_backend(ask.clone()).fragments(&[0, 1480]));
        bench.expect_sent(&fragments[0], &expected[0])?;
        bench.age_fragments(3000)?;
        bench.expect_sent(&fragments[1], &expected[1])?;
        bench.age_fragments(2000)?;
        bench.expect_refused(&fragments[1], Reason::Fragment)?;
        bench.expect_sent(&fragments[0], &expected[0])?;
        bench.expect_sent(&fragments[1], &expected[1])
    }

    fn fragments_for_no_service_are_not_ours_and_take_no_room(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let no_service = SocketAddrV4::new(Bench::VIP, VIP.port() + 1);
        let elsewhere = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 77), 53);
        for to in [no_service, elsewhere] {
            let fragments = Frame::udp(CLIENT, to).payload(&[1; 2000]).fragments(&[0, 1480]);
            bench.expect_refused(&fragments[0], Reason::NotOurs)?;
            bench.expect_refused(&fragments[1], Reason::Fragment)?;
        }
        ensure!(bench.fragments()? == 0);
        let ask = Frame::udp(CLIENT, VIP).payload(&[1; 2000]);
        bench.run(&ask.fragments(&[0, 1480])[0])?;
        ensure!(bench.fragments()? == 1);
        Ok(())
    }

    fn an_unreadable_packet_to_an_elastic_ip_is_dropped(bench: &mut Bench) -> Result<()> {
        let elastic = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 22);
        bench.elastic(*elastic.ip(), *BACKEND.ip(), true)?;
        let syn = Frame::tcp(CLIENT, elastic, tcp::SYN).payload(&[0; 8]);
        let fragments = syn.fragments(&[0, 8]);
        for fragment in fragments.iter().chain(&fragments) {
            bench.expect_refused(fragment, Reason::Unreadable)?;
        }
        let mut short = Frame::udp(CLIENT, elastic);
        short.total_len = Some(27);
        bench.expect_refused(&short, Reason::Unreadable)?;
        ensure!(bench.flows()?.is_empty());
        // A balancer's VIP is the router's own: its stack gets the fragment and refuses it.
        serve(bench, TCP)?;
        bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::SYN).payload(&[0; 8]).fragments(&[0, 8])[0], Reason::Malformed)
    }

    fn the_stack_gets_fragments_of_other_protocols(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let echo = Frame::other(Bench::CLIENT, Bench::VIP, 1).payload(&[8; 2000]);
        let fragments = echo.fragments(&[0, 1480]);
        bench.expect_refused(&fragments[1], Reason::Fragment)?;
        bench.expect_refused(&fragments[0], Reason::OtherProtocol)?;
        bench.expect_refused(&fragments[1], Reason::Fragment)
    }

    fn fragments_to_a_disabled_vip_are_dropped(bench: &mut Bench) -> Result<()> {
        let service = Service { kind: Kind::Disabled as u8, ..Service::default() };
        bench.set_service(VIP, 0, ServiceKey::WHOLE_VIP, service)?;
        let fragments = Frame::udp(CLIENT, VIP).payload(&[1; 2000]).fragments(&[0, 1480]);
        for fragment in fragments.iter().rev().chain(&fragments) {
            bench.expect_refused(fragment, Reason::Disabled)?;
        }
        Ok(())
    }

    fn an_answers_fragments_end_with_their_flow(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        bench.run(&Frame::udp(CLIENT, VIP))?;
        let answer = Frame::udp(BACKEND, CLIENT).payload(&[2; 2000]);
        let (fragments, expected) = (answer.fragments(&[0, 1480]), to_client(answer.clone()).fragments(&[0, 1480]));
        bench.expect_sent(&fragments[0], &expected[0])?;
        bench.end_flows(backend)?;
        bench.expect_refused(&fragments[1], Reason::FlowEnded)?;
        bench.expect_refused(&fragments[1], Reason::NotOurs)
    }

    fn a_fragment_shorter_than_it_says_is_malformed(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[1; 2000]);
        let mut fragments = ask.fragments(&[0, 1480]);
        bench.run(&fragments[0])?;
        fragments[1].total_len = Some(20 + 528 + 1);
        bench.expect_refused(&fragments[1], Reason::Malformed)
    }
}
