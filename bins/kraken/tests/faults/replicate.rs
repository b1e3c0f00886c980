//! Images that go from cluster to cluster, while these die and come back.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Method, StatusCode};
use kraken_core::Digest;
use kraken_core::net::CertAuthority;
use kraken_core::net::http::HttpBody;
use serde_json::{Value, json};

use crate::common::{Lab, ask, free_addr, random, until, within};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(crate) fn describe(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()})
}

pub(crate) async fn push_blob(proxy: &str, repo: &str, blob: &Bytes) {
    let digest = Digest::of(blob);
    let url = format!("http://{proxy}/v2/{repo}/blobs/uploads/?digest={digest}");
    let pushed = ask(Method::POST, &url, HttpBody::Bytes(blob.clone())).await;
    assert_eq!(pushed.status(), StatusCode::CREATED);
}

pub(crate) async fn push_manifest(
    proxy: &str,
    repo: &str,
    reference: &str,
    manifest: &Value,
) -> Digest {
    let bytes = Bytes::from(manifest.to_string());
    let url = format!("http://{proxy}/v2/{repo}/manifests/{reference}");
    let pushed = ask(Method::PUT, &url, HttpBody::Bytes(bytes.clone())).await;
    let status = pushed.status();
    let said = pushed.bytes(1 << 20).await.unwrap();
    assert_eq!(status, StatusCode::CREATED, "{said:?}");
    Digest::of(&bytes)
}

/// An image of one layer, with its configuration.
pub(crate) async fn image(
    proxy: &str,
    repo: &str,
    seed: u64,
    subject: Option<Value>,
) -> (Value, Bytes) {
    let (config, layer) = (Bytes::from("{}"), random(40_000, seed));
    push_blob(proxy, repo, &config).await;
    push_blob(proxy, repo, &layer).await;
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": describe("application/x.config", &config),
        "layers": [describe("application/x.layer", &layer)],
    });
    if let Some(subject) = subject {
        manifest["subject"] = subject;
    }
    (manifest, layer)
}

/// An image for two platforms, under a tag; what it consists of.
pub(crate) async fn push_index(
    proxy: &str,
    repo: &str,
    tag: &str,
    seed: u64,
) -> (Digest, Vec<Digest>) {
    let (mut children, mut all) = (Vec::new(), Vec::new());
    for number in 0..2 {
        let (manifest, layer) = image(proxy, repo, seed * 2 + number, None).await;
        let bytes = manifest.to_string();
        let digest = Digest::of(bytes.as_bytes());
        push_manifest(proxy, repo, &digest.to_string(), &manifest).await;
        children.push(describe(MANIFEST, bytes.as_bytes()));
        all.extend([digest, Digest::of(&layer)]);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": children});
    let digest = push_manifest(proxy, repo, tag, &index).await;
    (digest, all)
}

/// What a tag points to at a proxy; nothing when there is none.
pub(crate) async fn tag_at(proxy: &str, repo: &str, tag: &str) -> Option<Digest> {
    let url = format!("http://{proxy}/v2/{repo}/manifests/{tag}");
    let answer = ask(Method::HEAD, &url, HttpBody::Empty).await;
    let digest = answer.headers().get("docker-content-digest")?;
    Some(digest.to_str().unwrap().parse().unwrap())
}

pub(crate) async fn until_tag(proxy: &str, (repo, tag): (&str, &str), digest: Option<Digest>) {
    until(&format!("{repo}:{tag} is {digest:?}"), async || {
        (tag_at(proxy, repo, tag).await == digest).then_some(())
    })
    .await;
}

pub(crate) async fn has_blob(proxy: &str, repo: &str, digest: Digest) -> bool {
    let url = format!("http://{proxy}/v2/{repo}/blobs/{digest}");
    ask(Method::HEAD, &url, HttpBody::Empty).await.status() == StatusCode::OK
}

pub(crate) async fn referrers_at(proxy: &str, repo: &str, subject: Digest) -> Vec<String> {
    let url = format!("http://{proxy}/v2/{repo}/referrers/{subject}");
    let answer = ask(Method::GET, &url, HttpBody::Empty).await;
    let list: Value = serde_json::from_slice(&answer.bytes(1 << 20).await.unwrap()).unwrap();
    let listed = list["manifests"].as_array().unwrap().iter();
    listed
        .map(|it| it["digest"].as_str().unwrap().to_owned())
        .collect()
}

/// Who asks for the images that go from one cluster to another.
#[derive(Clone, Copy)]
enum By {
    Sender,
    Fetcher,
}

/// What begins with `team/` or `both/` goes from east to west, what begins with `both/` back.
async fn two(by: By) -> BTreeMap<&'static str, Lab> {
    let authority = CertAuthority::create().unwrap();
    let at = [free_addr(), free_addr()];
    let mut labs = BTreeMap::new();
    let rules = [
        ("east", "west", ["^team/", "^both/"].as_slice()),
        ("west", "east", &["^both/"]),
    ];
    for (number, (name, remote, tags)) in rules.into_iter().enumerate() {
        let add = |role: &str, config: &mut Value| {
            if role == "build-index" {
                config["cluster"] = json!(name);
                let other = format!("https://{}", at[1 - number]);
                match by {
                    By::Sender => {
                        config["remotes"] =
                            json!([{"name": remote, "build_indexes": [other], "tags": tags}]);
                    }
                    By::Fetcher => {
                        config["remotes"] =
                            json!([{"name": remote, "fetches": true, "tags": tags}]);
                        let from = format!("from-{remote}");
                        config["sources"] = json!([{"name": from, "build_indexes": [other]}]);
                    }
                }
            }
        };
        let lab = Lab::start_under(&authority, at[number], (2, 0), add).await;
        labs.insert(name, lab);
    }
    labs
}

#[tokio::test(flavor = "multi_thread")]
pub(crate) async fn images_go_to_another_cluster_with_all_they_need_and_come_from_there() {
    there_and_back(By::Sender).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_fetches_images_with_all_they_need() {
    there_and_back(By::Fetcher).await;
}

async fn there_and_back(by: By) {
    within(180, "replication", async {
        let labs = two(by).await;
        let (east, west) = (labs["east"].host("proxy"), labs["west"].host("proxy"));
        let (v1, needed) = push_index(&east, "team/app", "v1", 1).await;
        let (other, _) = push_index(&east, "other/app", "v1", 50).await;
        until_tag(&west, ("team/app", "v1"), Some(v1)).await;
        for digest in needed {
            assert!(has_blob(&west, "team/app", digest).await, "{digest}");
        }
        // What is about it goes too, also when it comes later.
        let subject = json!({"mediaType": INDEX, "digest": v1, "size": 1});
        let (signature, _) = image(&east, "team/app", 90, Some(subject)).await;
        let digest = Digest::of(signature.to_string().as_bytes());
        push_manifest(&east, "team/app", &digest.to_string(), &signature).await;
        until("the signature is there", async || {
            let listed = referrers_at(&west, "team/app", v1).await;
            listed.contains(&digest.to_string()).then_some(())
        })
        .await;
        // Set to something else, and removed.
        let (v2, _) = push_index(&east, "team/app", "v1", 2).await;
        until_tag(&west, ("team/app", "v1"), Some(v2)).await;
        let url = format!("http://{east}/v2/team/app/manifests/v1");
        let removed = ask(Method::DELETE, &url, HttpBody::Empty).await;
        assert_eq!(removed.status(), StatusCode::ACCEPTED);
        until_tag(&west, ("team/app", "v1"), None).await;
        // From there as well, and it ends.
        let (there, _) = push_index(&west, "both/app", "v1", 3).await;
        until_tag(&east, ("both/app", "v1"), Some(there)).await;
        let (here, _) = push_index(&east, "both/app", "v1", 4).await;
        until_tag(&west, ("both/app", "v1"), Some(here)).await;
        for lab in labs.values() {
            until("nothing waits", async || {
                let status = lab.get_json("build-index", "/replicate/status").await?;
                let remote = &status["remotes"][0];
                (remote["waiting"] == 0 && remote["under_way"] == 0).then_some(())
            })
            .await;
        }
        assert_eq!(tag_at(&east, "other/app", "v1").await, Some(other));
        assert_eq!(
            tag_at(&west, "other/app", "v1").await,
            None,
            "no rule sends it"
        );
        let history = labs["west"]
            .get_json("build-index", "/tags/both%2Fapp%3Av1/history")
            .await;
        let clusters: Vec<_> = history
            .as_ref()
            .unwrap()
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["cluster"].as_str().unwrap())
            .collect();
        assert_eq!(clusters, ["east", "west"]);
        let state = labs["east"]
            .get_json("build-index", "/remotes/tags/both%2Fapp%3Av1")
            .await;
        assert_eq!(state.unwrap()[0]["is_there"], true);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_taken_is_lost_on_its_way_when_both_ends_die() {
    all_arrives_though_both_ends_die(By::Sender).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_that_another_cluster_fetches_when_both_ends_die() {
    all_arrives_though_both_ends_die(By::Fetcher).await;
}

async fn all_arrives_though_both_ends_die(by: By) {
    within(240, "replication", async {
        let mut labs = two(by).await;
        let (east, west) = (labs["east"].host("proxy"), labs["west"].host("proxy"));
        let mut pushed = Vec::new();
        for round in 0..6_u64 {
            let victims = [
                ("west", "build-index"),
                ("west", "origin-1"),
                ("east", "build-index"),
            ];
            let (cluster, member) = victims[usize::try_from(round % 3).unwrap()];
            if cluster == "west" {
                labs.get_mut(cluster).unwrap().kill(member);
            }
            for number in 0..3 {
                let tag = format!("v{round}-{number}");
                let image = push_index(&east, "team/app", &tag, 100 + round * 7 + number).await;
                pushed.push((tag, image));
            }
            // It dies right after it has taken them, and before they are all there.
            if cluster == "east" {
                labs.get_mut(cluster).unwrap().kill(member);
            }
            labs.get_mut(cluster).unwrap().restart(member).await;
        }
        for (tag, (digest, needed)) in pushed {
            until_tag(&west, ("team/app", &tag), Some(digest)).await;
            for digest in needed {
                assert!(has_blob(&west, "team/app", digest).await, "{tag}: {digest}");
            }
        }
        // Paused, nothing goes there; and it stays so over a restart.
        let lab = labs.get_mut("east").unwrap();
        lab.post("build-index", "/replicate/west/pause", &json!({}))
            .await;
        lab.kill("build-index");
        lab.restart("build-index").await;
        let (held, _) = push_index(&east, "team/app", "held", 500).await;
        let status = lab
            .get_json("build-index", "/replicate/status")
            .await
            .unwrap();
        assert_eq!(status["remotes"][0]["is_paused"], true);
        assert!(status["remotes"][0]["waiting"].as_u64().unwrap() > 0);
        assert_eq!(tag_at(&west, "team/app", "held").await, None);
        lab.post("build-index", "/replicate/west/resume", &json!({}))
            .await;
        until_tag(&west, ("team/app", "held"), Some(held)).await;
        let unknown = lab
            .post("build-index", "/replicate/south/pause", &json!({}))
            .await;
        assert!(unknown.contains("REMOTE_UNKNOWN"), "{unknown}");
    })
    .await;
}
