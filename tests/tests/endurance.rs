//! The controller ends in every way, again and again, under counted traffic, and nothing is lost.

use anyhow::{Context as _, ensure};
use std::net::Ipv4Addr;
use vipgate_tests::{
    both_hooks,
    lab::{Counts, Running, Traffic},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// Rounds in each hook.
const ROUNDS: usize = 50;
/// TCP connections that stay open through all rounds.
const SESSIONS: usize = 8;

both_hooks! {
    fn fifty_ends_and_starts_lose_no_packet_no_connection_and_no_count(hook) {
        let run = Running::new(hook, 1, 2)?;
        run.cloud.balanced_everywhere(VIP)?;
        let Running { mut controller, lab, .. } = run;
        let mut traffic = Traffic::start(&lab, VIP, SESSIONS)?;

        let flows = traffic.flows();
        let mut counts = Counts::read(&lab, &flows)?;
        for round in 0..ROUNDS {
            if round % 2 == 0 {
                controller.kill()?;
            } else {
                ensure!(controller.stop()?.success(), "an orderly end failed in round {round}");
            }
            traffic.datagrams.wait_for(20)?;
            controller = lab.start_controller()?;
            traffic.datagrams.wait_for(20)?;
            traffic.standing.ask().with_context(|| format!("in round {round}"))?;
            let next = Counts::read(&lab, &flows)?;
            counts.check_grown(&next).with_context(|| format!("in round {round}"))?;
            counts = next;
        }
        let (datagrams, requests) = traffic.stop()?;
        println!("{ROUNDS} rounds, {} datagrams, {} requests: none lost", datagrams.answered, requests.answered);
        drop(controller);
        Ok(())
    }
}
