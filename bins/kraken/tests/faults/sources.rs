//! Images that a cluster fetches from another one, or from a registry.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{Method, StatusCode};
use kraken_core::Digest;
use kraken_core::net::CertAuthority;
use kraken_core::net::http::HttpBody;
use serde_json::{Value, json};

use crate::common::{Lab, ask, free_addr, random, until, within};
use crate::registries::{DockerRegistry, password, push_large, sending_to, status, until_sent};
use crate::remotes::{pulls, push_platforms};
use crate::replicate::{
    INDEX, has_blob, image, push_index, push_manifest, referrers_at, tag_at, until_tag,
};

/// West fetches what begins with `team/` from east, as fast as this.
async fn west_fetches(limit: &str) -> BTreeMap<&'static str, Lab> {
    let authority = CertAuthority::create().unwrap();
    let at = [free_addr(), free_addr()];
    let mut labs = BTreeMap::new();
    for (name, own) in ["east", "west"].into_iter().zip(at) {
        let add = |role: &str, config: &mut Value| {
            if role != "build-index" {
                return;
            }
            config["cluster"] = json!(name);
            match name {
                "east" => {
                    config["remotes"] =
                        json!([{"name": "west", "fetches": true, "tags": ["^team/"]}]);
                }
                _ => {
                    let east = format!("https://{}", at[0]);
                    config["sources"] =
                        json!([{"name": "from-east", "build_indexes": [east], "limit": limit}]);
                }
            }
        };
        labs.insert(name, Lab::start_under(&authority, own, (2, 0), add).await);
    }
    labs
}

async fn told(lab: &Lab, key: &str) -> Value {
    status(lab).await.map_or(Value::Null, |it| it[key].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_fetched_stops_at_either_end_and_goes_on_where_it_was() {
    within(240, "fetching", async {
        let mut labs = west_fetches("9MB").await;
        let (east, west) = (labs["east"].host("proxy"), labs["west"].host("proxy"));
        assert_eq!(told(&labs["east"], "direction").await, "fetched_there");
        assert_eq!(told(&labs["west"], "direction").await, "fetched_here");
        let digest = push_large(&east, "team/large", 1).await;
        until_sent(&labs["west"], 10 << 20).await;
        labs["east"]
            .post("build-index", "/replicate/west/pause", &json!({}))
            .await;
        until("nothing comes any more", async || {
            let before = told(&labs["west"], "sent_bytes").await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            (told(&labs["west"], "sent_bytes").await == before).then_some(())
        })
        .await;
        let first = told(&labs["west"], "sent_bytes").await.as_u64().unwrap();
        assert!(first < 30 << 20, "{first} bytes came before it was paused");
        let lab = labs.get_mut("west").unwrap();
        lab.kill("build-index");
        lab.restart("build-index").await;
        labs["east"]
            .post("build-index", "/replicate/west/resume", &json!({}))
            .await;
        until_tag(&west, ("team/large", "v1"), Some(digest)).await;
        let layer = random(30 << 20, 1);
        let url = format!("http://{west}/v2/team/large/blobs/{}", Digest::of(&layer));
        let pulled = ask(Method::GET, &url, HttpBody::Empty).await;
        assert!(pulled.bytes(64 << 20).await.unwrap() == layer, "all of it");
        let second = told(&labs["west"], "sent_bytes").await.as_u64().unwrap();
        let all = first + second;
        assert!(
            all < 36 << 20,
            "of 30 MiB {all} bytes came: {first}, {second}"
        );

        // Here it can be stopped as well.
        labs["west"]
            .post("build-index", "/replicate/from-east/pause", &json!({}))
            .await;
        let (held, _) = push_index(&east, "team/app", "held", 9).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(tag_at(&west, "team/app", "held").await, None);
        assert_eq!(told(&labs["west"], "is_paused").await, true);
        assert!(told(&labs["east"], "waiting").await.as_u64().unwrap() > 0);
        labs["west"]
            .post("build-index", "/replicate/from-east/resume", &json!({}))
            .await;
        until_tag(&west, ("team/app", "held"), Some(held)).await;
        until("nothing waits", async || {
            let waits = told(&labs["east"], "waiting").await;
            (waits == 0 && told(&labs["west"], "waiting").await == 0).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_no_rule_names_fetches_nothing_and_is_told_why() {
    within(120, "an unknown cluster", async {
        let authority = CertAuthority::create().unwrap();
        let at = [free_addr(), free_addr()];
        let mut labs = Vec::new();
        for (name, own) in ["east", "south"].into_iter().zip(at) {
            let add = |role: &str, config: &mut Value| {
                if role == "build-index" {
                    config["cluster"] = json!(name);
                }
                if role == "build-index" && name == "south" {
                    let east = format!("https://{}", at[0]);
                    config["sources"] = json!([{"name": "from-east", "build_indexes": [east]}]);
                }
            };
            labs.push(Lab::start_under(&authority, own, (1, 0), add).await);
        }
        push_index(&labs[0].host("proxy"), "team/app", "v1", 1).await;
        until("it is told", async || {
            let error = told(&labs[1], "last_error").await;
            let error = error.as_str()?;
            error
                .contains("\"south\" is not among the `remotes`")
                .then_some(())
        })
        .await;
        let proxy = labs[1].host("proxy");
        assert_eq!(tag_at(&proxy, "team/app", "v1").await, None);
    })
    .await;
}

/// A cluster that looks every second what this registry has of two repositories, of one of them for one platform.
async fn following(registry: &DockerRegistry) -> Lab {
    Lab::start_with(2, 0, |role, config| {
        if role != "build-index" {
            return;
        }
        let login = json!({"username": "a", "password": {"text": "bc"}});
        let source = |name: &str, repo: &str| {
            json!({
                "name": name, "repositories": [repo], "tags": [":v"], "every": "1s",
                "registry": {
                    "url": format!("http://{}", registry.addr),
                    "repository": "mirror/{namespace}",
                    "credentials": {"password": login},
                },
            })
        };
        let mut multi = source("multi", "team/multi");
        multi["platforms"] = json!(["linux/amd64"]);
        config["sources"] = json!([source("app", "team/app"), multi]);
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_another_registry_are_followed() {
    within(240, "following a registry", async {
        let Some(mut registry) = DockerRegistry::start(password).await else {
            return;
        };
        let east = sending_to(&registry, ("a", None)).await;
        let east = east.host("proxy").clone();
        let (v1, needed) = push_index(&east, "team/app", "v1", 1).await;
        let (x1, _) = push_index(&east, "team/app", "x1", 2).await;
        registry.until_tag("team/app:v1", Some(v1)).await;
        registry.until_tag("team/app:x1", Some(x1)).await;
        let mut west = following(&registry).await;
        let proxy = west.host("proxy").clone();
        until_tag(&proxy, ("team/app", "v1"), Some(v1)).await;
        for digest in needed {
            assert!(has_blob(&proxy, "team/app", digest).await, "{digest}");
        }
        assert_eq!(tag_at(&proxy, "team/app", "x1").await, None);

        // What comes to be about it, and what it is made.
        let subject = json!({"mediaType": INDEX, "digest": v1, "size": 1});
        let (signature, _) = image(&east, "team/app", 90, Some(subject)).await;
        let about = Digest::of(signature.to_string().as_bytes()).to_string();
        push_manifest(&east, "team/app", &about, &signature).await;
        until("the signature is here", async || {
            let listed = referrers_at(&proxy, "team/app", v1).await;
            listed.contains(&about).then_some(())
        })
        .await;
        let (v2, _) = push_index(&east, "team/app", "v1", 3).await;
        until_tag(&proxy, ("team/app", "v1"), Some(v2)).await;

        // Of one platform.
        let (index, all) = push_platforms(&east, "team/multi", 500).await;
        until_tag(&proxy, ("team/multi", "v1"), Some(index)).await;
        for (name, digest) in &all {
            let wanted = match name.ends_with("amd64") {
                true => StatusCode::OK,
                false => StatusCode::NOT_FOUND,
            };
            let answer = pulls(&proxy, "team/multi", *digest).await;
            assert_eq!(answer, wanted, "{name}");
        }

        // Both die, and it goes on.
        registry.kill();
        until("it is told", async || {
            let error = told(&west, "last_error").await;
            error.as_str().map(drop)
        })
        .await;
        registry.restart().await;
        west.kill("build-index");
        let (v3, _) = push_index(&east, "team/app", "v3", 4).await;
        registry.until_tag("team/app:v3", Some(v3)).await;
        west.restart("build-index").await;
        until_tag(&proxy, ("team/app", "v3"), Some(v3)).await;
    })
    .await;
}
