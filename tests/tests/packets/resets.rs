//! Connections that the router has ended: each side is reset when it sends next.

use super::*;

const ECHOED: [u32; 2] = [1, 2];

/// The frame of a reset with these numbers, from the address that the frame was sent to.
fn reset(to: &Frame, [sequence, acknowledgment]: [u32; 2], flags: u8) -> Vec<u8> {
    let Transport::Tcp { sport, dport, .. } = to.transport else { return Vec::new() };
    let addresses = [to.dst.octets(), to.src.octets()].concat();
    let mut ipv4 = [&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0], &addresses[..]].concat();
    let checksum = checksum(&ipv4);
    ipv4[10..12].copy_from_slice(&checksum);
    let ports = [dport.to_be_bytes(), sport.to_be_bytes()].concat();
    let numbers = [sequence.to_be_bytes(), acknowledgment.to_be_bytes()].concat();
    let mut segment = [&ports[..], &numbers, &[0x50, flags, 0, 0, 0, 0, 0, 0]].concat();
    let checksum = self::checksum(&[&addresses[..], &[0, TCP, 0, 20], &segment].concat());
    segment[16..18].copy_from_slice(&checksum);
    let tags: Vec<u8> = to.tags.iter().flatten().flat_map(|word| word.to_be_bytes()).collect();
    [&to.src_mac[..], &to.dst_mac, &tags, &[8, 0], &ipv4, &segment].concat()
}

/// The checksum of RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    (!(sum % 0xffff) as u16).to_be_bytes()
}

/// Runs a frame that TC must answer with `expected`; XDP must leave it to TC.
fn expect_reset(bench: &mut Bench, frame: &Frame, expected: &[u8]) -> Result<()> {
    if bench.hook() == Hook::Xdp {
        return expect_left(bench, frame);
    }
    let before = bench.reason(Reason::FlowReset)?;
    let outcome = bench.run(frame)?;
    ensure!(outcome.verdict == Verdict::Redirect, "verdict {:?}", outcome.verdict);
    ensure!(outcome.bytes == expected, "sent      {:02x?}\nexpected  {expected:02x?}", outcome.bytes);
    ensure!(bench.reason(Reason::FlowReset)? == before + 1);
    Ok(())
}

/// Runs a frame that must not be answered, for this reason; XDP leaves that to the TC stage.
fn expect_unanswered(bench: &mut Bench, frame: &Frame, reason: Reason) -> Result<()> {
    match bench.hook() {
        Hook::Xdp => expect_left(bench, frame),
        Hook::Tc => bench.expect_refused(frame, reason),
    }
}

/// [`expect_reset`] for a segment with an acknowledgment.
fn expect_reset_of(bench: &mut Bench, frame: &Frame) -> Result<()> {
    expect_reset(bench, frame, &reset(frame, [ECHOED[1], 0], tcp::RST))
}

both_hooks! {
    fn both_sides_of_an_ended_connection_are_reset_as_often_as_they_send(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        bench.end_flows(backend)?;
        for _ in 0..2 {
            expect_reset_of(bench, &Frame::tcp(BACKEND, CLIENT, tcp::ACK))?;
            expect_reset_of(bench, &Frame::tcp(CLIENT, VIP, tcp::ACK | tcp::PSH).payload(b"GET /"))?;
            expect_reset_of(bench, &Frame::tcp(BACKEND, CLIENT, tcp::FIN | tcp::ACK).payload(&[7; 1400]))?;
        }
        ensure!(bench.load(backend)? == 0);
        // The next connection from that port is a new one.
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        bench.expect_sent(&syn, &to_backend(syn.clone()))?;
        ensure!(states(bench)? == [State::Opening; 2] && bench.load(backend)? == 1);
        Ok(())
    }

    fn a_segment_without_an_acknowledgment_is_acknowledged(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        bench.end_flows(backend)?;
        let last = ECHOED[0];
        for (flags, payload, next) in [(0, &b""[..], last), (tcp::FIN, b"bye", last + 4), (tcp::SYN | tcp::FIN, b"", last + 2)] {
            let frame = Frame::tcp(BACKEND, CLIENT, flags).payload(payload);
            expect_reset(bench, &frame, &reset(&frame, [0, next], tcp::RST | tcp::ACK))?;
        }
        Ok(())
    }

    fn a_reset_is_not_answered(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        bench.end_flows(backend)?;
        bench.expect_refused(&Frame::tcp(BACKEND, CLIENT, tcp::RST | tcp::ACK), Reason::FlowEnded)?;
        ensure!(bench.reason(Reason::FlowReset)? == 0);
        Ok(())
    }

    fn options_and_tags_do_not_matter(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        bench.end_flows(backend)?;
        let frame = Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(b"data");
        expect_reset_of(bench, &frame.clone().ip_options(&[1; 40]))?;
        let mut timed = frame.clone();
        if let Transport::Tcp { options, .. } = &mut timed.transport {
            options.extend([1; 40]);
        }
        expect_reset_of(bench, &timed)?;
        expect_reset_of(bench, &timed.ip_options(&[1, 1, 1, 0]))
    }

    fn a_later_fragment_is_not_answered(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        let fragments = Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(&[7; 1000]).fragments(&[0, 512]);
        bench.run(&fragments[0])?;
        bench.end_flows(backend)?;
        let whole = Frame::tcp(BACKEND, CLIENT, tcp::ACK);
        expect_reset(bench, &fragments[0], &reset(&whole, [ECHOED[1], 0], tcp::RST))?;
        expect_unanswered(bench, &fragments[1], Reason::FlowEnded)
    }

    fn a_segment_for_another_router_is_not_answered(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        bench.end_flows(backend)?;
        bench.arrive_by("pub0")?;
        let mut flooded = Frame::tcp(CLIENT, VIP, tcp::ACK);
        flooded.dst_mac = [0x02, 0, 0, 0, 1, 0x77];
        expect_unanswered(bench, &flooded, Reason::OtherHost)
    }

    // Its flow is gone, for example because it was idle for too long, or because another one needed its slot.
    fn a_guest_whose_connection_is_no_longer_known_is_reset(bench: &mut Bench) -> Result<()> {
        let guest = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 40_000);
        let server = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 20), 443);
        bench.masquerade(Bench::VIP, false)?;
        for flags in [tcp::ACK, tcp::ACK | tcp::PSH, tcp::FIN | tcp::ACK, tcp::SYN | tcp::ACK] {
            expect_reset_of(bench, &Frame::tcp(guest, server, flags))?;
        }
        ensure!(bench.flows()?.is_empty());
        // A direct client of the guest's own address gets its answers.
        bench.expect_refused(&Frame::tcp(server, guest, tcp::SYN), Reason::NotOurs)?;
        bench.expect_refused(&Frame::tcp(guest, server, tcp::SYN | tcp::ACK), Reason::NotOurs)
    }

    fn a_guests_own_connection_is_reset_both_ways_when_its_source_nat_goes(bench: &mut Bench) -> Result<()> {
        let guest = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 40_000);
        let server = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 20), 443);
        let vip = SocketAddrV4::new(Bench::VIP, 40_000);
        let number = bench.masquerade(Bench::VIP, false)?;
        for (from, to, flags) in
            [(guest, server, tcp::SYN), (server, vip, tcp::SYN | tcp::ACK), (guest, server, tcp::ACK)]
        {
            ensure!(bench.run(&Frame::tcp(from, to, flags))?.verdict == Verdict::Redirect);
        }
        bench.remove_source(Ipv4Addr::new(10, 2, 0, 0), 24)?;
        bench.end_flows(number)?;
        expect_reset_of(bench, &Frame::tcp(guest, server, tcp::ACK).payload(b"more"))?;
        expect_reset_of(bench, &Frame::tcp(server, vip, tcp::ACK).payload(b"more"))
    }
}

#[test]
fn a_gso_packet_is_answered_by_one_frame() -> Result<()> {
    let mut bench = Bench::new(Hook::Tc)?;
    let backend = serve(&mut bench, TCP)?;
    establish(&mut bench)?;
    bench.end_flows(backend)?;
    bench.set_segments(2, 700);
    expect_reset_of(&mut bench, &Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(&[7; 1400]))
}
