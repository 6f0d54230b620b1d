//! Kernels from Debian's archive: fetched by apt, verified, unpacked into a cache, never installed.
//!
//! apt gets separate lists, archives and sources, so that the host's state stays as it is; other settings (a proxy, for
//! example) are the host's. May touch the cache directory and, through apt, the network.

use super::kernels::{Kernel, Package};
use crate::lab::{Result, netns::run};
use anyhow::{Context as _, bail, ensure};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use sha2::{Digest as _, Sha256};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

pub(super) const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";
/// The keyring of Debian's archive, where Debian machines have it.
pub(super) const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Marks a kernel's directory as complete.
const COMPLETE: &str = "complete";

/// A kernel's files.
#[derive(Clone, Debug)]
pub struct Unpacked {
    pub image: PathBuf,
    /// `.../lib/modules/<release>`
    pub modules: PathBuf,
}

impl Unpacked {
    /// The kernel's release, as `uname -r` prints it.
    pub fn release(&self) -> Result<String> {
        Ok(self.modules.file_name().context("a kernel has a name")?.to_string_lossy().into_owned())
    }
}

/// The cache directory: `vipgate/vm` in the user's cache directory.
pub fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set, so there is no cache directory")?.join("vipgate/vm"))
}

/// Locks the cache for writing until the lock is dropped or the process ends. Otherwise simultaneous runs would fetch into the
/// same files. A run that waited finds in the cache what the other one fetched.
pub(super) fn lock() -> Result<Flock<fs::File>> {
    let directory = cache()?;
    lock_directory(&directory, || eprintln!("==> another run is filling {}: waiting for it", directory.display()))
}

/// Calls `waits` if it must wait.
fn lock_directory(directory: &Path, waits: impl FnOnce()) -> Result<Flock<fs::File>> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let opened = fs::File::open(directory).with_context(|| format!("cannot open {}", directory.display()))?;
    let refused = |error| format!("cannot lock {}: {error}", directory.display());
    let mut opened = match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((opened, Errno::EWOULDBLOCK)) => opened,
        Err((_, error)) => bail!(refused(error)),
    };
    waits();
    loop {
        opened = match Flock::lock(opened, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(lock),
            Err((opened, Errno::EINTR)) => opened,
            Err((_, error)) => bail!(refused(error)),
        };
    }
}

/// The kernel's directory in the cache, which may not exist yet.
fn place(kernel: &Kernel) -> Result<PathBuf> {
    Ok(cache()?.join("kernels").join(format!("{}_{}", kernel.release, kernel.packages[0].version)))
}

/// The kernel's files if they are in the cache.
pub fn cached(kernel: &Kernel) -> Result<Option<Unpacked>> {
    let place = place(kernel)?;
    if !place.join(COMPLETE).exists() {
        return Ok(None);
    }
    let first = |choices: [String; 2]| choices.into_iter().map(|path| place.join(path)).find(|path| path.exists());
    let release = &kernel.release;
    let modules = first([format!("usr/lib/modules/{release}"), format!("lib/modules/{release}")])
        .with_context(|| format!("the packages of {} have no modules", kernel.name))?;
    let image = [place.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|path| path.exists())
        .with_context(|| format!("the packages of {} have no kernel", kernel.name))?;
    Ok(Some(Unpacked { image, modules }))
}

/// The kernel's files; fetches them if they are not in the cache.
pub fn fetch(kernel: &Kernel) -> Result<Unpacked> {
    if let Some(unpacked) = cached(kernel)? {
        return Ok(unpacked);
    }
    let _lock = lock()?;
    if let Some(unpacked) = cached(kernel)? {
        return Ok(unpacked);
    }
    let started = Instant::now();
    eprintln!("==> kernel {} ({}) from Debian's {}", kernel.name, kernel.release, kernel.suite);
    let apt = Apt::new(&kernel.suite)?;
    let place = place(kernel)?;
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    for package in &kernel.packages {
        let file = apt.download(kernel, package)?;
        check(&file, package)?;
        unpack(&file, &place)?;
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    depmod(kernel, &place)?;
    fs::write(place.join(COMPLETE), "").context("cannot write to the cache")?;
    eprintln!("    done in {:.0} s", started.elapsed().as_secs_f64());
    cached(kernel)?.context("what was just unpacked is gone")
}

/// Size of the kernel in the cache, in bytes.
pub fn size(kernel: &Kernel) -> Result<u64> {
    let said = run(Command::new("du").args(["--summarize", "--block-size=1"]).arg(place(kernel)?))?;
    let words = said.split_whitespace().next().and_then(|word| word.parse().ok());
    words.with_context(|| format!("du prints `{said}`"))
}

/// The newest kernel of the same series in its suite, as a row of the table.
pub fn newest(kernel: &Kernel) -> Result<String> {
    let _lock = lock()?;
    let apt = Apt::new(&kernel.suite)?;
    let (head, _, tail) = varying(&kernel.release).with_context(|| format!("{} has no series", kernel.release))?;
    let stems = kernel.packages.iter().map(|package| package.name.trim_end_matches(kernel.release.as_str()));
    let stems: Vec<&str> = stems.collect();
    let start = format!("{}{head}", stems[0]);
    let listed = run(apt.command("apt-cache").args(["pkgnames", &start]))?;
    let numbers = listed.lines().filter_map(|name| name.strip_prefix(&start)?.strip_suffix(tail)?.parse::<u64>().ok());
    let newest = numbers.max().with_context(|| format!("Debian's {} has no {start}*{tail}", kernel.suite))?;
    let release = format!("{head}{newest}{tail}");
    let mut row = format!(
        "[[kernel]]\nname = \"{}\"\nrelease = \"{release}\"\nsuite = \"{}\"\npackages = [\n",
        kernel.name, kernel.suite
    );
    for stem in stems {
        let name = format!("{stem}{release}");
        let shown = run(apt.command("apt-cache").args(["show", "--no-all-versions", &name]))?;
        let field = |field: &str| {
            let line = shown.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
            line.with_context(|| format!("apt-cache shows no {field} of {name}"))
        };
        let (version, sha256) = (field("Version")?, field("SHA256")?);
        row.push_str(&format!("    {{ name = \"{name}\", version = \"{version}\", sha256 = \"{sha256}\" }},\n"));
    }
    row.push_str(if kernel.refused { "]\nrefused = true\n" } else { "]\n" });
    Ok(row)
}

/// Splits a release at the number that grows with each version: `6.12.` `118` `+deb13-amd64`, `6.1.0-` `57` `-amd64`.
fn varying(release: &str) -> Option<(&str, &str, &str)> {
    let end = match release.find('+') {
        Some(plus) => plus,
        None => release.match_indices('-').nth(1)?.0,
    };
    let start = release[..end].rfind(|letter: char| !letter.is_ascii_digit())? + 1;
    Some((&release[..start], &release[start..end], &release[end..]))
}

/// apt with separate state that only knows one suite.
struct Apt {
    options: Vec<String>,
    /// Directory for downloads.
    downloads: PathBuf,
}

impl Apt {
    /// Fetches lists once a process: kernels are fetched rarely, and their versions may be newer than older lists.
    fn new(suite: &str) -> Result<Self> {
        ensure!(
            ["apt-get", "dpkg-deb", "depmod"].iter().all(|program| super::which(program).is_some()),
            "kernels are fetched and unpacked by apt-get, dpkg-deb and depmod (kmod), which this machine lacks: \
             cargo xtask setup installs them where apt is; elsewhere run the tests in a Debian container"
        );
        ensure!(
            Path::new(KEYS).exists(),
            "{KEYS} is missing, so Debian's archive cannot be verified: install debian-archive-keyring"
        );
        let root = cache()?.join("apt").join(suite);
        let downloads = root.join("downloads");
        for directory in ["lists/partial", "archives/partial", "downloads"] {
            let directory = root.join(directory);
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let sources = root.join("sources.list");
        let mirror = if suite.ends_with("-security") { SECURITY } else { MIRROR };
        fs::write(&sources, format!("deb [signed-by={KEYS}] {mirror} {suite} main\n"))
            .with_context(|| format!("cannot write {}", sources.display()))?;
        let options = [
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Dir::Etc::preferencesparts=-".to_owned(),
            format!("Dir::State::lists={}", root.join("lists").display()),
            format!("Dir::Cache={}", root.display()),
            "APT::Architecture=amd64".to_owned(),
            // apt's own user cannot enter the cache if it is in root's home.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        let options = options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect();
        let apt = Self { options, downloads };
        run(apt.command("apt-get").args(["update", "-qq"])).with_context(|| {
            format!("cannot fetch the package lists of Debian's {suite} from {mirror}; is the network up?")
        })?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C.UTF-8").args(&self.options).current_dir(&self.downloads);
        command
    }

    /// Downloads the package; returns its file.
    fn download(&self, kernel: &Kernel, package: &Package) -> Result<PathBuf> {
        let Package { name, version, .. } = package;
        let known = run(self.command("apt-cache").args(["show", &format!("{name}={version}")]));
        if known.is_err() {
            bail!(
                "{name} {version} is no longer in Debian's {}: put a newer one into tests/src/vm/kernels.toml; \
                 `cargo xtask vm list --archive` prints the rows of what is there",
                kernel.suite
            );
        }
        eprintln!("    {name} {version}");
        run(self.command("apt-get").args(["download", "-qq", &format!("{name}={version}")]))
            .with_context(|| format!("{name} {version} cannot be fetched"))?;
        let files = fs::read_dir(&self.downloads).context("cannot list what was downloaded")?;
        let start = format!("{name}_");
        let mut files = files.flatten().filter(|file| file.file_name().to_string_lossy().starts_with(&start));
        Ok(files.next().with_context(|| format!("apt-get download left no {name}"))?.path())
    }
}

fn check(file: &Path, package: &Package) -> Result<()> {
    let contents = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let found = hex::encode(Sha256::digest(contents));
    ensure!(
        found == package.sha256,
        "{} {} has the SHA-256 {found}, but tests/src/vm/kernels.toml says {}: it is not the package that was tested",
        package.name,
        package.version,
        package.sha256
    );
    Ok(())
}

/// Unpacks a package, without the half of it that no virtual machine loads.
fn unpack(package: &Path, place: &Path) -> Result<()> {
    const UNWANTED: [&str; 5] = ["*/kernel/sound", "*/drivers/gpu", "*/drivers/media", "*/drivers/iio", "*/usr/share"];
    let tarball = place.join("package.tar");
    let file = fs::File::create(&tarball).with_context(|| format!("cannot write {}", tarball.display()))?;
    let mut unpacking = Command::new("dpkg-deb");
    let status = unpacking.arg("--fsys-tarfile").arg(package).stdout(file).status().context("cannot start dpkg-deb")?;
    ensure!(status.success(), "dpkg-deb cannot unpack {}: {status}", package.display());
    let mut tar = Command::new("tar");
    tar.args(UNWANTED.map(|pattern| format!("--exclude={pattern}")));
    run(tar.arg("--extract").arg("--file").arg(&tarball).arg("--directory").arg(place))?;
    fs::remove_file(&tarball).with_context(|| format!("cannot remove {}", tarball.display()))
}

/// Computes the modules' dependencies, as Debian does when it installs a kernel's package.
fn depmod(kernel: &Kernel, place: &Path) -> Result<()> {
    let base = if place.join("lib/modules").exists() { place.to_path_buf() } else { place.join("usr") };
    run(Command::new("depmod").arg("--basedir").arg(base).arg(&kernel.release)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::kernels;
    use std::{sync::mpsc, thread};

    #[test]
    fn a_second_run_reports_that_it_waits_and_goes_on_when_the_first_is_done() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let first = lock_directory(directory.path(), || unreachable!("nobody has it"))?;
        let (events, heard) = mpsc::channel();
        let path = directory.path().to_path_buf();
        let second = thread::spawn(move || {
            let _lock = lock_directory(&path, || events.send("waits").expect("it is heard"))?;
            events.send("goes on").context("nobody hears it")
        });
        assert_eq!(heard.recv()?, "waits");
        assert!(heard.try_recv().is_err(), "the first is not done");
        drop(first);
        assert_eq!(heard.recv()?, "goes on");
        second.join().expect("no panic")
    }

    #[test]
    fn the_number_that_grows_is_found_in_both_forms_of_releases() {
        assert_eq!(varying("6.12.118+deb13-cloud-amd64"), Some(("6.12.", "118", "+deb13-cloud-amd64")));
        assert_eq!(varying("6.1.0-57-cloud-amd64"), Some(("6.1.0-", "57", "-cloud-amd64")));
    }

    #[test]
    fn each_package_of_the_table_ends_with_its_kernels_release() -> Result<()> {
        for kernel in kernels::all()? {
            for package in &kernel.packages {
                assert!(package.name.ends_with(&kernel.release), "{} and {}", package.name, kernel.release);
            }
        }
        Ok(())
    }
}
