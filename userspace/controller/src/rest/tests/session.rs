//! Log-in, log-out, and the permissions of a session.

use http::StatusCode;
use reqwest::Method;
use serde_json::{Value, json};
use vipgate_api::Date;

use super::support::{PASSWORD, Server, json_of, quick, sha512};
use crate::rest::Settings;

const LOGIN: &str = "/zstack/v1/accounts/login";

#[tokio::test]
async fn both_spellings_log_in_and_the_session_is_valid_until_it_is_logged_out() {
    let server = Server::start().await;
    for key in ["logInByAccount", "loginByAccount"] {
        let body = json!({key: {"accountName": "admin", "password": sha512(PASSWORD).to_uppercase()}});
        let reply = server.bare(Method::PUT, LOGIN).json(&body).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::OK);
        let session = json_of(reply).await["inventory"].take();
        assert_eq!(session["accountUuid"], "36c27e8ff05c4780bf6d2fa65700f22e");
        assert!(session["expiredDate"].as_str().unwrap().ends_with('M'), "{session}");

        let path = format!("/zstack/v1/accounts/sessions/{}", session["uuid"].as_str().unwrap());
        let valid = || server.bare(Method::GET, &format!("{path}/valid")).send();
        assert_eq!(json_of(valid().await.unwrap()).await, json!({"valid": true}));
        let reply = server.bare(Method::DELETE, &path).send().await.unwrap();
        assert_eq!((reply.status(), json_of(reply).await), (StatusCode::OK, json!({})));
        assert_eq!(json_of(valid().await.unwrap()).await, json!({"valid": false}));
    }
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_account_are_told_alike() {
    let server = Server::start().await;
    let mut errors = Vec::new();
    for (name, password) in [("admin", "wrong"), ("nobody", PASSWORD)] {
        let body = json!({"logInByAccount": {"accountName": name, "password": sha512(password)}});
        let reply = server.bare(Method::PUT, LOGIN).json(&body).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
        errors.push(json_of(reply).await["error"].take());
    }
    assert_eq!(errors[0]["code"], "ID.1000");
    assert_eq!(errors[0], errors[1]);
}

#[tokio::test]
async fn whoever_fails_again_and_again_must_wait_and_others_need_not() {
    let server = Server::start().await;
    let log_in = async |name: &str, password: &str| {
        let body = json!({"logInByAccount": {"accountName": name, "password": sha512(password)}});
        json_of(server.bare(Method::PUT, LOGIN).json(&body).send().await.unwrap()).await
    };
    for _ in 0..9 {
        assert_eq!(log_in("nobody", "wrong").await["error"]["code"], "ID.1000");
    }
    let error = log_in("nobody", "wrong").await["error"].take();
    assert_eq!(error["code"], "ID.1000");
    assert!(error["details"].as_str().unwrap().contains("try again in"), "{error}");
    assert!(log_in("admin", PASSWORD).await["inventory"]["uuid"].is_string());
}

#[tokio::test]
async fn an_account_with_many_sessions_loses_its_oldest_and_keeps_nobody_out() {
    let server = Server::start().await;
    let account = server.create("/accounts", json!({"name": "tenant", "password": sha512("first")})).await;
    let (account, most) = (account["uuid"].as_str().unwrap(), 500);
    let mut tx = server.store.begin().await.unwrap();
    let now = tx.now();
    for number in 0..most {
        let row = sqlx::query("INSERT INTO sessions VALUES ($1, $2, $3, $4)").bind(format!("{number}")).bind(account);
        row.bind(now).bind(now + 1_000_000 + number).execute(tx.conn()).await.unwrap();
    }
    tx.commit().await.unwrap();
    for (name, password) in [("admin", PASSWORD), ("tenant", "first")] {
        let body = json!({"logInByAccount": {"accountName": name, "password": sha512(password)}});
        let reply = json_of(server.bare(Method::PUT, LOGIN).json(&body).send().await.unwrap()).await;
        assert!(reply["inventory"]["uuid"].is_string(), "{name}: {reply}");
    }
    let left: Vec<String> = sqlx::query_scalar("SELECT uuid_hash FROM sessions WHERE account_uuid = $1")
        .bind(account)
        .fetch_all(server.store.look().await.unwrap().conn())
        .await
        .unwrap();
    assert_eq!(left.len(), 500);
    assert!(!left.contains(&"0".to_owned()) && left.contains(&"1".to_owned()));
    assert_eq!(server.get("/zones").await.status(), StatusCode::OK, "others' sessions hold");
}

#[tokio::test]
async fn a_session_can_be_renewed_as_long_as_it_holds() {
    let server = Server::start().await;
    let renew = async |session: &str, body: Value| {
        let path = format!("/accounts/sessions/{session}/renew");
        json_of(server.request(Method::PUT, &path).json(&body).send().await.unwrap()).await
    };
    let expires = async |duration: u64| {
        let reply = renew(server.session(), json!({"renewSession": {"duration": duration}})).await["inventory"].take();
        assert_eq!(reply["uuid"], server.session());
        reply["expiredDate"].as_str().unwrap().parse::<Date>().unwrap().millis()
    };
    let year = 31_536_000;
    assert!(expires(year).await - expires(60).await > 31_000_000_000);
    assert_eq!(renew(server.session(), json!({"renewSession": {}})).await["inventory"]["uuid"], server.session());
    let error = |reply: Value| reply["error"]["code"].clone();
    assert_eq!(error(renew("unknown", json!({"renewSession": {}})).await), "ID.1001");
    assert_eq!(error(renew(server.session(), json!({"renewSession": {"duration": 59}})).await), "SYS.1007");
    server.bare(Method::DELETE, &format!("/v1/accounts/sessions/{}", server.session())).send().await.unwrap();
    assert_eq!(error(renew(server.session(), json!({"renewSession": {}})).await), "ID.1001");
}

#[tokio::test]
async fn an_account_logs_in_with_its_password_and_with_the_new_one_after_a_change() {
    let server = Server::start().await;
    server.create("/zones", json!({"name": "hidden"})).await;
    let account = json!({"name": "tenant", "password": sha512("first")});
    let account = server.create("/accounts", account).await;
    assert_eq!((&account["type"], account.get("password")), (&json!("Normal"), None));
    let log_in = async |password: &str| {
        let body = json!({"logInByAccount": {"accountName": "tenant", "password": sha512(password)}});
        json_of(server.bare(Method::PUT, LOGIN).json(&body).send().await.unwrap()).await["inventory"].take()
    };
    let session = log_in("first").await;
    assert_eq!(session["accountUuid"], account["uuid"]);
    let session = format!("OAuth {}", session["uuid"].as_str().unwrap());
    let get = |path: &str| server.bare(Method::GET, &format!("/v1{path}")).header("Authorization", &session).send();
    assert_eq!(json_of(get("/zones").await.unwrap()).await["inventories"], json!([]));
    let accounts = json_of(get("/accounts").await.unwrap()).await;
    assert_eq!((accounts["inventories"].as_array().unwrap().len(), &accounts["inventories"][0]), (1, &account));
    assert_eq!(json_of(get("/accounts/quotas?count=true").await.unwrap()).await["total"], 7);

    let path = format!("/accounts/{}", account["uuid"].as_str().unwrap());
    server.made(Method::PUT, &path, json!({"updateAccount": {"password": sha512("second")}})).await;
    assert!(log_in("first").await.is_null());
    assert!(log_in("second").await["uuid"].is_string());
    let error = server.refused(Method::PUT, &path, json!({"updateAccount": {"password": "plain"}})).await;
    assert_eq!(error["code"], "SYS.1007");
    assert!(!error.to_string().contains("plain"), "{error}");
    server.call(Method::DELETE, &path, Value::Null).await;
    assert!(log_in("second").await.is_null());
    assert_eq!(json_of(get("/zones").await.unwrap()).await["error"]["code"], "ID.1001");
}

#[tokio::test]
async fn a_login_without_its_parameters_names_them() {
    let server = Server::start().await;
    let reply = server.bare(Method::PUT, LOGIN).json(&json!({"logInByAccount": {"accountName": "admin"}}));
    let reply = reply.send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
    let error = json_of(reply).await["error"].take();
    assert_eq!(error["code"], "SYS.1007");
    assert!(error["details"].as_str().unwrap().contains("field[password]"), "{error}");
}

#[tokio::test]
async fn an_unknown_session_is_told_at_once_to_queries_and_through_the_job_to_changes() {
    let server = Server::start().await;
    let with = |method, path: &str| server.bare(method, path).header("Authorization", "OAuth unknown");
    let reply = with(Method::GET, "/zstack/v1/zones").send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(json_of(reply).await["error"]["code"], "ID.1001");

    let reply = with(Method::POST, "/zstack/v1/zones").json(&json!({"params": {"name": "z"}})).send().await.unwrap();
    let (status, reply) = server.wait_for(reply).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply["error"]["code"], "ID.1001");
    assert_eq!(server.query("/zones").await["inventories"], json!([]));
}

#[tokio::test]
async fn a_session_expires() {
    let settings = Settings { session_lifetime: std::time::Duration::ZERO, ..quick() };
    let server = Server::start_with(settings).await;
    assert_eq!(server.get("/zones").await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn neither_sessions_nor_passwords_can_be_read_in_the_store() {
    let server = Server::start().await;
    server.store.close().await;
    let mut bytes = Vec::new();
    for file in std::fs::read_dir(server.dir.path()).unwrap() {
        bytes.extend(std::fs::read(file.unwrap().path()).unwrap());
    }
    for secret in [server.session(), &sha512(PASSWORD)] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}
