//! Connections from their first packet to their last.

use super::*;

both_hooks! {
    fn the_handshake_establishes_and_two_fins_close(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        ensure!(states(bench)? == [State::Established, State::Established]);
        bench.run(&Frame::tcp(CLIENT, VIP, tcp::FIN | tcp::ACK))?;
        ensure!(states(bench)? == [State::Closing, State::Established]);
        ensure!(bench.load(backend)? == 1);
        bench.run(&Frame::tcp(BACKEND, CLIENT, tcp::FIN | tcp::ACK))?;
        ensure!(states(bench)? == [State::Closed, State::Closed]);
        ensure!(bench.load(backend)? == 0);
        let last = Frame::tcp(CLIENT, VIP, tcp::ACK);
        bench.expect_sent(&last, &to_backend(last.clone()))
    }

    fn late_segments_do_not_revive_a_closed_connection(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        let second = bench.slow_down()?;
        establish(bench)?;
        let (end, answer) = (Frame::tcp(CLIENT, VIP, tcp::FIN | tcp::ACK), Frame::tcp(BACKEND, CLIENT, tcp::FIN | tcp::ACK));
        for frame in [&end, &answer, &end, &answer] {
            bench.run(frame)?;
        }
        ensure!(states(bench)? == [State::Closed, State::Closed]);
        ensure!(bench.load(backend)? == 0);
        bench.age_flows(second + 1)?;
        bench.run(&Frame::tcp(CLIENT, VIP, tcp::SYN))?;
        ensure!(bench.load(backend)? == 1);
        Ok(())
    }

    fn a_reset_closes_once_and_is_forwarded(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        for _ in 0..2 {
            let reset = Frame::tcp(BACKEND, CLIENT, tcp::RST | tcp::ACK);
            bench.expect_sent(&reset, &to_client(reset.clone()))?;
            ensure!(states(bench)? == [State::Reset, State::Reset]);
            ensure!(bench.load(backend)? == 0);
        }
        Ok(())
    }

    fn an_ack_without_an_answer_establishes_nothing(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        bench.run(&Frame::tcp(CLIENT, VIP, tcp::SYN))?;
        bench.run(&Frame::tcp(CLIENT, VIP, tcp::ACK))?;
        ensure!(states(bench)? == [State::Opening, State::Opening]);
        Ok(())
    }

    fn a_reused_port_starts_anew_after_a_close(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        let second = bench.slow_down()?;
        establish(bench)?;
        for frame in [Frame::tcp(CLIENT, VIP, tcp::FIN | tcp::ACK), Frame::tcp(BACKEND, CLIENT, tcp::FIN | tcp::ACK)] {
            bench.run(&frame)?;
        }
        bench.age_flows(second + 1)?;
        bench.run(&Frame::tcp(CLIENT, VIP, tcp::SYN))?;
        ensure!(states(bench)? == [State::Opening, State::Opening]);
        ensure!(bench.load(backend)? == 1 && bench.traffic(backend)?.connections == 2);
        Ok(())
    }

    fn a_segment_without_a_connection_goes_to_the_stack_that_resets_it(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        for flags in [tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST, tcp::SYN | tcp::ACK, tcp::SYN | tcp::RST, 0] {
            bench.expect_refused(&Frame::tcp(CLIENT, VIP, flags), Reason::NoFlow)?;
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn a_new_generation_ends_the_flows_at_once(bench: &mut Bench) -> Result<()> {
        let number = serve(bench, TCP)?;
        establish(bench)?;
        bench.end_flows(number)?;
        bench.expect_refused(&Frame::tcp(BACKEND, CLIENT, tcp::RST), Reason::FlowEnded)?;
        ensure!(bench.flows()?.is_empty());
        ensure!(bench.load(number)? == 0);
        bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::ACK), Reason::NoFlow)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        bench.expect_sent(&syn, &to_backend(syn.clone()))
    }

    fn a_flood_of_syns_evicts_half_open_flows_and_never_an_established_one(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        let slots = Bench::BUCKETS * 8;
        for number in 0..slots * 2 {
            let host = Ipv4Addr::from(0x0b00_0000 + number);
            bench.run(&Frame::tcp(SocketAddrV4::new(host, 7), VIP, tcp::SYN))?;
        }
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(b"alive");
        bench.expect_sent(&data, &to_backend(data.clone()))?;
        let answer = Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(b"alive too");
        bench.expect_sent(&answer, &to_client(answer.clone()))?;
        // An evicted flow was taken off the load: each flow in the table is complete, and counted once.
        let flows = bench.flows()?;
        let firsts = u32::try_from(flows.iter().filter(|(_, flow)| !flow.mark.is_reply()).count())?;
        ensure!(flows.len() == 2 * firsts as usize, "{} flows, {firsts} of them first", flows.len());
        ensure!(bench.load(backend)? == firsts, "load {} for {firsts} connections", bench.load(backend)?);
        Ok(())
    }

    fn a_flood_takes_no_slot_of_an_established_connection(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        let mut hosts = (0x0b00_0000u32..).map(Ipv4Addr::from);
        let mut syns = |bench: &mut Bench, count| -> Result<()> {
            for host in hosts.by_ref().take(count) {
                bench.run(&Frame::tcp(SocketAddrV4::new(host, 7), VIP, tcp::SYN))?;
            }
            Ok(())
        };
        // Until buckets are full of such connections.
        for _ in 0..16 {
            syns(bench, 64)?;
            bench.set_states(State::Established)?;
        }
        let held = |bench: &mut Bench| -> Result<Vec<_>> {
            let flows = bench.flows()?.into_iter().filter(|(word, _)| word.state() == State::Established);
            Ok(flows.map(|(_, flow)| (flow.key, flow.peer, flow.generation)).collect())
        };
        let before = held(bench)?;
        ensure!(bench.reason(Reason::TableFull)? > 0, "no bucket is full with {} flows", before.len());
        syns(bench, 2048)?;
        ensure!(held(bench)? == before, "{} of {} are left", held(bench)?.len(), before.len());
        let firsts = bench.flows()?.iter().filter(|(_, flow)| !flow.mark.is_reply()).count();
        ensure!(bench.load(backend)? == u32::try_from(firsts)?, "load {} for {firsts}", bench.load(backend)?);
        Ok(())
    }

    fn a_flow_that_ends_keeps_a_foreign_flow_in_its_peers_slot(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        let service = bench.backend(backend)?.service;
        establish(bench)?;
        let strangers = [bench.slot_of(CLIENT, VIP)?, bench.slot_of(BACKEND, CLIENT)?];
        let other = SocketAddrV4::new(Bench::CLIENT, 40_001);
        let syn = Frame::tcp(other, VIP, tcp::SYN);
        bench.run(&syn)?;
        // The state after a race: the other direction's slot went to another connection.
        let first = bench.slot_of(other, VIP)?;
        bench.set_peer(first, strangers[1])?;
        // It is closed first, and then makes room for a new one.
        for frame in [Frame::tcp(other, VIP, tcp::RST), syn] {
            bench.run(&frame)?;
            let slots = bench.slots()?;
            let states = strangers.map(|slot| slots[slot as usize].0.state());
            ensure!(states == [State::Established; 2], "{states:?} after {frame:?}");
            ensure!(bench.service_load(service)? == 1);
        }
        Ok(())
    }
}
