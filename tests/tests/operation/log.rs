//! What the log must and must not hold.

use anyhow::{Context as _, ensure};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket},
};
use serde_json::Value;
use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    ops::Range,
    os::fd::AsRawFd as _,
    time::Instant,
};
use vipgate_tests::{
    both_hooks,
    lab::{
        Cloud, Controller, ECHO, Hook, Host, Lab, LabOptions, Listener, Result, WEB, controller::PASSWORD, wait_until,
    },
};

use crate::{LOGGED, VIP, status};

#[test]
fn the_log_holds_neither_passwords_nor_sessions() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Tc, clients: 1, backends: 1 })?;
    let controller = Controller::start(&lab, &["--log-filter", "trace", "--log-format", "json"])?;
    let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
    cloud.balanced(VIP, WEB, &[0])?;
    let session = cloud.api.session().context("a session")?.to_owned();
    cloud.api.delete(&format!("/accounts/sessions/{session}"))?;
    let said = controller.said();
    assert!(said.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "a line is no JSON");
    for secret in [PASSWORD, &cloud_digest(), &session] {
        assert!(!said.contains(secret), "the log holds {secret}");
    }
    Ok(())
}

/// The log's lines about packets.
fn packet_lines(said: &str) -> Vec<String> {
    said.lines().filter(|line| line.contains("vipgate::packets")).map(str::to_owned).collect()
}

/// Sends connection requests to a service from these ports of the client, without waiting for answers.
fn request_connections(client: &Host, service: SocketAddrV4, ports: Range<u16>) -> Result<()> {
    client.namespace.within(|| {
        for port in ports {
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
            bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
            let begun = connect(socket.as_raw_fd(), &SockaddrIn::from(service));
            ensure!(begun == Err(Errno::EINPROGRESS), "{begun:?}");
        }
        Ok(())
    })
}

both_hooks! {
    fn refused_clients_are_logged_by_name_once_a_second_as_the_current_setting_says(hook) {
        let lab = Lab::new(LabOptions { hook, clients: 1, backends: 1 })?;
        let file = lab.directory().join("vipgate.toml");
        let set = |packets: &str| fs::write(&file, format!("[log]\npackets = '{packets}'\n"));
        set("info")?;
        let is_json = hook == Hook::Xdp;
        let format = if is_json { "json" } else { "human" };
        let began = Instant::now();
        let controller = Controller::start(&lab, &["--config", &file.display().to_string(), "--log-format", format])?;
        let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
        let limited = Listener { tags: &["maxConnection::1", "healthCheckTarget::tcp:80"], ..ECHO };
        let service = cloud.balanced(VIP, limited, &[0])?.2;
        let client = lab.client();
        let mut first = client.tcp(service)?;
        first.ask()?;

        let find_line = |what: &str, words: &[&str]| wait_until(what, LOGGED, || {
            let said = controller.said();
            let is_it = |line: &&str| words.iter().all(|word| line.contains(word));
            said.lines().find(is_it).map(str::to_owned).with_context(|| format!("the log does not say {words:?}"))
        });
        request_connections(client, service, 20_000..20_020)?;
        let line = find_line("the refusal", &["vipgate::packets", "too_many_connections"])?;
        let names = ["vip 10.1.0.10", "tcp 7001", "10.1.0.10:7001", "10.1.0.101:200", "pub0"];
        assert!(names.iter().all(|name| line.contains(name)), "{line}");
        if is_json {
            let line: Value = serde_json::from_str(&line)?;
            assert_eq!((&line["vip"], &line["listener"]), (&"vip 10.1.0.10".into(), &"tcp 7001".into()), "{line}");
            assert_eq!((&line["to"], &line["level"]), (&"10.1.0.10:7001".into(), &"INFO".into()), "{line}");
        }

        set("off")?;
        controller.reload()?;
        find_line("the setting", &["the settings were read again", "packets", "off"])?;
        let refused = || -> Result<u64> {
            status(&lab)?["drops"]["too_many_connections"].as_u64().context("a count")
        };
        let before = refused()?;
        request_connections(client, service, 21_000..21_020)?;
        wait_until("the requests to be refused", LOGGED, || {
            ensure!(refused()? >= before + 20, "they are not");
            Ok(())
        })?;
        set("nonsense")?;
        controller.reload()?;
        find_line("what is wrong", &["the settings stay as they were", "log.packets", "nonsense"])?;
        set("info")?;
        controller.reload()?;
        wait_until("the refusals now to be logged", LOGGED, || {
            request_connections(client, service, 22_000..22_020)?;
            ensure!(packet_lines(&controller.said()).iter().any(|line| line.contains("10.1.0.101:220")), "they are not");
            Ok(())
        })?;

        let lines = packet_lines(&controller.said());
        assert!(!lines.iter().any(|line| line.contains("10.1.0.101:210")), "logged although it was off: {lines:#?}");
        let refusals = lines.iter().filter(|line| line.contains("too_many_connections")).count();
        let seconds = began.elapsed().as_secs() + 1;
        assert!(refusals as u64 <= seconds, "{refusals} in {seconds} s: {lines:#?}");
        assert!(!controller.said().contains(PASSWORD));
        first.ask()?;
        Ok(())
    }
}

/// The digest that is sent instead of the lab's password.
fn cloud_digest() -> String {
    use sha2::{Digest as _, Sha512};
    hex::encode(Sha512::digest(PASSWORD))
}
