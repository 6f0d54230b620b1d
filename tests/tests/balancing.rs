//! Packets from clients to backends: who gets them, whom the backends see, and what stays together.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};
use vipgate_tests::{
    both_hooks,
    lab::{ECHO, Listener, Origin, Running, UDP, WEB, host::TcpSession},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const ALL: [usize; 3] = [0, 1, 2];

/// How many of the answers came from each backend.
fn shares(origins: &[Origin]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for origin in origins {
        *shares.entry(origin.backend.as_str()).or_default() += 1;
    }
    shares
}

both_hooks! {
    fn curl_through_a_vip_reaches_every_nginx_and_each_sees_the_client_itself(hook) {
        let run = Running::new(hook, 2, 3)?;
        let (_, _, vip) = run.cloud.balanced(VIP, WEB, &ALL)?;
        for client in &run.lab.clients {
            let origins: Vec<Origin> = (0..9).map(|_| client.curl(vip)).collect::<Result<_, _>>()?;
            assert_eq!(shares(&origins).len(), 3, "{origins:?}");
            assert!(origins.iter().all(|origin| *origin.client.ip() == client.address), "{origins:?}");
        }
        Ok(())
    }

    fn round_robin_gives_each_backend_the_same_share(hook) {
        let run = Running::new(hook, 1, 3)?;
        let (_, _, vip) = run.cloud.balanced(VIP, WEB, &ALL)?;
        let origins = run.lab.client().fetch_many(vip, 60)?;
        assert_eq!(shares(&origins).into_values().collect::<Vec<_>>(), [20, 20, 20]);
        Ok(())
    }

    fn least_connections_fills_the_emptiest_backend(hook) {
        let run = Running::new(hook, 1, 3)?;
        let listener = Listener { algorithm: "leastconn", ..ECHO };
        let (_, _, vip) = run.cloud.balanced(VIP, listener, &ALL)?;
        let client = run.lab.client();
        let mut sessions = (0..9).map(|_| client.tcp(vip)).collect::<Result<Vec<_>, _>>()?;
        let origins: Vec<Origin> = sessions.iter_mut().map(TcpSession::ask).collect::<Result<_, _>>()?;
        assert_eq!(shares(&origins).into_values().collect::<Vec<_>>(), [3, 3, 3]);
        Ok(())
    }

    fn source_keeps_a_client_on_one_backend_whatever_its_port(hook) {
        let run = Running::new(hook, 6, 3)?;
        let (_, _, vip) = run.cloud.balanced(VIP, Listener { algorithm: "source", ..WEB }, &ALL)?;
        let mut used = BTreeSet::new();
        for client in &run.lab.clients {
            let origins = client.fetch_many(vip, 8)?;
            assert_eq!(shares(&origins).len(), 1, "{origins:?}");
            used.insert(origins[0].backend.clone());
        }
        assert!(used.len() > 1, "six clients all hashed to {used:?}");
        Ok(())
    }

    fn maglev_spreads_connections_over_all_backends(hook) {
        let run = Running::new(hook, 1, 3)?;
        let (_, _, vip) = run.cloud.balanced(VIP, Listener { algorithm: "maglev", ..WEB }, &ALL)?;
        let origins = run.lab.client().fetch_many(vip, 90)?;
        let shares = shares(&origins);
        assert_eq!(shares.len(), 3, "{shares:?}");
        // Ninety draws of a third each: below ten is out of reach of chance.
        assert!(shares.values().all(|share| *share >= 10), "{shares:?}");
        Ok(())
    }

    fn a_connection_stays_with_its_backend(hook) {
        let run = Running::new(hook, 1, 3)?;
        let (_, _, vip) = run.cloud.balanced(VIP, ECHO, &ALL)?;
        let mut session = run.lab.client().tcp(vip)?;
        let first = session.ask()?;
        for _ in 0..20 {
            assert_eq!(session.ask()?, first);
        }
        Ok(())
    }

    fn udp_is_balanced_by_flow_with_the_client_kept(hook) {
        let run = Running::new(hook, 1, 3)?;
        let (_, _, vip) = run.cloud.balanced(VIP, UDP, &ALL)?;
        let client = run.lab.client();
        let mut origins = Vec::new();
        for _ in 0..9 {
            let mut session = client.udp(vip)?;
            let first = session.ask()?;
            assert_eq!(session.ask()?, first, "one socket is one flow");
            assert_eq!(*first.client.ip(), client.address);
            origins.push(first);
        }
        assert_eq!(shares(&origins).into_values().collect::<Vec<_>>(), [3, 3, 3]);
        Ok(())
    }

    fn listeners_of_one_vip_do_not_mix(hook) {
        let run = Running::new(hook, 1, 2)?;
        let (_, balancer) = run.cloud.load_balancer(VIP)?;
        for (listener, vm) in [(WEB, 0), (Listener { port: 81, ..WEB }, 1)] {
            let uuid = run.cloud.listener(&balancer, listener)?;
            run.cloud.add_backends(&uuid, &[vm])?;
        }
        let udp_on_the_same_port = run.cloud.listener(&balancer, Listener { port: 80, ..UDP })?;
        run.cloud.add_backends(&udp_on_the_same_port, &[1])?;

        let client = run.lab.client();
        let at = |port| std::net::SocketAddrV4::new(VIP, port);
        assert_eq!(client.curl(at(80))?.backend, "backend1");
        assert_eq!(client.curl(at(81))?.backend, "backend2");
        assert_eq!(client.ask_udp(at(80))?.backend, "backend2");
        Ok(())
    }

    fn a_listener_without_backends_answers_nobody(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (_, listener, vip) = run.cloud.balanced(VIP, WEB, &[])?;
        assert!(run.lab.client().fetch(vip).is_err());
        run.cloud.add_backends(&listener, &[0])?;
        assert_eq!(run.lab.client().fetch(vip)?.backend, "backend1");
        Ok(())
    }

    fn bulk_data_arrives_whole(hook) {
        let run = Running::new(hook, 1, 1)?;
        let backend = &run.lab.backends[0];
        let listener = Listener { port: 5201, instance_port: 5201, ..ECHO };
        let (_, _, vip) = run.cloud.balanced(VIP, listener, &[0])?;
        let mut server = backend.namespace.command("iperf3");
        let mut server = vipgate_tests::lab::Process::start(
            "iperf3-server",
            server.args(["--server", "--one-off", "--forceflush"]),
            run.lab.directory(),
        )?;
        let patience = std::time::Duration::from_secs(20);
        vipgate_tests::lab::wait_until("iperf3 to listen", patience, || {
            anyhow::ensure!(server.said().contains("listening"), "it says {}", server.said());
            Ok(())
        })?;
        let words = format!("--client {} --port {} --bytes 64M --json", vip.ip(), vip.port());
        let report: serde_json::Value = serde_json::from_str(&run.lab.client().namespace.run("iperf3", &words)?)?;
        let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap_or_default();
        assert!(received >= 60 << 20, "{received} bytes of 64 MiB arrived");
        server.wait(patience)?;
        Ok(())
    }
}
