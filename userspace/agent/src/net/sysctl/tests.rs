//! Settings, in a directory that stands for the kernel's.

use super::*;

/// Settings of a directory that stands for the kernel's, with those of the loopback, whose index is 1.
fn settings(root: &Path) -> Settings {
    let ipv4 = root.join("ipv4");
    for (name, value) in [("conf/lo/forwarding", "0"), ("conf/lo/accept_local", "0"), ("ip_forward", "0")] {
        fs::create_dir_all(ipv4.join(name).parent().expect("a directory")).expect("made");
        fs::write(ipv4.join(name), value).expect("written");
    }
    fs::write(ipv4.join(OWN_PORT_RANGE), "32768\t60999\n").expect("written");
    Settings { kept: root.join("kept/here"), ipv4 }
}

fn at(settings: &Settings, name: &str) -> String {
    settings.value(Path::new(name)).expect("it is there")
}

#[test]
fn what_was_changed_is_put_back_and_what_somebody_changed_since_stays() {
    let root = tempfile::tempdir().expect("a directory");
    let before = settings(root.path());
    before.reserve_snat_ports().expect("set");
    before.set_of(1, "lo", "accept_local", 1).expect("set");
    before.set_of(1, "lo", "forwarding", 1).expect("set");
    // Another controller's turn, which finds all of it done.
    let settings = Settings::new(before.kept.clone());
    let settings = Settings { ipv4: before.ipv4, ..settings };
    settings.reserve_snat_ports().expect("set");
    settings.set_of(1, "lo", "accept_local", 1).expect("set");
    assert_eq!(
        (at(&settings, OWN_PORT_RANGE), at(&settings, "conf/lo/accept_local")),
        ("61440 65535".into(), "1".into())
    );
    fs::write(settings.ipv4.join("conf/lo/forwarding"), "2").expect("written");
    assert_eq!(settings.restore(), (2, Vec::new()));
    assert_eq!(
        (at(&settings, OWN_PORT_RANGE), at(&settings, "conf/lo/accept_local")),
        ("32768 60999".into(), "0".into())
    );
    assert_eq!(at(&settings, "conf/lo/forwarding"), "2");
    assert!(!settings.kept.exists());
    assert_eq!(settings.restore(), (0, Vec::new()));
}

/// The loopback as a device.
fn loopback() -> Device {
    let name = "lo".to_owned();
    Device { name, ifindex: 1, mtu: 65_536, mac: [0; 6], ethernet: true, veth: false, up: true }
}

/// Sets reverse-path filtering of all devices, or of the loopback.
fn filter(settings: &Settings, device: &str, value: u32) {
    let path = settings.ipv4.join(of_device(device, RP_FILTER));
    fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    fs::write(path, value.to_string()).expect("written");
}

#[test]
fn strict_filtering_is_known_for_what_it_was_until_somebody_sets_it_otherwise() {
    let root = tempfile::tempdir().expect("a directory");
    let settings = settings(root.path());
    let path = "conf/lo/rp_filter";
    // By all or its own, as the larger is in force.
    for (all, own, is_strict) in [(0, 0, false), (0, 1, true), (1, 0, true), (1, 1, true), (2, 1, false), (1, 2, false)]
    {
        filter(&settings, "all", all);
        filter(&settings, "lo", own);
        for _ in 0..3 {
            assert_eq!(settings.loosen(&loopback()).expect("read"), is_strict, "{all} {own}");
        }
        assert_eq!(at(&settings, path), if is_strict { "2".to_owned() } else { own.to_string() });
        settings.restore();
        assert_eq!(at(&settings, path), own.to_string());
    }
    filter(&settings, "all", 0);
    filter(&settings, "lo", 1);
    let is_strict = || settings.loosen(&loopback()).expect("read");
    assert!(is_strict());
    // He wants it strict, loose by all, strict again, off, and loose.
    filter(&settings, "lo", 1);
    assert!(is_strict() && at(&settings, path) == "2");
    filter(&settings, "all", 2);
    assert!(!is_strict());
    filter(&settings, "all", 0);
    assert!(is_strict());
    filter(&settings, "lo", 0);
    assert!(!is_strict());
    filter(&settings, "lo", 2);
    assert!(!is_strict());
    settings.restore();
    assert_eq!(at(&settings, path), "2");
}

#[test]
fn a_device_goes_on_routing_on_a_router_that_does_by_now() {
    let root = tempfile::tempdir().expect("a directory");
    let settings = settings(root.path());
    settings.set_of(1, "lo", "forwarding", 1).expect("set");
    fs::write(settings.ipv4.join("ip_forward"), "1").expect("written");
    assert_eq!(settings.restore(), (0, Vec::new()));
    assert_eq!(at(&settings, "conf/lo/forwarding"), "1");
}

#[test]
fn records_of_devices_that_are_gone_and_what_is_no_record_are_only_forgotten() {
    let root = tempfile::tempdir().expect("a directory");
    let settings = settings(root.path());
    for record in ["4294967-accept_local", "no record", "1-no_such_setting"] {
        settings.keep(record, "0:1").expect("kept");
    }
    assert_eq!(settings.restore(), (0, Vec::new()));
    assert!(!settings.kept.exists());
}
