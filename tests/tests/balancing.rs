//! Packets from clients to backends: which backend gets them, which client the backend sees, and what stays together.

use anyhow::ensure;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};
use vipgate_tests::{
    both_hooks,
    lab::{
        CHECKED_BY_WEB, ECHO, Listener, Origin, Result, Running, UDP, WEB, Wire, host::TcpSession, report, wait_until,
    },
    packet::{Frame, tcp},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// The router's address in the backends' network.
const PRIVATE_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
const ALL: [usize; 3] = [0, 1, 2];
/// A transfer without a byte for this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// The number of answers from each backend.
fn shares(origins: &[Origin]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for origin in origins {
        *shares.entry(origin.backend.as_str()).or_default() += 1;
    }
    shares
}

both_hooks! {
    fn curl_through_a_vip_reaches_every_nginx_and_each_sees_the_client(hook) {
        let run = Running::new(hook, 2, 3)?;
        let (_, _, vip) = run.cloud.balanced(VIP, WEB, &ALL)?;
        for client in &run.lab.clients {
            let origins: Vec<Origin> = (0..9).map(|_| client.curl(vip)).collect::<Result<_>>()?;
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

    // The stranger knows only addresses and ports (RFC 5961). netfilter's connection lives on, too.
    fn a_connection_that_a_stranger_tries_to_end_goes_on_and_counts(hook) {
        let run = Running::new(hook, 2, 2)?;
        let (_, _, vip) = run.cloud.balanced(VIP, ECHO, &[0, 1])?;
        let mut session = run.lab.client().tcp(vip)?;
        let origin = session.ask()?;
        let stranger = Wire::of(&run.lab, &run.lab.clients[1])?;
        let is = |state: &str| {
            let flows = report(&run.lab, "flows")?;
            ensure!(flows["connections"][0]["state"] == state, "{flows}");
            Ok(())
        };
        for (flags, state) in
            [(&[tcp::RST][..], "reset"), (&[tcp::RST, tcp::SYN], "reset"), (&[tcp::FIN | tcp::ACK], "closing")]
        {
            for flags in flags {
                ensure!(stranger.send(&stranger.to_router(Frame::tcp(origin.client, vip, *flags))));
            }
            wait_until("the forged segments arrive", PATIENCE, || is(state))?;
            ensure!(session.ask()? == origin, "{state}");
            if state == "reset" {
                wait_until("it counts again", PATIENCE, || {
                    ensure!(session.ask()? == origin);
                    is("established")
                })?;
            }
        }
        Ok(())
    }

    // A kernel may use one port for connections to different destinations; here they reach the same backend.
    fn a_client_may_use_one_port_for_two_listeners_of_one_backend_at_once(hook) {
        const PORTS: usize = 8;
        let run = Running::new(hook, 1, 1)?;
        let (_, balancer) = run.cloud.load_balancer(VIP)?;
        let listeners = [ECHO, Listener { port: ECHO.port + 1, ..ECHO }];
        for listener in listeners {
            let uuid = run.cloud.listener(&balancer, listener)?;
            run.cloud.add_backends(&uuid, &[0])?;
        }
        let client = run.lab.client();
        client.namespace.sysctl("net/ipv4/ip_local_port_range", "50000 50007")?;
        let mut sessions = Vec::new();
        for listener in listeners {
            for _ in 0..PORTS {
                sessions.push(client.tcp(SocketAddrV4::new(VIP, listener.port))?);
            }
        }
        let origins: Vec<Origin> = sessions.iter_mut().map(TcpSession::ask).collect::<Result<_>>()?;
        let seen: BTreeSet<_> = origins.iter().map(|origin| origin.client).collect();
        assert_eq!(seen.len(), 2 * PORTS, "{seen:?}");
        assert!(seen.iter().all(|seen| *seen.ip() == client.address), "{seen:?}");
        Ok(())
    }

    fn least_connections_fills_the_emptiest_backend(hook) {
        let run = Running::new(hook, 1, 3)?;
        let listener = Listener { algorithm: "leastconn", ..ECHO };
        let (_, _, vip) = run.cloud.balanced(VIP, listener, &ALL)?;
        let client = run.lab.client();
        let mut sessions = (0..9).map(|_| client.tcp(vip)).collect::<Result<Vec<_>>>()?;
        let origins: Vec<Origin> = sessions.iter_mut().map(TcpSession::ask).collect::<Result<_>>()?;
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
        // Ninety draws with a probability of a third: fewer than ten practically never happens.
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
        let at = |port| SocketAddrV4::new(VIP, port);
        assert_eq!(client.curl(at(80))?.backend, "backend1");
        assert_eq!(client.curl(at(81))?.backend, "backend2");
        assert_eq!(client.ask_udp(at(80))?.backend, "backend2");
        Ok(())
    }

    fn a_listener_without_backends_refuses_at_once(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (_, listener, vip) = run.cloud.balanced(VIP, WEB, &[])?;
        let Err(refused) = run.lab.client().fetch(vip) else { anyhow::bail!("the request is answered") };
        let kind = refused.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::ConnectionRefused), "{refused:#}");
        run.cloud.add_backends(&listener, &[0])?;
        assert_eq!(run.lab.client().fetch(vip)?.backend, "backend1");
        Ok(())
    }

    fn backends_get_shares_by_their_weights(hook) {
        let run = Running::new(hook, 1, 2)?;
        let (_, listener, vip) = run.cloud.balanced(VIP, Listener { algorithm: "weightroundrobin", ..WEB }, &[0])?;
        let nics = [&run.cloud.vms[0].nic, &run.cloud.vms[1].nic];
        let first = json!({
            "resourceType": "LoadBalancerListenerVO",
            "resourceUuid": listener,
            "tag": format!("balancerWeight::{}::90", nics[0]),
        });
        run.cloud.api.create("/system-tags", &first)?;
        let second = json!({
            "params": { "vmNicUuids": [nics[1]] },
            "systemTags": [format!("balancerWeight::{}::30", nics[1])],
        });
        run.cloud.api.post(&format!("/load-balancers/listeners/{listener}/vm-instances/nics"), &second)?;
        let of_the_second = || -> Result<usize> {
            let origins = run.lab.client().fetch_many(vip, 40)?;
            Ok(origins.iter().filter(|origin| origin.backend == "backend2").count())
        };
        assert_eq!(of_the_second()?, 10);
        run.cloud.change_tag(&listener, &format!("balancerWeight::{}::0", nics[1]))?;
        assert_eq!(of_the_second()?, 0);
        Ok(())
    }

    fn a_udp_client_gets_the_backends_port_unreachable_error(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (_, _, vip) = run.cloud.balanced(VIP, Listener { instance_port: 7999, tags: CHECKED_BY_WEB, ..UDP }, &[0])?;
        let mut session = run.lab.client().udp(vip)?;
        let error = session.ask().expect_err("nothing listens there").root_cause().to_string();
        assert!(error.contains("refused"), "the backend's ICMP error is lost on the way: {error}");
        Ok(())
    }

    fn bulk_data_arrives_complete_in_both_directions(hook) {
        let run = Running::new(hook, 1, 1)?;
        mirror(&run, 32 << 20, 32 << 20)
    }

    fn a_client_learns_the_smaller_mtu_towards_the_backend(hook) {
        let run = Running::new(hook, 1, 1)?;
        // Neither end knows the MTU: only the router can tell the client. Answers fit.
        run.lab.router.ip("link set priv0 mtu 1300")?;
        mirror(&run, 1 << 20, 1000)
    }

    fn a_large_datagram_and_its_answer_arrive_in_fragments(hook) {
        let run = Running::new(hook, 1, 1)?;
        mirror_datagram(&run, 20_000)
    }

    fn a_full_listener_lets_clients_wait_until_there_is_room(hook) {
        let run = Running::new(hook, 1, 1)?;
        let limited = Listener { tags: &["maxConnection::2", "healthCheckTarget::tcp:80"], ..ECHO };
        let (vip_uuid, balancer) = run.cloud.load_balancer(VIP)?;
        let make = || -> Result<String> {
            let listener = run.cloud.listener(&balancer, limited)?;
            run.cloud.add_backends(&listener, &[0])?;
            Ok(listener)
        };
        let (client, vip) = (run.lab.client(), SocketAddrV4::new(VIP, limited.port));
        let mut listener = make()?;
        let mut ended = vec![client.tcp(vip)?, client.tcp(vip)?];
        assert!(client.tcp(vip).is_err(), "a third connection");
        // An ended connection no longer counts, whether its client knows of the end or not.
        for event in ["disable", "enable"] {
            run.cloud.change_vip_state(&vip_uuid, event)?;
        }
        ended.extend([client.tcp(vip)?, client.tcp(vip)?]);
        run.cloud.api.delete(&format!("/load-balancers/listeners/{listener}"))?;
        listener = make()?;
        let mut first = client.tcp(vip)?;
        let mut second = client.tcp(vip)?;
        drop(ended);
        assert_eq!((first.ask()?.backend, second.ask()?.backend), ("backend1".into(), "backend1".into()));
        drop(first);
        wait_until("the room that the first one left", PATIENCE, || client.tcp(vip)?.ask())?;
        run.cloud.change_tag(&listener, "maxConnection::0")?;
        let mut more = (0..20).map(|_| client.tcp(vip)).collect::<Result<Vec<_>>>()?;
        more.iter_mut().try_for_each(|session| session.ask().map(drop))?;
        assert_eq!(second.ask()?.backend, "backend1");
        Ok(())
    }

    fn a_client_in_the_backends_network_is_served(hook) {
        let run = Running::new(hook, 1, 2)?;
        let (_, balancer) = run.cloud.load_balancer(VIP)?;
        for listener in [WEB, UDP] {
            let uuid = run.cloud.listener(&balancer, listener)?;
            run.cloud.add_backends(&uuid, &[0])?;
        }
        // A client next to the backend, and the backend itself.
        for client in [&run.lab.backends[1].namespace, &run.lab.backends[0].namespace] {
            for _ in 0..10 {
                let answer = client.run("curl", &format!("--silent --show-error --fail --max-time 3 http://{VIP}/"))?;
                let origin: Origin = answer.parse()?;
                assert_eq!((origin.backend.as_str(), *origin.client.ip()), ("backend1", PRIVATE_ROUTER));
            }
            let answer = client.within(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect((VIP, UDP.port))?;
                socket.send(b"1")?;
                let mut answer = [0; 128];
                let length = socket.recv(&mut answer)?;
                Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
            })?;
            assert!(answer.starts_with(&format!("1 backend1 {PRIVATE_ROUTER}:")), "{answer}");
        }
        // Clients from elsewhere are still seen by their own addresses.
        let client = run.lab.client();
        assert_eq!(*client.fetch(SocketAddrV4::new(VIP, WEB.port))?.client.ip(), client.address);
        Ok(())
    }

    fn a_vip_answers_an_echo_request_while_it_is_enabled(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (vip, _, _) = run.cloud.balanced(VIP, WEB, &[0])?;
        let ping = || run.lab.client().namespace.run("ping", &format!("-c1 -W1 {VIP}"));
        ping()?;
        run.cloud.change_vip_state(&vip, "disable")?;
        assert!(ping().is_err(), "a Disabled VIP answers");
        run.cloud.change_vip_state(&vip, "enable")?;
        wait_until("the VIP to answer", PATIENCE, || ping().map(drop))
    }

    fn jumbo_frames_carry_streams(hook) {
        let run = Running::new(hook, 1, 1)?;
        run.lab.set_mtu(9000)?;
        mirror(&run, 16 << 20, 16 << 20)
    }

    fn jumbo_frames_carry_datagrams(hook) {
        let run = Running::new(hook, 1, 1)?;
        run.lab.set_mtu(9000)?;
        mirror_datagram(&run, 8192)
    }

    fn a_backend_learns_the_smaller_mtu_towards_the_client(hook) {
        let run = Running::new(hook, 1, 1)?;
        run.lab.router.ip("link set pub0 mtu 1300")?;
        // The client sends packets that fit but announces a larger MSS, like a client with a small MTU beyond its gateway.
        run.lab.client().namespace.ip("route change 10.1.0.0/24 dev eth0 mtu 1300 advmss 1460")?;
        mirror(&run, 1 << 20, 1 << 20)
    }
}

/// Sends a datagram of `length` bytes through a VIP to a backend that returns it.
fn mirror_datagram(run: &Running, length: u32) -> Result<()> {
    let listener = Listener { port: 9000, instance_port: 9001, tags: CHECKED_BY_WEB, ..UDP };
    let (_, _, vip) = run.cloud.balanced(VIP, listener, &[0])?;
    let backend = &run.lab.backends[0].namespace;
    let socket = backend.within(|| Ok(UdpSocket::bind(("0.0.0.0", listener.instance_port))?))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let server = backend.spawn(move || -> Result<()> {
        let mut buffer = vec![0; 65536];
        let (length, client) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..length], client)?;
        Ok(())
    })?;
    let sent: Vec<u8> = (0..length).map(|index| (index % 249) as u8).collect();
    let returned = run.lab.client().namespace.within(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&sent, vip)?;
        let mut buffer = vec![0; 65536];
        let (length, _) = socket.recv_from(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    })?;
    assert!(returned == sent, "{} bytes came back", returned.len());
    server.join().expect("the server does not panic")??;
    Ok(())
}

/// Sends `length` bytes through a VIP to a backend, which returns the last `back` of them once it has them all.
fn mirror(run: &Running, length: usize, back: usize) -> Result<()> {
    let listener = Listener { port: 9000, instance_port: 9001, tags: CHECKED_BY_WEB, ..ECHO };
    let (_, _, vip) = run.cloud.balanced(VIP, listener, &[0])?;
    let backend = &run.lab.backends[0].namespace;
    let socket = backend.within(|| Ok(TcpListener::bind(("0.0.0.0", listener.instance_port))?))?;
    let server = backend.spawn(move || -> Result<()> {
        let (mut stream, _) = socket.accept()?;
        let mut data = Vec::with_capacity(length);
        stream.read_to_end(&mut data)?;
        Ok(stream.write_all(data.get(data.len().saturating_sub(back)..).unwrap_or_default())?)
    })?;
    let sent: Vec<u8> = (0..length).map(|index| (index / 7 % 251) as u8).collect();
    let returned = run.lab.client().namespace.within(|| {
        let mut stream = TcpStream::connect(vip)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&sent)?;
        stream.shutdown(Shutdown::Write)?;
        let mut returned = Vec::with_capacity(back);
        stream.read_to_end(&mut returned)?;
        Ok(returned)
    })?;
    assert!(
        returned == sent[length - back..],
        "{} of {back} bytes came back, not all of them the same",
        returned.len()
    );
    server.join().expect("the server does not panic")??;
    Ok(())
}
