//! Which connections are chosen, and in which order.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    wanted: Wanted,
}

fn wanted(words: &str) -> Wanted {
    Line::try_parse_from(["flows"].into_iter().chain(words.split_whitespace())).expect("good words").wanted
}

fn connection(client: u8, protocol: u8, state: State, packets: u32) -> Connection {
    Connection {
        outward: false,
        protocol,
        client: SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, client), 40000),
        vip: SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 10), 80),
        backend: SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 8080),
        state,
        idle: u32::from(client),
        packets_in: packets,
        bytes_in: u64::from(packets) * 60,
        packets_out: 1,
        bytes_out: 60,
    }
}

#[test]
fn every_condition_leaves_out_what_does_not_meet_it() {
    let flow = connection(101, 6, State::Established, 5);
    for words in [
        "",
        "--vip 10.1.0.10 --port 80 --client 10.1.0.101 --backend 10.2.0.11 --protocol tcp --state established",
        "--vip 10.1.0.0/24 --client 10.0.0.0/8 --backend 0.0.0.0/0 --idle 101 --direction in --protocol 6",
    ] {
        assert!(wanted(words).includes(&flow), "{words}");
    }
    for words in [
        "--vip 10.1.0.11",
        "--port 81",
        "--client 10.1.0.0/26",
        "--backend 10.2.0.12",
        "--protocol udp",
        "--protocol 47",
        "--direction out",
        "--state closing",
        "--idle 102",
    ] {
        assert!(!wanted(words).includes(&flow), "{words}");
    }
}

#[test]
fn the_top_is_the_start_of_the_whole_order() {
    let flows: Vec<_> =
        (0..50).map(|client| connection(client, 17, State::Datagrams, u32::from(client) * 7 % 50)).collect();
    for sort in ["packets", "bytes", "idle", "client", "vip", "backend"] {
        let arranged = |words: &str| {
            let mut flows = flows.clone();
            wanted(words).arrange(&mut flows);
            let keys = |flow: &Connection| (flow.packets_in, flow.bytes_in, flow.idle, flow.client);
            flows.iter().map(keys).collect::<Vec<_>>()
        };
        let (all, top) = (arranged(&format!("--sort {sort}")), arranged(&format!("--sort {sort} --top 7")));
        assert_eq!((all.len(), top.len()), (50, 7));
        // All are alike by the last two.
        assert!(["vip", "backend"].contains(&sort) || all[..7] == top, "{sort}: {top:?}");
    }
    let mut most = flows.clone();
    wanted("--top 1").arrange(&mut most);
    assert_eq!(most[0].packets_in, 49);
}

#[test]
fn both_forms_tell_the_same_connections() {
    let flows = vec![connection(1, 6, State::Established, 3), connection(2, 17, State::Datagrams, 9)];
    let shown = |output| {
        let mut text = Vec::new();
        print(flows.clone(), &wanted("--top 1"), output, &mut text).expect("written");
        String::from_utf8(text).expect("text")
    };
    let json: serde_json::Value = serde_json::from_str(&shown(Output::Json)).expect("JSON");
    assert_eq!((json["found"].as_u64(), json["connections"].as_array().map(Vec::len)), (Some(2), Some(1)));
    assert_eq!(json["connections"][0]["client"], "10.1.0.2:40000");
    let text = shown(Output::Text);
    assert!(text.contains("10.1.0.2:40000") && text.ends_with("1 of 2 connections\n"), "{text}");
}

#[test]
fn a_guests_own_connection_is_found_by_its_guest_vip_and_destination() {
    let socket = |host, port| SocketAddrV4::new(Ipv4Addr::new(10, host, 0, 1), port);
    let (client, vip, backend) = (socket(2, 77), socket(1, 78), socket(3, 0));
    let flow = Connection { outward: true, client, vip, backend, ..connection(1, 1, State::Datagrams, 5) };
    for words in ["--client 10.2.0.1 --direction out", "--vip 10.1.0.1 --protocol icmp", "--backend 10.3.0.1"] {
        assert!(wanted(words).includes(&flow), "{words}");
    }
    assert!(!wanted("--direction in").includes(&flow));
}

#[test]
fn what_is_no_address_or_protocol_is_refused_with_an_example() {
    assert_eq!(["icmp", "1", "udp", "255"].map(str::parse), [1, 1, 17, 255].map(|number| Ok(Protocol(number))));
    for text in ["ICMP", "256", ""] {
        assert!(text.parse::<Protocol>().is_err_and(|error| error.contains("47")), "{text}");
    }
    assert!("10.1.0".parse::<Network>().is_err_and(|error| error.contains("10.1.0.10")));
    assert_eq!("10.1.0.7".parse(), Ok(Network(Ipv4Net::from(Ipv4Addr::new(10, 1, 0, 7)))));
}
