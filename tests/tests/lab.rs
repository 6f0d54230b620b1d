//! The lab itself, without a controller: all other tests rely on it.

use std::net::SocketAddrV4;
use vipgate_tests::lab::{
    Hook, Lab, LabOptions, Result,
    host::{ECHO_PORT, HTTP_PORT},
};

#[test]
fn clients_reach_the_backends_through_plain_routing_and_are_seen_by_their_own_addresses() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Auto, clients: 2, backends: 2 })?;
    for client in &lab.clients {
        for backend in &lab.backends {
            let http = SocketAddrV4::new(backend.address, HTTP_PORT);
            let echo = SocketAddrV4::new(backend.address, ECHO_PORT);
            let origin = client.curl(http)?;
            assert_eq!((origin.backend.as_str(), *origin.client.ip()), (backend.name.as_str(), client.address));
            let mut udp = client.udp(echo)?;
            assert_eq!(udp.ask()?.backend, backend.name);
            let mut tcp = client.tcp(echo)?;
            assert_eq!(tcp.ask()?, tcp.ask()?);
        }
    }
    Ok(())
}
