//! The controller's settings: `/etc/vipgate/vipgate.toml`, below `VIPGATE_*` variables, below command-line flags.
//!
//! All three layers end in one function that knows every key, so a setting means and checks the same wherever it
//! comes from, and an error names the place to mend. May read the one file; touches nothing else.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::loader::{Hook, Sizes};

/// Read when no other file is named; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/vipgate/vipgate.toml";
/// The first admin password when none is configured.
pub const DEFAULT_PASSWORD: &str = "password";

const VARIABLE_PREFIX: &str = "VIPGATE_";
/// The variable that names the file itself, so no key of it.
pub const FILE_VARIABLE: &str = "VIPGATE_CONFIG";

/// Every key, as it stands in the file; a dot stands for the table it is in.
const KEYS: [&str; 12] = [
    "listen",
    "store",
    "bpffs",
    "hook",
    "admin_password",
    "admin_password_file",
    "log.format",
    "log.filter",
    "datapath.flows",
    "datapath.services",
    "datapath.backends",
    "datapath.ring_elements",
];

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
    /// The admin's password, stored at the first start only; `None`: [`DEFAULT_PASSWORD`].
    pub admin_password: Option<Secret>,
    pub log: Log,
    /// Sizes of the kernel's tables. They hold from the moment the tables are made until `vipgate detach`.
    pub datapath: Sizes,
    /// The layer that each setting came from, where it is not the default.
    origins: BTreeMap<&'static str, Origin>,
}

#[derive(Clone, Debug)]
pub struct Log {
    pub format: LogFormat,
    /// Directives of tracing's environment filter: `info`, `vipgate=debug,info`.
    pub filter: String,
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
            admin_password: None,
            log: Log { format: LogFormat::Human, filter: "info".to_owned() },
            datapath: Sizes::default(),
            origins: BTreeMap::new(),
        }
    }
}

impl Config {
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
            let Some(suffix) = name.strip_prefix(VARIABLE_PREFIX).filter(|_| name != FILE_VARIABLE) else { continue };
            let origin = Origin::Variable(name.clone());
            let Some(key) = KEYS.into_iter().find(|key| variable_suffix(key) == suffix) else {
                let nearest = format!("{VARIABLE_PREFIX}{}", variable_suffix(nearest_key(suffix)));
                return Err(ConfigError::UnknownKey { origin, key: name, nearest });
            };
            config.set(key, &value, origin)?;
        }
        for (key, flag, value) in layers.flags {
            config.set(key, &value, Origin::Flag(flag))?;
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
        let Some(key) = KEYS.into_iter().find(|key| *key == name) else {
            let nearest = nearest_key(name).to_owned();
            return Err(ConfigError::UnknownKey { origin: origin.clone(), key: name.to_owned(), nearest });
        };
        match value {
            toml::Value::String(text) => self.set(key, text, origin.clone()),
            toml::Value::Integer(number) => self.set(key, &number.to_string(), origin.clone()),
            other => Err(ConfigError::Value {
                origin: origin.clone(),
                key,
                value: other.type_str().to_owned(),
                reason: "give a string or a whole number".to_owned(),
            }),
        }
    }

    /// The one place that knows what each key takes.
    fn set(&mut self, key: &'static str, value: &str, origin: Origin) -> Result<(), ConfigError> {
        let result = match key {
            "listen" => parse(value, "give address:port, such as 127.0.0.1:8080").map(|listen| self.listen = listen),
            "store" => store_url(value).map(|url| self.store = url),
            "bpffs" => absolute(value).map(|path| self.bpffs = path),
            "hook" => parse(value, "give one of auto, xdp, xdp-generic, tc").map(|hook| self.hook = hook),
            "admin_password" => password(value).map(|secret| self.admin_password = Some(secret)),
            "admin_password_file" => password_file(value).map(|secret| self.admin_password = Some(secret)),
            "log.format" => value.parse().map(|format| self.log.format = format),
            "log.filter" => filter(value).map(|filter| self.log.filter = filter),
            "datapath.flows" => size(&mut self.datapath, value, |sizes, entries| sizes.flows = entries),
            "datapath.services" => size(&mut self.datapath, value, |sizes, entries| sizes.services = entries),
            "datapath.backends" => size(&mut self.datapath, value, |sizes, entries| sizes.backends = entries),
            "datapath.ring_elements" => size(&mut self.datapath, value, |sizes, entries| sizes.ring_elements = entries),
            _ => Err("it is not known to this version".to_owned()),
        };
        match result {
            Ok(()) => {
                self.origins.insert(key, origin);
                Ok(())
            }
            Err(reason) => {
                let value = if key == "admin_password" { "<secret>".to_owned() } else { value.to_owned() };
                Err(ConfigError::Value { origin, key, value, reason })
            }
        }
    }

    /// Every setting with its value and where it came from, secrets only as `set` or `default`.
    #[must_use]
    pub fn shown(&self) -> Vec<(&'static str, String, String)> {
        let shown = |key: &'static str, value: String| {
            let origin = self.origins.get(key).map_or_else(|| "default".to_owned(), ToString::to_string);
            (key, value, origin)
        };
        let password = if self.admin_password.is_some() { "set" } else { "default" };
        let password_key =
            if self.origins.contains_key("admin_password_file") { "admin_password_file" } else { "admin_password" };
        vec![
            shown("listen", self.listen.to_string()),
            shown("store", self.store.clone()),
            shown("bpffs", self.bpffs.display().to_string()),
            shown("hook", self.hook.to_string()),
            shown(password_key, password.to_owned()),
            shown("log.format", self.log.format.to_string()),
            shown("log.filter", self.log.filter.clone()),
            shown("datapath.flows", self.datapath.flows.to_string()),
            shown("datapath.services", self.datapath.services.to_string()),
            shown("datapath.backends", self.datapath.backends.to_string()),
            shown("datapath.ring_elements", self.datapath.ring_elements.to_string()),
        ]
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

fn parse<T: FromStr>(value: &str, expected: &str) -> Result<T, String> {
    value.parse().map_err(|_| expected.to_owned())
}

fn store_url(value: &str) -> Result<String, String> {
    if value.starts_with("sqlite:") && value.len() > "sqlite://".len() {
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

/// `log.format` -> `LOG_FORMAT`.
fn variable_suffix(key: &str) -> String {
    key.replace('.', "_").to_uppercase()
}

/// The key that takes the fewest edits to become from what was written.
fn nearest_key(written: &str) -> &'static str {
    let written = variable_suffix(written);
    KEYS.into_iter().min_by_key(|key| edit_distance(&variable_suffix(key), &written)).unwrap_or("listen")
}

/// Levenshtein's distance, in bytes, by rows.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Layers {
        Layers { file: Some((PathBuf::from("/etc/vipgate/vipgate.toml"), text.to_owned())), ..Layers::default() }
    }

    fn error(layers: Layers) -> String {
        Config::from_layers(layers).expect_err("these layers are wrong").to_string()
    }

    #[test]
    fn flags_beat_variables_beat_the_file_beat_the_defaults() {
        let mut layers = file("listen = '10.0.0.1:1'\nhook = 'tc'\nbpffs = '/a'\n[log]\nformat = 'json'");
        layers.variables = vec![
            ("VIPGATE_LISTEN".to_owned(), "10.0.0.1:2".to_owned()),
            ("VIPGATE_HOOK".to_owned(), "xdp".to_owned()),
            ("HOME".to_owned(), "/root".to_owned()),
        ];
        layers.flags = vec![("listen", "--listen", "10.0.0.1:3".to_owned())];
        let config = Config::from_layers(layers).expect("all of it is right");
        assert_eq!(config.listen, SocketAddr::from(([10, 0, 0, 1], 3)));
        assert_eq!(config.hook, Hook::Xdp);
        assert_eq!(config.bpffs, Path::new("/a"));
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.datapath, Config::default().datapath);
        let origin = |key| config.shown().into_iter().find(|(name, ..)| *name == key).map(|(_, _, origin)| origin);
        assert_eq!(origin("listen").as_deref(), Some("--listen"));
        assert_eq!(origin("hook").as_deref(), Some("VIPGATE_HOOK"));
        assert_eq!(origin("bpffs").as_deref(), Some("/etc/vipgate/vipgate.toml"));
        assert_eq!(origin("store").as_deref(), Some("default"));
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        assert_eq!(
            error(file("lisen = 'x'")),
            "/etc/vipgate/vipgate.toml: there is no setting `lisen`; did you mean `listen`?"
        );
        assert!(error(file("[datapath]\nflow = 1024")).ends_with("did you mean `datapath.flows`?"));
        let variables = vec![("VIPGATE_HOK".to_owned(), "tc".to_owned())];
        assert_eq!(
            error(Layers { variables, ..Layers::default() }),
            "VIPGATE_HOK: there is no setting `VIPGATE_HOK`; did you mean `VIPGATE_HOOK`?"
        );
    }

    #[test]
    fn a_wrong_value_names_its_place_and_what_to_give() {
        assert_eq!(
            error(file("hook = 'ebpf'")),
            "/etc/vipgate/vipgate.toml: `hook` cannot be `ebpf`: give one of auto, xdp, xdp-generic, tc"
        );
        assert!(error(file("[datapath]\nflows = 1000")).contains("a power of two from"));
        assert!(error(file("[datapath]\nservices = 0")).contains("from 1 to"));
        assert!(error(file("store = 'mysql://x'")).ends_with("give sqlite:///path/of/the.db"));
        assert!(error(file("listen = true")).ends_with("give a string or a whole number"));
        assert!(error(file("bpffs = 'relative'")).ends_with("give an absolute path"));
    }

    #[test]
    fn a_password_is_never_printed() {
        let config = Config::from_layers(file("admin_password = 'hunter2'")).expect("a password is enough");
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(!format!("{:?}", config.shown()).contains("hunter2"));
        assert!(!error(file("admin_password = 'hunter2' x")).contains("hunter2"));
        assert_eq!(config.admin_password.map(|secret| secret.expose().to_owned()).as_deref(), Some("hunter2"));
    }

    #[test]
    fn the_named_file_must_exist() {
        let error = Config::read_file(Some(Path::new("/nonexistent/vipgate.toml"))).expect_err("there is no such file");
        assert!(error.to_string().contains("/nonexistent/vipgate.toml"));
    }
}
