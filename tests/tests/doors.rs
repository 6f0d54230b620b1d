//! What must not come in, with real hosts that send as others: what only a controller knows of it.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use vipgate_tests::{
    both_hooks,
    lab::{Host, Lab, Result, Running, UDP, report, topology::PRIVATE_ROUTER, wait_until},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const PATIENCE: Duration = Duration::from_secs(10);

/// Packets that ended for this reason.
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
    fn the_routers_own_addresses_open_nothing(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (_, _, vip) = run.cloud.balanced(VIP, UDP, &[0])?;
        let (lab, client) = (&run.lab, run.lab.client());
        client.ask_udp(vip)?;
        send_as(client, PRIVATE_ROUTER, vip)?;
        wait_until("it is dropped", PATIENCE, || {
            ensure!(dropped(lab, "martian")? == 1, "{}", report(lab, "status")?["drops"]);
            Ok(())
        })?;
        // One that the router gets while it runs.
        let late = Ipv4Addr::new(10, 9, 0, 1);
        lab.router.ip(&format!("addr add {late}/32 dev priv0"))?;
        let before = dropped(lab, "martian")?;
        wait_until("the new address is known", PATIENCE, || {
            send_as(client, late, vip)?;
            ensure!(dropped(lab, "martian")? > before, "{}", report(lab, "status")?["drops"]);
            Ok(())
        })
    }
}
