//! What the programs log of packets that they do not send.

use std::time::Duration;

use vipgate_abi::config::Config;
use vipgate_agent::loader::PacketRecord;
use vipgate_tests::lab::wait_until;

use super::*;

/// Timeout for the next jiffy.
const PATIENCE: Duration = Duration::from_secs(10);
const OTHER: SocketAddrV4 = SocketAddrV4::new(Bench::VIP, 81);

/// A log record without its time; ports are 0 for protocols without ports.
fn record(reason: Reason, protocol: u8, from: SocketAddrV4, to: SocketAddrV4, device: u32) -> PacketRecord {
    PacketRecord { reason, protocol, from, to, device, at: Duration::ZERO }
}

fn without_time(record: Vec<PacketRecord>) -> Vec<PacketRecord> {
    record.into_iter().map(|record| PacketRecord { at: Duration::ZERO, ..record }).collect()
}

/// Adds listeners on two ports, one that accepts one connection and one that accepts none.
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
    fn a_refused_connection_is_logged_with_its_ends_and_its_device(bench: &mut Bench) -> Result<()> {
        refusing(bench)?;
        let mut tidings = bench.tidings(&[Reason::TooManyConnections])?;
        let before = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
        bench.run(&Frame::tcp(client(1000), VIP, tcp::SYN))?;
        let logged = tidings.take();
        ensure!(logged.iter().all(|record| record.at >= Duration::from(before)), "{logged:?}");
        let device = bench.device("pub0")?;
        ensure!(without_time(logged.clone()) == [record(Reason::TooManyConnections, TCP, client(1000), VIP, device)], "{logged:?}");
        Ok(())
    }

    fn each_reason_is_logged_once_a_period(bench: &mut Bench) -> Result<()> {
        refusing(bench)?;
        let mut tidings = bench.tidings(&[Reason::TooManyConnections, Reason::NoBackend])?;
        for port in 1000..1100 {
            bench.expect_refused(&Frame::tcp(client(port), VIP, tcp::SYN), Reason::TooManyConnections)?;
            bench.expect_refused(&Frame::tcp(client(port), OTHER, tcp::SYN), Reason::NoBackend)?;
        }
        let logged: Vec<_> = tidings.take().into_iter().map(|record| (record.reason, record.from.port())).collect();
        ensure!(logged == [(Reason::TooManyConnections, 1000), (Reason::NoBackend, 1000)], "{logged:?}");
        // From now on, a jiffy is longer than the period.
        let config = bench.config()?;
        bench.set_config(Config { tick: u32::MAX, ..config })?;
        wait_until("the next one", PATIENCE, || {
            bench.run(&Frame::tcp(client(2000), VIP, tcp::SYN))?;
            ensure!(tidings.take().iter().any(|record| record.from.port() == 2000), "nothing is logged");
            Ok(())
        })
    }

    fn reasons_that_are_not_configured_are_not_logged(bench: &mut Bench) -> Result<()> {
        refusing(bench)?;
        let mut tidings = bench.tidings(&[])?;
        bench.run(&Frame::tcp(client(1000), VIP, tcp::SYN))?;
        let config = bench.config()?;
        bench.set_config(Config { log: Reason::NoBackend.bit() | Reason::NotOurs.bit(), ..config })?;
        bench.run(&Frame::tcp(client(1000), VIP, tcp::SYN))?;
        // Ordinary reasons are never logged.
        bench.run(&Frame::udp(client(1000), SocketAddrV4::new(Bench::CLIENT, 53)))?;
        let logged = tidings.take();
        ensure!(logged.is_empty(), "{logged:?}");
        Ok(())
    }

    fn sent_packets_are_not_logged(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let mut tidings = bench.tidings(Reason::ALL)?;
        establish(bench)?;
        let logged = tidings.take();
        ensure!(logged.is_empty(), "{logged:?}");
        Ok(())
    }

    fn a_packet_that_the_stack_gets_translated_is_logged_translated(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let mut tidings = bench.tidings(&[Reason::TtlExpired])?;
        bench.run(&Frame { ttl: 1, ..Frame::udp(CLIENT, VIP) })?;
        let device = bench.device("pub0")?;
        let logged = without_time(tidings.take());
        ensure!(logged == [record(Reason::TtlExpired, UDP, CLIENT, BACKEND, device)], "{logged:?}");
        Ok(())
    }

    fn ends_are_read_at_any_place_and_are_0_if_they_are_missing(bench: &mut Bench) -> Result<()> {
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
        let logged = without_time(tidings.take());
        let expected = [
            record(Reason::TooManyConnections, TCP, client(1000), VIP, device),
            record(Reason::Fragment, UDP, portless(Bench::CLIENT), portless(Bench::VIP), device),
            record(Reason::Malformed, TCP, portless(Bench::CLIENT), portless(Bench::VIP), device),
        ];
        ensure!(logged == expected, "{logged:?}");
        Ok(())
    }
}

#[test]
fn a_packet_that_must_not_leave_is_logged_at_egress() -> Result<()> {
    let mut bench = Bench::new(Hook::Tc)?;
    let guest = Ipv4Addr::new(10, 2, 0, 11);
    bench.elastic(Bench::VIP, guest, true)?;
    let mut tidings = bench.tidings(&[Reason::Untranslated])?;
    let (from, to) = (SocketAddrV4::new(guest, 4000), SocketAddrV4::new(Bench::CLIENT, 53));
    ensure!(!bench.leaves(&Frame::udp(from, to), "pub0")?);
    let device = bench.device("pub0")?;
    let logged = without_time(tidings.take());
    ensure!(logged == [record(Reason::Untranslated, UDP, from, to, device)], "{logged:?}");
    Ok(())
}
