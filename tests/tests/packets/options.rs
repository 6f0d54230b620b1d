//! IPv4 options: all are kept, except source routes, which are refused.

use super::*;

/// Options of one kind as a header holds them (RFC 791, section 3.1; RFC 2113; RFC 7126).
const NO_OPERATIONS: [u8; 4] = [1, 1, 1, 0];
const ROUTER_ALERT: [u8; 4] = [148, 4, 0, 0];
const RECORD_ROUTE: [u8; 40] = {
    let mut option = [0; 40];
    (option[0], option[1], option[2]) = (7, 39, 4);
    option
};
const TIMESTAMP: [u8; 12] = [68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const LOOSE_SOURCE_ROUTE: [u8; 7] = [131, 7, 4, 10, 1, 0, 1];
const LOOSE_SOURCE_ROUTE_OF_TWO_WORDS: [u8; 8] = [131, 7, 4, 10, 1, 0, 1, 0];
const STRICT_SOURCE_ROUTE: [u8; 7] = [137, 7, 4, 10, 1, 0, 1];

/// A whole connection whose packets have these options in both directions.
fn tcp_connection(bench: &mut Bench, options: &[u8]) -> Result<()> {
    let backend = serve(bench, TCP)?;
    for (flags, reply) in [(tcp::SYN, false), (tcp::SYN | tcp::ACK, true), (tcp::ACK, false), (tcp::ACK, true)] {
        let payload = if flags == tcp::ACK { &b"odd"[..] } else { b"" };
        if reply {
            let frame = Frame::tcp(BACKEND, CLIENT, flags).payload(payload).ip_options(options);
            bench.expect_sent(&frame, &to_client(frame.clone()))?;
        } else {
            let frame = Frame::tcp(CLIENT, VIP, flags).payload(payload).ip_options(options);
            bench.expect_sent(&frame, &to_backend(frame.clone()))?;
        }
    }
    ensure!(states(bench)? == [State::Established, State::Established]);
    ensure!(bench.load(backend)? == 1);
    Ok(())
}

fn datagrams(bench: &mut Bench, options: &[u8]) -> Result<()> {
    serve(bench, UDP)?;
    for checksum in [true, false] {
        for length in [0, 1, 2, 1000] {
            let payload = vec![0x5a; length];
            let mut ask = Frame::udp(CLIENT, VIP).payload(&payload).ip_options(options);
            ask.transport = Transport::Udp { sport: CLIENT.port(), dport: VIP.port(), checksum };
            bench.expect_sent(&ask, &to_backend(ask.clone()))?;
            let mut answer = Frame::udp(BACKEND, CLIENT).payload(&payload).ip_options(options);
            answer.transport = Transport::Udp { sport: BACKEND.port(), dport: CLIENT.port(), checksum };
            bench.expect_sent(&answer, &to_client(answer.clone()))?;
        }
    }
    Ok(())
}

/// Options with a source route after others, at every possible place, up to the longest header.
fn source_routes() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for route in [LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE] {
        for operations in 0..=33 {
            all.push([&vec![1; operations][..], &route].concat());
        }
        for before in [&ROUTER_ALERT[..], &TIMESTAMP, &RECORD_ROUTE[..11], &[1, 148, 4, 0, 0, 1, 1, 68, 4, 5, 0]] {
            let before = if before[0] == 7 { [&[7, 11], &before[2..]].concat() } else { before.to_vec() };
            all.push([&before[..], &route].concat());
            all.push([&route[..], &before].concat());
        }
        // Cut short, or with impossible lengths: no parser may accept them.
        all.extend([vec![route[0]], vec![route[0], 0], vec![1, route[0], 1], vec![1, 1, route[0], 40, 4]]);
    }
    for options in &mut all {
        // A header has whole words; the bytes after the last option end the list.
        options.resize(options.len().next_multiple_of(4), 0);
    }
    all
}

/// Options that no parser accepts: with lengths of 0, of 1, and beyond the header.
const MALFORMED: [[u8; 8]; 8] = [
    [7, 0, 4, 0, 0, 0, 0, 0],
    [7, 1, 4, 0, 0, 0, 0, 0],
    [7, 9, 4, 0, 0, 0, 0, 0],
    [1, 1, 1, 68, 255, 5, 0, 0],
    [148, 4, 0, 0, 148, 5, 0, 0],
    [94, 0, 131, 7, 4, 10, 1, 1],
    [1, 1, 1, 1, 1, 1, 1, 148],
    [1, 1, 1, 1, 1, 1, 68, 3],
];

both_hooks! {
    fn no_operations_are_kept_in_tcp(bench: &mut Bench) -> Result<()> {
        tcp_connection(bench, &NO_OPERATIONS)
    }

    fn no_operations_are_kept_in_udp(bench: &mut Bench) -> Result<()> {
        datagrams(bench, &NO_OPERATIONS)
    }

    fn a_router_alert_is_kept_in_tcp(bench: &mut Bench) -> Result<()> {
        tcp_connection(bench, &ROUTER_ALERT)
    }

    fn a_router_alert_is_kept_in_udp(bench: &mut Bench) -> Result<()> {
        datagrams(bench, &ROUTER_ALERT)
    }

    fn a_record_route_of_the_longest_header_is_kept_in_tcp(bench: &mut Bench) -> Result<()> {
        tcp_connection(bench, &RECORD_ROUTE)
    }

    fn a_record_route_of_the_longest_header_is_kept_in_udp(bench: &mut Bench) -> Result<()> {
        datagrams(bench, &RECORD_ROUTE)
    }

    fn a_timestamp_is_kept_in_tcp(bench: &mut Bench) -> Result<()> {
        tcp_connection(bench, &TIMESTAMP)
    }

    fn a_timestamp_is_kept_in_udp(bench: &mut Bench) -> Result<()> {
        datagrams(bench, &TIMESTAMP)
    }

    fn a_source_route_opens_nothing(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        serve(bench, UDP)?;
        for options in source_routes() {
            for frame in [Frame::tcp(CLIENT, VIP, tcp::SYN), Frame::udp(CLIENT, VIP).payload(b"by way of")] {
                let context = format!("{options:?}");
                bench.expect_refused(&frame.ip_options(&options), Reason::SourceRoute).context(context)?;
            }
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn a_source_route_changes_nothing_of_a_connection(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        let flows = bench.flows()?;
        for flags in [tcp::SYN, tcp::ACK, tcp::RST, tcp::FIN | tcp::ACK] {
            for frame in [Frame::tcp(CLIENT, VIP, flags), Frame::tcp(BACKEND, CLIENT, flags)] {
                bench.expect_refused(&frame.ip_options(&LOOSE_SOURCE_ROUTE_OF_TWO_WORDS), Reason::SourceRoute)?;
            }
        }
        ensure!(bench.flows()? == flows);
        exchange(bench, &[(Side::Client, tcp::ACK), (Side::Backend, tcp::ACK)])
    }

    fn a_source_route_is_refused_with_any_content(bench: &mut Bench) -> Result<()> {
        const GUEST: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 12);
        const ELASTIC: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 101);
        const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
        bench.masquerade(Bench::VIP, false)?;
        bench.elastic(ELASTIC, GUEST, true)?;
        for [src, dst] in [[OUTSIDE, ELASTIC], [GUEST, OUTSIDE], [Ipv4Addr::new(10, 2, 0, 11), OUTSIDE]] {
            let asked = Frame::udp(SocketAddrV4::new(dst, 5353), SocketAddrV4::new(src, 53));
            let frames = [
                Frame::icmp_query(src, dst, 8, 7, b"ping"),
                Frame::icmp_error(src, dst, [3, 3], 0, &asked, 28),
                Frame::other(src, dst, 47).payload(&[0; 24]),
                Frame::udp(SocketAddrV4::new(src, 53), SocketAddrV4::new(dst, 5353)).payload(&[5; 2000]),
            ];
            let [query, error, other, datagram] = frames.map(|frame| frame.ip_options(&LOOSE_SOURCE_ROUTE_OF_TWO_WORDS));
            for frame in [query, error, other].iter().chain(&datagram.fragments(&[0, 1400])) {
                bench.expect_refused(frame, Reason::SourceRoute)?;
                let tagged = Frame { tags: vec![[0x8100, 0]], ..frame.clone() };
                bench.expect_refused(&tagged, Reason::SourceRoute)?;
            }
        }
        ensure!(bench.flows()?.is_empty() && bench.fragments()? == 0);
        Ok(())
    }

    fn the_stack_gets_a_source_route_to_other_addresses(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let other = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 80);
        for options in source_routes() {
            bench.expect_refused(&Frame::tcp(CLIENT, other, tcp::SYN).ip_options(&options), Reason::NotOurs)?;
        }
        Ok(())
    }

    fn bytes_after_the_end_of_options_are_no_options(bench: &mut Bench) -> Result<()> {
        tcp_connection(bench, &[148, 4, 0, 0, 0, 131, 7, 4, 10, 1, 0, 1])?;
        datagrams(bench, &[1, 0, 137, 7, 4, 10, 1, 1])
    }

    fn the_stack_refuses_malformed_options(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        serve(bench, UDP)?;
        for options in MALFORMED {
            for frame in [Frame::tcp(CLIENT, VIP, tcp::SYN), Frame::udp(CLIENT, VIP), Frame::udp(BACKEND, CLIENT)] {
                let context = format!("{options:?}");
                bench.expect_refused(&frame.ip_options(&options), Reason::Malformed).context(context)?;
            }
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }

    fn every_length_of_options_is_kept(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        for words in 1..=10 {
            let syn = Frame::tcp(CLIENT, VIP, tcp::SYN).ip_options(&vec![1; words * 4]);
            bench.expect_sent(&syn, &to_backend(syn.clone()))?;
        }
        Ok(())
    }

    fn options_come_and_go_within_a_connection(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        establish(bench)?;
        let plain = Frame::tcp(CLIENT, VIP, tcp::ACK).payload(b"plain");
        bench.expect_sent(&plain, &to_backend(plain.clone()))?;
        let options = plain.clone().ip_options(&ROUTER_ALERT);
        bench.expect_sent(&options, &to_backend(options.clone()))?;
        bench.expect_sent(&plain, &to_backend(plain.clone()))
    }

    fn fragments_with_options_follow_their_first_one(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let ask = Frame::udp(CLIENT, VIP).payload(&[0xa5; 2000]).ip_options(&NO_OPERATIONS);
        let sent = to_backend(ask.clone()).fragments(&[0, 1400]);
        for (fragment, expected) in ask.fragments(&[0, 1400]).iter().zip(&sent) {
            bench.expect_sent(fragment, expected)?;
        }
        Ok(())
    }

    fn the_stack_gets_a_clients_packet_with_options_whose_ttl_ends(bench: &mut Bench) -> Result<()> {
        serve(bench, UDP)?;
        let mut ask = Frame::udp(CLIENT, VIP).payload(b"old").ip_options(&NO_OPERATIONS);
        ask.ttl = 1;
        let outcome = bench.run(&ask)?;
        ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == ask.between(CLIENT, BACKEND).bytes());
        ensure!(bench.reason(Reason::TtlExpired)? == 1);
        Ok(())
    }

    fn options_to_other_addresses_are_passed_up_unchanged(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let other = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 80);
        bench.expect_refused(&Frame::tcp(CLIENT, other, tcp::SYN).ip_options(&ROUTER_ALERT), Reason::NotOurs)?;
        let igmp = Frame::other(Bench::CLIENT, Ipv4Addr::new(224, 0, 0, 22), 2).payload(&[0x22; 16]);
        bench.expect_refused(&igmp.ip_options(&ROUTER_ALERT), Reason::NotOurs)
    }

    fn options_to_a_disabled_vip_are_dropped(bench: &mut Bench) -> Result<()> {
        let service = Service { kind: Kind::Disabled as u8, ..Service::default() };
        bench.set_service(VIP, 0, ServiceKey::WHOLE_VIP, service)?;
        bench.expect_refused(&Frame::tcp(CLIENT, VIP, tcp::SYN).ip_options(&ROUTER_ALERT), Reason::Disabled)?;
        let echo = Frame::other(Bench::CLIENT, Bench::VIP, 1).payload(&[8; 40]).ip_options(&ROUTER_ALERT);
        bench.expect_refused(&echo, Reason::Disabled)
    }

    fn every_truncation_with_options_is_passed_up_unchanged(bench: &mut Bench) -> Result<()> {
        serve(bench, TCP)?;
        let whole = Frame::tcp(CLIENT, VIP, tcp::SYN).ip_options(&RECORD_ROUTE).bytes();
        for length in 34..whole.len() {
            let outcome = bench.run_bytes(&whole[..length])?;
            ensure!(outcome.verdict == Verdict::Pass && outcome.bytes == whole[..length], "{length} bytes");
        }
        ensure!(bench.flows()?.is_empty());
        Ok(())
    }
}
