//! Jumbo frames. Native XDP gets frames larger than a page in several buffers.

use super::*;

/// Size of the largest IP packet: test runs at TC have a page, including the kernel's own part of it.
fn largest(bench: &Bench) -> usize {
    if bench.hook() == Hook::Tc { 3600 } else { 9000 }
}

/// Forwards packets that fit, up to the 9,000 bytes of jumbo frames.
fn large(bench: &mut Bench, tags: &[[u16; 2]], options: &[u8]) -> Result<()> {
    let backend = serve(bench, UDP)?;
    bench.set_mtu(1, 9000)?;
    bench.set_mtu(2, 9000)?;
    let mut bytes = 0;
    let most = largest(bench) - 28 - options.len();
    for length in [1473, most / 2, most - 1, most] {
        let payload: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
        let ask = Frame::udp(CLIENT, VIP).payload(&payload).ip_options(options);
        bench.expect_sent(&ask.clone().tagged(tags), &to_backend(ask.clone()))?;
        bytes += ask.bytes().len() as u64;
        let answer = Frame::udp(BACKEND, CLIENT).payload(&payload).ip_options(options);
        bench.expect_sent(&answer.clone().tagged(tags), &to_client(answer))?;
    }
    ensure!(bench.traffic(backend)?.bytes_in == bytes, "{:?}", bench.traffic(backend)?);
    Ok(())
}

both_hooks! {
    fn jumbo_frames_are_forwarded(bench: &mut Bench) -> Result<()> {
        large(bench, &[], &[])
    }

    fn tagged_jumbo_frames_are_forwarded(bench: &mut Bench) -> Result<()> {
        large(bench, &[[0x8100, 0xe000]], &[])
    }

    fn jumbo_frames_with_options_are_forwarded(bench: &mut Bench) -> Result<()> {
        large(bench, &[], &[1; 12])
    }

    fn a_jumbo_segment_is_forwarded(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        bench.set_mtu(1, 9000)?;
        bench.set_mtu(2, 9000)?;
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(&vec![0x5a; largest(bench) - 40]);
        bench.expect_sent(&data, &to_backend(data.clone()))
    }

    fn a_jumbo_frame_is_not_sent_by_a_device_with_a_smaller_mtu(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&vec![7; largest(bench) - 28]);
        let outcome = bench.run(&ask)?;
        ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == ask.between(CLIENT, BACKEND).bytes());
        ensure!(bench.reason(Reason::OverMtu)? == 1);
        Ok(())
    }

    fn a_jumbo_frame_shorter_than_it_says_is_malformed(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        bench.set_mtu(2, 9000)?;
        let mut ask = Frame::udp(CLIENT, VIP).payload(&vec![7; largest(bench) - 29]);
        ask.total_len = Some(u16::try_from(largest(bench))?);
        bench.expect_refused(&ask, Reason::Malformed)
    }
}
