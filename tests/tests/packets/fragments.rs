//! IPv4 fragments.

use super::*;

both_hooks! {
    fn fragments_follow_their_first_one(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[0xa5; 3001]);
        let sent = to_backend(ask.clone());
        // The last one holds a single byte.
        let offsets = [0, 1480, 2960, 3008];
        for (fragment, expected) in ask.fragments(&offsets).iter().zip(sent.fragments(&offsets)) {
            bench.expect_sent(fragment, &expected)?;
        }
        let answer = Frame::udp(BACKEND, CLIENT).payload(&[0x5a; 2000]);
        for (fragment, expected) in answer.fragments(&[0, 1480]).iter().zip(to_client(answer.clone()).fragments(&[0, 1480])) {
            bench.expect_sent(fragment, &expected)?;
        }
        ensure!(bench.traffic(backend)?.connections == 1);
        Ok(())
    }

    fn a_fragment_before_its_first_one_is_the_stacks(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[1; 2000]);
        let [first, second] = &ask.fragments(&[0, 1480])[..] else { anyhow::bail!("two fragments") };
        bench.expect_refused(second, Reason::Fragment)?;
        bench.expect_sent(first, &to_backend(ask.clone()).fragments(&[0, 1480])[0])?;
        bench.expect_sent(second, &to_backend(ask.clone()).fragments(&[0, 1480])[1])?;
        // Another packet's: other identification, other protocol, other source.
        let mut other = second.clone();
        other.id += 1;
        bench.expect_refused(&other, Reason::Fragment)?;
        let mut other = second.clone();
        other.transport = Transport::Other(TCP);
        bench.expect_refused(&other, Reason::Fragment)?;
        let mut other = second.clone();
        other.src = Ipv4Addr::new(10, 1, 0, 11);
        bench.expect_refused(&other, Reason::Fragment)
    }

    fn a_segment_in_fragments_reaches_the_backend(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK | tcp::PSH).payload(&[3; 900]);
        for (fragment, expected) in data.fragments(&[0, 512]).iter().zip(to_backend(data.clone()).fragments(&[0, 512])) {
            bench.expect_sent(fragment, &expected)?;
        }
        Ok(())
    }

    fn a_first_fragment_without_room_for_its_ports_is_malformed(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN).payload(&[0; 8]);
        let first = &syn.fragments(&[0, 8])[0];
        bench.expect_refused(first, Reason::Malformed)
    }
}
