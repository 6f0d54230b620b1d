//! What a VIP offers, and what it does not.

use super::*;

both_hooks! {
    fn the_stack_refuses_for_a_listener_without_backends(bench: &mut Bench) -> Result<()> {
        bench.serve(VIP, TCP, Algorithm::RoundRobin, &[])?;
        bench.serve(VIP, UDP, Algorithm::Maglev, &[])?;
        bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::SYN), Reason::NoBackend)?;
        bench.expect_refused(&Frame::udp(CLIENT, VIP), Reason::NoBackend)?;
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn a_disabled_vip_drops_everything(bench: &mut Bench) -> Result<()> {
        let service = Service { kind: Kind::Disabled as u8, ..Service::default() };
        bench.set_service(VIP, 0, ServiceKey::WHOLE_VIP, service)?;
        bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::SYN), Reason::Disabled)?;
        bench.expect_refused(&Frame::udp(CLIENT, SocketAddrV4::new(Bench::VIP, 9)), Reason::Disabled)?;
        // Also echo requests, which the stack would answer.
        bench.expect_refused(&Frame::other(Bench::CLIENT, Bench::VIP, 1).payload(&[0; 40]), Reason::Disabled)
    }

    fn other_ports_protocols_and_addresses_are_not_ours(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        bench.expect_refused(&Frame::tcp(CLIENT, SocketAddrV4::new(Bench::VIP, 81), tcp::SYN), Reason::NotOurs)?;
        bench.expect_refused(&Frame::udp(CLIENT, VIP), Reason::NotOurs)?;
        let other = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 80);
        bench.expect_refused(&Frame::tcp(CLIENT, other, tcp::SYN), Reason::NotOurs)
    }

    fn a_listener_wins_over_the_whole_vip(bench: &mut Bench) -> Result<()> {
        let service = Service { kind: Kind::Disabled as u8, ..Service::default() };
        bench.set_service(VIP, 0, ServiceKey::WHOLE_VIP, service)?;
        serve(bench, TCP)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        bench.expect_sent(&syn, &to_backend(syn.clone()))
    }

    fn the_same_port_of_another_vip_has_its_own_backend(bench: &mut Bench) -> Result<()> {
        let first = serve(bench, TCP)?;
        let vip = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), VIP.port());
        let second = bench.serve(vip, TCP, Algorithm::RoundRobin, &backends([12]))?[0];
        establish(bench)?;
        let syn = Frame::tcp(CLIENT, vip, tcp::SYN);
        let sent = syn.clone().between(CLIENT, backends([12])[0]);
        bench.expect_sent(&syn, &sent.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(12)))?;
        let answer = Frame::tcp(backends([12])[0], CLIENT, tcp::SYN | tcp::ACK);
        let delivered = answer.clone().between(vip, CLIENT);
        bench.expect_sent(&answer, &delivered.forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10)))?;
        ensure!(bench.load(first)? == 1 && bench.load(second)? == 1);
        Ok(())
    }

    fn one_backend_of_two_listeners_is_counted_for_each(bench: &mut Bench) -> Result<()> {
        let other = SocketAddrV4::new(Bench::VIP, 443);
        let first = serve(bench, TCP)?;
        let second = bench.serve(other, TCP, Algorithm::RoundRobin, &[BACKEND])?[0];
        for (client, vip) in [(1000, VIP), (1001, other), (1002, other)] {
            let client = SocketAddrV4::new(Bench::CLIENT, client);
            let syn = Frame::tcp(client, vip, tcp::SYN);
            bench.expect_sent(&syn, &to_backend(syn.clone()))?;
            // Its answer comes from the listener that was asked.
            let answer = Frame::tcp(BACKEND, client, tcp::SYN | tcp::ACK);
            let delivered = answer.clone().between(vip, client);
            bench.expect_sent(&answer, &delivered.forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10)))?;
        }
        ensure!(bench.load(first)? == 1 && bench.load(second)? == 2);
        Ok(())
    }

    fn a_removed_listener_accepts_nothing_new_and_keeps_its_flows(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        bench.remove_service(VIP, TCP, ServiceKey::EXACT)?;
        exchange(bench, &[(Side::Client, tcp::ACK), (Side::Backend, tcp::ACK)])?;
        let other = SocketAddrV4::new(Bench::CLIENT, 7);
        bench.expect_refused(&Frame::tcp(other, VIP, tcp::SYN), Reason::NotOurs)
    }

    fn a_range_of_ports_is_one_service(bench: &mut Bench) -> Result<()> {
        // Ports 8000 to 8015.
        let first = SocketAddrV4::new(Bench::VIP, 8000);
        let number = bench.add_backend(BACKEND, 1)?;
        let service = bench.ring(1, Algorithm::RoundRobin, &[number])?;
        bench.set_service(first, UDP, ServiceKey::EXACT - 4, service)?;
        for port in [8000, 8007, 8015] {
            // A new client port each time: a second flow to the backend from the same one would get another port.
            let ask = Frame::udp(SocketAddrV4::new(Bench::CLIENT, port), SocketAddrV4::new(Bench::VIP, port));
            bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        }
        for port in [7999, 8016] {
            bench.expect_refused(&Frame::udp(CLIENT, SocketAddrV4::new(Bench::VIP, port)), Reason::NotOurs)?;
        }
        Ok(())
    }

    fn the_longest_match_is_the_service(bench: &mut Bench) -> Result<()> {
        const WHOLE_PROTOCOL: u32 = ServiceKey::EXACT - 16;
        let offers = [(WHOLE_PROTOCOL, 11), (ServiceKey::EXACT - 4, 12), (ServiceKey::EXACT, 13)];
        for (service, (prefix, host)) in (1..).zip(offers) {
            let number = bench.add_backend(backends([host])[0], service)?;
            let offer = bench.ring(service, Algorithm::RoundRobin, &[number])?;
            bench.set_service(SocketAddrV4::new(Bench::VIP, 8000), UDP, prefix, offer)?;
        }
        for (port, host) in [(8000, 13), (8001, 12), (8015, 12), (8016, 11), (1, 11), (65535, 11)] {
            let client = SocketAddrV4::new(Bench::CLIENT, port);
            let ask = Frame::udp(client, SocketAddrV4::new(Bench::VIP, port));
            let sent = ask.clone().between(client, backends([host])[0]);
            let sent = sent.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(host));
            bench.expect_sent(&ask, &sent).with_context(|| format!("port {port}"))?;
        }
        bench.expect_refused(&Frame::tcp(CLIENT, SocketAddrV4::new(Bench::VIP, 8000), tcp::SYN), Reason::NotOurs)
    }

    fn a_disabled_listener_leaves_the_others(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let closed = SocketAddrV4::new(Bench::VIP, 443);
        let disabled = Service { kind: Kind::Disabled as u8, ..Service::default() };
        bench.set_service(closed, TCP, ServiceKey::EXACT, disabled)?;
        bench.expect_refused(&Frame::tcp(CLIENT, closed, tcp::SYN), Reason::Disabled)?;
        bench.expect_refused(&Frame::other(Bench::CLIENT, Bench::VIP, 1).payload(&[0; 40]), Reason::OtherProtocol)?;
        establish(bench)
    }

    fn a_vip_that_is_enabled_again_serves_again(bench: &mut Bench) -> Result<()> {
        let disabled = Service { kind: Kind::Disabled as u8, ..Service::default() };
        bench.set_service(VIP, 0, ServiceKey::WHOLE_VIP, disabled)?;
        bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::SYN), Reason::Disabled)?;
        bench.remove_service(VIP, 0, ServiceKey::WHOLE_VIP)?;
        bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::SYN), Reason::NotOurs)?;
        serve(bench, TCP)?;
        establish(bench)
    }

    fn a_table_element_with_an_unused_number_has_no_backend(bench: &mut Bench) -> Result<()> {
        let service = bench.ring(1, Algorithm::Maglev, &[77])?;
        bench.set_service(VIP, UDP, ServiceKey::EXACT, service)?;
        bench.expect_refused(&Frame::udp(CLIENT, VIP), Reason::NoBackend)
    }
}
