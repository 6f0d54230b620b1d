//! Jobs: accepted, polled, finished by a later run; and web hooks.

use std::{
    collections::BTreeSet,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use http::{HeaderMap, StatusCode};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use super::support::{PATIENCE, Server, Site, eventually, json_of, quick, uuid_of};
use crate::{
    jobs::{self, Poll},
    rest::Settings,
};

const JOB: &str = "d825b1a26f4e474b8c59306081920ff2";

fn zone(name: &str) -> Value {
    json!({"params": {"name": name}})
}

#[tokio::test]
async fn a_job_is_running_until_the_kernel_holds_the_change_and_the_reply_shows_it() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    server.kernel.hold();
    let add = server.request(Method::POST, &site.nics()).header("X-Job-UUID", JOB);
    let accepted = add.json(&json!({"params": {"vmNicUuids": [site.nic]}})).send().await.unwrap();
    let poll = format!("/v1/api-jobs/{JOB}");
    let reply = server.bare(Method::GET, &poll).send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::ACCEPTED);
    assert_eq!(reply.bytes().await.unwrap(), "");

    server.kernel.release();
    let (status, reply) = server.wait_for(accepted).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(reply["inventory"]["vmNicRefs"][0]["status"], "Active");
    let last = server.kernel.changes.lock().unwrap().last().cloned().unwrap();
    assert_eq!(last.vips, BTreeSet::from([site.vip.clone()]));
}

/// A server whose polls wait long, and which applies a job until the test releases it.
async fn applying() -> Server {
    let jobs = jobs::Settings { hold: PATIENCE, ..quick().jobs };
    let server = Server::start_with(Settings { jobs, ..quick() }).await;
    let site = Site::build(&server).await;
    server.kernel.hold();
    let add = server.request(Method::POST, &site.nics()).header("X-Job-UUID", JOB);
    let reply = add.json(&json!({"params": {"vmNicUuids": [site.nic]}})).send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::ACCEPTED);
    server
}

#[tokio::test]
async fn a_poll_that_comes_too_early_waits_for_the_result() {
    let server = applying().await;
    let mut early = pin!(server.jobs.poll(JOB));
    assert!(futures::poll!(early.as_mut()).is_pending());
    server.kernel.release();
    let early = early.await.unwrap();
    assert!(matches!(early, Poll::Finished { succeeded: true, .. }), "{early:?}");
    assert_eq!(server.jobs.poll(JOB).await.unwrap(), early);
}

#[tokio::test]
async fn a_poll_that_waits_hears_of_a_controller_that_ends_before_its_job() {
    let server = applying().await;
    let mut early = pin!(server.jobs.poll(JOB));
    assert!(futures::poll!(early.as_mut()).is_pending());
    server.kernel.end();
    assert_eq!(early.await.unwrap(), Poll::Running);
}

#[tokio::test]
async fn a_change_that_the_kernel_does_not_take_fails_with_the_cause() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    server.kernel.fails.store(true, Ordering::SeqCst);
    let error = server.refused(Method::POST, &site.nics(), json!({"params": {"vmNicUuids": [site.nic]}})).await;
    assert_eq!(error["code"], "SYS.1006");
    assert_eq!(error["cause"]["details"], "the kernel has no room");

    server.kernel.fails.store(false, Ordering::SeqCst);
    let refresh = format!("/load-balancers/{}/actions", site.balancer);
    let balancer = server.made(Method::PUT, &refresh, json!({"refreshLoadBalancer": {}})).await;
    assert_eq!(balancer["listeners"][0]["vmNicRefs"][0]["status"], "Active");
}

#[tokio::test]
async fn a_device_that_cannot_carry_the_programs_refuses_its_network_before_that_is_stored() {
    let server = Server::start().await;
    Site::build(&server).await;
    let (before, changes) = (server.query("/l3-networks").await, server.kernel.changes.lock().unwrap().len());
    server.kernel.bars_devices.store(true, Ordering::SeqCst);
    let l2 = server.query("/l2-networks").await["inventories"][0]["uuid"].clone();
    let error =
        server.refused(Method::POST, "/l3-networks", json!({"params": {"name": "x", "l2NetworkUuid": l2}})).await;
    assert_eq!(error["code"], "SYS.1006");
    assert!(error["details"].as_str().unwrap().ends_with("has no XDP"), "{error}");
    assert_eq!(server.query("/l3-networks").await, before);
    assert_eq!(server.kernel.changes.lock().unwrap().len(), changes);
}

#[tokio::test]
async fn a_fault_in_applying_fails_the_job_instead_of_leaving_it() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    server.kernel.panics.store(true, Ordering::SeqCst);
    let error = server.refused(Method::POST, &site.nics(), json!({"params": {"vmNicUuids": [site.nic]}})).await;
    assert_eq!(error["code"], "SYS.1006");
}

#[tokio::test]
async fn a_refused_call_leaves_nothing_behind() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    let before = server.query("/load-balancers/listeners").await;
    let changes = server.kernel.changes.lock().unwrap().len();
    let path = format!("/load-balancers/{}/listeners", site.balancer);
    let taken = json!({"params": {"name": "again", "loadBalancerPort": 80}, "userTags": ["t"]});
    let error = server.refused(Method::POST, &path, taken).await;
    assert_eq!(error["code"], "SYS.1007", "{error}");
    assert_eq!(server.query("/load-balancers/listeners").await, before);
    assert_eq!(server.query("/user-tags").await["inventories"], json!([]));
    assert_eq!(server.kernel.changes.lock().unwrap().len(), changes);
}

#[tokio::test]
async fn an_unknown_job_has_expired() {
    let server = Server::start().await;
    let reply = server.bare(Method::GET, &format!("/zstack/v1/api-jobs/{JOB}")).send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::NOT_FOUND);
    assert_eq!(reply.text().await.unwrap(), "the job has been expired");
}

#[tokio::test]
async fn a_result_expires() {
    let jobs = jobs::Settings { retention: Duration::ZERO, ..quick().jobs };
    let server = Server::start_with(Settings { jobs, ..quick() }).await;
    let create = server.request(Method::POST, "/zones").header("X-Job-UUID", JOB);
    assert_eq!(create.json(&zone("z")).send().await.unwrap().status(), StatusCode::ACCEPTED);
    eventually(async || {
        let reply = server.bare(Method::GET, &format!("/v1/api-jobs/{JOB}")).send().await.unwrap();
        (reply.status() == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_job_uuid_is_used_once_and_the_second_call_does_nothing() {
    let server = Server::start().await;
    let create = |name: &str| server.request(Method::POST, "/zones").header("X-Job-UUID", JOB).json(&zone(name)).send();
    let (status, _) = server.wait_for(create("first").await.unwrap()).await;
    assert_eq!(status, StatusCode::OK);
    let reply = create("second").await.unwrap();
    assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
    assert!(reply.text().await.unwrap().contains(JOB));
    let zones = server.query("/zones?fields=name").await;
    assert_eq!(zones["inventories"], json!([{"name": "first"}]));
}

#[tokio::test]
async fn headers_that_make_no_sense_are_a_plain_400_and_make_no_job() {
    let server = Server::start().await;
    for (header, value) in [("X-Job-UUID", "1"), ("X-Web-Hook", "nowhere")] {
        let reply = server.request(Method::POST, "/zones").header(header, value).json(&zone("z")).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
        assert!(reply.text().await.unwrap().contains(header));
    }
    assert_eq!(server.query("/zones").await["inventories"], json!([]));
}

#[tokio::test]
async fn the_url_to_poll_is_the_callers_own_or_the_configured_one() {
    let server = Server::start().await;
    let location = async |server: &Server, host: &str| {
        let create = server.request(Method::POST, "/zones").header("Host", host).json(&zone("z"));
        json_of(create.send().await.unwrap()).await["location"].as_str().unwrap().to_owned()
    };
    assert!(location(&server, "router.example:80").await.starts_with("http://router.example:80/zstack/v1/api-jobs/"));
    let server = Server::start_with(Settings { base: Some("http://gw:8080".into()), ..quick() }).await;
    assert!(location(&server, "other").await.starts_with("http://gw:8080/zstack/v1/api-jobs/"));
}

#[tokio::test]
async fn results_survive_a_restart() {
    let server = Server::start().await;
    let create = server.request(Method::POST, "/zones").header("X-Job-UUID", JOB);
    let (_, before) = server.wait_for(create.json(&zone("z")).send().await.unwrap()).await;
    let server = server.restart().await;
    let reply = server.bare(Method::GET, &format!("/v1/api-jobs/{JOB}")).send().await.unwrap();
    assert_eq!((reply.status(), json_of(reply).await), (StatusCode::OK, before));
}

#[tokio::test]
async fn a_job_that_a_crash_interrupted_is_finished_by_the_next_run() {
    interrupted(false).await;
}

#[tokio::test]
async fn a_job_that_an_orderly_end_interrupted_is_finished_by_the_next_run() {
    interrupted(true).await;
}

async fn interrupted(orderly: bool) {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    server.kernel.hold();
    let add = server.request(Method::POST, &site.nics()).header("X-Job-UUID", JOB);
    add.json(&json!({"params": {"vmNicUuids": [site.nic]}})).send().await.unwrap();
    if orderly {
        server.kernel.end();
    }

    let server = server.restart().await;
    let (status, reply) = eventually(async || {
        let reply = server.bare(Method::GET, &format!("/v1/api-jobs/{JOB}")).send().await.unwrap();
        let status = reply.status();
        (status != StatusCode::ACCEPTED).then_some(())?;
        Some((status, json_of(reply).await))
    })
    .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(reply["inventory"]["vmNicRefs"][0]["status"], "Active");
    assert_eq!(server.kernel.changes.lock().unwrap()[0].vips, BTreeSet::from([site.vip]));
}

#[tokio::test]
async fn of_jobs_that_end_together_one_whose_result_cannot_be_printed_stays_alone() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    let params = json!({"name": "other", "l3NetworkUuid": site.public});
    let other = uuid_of(&server.create("/vips", params).await).to_owned();
    server.kernel.hold();
    let update = json!({"changeVipState": {"stateEvent": "disable"}});
    let mut jobs = Vec::new();
    for vip in [&site.vip, &other] {
        let call = server.request(Method::PUT, &format!("/vips/{vip}/actions"));
        let accepted = json_of(call.json(&update).send().await.unwrap()).await;
        let (_, job) = accepted["location"].as_str().unwrap().rsplit_once('/').unwrap();
        jobs.push(format!("/v1/api-jobs/{job}"));
    }
    let date = async |millis: i64| {
        let mut tx = server.store.begin().await.unwrap();
        let set = sqlx::query("UPDATE vips SET create_date = $1 WHERE uuid = $2").bind(millis).bind(&other);
        set.execute(tx.conn()).await.unwrap();
        tx.commit().await.unwrap();
    };
    date(i64::MAX).await;
    server.kernel.release();
    let ended = async |server: &Server, job: &str| {
        let reply = server.bare(Method::GET, job).send().await.unwrap();
        (reply.status() == StatusCode::OK).then_some(())?;
        Some(json_of(reply).await)
    };
    let reply = eventually(async || ended(&server, &jobs[0]).await).await;
    assert_eq!(reply["inventory"]["state"], "Disabled");
    assert_eq!(ended(&server, &jobs[1]).await, None);
    date(0).await;
    let server = server.restart().await;
    let reply = eventually(async || ended(&server, &jobs[1]).await).await;
    assert_eq!(reply["inventory"]["state"], "Disabled");
}

/// A receiver of web hooks. It answers 500 until `refusals` are used up.
struct Callback {
    url: String,
    calls: Arc<Calls>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Calls {
    seen: Mutex<Vec<(HeaderMap, Value)>>,
    refusals: AtomicU32,
}

impl Drop for Callback {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Callback {
    async fn start(refusals: u32) -> Self {
        let calls = Arc::new(Calls { refusals: refusals.into(), ..Calls::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let called = async |State(calls): State<Arc<Calls>>, headers, body: Bytes| Self::called(&calls, headers, &body);
        let router = Router::new().route("/hook", post(called)).with_state(calls.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, calls, task }
    }

    fn called(calls: &Calls, headers: HeaderMap, body: &Bytes) -> StatusCode {
        calls.seen.lock().unwrap().push((headers, serde_json::from_slice(body).unwrap()));
        let refused = calls.refusals.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if refused.is_ok() { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK }
    }

    async fn seen(&self, count: usize) -> Vec<(HeaderMap, Value)> {
        eventually(async || {
            let seen = self.calls.seen.lock().unwrap();
            (seen.len() >= count).then(|| seen.clone())
        })
        .await
    }
}

/// No hook waits any more.
async fn settled(server: &Server) {
    eventually(async || {
        let mut tx = server.store.read().await.unwrap();
        let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM web_hooks").fetch_one(tx.conn()).await.unwrap();
        (waiting == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_web_hook_gets_the_result_and_whether_it_is_one() {
    let server = Server::start().await;
    let callback = Callback::start(0).await;
    for (body, success) in [(zone("z"), "true"), (json!({}), "false")] {
        let create = server.request(Method::POST, "/zones").header("X-Web-Hook", &callback.url);
        let (_, polled) = server.wait_for(create.json(&body).send().await.unwrap()).await;
        settled(&server).await;
        let (headers, posted) = callback.calls.seen.lock().unwrap().pop().unwrap();
        assert_eq!(headers["x-job-success"], success);
        assert_eq!(headers["x-job-uuid"].len(), 32);
        assert_eq!(posted, polled);
    }
}

#[tokio::test]
async fn a_web_hook_that_fails_is_called_again_until_it_succeeds() {
    let server = Server::start().await;
    let callback = Callback::start(3).await;
    let create = server.request(Method::POST, "/zones").header("X-Web-Hook", &callback.url);
    server.wait_for(create.json(&zone("z")).send().await.unwrap()).await;
    callback.seen(4).await;
    settled(&server).await;
    assert_eq!(callback.seen(4).await.len(), 4);
}

#[tokio::test]
async fn a_web_hook_is_given_up_after_fifteen_retries() {
    let server = Server::start().await;
    let callback = Callback::start(u32::MAX).await;
    let create = server.request(Method::POST, "/zones").header("X-Web-Hook", &callback.url);
    server.wait_for(create.json(&zone("z")).send().await.unwrap()).await;
    settled(&server).await;
    assert_eq!(callback.seen(16).await.len(), 16);
}

#[tokio::test]
async fn a_web_hook_survives_a_restart() {
    let patient = jobs::Settings { hook_interval: Duration::from_secs(3600), ..quick().jobs };
    let server = Server::start_with(Settings { jobs: patient, ..quick() }).await;
    let callback = Callback::start(1).await;
    let create = server.request(Method::POST, "/zones").header("X-Web-Hook", &callback.url);
    server.wait_for(create.json(&zone("z")).send().await.unwrap()).await;
    callback.seen(1).await;
    eventually(async || {
        let mut tx = server.store.read().await.unwrap();
        let failures: i64 = sqlx::query_scalar("SELECT failures FROM web_hooks").fetch_one(tx.conn()).await.unwrap();
        (failures == 1).then_some(())
    })
    .await;

    let server = server.restart().await;
    let calls = callback.seen(2).await;
    assert_eq!(calls[1].0["x-job-success"], "true");
    assert_eq!(calls[1].1["inventory"]["name"], "z");
    settled(&server).await;
}

async fn rows(server: &Server, table: &'static str) -> i64 {
    let count = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    sqlx::query_scalar(count).fetch_one(server.store.look().await.unwrap().conn()).await.unwrap()
}

#[tokio::test]
async fn who_has_no_session_hears_so_and_has_nothing_stored_and_no_hook_called() {
    let (server, hook) = (Server::start().await, Callback::start(0).await);
    let known = rows(&server, "jobs").await;
    // One that is served, and one that is not.
    for path in ["/zones", "/security-groups"] {
        let call = server.bare(Method::POST, &format!("/zstack/v1{path}")).json(&zone("z"));
        let call = call.header("Authorization", "OAuth 0").header("X-Web-Hook", hook.url.as_str());
        let (status, reply) = server.wait_for(call.send().await.unwrap()).await;
        assert_eq!((status, &reply["error"]["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("ID.1001")), "{path}");
    }
    // A hook that is called comes after the one that must not be.
    let call = server.request(Method::POST, "/zones").header("X-Web-Hook", hook.url.as_str()).json(&zone("z"));
    server.wait_for(call.send().await.unwrap()).await;
    assert_eq!(hook.seen(1).await.len(), 1);
    assert_eq!(rows(&server, "jobs").await, known + 1);
}

#[tokio::test]
async fn a_refusal_does_not_keep_all_that_it_refuses() {
    let server = Server::start().await;
    let name = "z".repeat(900_000);
    let error = server.refused(Method::POST, "/zones", json!({"params": {"name": "z", "resourceUuid": name}})).await;
    assert!(error.to_string().len() < 30_000, "{} bytes", error.to_string().len());
    let hook = format!("http://127.0.0.1:1/{}", "z".repeat(3000));
    let call = server.request(Method::POST, "/zones").header("X-Web-Hook", hook).json(&zone("z"));
    assert_eq!(call.send().await.unwrap().status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn of_many_results_the_latest_are_kept() {
    let jobs = jobs::Settings { max_finished: 3, ..quick().jobs };
    let server = Server::start_with(Settings { jobs, ..quick() }).await;
    eventually(async || {
        server.create("/zones", json!({"name": "z"})).await;
        let made = rows(&server, "zones").await;
        (made > 10 && rows(&server, "jobs").await < made).then_some(())
    })
    .await;
}
