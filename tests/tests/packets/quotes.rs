//! What ICMP errors may and may not quote.

use super::*;

/// The address that answers go to, and that errors about them come from: there is no router in between.
const RECEIVER: Ipv4Addr = Bench::CLIENT;

/// An answer as its backend sent it, and as the client received it.
fn answer(payload: &[u8]) -> (Frame, Frame) {
    let answer = Frame::udp(BACKEND, CLIENT).payload(payload);
    let delivered = answer.clone().between(VIP, CLIENT);
    (answer, delivered)
}

/// The error about an answer as it comes in, and as it is forwarded.
fn about(sent: &Frame, delivered: &Frame, kind: [u8; 2], rest: u32, length: usize) -> (Frame, Frame) {
    let error = Frame::icmp_error(RECEIVER, Bench::VIP, kind, rest, delivered, length);
    let restored = Frame::icmp_error(RECEIVER, *BACKEND.ip(), kind, rest, sent, length);
    (error, restored)
}

fn to_private(frame: Frame) -> Frame {
    frame.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11))
}

/// Opens a flow by a client's datagram.
fn asked(bench: &mut Bench) -> Result<u32> {
    let backend = serve(bench, UDP)?;
    bench.run(&Frame::udp(CLIENT, VIP))?;
    Ok(backend)
}

both_hooks! {
    fn every_code_of_an_error_reaches_the_sender(bench: &mut Bench) -> Result<()> {
        asked(bench)?;
        let (sent, delivered) = answer(b"x");
        let unreachable = (0..=15).map(|code| [3, code]);
        for kind in unreachable.chain([[11, 0], [11, 1], [12, 0], [12, 1], [12, 2]]) {
            let (error, restored) = about(&sent, &delivered, kind, 0, 28);
            bench.expect_sent(&error, &to_private(restored))?;
        }
        Ok(())
    }

    fn the_stack_gets_icmp_messages_that_quote_but_are_not_errors(bench: &mut Bench) -> Result<()> {
        asked(bench)?;
        let (sent, delivered) = answer(b"x");
        // Source quench (deprecated by RFC 6633), redirect, and other messages.
        for kind in [[4, 0], [5, 0], [5, 3], [9, 0], [10, 0], [30, 0], [255, 0]] {
            let (error, _) = about(&sent, &delivered, kind, 0, 28);
            bench.expect_refused(&error, Reason::OtherProtocol)?;
        }
        Ok(())
    }

    fn a_quoted_datagram_without_checksum_leaves_without_one(bench: &mut Bench) -> Result<()> {
        asked(bench)?;
        let (mut sent, mut delivered) = answer(b"none");
        for frame in [&mut sent, &mut delivered] {
            if let Transport::Udp { checksum, .. } = &mut frame.transport {
                *checksum = false;
            }
        }
        for length in [28, 32] {
            let (error, restored) = about(&sent, &delivered, [3, 3], 0, length);
            bench.expect_sent(&error, &to_private(restored))?;
        }
        Ok(())
    }

    fn quotes_of_every_length_keep_correct_checksums(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        let sent = Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(&[0xc3; 30]);
        let delivered = sent.clone().between(VIP, CLIENT);
        // A quote of 37 bytes has half a checksum, which cannot be checked.
        for length in (28..37).chain(38..=70) {
            let (error, restored) = about(&sent, &delivered, [11, 0], 0, length);
            bench.expect_sent(&error, &to_private(restored)).with_context(|| format!("{length} bytes quoted"))?;
        }
        Ok(())
    }

    fn a_quoted_first_fragment_is_restored(bench: &mut Bench) -> Result<()> {
        asked(bench)?;
        let (sent, delivered) = answer(&[9; 2000]);
        let (sent, delivered) = (sent.fragments(&[0, 1480]), delivered.fragments(&[0, 1480]));
        // Reassembly took too long (RFC 792).
        let (error, restored) = about(&sent[0], &delivered[0], [11, 1], 0, 60);
        bench.expect_sent(&error, &to_private(restored))?;
        let (error, _) = about(&sent[1], &delivered[1], [11, 1], 0, 60);
        bench.expect_refused(&error, Reason::OtherProtocol)
    }

    fn an_errors_own_header_is_kept(bench: &mut Bench) -> Result<()> {
        asked(bench)?;
        let (sent, delivered) = answer(b"x");
        let (error, restored) = about(&sent, &delivered, [3, 4], 1280, 29);
        let header = |frame: Frame| Frame { tos: 0xc0, id: 0xbeef, fragment: 0, ttl: 2, ..frame };
        bench.expect_sent(&header(error), &to_private(header(restored)))
    }

    fn an_errors_last_hop_ends_at_the_stack(bench: &mut Bench) -> Result<()> {
        asked(bench)?;
        let (sent, delivered) = answer(b"x");
        let (error, restored) = about(&sent, &delivered, [3, 1], 0, 28);
        expect_handed_over(bench, &Frame { ttl: 1, ..error }, &Frame { ttl: 1, ..restored }, Reason::TtlExpired)
    }

    fn the_stack_sends_an_error_by_an_interface_that_takes_no_frames(bench: &mut Bench) -> Result<()> {
        asked(bench)?;
        bench.set_sockets_only(2)?;
        let (sent, delivered) = answer(b"x");
        let (error, restored) = about(&sent, &delivered, [3, 1], 0, 28);
        match bench.hook() {
            Hook::Xdp => expect_handed_over(bench, &error, &restored, Reason::NoNeighbour),
            Hook::Tc => bench.expect_sent(&error, &to_private(restored)),
        }
    }

    fn an_errors_own_options_are_kept(bench: &mut Bench) -> Result<()> {
        asked(bench)?;
        let (sent, delivered) = answer(b"x");
        let (error, restored) = about(&sent, &delivered, [3, 1], 0, 28);
        for words in 1..=10 {
            let options = vec![1; words * 4];
            let (error, restored) = (error.clone().ip_options(&options), restored.clone().ip_options(&options));
            bench.expect_sent(&error, &to_private(restored))?;
        }
        Ok(())
    }

    fn a_quoted_answers_options_are_kept(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        for words in 1..=10 {
            let sent = Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(&[0xc3; 30]).ip_options(&vec![1; words * 4]);
            let delivered = sent.clone().between(VIP, CLIENT);
            let shortest = 28 + words * 4;
            // As in `quotes_of_every_length_keep_correct_checksums`.
            for length in (shortest..shortest + 9).chain(shortest + 10..=shortest + 42) {
                let (error, restored) = about(&sent, &delivered, [3, 4], 1280, length);
                bench.expect_sent(&error, &to_private(restored)).with_context(|| format!("{length} bytes quoted"))?;
            }
        }
        Ok(())
    }

    fn a_quoted_requests_options_are_kept(bench: &mut Bench) -> Result<()> {
        asked(bench)?;
        for words in 1..=10 {
            let ask = Frame::udp(CLIENT, VIP).payload(b"anybody?").ip_options(&vec![1; words * 4]);
            let arrived = ask.clone().between(CLIENT, BACKEND);
            for length in [28 + words * 4, 36 + words * 4] {
                let error = Frame::icmp_error(*BACKEND.ip(), Bench::CLIENT, [3, 3], 0, &arrived, length);
                let restored = Frame::icmp_error(Bench::VIP, Bench::CLIENT, [3, 3], 0, &ask, length);
                bench.expect_sent(&error, &restored.forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10)))?;
            }
        }
        Ok(())
    }

    // A host answers a packet with a record route or a source route with the same option (RFC 1122, section 3.2.2.6).
    fn options_of_an_error_and_of_its_quote_are_kept_behind_a_tag(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        let sent = Frame::tcp(BACKEND, CLIENT, tcp::ACK).ip_options(&[1; 40]);
        let delivered = sent.clone().between(VIP, CLIENT);
        for tags in [&[][..], &[[0x8100, 0xe000]], &[[0x88a8, 0x1000]]] {
            for length in [68, 80] {
                let (error, restored) = about(&sent, &delivered, [11, 0], 0, length);
                let options = [&[7, 39, 4][..], &[0; 37]].concat();
                let (error, restored) = (error.ip_options(&options), restored.ip_options(&options));
                bench.expect_sent(&error.tagged(tags), &to_private(restored))?;
            }
        }
        Ok(())
    }

    fn the_stacks_own_errors_get_restored_options_too(bench: &mut Bench) -> Result<()> {
        asked(bench)?;
        let ask = Frame::udp(CLIENT, VIP).payload(b"too large").ip_options(&[1; 12]);
        let translated = ask.clone().between(CLIENT, BACKEND);
        let own = Ipv4Addr::new(10, 1, 0, 1);
        for options in [&[][..], &[1; 12]] {
            for length in [40, 49] {
                let error = |quoted| Frame::icmp_error(own, Bench::CLIENT, [3, 4], 1400, quoted, length);
                let left = bench.run_egress(&error(&translated).ip_options(options))?;
                ensure!(left == error(&ask).ip_options(options).bytes(), "{length} bytes quoted: {left:02x?}");
            }
        }
        Ok(())
    }

    fn the_stack_gets_a_quote_that_is_cut_within_its_options(bench: &mut Bench) -> Result<()> {
        asked(bench)?;
        let (sent, delivered) = answer(b"x");
        let options = |frame: &Frame| frame.clone().ip_options(&[1; 16]);
        for length in 20..44 {
            let (error, _) = about(&options(&sent), &options(&delivered), [3, 1], 0, length);
            bench.expect_refused(&error, Reason::OtherProtocol)?;
        }
        // Headers shorter than allowed.
        for version_ihl in [0x40, 0x44, 0x55, 0x65] {
            let short = |frame: &Frame| Frame { version_ihl: Some(version_ihl), ..frame.clone() };
            let (error, _) = about(&short(&sent), &short(&delivered), [3, 1], 0, 29);
            bench.expect_refused(&error, Reason::OtherProtocol)?;
        }
        Ok(())
    }

    fn an_error_about_an_ended_flow_is_not_ours(bench: &mut Bench) -> Result<()> {
        let backend = asked(bench)?;
        bench.end_flows(backend)?;
        let (sent, delivered) = answer(b"x");
        let (error, _) = about(&sent, &delivered, [3, 1], 0, 28);
        bench.expect_refused(&error, Reason::OtherProtocol)
    }

    fn an_error_about_another_protocol_of_a_flows_ports_is_not_ours(bench: &mut Bench) -> Result<()> {
        asked(bench)?;
        let quoted = Frame::tcp(VIP, CLIENT, tcp::ACK);
        bench.expect_refused(&Frame::icmp_error(RECEIVER, Bench::VIP, [3, 1], 0, &quoted, 40), Reason::OtherProtocol)?;
        let quoted = Frame::other(Bench::VIP, Bench::CLIENT, 132).payload(&Frame::udp(VIP, CLIENT).bytes()[34..]);
        bench.expect_refused(&Frame::icmp_error(RECEIVER, Bench::VIP, [3, 2], 0, &quoted, 28), Reason::OtherProtocol)
    }

    fn every_truncation_of_an_error_is_passed_up_unchanged(bench: &mut Bench) -> Result<()> {
        asked(bench)?;
        let (sent, delivered) = answer(b"x");
        let whole = about(&sent, &delivered, [3, 1], 0, 29).0.bytes();
        for length in 34..whole.len() {
            let outcome = bench.run_bytes(&whole[..length])?;
            ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == whole[..length], "{length} bytes");
        }
        let options = |frame: &Frame| frame.clone().ip_options(&[1; 40]);
        let whole = options(&about(&options(&sent), &options(&delivered), [3, 1], 0, 69).0).bytes();
        for length in 74..whole.len() {
            let outcome = bench.run_bytes(&whole[..length])?;
            ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == whole[..length], "{length} bytes");
        }
        Ok(())
    }

    fn a_closed_port_of_a_backend_is_reported_by_the_vip_over_tcp_too(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        bench.run(&syn)?;
        let arrived = syn.clone().between(CLIENT, BACKEND);
        // Firewalls refuse like this: communication administratively prohibited.
        let error = Frame::icmp_error(*BACKEND.ip(), Bench::CLIENT, [3, 13], 0, &arrived, 40);
        let restored = Frame::icmp_error(Bench::VIP, Bench::CLIENT, [3, 13], 0, &syn, 40);
        bench.expect_sent(&error, &restored.forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10)))?;
        // The client's TCP decides what that means.
        ensure!(states(bench)? == [State::Opening, State::Opening]);
        Ok(())
    }
}
