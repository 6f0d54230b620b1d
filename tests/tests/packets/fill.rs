//! How full the flow table gets before a new connection finds no room.

use super::*;

const BUCKETS: u32 = 1024;
const FIRST: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 0);

/// A table of 16 buckets that is full of established connections.
fn full(bench: &mut Bench) -> Result<Filling> {
    let mut filling = Filling::new(VIP, BACKEND, 16 * 8, FIRST);
    while bench.reason(Reason::TableFull)? < 64 {
        filling.ask(bench)?;
    }
    Ok(filling)
}

/// Each connection is in the table, and both its directions are found, in whichever slots.
fn check_all(bench: &mut Bench, open: &[SocketAddrV4]) -> Result<()> {
    let flows = bench.flows()?.into_iter().filter(|(word, _)| word.state() == State::Established);
    ensure!(flows.count() == 2 * open.len());
    for &client in open {
        for frame in [Frame::tcp(client, VIP, tcp::ACK), Frame::tcp(BACKEND, client, tcp::ACK)] {
            let outcome = bench.run(&frame)?;
            ensure!(outcome.verdict == Verdict::Redirect, "{client}: {:?}", outcome.verdict);
        }
    }
    Ok(())
}

both_hooks! {
    fn a_table_of_established_connections_takes_new_ones_until_it_is_nearly_full(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_buckets(bench.hook(), BUCKETS)?;
        let backend = serve(bench, TCP)?;
        let mut filling = Filling::new(VIP, BACKEND, BUCKETS * 8, FIRST);
        filling.up_to(bench, 60)?;
        ensure!(bench.reason(Reason::TableFull)? == 0, "{} refused at 60%", bench.reason(Reason::TableFull)?);
        let asked = filling.up_to(bench, 70)?;
        ensure!(asked.refused * 1000 <= asked.all, "{asked:?} at 70%");
        filling.up_to(bench, 75)?;
        let asked = filling.up_to(bench, 80)?;
        ensure!(asked.refused * 100 <= asked.all, "{asked:?} at 80%");
        ensure!(bench.load(backend)? as usize == filling.open().len());
        check_all(bench, filling.open())
    }

    fn a_flood_takes_no_slot_in_a_table_that_is_full_of_established_connections(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_buckets(bench.hook(), 16)?;
        let backend = serve(bench, TCP)?;
        let mut filling = full(bench)?;
        for _ in 0..1000 {
            let client = filling.next_client();
            bench.run(&Frame::tcp(client, VIP, tcp::SYN))?;
        }
        ensure!(bench.reason(Reason::TableFull)? > 500, "the table had room");
        ensure!(bench.load(backend)? as usize >= filling.open().len());
        check_all(bench, filling.open())
    }

    fn a_new_connection_without_a_slot_takes_that_of_one_that_is_idle_for_too_long(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_buckets(bench.hook(), 16)?;
        let backend = serve(bench, TCP)?;
        let mut filling = full(bench)?;
        let first = filling.open()[0];
        let timeout = bench.backend(backend)?.idle_timeout * bench.config()?.second();
        bench.age_flows(timeout)?;
        // One of the connections goes on, and in one direction only.
        bench.run(&Frame::tcp(BACKEND, first, tcp::ACK))?;
        ensure!(!filling.ask(bench)?, "the programs store a busy flow's time only now and then");
        bench.age_flows(1 + (1 << TOUCH_PERIOD))?;
        let refused = bench.reason(Reason::TableFull)?;
        for _ in 0..48 {
            ensure!(filling.ask(bench)?, "refused although there are idle ones");
        }
        ensure!(bench.reason(Reason::TableFull)? == refused);
        // Until no idle one is left.
        for _ in 0..256 {
            filling.ask(bench)?;
        }
        ensure!(bench.reason(Reason::TableFull)? > refused, "an active connection gave way, or one that was just made");
        ensure!(bench.load(backend)? as usize <= bench.flows()?.len() / 2, "an ended connection is still counted");
        let goes_on = Frame::tcp(first, VIP, tcp::ACK);
        ensure!(bench.run(&goes_on)?.verdict == Verdict::Redirect, "ended, though one side went on");
        Ok(())
    }
}
