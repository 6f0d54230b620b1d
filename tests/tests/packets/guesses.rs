//! Connections that a stranger tries to end by guessing their addresses and ports (RFC 5961): they live on, and no others do.

use super::{
    Side::{Backend, Client},
    *,
};

const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
const FIN_ACK: u8 = tcp::FIN | tcp::ACK;
const DATA: u8 = tcp::ACK | tcp::PSH;

/// Checks the states of the client's and of the answering flow, and the connections counted for backend and service.
fn expect(bench: &mut Bench, backend: u32, states: [State; 2], [load, admitted]: [u32; 2]) -> Result<()> {
    let held = both(bench)?.map(Word::state);
    ensure!(held == states, "{held:?}");
    let loads = [bench.load(backend)?, bench.service_load(1)?];
    ensure!(loads == [load, admitted], "loads {loads:?}");
    Ok(())
}

/// The words of the client's flow and of the answering one.
fn both(bench: &mut Bench) -> Result<[Word; 2]> {
    let flows = bench.flows()?;
    let word = |reply| flows.iter().find(|(_, flow)| flow.mark.is_reply() == reply).map(|(word, _)| *word);
    Ok([word(false).context("no flow")?, word(true).context("no answering flow")?])
}

/// An established connection; returns its backend's number, and jiffies of more than a moment.
fn established(bench: &mut Bench) -> Result<(u32, u32)> {
    let backend = serve(bench, TCP)?;
    let moment = bench.slow_down()? + 1;
    establish(bench)?;
    Ok((backend, moment))
}

/// [`established`], then reset; a moment has passed.
fn reset(bench: &mut Bench) -> Result<(u32, u32)> {
    let (backend, moment) = established(bench)?;
    exchange(bench, &[(Client, tcp::RST)])?;
    expect(bench, backend, [State::Reset; 2], [0, 0])?;
    bench.age_flows(moment)?;
    Ok((backend, moment))
}

both_hooks! {
    fn a_reset_connection_lives_on_when_both_sides_go_on(bench: &mut Bench) -> Result<()> {
        let (backend, _) = reset(bench)?;
        exchange(bench, &[(Client, DATA)])?;
        expect(bench, backend, [State::Resumed, State::Reset], [0, 0])?;
        exchange(bench, &[(Backend, tcp::ACK)])?;
        expect(bench, backend, [State::Established; 2], [1, 1])?;
        // It is the old connection, and ends like any other.
        ensure!(bench.traffic(backend)?.connections == 1);
        exchange(bench, &[(Client, FIN_ACK), (Backend, FIN_ACK)])?;
        expect(bench, backend, [State::Closed; 2], [0, 0])
    }

    fn the_backend_may_go_on_first(bench: &mut Bench) -> Result<()> {
        let (backend, _) = reset(bench)?;
        exchange(bench, &[(Backend, DATA), (Backend, DATA)])?;
        expect(bench, backend, [State::Reset, State::Resumed], [0, 0])?;
        exchange(bench, &[(Client, tcp::ACK)])?;
        expect(bench, backend, [State::Established; 2], [1, 1])
    }

    fn a_guest_s_own_connection_lives_on(bench: &mut Bench) -> Result<()> {
        const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 53), 443);
        let number = bench.masquerade(Bench::VIP, false)?;
        let moment = bench.slow_down()? + 1;
        let seen_as = SocketAddrV4::new(Bench::VIP, 40_000);
        let guest = SocketAddrV4::new(*BACKEND.ip(), 40_000);
        let out = |flags| Frame::tcp(guest, SERVER, flags);
        let back = |flags| Frame::tcp(SERVER, seen_as, flags);
        for frame in [out(tcp::SYN), back(SYN_ACK), out(tcp::ACK), back(tcp::RST)] {
            ensure!(bench.run(&frame)?.verdict == Verdict::Redirect, "{frame:?}");
        }
        expect(bench, number, [State::Reset; 2], [0, 0])?;
        bench.age_flows(moment)?;
        for frame in [out(DATA), back(DATA)] {
            ensure!(bench.run(&frame)?.verdict == Verdict::Redirect, "{frame:?}");
        }
        expect(bench, number, [State::Established; 2], [1, 1])
    }

    fn segments_in_flight_revive_nothing(bench: &mut Bench) -> Result<()> {
        let (backend, _) = established(bench)?;
        exchange(bench, &[(Client, tcp::RST), (Client, DATA), (Backend, DATA), (Client, tcp::ACK), (Backend, tcp::ACK)])?;
        expect(bench, backend, [State::Reset; 2], [0, 0])
    }

    fn one_side_alone_neither_revives_nor_holds_a_connection(bench: &mut Bench) -> Result<()> {
        for side in [Client, Backend] {
            let bench = &mut Bench::new(bench.hook())?;
            let (backend, moment) = reset(bench)?;
            exchange(bench, &[(side, DATA)])?;
            let resumed = both(bench)?;
            for _ in 0..3 {
                bench.age_flows(moment)?;
                exchange(bench, &[(side, DATA)])?;
            }
            let left = both(bench)?;
            let is_older = |(before, after): (&Word, &Word)| after.age(before.seen()) == 3 * moment;
            ensure!(resumed.iter().zip(&left).all(is_older), "{resumed:x?} {left:x?}");
            ensure!(bench.load(backend)? == 0 && bench.service_load(1)? == 0);
        }
        Ok(())
    }

    fn a_side_that_answers_data_by_resets_is_gone(bench: &mut Bench) -> Result<()> {
        let (backend, moment) = reset(bench)?;
        for _ in 0..3 {
            exchange(bench, &[(Client, DATA), (Backend, tcp::RST)])?;
            expect(bench, backend, [State::Reset; 2], [0, 0])?;
            bench.age_flows(moment)?;
        }
        Ok(())
    }

    fn a_stream_of_resets_does_not_keep_a_connection_from_living_on(bench: &mut Bench) -> Result<()> {
        let (backend, moment) = established(bench)?;
        for _ in 0..4 {
            exchange(bench, &[(Client, tcp::RST)])?;
            bench.age_flows(moment / 2)?;
        }
        exchange(bench, &[(Client, DATA), (Backend, DATA)])?;
        expect(bench, backend, [State::Established; 2], [1, 1])
    }

    fn guessed_fins_of_both_sides_do_not_close_for_good(bench: &mut Bench) -> Result<()> {
        let (backend, moment) = established(bench)?;
        exchange(bench, &[(Client, FIN_ACK), (Backend, FIN_ACK)])?;
        expect(bench, backend, [State::Closed; 2], [0, 0])?;
        bench.age_flows(moment)?;
        exchange(bench, &[(Client, DATA), (Backend, DATA)])?;
        expect(bench, backend, [State::Established; 2], [1, 1])
    }

    fn repeated_fins_and_their_acknowledgements_revive_nothing(bench: &mut Bench) -> Result<()> {
        let (backend, moment) = established(bench)?;
        exchange(bench, &[(Client, FIN_ACK), (Backend, FIN_ACK)])?;
        for _ in 0..3 {
            bench.age_flows(moment)?;
            exchange(bench, &[(Backend, FIN_ACK), (Client, tcp::ACK)])?;
            expect(bench, backend, [State::Resumed, State::Closed], [0, 0])?;
        }
        Ok(())
    }

    fn a_connection_that_lives_on_counts_beyond_the_listeners_maximum(bench: &mut Bench) -> Result<()> {
        let (backend, moment) = established(bench)?;
        bench.limit(VIP, TCP, 1)?;
        exchange(bench, &[(Client, tcp::RST)])?;
        let other = SocketAddrV4::new(Bench::CLIENT, 41_000);
        for frame in [Frame::tcp(other, VIP, tcp::SYN), Frame::tcp(BACKEND, other, SYN_ACK), Frame::tcp(other, VIP, tcp::ACK)] {
            ensure!(bench.run(&frame)?.verdict == Verdict::Redirect);
        }
        ensure!(bench.load(backend)? == 1 && bench.service_load(1)? == 1);
        bench.age_flows(moment)?;
        exchange(bench, &[(Client, DATA), (Backend, DATA)])?;
        ensure!(bench.load(backend)? == 2 && bench.service_load(1)? == 2);
        let third = SocketAddrV4::new(Bench::CLIENT, 42_000);
        bench.expect_refused(&Frame::tcp(third, VIP, tcp::SYN), Reason::TooManyConnections)
    }

    fn a_guessed_reset_and_syn_leave_a_connection_at_its_backend(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends([11, 12]))?;
        let almost = bench.slow_down()? / 8 * 7;
        establish(bench)?;
        // Segments after the reset show that the connection lives, though they prove nothing.
        exchange(bench, &[(Client, tcp::RST), (Client, tcp::SYN), (Backend, tcp::ACK)])?;
        bench.age_flows(almost)?;
        exchange(bench, &[(Client, DATA)])?;
        bench.age_flows(almost)?;
        exchange(bench, &[(Client, tcp::SYN), (Backend, tcp::ACK), (Client, DATA), (Backend, DATA)])?;
        ensure!(bench.traffic(numbers[0])?.connections == 1 && bench.load(numbers[1])? == 0);
        expect(bench, numbers[0], [State::Established; 2], [1, 1])
    }

    fn a_guessed_reset_and_a_later_guessed_syn_leave_a_silent_connection_at_its_backend(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends([11, 12]))?;
        let moment = bench.slow_down()? + 1;
        establish(bench)?;
        exchange(bench, &[(Client, tcp::RST)])?;
        for _ in 0..20 {
            bench.age_flows(moment)?;
            // The backend detects the forged SYN and answers with its current sequence number.
            exchange(bench, &[(Client, tcp::SYN), (Backend, tcp::ACK)])?;
        }
        bench.age_flows(moment)?;
        exchange(bench, &[(Client, DATA), (Backend, DATA)])?;
        ensure!(bench.traffic(numbers[0])?.connections == 1 && bench.load(numbers[1])? == 0);
        expect(bench, numbers[0], [State::Established; 2], [1, 1])
    }

    fn a_guessed_syn_cuts_no_connection_in_any_state(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends([11, 12]))?;
        let steps = [
            (Client, tcp::SYN, [State::Opening; 2]),
            (Backend, SYN_ACK, [State::Answered; 2]),
            (Client, tcp::ACK, [State::Established; 2]),
            (Backend, FIN_ACK, [State::Established, State::Closing]),
        ];
        for (side, flags, states) in steps {
            exchange(bench, &[(side, flags), (Client, tcp::SYN), (Client, SYN_ACK), (Client, tcp::SYN | tcp::FIN)])?;
            ensure!(both(bench)?.map(Word::state) == states, "{:?}", both(bench)?);
        }
        ensure!(bench.load(numbers[0])? == 1 && bench.load(numbers[1])? == 0);
        Ok(())
    }

    fn a_syn_that_its_backend_answers_opens_a_connection_there(bench: &mut Bench) -> Result<()> {
        let (backend, _) = established(bench)?;
        exchange(bench, &[(Client, FIN_ACK), (Backend, FIN_ACK), (Client, tcp::SYN)])?;
        expect(bench, backend, [State::Closed; 2], [0, 0])?;
        exchange(bench, &[(Backend, SYN_ACK)])?;
        expect(bench, backend, [State::Answered; 2], [1, 0])?;
        exchange(bench, &[(Client, tcp::ACK)])?;
        expect(bench, backend, [State::Established; 2], [1, 1])?;
        ensure!(bench.traffic(backend)?.connections == 2);
        Ok(())
    }

    fn after_a_reset_a_syn_opens_a_connection_at_the_same_backend(bench: &mut Bench) -> Result<()> {
        let (backend, _) = reset(bench)?;
        exchange(bench, &[(Client, tcp::SYN), (Backend, SYN_ACK), (Client, tcp::ACK)])?;
        expect(bench, backend, [State::Established; 2], [1, 1])?;
        ensure!(bench.traffic(backend)?.connections == 2);
        Ok(())
    }

    fn a_guessed_reset_and_syn_leave_a_connection_at_a_backend_that_drains(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends([11, 12]))?;
        let moment = bench.slow_down()? + 1;
        establish(bench)?;
        bench.drain(numbers[0])?;
        exchange(bench, &[(Client, tcp::RST)])?;
        bench.age_flows(moment)?;
        // The backend detects the forged SYN.
        exchange(bench, &[(Client, tcp::SYN), (Backend, tcp::ACK), (Client, DATA), (Backend, DATA)])?;
        expect(bench, numbers[0], [State::Established; 2], [1, 1])
    }

    fn a_guessed_fin_and_syn_leave_a_half_closed_connection_at_a_backend_that_drains(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends([11, 12]))?;
        bench.slow_down()?;
        establish(bench)?;
        bench.drain(numbers[0])?;
        exchange(bench, &[(Backend, FIN_ACK), (Client, FIN_ACK), (Client, tcp::SYN), (Backend, tcp::ACK), (Client, DATA)])?;
        expect(bench, numbers[0], [State::Closed; 2], [0, 0])
    }

    fn after_a_reset_a_backend_that_drains_opens_no_connection(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends([11, 12]))?;
        bench.slow_down()?;
        establish(bench)?;
        bench.drain(numbers[0])?;
        exchange(bench, &[(Client, tcp::RST), (Client, tcp::SYN)])?;
        bench.expect_refused(&Frame::tcp(BACKEND, CLIENT, SYN_ACK), Reason::FlowEnded)?;
        expect(bench, numbers[0], [State::Closed; 2], [0, 0])?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        let other = syn.clone().between(CLIENT, backends([12])[0]);
        bench.expect_sent(&syn, &other.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(12)))?;
        expect(bench, numbers[1], [State::Opening; 2], [1, 0])
    }

    fn a_handshake_survives_a_guessed_reset(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        bench.slow_down()?;
        exchange(bench, &[(Client, tcp::SYN), (Client, tcp::RST), (Backend, SYN_ACK), (Client, tcp::ACK)])?;
        expect(bench, backend, [State::Established; 2], [1, 1])
    }

    fn a_backends_own_syn_opens_nothing(bench: &mut Bench) -> Result<()> {
        let (backend, _) = reset(bench)?;
        exchange(bench, &[(Backend, tcp::SYN)])?;
        expect(bench, backend, [State::Reset; 2], [0, 0])
    }
}
