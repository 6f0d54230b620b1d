//! One and two VLAN tags (IEEE 802.1Q, 802.1ad) of what comes in.

use super::*;

const CUSTOMER: [u16; 2] = [0x8100, 0x6064];
const SERVICE: [u16; 2] = [0x88a8, 0x0fff];
const ONE: [[u16; 2]; 1] = [CUSTOMER];
const STACKED: [[u16; 2]; 2] = [SERVICE, CUSTOMER];

/// A connection whose packets come in behind `tags`, and leave without.
fn popped(bench: &mut Bench, tags: &[[u16; 2]]) -> Result<()> {
    let backend = serve(bench, TCP)?;
    for (flags, reply) in [(tcp::SYN, false), (tcp::SYN | tcp::ACK, true), (tcp::ACK, false), (tcp::ACK, true)] {
        let payload = if flags == tcp::ACK { &b"odd"[..] } else { b"" };
        if reply {
            let frame = Frame::tcp(BACKEND, CLIENT, flags).payload(payload);
            bench.expect_sent(&frame.clone().tagged(tags), &to_client(frame))?;
        } else {
            let frame = Frame::tcp(CLIENT, VIP, flags).payload(payload);
            bench.expect_sent(&frame.clone().tagged(tags), &to_backend(frame))?;
        }
    }
    ensure!(states(bench)? == [State::Established, State::Established]);
    ensure!(bench.traffic(backend)?.bytes_in == 54 + 57, "tags are not counted");
    Ok(())
}

both_hooks! {
    fn one_tag_is_taken_off(bench: &mut Bench) -> Result<()> {
        popped(bench, &ONE)
    }

    fn a_service_tag_alone_is_taken_off(bench: &mut Bench) -> Result<()> {
        popped(bench, &[SERVICE])
    }

    fn a_priority_tag_is_taken_off(bench: &mut Bench) -> Result<()> {
        popped(bench, &[[0x8100, 0xe000]])
    }

    fn stacked_tags_are_taken_off(bench: &mut Bench) -> Result<()> {
        popped(bench, &STACKED)
    }

    fn two_customer_tags_are_taken_off(bench: &mut Bench) -> Result<()> {
        popped(bench, &[CUSTOMER, [0x8100, 1]])
    }

    fn tags_and_options_together(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        for tags in [&ONE[..], &STACKED] {
            let syn = Frame::tcp(CLIENT, VIP, tcp::SYN).ip_options(&[1; 40]);
            bench.expect_sent(&syn.clone().tagged(tags), &to_backend(syn))?;
        }
        Ok(())
    }

    fn tagged_fragments_follow_their_first_one(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[0xa5; 2000]);
        let sent = to_backend(ask.clone()).fragments(&[0, 1400]);
        for (fragment, expected) in ask.fragments(&[0, 1400]).into_iter().zip(&sent) {
            bench.expect_sent(&fragment.tagged(&ONE), expected)?;
        }
        Ok(())
    }

    fn what_is_not_ours_keeps_its_tags(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let other = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 80);
        for tags in [&ONE[..], &STACKED] {
            bench.expect_refused(&Frame::tcp(CLIENT, other, tcp::SYN).tagged(tags), Reason::NotOurs)?;
            bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::ACK).tagged(tags), Reason::NoFlow)?;
            let mut arp = Frame::udp(CLIENT, VIP).tagged(tags);
            arp.ethertype = 0x0806;
            bench.expect_refused(&arp, Reason::NotIpv4)?;
        }
        Ok(())
    }

    fn three_tags_are_the_stacks(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN).tagged(&[SERVICE, SERVICE, CUSTOMER]);
        bench.expect_refused(&syn, Reason::NotIpv4)
    }

    fn a_tagged_last_hop_is_the_stacks_with_its_tag(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let mut ask = Frame::udp(CLIENT, VIP).payload(b"old");
        ask.ttl = 1;
        let outcome = bench.run(&ask.clone().tagged(&ONE))?;
        ensure!(outcome.verdict == Verdict::Pass);
        ensure!(outcome.bytes == ask.between(CLIENT, BACKEND).tagged(&ONE).bytes(), "{:02x?}", outcome.bytes);
        Ok(())
    }

    fn every_truncation_behind_tags_goes_up_unchanged(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let whole = Frame::tcp(CLIENT, VIP, tcp::SYN).tagged(&STACKED).bytes();
        for length in 34..whole.len() {
            let outcome = bench.run_bytes(&whole[..length])?;
            ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == whole[..length], "{length} bytes");
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }
}
