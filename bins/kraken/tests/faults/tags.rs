//! Tags are listed, rolled back and removed by hand, on the conditions that were given.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{Method, Request};
use kraken::tags::Tags;
use kraken_core::Digest;
use kraken_core::net::http::{HttpBody, HttpClient};
use kraken_daemon::Tls;
use kraken_registry::name::TagName;
use kraken_registry::tags::client::OnlyIf;
use serde_json::{Value, json};

use crate::common::{Lab, REPOSITORY, Ran, ask, kraken, push, random, until, within};

/// `kraken tag …` against one build-index, behind one that is not there.
struct Tool<'a> {
    lab: &'a Lab,
    indexes: String,
}

impl<'a> Tool<'a> {
    fn new(lab: &'a Lab) -> Self {
        let indexes = format!("https://127.0.0.1:1,https://{}", lab.host("build-index"));
        Self { lab, indexes }
    }

    fn tls(&self) -> Tls {
        let path = |name: &str| self.lab.path(name);
        Tls::new(path("proxy.crt"), path("proxy.key"), path("ca.crt"))
    }

    async fn run_at(&self, indexes: &str, arguments: &[&str]) -> Ran {
        let Tls { cert, key, ca, .. } = self.tls();
        let [cert, key, ca] = [cert, key, ca].map(|path| path.to_str().unwrap().to_owned());
        let mut all = vec!["tag"];
        all.extend(arguments);
        all.extend(["--build-index", indexes]);
        all.extend(["--cert", &cert, "--key", &key, "--ca", &ca]);
        kraken(&all).await
    }

    async fn ok(&self, arguments: &[&str]) -> String {
        let ran = self.run_at(&self.indexes, arguments).await;
        assert!(ran.status.success(), "{arguments:?}: {ran:?}");
        ran.stdout
    }

    async fn fails(&self, arguments: &[&str], why: &str) {
        let ran = self.run_at(&self.indexes, arguments).await;
        assert_eq!(ran.status.code(), Some(1), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains(why), "{arguments:?}: {ran:?}");
    }

    /// The states of a tag, the latest first: what it pointed to, and the version.
    async fn history(&self, tag: &str) -> Vec<(Value, String)> {
        let lines = self.ok(&["history", tag, "--json"]).await;
        let states = lines.lines().map(|line| {
            let state: Value = serde_json::from_str(line).unwrap();
            assert!(state["time_ms"].is_u64() && state["cluster"] == "default");
            let version = state["version"].as_str().unwrap().to_owned();
            (state["digest"].clone(), version)
        });
        states.collect()
    }
}

async fn by_hand() {
    let lab = Lab::start_with(1, 0, |role, config| {
        if role == "build-index" {
            config["immutable_tags"] = json!([format!("{REPOSITORY}:release-.*")]);
        }
    })
    .await;
    let tool = Tool::new(&lab);
    let proxy = lab.host("proxy");
    let first = push(&proxy, &random(1000, 1)).await.to_string();
    let second = push(&proxy, &random(1000, 2)).await.to_string();
    let tag = &format!("{REPOSITORY}:v1");

    rolled_back(&tool, tag, (&first, &second)).await;
    refused(&tool, tag, (&first, &second)).await;
    removed(&tool, tag, &first).await;
    listed(&tool, first.parse().unwrap()).await;
}

async fn rolled_back(tool: &Tool<'_>, tag: &str, (first, second): (&str, &str)) {
    let said = tool.ok(&["set", tag, first, "--if-absent"]).await;
    assert_eq!(said, format!("{tag} points to {first}\n"));
    tool.ok(&["set", tag, second]).await;
    let history = tool.history(tag).await;
    let digests: Vec<_> = history.iter().map(|(digest, _)| digest.clone()).collect();
    assert_eq!(digests, [json!(second), json!(first)]);
    let (now, before) = (&history[0].1, &history[1].1);
    tool.ok(&["set", tag, "--to-version", before, "--if-version", now])
        .await;
    let after = tool.history(tag).await;
    assert_eq!((after.len(), &after[0].0), (3, &json!(first)));
    let said = tool.ok(&["set", tag, first]).await;
    assert_eq!(said, format!("{tag} points already to {first}\n"));
    assert_eq!(tool.history(tag).await, after, "nothing was to be done");
    let table = tool.ok(&["history", tag]).await;
    for part in [first, second, now, before] {
        assert!(table.contains(part), "{table}");
    }
}

async fn refused(tool: &Tool<'_>, tag: &str, (first, second): (&str, &str)) {
    let history = tool.history(tag).await;
    let (now, old) = (&history[0].1, &history[1].1);
    let at = format!("it is at version {now}");
    tool.fails(&["set", tag, second, "--if-version", old], &at)
        .await;
    tool.fails(&["rm", tag, "--if-version", old], &at).await;
    tool.fails(&["set", tag, second, "--if-absent"], "it exists")
        .await;
    let unknown = ["set", tag, "--to-version", "12"];
    tool.fails(&unknown, "no version 12 in its history").await;
    let absent = Digest::of(b"nowhere").to_string();
    tool.fails(&["set", tag, &absent], "is not there").await;
    let none = &format!("{REPOSITORY}:none");
    tool.fails(
        &["set", none, second, "--if-version", now],
        "does not exist",
    )
    .await;
    tool.fails(&["history", none], "there is no tag").await;
    tool.fails(&["rm", none], "there is no tag").await;
    tool.fails(&["ls", "no/where"], "there is no repository no/where")
        .await;
    assert_eq!(tool.history(tag).await, history, "nothing was changed");
    let fixed = &format!("{REPOSITORY}:release-1");
    tool.ok(&["set", fixed, first]).await;
    tool.fails(&["set", fixed, second], "it is immutable").await;
    for wrong in [
        &["set", "no-tag", first][..],
        &["set", tag],
        &["set", tag, first, "--to-version", "1"],
        &["set", tag, first, "--if-absent", "--if-version", "1"],
        &["ls", "UPPER"],
    ] {
        let ran = tool.run_at(&tool.indexes, wrong).await;
        assert_eq!(ran.status.code(), Some(2), "{ran:?}");
    }
    let away = tool
        .run_at("https://127.0.0.1:1", &["ls", REPOSITORY])
        .await;
    let said = away.stderr.contains("no build-index can answer");
    assert!(said && away.status.code() == Some(1), "{away:?}");
}

async fn removed(tool: &Tool<'_>, tag: &str, first: &str) {
    let now = tool.history(tag).await[0].1.clone();
    tool.ok(&["rm", tag, "--if-version", &now]).await;
    let history = tool.history(tag).await;
    assert_eq!(history[0].0, Value::Null);
    let removed = ["set", tag, "--to-version", &history[0].1];
    tool.fails(&removed, "did not exist at version").await;
    tool.ok(&["set", tag, "--to-version", &now, "--if-absent"])
        .await;
    assert_eq!(tool.history(tag).await[0].0, json!(first));
}

/// More than one page of tags.
async fn listed(tool: &Tool<'_>, digest: Digest) {
    const COUNT: usize = 1005;
    let url = format!("https://{}", tool.lab.host("build-index"));
    let tags = &Tags::new(&[url], &tool.tls()).unwrap();
    let names: Vec<_> = (0..COUNT).map(|it| format!("t{it:04}")).collect();
    let set = stream::iter(&names).map(async |name| {
        let tag: TagName = format!("many/tags:{name}").parse().unwrap();
        tags.set(&tag, digest, OnlyIf::Any).await.map(drop)
    });
    let set: Result<Vec<()>, _> = set.buffer_unordered(16).try_collect().await;
    set.unwrap();
    let said = tool.ok(&["ls", "many/tags"]).await;
    assert!(said.lines().eq(&names), "{said}");
    let said = tool.ok(&["ls", "many/tags", "--json"]).await;
    let told = said.lines().map(|line| {
        let told: Value = serde_json::from_str(line).unwrap();
        told["tag"].as_str().unwrap().to_owned()
    });
    assert!(told.eq(names.iter().cloned()), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_listed_rolled_back_and_removed_by_hand() {
    within(120, "what is done to tags by hand", by_hand()).await;
}

/// What an agent says of a tag: the status, and whether the answer may be out of date.
async fn told(agent: &str, tag: &str) -> (u16, bool) {
    let url = format!("http://{agent}/v2/{REPOSITORY}/manifests/{tag}");
    let answer = ask(Method::GET, &url, HttpBody::Empty).await;
    (
        answer.status().as_u16(),
        answer.header("kraken-tag-stale") == Some("true"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_a_tag_again_while_no_build_index_answers() {
    within(60, "tags in an outage", async {
        let mut lab = Lab::start(1, 2).await;
        let blob = push(&lab.host("proxy"), &random(1000, 5)).await;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let config = json!({"mediaType": "text/plain", "digest": blob.to_string(), "size": 1000});
        let manifest =
            json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": []});
        for tag in ["v1", "v2"] {
            let url = format!(
                "http://{}/v2/{REPOSITORY}/manifests/{tag}",
                lab.host("proxy")
            );
            let put = Request::put(url).header("content-type", kind);
            let put = put.body(HttpBody::Bytes(manifest.to_string().into()));
            let put = HttpClient::new(None).unwrap().send(put.unwrap()).await;
            assert_eq!(put.unwrap().status(), 201);
        }
        let (one, other) = (lab.host("agent-1"), lab.host("agent-2"));
        assert_eq!(told(&one, "v1").await, (200, false));
        lab.kill("build-index");
        assert_eq!(told(&one, "v1").await, (200, true));
        assert_eq!(told(&one, "v2").await, (404, false), "it was not told that");
        assert_eq!(told(&other, "v1").await, (404, false), "nor was that one");
        let stale = "kraken_stale_tags_total";
        assert_eq!(lab.counter("agent-1", stale).await, Some(1));
        lab.restart("build-index").await;
        let fresh = until("the build-index is asked again", async || {
            let told = told(&one, "v1").await;
            (!told.1).then_some(told.0)
        });
        assert_eq!(fresh.await, 200);
    })
    .await;
}
