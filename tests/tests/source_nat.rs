//! Source NAT through the REST API, with real guests and a real server outside.
//!
//! The server's default gateway is the router, so a guest would be answered even without translation: therefore the tests ask
//! which source address the server saw.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use reqwest::Method;
use serde_json::json;
use vipgate_tests::{
    both_hooks,
    lab::{
        Capture, Cloud, Datagrams, ECHO, Hook, Host, Namespace, Origin, Result, Running, Standing, UDP, WEB,
        cloud::uuid,
        host::ECHO_PORT,
        leftovers::unique,
        report,
        topology::{PRIVATE_ROUTER, PUBLIC_ROUTER},
        wait_for_resets, wait_until,
    },
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const PATIENCE: Duration = Duration::from_secs(10);

/// A lab with one client, which also serves, and this many guests, whose network leaves by the router's address.
fn start(hook: Hook, guests: u8) -> Result<Running> {
    let mut run = Running::new(hook, 1, guests)?;
    run.lab.serve_outside()?;
    run.cloud.attach_services(&["SNAT"])?;
    Ok(run)
}

/// The guest's source address as the server outside sees it.
fn seen_as(guest: &Host, server: &Host) -> Result<Ipv4Addr> {
    Ok(*guest.fetch(server.web())?.client.ip())
}

/// The uuid of the router's own VIP.
fn own_vip(cloud: &Cloud) -> Result<String> {
    let found = cloud.api.query(&format!("/vips?q=ip={PUBLIC_ROUTER}"))?;
    let [vip] = found.as_slice() else { anyhow::bail!("{found:?}") };
    ensure!(vip["useFor"].as_str().is_some_and(|uses| uses.split(',').any(|one| one == "SNAT")), "{vip}");
    vip["uuid"].as_str().map(str::to_owned).context("a VIP has a uuid")
}

/// A UDP socket in the namespace, on this port of any address; 0 is any port.
fn bound(namespace: &Namespace, port: u16) -> Result<UdpSocket> {
    namespace.within(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    })
}

/// The socket's address and port as the echo service outside sees them, from the answer to this question.
fn asked(socket: &UdpSocket, question: &str, server: &Host) -> Result<SocketAddrV4> {
    socket.send_to(question.as_bytes(), server.echo())?;
    let mut answer = [0; 128];
    let length = socket.recv(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    let (echoed, origin) = answer.split_once(' ').with_context(|| format!("not an echo: {answer}"))?;
    ensure!(echoed == question, "the answer to {question} is {answer}");
    Ok(origin.parse::<Origin>()?.client)
}

/// The source address that the socket sees in a datagram which the host sends to `address`.
fn sender(host: &Host, socket: &UdpSocket, address: Ipv4Addr) -> Result<IpAddr> {
    let to = SocketAddrV4::new(address, socket.local_addr()?.port());
    bound(&host.namespace, 0)?.send_to(b"who am I", to)?;
    Ok(socket.recv_from(&mut [0; 64])?.1.ip())
}

both_hooks! {
    fn a_network_leaves_by_the_routers_address_while_the_service_is_attached(hook) {
        let mut run = Running::new(hook, 1, 1)?;
        run.lab.serve_outside()?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        let mut before = guest.tcp(client.echo())?;
        assert_eq!(*before.ask()?.client.ip(), guest.address);
        run.cloud.attach_services(&["SNAT"])?;
        let mut during = guest.tcp(client.echo())?;
        let mut datagrams = guest.udp(client.echo())?;
        assert_eq!(*during.ask()?.client.ip(), PUBLIC_ROUTER);
        assert_eq!(*datagrams.ask()?.client.ip(), PUBLIC_ROUTER);
        assert_eq!(*guest.curl(client.web())?.client.ip(), PUBLIC_ROUTER);
        for options in ["-N", "-u"] {
            assert_eq!(*guest.netcat(options, client.echo())?.client.ip(), PUBLIC_ROUTER);
        }
        for options in ["", "-s 3000", "-s 0"] {
            guest.ping(client.address, options)?;
        }
        drop(before);
        let mut silent = guest.tcp(client.echo())?;
        silent.ask()?;
        run.cloud.detach_service("SNAT")?;
        ensure!(during.ask().is_err(), "a connection outlives the service");
        wait_for_resets([(client, PUBLIC_ROUTER), (guest, client.address)])?;
        silent.wait_for_reset()?;
        assert_eq!(*datagrams.ask()?.client.ip(), guest.address);
        assert_eq!(seen_as(guest, client)?, guest.address);
        ensure!(run.cloud.api.query(&format!("/vips?q=ip={PUBLIC_ROUTER}"))?.is_empty());
        Ok(())
    }

    fn guests_with_the_same_port_reach_the_same_server_at_once(hook) {
        let run = start(hook, 6)?;
        let (client, guests) = (run.lab.client(), &run.lab.backends);
        let sockets = guests.iter().map(|guest| bound(&guest.namespace, 5353)).collect::<Result<Vec<_>>>()?;
        for round in 0..3 {
            let mut seen = BTreeSet::new();
            for (number, socket) in sockets.iter().enumerate() {
                socket.send_to(format!("{round}/{number}").as_bytes(), client.echo())?;
            }
            for (number, socket) in sockets.iter().enumerate() {
                let mut answer = [0; 128];
                let length = socket.recv(&mut answer)?;
                let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
                let (echoed, origin) = answer.split_once(' ').context("no echo")?;
                let origin: Origin = origin.parse()?;
                assert_eq!((echoed, *origin.client.ip()), (format!("{round}/{number}").as_str(), PUBLIC_ROUTER));
                ensure!(seen.insert(origin.client.port()), "two guests have port {}", origin.client.port());
            }
        }
        std::thread::scope(|scope| -> Result<()> {
            let curl = |guest: &Host| -> Result<Origin> {
                let words = format!("-s -m 5 --local-port 4000 http://{}/", client.web());
                guest.namespace.run("curl", &words)?.parse()
            };
            let asking: Vec<_> = guests.iter().map(|guest| scope.spawn(move || curl(guest))).collect();
            asking.into_iter().try_for_each(|one| {
                assert_eq!(*one.join().expect("no panic")?.client.ip(), PUBLIC_ROUTER);
                Ok(())
            })
        })
    }

    fn an_elastic_ip_wins_over_source_nat(hook) {
        let run = start(hook, 2)?;
        let client = run.lab.client();
        let [guest, other] = &run.lab.backends[..] else { anyhow::bail!("two guests") };
        let mut shared = Standing::open(other, client.echo(), 1)?;
        let mut earlier = guest.tcp(client.echo())?;
        assert_eq!(*earlier.ask()?.client.ip(), PUBLIC_ROUTER);
        let eip = run.cloud.elastic(&run.cloud.vip(VIP)?, 0)?;
        assert_eq!((seen_as(guest, client)?, seen_as(other, client)?), (VIP, PUBLIC_ROUTER));
        assert_eq!(*client.ask_udp(SocketAddrV4::new(VIP, ECHO_PORT))?.client.ip(), client.address);
        // Its neighbours reach it by its elastic IP, too.
        assert_eq!(other.curl(SocketAddrV4::new(VIP, 80))?.backend, "backend1");
        run.cloud.detach_eip(&eip)?;
        assert_eq!((seen_as(guest, client)?, seen_as(other, client)?), (PUBLIC_ROUTER, PUBLIC_ROUTER));
        shared.ask()
    }

    fn listeners_and_rules_share_the_routers_own_vip(hook) {
        let run = start(hook, 2)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        let vip = own_vip(&run.cloud)?;
        let failure = run.cloud.api.refused(&Method::DELETE, &format!("/vips/{vip}"), None)?;
        assert_eq!(failure.code(), "SYS.1006", "{failure}");
        let mut outward = Standing::open(guest, client.echo(), 1)?;
        let rule = run.cloud.forward(&vip, "TCP", [40_000, 49_999], [7000, 16_999], 0)?;
        let balancer = run.cloud.api.create("/load-balancers", &json!({ "name": "balancer", "vipUuid": vip }))?;
        let listener = run.cloud.listener(&uuid(&balancer)?, ECHO)?;
        run.cloud.add_backends(&listener, &[1])?;
        let found = run.cloud.api.query(&format!("/vips/{vip}"))?;
        assert_eq!(found[0]["useFor"], "SNAT,PortForwarding,LoadBalancer");
        let mut forwarded = Standing::open(client, SocketAddrV4::new(PUBLIC_ROUTER, 40_000), 1)?;
        let mut balanced = Standing::open(client, SocketAddrV4::new(PUBLIC_ROUTER, ECHO.port), 1)?;
        // A guest's connection from a port that a rule forwards leaves by another port.
        let seen = asked(&bound(&guest.namespace, 40_007)?, "guest", client)?;
        ensure!(*seen.ip() == PUBLIC_ROUTER, "{seen}");
        for standing in [&mut outward, &mut forwarded, &mut balanced] {
            standing.ask()?;
        }
        run.cloud.api.delete(&format!("/port-forwarding/{rule}"))?;
        ensure!(forwarded.ask().is_err(), "a connection outlives its rule");
        outward.ask()?;
        balanced.ask()?;
        // The listener keeps the address.
        run.cloud.detach_service("SNAT")?;
        ensure!(outward.ask().is_err(), "a connection outlives the service");
        balanced.ask()
    }

    fn the_router_itself_connects_and_accepts_connections_as_before(hook) {
        let run = start(hook, 1)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        let router = &run.lab.router;
        seen_as(guest, client)?;
        let said = router.run("curl", &format!("-s -m 5 http://{}/", client.web()))?;
        assert_eq!(*said.parse::<Origin>()?.client.ip(), PUBLIC_ROUTER);
        router.run("ping", &format!("-c 1 -W 2 {}", client.address))?;
        let service = bound(router, 2222)?;
        for (host, address) in [(client, PUBLIC_ROUTER), (guest, PUBLIC_ROUTER), (guest, PRIVATE_ROUTER)] {
            assert_eq!(sender(host, &service, address)?, host.address);
            host.ping(address, "")?;
        }
        Ok(())
    }

    fn a_port_of_the_routers_own_sockets_is_given_to_no_guest(hook) {
        let run = start(hook, 2)?;
        let (client, router) = (run.lab.client(), &run.lab.router);
        let [guest, other] = &run.lab.backends[..] else { anyhow::bail!("two guests") };
        let own = bound(router, 4500)?;
        let first = asked(&own, "router", client)?;
        assert_eq!(first, SocketAddrV4::new(PUBLIC_ROUTER, 4500));
        // The guest comes second and gets another port.
        let masked = bound(&guest.namespace, 4500)?;
        let seen = asked(&masked, "guest", client)?;
        ensure!(*seen.ip() == PUBLIC_ROUTER && seen.port() != 4500, "{seen}");
        // The router comes second and gets its port all the same.
        let earlier = bound(&other.namespace, 4501)?;
        assert_eq!(asked(&earlier, "guest", client)?, SocketAddrV4::new(PUBLIC_ROUTER, 4501));
        let later = bound(router, 4501)?;
        for round in 0..3 {
            for (socket, port) in [(&own, 4500), (&later, 4501)] {
                let seen = asked(socket, &format!("router{round}"), client)?;
                assert_eq!(seen, SocketAddrV4::new(PUBLIC_ROUTER, port));
            }
            for (socket, port) in [(&masked, 4500), (&earlier, 4501)] {
                let seen = asked(socket, &format!("guest{round}"), client)?;
                ensure!(*seen.ip() == PUBLIC_ROUTER && seen.port() != port, "{seen}");
            }
        }
        // The same for TCP, where the router's socket has its port for one destination only.
        let curl = |namespace: &Namespace, port: u16| -> Result<SocketAddrV4> {
            let words = format!("-s -m 5 --local-port {port} http://{}/", client.web());
            Ok(namespace.run("curl", &words)?.parse::<Origin>()?.client)
        };
        let standing = router.within(|| Ok(TcpStream::connect(client.web())?))?;
        let port = standing.local_addr()?.port();
        let seen = curl(&guest.namespace, port)?;
        ensure!(seen.port() != port, "a guest has the router's port {port}");
        assert_eq!(curl(&guest.namespace, 4502)?.port(), 4502);
        assert_eq!(curl(router, 4502)?, SocketAddrV4::new(PUBLIC_ROUTER, 4502));
        // Ports that the router's stack chooses by itself are given to no guest.
        ensure!(port >= 61_440, "the router connects from port {port}");
        let socket = bound(&guest.namespace, 61_440)?;
        ensure!(asked(&socket, "guest", client)?.port() < 61_440);
        run.lab.router.run("ping", &format!("-c 1 -W 2 {}", client.address)).map(drop)
    }

    fn traffic_between_private_networks_keeps_its_source(hook) {
        let run = start(hook, 2)?;
        let [guest, other] = &run.lab.backends[..] else { anyhow::bail!("two guests") };
        assert_eq!(seen_as(guest, other)?, guest.address);
        // Another private network, on a device of its own.
        let inside = Namespace::new(unique("inside"))?;
        run.lab.router.ip(&format!("link add priv1 type veth peer name eth0 netns {}", inside.name()))?;
        run.lab.router.ip("addr add 10.3.0.1/24 dev priv1")?;
        run.lab.router.ip("link set priv1 up")?;
        inside.ip("addr add 10.3.0.9/24 dev eth0")?;
        inside.ip("link set eth0 up")?;
        inside.ip("route add default via 10.3.0.1")?;
        assert_eq!(sender(guest, &bound(&inside, 7000)?, Ipv4Addr::new(10, 3, 0, 9))?, guest.address);
        assert_eq!(seen_as(guest, run.lab.client())?, PUBLIC_ROUTER);
        Ok(())
    }

    fn errors_of_the_router_and_of_the_far_end_reach_the_guest(hook) {
        let run = start(hook, 1)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        let error = guest.ping(client.address, "-t 1").err().context("a hop is enough")?.to_string();
        ensure!(error.contains("From 10.2.0.1 ") && error.contains("Time to live exceeded"), "{error}");
        let error = guest.ask_udp(SocketAddrV4::new(client.address, 9)).err().context("port 9 answers")?;
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        Ok(())
    }

    fn a_guest_is_told_when_the_way_of_its_connection_is_forbidden_until_it_is_there_again(hook) {
        let run = start(hook, 1)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        let mut datagrams = guest.udp(client.echo())?;
        assert_eq!(*datagrams.ask()?.client.ip(), PUBLIC_ROUTER);
        let way = format!("prohibit {}/32", client.address);
        run.lab.router.run("ip", &format!("route add {way}"))?;
        wait_until("the guest to be told", PATIENCE, || {
            let error = datagrams.ask().err().context("an answer came")?;
            let told = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
            ensure!(told == Some(io::ErrorKind::HostUnreachable), "{error:#}");
            Ok(())
        })?;
        run.lab.router.run("ip", &format!("route del {way}"))?;
        wait_until("the connection to go on", PATIENCE, || {
            ensure!(*datagrams.ask()?.client.ip() == PUBLIC_ROUTER);
            Ok(())
        })
    }

    fn connections_survive_a_controller(hook) {
        let Running { cloud, controller, lab } = start(hook, 2)?;
        let (client, guest) = (lab.client(), &lab.backends[0]);
        let mut standing = Standing::open(guest, client.echo(), 3)?;
        let datagrams = Datagrams::start(&lab.backends[1], client.echo())?;
        datagrams.wait_for(50)?;
        controller.kill()?;
        datagrams.wait_for(50)?;
        standing.ask()?;
        assert_eq!(seen_as(guest, client)?, PUBLIC_ROUTER);
        let _controller = lab.start_controller()?;
        datagrams.wait_for(50)?;
        standing.ask()?;
        assert_eq!(seen_as(guest, client)?, PUBLIC_ROUTER);
        let lost = datagrams.stop()?.lost;
        ensure!(lost.is_empty(), "{lost:?} are lost");
        own_vip(&cloud).map(drop)
    }

    fn no_private_address_is_seen_outside_while_connections_are_cut(hook) {
        let run = start(hook, 1)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        let eip = run.cloud.elastic(&run.cloud.vip(VIP)?, 0)?;
        let capture = Capture::start(client, "ip", run.lab.directory())?;
        let datagrams = Datagrams::start(guest, client.echo())?;
        datagrams.wait_for(20)?;
        for _ in 0..3 {
            let mut cut = [guest.tcp(client.echo())?, client.tcp(SocketAddrV4::new(VIP, ECHO_PORT))?];
            run.cloud.detach_eip(&eip)?;
            for session in &mut cut {
                ensure!(session.ask().is_err(), "a connection outlives its elastic IP");
            }
            datagrams.wait_for(20)?;
            run.cloud.attach_eip(&eip, 0)?;
            datagrams.wait_for(20)?;
        }
        datagrams.stop()?;
        let file = capture.end()?;
        let printed = |filter: &str| client.namespace.run("tcpdump", &format!("-n -r {} {filter}", file.display()));
        let leaked = printed("src net 10.2.0.0/24")?;
        ensure!(leaked.is_empty(), "{leaked}");
        for seen in [VIP, PUBLIC_ROUTER] {
            ensure!(!printed(&format!("udp and src host {seen}"))?.is_empty(), "{seen} is never seen");
        }
        Ok(())
    }

    fn balancers_among_guests_and_guests_own_addresses_answer_who_routes_there(hook) {
        let run = start(hook, 2)?;
        let (client, guest, cloud) = (run.lab.client(), &run.lab.backends[0], &run.cloud);
        let address = Ipv4Addr::new(10, 2, 0, 200);
        let vip = json!({ "name": "inside", "l3NetworkUuid": cloud.private_l3, "requiredIp": address });
        let vip = uuid(&cloud.api.create("/vips", &vip)?)?;
        let balancer = uuid(&cloud.api.create("/load-balancers", &json!({ "name": "inside", "vipUuid": vip }))?)?;
        for listener in [WEB, ECHO, UDP] {
            let listener = cloud.listener(&balancer, listener)?;
            cloud.add_backends(&listener, &[0, 1])?;
        }
        let mut standing = Standing::open(client, SocketAddrV4::new(address, ECHO.port), 2)?;
        for _ in 0..4 {
            assert_eq!(*client.fetch(SocketAddrV4::new(address, WEB.port))?.client.ip(), client.address);
            assert_eq!(*client.ask_udp(SocketAddrV4::new(address, UDP.port))?.client.ip(), client.address);
        }
        client.ping(address, "")?;
        client.ping(PRIVATE_ROUTER, "")?;
        // Like a router that translates only what guests begin.
        let mut direct = Standing::open(client, guest.echo(), 1)?;
        assert_eq!(*client.fetch(guest.web())?.client.ip(), client.address);
        let mut datagrams = client.udp(guest.echo())?;
        client.ping(guest.address, "-s 3000")?;
        for _ in 0..2 {
            assert_eq!(seen_as(guest, client)?, PUBLIC_ROUTER);
            assert_eq!(*datagrams.ask_by(3000)?.client.ip(), client.address);
            standing.ask()?;
            direct.ask()?;
        }
        Ok(())
    }

    fn source_nat_follows_the_routers_address(hook) {
        let run = start(hook, 1)?;
        let (client, guest, router) = (run.lab.client(), &run.lab.backends[0], &run.lab.router);
        assert_eq!(seen_as(guest, client)?, PUBLIC_ROUTER);
        let follows = |address: [u8; 4]| {
            let address = Ipv4Addr::from(address);
            wait_until("guests to leave by the new address", PATIENCE, || {
                let seen = seen_as(guest, client)?;
                ensure!(seen == address, "seen as {seen}");
                Ok(())
            })?;
            let logged = "the router's address changed, and its VIP with it";
            let said = run.controller.said();
            ensure!(said.lines().any(|line| line.contains(logged) && line.contains(&address.to_string())), "{said}");
            Ok::<_, anyhow::Error>(())
        };
        // First another lease, then a network with a /32 address for each host.
        router.ip(&format!("addr del {PUBLIC_ROUTER}/24 dev pub0"))?;
        router.ip("addr add 10.1.0.5/24 dev pub0")?;
        follows([10, 1, 0, 5])?;
        router.ip("addr del 10.1.0.5/24 dev pub0")?;
        router.ip("addr add 10.1.0.6/32 dev pub0")?;
        router.ip("route add 10.1.0.0/24 dev pub0 src 10.1.0.6")?;
        follows([10, 1, 0, 6])
    }

    fn status_and_flows_report_source_nat(hook) {
        let run = start(hook, 1)?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        let seen = guest.ask_udp(client.echo())?.client;
        let status = report(&run.lab, "status")?;
        let way = &status["masquerades"][0];
        assert_eq!((&way["vip"], &way["network"]), (&json!(PUBLIC_ROUTER), &json!("10.2.0.0/24")));
        assert_eq!(way["backends"][0]["connections"], 1, "{status}");
        let flows = report(&run.lab, "flows")?;
        let flow = &flows["connections"][0];
        assert_eq!((&flow["direction"], &flow["vip"]), (&json!("out"), &json!(seen)));
        assert_eq!((&flow["client"], &flow["backend"]), (&json!(SocketAddrV4::new(guest.address, seen.port())), &json!(client.echo())));
        Ok(())
    }
}
