//! Which backend a new connection gets, and which an old one keeps.

use super::*;

both_hooks! {
    fn round_robin_takes_every_backend_in_turn(bench: &mut Bench) -> Result<()> {
        let backends = [11, 12, 13].map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080));
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
        let backends = [11, 12, 13].map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080));
        let numbers = bench.serve(VIP, TCP, Algorithm::LeastConnections, &backends)?;
        for port in 0..30 {
            bench.run(&Frame::tcp(SocketAddrV4::new(Bench::CLIENT, 1000 + port), VIP, tcp::SYN))?;
        }
        for &number in &numbers {
            ensure!(bench.load(number)? == 10, "{} connections", bench.load(number)?);
        }
        // Two connections of the second backend end: it gets the next two.
        let ended: Vec<_> = bench.flows()?.into_iter().filter(|(_, flow)| flow.backend == numbers[1] && !flow.mark.is_reply()).take(2).collect();
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
        let backends = [11, 12, 13].map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080));
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
        let backends = [11, 12, 13, 14].map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080));
        bench.serve(VIP, TCP, Algorithm::Source, &backends)?;
        for port in 0..20 {
            bench.run(&Frame::tcp(SocketAddrV4::new(Bench::CLIENT, 1000 + port), VIP, tcp::SYN))?;
        }
        let mut chosen: Vec<_> = bench.flows()?.into_iter().map(|(_, flow)| flow.backend).collect();
        chosen.dedup();
        ensure!(chosen.len() == 1, "{chosen:?}");
        Ok(())
    }

    fn maglev_spreads_one_clients_ports(bench: &mut Bench) -> Result<()> {
        let backends = [11, 12].map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080));
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
        bench.serve(VIP, TCP, Algorithm::RoundRobin, &[SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 12), 8080)])?;
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(b"still there");
        bench.expect_sent(&data, &to_backend(data.clone()))
    }

    fn a_repeated_syn_goes_to_the_same_backend(bench: &mut Bench) -> Result<()> {
        let backends = [11, 12].map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080));
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends)?;
        for _ in 0..5 {
            bench.run(&Frame::tcp(CLIENT, VIP, tcp::SYN))?;
        }
        ensure!(bench.load(numbers[0])? + bench.load(numbers[1])? == 1);
        Ok(())
    }
}
