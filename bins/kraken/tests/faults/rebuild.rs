//! The build-index loses its disk, and the cluster its tags with it: all come back from the backend.

use bytes::Bytes;
use http::{Method, StatusCode};
use kraken_core::Digest;
use kraken_core::net::http::HttpBody;
use serde_json::{Value, json};

use crate::common::{Lab, ask, push, random, until, within};

const MEDIA: &str = "application/vnd.oci.image.manifest.v1+json";
const REPO: &str = crate::common::REPOSITORY;

/// A manifest of one layer, about another one if that is given.
async fn push_manifest(
    proxy: &str,
    reference: Option<&str>,
    seed: u64,
    about: Option<Digest>,
) -> Digest {
    let (config, layer) = (Bytes::from("{}"), random(20_000, seed));
    push(proxy, &config).await;
    push(proxy, &layer).await;
    let describe = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()});
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": MEDIA,
        "config": describe("application/x.config", &config),
        "layers": [describe("application/x.layer", &layer)],
    });
    if let Some(about) = about {
        manifest["subject"] = json!({"mediaType": MEDIA, "digest": about, "size": 1});
    }
    let bytes = Bytes::from(manifest.to_string());
    let digest = Digest::of(&bytes);
    let reference = reference.map_or_else(|| digest.to_string(), str::to_owned);
    let url = format!("http://{proxy}/v2/{REPO}/manifests/{reference}");
    let pushed = ask(Method::PUT, &url, HttpBody::Bytes(bytes)).await;
    assert_eq!(pushed.status(), StatusCode::CREATED);
    digest
}

/// What the proxy says of a tag, and the digests of what is about `subject`.
async fn seen(proxy: &str, tag: &str, subject: Digest) -> (StatusCode, Vec<Value>) {
    let url = format!("http://{proxy}/v2/{REPO}/manifests/{tag}");
    let status = ask(Method::HEAD, &url, HttpBody::Empty).await.status();
    let url = format!("http://{proxy}/v2/{REPO}/referrers/{subject}");
    let answer = ask(Method::GET, &url, HttpBody::Empty).await;
    let index: Value = serde_json::from_slice(&answer.bytes(1 << 20).await.unwrap()).unwrap();
    let manifests = index["manifests"].as_array().unwrap().iter();
    (status, manifests.map(|it| it["digest"].clone()).collect())
}

async fn rebuilt() {
    let places = tempfile::tempdir().unwrap();
    let place = places.path().to_owned();
    let mut lab = Lab::start_with(1, 0, |role, config| {
        if role == "build-index" {
            config["tags_backend"] = json!({"backend": {"local_disk": place}, "prefix": "a/b"});
        }
    })
    .await;
    let proxy = lab.host("proxy");
    until("the build-index has read its backend", async || {
        let told = lab
            .get_json("build-index", "/internal/tags/standing")
            .await?;
        let founders = told["standing"]["founders"].as_array()?;
        (!founders.is_empty()).then_some(())
    })
    .await;
    push_manifest(&proxy, Some("v1"), 1, None).await;
    let image = push_manifest(&proxy, Some("v1"), 2, None).await;
    let signature = push_manifest(&proxy, None, 3, Some(image)).await;
    push_manifest(&proxy, Some("gone"), 4, None).await;
    let url = format!("http://{proxy}/v2/{REPO}/manifests/gone");
    let removed = ask(Method::DELETE, &url, HttpBody::Empty).await;
    assert_eq!(removed.status(), StatusCode::ACCEPTED);
    let history = format!("/tags/{}/history", format!("{REPO}:v1").replace('/', "%2F"));
    let before = lab.get_json("build-index", &history).await.unwrap();
    let waiting = "kraken_replicate_waiting{cluster=\"~backend\",direction=\"sent\"}";
    until("all is in the backend", async || {
        (lab.counter("build-index", waiting).await == Some(0)).then_some(())
    })
    .await;
    let link =
        format!("a/b/docker/registry/v2/repositories/{REPO}/_manifests/tags/v1/current/link");
    let link = std::fs::read_to_string(places.path().join(link)).unwrap();
    assert_eq!(link, image.to_string());

    lab.kill("build-index");
    std::fs::remove_dir_all(lab.path("build-index")).unwrap();
    lab.restart("build-index").await;
    until("the tags are there again", async || {
        let after = lab.get_json("build-index", &history).await;
        (after.as_ref() == Some(&before)).then_some(())
    })
    .await;
    assert_eq!(
        lab.counter("build-index", "kraken_tags_backend_unreadable")
            .await,
        Some(0)
    );
    let (status, about) = seen(&proxy, "v1", image).await;
    assert_eq!((status, about), (StatusCode::OK, vec![json!(signature)]));
    let (status, _) = seen(&proxy, "gone", image).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    push_manifest(&proxy, Some("v1"), 5, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_versions_and_referrers_come_back_from_the_backend() {
    within(120, "a rebuilt build-index", rebuilt()).await;
}
