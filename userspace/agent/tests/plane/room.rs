//! A room of its own for a test: a network namespace, a mount namespace with a BPF file system, a tokio runtime.
//!
//! The test's thread enters them, and every thread and process that it starts is born there; they go with it.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use tempfile::TempDir;
use vipgate_agent::loader::{Hook, LoadError, Options, Plane, Sizes, TcMode};

/// Small tables: tests run side by side.
pub(crate) const SIZES: Sizes = Sizes { flows: 4096, services: 256, backends: 1024, ring_elements: 65_536 };

/// How long anything may take that the kernel does by itself.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Room {
    dir: TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Drop for Room {
    /// A directory that something is mounted on could not be removed.
    fn drop(&mut self) {
        umount2(self.dir.path(), MntFlags::MNT_DETACH).expect("mounted");
    }
}

impl Room {
    /// Enters a new room; needs root.
    pub(crate) fn enter() -> Self {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        let dir = TempDir::new().expect("a directory");
        mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), none).expect("a BPF file system");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let room = Self { dir, runtime: runtime.expect("a runtime") };
        room.ip("link set lo up");
        room
    }

    pub(crate) fn bpffs(&self) -> PathBuf {
        self.dir.path().join("vipgate")
    }

    pub(crate) fn mount_point(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn options(&self, hook: Hook) -> Options {
        // As many as there may be.
        let least_flows = u32::MAX;
        Options { bpffs: self.bpffs(), hook, tc: TcMode::Auto, sizes: SIZES, least_flows, refused: &[] }
    }

    pub(crate) fn open(&self, hook: Hook) -> Result<Arc<Plane>, LoadError> {
        Plane::open(&self.options(hook))
    }

    /// Runs `ip` with these words.
    pub(crate) fn ip(&self, words: &str) {
        run(Command::new("ip").args(words.split(' ')));
    }

    /// The output of `ip` with these words.
    pub(crate) fn show(&self, words: &str) -> String {
        run(Command::new("ip").args(words.split(' ')))
    }

    /// Makes a veth pair of these names, both up; the first has the address.
    pub(crate) fn veth(&self, name: &str, peer: &str, address: &str) {
        self.ip(&format!("link add {name} type veth peer name {peer}"));
        self.ip(&format!("link set {peer} up"));
        self.ip(&format!("address add {address} dev {name}"));
        self.ip(&format!("link set {name} up"));
    }

    /// Moves a device into a network namespace of its own, gives it an address there and brings it up.
    pub(crate) fn far(&self, device: &str, address: &str) -> Far {
        // Ends by itself should the test not end it.
        let child = Command::new("unshare").args(["--net", "sleep", "120"]).spawn().expect("unshare runs");
        let far = Far { child };
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("readable");
        let there = format!("/proc/{}/ns/net", far.child.id());
        self.wait("the far namespace", || (std::fs::read_link(&there).ok()? != own).then_some(()));
        self.ip(&format!("link set {device} netns {}", far.child.id()));
        far.run(&format!("sysctl -qw net.ipv4.conf.all.arp_accept=1 net.ipv4.conf.{device}.arp_accept=1"));
        far.run(&format!("ip address add {address} dev {device}"));
        far.run(&format!("ip link set {device} up"));
        far
    }

    /// Runs a future to its end.
    pub(crate) fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send) -> T {
        self.runtime.block_on(future)
    }

    /// Waits until `probe` gives something.
    pub(crate) fn wait<T>(&self, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = probe() {
                return found;
            }
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A network namespace at the other end of a veth pair; goes with the value.
pub(crate) struct Far {
    child: Child,
}

impl Far {
    /// Runs a command there; its output.
    pub(crate) fn run(&self, words: &str) -> String {
        let id = self.child.id().to_string();
        run(Command::new("nsenter").args(["--target", &id, "--net", "--"]).args(words.split(' ')))
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error: io::Error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
