//! New connections through the router, by wrk to nginx: one request on each, 32 at a time.

use anyhow::{Context as _, Result, ensure};

use super::{
    Effort, Report,
    peers::{Case, Sample, compare, generate},
};
use crate::lab::host::HTTP_PORT;

/// Measures connections per second, and the latency of the slowest, by each way.
pub fn run(report: &mut Report, effort: Effort) -> Result<()> {
    let ask = |room: &super::peers::Room, target: std::net::SocketAddrV4| {
        let mut command = room.client().command("wrk");
        command.args(["--threads", "1", "--connections", "32", "--latency", "--duration"]);
        // Without the space wrk sends a header that nginx does not recognize, and keeps its connections.
        command.arg(format!("{}s", effort.seconds)).args(["--header", "Connection: close"]);
        command.arg(format!("http://{target}/"));
        let before = room.accepted()?;
        let text = generate(&mut command)?;
        let sample = sample(&text)?;
        let accepted = room.accepted()? - before;
        ensure!(accepted as f64 >= sample.done, "the backend took {accepted} connections: {text}");
        Ok(sample)
    };
    let units = ["connections/s", "connections/CPU-s"];
    compare(report, effort, &[Case { name: "new connections", port: HTTP_PORT, units, ask: &ask }])
}

/// Reads wrk's report, such as `48410 requests in 2.00s, 8.5MB read` and `99%    1.35ms`.
pub(crate) fn sample(text: &str) -> Result<Sample> {
    let wrong = || format!("not what wrk reports: {text}");
    ensure!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "requests failed: {text}");
    let (requests, rest) = text.lines().find_map(|line| line.trim().split_once(" requests in ")).with_context(wrong)?;
    let took = rest.split(',').next().with_context(wrong)?;
    let p99 = text.lines().find_map(|line| line.trim().strip_prefix("99%")).with_context(wrong)?;
    Ok(Sample { done: requests.parse()?, seconds: seconds(took)?, p99: Some(seconds(p99)? * 1e3) })
}

/// A time as wrk writes it: `950.00us`, `1.35ms`, `2.00s`, `1.02m`.
fn seconds(text: &str) -> Result<f64> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).with_context(|| format!("not a time: `{text}`"))?;
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => anyhow::bail!("not a time: `{text}`"),
    };
    Ok(number.parse::<f64>()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_wrk_is_read_in_its_units() {
        let text =
            "  Latency Distribution\n     50%  431.00us\n     99%    1.35ms\n  48410 requests in 2.10s, 8.5MB read\n";
        let found = sample(text).expect("a report");
        assert_eq!((found.done, found.seconds, found.p99), (48410.0, 2.1, Some(1.35)));
        assert!(sample(&format!("{text}  Socket errors: connect 0, read 3, write 0, timeout 0\n")).is_err());
    }
}
