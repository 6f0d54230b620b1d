//! Programs with two flow tables, while the controller migrates flows from the secondary table: a connection goes on whichever
//! table holds it, and stays there.

use super::{
    Side::{Backend, Client},
    *,
};

const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
const FIN_ACK: u8 = tcp::FIN | tcp::ACK;

/// [`exchange`] with these segments; the tables change places before each one.
fn exchange_swapped(bench: &mut Bench, segments: &[(Side, u8)]) -> Result<()> {
    segments.iter().try_for_each(|segment| {
        bench.swap_flows()?;
        exchange(bench, &[*segment])
    })
}

fn secondary_states(bench: &mut Bench) -> Result<Vec<State>> {
    ensure!(bench.flows()?.is_empty(), "a flow of the secondary table is in the main one, too");
    let mut states: Vec<_> = bench.secondary_flows()?.into_iter().map(|(word, _)| word.state()).collect();
    states.sort();
    Ok(states)
}

/// A connection that both sides have ended more than a moment ago; returns its backend's number.
fn ended(bench: &mut Bench) -> Result<u32> {
    let backend = serve(bench, TCP)?;
    establish(bench)?;
    let second = bench.slow_down()?;
    exchange(bench, &[(Client, FIN_ACK), (Backend, FIN_ACK)])?;
    bench.age_flows(second + 1)?;
    Ok(backend)
}

both_hooks! {
    fn a_connection_in_the_secondary_table_goes_on_there(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_secondary_table(bench.hook())?;
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        bench.swap_flows()?;
        exchange(bench, &[(Client, tcp::ACK), (Backend, tcp::ACK), (Backend, tcp::ACK)])?;
        ensure!(secondary_states(bench)? == [State::Established; 2]);
        let flows = bench.secondary_flows()?;
        let packets = |reply| flows.iter().find(|(_, flow)| flow.mark.is_reply() == reply).map(|(_, flow)| flow.packets);
        ensure!((packets(false), packets(true)) == (Some(3), Some(3)), "{flows:?}");
        let traffic = bench.traffic(backend)?;
        ensure!((traffic.packets_in, traffic.packets_out, traffic.connections) == (3, 3, 1));
        ensure!(bench.load(backend)? == 1 && bench.service_load(1)? == 1);
        Ok(())
    }

    fn a_handshake_and_an_end_in_the_secondary_table_are_followed(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_secondary_table(bench.hook())?;
        let backend = serve(bench, TCP)?;
        exchange(bench, &[(Client, tcp::SYN)])?;
        bench.swap_flows()?;
        exchange(bench, &[(Backend, SYN_ACK)])?;
        ensure!(secondary_states(bench)? == [State::Answered; 2] && bench.service_load(1)? == 0);
        exchange(bench, &[(Client, tcp::ACK)])?;
        ensure!(secondary_states(bench)? == [State::Established; 2] && bench.service_load(1)? == 1);
        exchange(bench, &[(Client, FIN_ACK)])?;
        ensure!(secondary_states(bench)? == [State::Closing, State::Established] && bench.load(backend)? == 1);
        exchange(bench, &[(Backend, FIN_ACK), (Client, tcp::ACK)])?;
        ensure!(secondary_states(bench)? == [State::Closed; 2]);
        ensure!(bench.load(backend)? == 0 && bench.service_load(1)? == 0);
        Ok(())
    }

    fn a_connection_that_changes_tables_before_every_packet_is_counted_once(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_secondary_table(bench.hook())?;
        let backend = serve(bench, TCP)?;
        for _ in 0..3 {
            exchange_swapped(bench, &[(Client, tcp::SYN), (Backend, SYN_ACK), (Client, tcp::ACK), (Backend, tcp::ACK)])?;
            ensure!(bench.load(backend)? == 1 && bench.service_load(1)? == 1);
            exchange_swapped(bench, &[(Client, FIN_ACK), (Backend, FIN_ACK)])?;
            ensure!(bench.load(backend)? == 0 && bench.service_load(1)? == 0);
        }
        ensure!(bench.traffic(backend)?.connections == 3);
        Ok(())
    }

    fn a_connection_opened_again_leaves_the_secondary_table(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_secondary_table(bench.hook())?;
        let backend = ended(bench)?;
        bench.swap_flows()?;
        establish(bench)?;
        ensure!(bench.secondary_flows()?.is_empty() && states(bench)? == [State::Established; 2]);
        ensure!(bench.load(backend)? == 1);
        Ok(())
    }

    fn a_connection_opened_again_while_the_old_one_is_in_both_tables_is_in_the_main_one(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_secondary_table(bench.hook())?;
        let backend = ended(bench)?;
        bench.copy_flows_to_secondary()?;
        let syn = bench.run(&Frame::tcp(CLIENT, VIP, tcp::SYN))?;
        ensure!(syn.verdict == Verdict::Redirect, "{syn:?}");
        ensure!(states(bench)? == [State::Opening; 2], "{:?}", bench.flows()?);
        // Its answers could be taken for the old connection's, so it gets another source port.
        let port = u16::from_be_bytes([syn.bytes[34], syn.bytes[35]]);
        let seen = SocketAddrV4::new(*CLIENT.ip(), port);
        // The controller has finished the migration.
        bench.clear_secondary_flows()?;
        let answer = Frame::tcp(BACKEND, seen, SYN_ACK);
        bench.expect_sent(&answer, &to_client(answer.clone()))?;
        let data = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(b"whole");
        let sent = data.clone().between(seen, BACKEND).forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11));
        bench.expect_sent(&data, &sent)?;
        ensure!(states(bench)? == [State::Established; 2] && bench.load(backend)? == 1);
        Ok(())
    }

    fn ended_flows_of_the_secondary_table_end(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_secondary_table(bench.hook())?;
        let backend = serve(bench, TCP)?;
        establish(bench)?;
        bench.swap_flows()?;
        bench.end_flows(backend)?;
        bench.expect_refused(&Frame::tcp(BACKEND, CLIENT, tcp::RST), Reason::FlowEnded)?;
        ensure!(bench.secondary_flows()?.is_empty() && bench.load(backend)? == 0);
        bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::ACK), Reason::NoFlow)
    }

    fn datagrams_of_the_secondary_table_keep_their_backend(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_secondary_table(bench.hook())?;
        bench.serve(VIP, UDP, Algorithm::RoundRobin, &backends([11, 12]))?;
        let (ask, answer) = (Frame::udp(CLIENT, VIP), Frame::udp(BACKEND, CLIENT));
        bench.expect_sent(&ask, &to_backend(ask.clone()))?;
        bench.swap_flows()?;
        for _ in 0..3 {
            ask_and_answer(bench, &ask, &answer)?;
        }
        ensure!(secondary_states(bench)? == [State::Datagrams; 2]);
        Ok(())
    }

    fn a_port_that_is_answered_in_the_secondary_table_is_in_use(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_secondary_table(bench.hook())?;
        serve(bench, TCP)?;
        establish(bench)?;
        bench.swap_flows()?;
        let other_vip = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 80);
        bench.serve(other_vip, TCP, Algorithm::RoundRobin, &[BACKEND])?;
        let other = bench.run(&Frame::tcp(CLIENT, other_vip, tcp::SYN))?;
        ensure!(other.verdict == Verdict::Redirect && other.bytes[34..36] != CLIENT.port().to_be_bytes());
        Ok(())
    }

    fn an_error_about_a_flow_of_the_secondary_table_reaches_its_sender(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_secondary_table(bench.hook())?;
        serve(bench, UDP)?;
        bench.run(&Frame::udp(CLIENT, VIP))?;
        bench.swap_flows()?;
        let sent = Frame::udp(BACKEND, CLIENT).payload(b"x");
        let delivered = sent.clone().between(VIP, CLIENT);
        let error = Frame::icmp_error(Bench::CLIENT, Bench::VIP, [3, 3], 0, &delivered, 28);
        let turned = Frame::icmp_error(Bench::CLIENT, *BACKEND.ip(), [3, 3], 0, &sent, 28);
        bench.expect_sent(&error, &turned.forwarded(Bench::PRIVATE_MAC, Bench::backend_mac(11)))
    }
}
