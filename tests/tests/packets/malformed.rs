//! Packets that the fast path does not handle.

use super::*;

both_hooks! {
    fn unparsable_packets_are_passed_up_unchanged(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let syn = || Frame::tcp(CLIENT, VIP, tcp::SYN);
        let mut ipv6 = syn();
        ipv6.ethertype = 0x86dd;
        bench.expect_refused(&ipv6, Reason::NotIpv4)?;
        let mut arp = syn();
        arp.ethertype = 0x0806;
        bench.expect_refused(&arp, Reason::NotIpv4)?;
        let tagged = ipv6.tagged(&[[0x8100, 0xe000]]);
        bench.expect_refused(&tagged, Reason::NotIpv4)?;
        for fragment in [0x0001, 0x2001, 0x1fff] {
            let mut fragmented = syn();
            fragmented.fragment = fragment;
            bench.expect_refused(&fragmented, Reason::Fragment)?;
        }
        for protocol in [1, 47, 50, 132] {
            bench.expect_refused(&Frame::other(Bench::CLIENT, Bench::VIP, protocol).payload(&[0; 40]), Reason::OtherProtocol)?;
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn contradicting_lengths_are_malformed(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        serve(bench, UDP)?;
        for version_ihl in [0x44, 0x40, 0x55, 0x65, 0x05] {
            let mut frame = Frame::tcp(CLIENT, VIP, tcp::SYN);
            frame.version_ihl = Some(version_ihl);
            bench.expect_refused(&frame, Reason::Malformed)?;
        }
        for total_len in [0, 19, 20, 39, 41, 0xffff] {
            let mut frame = Frame::tcp(CLIENT, VIP, tcp::SYN);
            frame.total_len = Some(total_len);
            bench.expect_refused(&frame, Reason::Malformed)?;
        }
        // A UDP length beyond the packet, and below its own header.
        for udp_len in [0u16, 7, 13, 0xffff] {
            let mut bytes = Frame::udp(CLIENT, VIP).payload(b"1234").bytes();
            bytes[38..40].copy_from_slice(&udp_len.to_be_bytes());
            let outcome = bench.run_bytes(&bytes)?;
            ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == bytes, "length {udp_len}");
        }
        // A TCP data offset below the header, and beyond the packet.
        for offset in [0x00, 0x40, 0x60, 0xf0] {
            let mut bytes = Frame::tcp(CLIENT, VIP, tcp::SYN).bytes();
            bytes[46] = offset;
            let outcome = bench.run_bytes(&bytes)?;
            ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == bytes, "offset {offset:#x}");
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn every_truncation_is_passed_up_unchanged(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let whole = Frame::tcp(CLIENT, VIP, tcp::SYN).bytes();
        // The kernel refuses to make a test socket buffer shorter than an IPv4 header.
        for length in 34..whole.len() {
            let outcome = bench.run_bytes(&whole[..length]).with_context(|| format!("{length} bytes"))?;
            ensure!(outcome.verdict == Verdict::Pass, "{length} bytes: {:?}", outcome.verdict);
            ensure!(outcome.bytes == whole[..length], "{length} bytes were changed");
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }
}
