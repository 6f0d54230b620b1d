//! Bandwidth limits: which limit a packet counts against, what it costs, and what happens to it.

use vipgate_abi::{
    config::Config,
    meter::{Binding, INBOUND, Meter, Metered, OUTBOUND, Rate, class},
};

use super::*;

const LIMIT: u32 = 7;
const PORT_LIMIT: u32 = 9;
const UNLIMITED: Rate = Rate { multiplier: 0, tolerance: 0, congested: 0, fraction_bits: 0, queue: 0 };

/// A rate that lets this many bytes and the packet that exceeds them pass, and then nothing: its clock stands still.
fn bytes(bench: &mut Bench, bytes: u64) -> Result<Rate> {
    let config = bench.config()?;
    bench.set_config(Config { tick: 0, ..config })?;
    Ok(Rate { multiplier: 1 << 24, tolerance: bytes - 1, congested: bytes - 1, ..UNLIMITED })
}

/// A rate so slow that its queue does not shrink during the test.
fn queue(device: u32) -> Rate {
    Rate { multiplier: 1 << 46, tolerance: 1 << 40, congested: 1 << 33, fraction_bits: 0, queue: device }
}

fn meter(inbound: Rate, outbound: Rate) -> Meter {
    let mut meter = Meter::default();
    (meter.rates[INBOUND], meter.rates[OUTBOUND]) = (inbound, outbound);
    meter
}

/// Packets and bytes that passed, and those that were dropped.
fn counted(bench: &mut Bench, limit: u32, direction: usize) -> Result<[u64; 4]> {
    let Metered { passed_packets, passed_bytes, dropped_packets, dropped_bytes } =
        bench.metered(limit)?.directions[direction];
    Ok([passed_packets, passed_bytes, dropped_packets, dropped_bytes])
}

/// A datagram with this many bytes on the wire, from the client or from the backend.
fn ask(length: usize) -> Frame {
    Frame::udp(CLIENT, VIP).payload(&vec![1; length - 42])
}

fn answer(length: usize) -> Frame {
    Frame::udp(BACKEND, CLIENT).payload(&vec![1; length - 42])
}

both_hooks! {
    fn a_limit_counts_wire_bytes_and_drops_the_excess(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        let rate = bytes(bench, 1000)?;
        bench.set_meter(LIMIT, meter(rate, UNLIMITED))?;
        bench.bind(backend, Binding::new(LIMIT, false))?;
        // The first packet opens the flow, the others hit it.
        for length in [60, 400, 500, 300] {
            bench.expect_sent(&ask(length), &to_backend(ask(length)))?;
        }
        bench.expect_refused(&ask(60), Reason::OverLimit)?;
        bench.expect_refused(&ask(1514), Reason::OverLimit)?;
        ensure!(counted(bench, LIMIT, INBOUND)? == [4, 1260, 2, 1574], "{:?}", bench.metered(LIMIT)?);
        let traffic = bench.traffic(backend)?;
        ensure!((traffic.packets_in, traffic.bytes_in) == (4, 1260), "dropped packets are counted as forwarded: {traffic:?}");
        Ok(())
    }

    fn a_flow_with_much_traffic_is_dropped_before_one_with_little(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        let rate = Rate { congested: 5_000, ..bytes(bench, 10_000)? };
        bench.set_meter(LIMIT, meter(rate, UNLIMITED))?;
        bench.bind(backend, Binding::new(LIMIT, false))?;
        let ask = |port| Frame::udp(SocketAddrV4::new(*CLIENT.ip(), port), VIP).payload(&[1; 1000 - 42]);
        // Six packets until congestion, then two that count as this flow's: a third one would leave too little.
        for _ in 0..8 {
            bench.expect_sent(&ask(1000), &to_backend(ask(1000)))?;
        }
        bench.expect_refused(&ask(1000), Reason::OverLimit)?;
        bench.expect_sent(&ask(2000), &to_backend(ask(2000)))?;
        for port in [1000, 2000] {
            bench.expect_refused(&ask(port), Reason::OverLimit)?;
        }
        bench.expect_sent(&ask(3000), &to_backend(ask(3000)))?;
        ensure!(counted(bench, LIMIT, INBOUND)? == [10, 10_000, 3, 3000], "{:?}", bench.metered(LIMIT)?);
        Ok(())
    }

    fn only_the_limited_direction_is_limited(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        let rate = bytes(bench, 100)?;
        bench.set_meter(LIMIT, meter(UNLIMITED, rate))?;
        bench.bind(backend, Binding::new(LIMIT, false))?;
        for _ in 0..5 {
            bench.expect_sent(&ask(400), &to_backend(ask(400)))?;
        }
        bench.expect_sent(&answer(400), &to_client(answer(400)))?;
        bench.expect_refused(&answer(60), Reason::OverLimit)?;
        ensure!(counted(bench, LIMIT, INBOUND)? == [0; 4] && counted(bench, LIMIT, OUTBOUND)? == [1, 400, 1, 60]);
        Ok(())
    }

    fn a_limit_comes_and_goes_while_a_connection_is_open(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(&[1; 100]);
        bench.expect_sent(&data, &to_backend(data.clone()))?;
        let rate = bytes(bench, 1)?;
        bench.set_meter(LIMIT, meter(rate, UNLIMITED))?;
        bench.bind(backend, Binding::new(LIMIT, false))?;
        bench.expect_sent(&data, &to_backend(data.clone()))?;
        bench.expect_refused(&data, Reason::OverLimit)?;
        bench.bind(backend, Binding::default())?;
        bench.expect_sent(&data, &to_backend(data.clone()))?;
        ensure!(counted(bench, LIMIT, INBOUND)? == [1, 154, 1, 154]);
        Ok(())
    }

    fn traffic_of_a_port_with_its_own_limit_counts_only_against_that(bench: &mut Bench) -> Result<()> {
        let guest = Ipv4Addr::new(10, 2, 0, 11);
        let backend = bench.elastic(Bench::VIP, guest, true)?;
        let rate = bytes(bench, 1)?;
        bench.set_meter(LIMIT, meter(rate, rate))?;
        bench.set_meter(PORT_LIMIT, meter(rate, rate))?;
        bench.limit_port(VIP, PORT_LIMIT)?;
        bench.bind(backend, Binding::new(LIMIT, true))?;
        let other = SocketAddrV4::new(Bench::VIP, 81);
        for (frame, passes) in [(Frame::udp(CLIENT, VIP), true), (Frame::udp(CLIENT, other), true),
            (Frame::udp(CLIENT, VIP), false), (Frame::udp(CLIENT, other), false)] {
            let verdict = bench.run(&frame)?.verdict;
            ensure!((verdict == Verdict::Redirect) == passes, "{verdict:?} for {frame:?}");
        }
        // Traffic that leaves by the VIP's port counts against the port's limit, whichever side began.
        let leaving = |port| Frame::udp(SocketAddrV4::new(guest, port), CLIENT);
        for (port, passes) in [(80, true), (81, true), (80, false), (81, false), (82, false)] {
            let verdict = bench.run(&leaving(port))?.verdict;
            ensure!((verdict == Verdict::Redirect) == passes, "{verdict:?} from port {port}");
        }
        ensure!(counted(bench, PORT_LIMIT, INBOUND)? == [1, 42, 1, 42]);
        ensure!(counted(bench, PORT_LIMIT, OUTBOUND)? == [1, 42, 1, 42]);
        ensure!(counted(bench, LIMIT, INBOUND)? == [1, 42, 1, 42]);
        ensure!(counted(bench, LIMIT, OUTBOUND)? == [1, 42, 2, 84]);
        Ok(())
    }

    fn one_port_alone_can_be_limited(bench: &mut Bench) -> Result<()> {
        let backend = bench.elastic(Bench::VIP, Ipv4Addr::new(10, 2, 0, 11), true)?;
        let rate = bytes(bench, 1)?;
        bench.set_meter(PORT_LIMIT, meter(rate, rate))?;
        bench.limit_port(VIP, PORT_LIMIT)?;
        bench.bind(backend, Binding::new(0, true))?;
        for _ in 0..3 {
            ensure!(bench.run(&Frame::udp(CLIENT, SocketAddrV4::new(Bench::VIP, 81)))?.verdict == Verdict::Redirect);
        }
        ensure!(bench.run(&Frame::udp(CLIENT, VIP))?.verdict == Verdict::Redirect);
        bench.expect_refused(&Frame::udp(CLIENT, VIP), Reason::OverLimit)
    }

    fn a_packet_for_a_queue_is_sent_there_or_handed_over_to_the_stage_that_can(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        let device = bench.device("pub0")?;
        bench.set_meter(LIMIT, meter(queue(device), UNLIMITED))?;
        bench.bind(backend, Binding::new(LIMIT, false))?;
        for _ in 0..2 {
            let (outcome, scratch) = bench.run_with_scratch(&ask(500))?;
            if bench.hook() == Hook::Xdp {
                ensure!(outcome.verdict == Verdict::Pass && scratch == Scratch::Metadata(b"vgtc".to_vec()), "{scratch:?}");
                ensure!(outcome.bytes == ask(500).bytes(), "the frame was changed");
            } else {
                let priority = 1 << 16 | class(LIMIT, INBOUND);
                ensure!(outcome.verdict == Verdict::Redirect && scratch == Scratch::Fields { priority, mark: 2 }, "{scratch:?}");
                ensure!(outcome.bytes == to_backend(ask(500)).bytes());
            }
        }
        let charged = if bench.hook() == Hook::Xdp { [0; 4] } else { [2, 1000, 0, 0] };
        ensure!(counted(bench, LIMIT, INBOUND)? == charged, "only the stage that queues the packet counts it");
        ensure!(bench.reason(Reason::HandedOver)? == if bench.hook() == Hook::Xdp { 2 } else { 0 });
        bench.expect_sent(&answer(60), &to_client(answer(60)))
    }
}

/// The fragments of a datagram of this many bytes, which come in Ethernet frames.
fn fragments(length: usize, id: u16) -> Vec<Frame> {
    let offsets: Vec<u16> = (0..length as u16 - 20).step_by(1480).collect();
    Frame { id, ..Frame::udp(CLIENT, VIP).payload(&vec![1; length - 28]) }.fragments(&offsets)
}

/// Number of these frames that pass.
fn passing(bench: &mut Bench, frames: &[Frame]) -> Result<usize> {
    let mut passed = 0;
    for frame in frames {
        match bench.run(frame)?.verdict {
            Verdict::Redirect => passed += 1,
            verdict => ensure!(verdict == Verdict::Drop, "{verdict:?}"),
        }
    }
    Ok(passed)
}

both_hooks! {
    fn an_idle_meter_lets_all_fragments_of_one_packet_pass(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        for (limit, length) in [(LIMIT, 16_412), (PORT_LIMIT, 65_535)] {
            // The burst of 1 Mbit/s: twelve frames.
            let rate = Rate { congested: 6 * 1514, ..bytes(bench, 12 * 1514)? };
            bench.set_meter(limit, meter(rate, UNLIMITED))?;
            bench.bind(backend, Binding::new(limit, false))?;
            let [first, second] = [1, 2].map(|id| fragments(length, id));
            ensure!(passing(bench, &first)? == first.len(), "{length} bytes do not pass");
            // The meter is no longer idle, and repeated fragments do not pass again.
            let late = passing(bench, &second)?;
            ensure!(late < second.len() && passing(bench, &second)? == 0, "{late} of the next one's");
            passing(bench, &[&first[..], &first, &first, &first, &first].concat())?;
            let [_, passed, ..] = counted(bench, limit, INBOUND)?;
            ensure!(passed < 70_000 + 1514, "{passed} bytes");
        }
        Ok(())
    }

    fn packets_other_than_that_ones_fragments_are_over_the_limit_meanwhile(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        bench.bind(backend, Binding::new(LIMIT, false))?;
        let rate = Rate { congested: 6 * 1514, ..bytes(bench, 12 * 1514)? };
        bench.set_meter(LIMIT, meter(rate, UNLIMITED))?;
        let frames = fragments(65_535, 1);
        ensure!(passing(bench, &frames[..40])? == 40);
        bench.expect_refused(&ask(60), Reason::OverLimit)?;
        bench.expect_refused(&fragments(3000, 2)[0], Reason::OverLimit)?;
        ensure!(passing(bench, &frames[40..])? == frames.len() - 40);
        Ok(())
    }
}

/// A queue that is `frames` full frames long, and packets for it.
fn behind_a_queue(ecn: u8, frames: usize) -> Result<(Bench, Vec<Frame>)> {
    let mut bench = Bench::new(Hook::Tc)?;
    let backend = serve(&mut bench, UDP)?;
    let device = bench.device("pub0")?;
    bench.set_meter(LIMIT, meter(queue(device), UNLIMITED))?;
    bench.bind(backend, Binding::new(LIMIT, false))?;
    let asked = vec![Frame { tos: ecn, ..ask(1514) }; frames];
    Ok((bench, asked))
}

#[test]
fn a_long_queue_is_signalled_to_flows_with_ecn() -> Result<()> {
    const NOT_CAPABLE: u8 = 0;
    const EXPERIENCED: u8 = 3;
    for (ecn, marked) in [(NOT_CAPABLE, NOT_CAPABLE), (1, EXPERIENCED), (2, EXPERIENCED), (EXPERIENCED, EXPERIENCED)] {
        let (mut bench, asked) = behind_a_queue(ecn, 3)?;
        // One frame takes 6.3 s, the queue counts as long from 8.6 s on.
        for (frame, ecn) in asked.iter().zip([ecn, ecn, marked]) {
            bench.expect_sent(frame, &Frame { tos: ecn, ..to_backend(frame.clone()) })?;
        }
    }
    Ok(())
}

#[test]
fn fragments_are_queued_or_dropped_together() -> Result<()> {
    let mut bench = Bench::new(Hook::Tc)?;
    let backend = serve(&mut bench, UDP)?;
    let device = bench.device("pub0")?;
    // A frame takes 6.3 s.
    let rate = Rate { tolerance: 12 * (6 << 30), congested: 6 * (6 << 30), ..queue(device) };
    bench.set_meter(LIMIT, meter(rate, UNLIMITED))?;
    bench.bind(backend, Binding::new(LIMIT, false))?;
    let [first, second] = [1, 2].map(|id| fragments(16_412, id));
    for frame in &first {
        let (outcome, scratch) = bench.run_with_scratch(frame)?;
        let priority = 1 << 16 | class(LIMIT, INBOUND);
        ensure!(
            outcome.verdict == Verdict::Redirect && scratch == Scratch::Fields { priority, mark: 2 },
            "{scratch:?}"
        );
    }
    ensure!(passing(&mut bench, &second)? < second.len());
    Ok(())
}

#[test]
fn a_gso_packet_costs_its_frames_on_the_wire() -> Result<()> {
    let mut bench = Bench::new(Hook::Tc)?;
    let backend = serve(&mut bench, TCP)?;
    establish(&mut bench)?;
    let rate = bytes(&mut bench, 10_000)?;
    bench.set_meter(LIMIT, meter(rate, UNLIMITED))?;
    bench.bind(backend, Binding::new(LIMIT, false))?;
    bench.set_segments(3, 400);
    bench.run(&Frame::tcp(CLIENT, VIP, tcp::ACK).payload(&[1; 1200]))?;
    ensure!(counted(&mut bench, LIMIT, INBOUND)? == [3, 3 * 454, 0, 0], "{:?}", bench.metered(LIMIT)?);
    Ok(())
}

#[test]
fn a_packet_from_a_queue_leaves_by_its_interface_like_any_other() -> Result<()> {
    let mut bench = Bench::new(Hook::Tc)?;
    let (verdict, scratch) = bench.leave_queue(&ask(60), Scratch::Fields { priority: 1 << 16 | 8, mark: 2 })?;
    ensure!((verdict, scratch) == (Verdict::Redirect, Scratch::Fields { priority: 0, mark: 0 }));
    bench.remove_interface(2)?;
    let (verdict, _) = bench.leave_queue(&ask(60), Scratch::Fields { priority: 1 << 16 | 8, mark: 2 })?;
    ensure!(verdict == Verdict::Drop && bench.reason(Reason::Unroutable)? == 1);
    Ok(())
}

#[test]
fn the_program_behind_xdp_leaves_alone_packets_that_were_not_handed_over() -> Result<()> {
    let mut bench = Bench::new(Hook::Tc)?;
    serve(&mut bench, UDP)?;
    ensure!(bench.run_behind(&ask(60))? == Verdict::Pass);
    ensure!(bench.flows()?.is_empty());
    Ok(())
}
