//! The layers, what overrides what, and how a mistake is told.

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
fn the_variables_of_the_client_are_no_keys() {
    let variables = [FILE_VARIABLE, API_VARIABLE, PASSWORD_FILE_VARIABLE].map(|name| (name.to_owned(), "x".to_owned()));
    assert!(Config::from_layers(Layers { variables: variables.to_vec(), ..Layers::default() }).is_ok());
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
fn what_is_told_of_packets_is_a_setting() {
    assert_eq!(Config::default().log.packets, Packets::Warn);
    let config = Config::from_layers(file("[log]\npackets = 'info'")).expect("all of it is right");
    assert_eq!(config.log.packets, Packets::Info);
    assert!(error(file("[log]\npackets = 'all'")).ends_with("give one of off, warn, info, debug"));
}

#[test]
fn what_a_running_controller_does_not_follow_is_named() {
    let started = Config::from_layers(file("hook = 'tc'\nadmin_password = 'x'")).expect("all of it is right");
    let followed = file("hook = 'tc'\nadmin_password = 'y'\n[log]\npackets = 'off'\nfilter = 'debug'");
    let followed = Config::from_layers(followed).expect("all of it is right");
    assert!(started.changed_for_a_start(&followed).is_empty());
    let other = Config::from_layers(file("[log]\nformat = 'json'")).expect("all of it is right");
    assert_eq!(started.changed_for_a_start(&other), ["hook", "admin_password", "log.format"]);
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
