//! Elastic IPs through the REST API, with real clients and real servers outside.
//!
//! The clients' default gateway is the router, so a guest's packet would be answered even if it left with its own address:
//! therefore the tests ask which source address the server outside saw.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use vipgate_tests::{
    both_hooks,
    lab::{
        Cloud, Datagrams, ECHO, Hook, Host, Process, Result, Running, Standing,
        host::{ECHO_PORT, HTTP_PORT},
        report,
        topology::{PRIVATE_DEVICE, PRIVATE_ROUTER, PUBLIC_DEVICE},
        vipgate_binary, wait_for_resets, wait_until,
    },
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);
const PATIENCE: Duration = Duration::from_secs(10);

const fn web(vip: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(vip, HTTP_PORT)
}

const fn echo(vip: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(vip, ECHO_PORT)
}

/// A lab with this many guests and one client, which also serves.
fn start(hook: Hook, guests: u8) -> Result<Running> {
    let mut run = Running::new(hook, 1, guests)?;
    run.lab.serve_outside()?;
    Ok(run)
}

/// Makes the VIP's address the VM's elastic IP; returns its uuid.
fn elastic(cloud: &Cloud, address: Ipv4Addr, vm: usize) -> Result<String> {
    cloud.elastic(&cloud.vip(address)?, vm)
}

/// The guest's source address as the server outside sees it.
fn seen_as(guest: &Host, server: &Host) -> Result<Ipv4Addr> {
    Ok(*guest.fetch(server.web())?.client.ip())
}

/// Transfers bulk TCP between a host and an address at which another host serves, in both directions.
fn bulk(run: &Running, from: &Host, to: Ipv4Addr, server: &Host) -> Result<()> {
    for direction in ["", "--reverse"] {
        let mut command = server.namespace.command("iperf3");
        let _server = Process::start("iperf3", command.args(["-s", "-1"]), run.lab.directory())?;
        let received = wait_until("iperf3 to serve", PATIENCE, || {
            let said = from.namespace.run("iperf3", &format!("-c {to} -n 20M -J {direction}"))?;
            let said: Value = serde_json::from_str(&said)?;
            said["end"]["sum_received"]["bytes"].as_u64().with_context(|| said["error"].to_string())
        })?;
        ensure!(received > 0, "nothing arrives {direction}");
    }
    Ok(())
}

/// One connection to a guest by its elastic IP, and one that the guest began.
struct Both {
    inward: Standing,
    outward: Standing,
}

impl Both {
    fn open(client: &Host, vip: Ipv4Addr, guest: &Host) -> Result<Self> {
        Ok(Self { inward: Standing::open(client, echo(vip), 2)?, outward: Standing::open(guest, client.echo(), 2)? })
    }

    fn ask(&mut self) -> Result<()> {
        self.inward.ask()?;
        self.outward.ask()
    }

    /// Neither connection is answered any more.
    fn ended(&mut self) -> Result<()> {
        ensure!(self.inward.ask().is_err() && self.outward.ask().is_err(), "a connection goes on");
        Ok(())
    }
}

both_hooks! {
    fn every_protocol_and_port_reaches_the_guest_and_both_sides_can_begin(hook) {
        let run = start(hook, 1)?;
        elastic(&run.cloud, VIP, 0)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        let origin = client.curl(web(VIP))?;
        assert_eq!((origin.backend.as_str(), *origin.client.ip()), ("backend1", client.address));
        let origin = guest.curl(client.web())?;
        assert_eq!((origin.backend.as_str(), *origin.client.ip()), ("client1", VIP));
        let (inward, outward) = (client.ask_udp(echo(VIP))?, guest.ask_udp(client.echo())?);
        assert_eq!((inward.backend.as_str(), *inward.client.ip()), ("backend1", client.address));
        assert_eq!((outward.backend.as_str(), *outward.client.ip()), ("client1", VIP));
        for options in ["-N", "-u"] {
            assert_eq!(client.netcat(options, echo(VIP))?.backend, "backend1");
            assert_eq!(*guest.netcat(options, client.echo())?.client.ip(), VIP);
        }
        for options in ["", "-s 3000", "-s 0"] {
            client.ping(VIP, options)?;
            guest.ping(client.address, options)?;
        }
        Ok(())
    }

    fn bulk_goes_both_ways_whichever_side_begins(hook) {
        let run = start(hook, 1)?;
        elastic(&run.cloud, VIP, 0)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        bulk(&run, client, VIP, guest)?;
        bulk(&run, guest, client.address, client)
    }

    fn detaching_or_disabling_an_elastic_ip_ends_its_connections_and_no_others(hook) {
        let run = start(hook, 2)?;
        let eip = elastic(&run.cloud, VIP, 0)?;
        elastic(&run.cloud, OTHER_VIP, 1)?;
        let client = run.lab.client();
        let [guest, other] = &run.lab.backends[..] else { anyhow::bail!("two guests") };
        let mut kept = Both::open(client, OTHER_VIP, other)?;
        for off in ["detach", "disable"] {
            let (mut ended, silent) = (Both::open(client, VIP, guest)?, Both::open(client, VIP, guest)?);
            match off {
                "detach" => drop(run.cloud.detach_eip(&eip)?),
                _ => drop(run.cloud.change_eip_state(&eip, off)?),
            }
            ended.ended().context(off)?;
            wait_for_resets([(client, VIP), (guest, client.address)]).context(off)?;
            drop(silent);
            ensure!(client.fetch(web(VIP)).is_err(), "a connection is accepted, {off}");
            assert_eq!(seen_as(guest, client)?, guest.address, "{off}");
            match off {
                "detach" => drop(run.cloud.attach_eip(&eip, 0)?),
                _ => drop(run.cloud.change_eip_state(&eip, "enable")?),
            }
            Both::open(client, VIP, guest)?.ask()?;
            assert_eq!(seen_as(guest, client)?, VIP, "{off}");
            kept.ask()?;
        }
        run.cloud.api.delete(&format!("/eips/{eip}"))?;
        ensure!(client.fetch(web(VIP)).is_err() && seen_as(guest, client)? == guest.address);
        kept.ask()
    }

    fn an_elastic_ip_moves_to_another_guest(hook) {
        let run = start(hook, 2)?;
        let eip = elastic(&run.cloud, VIP, 0)?;
        let client = run.lab.client();
        assert_eq!(client.curl(web(VIP))?.backend, "backend1");
        run.cloud.detach_eip(&eip)?;
        run.cloud.attach_eip(&eip, 1)?;
        assert_eq!(client.curl(web(VIP))?.backend, "backend2");
        assert_eq!(seen_as(&run.lab.backends[1], client)?, VIP);
        assert_eq!(seen_as(&run.lab.backends[0], client)?, run.lab.backends[0].address);
        Ok(())
    }

    fn a_disabled_vip_stops_the_guest_both_ways_until_it_is_enabled(hook) {
        let run = start(hook, 1)?;
        let vip = run.cloud.vip(VIP)?;
        run.cloud.elastic(&vip, 0)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        let mut session = Both::open(client, VIP, guest)?;
        run.cloud.change_vip_state(&vip, "disable")?;
        session.ended()?;
        ensure!(guest.ping(client.address, "").is_err() && client.ping(VIP, "").is_err());
        run.cloud.change_vip_state(&vip, "enable")?;
        Both::open(client, VIP, guest)?.ask()?;
        guest.ping(client.address, "")
    }

    fn a_stopped_guest_gets_nothing_and_a_destroyed_one_leaves_its_elastic_ip(hook) {
        let run = start(hook, 2)?;
        let eip = elastic(&run.cloud, VIP, 0)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        let mut session = Both::open(client, VIP, guest)?;
        run.cloud.change_vm(0, "stop")?;
        session.ended()?;
        ensure!(client.fetch(web(VIP)).is_err());
        run.cloud.change_vm(0, "start")?;
        let mut session = Both::open(client, VIP, guest)?;
        run.cloud.api.delete(&format!("/vm-instances/{}", run.cloud.vms[0].uuid))?;
        session.ended()?;
        let found = run.cloud.api.query(&format!("/eips/{eip}"))?;
        assert!(found[0]["vmNicUuid"].is_null() && found[0]["state"] == "Enabled", "{found:?}");
        run.cloud.attach_eip(&eip, 1)?;
        assert_eq!(client.curl(web(VIP))?.backend, "backend2");
        Ok(())
    }

    fn guests_reach_each_other_and_themselves_by_elastic_ips(hook) {
        let run = start(hook, 2)?;
        let vips = [VIP, OTHER_VIP];
        for (number, vip) in vips.into_iter().enumerate() {
            elastic(&run.cloud, vip, number)?;
        }
        for (asking, own) in run.lab.backends.iter().zip(vips) {
            for (answering, asked) in run.lab.backends.iter().zip(vips) {
                let origin = asking.curl(web(asked))?;
                assert_eq!((&origin.backend, *origin.client.ip()), (&answering.name, own));
                let origin = asking.ask_udp(echo(asked))?;
                assert_eq!((&origin.backend, *origin.client.ip()), (&answering.name, own));
                for options in ["", "-s 3000"] {
                    asking.ping(asked, options)?;
                }
            }
        }
        bulk(&run, &run.lab.backends[0], OTHER_VIP, &run.lab.backends[1])
    }

    fn of_several_elastic_ips_of_a_guest_the_asked_one_answers_and_the_first_is_its_source(hook) {
        let run = start(hook, 1)?;
        let first = elastic(&run.cloud, VIP, 0)?;
        elastic(&run.cloud, OTHER_VIP, 0)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        for vip in [VIP, OTHER_VIP] {
            assert_eq!(client.curl(web(vip))?.backend, "backend1");
            assert_eq!(*client.ask_udp(echo(vip))?.client.ip(), client.address);
            client.ping(vip, "")?;
        }
        let mut leading = guest.tcp(client.echo())?;
        let mut asked = client.tcp(echo(OTHER_VIP))?;
        assert_eq!(*leading.ask()?.client.ip(), VIP);
        asked.ask()?;
        run.cloud.detach_eip(&first)?;
        ensure!(leading.ask().is_err(), "a connection outlives its elastic IP");
        assert_eq!(seen_as(guest, client)?, OTHER_VIP);
        // An elastic IP that is attached last comes last.
        run.cloud.attach_eip(&first, 0)?;
        assert_eq!(seen_as(guest, client)?, OTHER_VIP);
        asked.ask()?;
        assert_eq!(client.curl(web(VIP))?.backend, "backend1");
        Ok(())
    }

    fn rules_and_listeners_of_other_vips_lead_to_the_same_guest(hook) {
        let run = start(hook, 1)?;
        elastic(&run.cloud, VIP, 0)?;
        let uuid = run.cloud.vip(OTHER_VIP)?;
        run.cloud.forward(&uuid, "TCP", [8000, 8000], [ECHO_PORT, ECHO_PORT], 0)?;
        let balanced = Ipv4Addr::new(10, 1, 0, 12);
        let (_, _, balanced) = run.cloud.balanced(balanced, ECHO, &[0])?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        let mut session = Both::open(client, VIP, guest)?;
        for asked in [SocketAddrV4::new(OTHER_VIP, 8000), balanced] {
            let origin = client.tcp(asked)?.ask()?;
            assert_eq!((origin.backend.as_str(), *origin.client.ip()), ("backend1", client.address));
            // Including itself: for these services, clients of the guest's own network have the router's address.
            let origin = guest.tcp(asked)?.ask()?;
            assert_eq!((origin.backend.as_str(), *origin.client.ip()), ("backend1", PRIVATE_ROUTER));
        }
        session.ask()
    }

    fn errors_of_the_router_and_of_the_far_end_reach_the_guest(hook) {
        let run = start(hook, 1)?;
        elastic(&run.cloud, VIP, 0)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        // Whether or not the router has a neighbour entry for the client. The guest also asks itself: an error to it must go
        // neither to the router's address there nor to the guest's address outside.
        for asked in [client.address, VIP] {
            let error = guest.ping(asked, "-t 1").err().context("a hop is enough")?.to_string();
            ensure!(error.contains("From 10.2.0.1 ") && error.contains("Time to live exceeded"), "{error}");
        }
        // Nothing listens there.
        for (asking, asked) in [(guest, client.address), (client, VIP)] {
            let error = asking.ask_udp(SocketAddrV4::new(asked, 9)).err().context("port 9 answers")?;
            ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        }
        Ok(())
    }

    fn the_sender_learns_of_a_smaller_mtu_on_either_side(hook) {
        let run = start(hook, 1)?;
        elastic(&run.cloud, VIP, 0)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        let narrow = |device: &str, host: &Host, mtu: u32| -> Result<()> {
            run.lab.router.ip(&format!("link set {device} mtu {mtu}"))?;
            host.namespace.ip(&format!("link set eth0 mtu {mtu}")).map(drop)
        };
        for (device, far, sender, asked) in
            [(PUBLIC_DEVICE, client, guest, client.address), (PRIVATE_DEVICE, guest, client, VIP)]
        {
            narrow(device, far, 1300)?;
            // The controller follows the change of its device.
            wait_until("the sender to learn of it", PATIENCE, || {
                let error = sender.ping(asked, "-M do -s 1400").err().context("1400 bytes fit")?.to_string();
                ensure!(error.contains("mtu = 1300") || error.contains("mtu=1300"), "{error}");
                Ok(())
            })?;
            // Packets that may be fragmented are, from a flow's first packet on.
            sender.ping(asked, "-M dont -s 1400")?;
            sender.ping(asked, "-M do -s 1272")?;
            narrow(device, far, 1500)?;
        }
        narrow(PUBLIC_DEVICE, client, 1300)?;
        bulk(&run, guest, client.address, client)
    }

    fn connections_of_both_directions_survive_a_controller(hook) {
        let Running { cloud, controller, lab } = start(hook, 1)?;
        let vip = cloud.vip(VIP)?;
        cloud.elastic(&vip, 0)?;
        let (client, guest) = (lab.client(), &lab.backends[0]);
        let mut session = Both::open(client, VIP, guest)?;
        let datagrams = [Datagrams::start(client, echo(VIP))?, Datagrams::start(guest, client.echo())?];
        let all_go_on = || datagrams.iter().try_for_each(|one| one.wait_for(50));
        all_go_on()?;
        controller.kill()?;
        all_go_on()?;
        session.ask()?;
        Both::open(client, VIP, guest)?.ask()?;
        let controller = lab.start_controller()?;
        all_go_on()?;
        session.ask()?;
        for one in datagrams {
            let report = one.stop()?;
            ensure!(report.lost.is_empty(), "{report:?}");
        }
        let api = controller.api(&lab.router)?;
        api.delete(&format!("/vips/{vip}"))?;
        session.ended()?;
        ensure!(api.query("/eips")?.is_empty());
        Ok(())
    }

    fn status_and_flows_report_elastic_ips_and_what_guests_begin(hook) {
        let run = start(hook, 1)?;
        elastic(&run.cloud, VIP, 0)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        let (inward, outward) = (client.ask_udp(echo(VIP))?, guest.ask_udp(client.echo())?);
        let status = report(&run.lab, "status")?;
        let [service] = status["services"].as_array().context("services")?.as_slice() else { anyhow::bail!("{status}") };
        assert_eq!((&service["vip"], &service["elastic"]), (&json!(VIP), &json!(true)));
        assert_eq!(service["backends"][0]["connections"], 2, "{service}");
        let words = format!("status --bpffs {}", run.lab.bpffs.path().display());
        let said = run.lab.router.run(&vipgate_binary()?.display().to_string(), &words)?;
        ensure!(said.contains(&format!("{VIP} elastic\n  {} ", guest.address)), "{said}");
        let flows = report(&run.lab, "flows")?;
        let flows = flows["connections"].as_array().context("connections")?;
        for (direction, client, vip, backend) in [
            ("in", inward.client, echo(VIP), guest.echo()),
            ("out", SocketAddrV4::new(guest.address, outward.client.port()), outward.client, client.echo()),
        ] {
            let flow = flows.iter().find(|flow| flow["direction"] == direction);
            let flow = flow.with_context(|| format!("no flow {direction}: {flows:?}"))?;
            assert_eq!((&flow["client"], &flow["vip"], &flow["backend"]), (&json!(client), &json!(vip), &json!(backend)));
        }
        Ok(())
    }
}
