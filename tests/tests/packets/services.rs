//! What a VIP offers, and what it does not.

use super::*;

both_hooks! {
    fn a_listener_without_backend_leaves_the_refusal_to_the_stack(bench: &mut Bench) -> Result<()> {
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
        // Echo requests, too: the stack would answer them.
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
}
