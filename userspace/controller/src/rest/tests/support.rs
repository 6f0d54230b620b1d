//! A server of its own for every test, and a client that knows how to wait for jobs.

use std::{
    future,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use http::StatusCode;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle, time::Instant};
use vipgate_state::{Apply, Change, Devices, NotApplied};

use crate::{
    jobs::{self, Jobs},
    rest::{Accepting, RestState, Settings, router, set_first_password},
    store::Store,
};

pub(super) const PASSWORD: &str = "password";

/// The longest wait of a test.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The kernel side: records the changes that it gets, and waits or fails on demand.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) changes: Mutex<Vec<Change>>,
    pub(super) fails: AtomicBool,
    pub(super) panics: AtomicBool,
    /// No device can carry the programs.
    pub(super) bars_devices: AtomicBool,
    gate: Semaphore,
}

impl Kernel {
    pub(super) fn hold(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Ends what waits as if the controller were stopping.
    pub(super) fn end(&self) {
        self.gate.close();
    }

    pub(super) fn release(&self) {
        self.gate.add_permits(1000);
    }
}

impl Apply for Kernel {
    fn prepare(&self, device: String) -> BoxFuture<'_, Result<(), NotApplied>> {
        let barred = self.bars_devices.load(Ordering::SeqCst);
        let result = if barred { Err(NotApplied::Failed(format!("{device} has no XDP").into())) } else { Ok(()) };
        future::ready(result).boxed()
    }

    fn apply(&self, change: Change) -> BoxFuture<'_, Result<(), NotApplied>> {
        async move {
            let _permit = self.gate.acquire().await.map_err(|_| NotApplied::Ending)?;
            assert!(!self.panics.load(Ordering::SeqCst), "a fault that a test asked for");
            self.changes.lock().unwrap().push(change);
            if self.fails.load(Ordering::SeqCst) {
                return Err(NotApplied::Failed("the kernel has no room".into()));
            }
            Ok(())
        }
        .boxed()
    }
}

struct Wires;

impl Devices for Wires {
    fn list(&self) -> Vec<String> {
        ["eth0", "eth1"].map(str::to_owned).into()
    }

    fn addresses_by_device(&self) -> Vec<(String, IpAddr)> {
        Vec::new()
    }
}

/// A running controller without a packet path.
pub(super) struct Server {
    pub(super) base: String,
    pub(super) kernel: Arc<Kernel>,
    pub(super) store: Store,
    pub(super) jobs: Jobs,
    pub(super) dir: Arc<TempDir>,
    task: JoinHandle<()>,
    client: Client,
    session: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Settings with short intervals.
pub(super) fn quick() -> Settings {
    let jobs =
        jobs::Settings { hook_interval: Duration::from_millis(10), hook_retries: 15, ..jobs::Settings::default() };
    Settings { jobs, ..Settings::default() }
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::start_with(quick()).await
    }

    pub(super) async fn start_with(settings: Settings) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut server = Self::open(dir, settings).await;
        server.session = server.log_in().await;
        server
    }

    /// A second controller on the store of a first one that has ended.
    pub(super) async fn restart(self) -> Self {
        let (dir, session) = (self.dir.clone(), self.session.clone());
        self.task.abort();
        self.store.close().await;
        drop(self);
        let mut server = Self::open(dir, quick()).await;
        server.session = session;
        server
    }

    async fn open(dir: Arc<TempDir>, settings: Settings) -> Self {
        let store = Store::open(&format!("sqlite://{}/vipgate.db", dir.path().display())).await.unwrap();
        set_first_password(&store, PASSWORD).await.unwrap();
        let kernel = Arc::new(Kernel {
            changes: Mutex::default(),
            fails: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            bars_devices: AtomicBool::new(false),
            gate: Semaphore::new(1000),
        });
        let state = RestState::new(store.clone(), Arc::new(Wires), kernel.clone(), settings).unwrap();
        let jobs = state.jobs().clone();
        jobs.recover().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(Accepting::new(listener), router(state)).await.unwrap() });
        let client = Client::builder().no_proxy().build().unwrap();
        Self { base, kernel, store, jobs, dir, task, client, session: String::new() }
    }

    async fn log_in(&self) -> String {
        let body = json!({"logInByAccount": {"accountName": "admin", "password": sha512(PASSWORD)}});
        let reply = self.bare(Method::PUT, "/zstack/v1/accounts/login").json(&body).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::OK);
        json_of(reply).await["inventory"]["uuid"].as_str().unwrap().to_owned()
    }

    pub(super) fn session(&self) -> &str {
        &self.session
    }

    /// A request without a session.
    pub(super) fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    /// A request with the session, below `/zstack/v1`.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.bare(method, &format!("/zstack/v1{path}")).header("Authorization", format!("OAuth {}", self.session))
    }

    pub(super) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub(super) async fn query(&self, path: &str) -> Value {
        let reply = self.get(path).await;
        assert_eq!(reply.status(), StatusCode::OK, "{path}: {}", reply.text().await.unwrap());
        json_of(self.get(path).await).await
    }

    /// An asynchronous call, to its end: status and body of the last poll.
    pub(super) async fn call(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let mut request = self.request(method, path);
        if !body.is_null() {
            request = request.json(&body);
        }
        self.wait_for(request.send().await.unwrap()).await
    }

    /// Polls the job of a 202.
    pub(super) async fn wait_for(&self, reply: Response) -> (StatusCode, Value) {
        assert_eq!(reply.status(), StatusCode::ACCEPTED);
        let location = json_of(reply).await["location"].as_str().unwrap().to_owned();
        assert!(location.starts_with(&format!("{}/zstack/v1/api-jobs/", self.base)), "{location}");
        eventually(async || {
            let reply = self.client.get(&location).send().await.unwrap();
            let status = reply.status();
            (status != StatusCode::ACCEPTED).then_some(())?;
            Some((status, json_of(reply).await))
        })
        .await
    }

    /// A call that must succeed: its `inventory`.
    pub(super) async fn made(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, mut reply) = self.call(method, path, body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {reply}");
        reply["inventory"].take()
    }

    /// A call that must fail: its `error`.
    pub(super) async fn refused(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, mut reply) = self.call(method, path, body).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {reply}");
        reply["error"].take()
    }

    pub(super) async fn create(&self, path: &str, params: Value) -> Value {
        self.made(Method::POST, path, json!({ "params": params })).await
    }
}

pub(super) async fn json_of(reply: Response) -> Value {
    reply.json().await.unwrap()
}

pub(super) fn sha512(text: &str) -> String {
    hex::encode(Sha512::digest(text))
}

pub(super) fn uuid_of(inventory: &Value) -> &str {
    inventory["uuid"].as_str().unwrap()
}

/// Asks until there is an answer.
pub(super) async fn eventually<T>(ask: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "it did not happen in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A zone with a public network, a guest network with load balancing, one VM on it, a VIP, and a listener without NICs.
pub(super) struct Site {
    pub(super) zone: String,
    pub(super) public: String,
    pub(super) guest: String,
    pub(super) vip: String,
    pub(super) balancer: String,
    pub(super) listener: String,
    pub(super) nic: String,
}

impl Site {
    pub(super) async fn build(server: &Server) -> Self {
        let zone = created(server, "/zones", json!({"name": "site"})).await;
        let mut networks = Vec::new();
        for (name, device, cidr) in [("public", "eth0", "203.0.113.0/24"), ("guest", "eth1", "10.0.0.0/24")] {
            let l2 = json!({"name": name, "zoneUuid": zone, "physicalInterface": device});
            let l2 = created(server, "/l2-networks/no-vlan", l2).await;
            let l3 = created(server, "/l3-networks", json!({"name": name, "l2NetworkUuid": l2})).await;
            let range = json!({"name": name, "networkCidr": cidr});
            created(server, &format!("/l3-networks/{l3}/ip-ranges/by-cidr"), range).await;
            networks.push(l3);
        }
        let (guest, public) = (networks.pop().unwrap(), networks.pop().unwrap());
        let providers = server.query("/network-services/providers").await;
        let provider = uuid_of(&providers["inventories"][0]).to_owned();
        let services = json!({"networkServices": {provider: ["LoadBalancer"]}});
        server.create(&format!("/l3-networks/{guest}/network-services"), services).await;
        let vm = server.create("/vm-instances", json!({"name": "web-1", "l3NetworkUuids": [guest]})).await;
        let nic = uuid_of(&vm["vmNics"][0]).to_owned();
        let vip = created(server, "/vips", json!({"name": "vip", "l3NetworkUuid": public})).await;
        let balancer = created(server, "/load-balancers", json!({"name": "lb", "vipUuid": vip})).await;
        let listener = json!({"name": "http", "loadBalancerPort": 80.0, "protocol": "TCP"});
        let listener = created(server, &format!("/load-balancers/{balancer}/listeners"), listener).await;
        Self { zone, public, guest, vip, balancer, listener, nic }
    }

    pub(super) fn nics(&self) -> String {
        format!("/load-balancers/listeners/{}/vm-instances/nics", self.listener)
    }
}

async fn created(server: &Server, path: &str, params: Value) -> String {
    uuid_of(&server.create(path, params).await).to_owned()
}
