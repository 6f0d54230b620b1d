//! The table of settings: what each key takes, and how it is shown.

use std::{fs, path::PathBuf, str::FromStr};

use vipgate_agent::loader::Sizes;

use super::{Config, Secret};

/// One key of the configuration.
pub(super) struct Setting {
    /// As it stands in the file; a dot stands for the table it is in.
    pub(super) key: &'static str,
    /// The key under which it is shown: another one's where it is another way to give that.
    pub(super) shown_as: &'static str,
    /// Its value is not repeated in errors.
    pub(super) secret: bool,
    /// Takes a value; the error says what to give instead.
    pub(super) set: fn(&mut Config, &str) -> Result<(), String>,
    pub(super) get: fn(&Config) -> String,
}

const fn setting(
    key: &'static str,
    set: fn(&mut Config, &str) -> Result<(), String>,
    get: fn(&Config) -> String,
) -> Setting {
    Setting { key, shown_as: key, secret: false, set, get }
}

pub(super) const SETTINGS: [Setting; 14] = [
    setting(
        "listen",
        |config, value| put(&mut config.listen, parse(value, "give address:port, such as 127.0.0.1:8080")),
        |config| config.listen.to_string(),
    ),
    setting("store", |config, value| put(&mut config.store, store_url(value)), |config| config.store.clone()),
    setting(
        "bpffs",
        |config, value| put(&mut config.bpffs, absolute(value)),
        |config| config.bpffs.display().to_string(),
    ),
    setting(
        "hook",
        |config, value| put(&mut config.hook, parse(value, "give one of auto, xdp, xdp-generic, tc")),
        |config| config.hook.to_string(),
    ),
    setting(
        "tc",
        |config, value| put(&mut config.tc, parse(value, "give one of auto, clsact")),
        |config| config.tc.name().to_owned(),
    ),
    Setting {
        secret: true,
        ..setting(
            "admin_password",
            |config, value| put(&mut config.admin_password, password(value).map(Some)),
            password_state,
        )
    },
    Setting {
        shown_as: "admin_password",
        ..setting(
            "admin_password_file",
            |config, value| put(&mut config.admin_password, password_file(value).map(Some)),
            password_state,
        )
    },
    setting(
        "log.format",
        |config, value| put(&mut config.log.format, parse(value, "give one of human, json")),
        |config| config.log.format.to_string(),
    ),
    setting(
        "log.filter",
        |config, value| put(&mut config.log.filter, filter(value)),
        |config| config.log.filter.clone(),
    ),
    setting(
        "log.packets",
        |config, value| put(&mut config.log.packets, parse(value, "give one of off, warn, info, debug")),
        |config| config.log.packets.to_string(),
    ),
    setting(
        "datapath.flows",
        |config, value| size(&mut config.datapath, value, |sizes, entries| sizes.flows = entries),
        |config| config.datapath.flows.to_string(),
    ),
    setting(
        "datapath.services",
        |config, value| size(&mut config.datapath, value, |sizes, entries| sizes.services = entries),
        |config| config.datapath.services.to_string(),
    ),
    setting(
        "datapath.backends",
        |config, value| size(&mut config.datapath, value, |sizes, entries| sizes.backends = entries),
        |config| config.datapath.backends.to_string(),
    ),
    setting(
        "datapath.ring_elements",
        |config, value| size(&mut config.datapath, value, |sizes, entries| sizes.ring_elements = entries),
        |config| config.datapath.ring_elements.to_string(),
    ),
];

fn put<T>(place: &mut T, value: Result<T, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

fn parse<T: FromStr>(value: &str, expected: &str) -> Result<T, String> {
    value.parse().map_err(|_| expected.to_owned())
}

fn store_url(value: &str) -> Result<String, String> {
    if value.starts_with("sqlite://") && value.len() > "sqlite://".len() {
        Ok(value.to_owned())
    } else {
        Err("give sqlite:///path/of/the.db".to_owned())
    }
}

fn absolute(value: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    if path.is_absolute() { Ok(path) } else { Err("give an absolute path".to_owned()) }
}

fn password(value: &str) -> Result<Secret, String> {
    if value.is_empty() { Err("it is empty".to_owned()) } else { Ok(Secret(value.to_owned())) }
}

fn password_file(path: &str) -> Result<Secret, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    password(text.trim_end_matches(['\r', '\n']))
}

fn password_state(config: &Config) -> String {
    if config.admin_password.is_some() { "set" } else { "default" }.to_owned()
}

fn filter(value: &str) -> Result<String, String> {
    tracing_subscriber::EnvFilter::try_new(value).map(|_| value.to_owned()).map_err(|error| error.to_string())
}

/// A number of entries; `place` puts it into the sizes, which know their own limits.
fn size(sizes: &mut Sizes, value: &str, place: impl FnOnce(&mut Sizes, u32)) -> Result<(), String> {
    let mut wanted = *sizes;
    place(&mut wanted, parse(value, "give a whole number")?);
    wanted.check().map_err(|error| error.to_string())?;
    *sizes = wanted;
    Ok(())
}
