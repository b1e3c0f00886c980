use std::ops::Range;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use kraken_proto::{Digest, Namespace};
use kraken_registry::link::Link;
use kraken_registry::memory::MemoryTags;
use kraken_registry::pull::{self, PullState};
use kraken_registry::tags::LinkService;
use kraken_registry::{BlobBody, BlobSource, MediaType, SourceError, TagService};
use reqwest::Method;
use serde_json::{Value, json};

use super::common::{Registry, client, error, header, image, serve};

async fn tag(registry: &Registry, name: &str, digest: Digest) {
    let (repo, tag) = kraken_registry::name::split_tag(name).unwrap();
    registry.tags.put(&repo, &tag, digest).await.unwrap();
}

#[tokio::test]
async fn ping_names_the_protocol() {
    let registry = Registry::mirror().await;
    for path in ["/v2/", "/v2"] {
        let response = registry.get(path).await;
        assert_eq!(response.status(), 200);
        assert_eq!(
            header(&response, "docker-distribution-api-version"),
            "registry/2.0"
        );
    }
}

#[tokio::test]
async fn blobs_answer_ranges() {
    let registry = Registry::mirror().await;
    let bytes: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    let digest = registry.blobs.insert(bytes.clone());
    let path = format!("/v2/a/b/blobs/{digest}");
    let cases: [(&str, u16, Range<usize>); 8] = [
        ("bytes=500-1499", 206, 500..1500),
        ("bytes=500-", 206, 500..200_000),
        ("bytes=-500", 206, 199_500..200_000),
        ("bytes=199000-500000", 206, 199_000..200_000),
        ("bytes=500-0", 416, 0..0),
        ("bytes=200000-", 416, 0..0),
        ("bytes=0-1,5-6", 200, 0..200_000),
        ("pages=1-2", 200, 0..200_000),
    ];
    for (range, status, expected) in cases {
        let request = registry.ask(Method::GET, &path).header("range", range);
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{range}");
        let content_range = header(&response, "content-range");
        match status {
            206 => assert_eq!(
                content_range,
                format!("bytes {}-{}/200000", expected.start, expected.end - 1)
            ),
            416 => assert_eq!(content_range, "bytes */200000"),
            _ => assert_eq!(content_range, ""),
        }
        if status != 416 {
            assert_eq!(
                header(&response, "content-length"),
                expected.len().to_string()
            );
            assert_eq!(header(&response, "accept-ranges"), "bytes");
            assert_eq!(response.bytes().await.unwrap(), bytes[expected], "{range}");
        }
    }
}

#[tokio::test]
async fn a_range_of_another_version_is_not_served() {
    let registry = Registry::mirror().await;
    let digest = registry.blobs.insert("0123456789");
    let path = format!("/v2/a/blobs/{digest}");
    let ask = |version: String| {
        let request = registry.ask(Method::GET, &path);
        request
            .header("range", "bytes=5-")
            .header("if-range", version)
            .send()
    };
    assert_eq!(ask(format!("\"{digest}\"")).await.unwrap().status(), 206);
    assert_eq!(ask("\"other\"".to_string()).await.unwrap().status(), 200);
}

#[tokio::test]
async fn the_empty_blob_is_a_blob() {
    let registry = Registry::mirror().await;
    let digest = registry.blobs.insert("");
    let path = format!("/v2/a/blobs/{digest}");
    let response = registry.get(&path).await;
    assert_eq!(
        (
            response.status().as_u16(),
            header(&response, "content-length")
        ),
        (200, "0".into())
    );
    assert!(response.bytes().await.unwrap().is_empty());
    let ranged = registry.ask(Method::GET, &path).header("range", "bytes=0-");
    error(ranged.send().await.unwrap(), 416, "SIZE_INVALID").await;
}

#[tokio::test]
async fn what_the_client_has_is_not_sent_again() {
    let registry = Registry::mirror().await;
    let blob = registry.blobs.insert("blob");
    let config = Bytes::from("c");
    let manifest = image(MediaType::OciManifest, &config, &[]);
    let manifest = registry.blobs.insert(manifest.to_string());
    tag(&registry, "a:v1", manifest).await;
    for (path, digest) in [
        (format!("/v2/a/blobs/{blob}"), blob),
        ("/v2/a/manifests/v1".to_string(), manifest),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let known = format!("\"other\", W/\"{digest}\"");
            let request = registry
                .ask(method.clone(), &path)
                .header("if-none-match", known);
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 304);
            assert_eq!(header(&response, "etag"), format!("\"{digest}\""));
            let request = registry
                .ask(method, &path)
                .header("if-none-match", "\"other\"");
            assert_eq!(request.send().await.unwrap().status(), 200);
        }
    }
    let absent = format!("/v2/a/blobs/{}", Digest::of(b"absent"));
    let request = registry
        .ask(Method::GET, &absent)
        .header("if-none-match", "*");
    assert_eq!(request.send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn manifests_keep_their_bytes_and_their_type() {
    let registry = Registry::mirror().await;
    for kind in [MediaType::DockerManifest, MediaType::OciManifest] {
        let bytes = serde_json::to_string_pretty(&image(kind, b"c", &[])).unwrap();
        let digest = registry.blobs.insert(bytes.clone());
        tag(&registry, "a/b:v1", digest).await;
        for path in [
            "/v2/a/b/manifests/v1".to_string(),
            format!("/v2/a/b/manifests/{digest}"),
        ] {
            let head = registry.head(&path).await;
            assert_eq!(header(&head, "content-length"), bytes.len().to_string());
            let get = registry.get(&path).await;
            for response in [&head, &get] {
                assert_eq!(response.status(), 200);
                assert_eq!(header(response, "content-type"), kind.as_str());
                assert_eq!(
                    header(response, "docker-content-digest"),
                    digest.to_string()
                );
                assert_eq!(header(response, "etag"), format!("\"{digest}\""));
            }
            assert_eq!(get.text().await.unwrap(), bytes);
        }
    }
}

#[tokio::test]
async fn what_does_not_exist_is_named_so() {
    let registry = Registry::start().await;
    let absent = Digest::of(b"absent");
    let layer = registry.blobs.insert("a layer, not a manifest");
    // What another registry may have: here its layers could not be had.
    let other = registry.blobs.insert(format!(
        "{{\"schemaVersion\": 2, \"config\": {{\"digest\": \"sha512:{}\", \"size\": 2}}, \"layers\": []}}",
        "0".repeat(128)
    ));
    let cases = [
        ("/v2/a/manifests/v1".to_string(), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/a/manifests/{absent}"), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/a/manifests/{layer}"), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/a/manifests/{other}"), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/a/blobs/{absent}"), 404, "BLOB_UNKNOWN"),
        ("/v2/a/tags/list".to_string(), 404, "NAME_UNKNOWN"),
        ("/v2/A/tags/list".to_string(), 400, "NAME_INVALID"),
        ("/v2/a/blobs/sha256:12".to_string(), 400, "DIGEST_INVALID"),
        (
            "/v2/a/manifests/sha512:12".to_string(),
            400,
            "DIGEST_INVALID",
        ),
        ("/v2/a/manifests/.v1".to_string(), 400, "MANIFEST_INVALID"),
        ("/v2/a/nothing".to_string(), 404, "UNSUPPORTED"),
        (
            "/v2/a/blobs/uploads/none".to_string(),
            404,
            "BLOB_UPLOAD_UNKNOWN",
        ),
    ];
    for (path, status, code) in cases {
        error(registry.get(&path).await, status, code).await;
    }
    let head = registry.head(&format!("/v2/a/blobs/{absent}")).await;
    assert_eq!(head.status(), 404);
}

#[tokio::test]
async fn an_outage_sends_runtimes_elsewhere_only_from_a_mirror() {
    let (mirror, registry) = (Registry::mirror().await, Registry::start().await);
    let digest = Digest::of(b"x");
    let by_digest = format!("/v2/a/manifests/{digest}");
    for host in [&mirror, &registry] {
        host.blobs.set_unavailable(true);
        host.tags.set_unavailable(true);
    }
    for path in ["/v2/a/manifests/v1", &by_digest] {
        error(mirror.get(path).await, 404, "MANIFEST_UNKNOWN").await;
        error(registry.get(path).await, 503, "UNAVAILABLE").await;
    }
    let blob = format!("/v2/a/blobs/{digest}");
    error(mirror.get(&blob).await, 503, "UNAVAILABLE").await;
    error(registry.get("/v2/a/tags/list").await, 503, "UNAVAILABLE").await;
}

#[tokio::test]
async fn a_manifest_that_failed_once_is_asked_for_again() {
    let mirror = Registry::mirror().await;
    let digest = mirror
        .blobs
        .insert(image(MediaType::OciManifest, b"c", &[]).to_string());
    let path = format!("/v2/a/manifests/{digest}");
    mirror.blobs.set_unavailable(true);
    assert_eq!(mirror.get(&path).await.status(), 404);
    mirror.blobs.set_unavailable(false);
    assert_eq!(mirror.get(&path).await.status(), 200);
}

#[tokio::test]
async fn a_mirror_takes_no_pushes() {
    let registry = Registry::mirror().await;
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        for path in [
            "/v2/a/blobs/uploads/",
            "/v2/a/manifests/v1",
            "/v2/a/blobs/uploads/x",
        ] {
            let response = registry.ask(method.clone(), path).send().await.unwrap();
            assert_eq!(header(&response, "allow"), "GET, HEAD");
            let message = error(response, 405, "UNSUPPORTED").await;
            assert!(message.contains("push to the proxy"), "{message}");
        }
    }
}

#[tokio::test]
async fn tags_come_in_pages() {
    let registry = Registry::mirror().await;
    let digest = Digest::of(b"x");
    for name in ["a:v3", "a:v1", "a:V2", "a/b:v1", "a-b:v1"] {
        tag(&registry, name, digest).await;
    }
    let page = async |path: &str| {
        let response = registry.get(path).await;
        assert_eq!(response.status(), 200, "{path}");
        let link = header(&response, "link");
        (response.json::<Value>().await.unwrap(), link)
    };
    let (body, link) = page("/v2/a/tags/list").await;
    assert_eq!(body, json!({ "name": "a", "tags": ["V2", "v1", "v3"] }));
    assert_eq!(link, "");
    let (body, link) = page("/v2/a/tags/list?n=2").await;
    assert_eq!(body["tags"], json!(["V2", "v1"]));
    assert_eq!(link, "</v2/a/tags/list?n=2&last=v1>; rel=\"next\"");
    let (body, link) = page("/v2/a/tags/list?n=2&last=v1").await;
    assert_eq!((body["tags"].clone(), link.as_str()), (json!(["v3"]), ""));
    let (body, link) = page("/v2/a/tags/list?n=3").await;
    assert_eq!(
        (body["tags"].as_array().unwrap().len(), link.as_str()),
        (3, "")
    );
    let (body, link) = page("/v2/a/tags/list?n=0").await;
    assert_eq!((body["tags"].clone(), link.as_str()), (json!([]), ""));
    let (body, _) = page("/v2/a/tags/list?last=zzz").await;
    assert_eq!(body["tags"], json!([]));
    let (body, link) = page("/v2/_catalog?n=2").await;
    assert_eq!(body, json!({ "repositories": ["a", "a-b"] }));
    assert_eq!(link, "</v2/_catalog?n=2&last=a-b>; rel=\"next\"");
    let (body, link) = page("/v2/_catalog?n=2&last=a-b").await;
    assert_eq!(
        (body, link.as_str()),
        (json!({ "repositories": ["a/b"] }), "")
    );
    error(
        registry.get("/v2/a/tags/list?n=-1").await,
        400,
        "SIZE_INVALID",
    )
    .await;
}

#[tokio::test]
async fn a_mirror_serves_no_manifest_that_was_removed_from_its_repository() {
    let registry = Registry::mirror().await;
    let image = image(MediaType::OciManifest, b"{}", &[]);
    let digest = registry.blobs.insert(image.to_string());
    let (repo, link) = ("team/app".parse().unwrap(), Link::Manifest(digest));
    registry.tags.set_link(&repo, link, false).await.unwrap();
    let path = format!("/v2/team/app/manifests/{digest}");
    error(registry.get(&path).await, 404, "MANIFEST_UNKNOWN").await;
    // In another repository it stays, and who knows a digest gets its bytes.
    for other in ["other/manifests", "app/blobs"] {
        let path = format!("/v2/team/{other}/{digest}");
        assert_eq!(registry.get(&path).await.status(), 200, "{other}");
    }
    registry.tags.set_unavailable(true);
    let status = registry.get(&path).await.status();
    assert_eq!(status, 200, "nobody can be asked");
}

/// Says that a blob has 100,000 bytes and sends only `sent`; then an error, or just the end.
struct Breaking {
    sent: usize,
    with_error: bool,
}

impl BlobSource for Breaking {
    async fn stat(&self, _: &Namespace, _: Digest) -> Result<Option<u64>, SourceError> {
        Ok(Some(100_000))
    }

    async fn open(&self, _: &Namespace, _: Digest, _: Range<u64>) -> Result<BlobBody, SourceError> {
        let mut chunks = Vec::new();
        if self.sent > 0 {
            chunks.push(Ok(Bytes::from(vec![7; self.sent])));
        }
        if self.with_error {
            let reason = "the last peer left".to_string();
            chunks.push(Err(SourceError::Unavailable(reason)));
        }
        let stream = stream::iter(chunks).boxed();
        Ok(BlobBody::new(100_000, stream))
    }
}

async fn broken(sent: usize, with_error: bool) -> Result<reqwest::Response, reqwest::Error> {
    let state = PullState::new(Breaking { sent, with_error }, MemoryTags::default());
    let base = serve(pull::router(state)).await;
    let url = format!("{base}/v2/a/blobs/{}", Digest::of(b"x"));
    client().get(url).send().await
}

#[tokio::test]
async fn a_body_that_breaks_off_breaks_the_connection() {
    for with_error in [true, false] {
        // The break may overtake the head of the answer.
        let whole = match broken(60_000, with_error).await {
            Ok(response) => response.bytes().await,
            Err(error) => Err(error),
        };
        assert!(whole.is_err());
    }
}

#[tokio::test]
async fn a_blob_that_fails_before_its_first_byte_is_an_error_answer() {
    for with_error in [true, false] {
        error(broken(0, with_error).await.unwrap(), 503, "UNAVAILABLE").await;
    }
    error(broken(100_001, false).await.unwrap(), 503, "UNAVAILABLE").await;
}

#[tokio::test]
async fn a_manifest_whose_bytes_are_not_its_own_is_not_served() {
    struct Lying;
    impl BlobSource for Lying {
        async fn stat(&self, _: &Namespace, _: Digest) -> Result<Option<u64>, SourceError> {
            Ok(Some(2))
        }
        async fn open(
            &self,
            _: &Namespace,
            _: Digest,
            _: Range<u64>,
        ) -> Result<BlobBody, SourceError> {
            let stream = stream::iter([Ok(Bytes::from("{}"))]).boxed();
            Ok(BlobBody::new(2, stream))
        }
    }
    let base = serve(pull::router(PullState::new(Lying, MemoryTags::default()))).await;
    let url = format!("{base}/v2/a/manifests/{}", Digest::of(b"x"));
    error(client().get(url).send().await.unwrap(), 503, "UNAVAILABLE").await;
}
