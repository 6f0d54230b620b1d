//! The controller's settings: `/etc/vipgate/vipgate.toml`, below `VIPGATE_*` variables, below command-line flags.
//!
//! All three layers meet in one table of settings ([`settings`]), so a setting means and checks the same wherever it
//! comes from, and an error names the place to mend. May read files; touches nothing else.

mod settings;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use vipgate_agent::loader::{Hook, Sizes, TcMode};
use vipgate_client::{API_VARIABLE, PASSWORD_FILE_VARIABLE};

use self::settings::{SETTINGS, Setting};

/// Read when no other file is named; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/vipgate/vipgate.toml";
/// The first admin password when none is configured.
pub const DEFAULT_PASSWORD: &str = "password";

const VARIABLE_PREFIX: &str = "VIPGATE_";
/// The variable that names the file itself, so no key of it.
pub const FILE_VARIABLE: &str = "VIPGATE_CONFIG";
/// Variables that begin like those of keys and are none.
const OTHER_VARIABLES: [&str; 3] = [FILE_VARIABLE, API_VARIABLE, PASSWORD_FILE_VARIABLE];

/// What the controller runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the REST API listens.
    pub listen: SocketAddr,
    /// Database URL, `sqlite:///path`.
    pub store: String,
    /// Directory in a bpffs below which maps and links are pinned.
    pub bpffs: PathBuf,
    pub hook: Hook,
    /// How TC programs are put on devices.
    pub tc: TcMode,
    /// The admin's password, stored at the first start only; `None` for [`DEFAULT_PASSWORD`].
    pub admin_password: Option<Secret>,
    pub log: Log,
    /// Sizes of the kernel's tables. What is in tables of other sizes is carried over.
    pub datapath: Sizes,
    /// The layer that each setting came from, where it is not the default.
    origins: BTreeMap<&'static str, Origin>,
}

#[derive(Clone, Debug)]
pub struct Log {
    pub format: LogFormat,
    /// Directives of tracing's environment filter: `info`, `vipgate=debug,info`.
    pub filter: String,
    pub packets: Packets,
}

/// Which packets that the programs do not send are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packets {
    Off,
    /// Where the router, or its configuration, lacks something.
    #[default]
    Warn,
    /// Also what was refused, or waits.
    Info,
    /// Also what happens on any network.
    Debug,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

/// A value that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("<secret>")
    }
}

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File(PathBuf),
    Variable(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(formatter),
            Self::Variable(name) => formatter.write_str(name),
            Self::Flag(name) => formatter.write_str(name),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not TOML: {reason}", path.display())]
    Syntax { path: PathBuf, reason: String },
    #[error("{origin}: there is no setting `{key}`; did you mean `{nearest}`?")]
    UnknownKey { origin: Origin, key: String, nearest: String },
    #[error("{origin}: `{key}` cannot be `{value}`: {reason}")]
    Value { origin: Origin, key: &'static str, value: String, reason: String },
}

/// The three layers, lowest first.
#[derive(Debug, Default)]
pub struct Layers {
    /// The file's path and its text.
    pub file: Option<(PathBuf, String)>,
    /// Environment variables; those that do not start with `VIPGATE_` are passed over.
    pub variables: Vec<(String, String)>,
    /// Key, the flag's name and its value.
    pub flags: Vec<(&'static str, &'static str, String)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            store: "sqlite:///var/lib/vipgate/vipgate.db".to_owned(),
            bpffs: PathBuf::from("/sys/fs/bpf/vipgate"),
            hook: Hook::Auto,
            tc: TcMode::Auto,
            admin_password: None,
            log: Log { format: LogFormat::Human, filter: "info".to_owned(), packets: Packets::default() },
            datapath: Sizes::default(),
            origins: BTreeMap::new(),
        }
    }
}

impl Config {
    /// The settings that a running controller takes over at SIGHUP.
    const FOLLOWED: [&str; 2] = ["log.filter", "log.packets"];

    /// Reads the file: the one named, which must exist, else [`DEFAULT_FILE`] if it is there.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_file(named: Option<&Path>) -> Result<Option<(PathBuf, String)>, ConfigError> {
        let path = named.unwrap_or_else(|| Path::new(DEFAULT_FILE));
        match fs::read_to_string(path) {
            Ok(text) => Ok(Some((path.to_owned(), text))),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// Lays the layers over the defaults.
    ///
    /// # Errors
    /// A key that does not exist, or a value that its key cannot have, with the layer it stands in.
    pub fn from_layers(layers: Layers) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some((path, text)) = layers.file {
            config.apply_file(path, &text)?;
        }
        for (name, value) in layers.variables {
            let key = Some(name.as_str()).filter(|name| !OTHER_VARIABLES.contains(name));
            let Some(suffix) = key.and_then(|name| name.strip_prefix(VARIABLE_PREFIX)) else { continue };
            let origin = Origin::Variable(name.clone());
            let Some(setting) = SETTINGS.iter().find(|setting| variable_suffix(setting.key) == suffix) else {
                let nearest = format!("{VARIABLE_PREFIX}{}", variable_suffix(nearest_key(suffix)));
                return Err(ConfigError::UnknownKey { origin, key: name, nearest });
            };
            config.set(setting, &value, origin)?;
        }
        for (key, flag, value) in layers.flags {
            config.set(setting(key, &Origin::Flag(flag))?, &value, Origin::Flag(flag))?;
        }
        Ok(config)
    }

    fn apply_file(&mut self, path: PathBuf, text: &str) -> Result<(), ConfigError> {
        let table = match toml::from_str::<toml::Table>(text) {
            Ok(table) => table,
            // The whole message quotes the line, which may hold a password.
            Err(error) => {
                let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
                return Err(ConfigError::Syntax { path, reason: format!("line {line}: {}", error.message()) });
            }
        };
        let origin = Origin::File(path);
        for (name, value) in table {
            let toml::Value::Table(inner) = value else {
                self.set_from_file(&name, &value, &origin)?;
                continue;
            };
            for (inner_name, value) in inner {
                self.set_from_file(&format!("{name}.{inner_name}"), &value, &origin)?;
            }
        }
        Ok(())
    }

    fn set_from_file(&mut self, name: &str, value: &toml::Value, origin: &Origin) -> Result<(), ConfigError> {
        let setting = setting(name, origin)?;
        match value {
            toml::Value::String(text) => self.set(setting, text, origin.clone()),
            toml::Value::Integer(number) => self.set(setting, &number.to_string(), origin.clone()),
            other => Err(ConfigError::Value {
                origin: origin.clone(),
                key: setting.key,
                value: other.type_str().to_owned(),
                reason: "give a string or a whole number".to_owned(),
            }),
        }
    }

    fn set(&mut self, setting: &Setting, value: &str, origin: Origin) -> Result<(), ConfigError> {
        match (setting.set)(self, value) {
            Ok(()) => {
                self.origins.insert(setting.shown_as, origin);
                Ok(())
            }
            Err(reason) => {
                let value = if setting.secret { "<secret>" } else { value }.to_owned();
                Err(ConfigError::Value { origin, key: setting.key, value, reason })
            }
        }
    }

    /// The settings by which a running controller would have to be another than by those of `self`: all but those that it
    /// [follows](Self::FOLLOWED).
    #[must_use]
    pub fn changed_for_a_start(&self, new: &Self) -> Vec<&'static str> {
        let is_other = |setting: &&Setting| (setting.get)(self) != (setting.get)(new);
        let keys = SETTINGS
            .iter()
            .filter(|setting| setting.key == setting.shown_as)
            .filter(is_other)
            .map(|setting| setting.key);
        keys.filter(|key| !Self::FOLLOWED.contains(key)).collect()
    }

    /// Every setting with its value and where it came from, secrets only as `set` or `default`.
    #[must_use]
    pub fn shown(&self) -> Vec<(&'static str, String, String)> {
        let shown = SETTINGS.iter().filter(|setting| setting.key == setting.shown_as);
        shown
            .map(|setting| {
                let origin = self.origins.get(setting.key).map_or_else(|| "default".to_owned(), ToString::to_string);
                (setting.key, (setting.get)(self), origin)
            })
            .collect()
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err("give one of human, json".to_owned()),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}

impl Packets {
    const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

impl FromStr for Packets {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Off, Self::Warn, Self::Info, Self::Debug].into_iter().find(|one| one.name() == text).ok_or(())
    }
}

impl fmt::Display for Packets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The setting of that key.
fn setting(key: &str, origin: &Origin) -> Result<&'static Setting, ConfigError> {
    SETTINGS.iter().find(|setting| setting.key == key).ok_or_else(|| ConfigError::UnknownKey {
        origin: origin.clone(),
        key: key.to_owned(),
        nearest: nearest_key(key).to_owned(),
    })
}

/// `log.format` -> `LOG_FORMAT`.
fn variable_suffix(key: &str) -> String {
    key.replace('.', "_").to_uppercase()
}

/// The key that takes the fewest edits to become from what was written.
fn nearest_key(written: &str) -> &'static str {
    let written = variable_suffix(written);
    let keys = SETTINGS.iter().map(|setting| setting.key);
    keys.min_by_key(|key| strsim::levenshtein(&variable_suffix(key), &written)).unwrap_or_default()
}
