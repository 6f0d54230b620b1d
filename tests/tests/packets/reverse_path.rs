//! Strict reverse-path filtering: a device accepts only sources that the kernel would route by it.

use super::*;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 12);
/// Sources in the guests' network, and in the third device's.
const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 77);
const THIRD: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 77);
const ELASTIC: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 101);
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 443);

/// Adds a third device; returns the addresses of [`super::doors`].
fn doors(bench: &mut Bench) -> Result<[SocketAddrV4; 3]> {
    third(bench)?;
    super::doors(bench, ELASTIC, GUEST)
}

/// Devices, each with a source that the kernel routes by another one.
const FORGED: [([u8; 6], Ipv4Addr); 6] = [
    (Bench::PRIVATE_MAC, Bench::CLIENT),
    (Bench::PRIVATE_MAC, *SERVER.ip()),
    (Bench::PRIVATE_MAC, THIRD),
    (Bench::PUBLIC_MAC, INSIDE),
    (Bench::PUBLIC_MAC, THIRD),
    (THIRD_MAC, INSIDE),
];

both_hooks! {
    fn a_strict_device_accepts_no_client_that_is_routed_by_another_one(bench: &mut Bench) -> Result<()> {
        let doors = doors(bench)?;
        for port in 1..=3 {
            bench.set_strict(port)?;
        }
        for (mac, source) in FORGED {
            for door in doors {
                let from = SocketAddrV4::new(source, 40_000);
                bench.expect_refused(&by(mac, Frame::udp(from, door)), Reason::ReversePath)?;
            }
            let ping = Frame::icmp_query(source, ELASTIC, 8, 1, b"ping");
            bench.expect_refused(&by(mac, ping), Reason::ReversePath)?;
            bench.expect_refused(&by(mac, Frame::other(source, ELASTIC, 47).payload(&[0; 40])), Reason::ReversePath)?;
        }
        ensure!(bench.flows()?.is_empty());
        let ask = Frame::udp(CLIENT, VIP);
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        let far = Frame::udp(SERVER, VIP);
        bench.expect_sent(&far, &to_backend(far.clone()))
    }

    fn a_device_that_is_not_strict_accepts_clients_that_are_routed_by_another_one(bench: &mut Bench) -> Result<()> {
        doors(bench)?;
        bench.set_strict(1)?;
        let ask = by(Bench::PRIVATE_MAC, Frame::udp(CLIENT, VIP));
        bench.expect_sent(&ask, &to_backend(ask.clone()))
    }

    fn a_strict_device_drops_other_traffic_that_is_routed_by_another_one(bench: &mut Bench) -> Result<()> {
        doors(bench)?;
        for port in 1..=3 {
            bench.set_strict(port)?;
        }
        for (mac, source) in FORGED {
            let from = SocketAddrV4::new(source, 40_000);
            for to in [SERVER, SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 30), 9), SocketAddrV4::new(Bench::VIP, 9)] {
                let frames = [
                    Frame::udp(from, to).payload(b"forged"),
                    Frame::tcp(from, to, tcp::ACK),
                    Frame::icmp_query(source, *to.ip(), 8, 1, b"ping"),
                    Frame::other(source, *to.ip(), 47).payload(&[0; 40]),
                    Frame::tcp(from, to, tcp::SYN).ip_options(&[1; 4]),
                    Frame { fragment: 8, ..Frame::udp(from, to).payload(b"forged") },
                ];
                for frame in frames {
                    bench.expect_refused(&by(mac, frame), Reason::ReversePath)?;
                }
            }
        }
        bench.expect_refused(&Frame::udp(CLIENT, SERVER), Reason::NotOurs)?;
        // A host without an address asks for one (DHCP).
        let nobody = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
        let ask = Frame::udp(nobody, SocketAddrV4::new(Ipv4Addr::BROADCAST, 67));
        for mac in [Bench::PUBLIC_MAC, Bench::PRIVATE_MAC] {
            bench.expect_refused(&by(mac, ask.clone()), Reason::NotOurs)?;
        }
        Ok(())
    }

    fn a_source_without_a_route_opens_nothing_and_goes_to_the_stack(bench: &mut Bench) -> Result<()> {
        doors(bench)?;
        bench.set_strict(1)?;
        command("ip route del default")?;
        bench.expect_refused(&Frame::udp(SERVER, VIP), Reason::ReversePath)?;
        ensure!(bench.flows()?.is_empty());
        // The stack drops it, too, as loose filtering does.
        let elsewhere = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 30), 9);
        bench.expect_refused(&Frame::udp(SERVER, elsewhere), Reason::NotOurs)
    }

    fn a_source_with_several_next_hops_may_come_by_any_of_them(bench: &mut Bench) -> Result<()> {
        doors(bench)?;
        for port in 1..=3 {
            bench.set_strict(port)?;
        }
        command("ip route del default")?;
        command("ip route add default nexthop via 10.1.0.254 dev pub0 nexthop via 10.3.0.254 dev third0")?;
        for host in 0..32 {
            let client = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, host), 40_000);
            for (mac, port) in [(Bench::PUBLIC_MAC, 40_000), (THIRD_MAC, 40_001)] {
                let ask = by(mac, Frame::udp(SocketAddrV4::new(*client.ip(), port), VIP));
                bench.expect_sent(&ask, &to_backend(ask.clone()))?;
            }
            let frame = by(Bench::PRIVATE_MAC, Frame::udp(client, VIP).payload(b"forged"));
            let other = frame.clone().between(SocketAddrV4::new(*client.ip(), 40_002), VIP);
            bench.expect_refused(&other, Reason::ReversePath)?;
        }
        // A next hop of another route, by the same devices, does not count.
        bench.expect_refused(&by(THIRD_MAC, Frame::udp(CLIENT, VIP)), Reason::ReversePath)?;
        let inside = Frame::udp(SocketAddrV4::new(INSIDE, 40_000), VIP);
        bench.expect_refused(&by(Bench::PUBLIC_MAC, inside), Reason::ReversePath)
    }

    fn a_guest_begins_only_by_its_own_device_if_that_is_strict(bench: &mut Bench) -> Result<()> {
        doors(bench)?;
        bench.masquerade(Bench::VIP, false)?;
        let ask = Frame::udp(SocketAddrV4::new(INSIDE, 40_000), SERVER);
        bench.set_strict(3)?;
        bench.expect_refused(&by(THIRD_MAC, ask.clone()), Reason::ReversePath)?;
        ensure!(bench.flows()?.is_empty());
        bench.set_strict(2)?;
        let vip = SocketAddrV4::new(Bench::VIP, 40_000);
        let sent = ask.clone().between(vip, SERVER).forwarded(Bench::PUBLIC_MAC, Bench::GATEWAY_MAC);
        bench.expect_sent(&ask, &sent)
    }

    fn an_error_comes_only_from_its_senders_side_if_that_is_strict(bench: &mut Bench) -> Result<()> {
        doors(bench)?;
        let client = SocketAddrV4::new(*SERVER.ip(), 40_000);
        let ask = Frame::udp(client, VIP);
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        let answer = Frame::udp(BACKEND, client);
        let seen = answer.clone().between(VIP, client);
        let error = |from| by(Bench::PUBLIC_MAC, Frame::icmp_error(from, Bench::VIP, [3, 4], 600, &seen, 28));
        let turned = |from| Frame::icmp_error(from, *BACKEND.ip(), [3, 4], 600, &answer, 28)
            .forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11));
        bench.expect_sent(&error(INSIDE), &turned(INSIDE))?;
        bench.set_strict(1)?;
        bench.expect_refused(&error(INSIDE), Reason::WrongSide)?;
        let hop = Ipv4Addr::new(198, 51, 100, 1);
        bench.expect_sent(&error(hop), &turned(hop))
    }
}
