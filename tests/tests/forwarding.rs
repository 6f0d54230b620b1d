//! Port forwarding through the REST API, with real clients.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::json;
use vipgate_tests::{
    both_hooks,
    lab::{ECHO, Host, Lab, Result, Running, WEB, vipgate_binary, wait_until},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a test waits for a datagram that must not come.
const SILENCE: Duration = Duration::from_millis(300);

const fn vip(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(VIP, port)
}

fn bound(port: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends a datagram from the client to a VIP's port, which must arrive at this socket, and an answer back.
fn ask_and_answer(client: &UdpSocket, port: u16, guest: &UdpSocket) -> Result<()> {
    let mut buffer = [0; 64];
    client.send_to(&port.to_be_bytes(), vip(port))?;
    let (length, from) = guest.recv_from(&mut buffer).with_context(|| format!("port {port}"))?;
    ensure!(buffer[..length] == port.to_be_bytes() && from.port() == client.local_addr()?.port(), "{from} asks");
    guest.send_to(b"here", from)?;
    let (length, from) = client.recv_from(&mut buffer)?;
    ensure!(&buffer[..length] == b"here" && from == vip(port).into(), "{from} answers");
    Ok(())
}

fn nothing_comes(socket: &UdpSocket) -> Result<()> {
    socket.set_read_timeout(Some(SILENCE))?;
    let came = socket.recv_from(&mut [0; 64]);
    socket.set_read_timeout(Some(PATIENCE))?;
    ensure!(came.is_err(), "{came:?} comes");
    Ok(())
}

fn refused(client: &Host, port: u16) -> Result<()> {
    ensure!(client.fetch(vip(port)).is_err(), "port {port} answers");
    Ok(())
}

fn guest_socket(lab: &Lab, port: u16) -> Result<UdpSocket> {
    lab.backends[0].namespace.within(|| bound(port))
}

/// What `vipgate status` prints.
fn status(lab: &Lab, options: &str) -> Result<String> {
    let words = format!("status --bpffs {}{options}", lab.bpffs.path().display());
    lab.router.run(&vipgate_binary()?.display().to_string(), &words)
}

both_hooks! {
    fn a_port_leads_to_the_guests_web_server_beside_a_listener(hook) {
        let run = Running::new(hook, 1, 2)?;
        let (uuid, _, web) = run.cloud.balanced(VIP, WEB, &[1])?;
        let rule = run.cloud.forward(&uuid, "TCP", [8080, 8080], [80, 80], 0)?;
        let client = run.lab.client();
        for (options, protocol) in [("-N", "TCP"), ("-u", "UDP")] {
            run.cloud.forward(&uuid, protocol, [9000, 9009], [7000, 7009], 0)?;
            assert_eq!(client.netcat(options, vip(9000))?.backend, "backend1");
        }
        assert_eq!(client.curl(vip(8080))?.backend, "backend1");
        assert_eq!(client.curl(web)?.backend, "backend2");
        let found = run.cloud.api.query(&format!("/vips/{uuid}"))?;
        assert_eq!(found[0]["useFor"], "LoadBalancer,PortForwarding");
        run.cloud.api.delete(&format!("/port-forwarding/{rule}"))?;
        refused(client, 8080)?;
        assert_eq!(client.curl(web)?.backend, "backend2");
        Ok(())
    }

    fn each_datagram_of_a_range_comes_to_its_own_port(hook) {
        let run = Running::new(hook, 1, 1)?;
        let uuid = run.cloud.vip(VIP)?;
        run.cloud.forward(&uuid, "UDP", [5000, 5999], [15_000, 15_999], 0)?;
        let client = run.lab.client().namespace.within(|| bound(0))?;
        for port in [5000, 5001, 5511, 5512, 5999] {
            ask_and_answer(&client, port, &guest_socket(&run.lab, port + 10_000)?)?;
        }
        let outside = guest_socket(&run.lab, 16_000)?;
        client.send_to(b"beyond", vip(6000))?;
        nothing_comes(&outside)
    }

    fn one_rule_can_forward_all_ports(hook) {
        let run = Running::new(hook, 1, 1)?;
        let uuid = run.cloud.vip(VIP)?;
        run.cloud.forward(&uuid, "UDP", [1, 65_535], [1, 65_535], 0)?;
        run.cloud.forward(&uuid, "TCP", [1, 65_535], [1, 65_535], 0)?;
        let client = run.lab.client().namespace.within(|| bound(0))?;
        for port in [1, 5353, 32_768, 65_535] {
            ask_and_answer(&client, port, &guest_socket(&run.lab, port)?)?;
        }
        assert_eq!(run.lab.client().curl(vip(80))?.backend, "backend1");
        let used = run.cloud.api.get(&format!("/vips/{uuid}/usedports?protocol=UDP"))?;
        assert_eq!(used["inventories"][0]["usedPorts"].as_array().map(Vec::len), Some(65_535));
        Ok(())
    }

    fn only_allowed_clients_get_in(hook) {
        let run = Running::new(hook, 2, 1)?;
        let vip_uuid = run.cloud.vip(VIP)?;
        let [allowed, other] = &run.lab.clients[..] else { anyhow::bail!("two clients") };
        let rule = json!({
            "name": "rule", "vipUuid": vip_uuid, "protocolType": "TCP", "vmNicUuid": run.cloud.vms[0].nic,
            "vipPortStart": 80, "allowedCidr": format!("{}/32", allowed.address),
        });
        run.cloud.api.create("/port-forwarding", &rule)?;
        assert_eq!(allowed.curl(vip(80))?.backend, "backend1");
        assert!(other.fetch(vip(80)).is_err());
        let said = status(&run.lab, "")?;
        let line = format!("{VIP} tcp 80 forward from {}/32\n", allowed.address);
        assert!(said.contains(&line) && said.contains(" source_not_allowed"), "{said}");
        Ok(())
    }

    fn a_range_is_one_line_of_the_status(hook) {
        let run = Running::new(hook, 0, 1)?;
        let uuid = run.cloud.vip(VIP)?;
        run.cloud.forward(&uuid, "UDP", [1000, 2000], [3000, 4000], 0)?;
        let said = status(&run.lab, "")?;
        assert_eq!(said.matches(" forward").count(), 1, "{said}");
        assert!(said.contains(&format!("{VIP} udp 1000-2000 forward\n")), "{said}");
        let said: serde_json::Value = serde_json::from_str(&status(&run.lab, " --output json")?)?;
        let [rule] = said["services"].as_array().context("services")?.as_slice() else { anyhow::bail!("{said}") };
        assert_eq!((&rule["port"], &rule["lastPort"], &rule["forwards"]), (&json!(1000), &json!(2000), &json!(true)));
        assert_eq!(rule["backends"][0]["address"], format!("{}:3000", run.lab.backends[0].address));
        Ok(())
    }

    fn disabling_or_detaching_a_rule_ends_its_connections_and_no_others(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (uuid, _, echo) = run.cloud.balanced(VIP, ECHO, &[0])?;
        let nic = &run.cloud.vms[0].nic;
        let rule = run.cloud.forward(&uuid, "TCP", [8001, 8001], [7000, 7000], 0)?;
        let kept = run.cloud.forward(&uuid, "TCP", [8002, 8002], [7000, 7000], 0)?;
        let mut others = [run.lab.client().tcp(echo)?, run.lab.client().tcp(vip(8002))?];
        let mut ended = Vec::new();
        for (off, on) in [("disable", "enable"), ("detach", "attach")] {
            let mut session = run.lab.client().tcp(vip(8001))?;
            session.ask()?;
            match off {
                "disable" => drop(run.cloud.change_rule_state(&rule, off)?),
                _ => drop(run.cloud.api.delete(&format!("/port-forwarding/{rule}/vm-instances/nics"))?),
            }
            ensure!(session.ask().is_err(), "the connection outlives its rule, {off}");
            ensure!(run.lab.client().tcp(vip(8001)).is_err(), "a rule accepts connections, {off}");
            ended.push(session);
            match on {
                "enable" => drop(run.cloud.change_rule_state(&rule, on)?),
                _ => drop(run.cloud.api.create(&format!("/port-forwarding/{rule}/vm-instances/nics/{nic}"), &json!({}))?),
            }
            run.lab.client().tcp(vip(8001))?.ask()?;
            for other in &mut others {
                other.ask()?;
            }
        }
        run.cloud.api.delete(&format!("/port-forwarding/{kept}"))?;
        ensure!(others[1].ask().is_err() && others[0].ask().is_ok());
        Ok(())
    }

    fn a_stopped_guest_gets_nothing_and_a_destroyed_one_leaves_its_rule(hook) {
        let run = Running::new(hook, 1, 2)?;
        let uuid = run.cloud.vip(VIP)?;
        let rule = run.cloud.forward(&uuid, "TCP", [80, 80], [80, 80], 0)?;
        let client = run.lab.client();
        run.cloud.change_vm(0, "stop")?;
        refused(client, 80)?;
        run.cloud.change_vm(0, "start")?;
        assert_eq!(client.curl(vip(80))?.backend, "backend1");
        run.cloud.api.delete(&format!("/vm-instances/{}", run.cloud.vms[0].uuid))?;
        refused(client, 80)?;
        let found = run.cloud.api.query(&format!("/port-forwarding/{rule}"))?;
        assert!(found[0]["vmNicUuid"].is_null() && found[0]["state"] == "Enabled", "{found:?}");
        let other = &run.cloud.vms[1].nic;
        run.cloud.api.create(&format!("/port-forwarding/{rule}/vm-instances/nics/{other}"), &json!({}))?;
        assert_eq!(client.curl(vip(80))?.backend, "backend2");
        Ok(())
    }

    fn guests_reach_a_rule_of_their_own_router(hook) {
        let run = Running::new(hook, 0, 2)?;
        let uuid = run.cloud.vip(VIP)?;
        run.cloud.forward(&uuid, "TCP", [8080, 8080], [80, 80], 0)?;
        for guest in &run.lab.backends {
            let said = guest.namespace.run("curl", &format!("-s -m 5 http://{VIP}:8080/"))?;
            ensure!(said.contains("backend1"), "{said}");
        }
        Ok(())
    }

    fn rules_and_their_connections_survive_a_controller(hook) {
        let run = Running::new(hook, 1, 1)?;
        let uuid = run.cloud.vip(VIP)?;
        run.cloud.forward(&uuid, "TCP", [9000, 9015], [7000, 7015], 0)?;
        let mut session = run.lab.client().tcp(vip(9000))?;
        session.ask()?;
        run.controller.kill()?;
        session.ask()?;
        run.lab.client().tcp(vip(9000))?.ask()?;
        let controller = run.lab.start_controller()?;
        session.ask()?;
        let api = controller.api(&run.lab.router)?;
        api.delete(&format!("/vips/{uuid}"))?;
        ensure!(session.ask().is_err(), "the connection outlives its VIP");
        wait_until("the rules to go", PATIENCE, || {
            ensure!(api.query("/port-forwarding")?.is_empty());
            Ok(())
        })
    }
}
