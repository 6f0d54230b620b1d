//! Packets of exactly the MTU of the device that they leave by, and of one byte more.

use super::*;

const MTU: usize = 1500;

fn narrow(bench: &mut Bench, protocol: u8) -> Result<u32> {
    let backend = serve(bench, protocol)?;
    if protocol == UDP {
        bench.run(&Frame::udp(CLIENT, VIP))?;
    } else {
        establish(bench)?;
    }
    Ok(backend)
}

fn ask(length: usize) -> Frame {
    Frame::udp(CLIENT, VIP).payload(&vec![7; length - 28])
}

fn answer(length: usize) -> Frame {
    Frame::udp(BACKEND, CLIENT).payload(&vec![8; length - 28])
}

both_hooks! {
    fn datagrams_of_exactly_the_mtu_pass_both_ways(bench: &mut Bench) -> Result<()> {
        narrow(bench, UDP)?;
        ask_and_answer(bench, &ask(MTU), &answer(MTU))
    }

    fn segments_of_exactly_the_mtu_pass_both_ways(bench: &mut Bench) -> Result<()> {
        narrow(bench, TCP)?;
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(&[7; MTU - 40]);
        let answer = Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(&[8; MTU - 40]);
        ask_and_answer(bench, &data, &answer)
    }

    fn a_clients_packet_that_may_be_fragmented_is_handed_over_translated(bench: &mut Bench) -> Result<()> {
        narrow(bench, UDP)?;
        let ask = Frame { fragment: 0, ..ask(MTU + 1) };
        expect_handed_over(bench, &ask, &ask.clone().between(CLIENT, BACKEND), Reason::OverMtu)
    }

    fn a_backend_gets_an_error_about_its_segment_that_is_one_byte_too_large(bench: &mut Bench) -> Result<()> {
        narrow(bench, TCP)?;
        bench.expect_refused(&Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(&[8; MTU - 39]), Reason::OverMtu)
    }

    fn options_count_towards_the_mtu(bench: &mut Bench) -> Result<()> {
        narrow(bench, UDP)?;
        let fits = ask(MTU - 8).ip_options(&[1; 8]);
        bench.expect_sent(&fits, &to_backend(fits.clone()))?;
        let large = ask(MTU - 7).ip_options(&[1; 8]);
        expect_handed_over(bench, &large, &large.clone().between(CLIENT, BACKEND), Reason::OverMtu)
    }

    fn tags_do_not_count_towards_the_mtu(bench: &mut Bench) -> Result<()> {
        narrow(bench, UDP)?;
        let frame = ask(MTU);
        bench.expect_sent(&frame.clone().tagged(&[[0x8100, 0xe000]]), &to_backend(frame))
    }

    fn each_direction_has_its_own_mtu(bench: &mut Bench) -> Result<()> {
        narrow(bench, UDP)?;
        bench.set_mtu(1, 1280)?;
        bench.expect_sent(&ask(MTU), &to_backend(ask(MTU)))?;
        bench.expect_refused(&answer(1281), Reason::OverMtu)?;
        bench.expect_sent(&answer(1280), &to_client(answer(1280)))
    }

    fn a_new_mtu_applies_to_the_next_packet(bench: &mut Bench) -> Result<()> {
        narrow(bench, UDP)?;
        bench.set_mtu(2, 600)?;
        expect_handed_over(bench, &ask(601), &ask(601).between(CLIENT, BACKEND), Reason::OverMtu)?;
        bench.set_mtu(2, 601)?;
        bench.expect_sent(&ask(601), &to_backend(ask(601)))
    }

    fn a_fragment_larger_than_the_mtu_is_handed_over(bench: &mut Bench) -> Result<()> {
        narrow(bench, UDP)?;
        bench.set_mtu(2, 1000)?;
        let offsets = [0, 960, 2400];
        let translated = ask(2800).between(CLIENT, BACKEND).fragments(&offsets);
        let fragments = ask(2800).fragments(&offsets);
        bench.expect_sent(&fragments[0], &translated[0].clone().forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11)))?;
        expect_handed_over(bench, &fragments[1], &translated[1], Reason::OverMtu)?;
        bench.expect_sent(&fragments[2], &translated[2].clone().forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11)))
    }

    fn the_mtu_applies_to_a_new_flows_first_packet(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        expect_handed_over(bench, &ask(MTU + 1), &ask(MTU + 1).between(CLIENT, BACKEND), Reason::OverMtu)?;
        ensure!(states(bench)? == [State::Opening, State::Opening]);
        Ok(())
    }
}
