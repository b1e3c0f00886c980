use std::path::Path;
use std::time::Duration;

use kraken_proto::Digest;
use kraken_proto::tags::record::{Condition, Version};
use kraken_registry::memory::MemoryBlobs;
use kraken_registry::name::TagName;
use kraken_registry::tags::client::TagClient;
use kraken_registry::tags::ring::TagRing;
use kraken_registry::tags::server::{self, TagPolicy};
use kraken_registry::tags::store::TagStore;
use kraken_registry::{MediaType, RepoName, Tag, TagError, TagService};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::common::{client, descriptor, header, image, serve};

fn names(name: &str) -> (RepoName, Tag) {
    kraken_registry::name::split_tag(name).unwrap()
}

/// A build-index that is alone, and votes.
async fn alone(path: &Path) -> TagRing {
    let store = TagStore::open(path).unwrap();
    let ring = TagRing::new(store, ("east", "index-1"), &[], 3, client()).unwrap();
    let taking_part = ring.clone();
    tokio::spawn(async move { taking_part.take_part().await });
    while !ring.is_ready() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    ring
}

pub(crate) async fn store() -> (TagRing, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (alone(&dir.path().join("tags.redb")).await, dir)
}

/// A build-index without the check of dependencies.
async fn index() -> (String, TempDir) {
    let (ring, dir) = store().await;
    let app = server::unchecked_router(ring, TagPolicy::default());
    (serve(app).await, dir)
}

pub(crate) async fn ask(method: Method, url: &str) -> Response {
    client().request(method, url).send().await.unwrap()
}

async fn code(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    (status, body["error"]["code"].as_str().unwrap().to_string())
}

async fn set(ring: &TagRing, name: &str, digest: Digest) -> Version {
    let name: TagName = name.parse().unwrap();
    let state = ring.set(&name, Some(digest), Condition::Any).await.unwrap();
    state.unwrap().now.version
}

#[tokio::test]
async fn tags_survive_the_process_with_their_history() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tags.redb");
    let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
    let (repo, gone) = names("a/b:gone");
    let first = {
        let ring = alone(&path).await;
        let first = set(&ring, "a/b:v1", old).await;
        assert_eq!(set(&ring, "a/b:v1", old).await, first, "nothing changed");
        set(&ring, "a/b:gone", old).await;
        assert_eq!(ring.delete(&repo, &gone).await, Ok(true));
        first
    };
    // The task of the ring above holds the file until its runtime has dropped it.
    let path = {
        let copy = dir.path().join("copy.redb");
        std::fs::copy(&path, &copy).unwrap();
        copy
    };
    let ring = alone(&path).await;
    assert_eq!(ring.get(&repo, &gone).await, Ok(None));
    let second = set(&ring, "a/b:v1", new).await;
    assert!(second > first);
    let state = ring.state(&"a/b:v1".parse().unwrap()).await.unwrap();
    let state = state.unwrap();
    let told: Vec<_> = state.records().map(|it| (it.digest, it.version)).collect();
    assert_eq!(told, [(Some(new), second), (Some(old), first)]);
    assert_eq!(state.now.cluster, "east");
}

#[tokio::test]
async fn pages_follow_the_order_of_bytes_without_gaps_or_repeats() {
    let (ring, _dir) = store().await;
    let digest = Digest::of(b"x");
    let all = [
        "a-b:v1", "a/b:v1", "a/b:v2", "a/b:v3", "a0:v1", "a:v1", "a:v2",
    ];
    for name in all.iter().rev() {
        set(&ring, name, digest).await;
    }
    let mut seen: Vec<String> = Vec::new();
    loop {
        let page = ring.page("", 2, seen.last().map(String::as_str)).await;
        let page = page.unwrap();
        if page.is_empty() {
            break;
        }
        seen.extend(page);
    }
    assert_eq!(seen, all);
    assert_eq!(ring.page("a/b:", 9, None).await.unwrap(), all[1..4]);
    let (repo, _) = names("a:x");
    assert_eq!(ring.list(&repo, 9, None).await.unwrap(), ["v1", "v2"]);
    assert_eq!(ring.list(&repo, 9, Some("v1")).await.unwrap(), ["v2"]);
    assert_eq!(ring.list(&repo, 9, Some("v1x")).await.unwrap(), ["v2"]);
    let repositories = ring.repositories(9, None).await.unwrap();
    assert_eq!(repositories, ["a", "a-b", "a/b", "a0"]);
    let (repo, tag) = names("a0:v1");
    assert!(ring.delete(&repo, &tag).await.unwrap());
    assert!(!ring.delete(&repo, &tag).await.unwrap());
    let behind = ring.repositories(9, Some("a-b")).await.unwrap();
    assert_eq!(behind, ["a/b"]);
    // What was removed does not make a page shorter.
    assert_eq!(
        ring.page("a", 5, Some("a/b:v2")).await.unwrap(),
        ["a/b:v3", "a:v1", "a:v2"]
    );
}

#[tokio::test]
async fn the_index_speaks_the_paths_of_old() {
    let (base, _dir) = index().await;
    let digest = Digest::of(b"x");
    let url = format!("{base}/tags/a%2Fb%3Av1");
    assert_eq!(
        code(ask(Method::GET, &url).await).await,
        (404, "TAG_UNKNOWN".into())
    );
    let mut versions = Vec::new();
    for text in [digest.to_string(), digest.hex()] {
        let put = ask(Method::PUT, &format!("{url}/digest/{text}")).await;
        assert_eq!(put.status().as_u16(), 200);
        versions.push(header(&put, "kraken-tag-version"));
    }
    let version = versions[0].clone();
    assert_eq!(versions[1], version, "setting it again changes nothing");
    let get = ask(Method::GET, &url).await;
    assert_eq!(header(&get, "kraken-tag-version"), version);
    assert_eq!(header(&get, "etag"), format!("\"{version}\""));
    assert_eq!(get.text().await.unwrap(), digest.to_string());
    assert_eq!(ask(Method::HEAD, &url).await.status(), 200);

    let other = Digest::of(b"y");
    ask(
        Method::PUT,
        &format!("{base}/tags/a%2Fb%3Av2/digest/{other}"),
    )
    .await;
    let page: Value = ask(
        Method::GET,
        &format!("{base}/repositories/a%2Fb/tags?limit=1"),
    )
    .await
    .json()
    .await
    .unwrap();
    assert_eq!(page["result"], json!(["v1"]));
    assert_eq!(page["size"], 1);
    let next = page["Links"]["next"].as_str().unwrap();
    let page: Value = ask(Method::GET, &format!("{base}{next}"))
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(
        (&page["result"], &page["Links"]["next"]),
        (&json!(["v2"]), &json!(""))
    );
    for path in ["/list/a%2Fb", "/list/a/b:", "/list/", "/list"] {
        let page: Value = ask(Method::GET, &format!("{base}{path}"))
            .await
            .json()
            .await
            .unwrap();
        assert_eq!(page["result"], json!(["a/b:v1", "a/b:v2"]), "{path}");
    }
    let page: Value = ask(Method::GET, &format!("{base}/repositories"))
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(page["result"], json!(["a/b"]));

    assert_eq!(ask(Method::DELETE, &url).await.status(), 200);
    assert_eq!(
        code(ask(Method::DELETE, &url).await).await,
        (404, "TAG_UNKNOWN".into())
    );
    for bad in ["/tags/a", "/tags/A%3Av1", "/tags/a%3A.v1"] {
        let response = ask(Method::GET, &format!("{base}{bad}")).await;
        assert_eq!(code(response).await, (400, "NAME_INVALID".into()), "{bad}");
    }
    for bad in ["limit=x", "limit=-1"] {
        let response = ask(Method::GET, &format!("{base}/repositories?{bad}")).await;
        let invalid = (400, "PAGINATION_INVALID".into());
        assert_eq!(code(response).await, invalid, "{bad}");
    }
    let response = ask(Method::PUT, &format!("{url}/digest/sha256:12")).await;
    assert_eq!(code(response).await, (400, "NAME_INVALID".into()));
}

#[tokio::test]
async fn a_tag_is_taken_only_with_everything_below_it() {
    let (ring, _dir) = store().await;
    let blobs = MemoryBlobs::default();
    let app = server::router(ring, TagPolicy::default(), blobs.clone());
    let base = serve(app).await;
    let client = TagClient::new(client(), [base]);
    let layer = bytes::Bytes::from("layer");
    blobs.insert("config");
    let child = image(
        MediaType::OciManifest,
        b"config",
        std::slice::from_ref(&layer),
    )
    .to_string();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OciIndex.as_str(),
        "manifests": [descriptor(MediaType::OciManifest.as_str(), child.as_bytes())],
    });
    let digest = blobs.insert(index.to_string());
    let (repo, tag) = names("a:v1");
    let refusal = async || match client.put(&repo, &tag, digest).await {
        Err(TagError::Refused(message)) => message,
        other => panic!("{other:?}"),
    };
    assert!(
        refusal()
            .await
            .contains(&Digest::of(child.as_bytes()).to_string())
    );
    blobs.insert(child);
    assert!(refusal().await.contains(&Digest::of(&layer).to_string()));
    assert_eq!(client.get(&repo, &tag).await, Ok(None));
    blobs.insert(layer);
    blobs.set_unavailable(true);
    let outage = client.put(&repo, &tag, digest).await;
    assert!(
        matches!(outage, Err(TagError::Unavailable(_))),
        "{outage:?}"
    );
    blobs.set_unavailable(false);
    assert_eq!(client.put(&repo, &tag, digest).await, Ok(()));
    assert_eq!(client.get(&repo, &tag).await, Ok(Some(digest)));
}

#[tokio::test]
async fn the_client_passes_over_hosts_that_do_not_answer() {
    let (alive, _dir) = index().await;
    let nobody = "http://127.0.0.1:1";
    // A stranger that knows no such path, and one that is broken.
    let stranger = serve(axum::Router::new()).await;
    let broken = axum::Router::new().fallback(async || http::StatusCode::INTERNAL_SERVER_ERROR);
    let broken = serve(broken).await;
    let hosts = [
        nobody.to_string(),
        stranger.clone(),
        broken.clone(),
        format!("{alive}/"),
    ];
    let tags = TagClient::new(client(), hosts);
    let (repo, tag) = names("a/b:v1");
    let digest = Digest::of(b"x");
    assert_eq!(tags.get(&repo, &tag).await, Ok(None));
    assert_eq!(tags.put(&repo, &tag, digest).await, Ok(()));
    assert_eq!(tags.get(&repo, &tag).await, Ok(Some(digest)));
    assert_eq!(tags.list(&repo, 5, None).await, Ok(vec!["v1".to_string()]));
    assert_eq!(
        tags.repositories(5, None).await,
        Ok(vec!["a/b".to_string()])
    );
    assert_eq!(tags.delete(&repo, &tag).await, Ok(true));
    assert_eq!(tags.delete(&repo, &tag).await, Ok(false));

    let lost = TagClient::new(client(), [nobody.to_string(), stranger, broken]);
    let unavailable =
        |result: Result<(), TagError>| matches!(result, Err(TagError::Unavailable(_)));
    assert!(unavailable(lost.get(&repo, &tag).await.map(drop)));
    assert!(unavailable(lost.put(&repo, &tag, digest).await));
    assert!(unavailable(lost.list(&repo, 5, None).await.map(drop)));
    assert!(unavailable(lost.delete(&repo, &tag).await.map(drop)));
    let none = TagClient::new(client(), Vec::<String>::new());
    assert!(unavailable(none.get(&repo, &tag).await.map(drop)));
}

#[tokio::test]
async fn the_client_follows_pages_to_the_end() {
    let (base, dir) = index().await;
    let tags = TagClient::new(client(), [base.clone()]);
    let repo = names("a:x").0;
    for i in 0..7 {
        let tag = format!("v{i}").parse().unwrap();
        tags.put(&repo, &tag, Digest::of(b"x")).await.unwrap();
    }
    let some = tags.list(&repo, 5, Some("v1")).await.unwrap();
    assert_eq!(some, ["v2", "v3", "v4", "v5", "v6"]);
    assert_eq!(tags.list(&repo, 100_000, None).await.unwrap().len(), 7);
    assert!(tags.list(&repo, 0, None).await.unwrap().is_empty());
    drop(dir);
}
