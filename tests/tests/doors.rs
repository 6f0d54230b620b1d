//! Packets that must not come in, sent by real hosts with others' source addresses: cases that need a controller's knowledge.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use vipgate_tests::{
    both_hooks,
    lab::{
        Host, Lab, Result, Running, UDP, WEB, report,
        topology::{PRIVATE_ROUTER, PUBLIC_ROUTER},
        wait_until,
    },
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// Ports of the router's own sockets.
const PORT: u16 = 9200;
const PATIENCE: Duration = Duration::from_secs(10);

/// Number of packets dropped for this reason.
fn dropped(lab: &Lab, reason: &str) -> Result<u64> {
    Ok(report(lab, "status")?["drops"][reason].as_u64().unwrap_or(0))
}

/// Sends a datagram as if the host had this address.
fn send_as(host: &Host, source: Ipv4Addr, to: SocketAddrV4) -> Result<()> {
    host.namespace.ip(&format!("addr replace {source}/32 dev eth0"))?;
    host.namespace.within(|| {
        let socket = UdpSocket::bind((source, 0)).context("cannot open a UDP socket")?;
        socket.send_to(b"who", to)?;
        Ok(())
    })
}

both_hooks! {
    fn sources_of_the_router_or_of_another_side_open_nothing(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (_, _, vip) = run.cloud.balanced(VIP, UDP, &[0])?;
        let (lab, client) = (&run.lab, run.lab.client());
        client.ask_udp(vip)?;
        send_as(client, PRIVATE_ROUTER, vip)?;
        wait_until("it is dropped", PATIENCE, || {
            ensure!(dropped(lab, "martian")? == 1, "{}", report(lab, "status")?["drops"]);
            Ok(())
        })?;
        // An address that the router gets while it runs.
        let late = Ipv4Addr::new(10, 9, 0, 1);
        lab.router.ip(&format!("addr add {late}/32 dev priv0"))?;
        let before = dropped(lab, "martian")?;
        wait_until("the new address is known", PATIENCE, || {
            send_as(client, late, vip)?;
            ensure!(dropped(lab, "martian")? > before, "{}", report(lab, "status")?["drops"]);
            Ok(())
        })?;
        // Strict reverse-path filtering that is turned on at run time is done by the programs.
        let inside = Ipv4Addr::new(10, 2, 0, 200);
        send_as(client, inside, vip)?;
        ensure!(dropped(lab, "reverse_path")? == 0);
        let filter = |value| lab.router.sysctl("net/ipv4/conf/pub0/rp_filter", value);
        filter("1")?;
        wait_until("it is strict", PATIENCE, || {
            send_as(client, inside, vip)?;
            ensure!(dropped(lab, "reverse_path")? > 0, "{}", report(lab, "status")?["drops"]);
            Ok(())
        })?;
        ensure!(lab.router.run("cat", "/proc/sys/net/ipv4/conf/pub0/rp_filter")?.trim() == "2");
        client.ask_udp(vip)?;
        filter("0")?;
        wait_until("it is loose", PATIENCE, || {
            let before = dropped(lab, "reverse_path")?;
            send_as(client, inside, vip)?;
            ensure!(dropped(lab, "reverse_path")? == before, "dropped");
            Ok(())
        })
    }

    fn the_routers_own_sockets_answer_on_its_own_addresses_alone(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (lab, client) = (&run.lab, run.lab.client());
        let (_, listener, vip) = run.cloud.balanced(VIP, WEB, &[0])?;
        client.fetch(vip)?;
        let everywhere = |port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let open = || Ok((TcpListener::bind(everywhere(PORT))?, TcpListener::bind(everywhere(vip.port()))?, UdpSocket::bind(everywhere(PORT))?));
        let (_other, _same, datagrams) = lab.router.within(open)?;
        let connect = |to: SocketAddrV4| {
            let opened = client.namespace.within(|| Ok(TcpStream::connect_timeout(&to.into(), PATIENCE)))?;
            Ok::<_, anyhow::Error>(opened.map(drop).map_err(|error| error.kind()))
        };
        let send = |to: SocketAddrV4, bytes: &[u8]| {
            client.namespace.within(|| {
                let socket = UdpSocket::bind(everywhere(0))?;
                socket.connect(to)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.send(bytes)?;
                Ok(socket)
            })
        };
        let at = |address| SocketAddrV4::new(address, PORT);
        let refused = Err(ErrorKind::ConnectionRefused);
        ensure!(connect(at(VIP))? == refused, "a port that no service has");
        for bytes in [&b"one"[..], &[7; 3000]] {
            let answer = send(at(VIP), bytes)?.recv(&mut [0; 8]).map_err(|error| error.kind());
            ensure!(answer == Err(ErrorKind::ConnectionRefused), "{} bytes: {answer:?}", bytes.len());
        }
        let closed = dropped(lab, "port_closed")?;
        ensure!(closed >= 3, "{closed} refused");
        run.cloud.remove_backends(&listener, &[0])?;
        ensure!(connect(vip)? == refused, "a listener without a backend");
        ensure!(dropped(lab, "port_closed")? == closed, "its port is a service's");
        client.ping(VIP, "")?;
        // The router's own address keeps its sockets.
        ensure!(connect(at(PUBLIC_ROUTER))?.is_ok());
        datagrams.set_read_timeout(Some(PATIENCE))?;
        let _socket = send(at(PUBLIC_ROUTER), b"own")?;
        let mut room = [0; 4000];
        ensure!(datagrams.recv(&mut room)? == 3, "another datagram arrived first");
        Ok(())
    }
}
