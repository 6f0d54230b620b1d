//! Bulk TCP through the router by iperf3: throughput per time and per processor time.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    Effort, Report,
    peers::{BULK_PORT, Case, Sample, compare, generate},
};

const GIGABIT: f64 = 1e9;

/// Measures one stream and eight streams by each way.
pub fn run(report: &mut Report, effort: Effort) -> Result<()> {
    let ask = |streams: u32| {
        move |room: &super::peers::Room, target: std::net::SocketAddrV4| {
            let mut command = room.client().command("iperf3");
            command.arg("--client").arg(target.ip().to_string()).arg("--port").arg(target.port().to_string());
            command.args(["--json", "--parallel", &streams.to_string(), "--time", &effort.seconds.to_string()]);
            sample(&generate(&mut command)?)
        }
    };
    let (one, eight) = (ask(1), ask(8));
    let case = |name, ask| Case { name, port: BULK_PORT, units: ["Gbit/s", "Gbit/CPU-s"], ask };
    compare(report, effort, &[case("bulk TCP, 1 stream", &one), case("bulk TCP, 8 streams", &eight)])
}

/// Reads what the server has received from the client's report.
pub(crate) fn sample(report: &str) -> Result<Sample> {
    let report: Value = serde_json::from_str(report).with_context(|| format!("iperf3 prints no JSON: {report}"))?;
    let received = &report["end"]["sum_received"];
    let number = |name: &str| received[name].as_f64().with_context(|| format!("iperf3 has no {name}: {report}"));
    Ok(Sample { done: number("bytes")? * 8.0 / GIGABIT, seconds: number("seconds")?, p99: None })
}
