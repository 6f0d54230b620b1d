//! Which backend a new connection gets, and which an old one keeps.

use super::*;

both_hooks! {
    fn round_robin_takes_every_backend_in_turn(bench: &mut Bench) -> Result<()> {
        let backends = backends([11, 12, 13]);
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
        let backends = backends([11, 12, 13]);
        let numbers = bench.serve(VIP, TCP, Algorithm::LeastConnections, &backends)?;
        for port in 0..30 {
            bench.run(&Frame::tcp(SocketAddrV4::new(Bench::CLIENT, 1000 + port), VIP, tcp::SYN))?;
        }
        for &number in &numbers {
            ensure!(bench.load(number)? == 10, "{} connections", bench.load(number)?);
        }
        // Two connections of the second backend end: it gets the next two.
        let ended: Vec<_> = bench.flows()?.into_iter().filter(|(_, flow)| flow.backend() == numbers[1] && !flow.mark.is_reply()).take(2).collect();
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

    fn least_connections_fills_backends_by_their_weights(bench: &mut Bench) -> Result<()> {
        let backends = backends([11, 12, 13]);
        let numbers = bench.serve(VIP, TCP, Algorithm::LeastConnections, &backends)?;
        let weights = [1, 2, 5];
        bench.weigh(&numbers, &weights)?;
        for port in 0..40 {
            bench.run(&Frame::tcp(SocketAddrV4::new(Bench::CLIENT, 1000 + port), VIP, tcp::SYN))?;
        }
        for (number, weight) in numbers.into_iter().zip(weights) {
            ensure!(bench.load(number)? == u32::from(weight) * 5, "weight {weight}: {}", bench.load(number)?);
        }
        Ok(())
    }

    fn source_keeps_a_client_on_its_backend(bench: &mut Bench) -> Result<()> {
        let backends = backends([11, 12, 13, 14]);
        bench.serve(VIP, TCP, Algorithm::Source, &backends)?;
        for port in 0..20 {
            bench.run(&Frame::tcp(SocketAddrV4::new(Bench::CLIENT, 1000 + port), VIP, tcp::SYN))?;
        }
        let mut chosen: Vec<_> = bench.flows()?.into_iter().map(|(_, flow)| flow.backend()).collect();
        chosen.dedup();
        ensure!(chosen.len() == 1, "{chosen:?}");
        Ok(())
    }

    fn maglev_spreads_one_clients_ports(bench: &mut Bench) -> Result<()> {
        let backends = backends([11, 12]);
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
        bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends([12]))?;
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(b"still there");
        bench.expect_sent(&data, &to_backend(data.clone()))
    }

    fn a_repeated_syn_goes_to_the_same_backend(bench: &mut Bench) -> Result<()> {
        let backends = backends([11, 12]);
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends)?;
        for _ in 0..5 {
            bench.run(&Frame::tcp(CLIENT, VIP, tcp::SYN))?;
        }
        ensure!(bench.load(numbers[0])? + bench.load(numbers[1])? == 1);
        Ok(())
    }

    fn a_backend_with_more_elements_gets_more_turns(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends([11, 12]))?;
        let [light, heavy] = numbers[..] else { anyhow::bail!("two backends") };
        let service = bench.ring(1, Algorithm::RoundRobin, &[heavy, light, heavy, heavy])?;
        bench.set_service(VIP, TCP, ServiceKey::EXACT, service)?;
        for port in 0..20 {
            bench.run(&Frame::tcp(SocketAddrV4::new(Bench::CLIENT, 1000 + port), VIP, tcp::SYN))?;
        }
        ensure!(bench.load(light)? == 5 && bench.load(heavy)? == 15);
        Ok(())
    }

    fn source_spreads_clients_over_all_backends(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, UDP, Algorithm::Source, &backends([11, 12, 13, 14]))?;
        for host in 0..200u32 {
            bench.run(&Frame::udp(SocketAddrV4::new(Ipv4Addr::from(0xc633_6400 + host), 7), VIP))?;
        }
        for number in numbers {
            let load = bench.load(number)?;
            ensure!((25..=80).contains(&load), "{load} of 200");
        }
        Ok(())
    }

    fn source_chooses_one_backend_for_a_client_in_both_protocols(bench: &mut Bench) -> Result<()> {
        for host in 10..30 {
            let (tcp_vip, udp_vip) = (SocketAddrV4::new(Bench::VIP, 1000), SocketAddrV4::new(Bench::VIP, 2000));
            let hosts = backends([11, 12, 13]);
            let by_tcp = bench.serve(tcp_vip, TCP, Algorithm::Source, &hosts)?;
            let by_udp = bench.serve(udp_vip, UDP, Algorithm::Source, &hosts)?;
            let client = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, host), 7);
            bench.run(&Frame::tcp(client, tcp_vip, tcp::SYN))?;
            bench.run(&Frame::udp(client, udp_vip))?;
            for (one, other) in by_tcp.into_iter().zip(by_udp) {
                ensure!(bench.load(one)? == bench.load(other)?, "client {client}");
            }
        }
        Ok(())
    }

    fn maglev_chooses_alike_with_any_seed_of_the_flow_table(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, UDP, Algorithm::Maglev, &backends([11, 12, 13]))?;
        let choices = |bench: &mut Bench| {
            let choose = |port| {
                let outcome = bench.run(&Frame::udp(SocketAddrV4::new(Bench::CLIENT, port), VIP))?;
                ensure!(outcome.verdict == Verdict::Redirect);
                Ok(outcome.bytes[33])
            };
            (1000..1040).map(choose).collect::<Result<Vec<u8>>>()
        };
        let before = choices(bench)?;
        for number in numbers {
            bench.end_flows(number)?;
        }
        // As after a restart that lost the table, or on another router.
        let mut config = bench.config()?;
        config.flow_seed ^= 0x1234_5678_9abc_def0;
        bench.set_config(config)?;
        ensure!(choices(bench)? == before);
        Ok(())
    }

    fn maglev_distinguishes_destination_ports(bench: &mut Bench) -> Result<()> {
        let numbers = [bench.add_backend(BACKEND, 1)?, bench.add_backend(backends([12])[0], 1)?];
        let service = bench.ring(1, Algorithm::Maglev, &numbers)?;
        bench.set_service(SocketAddrV4::new(Bench::VIP, 0), UDP, ServiceKey::EXACT - 16, service)?;
        let mut of_the_first = 0;
        for port in 5001..=5060 {
            let outcome = bench.run(&Frame::udp(CLIENT, SocketAddrV4::new(Bench::VIP, port)))?;
            ensure!(outcome.verdict == Verdict::Redirect);
            of_the_first += u32::from(outcome.bytes[30..34] == BACKEND.ip().octets());
        }
        ensure!((15..=45).contains(&of_the_first), "{of_the_first} of 60");
        Ok(())
    }

    fn a_single_backend_takes_everything_by_every_algorithm(bench: &mut Bench) -> Result<()> {
        let algorithms = [Algorithm::RoundRobin, Algorithm::LeastConnections, Algorithm::Source, Algorithm::Maglev];
        for (vip, algorithm) in (9000..).zip(algorithms) {
            let vip = SocketAddrV4::new(Bench::VIP, vip);
            let number = bench.serve(vip, TCP, algorithm, &[BACKEND])?[0];
            for client in 0..10 {
                let client = SocketAddrV4::new(Bench::CLIENT, vip.port() + 100 * client);
                let syn = Frame::tcp(client, vip, tcp::SYN);
                bench.expect_sent(&syn, &to_backend(syn.clone()))?;
            }
            ensure!(bench.load(number)? == 10);
        }
        Ok(())
    }
}
