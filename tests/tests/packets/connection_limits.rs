//! The limit of a listener's connections.

use vipgate_abi::{backend::Backend, flow::FlowKey, hash, sample};

use super::*;

/// Adds a service of one backend with at most this many connections; returns the backend's number.
fn serve_at_most(bench: &mut Bench, protocol: u8, most: u32) -> Result<u32> {
    let number = serve(bench, protocol)?;
    bench.limit(VIP, protocol, most)?;
    Ok(number)
}

fn client(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Bench::CLIENT, port)
}

/// Sends a new connection's first packet from this port; returns the backend that it was sent to, if any.
fn begin(bench: &mut Bench, port: u16) -> Result<Option<SocketAddrV4>> {
    let outcome = bench.run(&Frame::tcp(client(port), VIP, tcp::SYN))?;
    let destination = outcome.bytes[30..34].first_chunk().copied().map(Ipv4Addr::from_octets);
    let backend = destination.map(|address| SocketAddrV4::new(address, BACKEND.port()));
    Ok(backend.filter(|_| outcome.verdict == Verdict::Redirect))
}

/// Opens connections from these ports, with their handshakes, while the listener accepts them; returns the resulting number.
fn open(bench: &mut Bench, ports: std::ops::Range<u16>) -> Result<u32> {
    let mut opened = 0;
    for port in ports {
        if let Some(backend) = begin(bench, port)? {
            bench.run(&Frame::tcp(backend, client(port), tcp::SYN | tcp::ACK))?;
            let answer = bench.run(&Frame::tcp(client(port), VIP, tcp::ACK))?;
            opened += u32::from(answer.verdict == Verdict::Redirect);
        }
    }
    Ok(opened)
}

/// Sends a datagram and its answer; true if both were let through.
fn ask(bench: &mut Bench, client: SocketAddrV4) -> Result<bool> {
    let asked = bench.run(&Frame::udp(client, VIP))?.verdict == Verdict::Redirect;
    Ok(asked && bench.run(&Frame::udp(BACKEND, client))?.verdict == Verdict::Redirect)
}

both_hooks! {
    fn a_full_listener_accepts_no_more_connections(bench: &mut Bench) -> Result<()> {
        let backend = serve_at_most(bench, TCP, 3)?;
        ensure!(open(bench, 1000..1003)? == 3);
        bench.expect_refused(&Frame::tcp(client(1003), VIP, tcp::SYN), Reason::TooManyConnections)?;
        // Its existing connections go on.
        for port in 1000..1003 {
            let frame = Frame::tcp(client(port), VIP, tcp::ACK).payload(b"more");
            bench.expect_sent(&frame, &to_backend(frame.clone()))?;
        }
        ensure!(bench.load(backend)? == 3 && bench.service_load(1)? == 3);
        Ok(())
    }

    fn the_longest_idle_datagram_flow_of_a_full_listener_gives_way(bench: &mut Bench) -> Result<()> {
        let backend = serve_at_most(bench, UDP, 2)?;
        ensure!(ask(bench, client(1000))? && ask(bench, client(1001))?);
        bench.age_flows(2 << TOUCH_PERIOD)?;
        ensure!(ask(bench, client(1000))?);
        ensure!(ask(bench, client(1002))?, "the listener is closed");
        ensure!(bench.service_load(1)? == 2 && bench.load(backend)? == 2);
        bench.expect_refused(&Frame::udp(BACKEND, client(1001)), Reason::NotOurs)?;
        for port in [1000, 1002] {
            ensure!(ask(bench, client(port))?, "{port} is gone");
        }
        ensure!(bench.traffic(backend)?.connections == 3 && bench.reason(Reason::TooManyConnections)? == 0);
        Ok(())
    }

    fn forged_datagrams_neither_block_a_listener_nor_end_active_flows(bench: &mut Bench) -> Result<()> {
        for most in [1, 10, 100] {
            let bench = &mut Bench::with_buckets(bench.hook(), 512)?;
            let backend = serve_at_most(bench, UDP, most)?;
            let forged = |number| SocketAddrV4::new(Ipv4Addr::from(0x0b00_0000 + number), 7);
            for number in 0..10 * most {
                ensure!(ask(bench, forged(number))?);
            }
            ensure!(bench.service_load(1)? == most && bench.load(backend)? == most);
            ensure!(ask(bench, client(1000))?, "the listener is closed");
            if most == 1 {
                continue;
            }
            // A flow only counts as active if its client asks again.
            ensure!(ask(bench, client(1000))?);
            let before = bench.traffic(backend)?.connections;
            for number in 0..10 * most {
                bench.age_flows(1)?;
                ensure!(ask(bench, forged(1_000_000 + number))? && ask(bench, client(1000))?);
            }
            ensure!(bench.traffic(backend)?.connections == before + u64::from(10 * most), "an active flow was ended");
            ensure!(bench.service_load(1)? == most && bench.load(backend)? == most);
        }
        Ok(())
    }

    fn with_few_connections_each_gives_way_in_turn(bench: &mut Bench) -> Result<()> {
        for most in [4, 8] {
            let bench = &mut Bench::new(bench.hook())?;
            let backend = serve_at_most(bench, UDP, most.into())?;
            for port in 1000..1000 + 3 * most {
                bench.age_flows(1)?;
                ensure!(ask(bench, client(port))?, "{port}");
            }
            for port in 1000..1000 + 2 * most {
                bench.expect_refused(&Frame::udp(BACKEND, client(port)), Reason::NotOurs)?;
            }
            for port in 1000 + 2 * most..1000 + 3 * most {
                ensure!(ask(bench, client(port))?, "{port} is gone");
            }
            ensure!(bench.traffic(backend)?.connections == 3 * u64::from(most));
        }
        Ok(())
    }

    fn idle_datagram_flows_give_way_until_a_lowered_limit_is_reached(bench: &mut Bench) -> Result<()> {
        serve_at_most(bench, UDP, 100)?;
        for port in 1000..1020 {
            ensure!(ask(bench, client(port))?);
        }
        bench.limit(VIP, UDP, 4)?;
        // Each attempt ends one flow if it finds one by chance, until there is room.
        let mut attempts = 0;
        while !ask(bench, client(2000))? {
            attempts += 1;
            ensure!(attempts < 400, "the listener is closed");
        }
        ensure!(bench.service_load(1)? == 4);
        bench.limit(VIP, UDP, 5)?;
        ensure!(ask(bench, client(2001))? && ask(bench, client(2002))? && bench.service_load(1)? == 5);
        Ok(())
    }

    // All services share the table of places, whose entries may be another service's, or of a flow table of another size.
    fn no_other_services_connection_gives_way(bench: &mut Bench) -> Result<()> {
        serve_at_most(bench, UDP, 1)?;
        let other = SocketAddrV4::new(Bench::VIP, 53);
        let numbers = bench.serve(other, UDP, Algorithm::RoundRobin, &backends([12]))?;
        // Its limit is high enough that one of its flows is noted among the first service's, and is idle for longer.
        bench.limit(other, UDP, u32::MAX)?;
        let (backend, seed) = (backends([12])[0], bench.config()?.flow_seed);
        let is_among_them = |client: &SocketAddrV4| {
            let [from, to] = [backend, *client].map(|end| (u32::from(*end.ip()).to_be(), end.port().to_be()));
            let answers = FlowKey { src: from.0, dst: to.0, sport: from.1, dport: to.1, protocol: UDP, ..FlowKey::default() };
            let hash = hash::words(answers.words(), seed);
            sample::group(2, sample::LAST_CLASS, hash) == sample::group(1, sample::class(1), 0)
        };
        let neighbour = (1..=u16::MAX).map(client).find(is_among_them).context("a client of that group")?;
        bench.run(&Frame::udp(neighbour, other))?;
        bench.run(&Frame::udp(backend, neighbour))?;
        bench.age_flows(1000)?;
        for port in 1000..1100 {
            ensure!(ask(bench, client(port))?);
        }
        ensure!(bench.load(numbers[0])? == 1);
        Ok(())
    }

    fn first_packets_alone_do_not_fill_a_listener(bench: &mut Bench) -> Result<()> {
        serve_at_most(bench, TCP, 2)?;
        for port in 2000..2100 {
            ensure!(begin(bench, port)? == Some(BACKEND), "{port}");
        }
        ensure!(bench.service_load(1)? == 0);
        ensure!(open(bench, 1000..1003)? == 2);
        Ok(())
    }

    fn of_simultaneous_handshakes_only_as_many_complete_as_there_is_room_for(bench: &mut Bench) -> Result<()> {
        serve_at_most(bench, TCP, 2)?;
        for port in 1000..1003 {
            ensure!(begin(bench, port)? == Some(BACKEND));
            bench.run(&Frame::tcp(BACKEND, client(port), tcp::SYN | tcp::ACK))?;
        }
        let answer = |port| Frame::tcp(client(port), VIP, tcp::ACK);
        for port in 1000..1002 {
            bench.expect_sent(&answer(port), &to_backend(answer(port)))?;
        }
        bench.expect_refused(&answer(1002), Reason::TooManyConnections)?;
        // The backend repeats its part until there is room.
        bench.run(&Frame::tcp(client(1000), VIP, tcp::RST))?;
        let again = Frame::tcp(BACKEND, client(1002), tcp::SYN | tcp::ACK);
        ensure!(bench.run(&again)?.verdict == Verdict::Redirect);
        bench.expect_sent(&answer(1002), &to_backend(answer(1002)))?;
        ensure!(bench.service_load(1)? == 2);
        Ok(())
    }

    fn a_connection_that_ends_makes_room(bench: &mut Bench) -> Result<()> {
        serve_at_most(bench, TCP, 1)?;
        ensure!(open(bench, 1000..1002)? == 1);
        bench.run(&Frame::tcp(client(1000), VIP, tcp::RST))?;
        ensure!(bench.service_load(1)? == 0);
        ensure!(open(bench, 1001..1003)? == 1);
        Ok(())
    }

    fn a_higher_limit_applies_at_once(bench: &mut Bench) -> Result<()> {
        serve_at_most(bench, TCP, 1)?;
        ensure!(open(bench, 1000..1004)? == 1);
        bench.limit(VIP, TCP, 3)?;
        ensure!(open(bench, 1001..1005)? == 2);
        Ok(())
    }

    fn a_lower_limit_ends_nothing_and_accepts_nothing_new(bench: &mut Bench) -> Result<()> {
        serve_at_most(bench, TCP, 4)?;
        ensure!(open(bench, 1000..1004)? == 4);
        bench.limit(VIP, TCP, 2)?;
        for port in 1000..1002 {
            let frame = Frame::tcp(client(port), VIP, tcp::ACK);
            bench.expect_sent(&frame, &to_backend(frame.clone()))?;
            bench.run(&Frame::tcp(client(port), VIP, tcp::RST))?;
        }
        bench.expect_refused(&Frame::tcp(client(1004), VIP, tcp::SYN), Reason::TooManyConnections)
    }

    fn without_a_limit_every_connection_is_accepted(bench: &mut Bench) -> Result<()> {
        serve_at_most(bench, TCP, 0)?;
        ensure!(open(bench, 1000..1100)? == 100);
        ensure!(bench.service_load(1)? == 100);
        Ok(())
    }

    fn a_limit_counts_the_connections_of_all_backends(bench: &mut Bench) -> Result<()> {
        let backends = [11, 12].map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080));
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends)?;
        bench.limit(VIP, TCP, 5)?;
        ensure!(open(bench, 1000..1010)? == 5);
        ensure!(bench.load(numbers[0])? + bench.load(numbers[1])? == 5);
        Ok(())
    }

    fn a_packet_refused_for_another_reason_does_not_count(bench: &mut Bench) -> Result<()> {
        // Room for four connections.
        let bench = &mut Bench::with_buckets(bench.hook(), 1)?;
        let backend = serve_at_most(bench, TCP, 100)?;
        ensure!(open(bench, 1000..1010)? == 4);
        bench.expect_refused(&Frame::tcp(client(1010), VIP, tcp::SYN), Reason::TableFull)?;
        ensure!(bench.service_load(1)? == 4 && bench.load(backend)? == 4);
        Ok(())
    }

    fn a_load_below_zero_refuses_no_connection(bench: &mut Bench) -> Result<()> {
        serve_at_most(bench, TCP, 1)?;
        bench.set_service_load(1, u32::MAX)?;
        ensure!(open(bench, 1000..1001)? == 1);
        Ok(())
    }

    fn an_ended_connection_leaves_its_services_count_at_once_and_no_other_when_its_flows_go(bench: &mut Bench) -> Result<()> {
        let number = serve_at_most(bench, TCP, 3)?;
        ensure!(open(bench, 1000..1003)? == 3 && bench.service_load(1)? == 3);
        // The backend's number now belongs to another service, which has a connection of its own.
        let other_vip = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 80);
        let other = bench.serve(other_vip, TCP, Algorithm::RoundRobin, &backends([12]))?[0];
        let held = bench.backend(number)?;
        let service = bench.backend(other)?.service;
        bench.set_backend(number, Backend { generation: held.generation + 1, service, ..held })?;
        bench.set_service_load(service, 1)?;
        ensure!(bench.service_load(1)? == 0 && bench.load(number)? == 0);
        // Ended flows are removed when a packet of either side comes.
        bench.expect_refused(&Frame::tcp(client(1000), VIP, tcp::RST), Reason::NoFlow)?;
        bench.expect_refused(&Frame::tcp(BACKEND, client(1001), tcp::RST), Reason::FlowEnded)?;
        bench.run(&Frame::tcp(client(1002), VIP, tcp::SYN))?;
        ensure!(!bench.flows()?.iter().any(|(_, flow)| flow.generation == held.generation && flow.backend() == number));
        // What the last packet opened is there.
        ensure!(bench.service_load(1)? == 0 && bench.service_load(service)? == 1 && bench.load(number)? == 1);
        Ok(())
    }
}
