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
        let (mut open, mut next) = (Vec::new(), 0);
        while bench.reason(Reason::TableFull)? < 64 {
            if open_one(bench, client(next))? {
                open.push(client(next));
            }
            next += 1;
        }
        for number in next..next + 1000 {
            bench.run(&Frame::tcp(client(number), VIP, tcp::SYN))?;
        }
        ensure!(bench.reason(Reason::TableFull)? > 500, "the table had room");
        ensure!(bench.load(backend)? as usize >= open.len());
        check_all(bench, &open)
    }
}
