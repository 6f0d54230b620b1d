//! Accounts and sessions: logging in and out, and whom a session stands for.
//!
//! A client never sends its password but the SHA-512 of it, which is therefore the secret, and what is stored is its
//! Argon2id hash (RFC 9106). Of a session only a hash is stored, too. Neither is ever logged.

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
    attempts::{Attempts, Who},
    hashing::Hashing,
};
use crate::{
    model::Caller,
    store::{self, Store, Tx, account::ADMIN, new_uuid},
};

/// Sessions of an account that may hold at the same time: one more ends that which would have ended first.
const MOST_SESSIONS: i64 = 500;

/// How long a session holds, in the documented system.
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

    /// Opens a session for a caller at that address.
    pub(super) async fn log_in(&self, request: LogInByAccount, peer: IpAddr) -> Result<SessionInventory, ApiError> {
        // Names are of any length until one is known.
        let who = (peer, digest(&request.account_name));
        let account = account(&mut self.store.look().await?, &request.account_name).await?;
        let (account_uuid, stored) = account.unzip();
        let right = self.verify(request.password, stored.flatten(), who).await?;
        let Some(account_uuid) = account_uuid.filter(|_| right) else {
            return Err(ApiError::authentication());
        };

        let mut tx = self.store.begin().await?;
        let now = tx.now();
        sqlx::query("DELETE FROM sessions WHERE expired_date <= $1")
            .bind(now)
            .execute(tx.conn())
            .await
            .map_err(database)?;
        sqlx::query(
            "DELETE FROM sessions WHERE uuid_hash IN (SELECT uuid_hash FROM sessions WHERE account_uuid = $1
                 ORDER BY expired_date DESC, create_date DESC LIMIT -1 OFFSET $2)",
        )
        .bind(&account_uuid)
        .bind(MOST_SESSIONS - 1)
        .execute(tx.conn())
        .await
        .map_err(database)?;
        let uuid = new_uuid();
        let expires = after(now, self.lifetime);
        sqlx::query(
            "INSERT INTO sessions (uuid_hash, account_uuid, create_date, expired_date) VALUES ($1, $2, $3, $4)",
        )
        .bind(digest(&uuid))
        .bind(&account_uuid)
        .bind(now)
        .bind(expires)
        .execute(tx.conn())
        .await
        .map_err(database)?;
        tx.commit().await?;
        inventory(uuid, account_uuid, expires, now)
    }

    /// Makes a session hold as long as a new one, or as long as was asked for, from now on.
    pub(super) async fn renew(&self, request: &RenewSession) -> Result<SessionInventory, ApiError> {
        let mut tx = self.store.begin().await?;
        let now = tx.now();
        let expires = after(now, request.duration.map_or(self.lifetime, Duration::from_secs));
        let renewed: Option<(String, i64)> = sqlx::query_as(
            "UPDATE sessions SET expired_date = $1 WHERE uuid_hash = $2 AND expired_date > $3
             RETURNING account_uuid, create_date",
        )
        .bind(expires)
        .bind(digest(&request.session_uuid))
        .bind(now)
        .fetch_optional(tx.conn())
        .await
        .map_err(database)?;
        let (account_uuid, created) = renewed.ok_or_else(ApiError::invalid_session)?;
        tx.commit().await?;
        inventory(request.session_uuid.clone(), account_uuid, expires, created)
    }

    /// Ends a session; one that does not exist has ended already.
    pub(super) async fn log_out(&self, request: &SessionUuid) -> Result<(), ApiError> {
        let mut tx = self.store.begin().await?;
        sqlx::query("DELETE FROM sessions WHERE uuid_hash = $1")
            .bind(digest(&request.session_uuid))
            .execute(tx.conn())
            .await
            .map_err(database)?;
        Ok(tx.commit().await?)
    }

    /// `{"valid": true}` while the session holds.
    pub(super) async fn validity(&self, request: &SessionUuid) -> Result<Map<String, Value>, ApiError> {
        let mut tx = self.store.look().await?;
        let valid = owner(&mut tx, &request.session_uuid).await?.is_some();
        Ok(Map::from_iter([("valid".to_owned(), valid.into())]))
    }

    /// Whether the password is right; an error for who has tried too often.
    async fn verify(&self, password: String, stored: Option<String>, who: Who) -> Result<bool, ApiError> {
        let attempts = Arc::clone(&self.attempts);
        let verify = move || {
            // Asked for here, so that attempts that come all at once are counted, too.
            let wait = attempts.wait(&who, Instant::now());
            if !wait.is_zero() {
                return Err(ApiError::new(
                    Code::Authentication,
                    format!("too many failed log-ins; try again in {} s", wait.as_secs() + 1),
                ));
            }
            // An unknown account costs the same time as a wrong password.
            let right = matches(&password, stored.as_deref().unwrap_or_else(|| NOBODY.as_str()))?;
            if right {
                attempts.succeeded(&who);
            } else {
                attempts.failed(who, Instant::now());
            }
            Ok(right)
        };
        self.hashing.run(verify).await?
    }

    /// Puts a hash in the place of a password that comes with a call.
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

fn inventory(uuid: String, account_uuid: String, expires: i64, created: i64) -> Result<SessionInventory, ApiError> {
    let date = |millis| Date::from_millis(millis).ok_or_else(|| ApiError::internal("the clock is out of range"));
    Ok(SessionInventory {
        uuid,
        user_uuid: account_uuid.clone(),
        account_uuid,
        expired_date: date(expires)?,
        create_date: date(created)?,
    })
}

/// Whom the session stands for.
pub(super) async fn caller(tx: &mut Tx, session: &str) -> Result<Caller, ApiError> {
    owner(tx, session).await?.ok_or_else(ApiError::invalid_session)
}

async fn owner(tx: &mut Tx, session: &str) -> Result<Option<Caller>, ApiError> {
    let now = tx.now();
    let account: Option<(String, bool)> = sqlx::query_as(
        "SELECT a.uuid, a.type = 'SystemAdmin' FROM sessions s JOIN accounts a ON a.uuid = s.account_uuid
         WHERE s.uuid_hash = $1 AND s.expired_date > $2",
    )
    .bind(digest(session))
    .bind(now)
    .fetch_optional(tx.conn())
    .await
    .map_err(database)?;
    Ok(account.map(|(account_uuid, admin)| Caller { account_uuid, admin }))
}

/// Gives the administrator its first password. Does nothing, and returns `false`, where it has one: the configuration
/// says how a new store begins, it does not undo what was changed since.
///
/// # Errors
/// The database or the hashing fails.
pub async fn set_first_password(store: &Store, password: &str) -> Result<bool, ApiError> {
    let known: Option<String> = sqlx::query_scalar("SELECT password_hash FROM accounts WHERE uuid = $1")
        .bind(ADMIN)
        .fetch_one(store.look().await?.conn())
        .await
        .map_err(database)?;
    if known.is_some() {
        return Ok(false);
    }
    let sent = hex::encode(Sha512::digest(password.as_bytes()));
    let hash = task::spawn_blocking(move || hash(&sent))
        .await
        .map_err(|_| ApiError::internal("the first password could not be hashed"))??;
    let mut tx = store.begin().await?;
    let now = tx.now();
    let done = sqlx::query(
        "UPDATE accounts SET password_hash = $1, last_op_date = $2 WHERE uuid = $3 AND password_hash IS NULL",
    )
    .bind(hash)
    .bind(now)
    .bind(ADMIN)
    .execute(tx.conn())
    .await
    .map_err(database)?;
    tx.commit().await?;
    Ok(done.rows_affected() > 0)
}

/// Name of an account -> its uuid and password hash.
async fn account(tx: &mut Tx, name: &str) -> Result<Option<(String, Option<String>)>, ApiError> {
    sqlx::query_as("SELECT uuid, password_hash FROM accounts WHERE name = $1")
        .bind(name)
        .fetch_optional(tx.conn())
        .await
        .map_err(database)
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

/// The hash of a password that nobody knows.
static NOBODY: LazyLock<String> = LazyLock::new(|| hash(&new_uuid()).unwrap_or_default());

fn digest(session: &str) -> String {
    hex::encode(Sha256::digest(session.as_bytes()))
}

fn database(error: sqlx::Error) -> ApiError {
    store::Error::from(error).into()
}
