//! What each TCP flag does to a connection in each of its states.

use super::{
    Side::{Backend, Client},
    *,
};

const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
const FIN_ACK: u8 = tcp::FIN | tcp::ACK;

/// Checks the states of the connection's flows, the lower one first, and the load of its backend.
fn expect(bench: &mut Bench, backend: u32, wanted: [State; 2], load: u32) -> Result<()> {
    let states = states(bench)?;
    ensure!(states == wanted, "{states:?}");
    ensure!(bench.load(backend)? == load, "load {}", bench.load(backend)?);
    Ok(())
}

both_hooks! {
    fn a_repeated_syn_stays_one_half_open_flow(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        exchange(bench, &[(Client, tcp::SYN), (Client, tcp::SYN), (Client, tcp::SYN)])?;
        ensure!(bench.traffic(backend)?.connections == 1);
        expect(bench, backend, [State::Opening; 2], 1)
    }

    fn a_repeated_syn_ack_is_still_an_answer(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        exchange(bench, &[(Client, tcp::SYN), (Backend, SYN_ACK), (Backend, SYN_ACK)])?;
        expect(bench, backend, [State::Answered; 2], 1)
    }

    fn a_syn_repeated_after_its_answer_is_still_answered(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        exchange(bench, &[(Client, tcp::SYN), (Backend, SYN_ACK), (Client, tcp::SYN)])?;
        expect(bench, backend, [State::Answered; 2], 1)?;
        exchange(bench, &[(Client, tcp::ACK)])?;
        expect(bench, backend, [State::Established; 2], 1)
    }

    fn a_syn_ack_repeated_after_the_handshake_changes_nothing(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        exchange(bench, &[(Backend, SYN_ACK), (Client, tcp::ACK)])?;
        expect(bench, backend, [State::Established; 2], 1)
    }

    fn a_half_open_flow_can_be_evicted_after_a_fin(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        exchange(bench, &[(Client, tcp::SYN), (Client, tcp::FIN), (Client, FIN_ACK)])?;
        expect(bench, backend, [State::Opening; 2], 1)?;
        exchange(bench, &[(Backend, SYN_ACK), (Client, FIN_ACK), (Backend, FIN_ACK)])?;
        expect(bench, backend, [State::Answered; 2], 1)
    }

    fn a_syn_ack_of_the_client_answers_nothing(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        exchange(bench, &[(Client, tcp::SYN), (Client, SYN_ACK), (Client, tcp::ACK)])?;
        expect(bench, backend, [State::Opening; 2], 1)
    }

    fn a_backends_bare_syn_answers_nothing(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        exchange(bench, &[(Client, tcp::SYN), (Backend, tcp::SYN)])?;
        expect(bench, backend, [State::Opening; 2], 1)
    }

    fn a_backends_ack_does_not_complete_the_handshake(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        exchange(bench, &[(Client, tcp::SYN), (Backend, SYN_ACK), (Backend, tcp::ACK)])?;
        expect(bench, backend, [State::Answered; 2], 1)
    }

    // The backend finds out whether it is a late repetition or a restarted client's (RFC 5961, section 4).
    fn a_syn_on_an_established_connection_reaches_its_backend(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends([11, 12]))?;
        establish(bench)?;
        exchange(bench, &[(Client, tcp::SYN), (Backend, tcp::ACK), (Client, tcp::ACK)])?;
        ensure!(bench.traffic(numbers[0])?.connections == 1);
        expect(bench, numbers[0], [State::Established; 2], 1)
    }

    fn data_with_the_last_ack_completes_the_handshake(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        exchange(bench, &[(Client, tcp::SYN), (Backend, SYN_ACK)])?;
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK | tcp::PSH).payload(b"GET /");
        bench.expect_sent(&data, &to_backend(data.clone()))?;
        expect(bench, backend, [State::Established; 2], 1)
    }

    // TCP Fast Open (RFC 7413).
    fn a_syn_with_data_opens(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN).payload(b"cookie and request");
        bench.expect_sent(&syn, &to_backend(syn.clone()))?;
        expect(bench, backend, [State::Opening; 2], 1)
    }

    // RFC 3168, section 6.1.1.
    fn a_syn_that_offers_congestion_notification_opens(bench: &mut Bench) -> Result<()> {
        const ECE: u8 = 0x40;
        const CWR: u8 = 0x80;
        let backend = serve(bench, TCP)?;
        exchange(bench, &[(Client, tcp::SYN | ECE | CWR), (Backend, SYN_ACK | ECE), (Client, tcp::ACK | CWR)])?;
        expect(bench, backend, [State::Established; 2], 1)
    }

    fn a_syn_with_fin_or_rst_opens_nothing(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        for flags in [tcp::SYN | tcp::FIN, tcp::SYN | tcp::FIN | tcp::RST, 0xff] {
            bench.expect_refused(&Frame::tcp(CLIENT, VIP, flags), Reason::NoFlow)?;
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn the_backend_may_end_first(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        exchange(bench, &[(Backend, FIN_ACK), (Client, tcp::ACK)])?;
        expect(bench, backend, [State::Closing, State::Established], 1)?;
        exchange(bench, &[(Client, FIN_ACK), (Backend, tcp::ACK)])?;
        expect(bench, backend, [State::Closed; 2], 0)
    }

    fn a_repeated_fin_still_counts_for_one_side(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        exchange(bench, &[(Client, FIN_ACK), (Client, FIN_ACK), (Client, FIN_ACK)])?;
        expect(bench, backend, [State::Closing, State::Established], 1)
    }

    fn fins_that_cross_close(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        exchange(bench, &[(Client, FIN_ACK), (Backend, FIN_ACK), (Client, tcp::ACK), (Backend, tcp::ACK)])?;
        expect(bench, backend, [State::Closed; 2], 0)
    }

    fn a_half_closed_connection_carries_data_and_its_acks(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        exchange(bench, &[(Client, FIN_ACK)])?;
        for length in [1, 1000, 1460] {
            let data = Frame::tcp(BACKEND, CLIENT, tcp::ACK).payload(&vec![9; length]);
            bench.expect_sent(&data, &to_client(data.clone()))?;
            exchange(bench, &[(Client, tcp::ACK)])?;
        }
        expect(bench, backend, [State::Closing, State::Established], 1)
    }

    fn a_reset_ends_a_half_closed_connection(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        exchange(bench, &[(Backend, FIN_ACK), (Client, tcp::RST)])?;
        expect(bench, backend, [State::Reset; 2], 0)
    }

    fn a_clients_reset_closes_and_is_forwarded(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        exchange(bench, &[(Client, tcp::RST)])?;
        expect(bench, backend, [State::Reset; 2], 0)
    }

    fn a_refused_connection_is_over_and_can_be_tried_again(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        for attempt in 1..=3 {
            exchange(bench, &[(Client, tcp::SYN), (Backend, tcp::RST | tcp::ACK)])?;
            expect(bench, backend, [State::Closed; 2], 0)?;
            ensure!(bench.traffic(backend)?.connections == attempt);
        }
        Ok(())
    }

    fn a_client_that_gives_up_before_the_answer_leaves_no_load(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        exchange(bench, &[(Client, tcp::SYN), (Client, tcp::RST)])?;
        expect(bench, backend, [State::Closed; 2], 0)
    }

    fn a_client_that_resets_the_answer_leaves_no_load(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        exchange(bench, &[(Client, tcp::SYN), (Backend, SYN_ACK), (Client, tcp::RST)])?;
        expect(bench, backend, [State::Closed; 2], 0)
    }

    fn late_segments_of_a_closed_connection_are_forwarded(bench: &mut Bench) -> Result<()> {
        let backend = serve(bench, TCP)?;
        bench.slow_down()?;
        establish(bench)?;
        exchange(bench, &[(Client, FIN_ACK), (Backend, FIN_ACK)])?;
        exchange(bench, &[(Client, tcp::ACK), (Backend, tcp::ACK | tcp::PSH), (Backend, FIN_ACK), (Client, tcp::RST)])?;
        expect(bench, backend, [State::Closed; 2], 0)
    }

    fn a_reused_port_is_balanced_again(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends([11, 12]))?;
        let second = bench.slow_down()?;
        establish(bench)?;
        exchange(bench, &[(Client, FIN_ACK), (Backend, FIN_ACK)])?;
        bench.age_flows(second + 1)?;
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        let other = syn.clone().between(CLIENT, backends([12])[0]);
        bench.expect_sent(&syn, &other.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(12)))?;
        ensure!(bench.load(numbers[0])? == 0);
        expect(bench, numbers[1], [State::Opening; 2], 1)?;
        // Later segments of the first backend belong to no flow.
        bench.expect_refused(&Frame::tcp(BACKEND, CLIENT, tcp::ACK), Reason::NotOurs)
    }

    fn a_backend_that_drains_opens_no_connection_on_a_reused_port(bench: &mut Bench) -> Result<()> {
        let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends([11, 12]))?;
        bench.slow_down()?;
        establish(bench)?;
        bench.drain(numbers[0])?;
        exchange(bench, &[(Client, FIN_ACK), (Backend, FIN_ACK), (Client, tcp::SYN)])?;
        bench.expect_refused(&Frame::tcp(BACKEND, CLIENT, SYN_ACK), Reason::FlowEnded)?;
        expect(bench, numbers[0], [State::Closed; 2], 0)?;
        // The client repeats its SYN.
        let syn = Frame::tcp(CLIENT, VIP, tcp::SYN);
        let other = syn.clone().between(CLIENT, backends([12])[0]);
        bench.expect_sent(&syn, &other.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(12)))?;
        expect(bench, numbers[1], [State::Opening; 2], 1)
    }
}
