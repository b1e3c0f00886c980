//! Images that a cluster fetches from another one.

use std::collections::BTreeMap;
use std::time::Duration;

use kraken_core::net::CertAuthority;
use serde_json::{Value, json};

use crate::common::{Lab, free_addr, until, within};
use crate::registries::{push_large, status, until_sent};
use crate::replicate::{push_index, tag_at, until_tag};

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
