//! One and two VLAN tags (IEEE 802.1Q, 802.1ad), coming in and going out.

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

/// The frame as a test run shows it leaving behind `tags`: a socket buffer has the outer one beside its bytes, where the
/// kernel keeps it until the device sends.
fn behind(bench: &Bench, frame: Frame, tags: &[[u16; 2]]) -> Frame {
    let beside = if bench.hook() == Hook::Tc { 1 } else { 0 };
    frame.tagged(tags.get(beside..).unwrap_or_default())
}

/// Datagrams that come in behind the first tags, and leave behind the second.
fn retagged(bench: &mut Bench, come: &[[u16; 2]], leave: &[[u16; 2]]) -> Result<()> {
    serve(bench, UDP)?;
    bench.set_tags(1, leave)?;
    bench.set_tags(2, leave)?;
    for length in [0, 1, 46, 1400] {
        let ask = Frame::udp(CLIENT, VIP).payload(&vec![7; length]);
        let expected = behind(bench, to_backend(ask.clone()), leave);
        bench.expect_sent(&ask.tagged(come), &expected)?;
        let answer = Frame::udp(BACKEND, CLIENT).payload(&vec![8; length]);
        let expected = behind(bench, to_client(answer.clone()), leave);
        bench.expect_sent(&answer.tagged(come), &expected)?;
    }
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

    fn a_port_adds_its_tag(bench: &mut Bench) -> Result<()> {
        retagged(bench, &[], &ONE)
    }

    fn a_port_adds_both_its_tags(bench: &mut Bench) -> Result<()> {
        retagged(bench, &[], &STACKED)
    }

    fn a_tag_becomes_another(bench: &mut Bench) -> Result<()> {
        retagged(bench, &ONE, &[[0x8100, 0x0001]])
    }

    fn a_tag_becomes_two(bench: &mut Bench) -> Result<()> {
        retagged(bench, &ONE, &STACKED)
    }

    fn two_tags_become_one(bench: &mut Bench) -> Result<()> {
        retagged(bench, &STACKED, &ONE)
    }

    fn two_tags_become_two_others(bench: &mut Bench) -> Result<()> {
        retagged(bench, &STACKED, &[[0x88a8, 5], [0x8100, 6]])
    }

    fn tags_and_options_together(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        bench.set_tags(2, &STACKED)?;
        for tags in [&ONE[..], &STACKED] {
            let syn = Frame::tcp(CLIENT, VIP, tcp::SYN).ip_options(&[1; 40]);
            let expected = behind(bench, to_backend(syn.clone()), &STACKED);
            bench.expect_sent(&syn.tagged(tags), &expected)?;
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

    fn an_error_about_an_answer_leaves_behind_the_ports_tag(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        bench.set_tags(2, &ONE)?;
        let answer = Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(&[9; 60]);
        let on_the_way = answer.clone().between(VIP, CLIENT);
        let error = Frame::icmp_error(Bench::CLIENT, Bench::VIP, [3, 4], 1400, &on_the_way, 68);
        let expected = Frame::icmp_error(Bench::CLIENT, *BACKEND.ip(), [3, 4], 1400, &answer, 68)
            .forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11));
        let expected = behind(bench, expected, &ONE);
        bench.expect_sent(&error, &expected)
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
