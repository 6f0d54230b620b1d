//! `vipgate serve`: opens everything, what fails most often first, serves until a signal ends it, and leaves the traffic running.
//!
//! The order: lock, address, store, kernel. So a second controller by mistake ends before it has touched a table. In another
//! version's place the kernel is asked first, before the store becomes ours.
//! Reports readiness to systemd when the kernel holds the stored state and the API answers.

use std::{io, net::SocketAddr, sync::Arc};

use sd_notify::NotifyState;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::{JoinError, spawn_blocking},
};
use tracing::{info, warn};
use vipgate_abi::maps;
use vipgate_agent::{
    health::HealthChecks,
    loader::{LoadError, Options, PinDir, Plane},
    net::{Devices, NetError, sysctl},
    reconcile::{self, Reconciler},
};
use vipgate_api::ApiError;
use vipgate_controller::{
    jobs, model,
    rest::{self, RestState},
    store::{self, Store},
};
use vipgate_state::Capacity;

use crate::{
    config::{Config, DEFAULT_PASSWORD, Secret},
    controller_status::ControllerStatus,
    follow_addresses,
    lock::{self, Lock, LockError},
    packet_log, reload,
};

/// Why the controller ended, other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {source}; is another controller running, or another program on that port?")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Kernel(#[from] LoadError),
    #[error(transparent)]
    Reconcile(#[from] reconcile::ApplyError),
    #[error(transparent)]
    Network(#[from] NetError),
    #[error(transparent)]
    WebHooks(#[from] jobs::NoClient),
    #[error("the admin's first password cannot be stored: {0}")]
    Password(#[from] ApiError),
    #[error("the reconciler or its sweeper ended unexpectedly, see the log; a restart brings the router in line again")]
    Ended,
    #[error("a task of the controller ended unexpectedly: {0}")]
    Task(#[from] JoinError),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

/// Runs the controller until SIGTERM or SIGINT; at SIGHUP it follows the settings, which `settings` reads.
///
/// # Errors
/// What keeps it from starting, or ends it; everything that was opened is closed again, and traffic goes on.
pub async fn serve(config: Config, settings: reload::Source) -> Result<(), ServeError> {
    let stop = stop_signal()?;
    let hangups = reload::caught().map_err(|source| ServeError::Io { what: "cannot catch signals", source })?;
    PinDir::check(&config.bpffs)?;
    let lock = Lock::make(&config.bpffs)?;
    let _namespace = lock::namespace(&config.bpffs)?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|source| ServeError::Listen { address: config.listen, source })?;
    let (plane, store) = open(&config).await?;
    let address = listener.local_addr().unwrap_or(config.listen);
    let devices = Devices::open(address)?;
    adopt_addresses(&store, &devices).await?;
    let checks = HealthChecks::default();
    let heard = Arc::clone(&plane);
    let packet_records = spawn_blocking(move || heard.packet_records()).await??;
    let reconciler = Reconciler::start(plane, store.clone(), checks.clone()).await?;
    reconciler.log_reasons(config.log.packets.reasons()).await?;
    let _checking = checks.run(store.clone(), reconciler.clone());
    let (hook, flows, refused) = (config.hook, config.datapath.flows, reconciler.refused());
    let answering =
        lock.answer(move || ControllerStatus::new(hook, flows, checks.figures(), &refused.borrow()).to_text());
    let answering = answering.map_err(|source| ServeError::Io { what: "cannot answer `vipgate status`", source })?;
    let devices = Arc::new(devices);
    // These tasks end with the runtime.
    tokio::spawn(packet_log::run(packet_records, store.clone()));
    tokio::spawn(reload::follow(hangups, settings, config.clone(), reconciler.clone()));
    tokio::spawn(answering);
    tokio::spawn(follow_addresses::run(store.clone(), Arc::clone(&devices), reconciler.clone()));
    let state = RestState::new(store.clone(), devices, Arc::new(reconciler.clone()), rest::Settings::default())?;
    first_password(&store, &config).await?;
    state.jobs().recover().await?;

    if !sysctl::routes() {
        warn!("net.ipv4.ip_forward is 0: only the devices of VIPs and guests forward; sysctl -w net.ipv4.ip_forward=1");
    }
    info!(%address, store = config.store, hook = %config.hook, "vipgate serves the API");
    tell_systemd(&[NotifyState::Ready]);
    tokio::select! {
        served = rest::serve(listener, state, stop) => {
            served.map_err(|source| ServeError::Io { what: "the API cannot be served", source })?;
        }
        () = reconciler.ended() => return Err(ServeError::Ended),
    }

    tell_systemd(&[NotifyState::Stopping]);
    reconciler.shutdown().await;
    store.close().await;
    info!("vipgate has ended; the traffic goes on");
    Ok(())
}

/// Stores the addresses that the router has of its own now.
async fn adopt_addresses(store: &Store, devices: &Devices) -> Result<(), ServeError> {
    let mut tx = store.begin().await?;
    model::follow(&mut tx, devices).await?;
    Ok(tx.commit().await?)
}

/// Opens the tables and the store, in the order that leaves another version's store unchanged where the kernel refuses the programs.
async fn open(config: &Config) -> Result<(Arc<Plane>, Store), ServeError> {
    let options = Options {
        bpffs: config.bpffs.clone(),
        hook: config.hook,
        tc: config.tc,
        sizes: config.datapath,
        least_flows: maps::FIRST_FLOWS,
        refused: &[],
    };
    let rehearsed = options.clone();
    spawn_blocking(move || Plane::rehearse(&rehearsed)).await??;
    let store = Store::open(&config.store).await?;
    let plane = spawn_blocking(move || Plane::open(&options)).await??;
    let sizes = plane.sizes();
    let capacity = Capacity { services: sizes.services, backends: sizes.backends, ..Capacity::default() };
    Ok((plane, store.with_capacity(capacity)))
}

/// Sets the admin's password of a new store; the store of a later start keeps its own.
async fn first_password(store: &Store, config: &Config) -> Result<(), ServeError> {
    let configured = config.admin_password.as_ref();
    let password = configured.map_or(DEFAULT_PASSWORD, Secret::expose);
    if rest::set_first_password(store, password).await? && configured.is_none() {
        warn!(
            "the account admin has the default password, which everyone knows: set admin_password before the first start"
        );
    }
    Ok(())
}

/// True once SIGTERM or SIGINT has come. Both are caught from here on.
fn stop_signal() -> Result<watch::Receiver<bool>, ServeError> {
    let caught = |kind| signal(kind).map_err(|source| ServeError::Io { what: "cannot catch signals", source });
    let (mut terminate, mut interrupt) = (caught(SignalKind::terminate())?, caught(SignalKind::interrupt())?);
    let (stopping, stop) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Nobody listens any more once the controller has ended by itself.
        let _ = stopping.send(true);
    });
    Ok(stop)
}

/// Nothing where systemd did not start the controller.
fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot tell systemd how the controller is");
    }
}
