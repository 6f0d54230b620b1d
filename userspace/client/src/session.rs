//! The session that a login saves for later commands, and the input of passwords.
//!
//! Only its owner can read the file (mode 0600): it allows to act as the account. Passwords come from a terminal
//! without echo, a file or standard input, never from an argument, which every process can read.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha512};

use super::ClientError;

/// A session, with its account and its server.
#[allow(missing_debug_implementations, reason = "the session must not reach a log")]
#[derive(Deserialize, Serialize)]
pub(super) struct Session {
    /// `http://host:port`
    pub(super) api: String,
    pub(super) account: String,
    pub(super) uuid: String,
}

impl Session {
    pub(super) fn load() -> Result<Self, ClientError> {
        Self::read(&file()?)
    }

    pub(super) fn save(&self) -> Result<(), ClientError> {
        self.write(&file()?)
    }

    /// Removes the saved session, if there is one.
    pub(super) fn remove() -> Result<(), ClientError> {
        let path = file()?;
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(file_error("remove", &path)(source)),
            _ => Ok(()),
        }
    }

    fn read(path: &Path) -> Result<Self, ClientError> {
        let text = match fs::read_to_string(path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Err(ClientError::NotLoggedIn),
            text => text.map_err(file_error("read", path))?,
        };
        serde_json::from_str(&text).map_err(|_| ClientError::BadSession { path: path.to_owned() })
    }

    /// Replaces the file atomically: a command that runs meanwhile reads the old session or the new one.
    fn write(&self, path: &Path) -> Result<(), ClientError> {
        let directory = path.parent().unwrap_or(path);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(file_error("make", directory))?;
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let write = || {
            let mut to = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            to.write_all(serde_json::to_string(self)?.as_bytes())?;
            fs::rename(&new, path)
        };
        write().map_err(|source| {
            // The incomplete file is useless. If it cannot be removed either, the first failure says enough.
            let _ = fs::remove_file(&new);
            file_error("write", path)(source)
        })
    }
}

/// An error about a file.
pub(super) fn file_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClientError {
    move |source| ClientError::File { what, path: path.to_owned(), source }
}

fn file() -> Result<PathBuf, ClientError> {
    let directory = state_home(env::var_os("XDG_STATE_HOME"), env::var_os("HOME")).ok_or(ClientError::NoHome)?;
    Ok(directory.join("vipgate/session.json"))
}

/// By the XDG Base Directory Specification, which ignores relative paths.
fn state_home(state_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    state_home.and_then(absolute).or_else(|| Some(home.and_then(absolute)?.join(".local/state")))
}

/// Reads a password and returns its SHA-512 in 128 hexadecimal digits, as the API expects it.
///
/// It comes from `file` (`-`: standard input), else from the terminal, asked for with `prompt`, else from standard
/// input.
pub(super) fn password(file: Option<&Path>, prompt: &str) -> Result<String, ClientError> {
    let stdin = || {
        let mut text = String::new();
        io::stdin()
            .lock()
            .read_to_string(&mut text)
            .map(|_| text)
            .map_err(file_error("read", Path::new("standard input")))
    };
    let text = match file {
        Some(path) if path != Path::new("-") => fs::read_to_string(path).map_err(file_error("read", path))?,
        None if io::stdin().is_terminal() => ask(prompt).map_err(file_error("read", Path::new("the terminal")))?,
        _ => stdin()?,
    };
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(ClientError::NoPassword);
    }
    Ok(hex::encode(Sha512::digest(text)))
}

fn ask(prompt: &str) -> io::Result<String> {
    let stdin = io::stdin();
    let mut line = String::new();
    eprint!("{prompt}: ");
    let silence = Silence::begin(stdin.as_fd())?;
    let read = stdin.lock().read_line(&mut line);
    drop(silence);
    eprintln!();
    read.map(|_| line)
}

/// Switches the echo of a terminal off until it is dropped.
struct Silence<F: AsFd> {
    terminal: F,
    before: Termios,
}

impl<F: AsFd> Silence<F> {
    fn begin(terminal: F) -> io::Result<Self> {
        let before = tcgetattr(&terminal)?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&terminal, SetArg::TCSAFLUSH, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl<F: AsFd> Drop for Silence<F> {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        let _ = tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_session_is_kept_for_its_owner_alone_and_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/vipgate/session.json");
        assert!(matches!(Session::read(&path), Err(ClientError::NotLoggedIn)));
        let session = |uuid: &str| Session { api: "http://a:1".into(), account: "admin".into(), uuid: uuid.into() };
        session("first").write(&path).unwrap();
        session("second").write(&path).unwrap();
        assert_eq!(Session::read(&path).ok().map(|session| session.uuid), Some("second".to_owned()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a half-written file is left");
    }

    #[test]
    fn state_is_where_the_specification_puts_it() {
        let at = |state: Option<&str>, home: Option<&str>| state_home(state.map(Into::into), home.map(Into::into));
        assert_eq!(at(Some("/s"), Some("/h")), Some("/s".into()));
        assert_eq!(at(Some("s"), Some("/h")), Some("/h/.local/state".into()));
        assert_eq!(at(None, Some("/h")), Some("/h/.local/state".into()));
        assert_eq!(at(None, None), None);
    }

    #[test]
    fn a_password_file_ends_before_its_newline() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let of = |text: &str| {
            fs::write(&path, text).unwrap();
            password(Some(&path), "password")
        };
        assert_eq!(of("secret\n").unwrap(), hex::encode(Sha512::digest("secret")));
        assert!(matches!(of("\n"), Err(ClientError::NoPassword)));
    }
}
