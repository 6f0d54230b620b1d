//! Nothing is lost: the controller ends in every way, again and again, under traffic that is counted.

use anyhow::{Context as _, ensure};
use std::net::{Ipv4Addr, SocketAddrV4};
use vipgate_tests::{
    both_hooks,
    lab::{Counts, Datagrams, ECHO, Load, Running, Standing, UDP, WEB},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// In each hook.
const ROUNDS: usize = 50;
/// TCP connections that stay through all rounds.
const SESSIONS: usize = 8;

both_hooks! {
    fn fifty_ends_and_starts_lose_no_packet_no_connection_and_no_count(hook) {
        let run = Running::new(hook, 1, 2)?;
        run.cloud.balanced_everywhere(VIP)?;
        let Running { mut controller, lab, .. } = run;
        let client = lab.client();
        let mut standing = Standing::open(client, SocketAddrV4::new(VIP, ECHO.port), SESSIONS)?;
        let datagrams = Datagrams::start(client, SocketAddrV4::new(VIP, UDP.port))?;
        let requests = Load::start(client, SocketAddrV4::new(VIP, WEB.port))?;
        datagrams.wait_for(100)?;
        requests.wait_for(10)?;

        let flows = standing.flows(&datagrams);
        let mut counts = Counts::read(&lab, &flows)?;
        for round in 0..ROUNDS {
            if round % 2 == 0 {
                controller.kill()?;
            } else {
                ensure!(controller.stop()?.success(), "an orderly end failed in round {round}");
            }
            datagrams.wait_for(20)?;
            controller = lab.start_controller()?;
            datagrams.wait_for(20)?;
            standing.ask().with_context(|| format!("in round {round}"))?;
            let next = Counts::read(&lab, &flows)?;
            counts.check_grown(&next).with_context(|| format!("in round {round}"))?;
            counts = next;
        }
        let (datagrams, requests) = (datagrams.stop()?, requests.stop()?);
        ensure!(datagrams.lost.is_empty(), "{} of {} datagrams are lost", datagrams.lost.len(), datagrams.answered);
        ensure!(requests.failures.is_empty(), "{:?}", requests.failures);
        println!("{ROUNDS} rounds, {} datagrams, {} requests: none lost", datagrams.answered, requests.answered);
        drop(controller);
        Ok(())
    }
}
