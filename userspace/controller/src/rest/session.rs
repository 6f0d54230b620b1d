//! Sessions: log-in, log-out, and the account of a session.
//!
//! A client sends the SHA-512 of its password, never the password. So the SHA-512 is the secret, and its Argon2id hash (RFC
//! 9106) is stored. Of a session, too, only a hash is stored. Neither secret is ever logged.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier, password_hash::Error::PasswordInvalid};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256, Sha512};
use tokio::task;
use vipgate_api::{
    ApiError, Code, Date,
    session::{LogInByAccount, RenewSession, SessionInventory, SessionUuid},
};

use super::{
    hashing::Hashing,
    login_attempts::{Attempts, Origin},
};
use crate::{
    model::Caller,
    store::{
        Store, Tx,
        account::{self, ADMIN, SYSTEM_ADMIN},
        new_uuid,
        session::{self, Session},
    },
};

/// The most valid sessions of an account: a further one ends the one that expires first.
const MAX_SESSIONS: i64 = 500;

/// How long a session is valid in the documented system.
pub const LIFETIME: Duration = Duration::from_secs(7200);

/// The sessions of a store; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Sessions {
    store: Store,
    lifetime: Duration,
    hashing: Hashing,
    attempts: Arc<Attempts>,
}

impl Sessions {
    pub(super) fn new(store: Store, lifetime: Duration) -> Self {
        Self { store, lifetime, hashing: Hashing::start(), attempts: Arc::default() }
    }

    /// Creates a session for a caller at that address.
    pub(super) async fn log_in(&self, request: LogInByAccount, peer: IpAddr) -> Result<SessionInventory, ApiError> {
        // A digest, since names that do not exist can have any length.
        let origin = (peer, digest(&request.account_name));
        let known = account::credentials(&mut self.store.look().await?, &request.account_name).await?;
        let (account_uuid, stored) = known.unzip();
        let right = self.verify(request.password, stored.flatten(), origin).await?;
        let Some(account_uuid) = account_uuid.filter(|_| right) else {
            return Err(ApiError::authentication());
        };

        let mut tx = self.store.begin().await?;
        session::delete_expired(&mut tx).await?;
        session::delete_surplus(&mut tx, &account_uuid, MAX_SESSIONS - 1).await?;
        let (uuid, now) = (new_uuid(), tx.now());
        let expired_date = after(now, self.lifetime);
        let row = Session { uuid_hash: digest(&uuid), account_uuid, create_date: now, expired_date };
        session::insert(&mut tx, &row).await?;
        tx.commit().await?;
        inventory(uuid, row)
    }

    /// Makes a session valid from now on as long as a new one, or as long as the request says.
    pub(super) async fn renew(&self, request: &RenewSession) -> Result<SessionInventory, ApiError> {
        let mut tx = self.store.begin().await?;
        let expires = after(tx.now(), request.duration.map_or(self.lifetime, Duration::from_secs));
        let renewed = session::renew(&mut tx, &digest(&request.session_uuid), expires).await?;
        let row = renewed.ok_or_else(ApiError::invalid_session)?;
        tx.commit().await?;
        inventory(request.session_uuid.clone(), row)
    }

    /// Ends a session; it is no error if the session does not exist.
    pub(super) async fn log_out(&self, request: &SessionUuid) -> Result<(), ApiError> {
        let mut tx = self.store.begin().await?;
        session::delete(&mut tx, &digest(&request.session_uuid)).await?;
        Ok(tx.commit().await?)
    }

    /// `{"valid": true}` if the session is valid.
    pub(super) async fn validity(&self, request: &SessionUuid) -> Result<Map<String, Value>, ApiError> {
        let mut tx = self.store.look().await?;
        let valid = owner(&mut tx, &request.session_uuid).await?.is_some();
        Ok(Map::from_iter([("valid".to_owned(), valid.into())]))
    }

    /// Whether the password is correct; an error if there were too many failed attempts.
    async fn verify(&self, password: String, stored: Option<String>, origin: Origin) -> Result<bool, ApiError> {
        let attempts = Arc::clone(&self.attempts);
        let verify = move || {
            // Checked here and not before the queue, so that attempts that arrive at the same time count, too.
            let wait = attempts.wait(&origin, Instant::now());
            if !wait.is_zero() {
                return Err(ApiError::new(
                    Code::Authentication,
                    format!("too many failed log-ins; try again in {} s", wait.as_secs() + 1),
                ));
            }
            // An unknown account costs the same time as a wrong password.
            let right = matches(&password, stored.as_deref().unwrap_or_else(|| UNKNOWN_PASSWORD.as_str()))?;
            if right {
                attempts.succeeded(&origin);
            } else {
                attempts.failed(origin, Instant::now());
            }
            Ok(right)
        };
        self.hashing.run(verify).await?
    }

    /// Replaces the password in the arguments of a call by its hash.
    pub(super) async fn hash_password(&self, arguments: &mut Map<String, Value>) -> Result<(), ApiError> {
        let Some(Value::String(password)) = arguments.get_mut("password") else { return Ok(()) };
        let secret = password.trim().to_ascii_lowercase();
        if secret.is_empty() {
            return Ok(());
        }
        if secret.len() != 128 || !secret.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ApiError::invalid_argument(
                "field[password] must be the SHA-512 of the password, 128 hexadecimal digits",
            ));
        }
        *password = self.hashing.run(move || hash(&secret)).await??;
        Ok(())
    }
}

fn after(now: i64, time: Duration) -> i64 {
    now.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

fn inventory(uuid: String, row: Session) -> Result<SessionInventory, ApiError> {
    let date = |millis| Date::from_millis(millis).ok_or_else(|| ApiError::internal("the clock is out of range"));
    Ok(SessionInventory {
        uuid,
        user_uuid: row.account_uuid.clone(),
        account_uuid: row.account_uuid,
        expired_date: date(row.expired_date)?,
        create_date: date(row.create_date)?,
    })
}

/// The account of the session, as the caller.
pub(super) async fn caller(tx: &mut Tx, session: &str) -> Result<Caller, ApiError> {
    owner(tx, session).await?.ok_or_else(ApiError::invalid_session)
}

async fn owner(tx: &mut Tx, session: &str) -> Result<Option<Caller>, ApiError> {
    let account = session::account(tx, &digest(session)).await?;
    Ok(account.map(|account| Caller { account_uuid: account.uuid, admin: account.kind == SYSTEM_ADMIN }))
}

/// Sets the administrator's first password. Does nothing and returns `false` if there is a password already: the
/// configuration initialises a new store, and never undoes later changes.
///
/// # Errors
/// The database or the hashing fails.
pub async fn set_first_password(store: &Store, password: &str) -> Result<bool, ApiError> {
    if account::has_password(&mut store.look().await?, ADMIN).await? {
        return Ok(false);
    }
    let sent = hex::encode(Sha512::digest(password.as_bytes()));
    let hash = task::spawn_blocking(move || hash(&sent))
        .await
        .map_err(|_| ApiError::internal("the first password could not be hashed"))??;
    let mut tx = store.begin().await?;
    let first = account::set_first_password(&mut tx, ADMIN, &hash).await?;
    tx.commit().await?;
    Ok(first)
}

fn matches(password: &str, stored: &str) -> Result<bool, ApiError> {
    match Argon2::default().verify_password(password.to_ascii_lowercase().as_bytes(), stored) {
        Ok(()) => Ok(true),
        Err(PasswordInvalid) => Ok(false),
        Err(error) => Err(ApiError::internal(format!("a stored password hash can't be checked: {error}"))),
    }
}

fn hash(secret: &str) -> Result<String, ApiError> {
    let hash: Result<PasswordHash, _> = Argon2::default().hash_password(secret.as_bytes());
    hash.map(|hash| hash.to_string())
        .map_err(|error| ApiError::internal(format!("a password can't be hashed: {error}")))
}

/// The hash of a random password.
static UNKNOWN_PASSWORD: LazyLock<String> = LazyLock::new(|| hash(&new_uuid()).unwrap_or_default());

fn digest(session: &str) -> String {
    hex::encode(Sha256::digest(session.as_bytes()))
}
