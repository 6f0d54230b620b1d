//! The hosts on either side of the router. They send requests, and answer with their own name and the client that they see.

use super::{Namespace, Process, Result, netns::run};
use anyhow::{Context as _, bail, ensure};
use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    ops::Range,
    path::Path,
    str::FromStr,
    time::Duration,
};

/// Time for nginx to start on a busy machine.
const STARTED: Duration = Duration::from_secs(20);

/// A client on the public network, or a VM behind the router. VMs always serve, clients only if a test starts their services.
#[derive(Debug)]
pub struct Host {
    pub name: String,
    pub namespace: Namespace,
    pub address: Ipv4Addr,
    pub mac: String,
    /// Timeout for an answer.
    pub patience: Duration,
    /// Ended before the namespace is removed.
    nginx: Option<Process>,
}

/// A host's answer: its own name, and the client that it sees.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    pub backend: String,
    pub client: SocketAddrV4,
}

impl FromStr for Origin {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (backend, client) =
            text.trim().split_once(' ').with_context(|| format!("not a host's answer: `{text}`"))?;
        let client = client.parse().with_context(|| format!("not a client's address: `{client}`"))?;
        Ok(Self { backend: backend.to_owned(), client })
    }
}

impl Host {
    pub(super) fn new(name: String, namespace: Namespace, address: Ipv4Addr, mac: String, patience: Duration) -> Self {
        Self { name, namespace, address, mac, patience, nginx: None }
    }

    /// Its web server.
    #[must_use]
    pub fn web(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, HTTP_PORT)
    }

    /// Its echo services over TCP and UDP.
    #[must_use]
    pub fn echo(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, ECHO_PORT)
    }

    /// Sends one HTTP request with curl, on a new connection.
    pub fn curl(&self, vip: SocketAddrV4) -> Result<Origin> {
        let limit = self.patience.as_secs() + 1;
        let words = format!("--silent --show-error --fail --max-time {limit} http://{vip}/");
        self.namespace.run("curl", &words)?.parse()
    }

    /// Asks an echo service with netcat and these further options.
    pub fn netcat(&self, options: &str, service: SocketAddrV4) -> Result<Origin> {
        let script =
            format!("echo who | nc {options} -w {} {} {}", self.patience.as_secs(), service.ip(), service.port());
        let said = run(self.namespace.command("sh").args(["-c", &script]))?;
        // The answer to a datagram repeats the question first.
        said.trim_start_matches("who").parse()
    }

    /// Sends one HTTP request without curl, which is faster for many requests.
    pub fn fetch(&self, vip: SocketAddrV4) -> Result<Origin> {
        self.namespace.within(|| fetch(vip, self.patience))
    }

    /// Sends `count` requests, each on a new connection, from one thread in the namespace.
    pub fn fetch_many(&self, vip: SocketAddrV4, count: usize) -> Result<Vec<Origin>> {
        self.namespace.within(|| (0..count).map(|_| fetch(vip, self.patience)).collect())
    }

    /// Sends one datagram from a new port and returns the answer.
    pub fn ask_udp(&self, vip: SocketAddrV4) -> Result<Origin> {
        self.udp(vip)?.ask()
    }

    /// Opens a flow from each of these ports by a datagram, which is repeated if no answer comes.
    pub fn ask_from_many(&self, vip: SocketAddrV4, ports: Range<u16>) -> Result<()> {
        /// Most unanswered datagrams at a time: fewer than any socket on the way can queue.
        const AT_ONCE: usize = 64;
        let ports: Vec<u16> = ports.collect();
        self.namespace.within(|| {
            for ports in ports.chunks(AT_ONCE) {
                let open = |port: &u16| -> Result<UdpSession> {
                    let socket = UdpSocket::bind((self.address, *port)).context("cannot open a UDP socket")?;
                    socket.set_read_timeout(Some(self.patience))?;
                    socket.connect(vip)?;
                    socket.send(b"0").context("cannot send")?;
                    Ok(UdpSession { socket, asked: 0 })
                };
                let sessions: Vec<UdpSession> = ports.iter().map(open).collect::<Result<_>>()?;
                for mut session in sessions {
                    if session.socket.recv(&mut [0; 64]).is_err() {
                        session.ask()?;
                    }
                }
            }
            Ok(())
        })
    }

    /// A UDP socket with a fixed port: one flow.
    pub fn udp(&self, vip: SocketAddrV4) -> Result<UdpSession> {
        self.namespace.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").context("cannot open a UDP socket")?;
            socket.set_read_timeout(Some(self.patience))?;
            socket.connect(vip)?;
            Ok(UdpSession { socket, asked: 0 })
        })
    }

    /// A TCP connection that stays open.
    pub fn tcp(&self, vip: SocketAddrV4) -> Result<TcpSession> {
        self.namespace.within(|| Ok(TcpSession { stream: connect(vip, self.patience)? }))
    }

    /// The number of established TCP connections that the host's kernel has with this peer.
    pub fn connections_with(&self, peer: Ipv4Addr) -> Result<usize> {
        const ESTABLISHED: &str = "01";
        let table = self.namespace.within(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp")?))?;
        let peer = format!("{:08X}:", u32::from_ne_bytes(peer.octets()));
        let is_one = |line: &&str| {
            let mut words = line.split_whitespace().skip(2);
            words.next().is_some_and(|remote| remote.starts_with(&peer)) && words.next() == Some(ESTABLISHED)
        };
        Ok(table.lines().filter(is_one).count())
    }

    /// Sends three pings with these further options; all must be answered.
    pub fn ping(&self, address: Ipv4Addr, options: &str) -> Result<()> {
        let patience = self.patience.as_secs();
        let said = self.namespace.run("ping", &format!("-c 3 -i 0.2 -W {patience} {options} {address}"))?;
        ensure!(said.contains(" 3 received"), "{said}");
        Ok(())
    }

    /// Starts nginx and the echo services.
    pub(crate) fn serve(&mut self, directory: &Path) -> Result<()> {
        self.start_web(directory)?;
        let (listener, socket) = self.namespace.within(|| {
            let listener = TcpListener::bind(("0.0.0.0", ECHO_PORT)).context("cannot listen")?;
            let socket = UdpSocket::bind(("0.0.0.0", ECHO_PORT)).context("cannot bind")?;
            Ok((listener, socket))
        })?;
        echo_tcp(listener, self.name.clone());
        echo_udp(socket, self.name.clone());
        Ok(())
    }

    /// Ends nginx: its port refuses connections from now on. The echo services go on.
    pub fn stop_web(&mut self) {
        self.nginx = None;
    }

    /// The process id of the web server; `None` if it is stopped.
    #[must_use]
    pub fn web_id(&self) -> Option<u32> {
        self.nginx.as_ref().map(Process::id)
    }

    /// Starts nginx, with its files in `directory`, and waits until it answers.
    pub fn start_web(&mut self, directory: &Path) -> Result<()> {
        let home = directory.join(&self.name);
        fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
        let configuration = home.join("nginx.conf");
        fs::write(&configuration, nginx_configuration(&self.name, &home))
            .with_context(|| format!("cannot write {}", configuration.display()))?;
        let mut nginx = self.namespace.command("nginx");
        nginx.arg("-p").arg(&home).arg("-c").arg(&configuration).args(["-e", "stderr"]);
        let mut nginx = Process::start(&format!("nginx-{}", self.name), &nginx, directory)?;
        nginx.until("nginx to listen", STARTED, |_| {
            self.namespace.within(|| fetch(SocketAddrV4::new(Ipv4Addr::LOCALHOST, HTTP_PORT), self.patience))
        })?;
        self.nginx = Some(nginx);
        Ok(())
    }
}

fn connect(vip: SocketAddrV4, patience: Duration) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::V4(vip), patience)
        .with_context(|| format!("cannot connect to {vip}"))?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(super) fn fetch(vip: SocketAddrV4, patience: Duration) -> Result<Origin> {
    let mut stream = connect(vip, patience)?;
    stream.write_all(format!("GET / HTTP/1.0\r\nHost: {vip}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    let own = stream.local_addr()?;
    stream.read_to_string(&mut answer).with_context(|| format!("{vip} does not answer {own}"))?;
    let (_, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{vip} answers `{answer}`"))?;
    body.parse()
}

/// A connection to a host's echo service, see [`ECHO_PORT`].
#[derive(Debug)]
pub struct TcpSession {
    stream: TcpStream,
}

impl TcpSession {
    /// Sends a line and reads the answer.
    pub fn ask(&mut self) -> Result<Origin> {
        self.stream.write_all(b"who\n")?;
        let mut answer = [0; 64];
        let length = self.stream.read(&mut answer).context("the connection does not answer")?;
        if length == 0 {
            bail!("the connection was closed");
        }
        String::from_utf8_lossy(&answer[..length]).parse()
    }

    /// Waits until the kernel reports the connection as reset. Sends nothing.
    pub fn wait_for_reset(&mut self) -> Result<()> {
        match self.stream.read(&mut [0; 64]) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            other => bail!("{other:?} instead of a reset"),
        }
    }
}

#[derive(Debug)]
pub struct UdpSession {
    socket: UdpSocket,
    asked: u32,
}

impl UdpSession {
    /// Sends a datagram and waits for its own answer; ignores late answers to earlier ones.
    pub fn ask(&mut self) -> Result<Origin> {
        self.ask_by(0)
    }

    /// [`Self::ask`] with a datagram of this many bytes; the answer is a little longer.
    pub fn ask_by(&mut self, bytes: usize) -> Result<Origin> {
        self.asked += 1;
        let number = format!("{:-<bytes$}", self.asked);
        self.socket.send(number.as_bytes()).context("cannot send")?;
        let mut answer = vec![0; bytes + 128];
        for _ in 0..=self.asked {
            let length = self.socket.recv(&mut answer).context("no answer")?;
            let text = String::from_utf8_lossy(&answer[..length]).into_owned();
            if let Some((echoed, origin)) = text.split_once(' ')
                && echoed == number
            {
                return origin.parse();
            }
        }
        bail!("only late answers came")
    }
}

/// Where a host's web server listens.
pub const HTTP_PORT: u16 = 80;
/// The port of its echo services: they answer each line on a connection, and each datagram.
pub const ECHO_PORT: u16 = 7000;

/// The threads end with the process: they hold only a socket in a namespace that nothing can reach any more.
fn echo_tcp(listener: TcpListener, name: String) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let name = name.clone();
            std::thread::spawn(move || answer_lines(stream, &name));
        }
    });
}

fn answer_lines(mut stream: TcpStream, name: &str) {
    let Ok(client) = stream.peer_addr() else { return };
    let mut question = [0; 64];
    while stream.read(&mut question).is_ok_and(|length| length > 0) {
        if stream.write_all(format!("{name} {client}\n").as_bytes()).is_err() {
            return;
        }
    }
}

fn echo_udp(socket: UdpSocket, name: String) {
    std::thread::spawn(move || {
        let mut question = [0; 16_384];
        while let Ok((length, client)) = socket.recv_from(&mut question) {
            let text = String::from_utf8_lossy(&question[..length]);
            // The client may be gone.
            let _ = socket.send_to(format!("{text} {name} {client}").as_bytes(), client);
        }
    });
}

fn nginx_configuration(name: &str, home: &Path) -> String {
    let home = home.display();
    format!(
        "daemon off;
        master_process off;
        pid {home}/nginx.pid;
        events {{ worker_connections 1024; }}
        http {{
            access_log off;
            client_body_temp_path {home}/body;
            proxy_temp_path {home}/proxy;
            fastcgi_temp_path {home}/fastcgi;
            uwsgi_temp_path {home}/uwsgi;
            scgi_temp_path {home}/scgi;
            server {{
                listen {HTTP_PORT} backlog=1024;
                location / {{ return 200 \"{name} $remote_addr:$remote_port\\n\"; }}
            }}
        }}
        "
    )
}
