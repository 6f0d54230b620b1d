//! How full the flow table gets before a new connection finds no room.

use super::*;

const BUCKETS: u32 = 1024;
const SLOTS: u32 = BUCKETS * 8;

/// A client of its own for each connection.
fn client(number: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(0x0b00_0000 + number), 40_000)
}

/// Opens a connection; false: it finds no room.
fn open_one(bench: &mut Bench, client: SocketAddrV4) -> Result<bool> {
    match bench.run(&Frame::tcp(client, VIP, tcp::SYN))?.verdict {
        Verdict::Redirect => {
            bench.run(&Frame::tcp(BACKEND, client, tcp::SYN | tcp::ACK))?;
            bench.run(&Frame::tcp(client, VIP, tcp::ACK))?;
            Ok(true)
        }
        Verdict::Drop => Ok(false),
        other => anyhow::bail!("verdict {other:?}"),
    }
}

/// Opens connections until so many percent of the table's slots are taken by established ones; gives how many were asked for
/// and how many were refused.
fn fill(bench: &mut Bench, open: &mut Vec<SocketAddrV4>, next: &mut u32, percent: u32) -> Result<(u32, u32)> {
    let (mut asked, mut refused) = (0, 0);
    while 2 * u32::try_from(open.len())? < SLOTS * percent / 100 {
        let client = client(*next);
        (asked, *next) = (asked + 1, *next + 1);
        if open_one(bench, client)? {
            open.push(client);
        } else {
            refused += 1;
        }
    }
    Ok((asked, refused))
}

/// Opens connections until the table is full of established ones: those, and the next client's number.
fn fill_up(bench: &mut Bench) -> Result<(Vec<SocketAddrV4>, u32)> {
    let (mut open, mut next) = (Vec::new(), 0);
    while bench.reason(Reason::TableFull)? < 64 {
        if open_one(bench, client(next))? {
            open.push(client(next));
        }
        next += 1;
    }
    Ok((open, next))
}

/// Each connection is there, and both its directions are found, wherever they lie.
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
        let (mut open, mut next) = (Vec::new(), 0);
        fill(bench, &mut open, &mut next, 60)?;
        ensure!(bench.reason(Reason::TableFull)? == 0, "{} refused at 60%", bench.reason(Reason::TableFull)?);
        let (asked, refused) = fill(bench, &mut open, &mut next, 70)?;
        ensure!(refused * 1000 <= asked, "{refused} of {asked} refused at 70%");
        fill(bench, &mut open, &mut next, 75)?;
        let (asked, refused) = fill(bench, &mut open, &mut next, 80)?;
        ensure!(refused * 100 <= asked, "{refused} of {asked} refused at 80%");
        ensure!(bench.load(backend)? as usize == open.len());
        check_all(bench, &open)
    }

    fn a_flood_takes_nothing_from_a_table_that_is_full_of_established_connections(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_buckets(bench.hook(), 16)?;
        let backend = serve(bench, TCP)?;
        let (open, next) = fill_up(bench)?;
        for number in next..next + 1000 {
            bench.run(&Frame::tcp(client(number), VIP, tcp::SYN))?;
        }
        ensure!(bench.reason(Reason::TableFull)? > 500, "the table had room");
        ensure!(bench.load(backend)? as usize >= open.len());
        check_all(bench, &open)
    }

    fn who_finds_no_slot_takes_one_of_a_connection_that_is_idle_for_too_long(bench: &mut Bench) -> Result<()> {
        let bench = &mut Bench::with_buckets(bench.hook(), 16)?;
        let backend = serve(bench, TCP)?;
        let (open, next) = fill_up(bench)?;
        let timeout = bench.backend(backend)?.idle_timeout * bench.config()?.second();
        bench.age_flows(timeout)?;
        // One of them goes on, and by one direction only.
        bench.run(&Frame::tcp(BACKEND, open[0], tcp::ACK))?;
        ensure!(!open_one(bench, client(next))?, "the time of a busy flow is stored once in a while only");
        bench.age_flows(1 + (1 << TOUCH_PERIOD))?;
        let refused = bench.reason(Reason::TableFull)?;
        for number in next..next + 48 {
            ensure!(open_one(bench, client(number))?, "{number} is refused beside idle ones");
        }
        ensure!(bench.reason(Reason::TableFull)? == refused);
        ensure!(bench.load(backend)? as usize <= bench.flows()?.len() / 2, "what was ended is counted");
        let goes_on = Frame::tcp(open[0], VIP, tcp::ACK);
        ensure!(bench.run(&goes_on)?.verdict == Verdict::Redirect, "ended, though one side went on");
        Ok(())
    }
}
