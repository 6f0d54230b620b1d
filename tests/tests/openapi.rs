//! The API by its own OpenAPI document: other tools read it, and test the API with what it allows and forbids.

use anyhow::{Context as _, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use vipgate_tests::lab::{Api, Hook, Process, Result, Running, WEB, vipgate_binary};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const ELASTIC: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);

/// It takes a minute or two, on a machine busy with other tests some more.
const PATIENCE: Duration = Duration::from_secs(600);

#[test]
fn every_reply_to_any_input_is_one_of_the_document() -> Result<()> {
    let run = Running::new(Hook::Tc, 0, 2)?;
    let api = &run.cloud.api;
    // Requests can refer to a resource of each family.
    let (vip, ..) = run.cloud.balanced(VIP, WEB, &[0])?;
    run.cloud.forward(&vip, "TCP", [2222; 2], [22; 2], 0)?;
    let elastic = run.cloud.vip(ELASTIC)?;
    api.create("/eips", &json!({ "name": "eip", "vipUuid": elastic, "vmNicUuid": run.cloud.vms[1].nic }))?;
    let session = api.session().unwrap_or_default();
    let anybody = api.clone().without_session();
    let directory = run.lab.directory();
    let url = format!("{}/zstack/v1/openapi.json", api.base());
    let read = anybody.finish(anybody.request(Method::GET, &url))?;
    let copy = directory.join("openapi.json");
    fs::write(&copy, &read.text)?;
    succeeds("openapi-spec-validator", Command::new(tool("openapi-spec-validator")?).arg(&copy), directory)?;

    let words = known(api, &read.json()?)? + include_str!("../schemathesis/hostile.dict");
    fs::write(directory.join("words.dict"), words)?;
    fs::write(directory.join("checks.py"), include_str!("../schemathesis/checks.py"))?;
    fs::write(directory.join("schemathesis.toml"), include_str!("../schemathesis/schemathesis.toml"))?;
    // It reads and writes in its working directory.
    let mut schemathesis = run.lab.router.command("env");
    schemathesis.arg("--chdir").arg(directory).arg(tool("schemathesis")?).args(["run", &url]);
    succeeds("schemathesis", schemathesis.env("VIPGATE_SESSION", session), directory)?;

    // All requests used a valid session, so none was refused for lack of one.
    assert_eq!(api.get(&format!("/accounts/sessions/{session}/valid"))?["valid"], true);
    Ok(())
}

/// Runs a tool to its end; it must succeed.
fn succeeds(name: &str, command: &Command, directory: &Path) -> Result<()> {
    let mut process = Process::start(name, command, directory)?;
    let status = process.wait(PATIENCE)?;
    ensure!(status.success(), "{name} ends with {status}:\n{}", process.said());
    Ok(())
}

/// A program of the Python packages that `cargo xtask setup` installs beside cargo's build directory.
fn tool(name: &str) -> Result<PathBuf> {
    let binary = vipgate_binary()?;
    let found = binary.ancestors().map(|directory| directory.join("python/bin").join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no {name} near {}: run cargo xtask setup", binary.display()))
}

/// The uuids of all resources, each as a word of a dictionary.
fn known(api: &Api, document: &Value) -> Result<String> {
    let paths = document["paths"].as_object().context("a document has paths")?;
    let mut words = String::new();
    for (path, _) in paths.iter().filter(|(path, item)| !path.contains('{') && is_query(item)) {
        let inventories = api.query(path)?;
        for uuid in inventories.iter().filter_map(|inventory| inventory["uuid"].as_str()) {
            words.push_str(&format!("\"{uuid}\"\n"));
        }
    }
    Ok(words)
}

fn is_query(item: &Value) -> bool {
    item["get"]["operationId"].as_str().is_some_and(|id| id.starts_with("Query"))
}
