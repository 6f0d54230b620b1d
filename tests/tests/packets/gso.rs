//! GSO packets at TC: one socket buffer that leaves as several frames.

use super::*;

/// Runs a case with GSO packets of `count` segments of `bytes` bytes each.
fn with_segments(count: u32, bytes: u32, case: impl FnOnce(&mut Bench, u32) -> Result<()>) -> Result<()> {
    let bench = &mut Bench::new(Hook::Tc)?;
    let backend = serve(bench, TCP)?;
    establish(bench)?;
    bench.set_segments(count, bytes);
    case(bench, backend)
}

fn data(length: usize) -> Frame {
    Frame::tcp(CLIENT, VIP, tcp::ACK).payload(&vec![7; length])
}

#[test]
fn a_gso_packet_of_segments_that_fit_is_sent_whole() -> Result<()> {
    with_segments(2, 1460, |bench, _| bench.expect_sent(&data(2920), &to_backend(data(2920))))
}

#[test]
fn the_stack_gets_segments_that_are_one_byte_too_large() -> Result<()> {
    with_segments(2, 1461, |bench, _| {
        expect_handed_over(bench, &data(2922), &data(2922).between(CLIENT, BACKEND), Reason::OverMtu)
    })
}

// For example of SCTP.
#[test]
fn segments_of_unlike_sizes_fit() -> Result<()> {
    const BY_FRAGMENTS: u32 = 0xffff;
    let bench = &mut Bench::new(Hook::Tc)?;
    bench.elastic(Bench::VIP, *BACKEND.ip(), true)?;
    bench.set_segments(2, BY_FRAGMENTS);
    let frame = |from, to| Frame::other(from, to, 132).payload(&[7; 2000]);
    let asked = frame(Bench::CLIENT, *BACKEND.ip()).forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11));
    bench.expect_sent(&frame(Bench::CLIENT, Bench::VIP), &asked)?;
    let answered = frame(Bench::VIP, Bench::CLIENT).forwarded(Bench::PUBLIC_MAC, Bench::client_mac(10));
    bench.expect_sent(&frame(*BACKEND.ip(), Bench::CLIENT), &answered)
}

#[test]
fn a_gso_packet_is_counted_as_the_frames_that_leave() -> Result<()> {
    with_segments(3, 1000, |bench, backend| {
        let before = bench.traffic(backend)?;
        bench.expect_sent(&data(2500), &to_backend(data(2500)))?;
        let after = bench.traffic(backend)?;
        ensure!(after.packets_in - before.packets_in == 3);
        ensure!(after.bytes_in - before.bytes_in == 3 * 54 + 2500, "{}", after.bytes_in - before.bytes_in);
        Ok(())
    })
}

#[test]
fn segments_without_a_count_are_counted_by_their_size() -> Result<()> {
    for (size, length, frames) in [(1000, 2500, 3), (1000, 2000, 2), (1460, 1, 1), (1460, 1460, 1), (1000, 0, 1)] {
        with_segments(0, size, |bench, backend| {
            let before = bench.traffic(backend)?;
            bench.expect_sent(&data(length), &to_backend(data(length)))?;
            let after = bench.traffic(backend)?;
            let (packets, bytes) = (after.packets_in - before.packets_in, after.bytes_in - before.bytes_in);
            ensure!((packets, bytes) == (frames, frames * 54 + length as u64), "{packets} frames of {bytes} bytes");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn an_answers_gso_packet_is_counted_and_sent_whole() -> Result<()> {
    with_segments(2, 1460, |bench, backend| {
        let answer = Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(&[8; 2000]);
        let before = bench.traffic(backend)?;
        bench.expect_sent(&answer, &to_client(answer.clone()))?;
        let after = bench.traffic(backend)?;
        ensure!((after.packets_out - before.packets_out, after.bytes_out - before.bytes_out) == (2, 2 * 54 + 2000));
        Ok(())
    })
}

#[test]
fn tcp_options_count_towards_each_segments_size() -> Result<()> {
    for (segment, fits) in [(1448, true), (1449, false)] {
        with_segments(2, segment, |bench, _| {
            let mut frame = data(2000);
            if let Transport::Tcp { options, .. } = &mut frame.transport {
                options.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
            }
            if fits {
                bench.expect_sent(&frame, &to_backend(frame.clone()))
            } else {
                expect_handed_over(bench, &frame, &frame.clone().between(CLIENT, BACKEND), Reason::OverMtu)
            }
        })?;
    }
    Ok(())
}

#[test]
fn a_gso_packet_of_datagrams_is_sent_whole() -> Result<()> {
    let bench = &mut Bench::new(Hook::Tc)?;
    let backend = serve(bench, UDP)?;
    bench.set_segments(2, 1000);
    let ask = Frame::udp(CLIENT, VIP).payload(&[7; 1800]);
    bench.expect_sent(&ask, &to_backend(ask.clone()))?;
    let traffic = bench.traffic(backend)?;
    ensure!((traffic.packets_in, traffic.bytes_in) == (2, 2 * 42 + 1800), "{traffic:?}");
    Ok(())
}

/// Places that a GSO packet's headers may have: after a tag, before options of IPv4 or TCP.
const ODD: [(&[[u16; 2]], usize, usize); 5] = [
    (&[[0x8100, 0xe000]], 0, 0),
    (&[[0x88a8, 0x1000]], 0, 12),
    (&[], 8, 0),
    (&[], 40, 40),
    (&[[0x8100, 0xe000]], 8, 12),
];

/// Data of this many bytes after options of these lengths.
fn with_options(length: usize, ip: usize, options: usize) -> Frame {
    let mut frame = data(length).ip_options(&vec![1; ip]);
    if let Transport::Tcp { options: bytes, .. } = &mut frame.transport {
        bytes.extend(vec![1; options]);
    }
    frame
}

#[test]
fn every_frames_headers_are_counted_at_any_place() -> Result<()> {
    for (tags, ip, tcp) in ODD {
        for (count, size, length, frames) in
            [(3, 1000, 2500, 3), (0, 1000, 2500, 3), (0, 1000, 2000, 2), (0, 1000, 1000, 1)]
        {
            with_segments(count, size, |bench, backend| {
                let before = bench.traffic(backend)?;
                let frame = with_options(length, ip, tcp);
                bench.expect_sent(&frame.clone().tagged(tags), &to_backend(frame))?;
                let after = bench.traffic(backend)?;
                let counted = (after.packets_in - before.packets_in, after.bytes_in - before.bytes_in);
                let headers = 54 + (ip + tcp) as u64;
                ensure!(counted == (frames, frames * headers + length as u64), "{counted:?}, {ip} + {tcp} of options");
                Ok(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn segments_that_just_fit_are_sent_with_headers_at_any_place() -> Result<()> {
    for (tags, ip, tcp) in ODD {
        let most = 1460 - ip - tcp;
        for (size, fits) in [(most, true), (most + 1, false)] {
            with_segments(0, size as u32, |bench, _| {
                let frame = with_options(2 * size, ip, tcp);
                if fits {
                    return bench.expect_sent(&frame.clone().tagged(tags), &to_backend(frame));
                }
                let translated = frame.clone().between(CLIENT, BACKEND).tagged(tags);
                expect_handed_over(bench, &frame.tagged(tags), &translated, Reason::OverMtu)
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_gso_packet_of_datagrams_without_a_count_is_counted_with_the_headers_of_each() -> Result<()> {
    for ip in [0, 8] {
        let bench = &mut Bench::new(Hook::Tc)?;
        let backend = serve(bench, UDP)?;
        bench.set_segments(0, 900);
        let ask = Frame::udp(CLIENT, VIP).payload(&[7; 1801]).ip_options(&vec![1; ip]);
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        let traffic = bench.traffic(backend)?;
        ensure!((traffic.packets_in, traffic.bytes_in) == (3, 3 * (42 + ip as u64) + 1801), "{traffic:?}");
    }
    Ok(())
}
