//! The settings of a listener, from its system tags.

use vipgate_api::listener_tag::{self, BadTag, ListenerTag, bad};
use vipgate_state::{Algorithm, HealthCheck};

/// Settings of a listener for its flows and health checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Balancing {
    pub(super) algorithm: Algorithm,
    /// 0 for no limit.
    pub(super) max_connections: u32,
    /// Seconds.
    pub(super) idle_timeout: u32,
    pub(super) check: HealthCheck,
}

impl Default for Balancing {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::RoundRobin,
            max_connections: 5000,
            idle_timeout: 60,
            check: HealthCheck::default(),
        }
    }
}

impl Balancing {
    /// Applies a checked tag; tags about other things change nothing. Earlier versions accepted longer timeouts, which are
    /// clamped here and stay in the store, so that such a version can be started again.
    pub(super) fn set(&mut self, tag: &str) -> Result<(), BadTag> {
        let seconds = tag.strip_prefix("healthCheckTimeout::").and_then(|seconds| seconds.parse::<u32>().ok());
        if let Some(seconds) = seconds {
            self.check.timeout = seconds.clamp(1, listener_tag::MAX_CHECK_TIMEOUT);
            return Ok(());
        }
        let ListenerTag::Setting { name, value } = listener_tag::parse(tag)? else { return Ok(()) };
        let number = || value.parse().map_err(|_| bad(tag, "the value is no number"));
        match name {
            "balancerAlgorithm" => {
                self.algorithm = listener_tag::algorithm(value).ok_or_else(|| bad(tag, "no such algorithm"))?;
            }
            "maxConnection" => self.max_connections = number()?,
            "connectionIdleTimeout" => self.idle_timeout = number()?,
            "healthCheckTarget" => {
                (self.check.protocol, self.check.port) =
                    listener_tag::target(value).ok_or_else(|| bad(tag, "no such target"))?;
            }
            "healthCheckInterval" => self.check.interval = number()?,
            "healthyThreshold" => self.check.healthy_threshold = number()?,
            "unhealthyThreshold" => self.check.unhealthy_threshold = number()?,
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vipgate_state::Protocol;

    use super::*;

    #[test]
    fn settings_are_read_from_tags() {
        let mut balancing = Balancing::default();
        let given = ["balancerAlgorithm::maglev", "maxConnection::0", "healthCheckInterval::9"].map(str::to_owned);
        for tag in listener_tag::complete(&given, Protocol::Udp).unwrap() {
            balancing.set(&tag).unwrap();
        }
        let check = HealthCheck { protocol: Protocol::Udp, interval: 9, ..HealthCheck::default() };
        let wanted = Balancing { algorithm: Algorithm::Maglev, max_connections: 0, idle_timeout: 60, check };
        assert_eq!(balancing, wanted);
        balancing.set("healthCheckTarget::tcp:8080").unwrap();
        assert_eq!(balancing.check, HealthCheck { protocol: Protocol::Tcp, port: Some(8080), ..check });
    }
}
