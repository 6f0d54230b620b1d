//! VLAN tags of incoming frames (IEEE 802.1Q, 802.1ad): a priority tag is removed, a VLAN's frames go to the stack.

use super::*;

const CUSTOMER: [u16; 2] = [0x8100, 0x6064];
const SERVICE: [u16; 2] = [0x88a8, 0x0fff];
/// A VLAN ID of no VLAN.
const PRIORITY: [u16; 2] = [0x8100, 0xe000];

/// A connection whose packets come in with a tag, and leave without one.
fn popped(bench: &mut Bench, tag: [u16; 2]) -> Result<()> {
    let backend = serve(bench, TCP)?;
    for (flags, reply) in [(tcp::SYN, false), (tcp::SYN | tcp::ACK, true), (tcp::ACK, false), (tcp::ACK, true)] {
        let payload = if flags == tcp::ACK { &b"odd"[..] } else { b"" };
        if reply {
            let frame = Frame::tcp(BACKEND, CLIENT, flags).payload(payload);
            bench.expect_sent(&frame.clone().tagged(&[tag]), &to_client(frame))?;
        } else {
            let frame = Frame::tcp(CLIENT, VIP, flags).payload(payload);
            bench.expect_sent(&frame.clone().tagged(&[tag]), &to_backend(frame))?;
        }
    }
    ensure!(states(bench)? == [State::Established, State::Established]);
    ensure!(bench.traffic(backend)?.bytes_in == 54 + 57, "tags are not counted");
    Ok(())
}

both_hooks! {
    fn a_priority_tag_is_removed(bench: &mut Bench) -> Result<()> {
        popped(bench, PRIORITY)
    }

    fn a_service_priority_tag_is_removed(bench: &mut Bench) -> Result<()> {
        popped(bench, [0x88a8, 0x1000])
    }

    fn the_stack_gets_frames_of_a_vlan(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        bench.masquerade(Bench::VIP, true)?;
        bench.elastic(Ipv4Addr::new(10, 1, 0, 101), *BACKEND.ip(), true)?;
        let server = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 443);
        let tags: [&[[u16; 2]]; 8] = [
            &[CUSTOMER],
            &[SERVICE],
            &[[0x8100, 1]],
            &[SERVICE, CUSTOMER],
            &[CUSTOMER, [0x8100, 1]],
            &[PRIORITY, CUSTOMER],
            &[CUSTOMER, PRIORITY],
            &[SERVICE, SERVICE, CUSTOMER],
        ];
        exchange(bench, &[(Side::Client, tcp::SYN)])?;
        let flows = bench.flows()?.len();
        for tags in tags {
            let frames = [
                Frame::tcp(CLIENT, VIP, tcp::SYN),
                Frame::tcp(BACKEND, CLIENT, tcp::SYN | tcp::ACK),
                Frame::tcp(SocketAddrV4::new(Bench::CLIENT, 40_009), VIP, tcp::SYN).ip_options(&[1; 40]),
                Frame::udp(SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 12), 40_000), server),
                Frame::icmp_query(*BACKEND.ip(), *server.ip(), 8, 1, b"ping"),
            ];
            for frame in frames {
                bench.expect_refused(&frame.tagged(tags), Reason::Tagged)?;
            }
            ensure!(states(bench)? == [State::Opening; 2] && bench.flows()?.len() == flows);
        }
        Ok(())
    }

    fn a_priority_tag_and_options_may_come_together(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN).ip_options(&[1; 40]);
        bench.expect_sent(&syn.clone().tagged(&[PRIORITY]), &to_backend(syn))
    }

    fn tagged_fragments_follow_their_first_one(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[0xa5; 2000]);
        let sent = to_backend(ask.clone()).fragments(&[0, 1400]);
        for (fragment, expected) in ask.fragments(&[0, 1400]).into_iter().zip(&sent) {
            bench.expect_sent(&fragment.tagged(&[PRIORITY]), expected)?;
        }
        Ok(())
    }

    fn other_traffic_keeps_its_tag(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let other = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 80);
        bench.expect_refused(&Frame::tcp(CLIENT, other, tcp::SYN).tagged(&[PRIORITY]), Reason::NotOurs)?;
        bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::ACK).tagged(&[PRIORITY]), Reason::NoFlow)?;
        let mut arp = Frame::udp(CLIENT, VIP).tagged(&[PRIORITY]);
        arp.ethertype = 0x0806;
        bench.expect_refused(&arp, Reason::NotIpv4)
    }

    fn the_stack_gets_a_tagged_packet_whose_ttl_ends_with_its_tag(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let mut ask = Frame::udp(CLIENT, VIP).payload(b"old");
        ask.ttl = 1;
        let outcome = bench.run(&ask.clone().tagged(&[PRIORITY]))?;
        ensure!(outcome.verdict == Verdict::Pass);
        ensure!(outcome.bytes == ask.between(CLIENT, BACKEND).tagged(&[PRIORITY]).bytes(), "{:02x?}", outcome.bytes);
        Ok(())
    }

    fn every_truncation_after_a_tag_is_passed_up_unchanged(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let whole = Frame::tcp(CLIENT, VIP, tcp::SYN).tagged(&[PRIORITY]).bytes();
        for length in 34..whole.len() {
            let outcome = bench.run_bytes(&whole[..length])?;
            ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == whole[..length], "{length} bytes");
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }
}
