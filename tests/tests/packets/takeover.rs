//! Programs that run while connections are migrated from another version's tables: a packet's flow may not be there yet.

use super::{
    Side::{Backend, Client},
    *,
};

both_hooks! {
    fn a_segment_without_a_flow_is_not_reset_during_a_migration(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::taking_over(bench.hook())?;
        serve(bench, TCP)?;
        for flags in [tcp::ACK, tcp::SYN | tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST] {
            bench.expect_refused(&Frame::tcp(CLIENT, VIP, flags), Reason::ComingOver)?;
            // If it were passed up, it would leave with the backend's own address, and its client would reset the backend.
            bench.expect_refused(&Frame::tcp(BACKEND, CLIENT, flags), Reason::ComingOver)?;
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn new_connections_are_served_during_a_migration(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::taking_over(bench.hook())?;
        serve(bench, TCP)?;
        exchange(bench, &[(Client, tcp::SYN), (Backend, tcp::SYN | tcp::ACK), (Client, tcp::ACK), (Backend, tcp::ACK)])?;
        ensure!(states(bench)? == [State::Established; 2]);
        let bench = &mut Bench::taking_over(bench.hook())?;
        serve(bench, UDP)?;
        let (ask, answer) = (Frame::udp(CLIENT, VIP), Frame::udp(BACKEND, CLIENT));
        ask_and_answer(bench, &ask, &answer)
    }

    fn the_stack_still_gets_datagrams_without_a_flow(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::taking_over(bench.hook())?;
        serve(bench, UDP)?;
        bench.expect_refused(&Frame::udp(BACKEND, CLIENT), Reason::NotOurs)
    }
}
