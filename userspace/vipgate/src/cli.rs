//! The command line: `vipgate serve | check-config | detach | status | flows | doctor`, and the commands of the client.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vipgate::config::{Config, ConfigError, FILE_VARIABLE, Layers};
use vipgate_client::Request;

use crate::flows::Wanted;

const EXIT_CODES: &str = "\
Exit codes:
  0  done; for serve: ended by SIGTERM or SIGINT, the traffic goes on
  1  a failure that none of the following names
  2  wrong usage or configuration; for apply --dry-run: something would be done
  3  missing privileges
  4  another controller is running, or another program has the API's address
  5  the store cannot be opened
  6  the tables cannot be made or used
  7  the API refused the call, or a name is that of nothing or of several
  8  not logged in, the session is over, or the log-in was refused
  9  the API can't be reached
  10 the kernel cannot run vipgate: it lacks what the programs need";

/// The controller of a VIP gateway: ZStack's network-service REST API over eBPF.
#[derive(Debug, Parser)]
#[command(name = "vipgate", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Load the programs, serve the REST API, keep the kernel's tables to the stored state.
    #[command(after_help = "\
Examples:
  vipgate serve
  vipgate serve --listen 192.168.0.1:8080 --store sqlite:///srv/vipgate.db --hook tc
  VIPGATE_ADMIN_PASSWORD=... vipgate serve --config ./vipgate.toml")]
    Serve(Settings),

    /// Read the configuration as serve would and print what it comes to; secrets are not printed.
    #[command(after_help = "\
Examples:
  vipgate check-config --config ./vipgate.toml
  vipgate check-config --output json | jq .listen.value")]
    CheckConfig {
        #[command(flatten)]
        settings: Settings,
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },

    /// Take every program and table out of the kernel: the traffic of all VIPs ends. Stored state stays. No controller
    /// may be running.
    #[command(after_help = "\
Examples:
  vipgate detach
  vipgate detach --bpffs /sys/fs/bpf/vipgate
  vipgate detach --output json | jq .devices")]
    Detach {
        #[command(flatten)]
        settings: Settings,
        /// Also where the tables are those of another network namespace: filters, queues and addresses there stay
        #[arg(long)]
        force: bool,
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },

    /// What the kernel holds and counts, read from the pinned tables; needs no running controller.
    #[command(after_help = "\
Examples:
  vipgate status
  vipgate status --output json | jq .drops")]
    Status {
        #[command(flatten)]
        settings: Settings,
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },

    /// The connections in the flow table, read from the pinned tables; needs no running controller.
    #[command(after_help = "\
Examples:
  vipgate flows --vip 10.1.0.10 --port 80 --state established
  vipgate flows --client 10.1.0.0/24 --sort bytes --top 20
  vipgate flows --direction out --client 10.2.0.11
  vipgate flows --idle 300 --output json | jq -r '.connections[].client'

Exit codes: 0 the table was read, whether connections were found or not; 1 nothing is loaded; more: vipgate --help")]
    Flows {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        wanted: Wanted,
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },

    /// The problems of this router, and the command that fixes each: devices, offloads, kernel settings and features.
    /// Changes nothing; needs no running controller, and before the first start examines every Ethernet device.
    #[command(after_help = "\
Examples:
  vipgate doctor
  vipgate doctor --hook xdp
  vipgate doctor --output json | jq -r '.findings[].remedy'

Exit codes: 0 nothing worse than notes; 1 findings; more: vipgate --help")]
    Doctor {
        #[command(flatten)]
        settings: Settings,
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },

    /// The commands of the API's client.
    #[command(flatten)]
    Client(Request),
}

/// Every flag is also a variable (`VIPGATE_LISTEN`, `VIPGATE_LOG_FORMAT`, ...) and a key of the file; flags win.
#[derive(Args, Debug)]
pub(crate) struct Settings {
    /// The configuration file [default: /etc/vipgate/vipgate.toml if it is there]
    #[arg(long, env = FILE_VARIABLE, hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where the REST API listens [default: 127.0.0.1:8080] [env: VIPGATE_LISTEN]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,

    /// The database [default: sqlite:///var/lib/vipgate/vipgate.db] [env: VIPGATE_STORE]
    #[arg(long, value_name = "URL")]
    store: Option<String>,

    /// Where maps and links are pinned [default: /sys/fs/bpf/vipgate] [env: VIPGATE_BPFFS]
    #[arg(long, value_name = "DIRECTORY")]
    bpffs: Option<String>,

    /// auto, xdp, xdp-generic or tc [default: auto] [env: VIPGATE_HOOK]
    #[arg(long, value_name = "HOOK")]
    hook: Option<String>,

    /// human or json [default: human] [env: VIPGATE_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,

    /// What is logged, such as `info` or `vipgate=debug,info` [default: info] [env: VIPGATE_LOG_FILTER]
    #[arg(long, value_name = "DIRECTIVES")]
    log_filter: Option<String>,
}

impl Settings {
    /// The configuration that these flags, the environment and the file come to.
    pub(crate) fn load(&self) -> Result<Config, ConfigError> {
        let flags = [
            ("listen", "--listen", &self.listen),
            ("store", "--store", &self.store),
            ("bpffs", "--bpffs", &self.bpffs),
            ("hook", "--hook", &self.hook),
            ("log.format", "--log-format", &self.log_format),
            ("log.filter", "--log-filter", &self.log_filter),
        ];
        Config::from_layers(Layers {
            file: Config::read_file(self.config.as_deref())?,
            // A variable that is not UTF-8 is none of ours.
            variables: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            flags: flags.into_iter().filter_map(|(key, flag, value)| Some((key, flag, value.clone()?))).collect(),
        })
    }
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    #[default]
    Text,
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use vipgate_client::ClientError;

    use super::*;

    #[test]
    fn the_commands_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exit_codes_of_the_client_are_those_that_help_lists() {
        let help = Cli::command().render_help().to_string();
        for error in [
            ClientError::NoPassword,
            ClientError::Refused { what: String::new() },
            ClientError::NotLoggedIn,
            ClientError::NoJob { api: "CreateVip" },
            ClientError::BadUrl { url: "ftp://a".to_owned() },
        ] {
            assert!(help.contains(&format!("\n  {}  ", error.exit_code())), "{error}");
        }
    }
}
