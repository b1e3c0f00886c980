//! What other clusters get of an image, when, and whether once more.

use std::collections::BTreeMap;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{Method, StatusCode};
use kraken_core::Digest;
use kraken_core::net::CertAuthority;
use kraken_core::net::http::HttpBody;
use serde_json::{Value, json};

use crate::common::{Lab, ask, free_addr, kraken, until, within};
use crate::registries::{DockerRegistry, password, status};
use crate::replicate::{
    INDEX, MANIFEST, describe, image, push_index, push_manifest, tag_at, until_tag,
};

/// Clusters of these names with so many agents each, which know each other's build-indexes: `add` gets a name, the URLs by name, and
/// the configuration of its build-index.
async fn clusters(
    names: &[&'static str],
    agents: usize,
    add: impl Fn(&str, &BTreeMap<&str, String>, &mut Value),
) -> BTreeMap<&'static str, Lab> {
    let authority = CertAuthority::create().unwrap();
    let at: Vec<_> = names.iter().map(|_| free_addr()).collect();
    let urls = names.iter().zip(&at);
    let urls: BTreeMap<_, _> = urls
        .map(|(name, at)| (*name, format!("https://{at}")))
        .collect();
    let mut labs = BTreeMap::new();
    for (name, at) in names.iter().zip(&at) {
        let add = |role: &str, config: &mut Value| {
            if role == "build-index" {
                config["cluster"] = json!(name);
                add(name, &urls, config);
            }
        };
        labs.insert(
            *name,
            Lab::start_under(&authority, *at, (2, agents), add).await,
        );
    }
    labs
}

/// An index for amd64 and arm64, with what is about each of them: all manifests by their names.
pub(crate) async fn push_platforms(
    proxy: &str,
    repo: &str,
    seed: u64,
) -> (Digest, BTreeMap<String, Digest>) {
    let (mut entries, mut all) = (Vec::new(), BTreeMap::new());
    for (number, arch) in (0..).zip(["amd64", "arm64"]) {
        for about in [false, true] {
            let seed = seed * 4 + number * 2 + u64::from(about);
            let (manifest, _) = image(proxy, repo, seed, None).await;
            let bytes = manifest.to_string();
            let digest = Digest::of(bytes.as_bytes());
            push_manifest(proxy, repo, &digest.to_string(), &manifest).await;
            let mut entry = describe(MANIFEST, bytes.as_bytes());
            let name = match about {
                false => {
                    entry["platform"] = json!({"os": "linux", "architecture": arch});
                    arch.to_owned()
                }
                true => {
                    entry["platform"] = json!({"os": "unknown", "architecture": "unknown"});
                    entry["annotations"] = json!({"vnd.docker.reference.digest": all[arch]});
                    format!("about {arch}")
                }
            };
            entries.push(entry);
            all.insert(name, digest);
        }
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    (push_manifest(proxy, repo, "v1", &index).await, all)
}

pub(crate) async fn pulls(proxy: &str, repo: &str, digest: Digest) -> StatusCode {
    let url = format!("http://{proxy}/v2/{repo}/manifests/{digest}");
    ask(Method::GET, &url, HttpBody::Empty).await.status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_gets_the_platforms_that_it_wants_and_sends_them_on() {
    within(240, "platforms", async {
        let other = DockerRegistry::start(password).await;
        let labs = clusters(&["east", "west"], 1, |name, urls, config| {
            config["remotes"] = match (name, &other) {
                ("east", _) => json!([{
                    "name": "west", "build_indexes": [urls["west"]], "tags": ["^team/"],
                    "platforms": ["linux/amd64"],
                }]),
                (_, Some(other)) => json!([{
                    "name": "other", "tags": ["^team/"],
                    "registry": {
                        "url": format!("http://{}", other.addr), "repository": "mirror/{namespace}",
                        "credentials": {"password": {"username": "a", "password": {"text": "bc"}}},
                    },
                }]),
                _ => json!([]),
            };
        })
        .await;
        let (east, west) = (labs["east"].host("proxy"), labs["west"].host("proxy"));
        let (index, all) = push_platforms(&east, "team/app", 1).await;
        until_tag(&west, ("team/app", "v1"), Some(index)).await;
        for (name, digest) in &all {
            let wanted = match name.ends_with("amd64") {
                true => StatusCode::OK,
                false => StatusCode::NOT_FOUND,
            };
            assert_eq!(pulls(&west, "team/app", *digest).await, wanted, "{name}");
            assert_eq!(pulls(&east, "team/app", *digest).await, StatusCode::OK);
        }
        // What is left out is no garbage's fault, and the rest is none.
        let ask = json!({"grace_seconds": 1, "stored": false, "dry_run": true});
        let found = labs["west"].post("build-index", "/x/garbage", &ask).await;
        let found: Value = serde_json::from_str(&found).unwrap();
        assert_eq!(found["garbage"], 0, "{found}");
        // Onto hosts there goes what is there.
        let (image, agent) = ("team/app:v1", labs["west"].host("agent-1"));
        let preheated = kraken(&["preheat", image, "--proxy", &west, "--hosts", &agent]).await;
        assert!(preheated.status.success(), "{preheated:?}");
        let amd64 = pulls(&agent, "team/app", all["amd64"]).await;
        assert_eq!(amd64, StatusCode::OK);
        // Its own images must be whole.
        let copied = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            describe(MANIFEST, b"no such manifest"),
        ]});
        let url = format!("http://{west}/v2/team/app/manifests/own");
        let body = HttpBody::Bytes(copied.to_string().into());
        let pushed = crate::common::ask(Method::PUT, &url, body).await;
        assert!(pushed.status().is_client_error());
        if let Some(other) = &other {
            // It goes on from there, to a registry that takes no such index, which is told.
            until("the registry has refused it", async || {
                let refused = status(&labs["west"]).await?["refused"][0].clone();
                let reason = refused["reason"].as_str()?;
                (reason.contains("MANIFEST_BLOB_UNKNOWN") && reason.contains("`platforms`"))
                    .then_some(())
            })
            .await;
            let manifest = format!("team/app/manifests/{}", all["amd64"]);
            assert!(other.get(&manifest).await.is_some());
        }
    })
    .await;
}

/// A window of a minute, twelve hours from now.
fn other_hours() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let then = now.as_secs() / 60 + 12 * 60;
    let time = |minute: u64| format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
    format!("{}-{}", time(then), time(then + 1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_gets_nothing_at_other_hours_and_all_again_when_it_is_made_anew() {
    within(240, "hours", async {
        let mut labs = clusters(&["east", "west"], 0, |name, urls, config| {
            if name == "east" {
                config["remotes"] = json!([{
                    "name": "west", "build_indexes": [urls["west"]], "tags": ["^team/"],
                    "hours": [other_hours()],
                }]);
            }
        })
        .await;
        let (east, west) = (labs["east"].host("proxy"), labs["west"].host("proxy"));
        let (v1, _) = push_index(&east, "team/app", "v1", 1).await;
        until("it waits for its hours", async || {
            let status = status(&labs["east"]).await?;
            (status["is_closed"] == true && status["oldest_seconds"].as_u64()? >= 2).then_some(())
        })
        .await;
        assert_eq!(tag_at(&west, "team/app", "v1").await, None);
        let lab = labs.get_mut("east").unwrap();
        lab.kill("build-index");
        let file = lab.config("build-index").to_owned();
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["remotes"][0]["limit_outside"] = json!("50MB");
        fs::write(&file, config.to_string()).unwrap();
        lab.restart("build-index").await;
        until_tag(&west, ("team/app", "v1"), Some(v1)).await;
        // Made anew under its name, it gets nothing old by itself.
        let lab = labs.get_mut("west").unwrap();
        let members = ["build-index", "origin-1", "origin-2"];
        members.iter().for_each(|member| lab.kill(member));
        for dir in members.iter().chain(&["backend"]) {
            fs::remove_dir_all(lab.path(dir)).unwrap();
        }
        for member in members {
            lab.restart(member).await;
        }
        lab.sees_origins(2).await;
        assert_eq!(tag_at(&west, "team/app", "v1").await, None);
        let said = labs["east"]
            .post("build-index", "/replicate/west/again", &json!({}))
            .await;
        assert_eq!(said, "");
        until_tag(&west, ("team/app", "v1"), Some(v1)).await;
        let unknown = labs["east"]
            .post("build-index", "/replicate/south/again", &json!({}))
            .await;
        assert!(unknown.contains("REMOTE_UNKNOWN"), "{unknown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_the_same_name_is_refused() {
    within(120, "names", async {
        let labs = clusters(&["east", "west"], 0, |name, urls, config| {
            config["cluster"] = json!("default");
            if name == "east" {
                config["remotes"] =
                    json!([{"name": "west", "build_indexes": [urls["west"]], "tags": ["^team/"]}]);
            }
        })
        .await;
        let proxy = labs["east"].host("proxy");
        push_index(&proxy, "team/app", "v1", 1).await;
        until("it is told", async || {
            let error = status(&labs["east"]).await?["last_error"]
                .as_str()?
                .to_owned();
            error
                .contains("it is named \"default\" as this cluster is")
                .then_some(())
        })
        .await;
        assert_eq!(
            tag_at(&labs["west"].host("proxy"), "team/app", "v1").await,
            None
        );
    })
    .await;
}
