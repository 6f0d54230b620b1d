//! Checksums at the edges of one's complement arithmetic (RFC 1071, RFC 1624).

use super::*;

/// Protocols whose checksum covers the addresses, and whose ports the router does not read.
const DCCP: u8 = 33;
const UDP_LITE: u8 = 136;
const GUEST: Ipv4Addr = *BACKEND.ip();

/// Offsets in a frame without options.
const IP: usize = 24;
const TCP_AT: usize = 50;
const UDP_AT: usize = 40;

/// Two bytes of a frame.
fn field(frame: &Frame, at: usize) -> [u8; 2] {
    let bytes = frame.bytes();
    [bytes[at], bytes[at + 1]]
}

/// Runs the frame that `make` builds from the first number for which `wanted` holds, given the frame before and after the router.
fn find(
    bench: &mut Bench,
    make: impl Fn(u16) -> Frame,
    translate: impl Fn(Frame) -> Frame,
    wanted: impl Fn(&Frame, &Frame) -> bool,
) -> Result<()> {
    let found = (0..=u16::MAX).map(|number| {
        let frame = make(number);
        let translated = translate(frame.clone());
        (frame, translated)
    });
    let (frame, translated) = found
        .into_iter()
        .find(|(frame, translated)| wanted(frame, translated))
        .context("no number gives this checksum")?;
    bench.expect_sent(&frame, &translated)
}

fn numbered_header(id: u16) -> Frame {
    Frame { id, ..Frame::udp(CLIENT, VIP).payload(b"header") }
}

fn numbered_segment(number: u16) -> Frame {
    Frame::tcp(CLIENT, VIP, tcp::ACK).payload(&number.to_be_bytes())
}

fn numbered_answer(number: u16) -> Frame {
    Frame::udp(BACKEND, CLIENT).payload(&number.to_be_bytes())
}

fn to_guest(frame: Frame) -> Frame {
    frame.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11))
}

/// One's complement sum.
fn add(field: [u8; 2], more: u16) -> [u8; 2] {
    let (sum, carry) = u16::from_be_bytes(field).overflowing_add(more);
    (sum + u16::from(carry)).to_be_bytes()
}

/// Runs a frame whose transport checksum at `at` is wrong: the checksum must leave equally wrong.
fn damaged(bench: &mut Bench, frame: &Frame, expected: &Frame, at: usize) -> Result<()> {
    const WRONG_BY: u16 = 0x0101;
    let (mut bytes, mut expected) = (frame.bytes(), expected.bytes());
    for bytes in [&mut bytes, &mut expected] {
        let wrong = add([bytes[at], bytes[at + 1]], WRONG_BY);
        bytes[at..at + 2].copy_from_slice(&wrong);
    }
    let outcome = bench.run_bytes(&bytes)?;
    ensure!(outcome.verdict == Verdict::Redirect && outcome.bytes == expected, "{:02x?}", outcome.bytes);
    Ok(())
}

both_hooks! {
    fn a_header_checksum_of_zero_is_updated(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        find(bench, numbered_header, to_backend, |came, _| field(came, IP) == [0, 0])
    }

    fn a_header_checksum_becomes_zero(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        find(bench, numbered_header, to_backend, |_, left| field(left, IP) == [0, 0])
    }

    fn a_header_checksum_just_below_the_carry_is_updated(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        find(bench, numbered_header, to_backend, |came, _| field(came, IP) == [0xff, 0xfe])
    }

    fn a_segments_checksum_of_zero_is_updated(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        find(bench, numbered_segment, to_backend, |came, _| field(came, TCP_AT) == [0, 0])
    }

    fn a_segments_checksum_becomes_zero_and_stays_so(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        find(bench, numbered_segment, to_backend, |_, left| field(left, TCP_AT) == [0, 0])
    }

    fn a_datagrams_checksum_of_ffff_is_updated(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = |number: u16| Frame::udp(CLIENT, VIP).payload(&number.to_be_bytes());
        find(bench, ask, to_backend, |came, _| field(came, UDP_AT) == [0xff, 0xff])
    }

    fn an_answers_checksum_that_becomes_zero_is_sent_as_ffff(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        bench.run(&Frame::udp(CLIENT, VIP))?;
        find(bench, numbered_answer, to_client, |_, left| field(left, UDP_AT) == [0xff, 0xff])
    }

    fn an_answer_without_checksum_leaves_without_one(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        bench.run(&Frame::udp(CLIENT, VIP))?;
        let mut answer = Frame::udp(BACKEND, CLIENT).payload(b"odd");
        answer.transport = Transport::Udp { sport: BACKEND.port(), dport: CLIENT.port(), checksum: false };
        bench.expect_sent(&answer, &to_client(answer.clone()))
    }

    // Then only the addresses change the sum.
    fn a_backend_on_the_listeners_port_gets_correct_checksums(bench: &mut Bench) -> Result<()> {
        let backend = SocketAddrV4::new(*BACKEND.ip(), VIP.port());
        bench.serve(VIP, TCP, Algorithm::RoundRobin, &[backend])?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN).payload(b"odd");
        let expected = syn.clone().between(CLIENT, backend).forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11));
        bench.expect_sent(&syn, &expected)?;
        let answer = Frame::tcp(backend, CLIENT, tcp::SYN | tcp::ACK);
        bench.expect_sent(&answer, &to_client(answer.clone()))
    }

    fn a_damaged_segment_leaves_equally_damaged(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(b"flipped");
        damaged(bench, &data, &to_backend(data.clone()), TCP_AT)
    }

    fn a_damaged_datagram_leaves_equally_damaged(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(b"flipped");
        damaged(bench, &ask, &to_backend(ask.clone()), UDP_AT)
    }

    fn a_damaged_header_leaves_equally_damaged(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(b"flipped");
        damaged(bench, &ask, &to_backend(ask.clone()), IP)
    }

    fn checksums_of_other_protocols_that_cover_the_addresses_are_updated(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        for protocol in [DCCP, UDP_LITE] {
            for data in [&b""[..], b"odd", &[0x5a; 1000]] {
                let of = |src, dst| Frame::covering_addresses(src, dst, protocol, data);
                bench.expect_sent(&of(Bench::CLIENT, Bench::VIP), &to_guest(of(Bench::CLIENT, GUEST)))?;
                let seen = of(Bench::VIP, Bench::CLIENT).forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10));
                bench.expect_sent(&of(GUEST, Bench::CLIENT), &seen)?;
                let odd = |frame: Frame| frame.ip_options(&[1, 1, 1, 0]);
                let ask = odd(of(Bench::CLIENT, Bench::VIP)).tagged(&[[0x8100, 0xe000]]);
                bench.expect_sent(&ask, &to_guest(odd(of(Bench::CLIENT, GUEST))))?;
            }
            // Only a packet's first fragment has the checksum.
            let [ask, sent] = [Bench::VIP, GUEST].map(|dst| Frame::covering_addresses(Bench::CLIENT, dst, protocol, &[9; 2000]));
            for (fragment, sent) in ask.fragments(&[0, 1480]).iter().zip(sent.fragments(&[0, 1480])) {
                bench.expect_sent(fragment, &to_guest(sent))?;
            }
            // A packet that is cut short has none.
            let of = |dst| Frame::other(Bench::CLIENT, dst, protocol).payload(&[1; 7]);
            bench.expect_sent(&of(Bench::VIP), &to_guest(of(GUEST)))?;
        }
        Ok(())
    }

    fn a_checksum_that_becomes_zero_is_sent_as_ffff_only_if_zero_means_none(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        for (protocol, left_as) in [(DCCP, [0, 0]), (UDP_LITE, [0xff, 0xff])] {
            let ask = |number: u16| Frame::covering_addresses(Bench::CLIENT, Bench::VIP, protocol, &number.to_be_bytes());
            let answered = |frame: Frame| {
                let data = frame.payload[8..].to_vec();
                to_guest(Frame::covering_addresses(Bench::CLIENT, GUEST, protocol, &data))
            };
            find(bench, ask, answered, |_, left| field(left, UDP_AT) == left_as)?;
        }
        Ok(())
    }

    fn a_quoted_checksum_that_covers_the_addresses_is_restored(bench: &mut Bench) -> Result<()> {
        bench.elastic(Bench::VIP, GUEST, true)?;
        for protocol in [DCCP, UDP_LITE] {
            let of = |src| Frame::covering_addresses(src, Bench::CLIENT, protocol, b"quoted");
            bench.run(&of(GUEST))?;
            let error = |dst, quoted| Frame::icmp_error(Bench::CLIENT, dst, [3, 4], 1400, &quoted, 28);
            bench.expect_sent(&error(Bench::VIP, of(Bench::VIP)), &to_guest(error(GUEST, of(GUEST))))?;
        }
        Ok(())
    }
}
