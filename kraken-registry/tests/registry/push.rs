use bytes::Bytes;
use kraken_proto::Digest;
use kraken_registry::{Manifest, MediaType};
use reqwest::{Method, Response};
use serde_json::json;

use super::common::{Registry, descriptor, digest_of, error, header, image};

async fn finish(registry: &Registry, at: &str, digest: Digest, body: &'static str) -> Response {
    let request = registry.ask(Method::PUT, &format!("{at}?digest={digest}"));
    request
        .header("content-length", body.len())
        .body(body)
        .send()
        .await
        .unwrap()
}

async fn assert_blob(registry: &Registry, repo: &str, bytes: &'static str) {
    let path = format!("/v2/{repo}/blobs/{}", Digest::of(bytes.as_bytes()));
    assert_eq!(registry.get(&path).await.text().await.unwrap(), bytes);
    assert_eq!(registry.blobs.uploads(), 0);
}

fn assert_created(response: &Response, repo: &str, digest: Digest) {
    assert_eq!(response.status(), 201);
    assert_eq!(
        header(response, "location"),
        format!("/v2/{repo}/blobs/{digest}")
    );
    assert_eq!(
        header(response, "docker-content-digest"),
        digest.to_string()
    );
}

#[tokio::test]
async fn a_blob_is_pushed_in_every_way() {
    let registry = Registry::start().await;
    // One request.
    let digest = Digest::of(b"one request");
    let request = registry.ask(
        Method::POST,
        &format!("/v2/a/blobs/uploads/?digest={digest}"),
    );
    let response = request.body("one request").send().await.unwrap();
    assert_created(&response, "a", digest);
    assert_blob(&registry, "a", "one request").await;
    // POST, then PUT with the body.
    let at = registry.begin("a").await;
    let digest = Digest::of(b"post and put");
    assert_created(
        &finish(&registry, &at, digest, "post and put").await,
        "a",
        digest,
    );
    assert_blob(&registry, "a", "post and put").await;
    // Chunks, the last within the PUT.
    let at = registry.begin("a").await;
    let response = registry.chunk(&at, 0, "chunk 1, ").await;
    assert_eq!(
        (response.status().as_u16(), header(&response, "range")),
        (202, "0-8".into())
    );
    let response = registry
        .chunk(&header(&response, "location"), 9, "chunk 2")
        .await;
    assert_eq!(
        (response.status().as_u16(), header(&response, "range")),
        (202, "0-15".into())
    );
    let digest = Digest::of(b"chunk 1, chunk 2, end");
    let last = registry.ask(Method::PUT, &format!("{at}?digest={digest}"));
    let last = last.header("content-range", "16-20").body(", end");
    assert_created(&last.send().await.unwrap(), "a", digest);
    assert_blob(&registry, "a", "chunk 1, chunk 2, end").await;
    // The empty blob.
    let at = registry.begin("a").await;
    assert_eq!(
        finish(&registry, &at, Digest::of(b""), "").await.status(),
        201
    );
    assert_blob(&registry, "a", "").await;
}

#[tokio::test]
async fn chunks_out_of_order_are_refused_and_can_go_on() {
    let registry = Registry::start().await;
    let at = registry.begin("a").await;
    let early = registry.chunk(&at, 3, "def").await;
    assert_eq!(header(&early, "range"), "0-0");
    error(early, 416, "BLOB_UPLOAD_INVALID").await;
    registry.chunk(&at, 0, "abc").await;
    for start in [0, 4] {
        let response = registry.chunk(&at, start, "def").await;
        assert_eq!(header(&response, "range"), "0-2");
        error(response, 416, "BLOB_UPLOAD_INVALID").await;
    }
    let status = registry.get(&at).await;
    assert_eq!(
        (status.status().as_u16(), header(&status, "range")),
        (204, "0-2".into())
    );
    let digest = Digest::of(b"abcdef");
    let last = registry.ask(Method::PUT, &format!("{at}?digest={digest}"));
    let last = last
        .header("content-range", "7-9")
        .body("def")
        .send()
        .await
        .unwrap();
    error(last, 416, "BLOB_UPLOAD_INVALID").await;
    let next = header(&status, "location");
    assert_eq!(registry.chunk(&next, 3, "def").await.status(), 202);
    assert_eq!(finish(&registry, &next, digest, "").await.status(), 201);
    assert_blob(&registry, "a", "abcdef").await;
}

#[tokio::test]
async fn a_chunk_keeps_the_length_that_it_announces() {
    let registry = Registry::start().await;
    for range in ["0-9", "0-1", "nonsense"] {
        let at = registry.begin("a").await;
        let request = registry
            .ask(Method::PATCH, &at)
            .header("content-range", range);
        let response = request.body("abc").send().await.unwrap();
        assert_eq!(response.status(), 400, "{range}");
    }
}

#[tokio::test]
async fn a_wrong_digest_is_refused_in_every_way_and_nothing_stays() {
    let registry = Registry::start().await;
    let wrong = Digest::of(b"something else");
    let request = registry.ask(
        Method::POST,
        &format!("/v2/a/blobs/uploads/?digest={wrong}"),
    );
    error(
        request.body("abc").send().await.unwrap(),
        400,
        "DIGEST_INVALID",
    )
    .await;
    let at = registry.begin("a").await;
    error(
        finish(&registry, &at, wrong, "abc").await,
        400,
        "DIGEST_INVALID",
    )
    .await;
    let at = registry.begin("a").await;
    registry.chunk(&at, 0, "abc").await;
    error(
        finish(&registry, &at, wrong, "").await,
        400,
        "DIGEST_INVALID",
    )
    .await;
    let at = registry.begin("a").await;
    registry.chunk(&at, 0, "abc").await;
    let last = registry.ask(Method::PUT, &format!("{at}?digest={wrong}"));
    let last = last
        .header("content-range", "3-5")
        .body("def")
        .send()
        .await
        .unwrap();
    error(last, 400, "DIGEST_INVALID").await;
    let at = registry.begin("a").await;
    registry
        .ask(Method::PATCH, &at)
        .body("abc")
        .send()
        .await
        .unwrap();
    error(
        finish(&registry, &at, wrong, "").await,
        400,
        "DIGEST_INVALID",
    )
    .await;
    assert_eq!(registry.blobs.uploads(), 0);
    assert_eq!(
        registry
            .head(&format!("/v2/a/blobs/{wrong}"))
            .await
            .status(),
        404
    );
}

#[tokio::test]
async fn a_missing_or_malformed_digest_is_refused_and_the_upload_stays() {
    let registry = Registry::start().await;
    let at = registry.begin("a").await;
    for query in ["", "?digest=", "?digest=sha256:12", "?digest=sha512:12"] {
        let request = registry
            .ask(Method::PUT, &format!("{at}{query}"))
            .body("abc");
        error(request.send().await.unwrap(), 400, "DIGEST_INVALID").await;
    }
    let digest = Digest::of(b"abc");
    assert_eq!(finish(&registry, &at, digest, "abc").await.status(), 201);
    for query in ["?digest=sha256:12", "?mount=sha256:12"] {
        let path = format!("/v2/a/blobs/uploads/{query}");
        error(registry.post(&path).await, 400, "DIGEST_INVALID").await;
    }
}

#[tokio::test]
async fn mounting_finds_blobs_and_otherwise_falls_back() {
    let registry = Registry::start().await;
    let digest = registry.blobs.insert("layer");
    for query in [format!("mount={digest}&from=b"), format!("mount={digest}")] {
        let response = registry
            .post(&format!("/v2/a/blobs/uploads/?{query}"))
            .await;
        assert_created(&response, "a", digest);
    }
    let absent = Digest::of(b"absent");
    for from in ["&from=b", "&from=BAD", ""] {
        let response = registry
            .post(&format!("/v2/a/blobs/uploads/?mount={absent}{from}"))
            .await;
        assert_eq!(response.status(), 202);
        let at = header(&response, "location");
        assert_eq!(finish(&registry, &at, absent, "absent").await.status(), 201);
        registry.blobs.remove(absent);
    }
}

#[tokio::test]
async fn an_upload_can_be_given_up() {
    let registry = Registry::start().await;
    let at = registry.begin("a").await;
    registry.chunk(&at, 0, "abc").await;
    assert_eq!(
        registry
            .ask(Method::DELETE, &at)
            .send()
            .await
            .unwrap()
            .status(),
        204
    );
    error(registry.get(&at).await, 404, "BLOB_UPLOAD_UNKNOWN").await;
    error(
        registry.chunk(&at, 3, "abc").await,
        404,
        "BLOB_UPLOAD_UNKNOWN",
    )
    .await;
    let digest = Digest::of(b"abc");
    error(
        finish(&registry, &at, digest, "").await,
        404,
        "BLOB_UPLOAD_UNKNOWN",
    )
    .await;
    let again = registry.ask(Method::DELETE, &at).send().await.unwrap();
    error(again, 404, "BLOB_UPLOAD_UNKNOWN").await;
}

#[tokio::test]
async fn a_manifest_needs_what_it_refers_to() {
    let registry = Registry::start().await;
    let (config, layer) = (Bytes::from("config"), Bytes::from("layer"));
    let manifest = image(
        MediaType::OciManifest,
        &config,
        std::slice::from_ref(&layer),
    );
    registry.blobs.insert(config);
    let response = registry.put_manifest("a", "v1", &manifest).await;
    let message = error(response, 404, "MANIFEST_BLOB_UNKNOWN").await;
    assert!(
        message.contains(&Digest::of(&layer).to_string()),
        "{message}"
    );
    assert_eq!(registry.get("/v2/a/manifests/v1").await.status(), 404);
    registry.blobs.insert(layer);
    let response = registry.put_manifest("a", "v1", &manifest).await;
    assert_eq!(response.status(), 201);
    let digest = digest_of(&manifest);
    assert_eq!(
        header(&response, "docker-content-digest"),
        digest.to_string()
    );
    assert_eq!(
        header(&response, "location"),
        format!("/v2/a/manifests/{digest}")
    );
    let got = registry.get("/v2/a/manifests/v1").await;
    assert_eq!(got.text().await.unwrap(), manifest.to_string());
}

#[tokio::test]
async fn an_index_needs_its_children() {
    let registry = Registry::start().await;
    registry.blobs.insert("config");
    let child = image(MediaType::OciManifest, b"config", &[]);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OciIndex.as_str(),
        "manifests": [descriptor(MediaType::OciManifest.as_str(), child.to_string().as_bytes())],
    });
    let message = error(
        registry.put_manifest("a", "v1", &index).await,
        404,
        "MANIFEST_BLOB_UNKNOWN",
    )
    .await;
    let digest = digest_of(&child).to_string();
    assert!(message.contains(&digest), "{message}");
    assert_eq!(
        registry.put_manifest("a", &digest, &child).await.status(),
        201
    );
    assert_eq!(registry.put_manifest("a", "v1", &index).await.status(), 201);
    let got = registry.get("/v2/a/manifests/v1").await;
    assert_eq!(header(&got, "content-type"), MediaType::OciIndex.as_str());
}

#[tokio::test]
async fn a_subject_may_be_missing() {
    let registry = Registry::start().await;
    registry.blobs.insert("{}");
    let mut artifact = image(MediaType::OciManifest, b"{}", &[]);
    artifact["artifactType"] = json!("application/vnd.example.signature");
    artifact["subject"] = descriptor(MediaType::OciManifest.as_str(), b"absent");
    let digest = digest_of(&artifact).to_string();
    assert_eq!(
        registry
            .put_manifest("a", &digest, &artifact)
            .await
            .status(),
        201
    );
}

#[tokio::test]
async fn a_push_by_digest_can_set_tags() {
    let registry = Registry::start().await;
    registry.blobs.insert("{}");
    let manifest = image(MediaType::OciManifest, b"{}", &[]);
    let reference = format!("{}?tag=v1&tag=v2", digest_of(&manifest));
    let response = registry.put_manifest("a", &reference, &manifest).await;
    assert_eq!(response.status(), 201);
    let tags: Vec<_> = response.headers().get_all("oci-tag").iter().collect();
    assert_eq!(tags, ["v1", "v2"]);
    assert_eq!(registry.head("/v2/a/manifests/v2").await.status(), 200);
    let bad = format!("{}?tag=.v1", digest_of(&manifest));
    assert_eq!(
        registry.put_manifest("a", &bad, &manifest).await.status(),
        400
    );
    let many = "tag=x&".repeat(17);
    let many = format!("{}?{many}", digest_of(&manifest));
    assert_eq!(
        registry.put_manifest("a", &many, &manifest).await.status(),
        414
    );
}

#[tokio::test]
async fn unfit_manifests_are_refused_with_the_reason() {
    let registry = Registry::start().await;
    registry.blobs.insert("{}");
    let manifest = image(MediaType::OciManifest, b"{}", &[]);
    let put = |reference: String, kind: &'static str, body: String| {
        let request = registry.ask(Method::PUT, &format!("/v2/a/manifests/{reference}"));
        request.header("content-type", kind).body(body).send()
    };
    let other = Digest::of(b"other").to_string();
    let oci = MediaType::OciManifest.as_str();
    let wrong_digest = put(other, oci, manifest.to_string()).await.unwrap();
    error(wrong_digest, 400, "DIGEST_INVALID").await;
    let malformed = put("sha256:12".into(), oci, manifest.to_string())
        .await
        .unwrap();
    error(malformed, 400, "DIGEST_INVALID").await;
    let docker = MediaType::DockerManifest.as_str();
    let wrong_type = put("v1".into(), docker, manifest.to_string())
        .await
        .unwrap();
    error(wrong_type, 400, "MANIFEST_INVALID").await;
    let broken = put("v1".into(), oci, "{".into()).await.unwrap();
    error(broken, 400, "MANIFEST_INVALID").await;
    let schema_1 = json!({ "schemaVersion": 1, "name": "a", "tag": "v1", "fsLayers": [] });
    let schema_1 = put("v1".into(), "application/json", schema_1.to_string())
        .await
        .unwrap();
    let message = error(schema_1, 400, "MANIFEST_INVALID").await;
    assert!(message.contains("schema 1"), "{message}");
    let with_charset = "application/vnd.oci.image.manifest.v1+json; charset=utf-8";
    let fine = put("v1".into(), with_charset, manifest.to_string())
        .await
        .unwrap();
    assert_eq!(fine.status(), 201);
    let untyped = put("v2".into(), "application/json", manifest.to_string())
        .await
        .unwrap();
    assert_eq!(untyped.status(), 201);
}

#[tokio::test]
async fn manifests_are_taken_up_to_the_limit() {
    let registry = Registry::start().await;
    registry.blobs.insert("{}");
    let mut manifest = image(MediaType::OciManifest, b"{}", &[]);
    manifest["annotations"] = json!({ "pad": "" });
    let room = Manifest::MAX_LEN - manifest.to_string().len();
    manifest["annotations"]["pad"] = json!("x".repeat(room));
    assert_eq!(manifest.to_string().len(), Manifest::MAX_LEN);
    assert_eq!(
        registry.put_manifest("a", "v1", &manifest).await.status(),
        201
    );
    assert_eq!(registry.head("/v2/a/manifests/v1").await.status(), 200);
    manifest["annotations"]["pad"] = json!("x".repeat(room + 1));
    let response = registry.put_manifest("a", "v2", &manifest).await;
    let message = error(response, 413, "SIZE_INVALID").await;
    assert!(message.contains("4 MiB"), "{message}");
    // The same without a Content-Length.
    let stream = futures::stream::iter([Ok::<_, std::io::Error>(manifest.to_string())]);
    let request = registry.ask(Method::PUT, "/v2/a/manifests/v2");
    let request = request.body(reqwest::Body::wrap_stream(stream));
    error(request.send().await.unwrap(), 413, "SIZE_INVALID").await;
}

#[tokio::test]
async fn an_outage_of_the_storage_asks_for_the_bytes_and_hides_nothing_from_reads() {
    let registry = Registry::start().await;
    let digest = Digest::of(b"abc");
    registry.blobs.set_unavailable(true);
    for path in ["blobs", "manifests"] {
        let path = format!("/v2/a/{path}/{digest}");
        assert_eq!(registry.head(&path).await.status(), 404, "{path}");
        error(registry.get(&path).await, 503, "UNAVAILABLE").await;
    }
}

#[tokio::test]
async fn a_large_blob_in_one_request_is_announced_before_its_bytes() {
    let registry = Registry::start().await;
    let large = |byte| Bytes::from(vec![byte; 16 << 20]);
    let (first, second) = (Digest::of(&large(1)), Digest::of(&large(2)));
    let path = format!("/v2/a/blobs/uploads/?digest={first}");
    let posted = registry.ask(Method::POST, &path).body(large(1));
    assert_created(&posted.send().await.unwrap(), "a", first);
    let at = registry.begin("a").await;
    let put = |at: &str, digest, byte| {
        let put = registry.ask(Method::PUT, &format!("{at}?digest={digest}"));
        put.body(large(byte)).send()
    };
    assert_created(&put(&at, second, 2).await.unwrap(), "a", second);
    let length = 16 << 20;
    assert_eq!(
        registry.blobs.announced(),
        [(first, length), (second, length)]
    );
    let path = format!("/v2/a/blobs/{second}");
    assert!(registry.get(&path).await.bytes().await.unwrap() == large(2));
    assert_eq!(
        registry.blobs.uploads(),
        0,
        "the one that POST began has ended"
    );

    // Wrong bytes leave nothing but the upload that POST began, which can begin anew.
    let at = registry.begin("a").await;
    let wrong = put(&at, Digest::of(b"other"), 3).await.unwrap();
    error(wrong, 400, "DIGEST_INVALID").await;
    assert_eq!(registry.blobs.uploads(), 1);
    let third = Digest::of(&large(3));
    // What comes behind other bytes is only a part.
    let (head, tail) = (large(3).slice(..7), large(3).slice(7..));
    let patched = registry.ask(Method::PATCH, &at).body(head).send().await;
    assert_eq!(patched.unwrap().status(), 202);
    let rest = registry.ask(Method::PUT, &format!("{at}?digest={third}"));
    assert_created(&rest.body(tail).send().await.unwrap(), "a", third);
    assert_eq!(registry.blobs.announced().len(), 3);
    assert_eq!(registry.blobs.uploads(), 0);
}

#[tokio::test]
async fn an_outage_is_no_refusal() {
    let registry = Registry::start().await;
    let at = registry.begin("a").await;
    registry.blobs.set_unavailable(true);
    error(
        registry.post("/v2/a/blobs/uploads/").await,
        503,
        "UNAVAILABLE",
    )
    .await;
    error(registry.chunk(&at, 0, "abc").await, 503, "UNAVAILABLE").await;
    let manifest = image(MediaType::OciManifest, b"{}", &[]);
    error(
        registry.put_manifest("a", "v1", &manifest).await,
        503,
        "UNAVAILABLE",
    )
    .await;
    registry.blobs.set_unavailable(false);
    assert_eq!(registry.chunk(&at, 0, "abc").await.status(), 202);
}

#[tokio::test]
async fn methods_that_do_not_exist_name_those_that_do() {
    let registry = Registry::start().await;
    let response = registry.get("/v2/a/blobs/uploads/").await;
    error(response, 404, "BLOB_UPLOAD_UNKNOWN").await;
    let at = registry.begin("a").await;
    let response = registry.post(&at).await;
    assert_eq!(header(&response, "allow"), "GET, PATCH, PUT, DELETE");
    error(response, 405, "UNSUPPORTED").await;
}
