//! What the programs tell of packets that they do not send.

use std::time::Duration;

use vipgate_abi::config::Config;
use vipgate_agent::loader::PacketRecord;
use vipgate_tests::lab::wait_until;

use super::*;

/// For the next jiffy.
const PATIENCE: Duration = Duration::from_secs(10);
const OTHER: SocketAddrV4 = SocketAddrV4::new(Bench::VIP, 81);

/// What is told of a packet, but for its time; ports are those of what has some.
fn told(reason: Reason, protocol: u8, from: SocketAddrV4, to: SocketAddrV4, device: u32) -> PacketRecord {
    PacketRecord { reason, protocol, from, to, device, at: Duration::ZERO }
}

fn without_time(told: Vec<PacketRecord>) -> Vec<PacketRecord> {
    told.into_iter().map(|told| PacketRecord { at: Duration::ZERO, ..told }).collect()
}

/// Listeners on two ports that take one connection and none.
fn refusing(bench: &mut Bench) -> Result<()> {
    serve(bench, TCP)?;
    bench.limit(VIP, TCP, 1)?;
    establish(bench)?;
    bench.serve(OTHER, TCP, Algorithm::RoundRobin, &[])?;
    Ok(())
}

fn client(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Bench::CLIENT, port)
}

both_hooks! {
    fn a_refused_connection_is_told_with_its_ends_and_its_device(bench: &mut Bench) -> Result<()> {
        refusing(bench)?;
        let mut tidings = bench.tidings(&[Reason::TooManyConnections])?;
        let before = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
        bench.run(&Frame::tcp(client(1000), VIP, tcp::SYN))?;
        let heard = tidings.take();
        ensure!(heard.iter().all(|told| told.at >= Duration::from(before)), "{heard:?}");
        let device = bench.device("pub0")?;
        ensure!(without_time(heard.clone()) == [told(Reason::TooManyConnections, TCP, client(1000), VIP, device)], "{heard:?}");
        Ok(())
    }

    fn each_reason_is_told_once_a_period(bench: &mut Bench) -> Result<()> {
        refusing(bench)?;
        let mut tidings = bench.tidings(&[Reason::TooManyConnections, Reason::NoBackend])?;
        for port in 1000..1100 {
            bench.expect_refused(&Frame::tcp(client(port), VIP, tcp::SYN), Reason::TooManyConnections)?;
            bench.expect_refused(&Frame::tcp(client(port), OTHER, tcp::SYN), Reason::NoBackend)?;
        }
        let heard: Vec<_> = tidings.take().into_iter().map(|told| (told.reason, told.from.port())).collect();
        ensure!(heard == [(Reason::TooManyConnections, 1000), (Reason::NoBackend, 1000)], "{heard:?}");
        // A jiffy is longer than the period from now on.
        let config = bench.config()?;
        bench.set_config(Config { tick: u32::MAX, ..config })?;
        wait_until("the next one", PATIENCE, || {
            bench.run(&Frame::tcp(client(2000), VIP, tcp::SYN))?;
            ensure!(tidings.take().iter().any(|told| told.from.port() == 2000), "nothing is told");
            Ok(())
        })
    }

    fn nothing_is_told_of_reasons_that_nobody_wishes_to_know(bench: &mut Bench) -> Result<()> {
        refusing(bench)?;
        let mut tidings = bench.tidings(&[])?;
        bench.run(&Frame::tcp(client(1000), VIP, tcp::SYN))?;
        let config = bench.config()?;
        bench.set_config(Config { log: Reason::NoBackend.bit() | Reason::NotOurs.bit(), ..config })?;
        bench.run(&Frame::tcp(client(1000), VIP, tcp::SYN))?;
        // What is ordinary is never told.
        bench.run(&Frame::udp(client(1000), SocketAddrV4::new(Bench::CLIENT, 53)))?;
        let heard = tidings.take();
        ensure!(heard.is_empty(), "{heard:?}");
        Ok(())
    }

    fn what_is_sent_is_not_told(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let mut tidings = bench.tidings(Reason::ALL)?;
        establish(bench)?;
        let heard = tidings.take();
        ensure!(heard.is_empty(), "{heard:?}");
        Ok(())
    }

    fn what_the_stack_gets_translated_is_told_as_that(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let mut tidings = bench.tidings(&[Reason::TtlExpired])?;
        bench.run(&Frame { ttl: 1, ..Frame::udp(CLIENT, VIP) })?;
        let device = bench.device("pub0")?;
        let heard = without_time(tidings.take());
        ensure!(heard == [told(Reason::TtlExpired, UDP, CLIENT, BACKEND, device)], "{heard:?}");
        Ok(())
    }

    fn ends_are_read_wherever_they_lie_and_are_0_where_they_are_not(bench: &mut Bench) -> Result<()> {
        refusing(bench)?;
        let reasons = [Reason::TooManyConnections, Reason::Malformed, Reason::Fragment];
        let mut tidings = bench.tidings(&reasons)?;
        let device = bench.device("pub0")?;
        let odd = Frame::tcp(client(1000), VIP, tcp::SYN).ip_options(&[1; 8]).tagged(&[[0x8100, 0x4000]]);
        bench.run(&odd)?;
        let portless = |address| SocketAddrV4::new(address, 0);
        bench.run(&Frame::udp(client(1000), VIP).payload(&[1; 3000]).fragments(&[0, 1480])[1])?;
        let cut = Frame::tcp(client(1000), VIP, tcp::SYN).bytes();
        bench.run_bytes(&cut[..36])?;
        let heard = without_time(tidings.take());
        let expected = [
            told(Reason::TooManyConnections, TCP, client(1000), VIP, device),
            told(Reason::Fragment, UDP, portless(Bench::CLIENT), portless(Bench::VIP), device),
            told(Reason::Malformed, TCP, portless(Bench::CLIENT), portless(Bench::VIP), device),
        ];
        ensure!(heard == expected, "{heard:?}");
        Ok(())
    }
}

#[test]
fn what_must_not_leave_is_told_at_egress() -> Result<()> {
    let mut bench = Bench::new(Hook::Tc)?;
    let guest = Ipv4Addr::new(10, 2, 0, 11);
    bench.elastic(Bench::VIP, guest, true)?;
    let mut tidings = bench.tidings(&[Reason::Untranslated])?;
    let (from, to) = (SocketAddrV4::new(guest, 4000), SocketAddrV4::new(Bench::CLIENT, 53));
    ensure!(!bench.leaves(&Frame::udp(from, to), "pub0")?);
    let device = bench.device("pub0")?;
    let heard = without_time(tidings.take());
    ensure!(heard == [told(Reason::Untranslated, UDP, from, to, device)], "{heard:?}");
    Ok(())
}
