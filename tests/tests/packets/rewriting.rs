//! Packets as they leave.

use super::*;

both_hooks! {
    fn a_syn_goes_to_the_backend_with_the_clients_address(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        bench.expect_sent(&syn, &to_backend(syn.clone()))?;
        ensure!(states(bench)? == [State::Opening, State::Opening]);
        ensure!(bench.load(backend)? == 1);
        let traffic = bench.traffic(backend)?;
        ensure!((traffic.connections, traffic.packets_in, traffic.bytes_in) == (1, 1, 54), "{traffic:?}");
        Ok(())
    }

    fn an_answer_goes_to_the_client_from_the_vip(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        let data = Frame::tcp(BACKEND, CLIENT, tcp::ACK | tcp::PSH).payload(b"hello");
        bench.expect_sent(&data, &to_client(data.clone()))?;
        let traffic = bench.traffic(backend)?;
        ensure!((traffic.packets_out, traffic.bytes_out) == (2, 54 + 59), "{traffic:?}");
        Ok(())
    }

    fn tcp_options_and_odd_payloads_keep_correct_checksums(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let mut syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        if let Transport::Tcp { options, .. } = &mut syn.transport {
            options.extend([2, 4, 5, 0xb4, 1, 3, 3, 7]);
        }
        bench.expect_sent(&syn, &to_backend(syn.clone()))?;
        for length in [1, 2, 3, 17, 536, 1446] {
            let payload: Vec<u8> = (0..length).map(|byte: u16| byte.to_be_bytes()[1] ^ 0x5a).collect();
            let data = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(&payload);
            bench.expect_sent(&data, &to_backend(data.clone()))?;
        }
        Ok(())
    }

    fn a_datagram_is_balanced_and_answered(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(b"ping?");
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        ensure!(states(bench)? == [State::Opening, State::Opening]);
        let answer = Frame::udp(BACKEND, CLIENT).payload(b"pong");
        bench.expect_sent(&answer, &to_client(answer.clone()))?;
        ensure!(states(bench)? == [State::Datagrams, State::Datagrams]);
        ensure!(bench.load(backend)? == 1);
        Ok(())
    }

    fn a_datagram_without_checksum_leaves_without_one(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let mut ask = Frame::udp(CLIENT, VIP).payload(b"odd");
        ask.transport = Transport::Udp { sport: CLIENT.port(), dport: VIP.port(), checksum: false };
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        Ok(())
    }

    fn a_datagram_whose_new_checksum_is_zero_is_sent_as_ffff(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let found = (0..=u16::MAX).map(|filler| Frame::udp(CLIENT, VIP).payload(&filler.to_be_bytes()));
        let mut zeros = found.filter(|frame| to_backend(frame.clone()).bytes()[40..42] == [0xff, 0xff]);
        let Some(frame) = zeros.next() else { anyhow::bail!("no payload gives this checksum") };
        bench.expect_sent(&frame, &to_backend(frame.clone()))
    }

    fn type_of_service_and_identification_are_kept(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let mut syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        syn.tos = 0xb9;
        syn.id = 0xfffe;
        syn.fragment = 0;
        bench.expect_sent(&syn, &to_backend(syn.clone()))
    }

    fn every_ttl_above_one_is_decremented(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        for ttl in [2, 3, 127, 128, 255] {
            let mut frame = Frame::udp(CLIENT, VIP);
            frame.ttl = ttl;
            bench.expect_sent(&frame, &to_backend(frame.clone()))?;
        }
        Ok(())
    }

    fn padding_after_the_packet_is_kept(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        let padding = [0; 6];
        let outcome = bench.run_bytes(&[syn.bytes(), padding.to_vec()].concat())?;
        ensure!(outcome.verdict == Verdict::Redirect);
        ensure!(outcome.bytes == [to_backend(syn).bytes(), padding.to_vec()].concat());
        ensure!(bench.traffic(backend)?.bytes_in == 54);
        Ok(())
    }
}
