//! What must not come in: sources that no host has, and those of others.

use super::*;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 12);
const ELASTIC: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 101);
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 443);

/// Of no host (RFC 1812, section 5.3.7).
const MARTIANS: [Ipv4Addr; 9] = [
    Ipv4Addr::UNSPECIFIED,
    Ipv4Addr::new(0, 1, 2, 3),
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::new(127, 255, 0, 9),
    Ipv4Addr::new(224, 0, 0, 5),
    Ipv4Addr::new(239, 1, 2, 3),
    Ipv4Addr::new(240, 0, 0, 1),
    Ipv4Addr::new(254, 1, 1, 1),
    Ipv4Addr::BROADCAST,
];

/// A listener, a rule and an elastic IP: where each is asked.
fn doors(bench: &mut Bench) -> Result<[SocketAddrV4; 3]> {
    let rule = SocketAddrV4::new(Bench::VIP, 53);
    serve(bench, UDP)?;
    bench.forward(rule, UDP, ServiceKey::EXACT, SocketAddrV4::new(GUEST, 53))?;
    bench.elastic(ELASTIC, GUEST, true)?;
    Ok([VIP, rule, SocketAddrV4::new(ELASTIC, 53)])
}

both_hooks! {
    fn sources_that_no_host_has_reach_nobody(bench: &mut Bench) -> Result<()> {
        for door in doors(bench)? {
            for source in MARTIANS.into_iter().chain([*door.ip()]) {
                bench.expect_refused(&Frame::udp(SocketAddrV4::new(source, 40_000), door), Reason::Martian)?;
            }
        }
        for source in [Ipv4Addr::LOCALHOST, ELASTIC] {
            bench.expect_refused(&Frame::icmp_query(source, ELASTIC, 8, 1, b"ping"), Reason::Martian)?;
            bench.expect_refused(&Frame::other(source, ELASTIC, 47).payload(&[0; 40]), Reason::Martian)?;
        }
        ensure!(bench.flows()?.is_empty());
        // Beside them hosts begin.
        let first = SocketAddrV4::new(Ipv4Addr::new(1, 0, 0, 1), 40_000);
        let ask = Frame::udp(first, VIP);
        bench.expect_sent(&ask, &to_backend(ask.clone()))
    }

    fn the_routers_own_addresses_reach_nobody(bench: &mut Bench) -> Result<()> {
        let doors = doors(bench)?;
        command("ip addr add 10.1.0.101/32 dev pub0")?;
        let own = [Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 2, 0, 1)];
        own.into_iter().try_for_each(|own| bench.add_interest(Bit::own(u32::from(own).to_be())))?;
        for source in own.into_iter().chain([ELASTIC]) {
            for door in doors {
                let ask = Frame::udp(SocketAddrV4::new(source, 40_000), door);
                bench.expect_refused(&ask, Reason::Martian)?;
            }
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn the_routers_own_address_is_no_guests(bench: &mut Bench) -> Result<()> {
        bench.masquerade(Bench::VIP, false)?;
        let own = Ipv4Addr::new(10, 2, 0, 1);
        bench.add_interest(Bit::own(u32::from(own).to_be()))?;
        bench.expect_refused(&Frame::udp(SocketAddrV4::new(own, 40_000), SERVER), Reason::Martian)?;
        bench.elastic(ELASTIC, own, true)?;
        bench.expect_refused(&Frame::udp(SocketAddrV4::new(own, 40_000), SERVER), Reason::Martian)?;
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn who_shares_a_bit_with_the_routers_address_is_served(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        bench.add_interest(Bit::own(u32::from(Bench::CLIENT).to_be()))?;
        bench.add_interest(Bit::to(u32::from(Bench::CLIENT).to_be()))?;
        let ask = Frame::udp(CLIENT, VIP);
        bench.expect_sent(&ask, &to_backend(ask.clone()))
    }
}
