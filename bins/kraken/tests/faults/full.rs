//! Disks without room: what is said of them, and that all goes on by itself once there is room again.

use std::fs;
use std::path::Path;
use std::process::Command;

use http::Request;
use kraken_core::net::http::{HttpBody, HttpClient};
use kraken_proto::Digest;
use serde_json::json;

use crate::common::{Lab, REPOSITORY, pull, push, random, until, within};
use crate::namespace;

#[test]
fn members_with_full_disks_say_so_and_go_on_by_themselves() {
    if namespace::inside() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build();
        let test = within(200, "full disks", full_disks());
        runtime.unwrap().block_on(test);
        return;
    }
    namespace::run_inside("full::members_with_full_disks_say_so_and_go_on_by_themselves");
}

fn mount(dir: &Path) {
    let mut program = Command::new("mount");
    let program = program.args(["-t", "tmpfs", "-o", "size=48m", "tmpfs"]);
    let program = program.arg(dir).env("PATH", namespace::search_path());
    assert!(program.status().unwrap().success());
}

/// Fills the disk to its last byte.
fn fill(dir: &Path) {
    let mut file = fs::File::create(dir.join("filler")).unwrap();
    for size in [1 << 20, 4096] {
        while std::io::Write::write_all(&mut file, &vec![1; size]).is_ok() {}
    }
}

async fn full_disks() {
    let disks = tempfile::tempdir().unwrap();
    let (origin, index) = (disks.path().join("origin"), disks.path().join("index"));
    for dir in [&origin, &index] {
        fs::create_dir(dir).unwrap();
        mount(dir);
    }
    let lab = Lab::start_with(1, 1, |role, config| match role {
        "origin" => config["store"] = json!(origin),
        "build-index" => config["store"] = json!(index),
        _ => {}
    })
    .await;
    let (proxy, agent) = (lab.host("proxy"), lab.host("agent-1"));
    let before = push(&proxy, &random(1 << 20, 1)).await;

    fill(&origin);
    let why = lab.readiness("origin-1").await.unwrap_err();
    assert!(why.contains("is full"), "{why}");
    let refused = pushed(&proxy, 2).await.unwrap_err();
    assert!(
        refused.starts_with("507") && refused.contains("no space left"),
        "{refused}"
    );
    assert_eq!(
        pull(&agent, before).await,
        1 << 20,
        "what is there is served"
    );
    fs::remove_file(origin.join("filler")).unwrap();
    until("the origin is ready", async || {
        lab.readiness("origin-1").await.ok()
    })
    .await;
    until("pushes go on", async || pushed(&proxy, 2).await.ok()).await;

    fill(&index);
    let (number, refused) = tag_until_refused(&proxy, before).await;
    assert!(
        refused.starts_with("503") && refused.contains("No space left"),
        "{refused}"
    );
    let why = lab.readiness("build-index").await.unwrap_err();
    assert!(why.contains("cannot be written"), "{why}");
    fs::remove_file(index.join("filler")).unwrap();
    until("the build-index is ready", async || {
        lab.readiness("build-index").await.ok()
    })
    .await;
    tag(&proxy, number, before).await.unwrap();
}

/// As many tags as the room within the file takes; the number of the first that it does not, and why.
async fn tag_until_refused(proxy: &str, blob: Digest) -> (u32, String) {
    for number in 0..50_000 {
        if let Err(refused) = tag(proxy, number, blob).await {
            return (number, refused);
        }
    }
    panic!("the file of tags needs no room");
}

async fn tag(proxy: &str, number: u32, blob: Digest) -> Result<(), String> {
    let url = format!("http://{proxy}/v2/{REPOSITORY}/manifests/v{number}");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let blob = json!({"mediaType": "text/plain", "digest": blob.to_string(), "size": 1 << 20});
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": blob, "layers": []});
    let request = Request::put(url).header("content-type", kind);
    sent(request.body(HttpBody::Bytes(manifest.to_string().into()))).await
}

async fn pushed(proxy: &str, seed: u64) -> Result<(), String> {
    let blob = random(1 << 20, seed);
    let digest = Digest::of(&blob);
    let url = format!("http://{proxy}/v2/{REPOSITORY}/blobs/uploads/?digest={digest}");
    sent(Request::post(url).body(HttpBody::Bytes(blob))).await
}

/// The status and the body of what is not a success.
async fn sent(request: http::Result<Request<HttpBody>>) -> Result<(), String> {
    let client = HttpClient::new(None).unwrap();
    let answer = client.send(request.unwrap()).await.unwrap();
    let status = answer.status();
    let body = answer.bytes(1 << 20).await.unwrap();
    let told = || format!("{status} {}", String::from_utf8_lossy(&body));
    if status.is_success() {
        Ok(())
    } else {
        Err(told())
    }
}
