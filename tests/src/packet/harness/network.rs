//! The network namespace that the programs' lookups use.

use std::{
    fs::{self, File},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, unshare};

/// Puts the calling thread into a new network namespace. The namespace ends once the thread has left it and the returned file is
/// closed.
pub(super) fn make_network() -> Result<File> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace (root needed)")?;
    for words in [
        // Test runs with packets for none of the router's devices use lo as their device.
        "link set lo address 02:00:00:00:01:01 up",
        // veth pairs; their peers are unused, they only have to exist and be up.
        "link add pub0 type veth peer name pub1",
        "link add priv0 type veth peer name priv1",
        "link set pub1 up",
        "link set priv1 up",
        "link set pub0 address 02:00:00:00:01:01 up",
        "link set priv0 address 02:00:00:00:02:01 up",
        "addr add 10.1.0.1/24 dev pub0",
        "addr add 10.2.0.1/24 dev priv0",
        "route add default via 10.1.0.254",
        "neigh add 10.1.0.254 lladdr 02:00:00:00:01:fe dev pub0",
    ] {
        ip(words)?;
    }
    let hosts: String = (10..=30)
        .map(|host| {
            format!(
                "neigh add 10.1.0.{host} lladdr 02:00:00:00:01:{host:02x} dev pub0\n\
                 neigh add 10.2.0.{host} lladdr 02:00:00:00:02:{host:02x} dev priv0\n"
            )
        })
        .collect();
    ip_batch(&hosts)?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot enable forwarding")?;
    File::open("/proc/thread-self/ns/net").context("cannot open the namespace")
}

pub(super) fn ifindex(device: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(device).with_context(|| format!("there is no device {device}"))
}

pub(super) fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split_whitespace()).output().context("cannot run ip")?;
    if !output.status.success() {
        bail!("ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn ip_batch(lines: &str) -> Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let file = std::env::temp_dir().join(format!(
        "vipgate-bench-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    ));
    fs::write(&file, lines)?;
    let result = ip(&format!("-batch {}", file.display()));
    fs::remove_file(&file)?;
    result
}
