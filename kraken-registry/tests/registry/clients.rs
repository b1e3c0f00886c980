//! The requests of real clients, as they were seen on the wire.

use bytes::Bytes;
use kraken_proto::Digest;
use kraken_registry::MediaType;
use reqwest::{Body, Method, RequestBuilder, Response};
use serde_json::Value;

use super::common::{Registry, digest_of, header, image};

const REPO: &str = "library/busybox";

struct Image {
    config: Bytes,
    layers: Vec<Bytes>,
    manifest: Value,
}

impl Image {
    fn of(kind: MediaType) -> Self {
        let config = Bytes::from("{\"architecture\":\"amd64\"}");
        let layers = vec![Bytes::from(vec![1; 300_000]), Bytes::from(vec![2; 5])];
        let manifest = image(kind, &config, &layers);
        Self {
            config,
            layers,
            manifest,
        }
    }

    fn blobs(&self) -> impl Iterator<Item = &Bytes> {
        self.layers.iter().chain([&self.config])
    }

    fn digest(&self) -> Digest {
        digest_of(&self.manifest)
    }
}

fn blob_path(bytes: &[u8]) -> String {
    format!("/v2/{REPO}/blobs/{}", Digest::of(bytes))
}

/// In chunks of unknown total length, as clients send what they compress on the fly.
fn chunked(bytes: &Bytes) -> Body {
    let chunks: Vec<_> = bytes.chunks(64 << 10).map(Bytes::copy_from_slice).collect();
    Body::wrap_stream(futures::stream::iter(
        chunks.into_iter().map(Ok::<_, std::io::Error>),
    ))
}

/// One connection for each request, and gzip accepted: as skopeo, podman and dockerd do.
fn closing(request: RequestBuilder) -> RequestBuilder {
    request
        .header("connection", "close")
        .header("accept-encoding", "gzip")
}

async fn send(request: RequestBuilder) -> Response {
    request.send().await.unwrap()
}

async fn assert_identity(response: Response, bytes: &Bytes) {
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "content-encoding"), "");
    assert_eq!(header(&response, "content-length"), bytes.len().to_string());
    assert_eq!(
        header(&response, "content-type"),
        "application/octet-stream"
    );
    assert_eq!(response.bytes().await.unwrap(), bytes);
}

#[tokio::test]
async fn skopeo_podman_and_buildah() {
    let registry = Registry::start().await;
    let image = Image::of(MediaType::OciManifest);
    let ask = |method: Method, at: &str| closing(registry.ask(method, at));
    assert_eq!(send(ask(Method::GET, "/v2/")).await.status(), 200);
    for (turn, blob) in image.blobs().enumerate() {
        assert_eq!(
            send(ask(Method::HEAD, &blob_path(blob))).await.status(),
            404
        );
        let begin = ask(Method::POST, &format!("/v2/{REPO}/blobs/uploads/"));
        let begun = send(begin.header("content-length", "0")).await;
        assert_eq!(
            (begun.status().as_u16(), header(&begun, "range")),
            (202, "0-0".into())
        );
        assert!(!header(&begun, "docker-upload-uuid").is_empty());
        let body = if turn == 0 {
            chunked(blob)
        } else {
            Body::from(blob.clone())
        };
        let patch = ask(Method::PATCH, &header(&begun, "location"));
        let patched = send(
            patch
                .header("content-type", "application/octet-stream")
                .body(body),
        )
        .await;
        assert_eq!(patched.status(), 202);
        assert_eq!(header(&patched, "range"), format!("0-{}", blob.len() - 1));
        let digest = Digest::of(blob);
        let escaped = digest.to_string().replace(':', "%3A");
        let put = format!("{}?digest={escaped}", header(&patched, "location"));
        let put = send(ask(Method::PUT, &put).header("content-length", "0")).await;
        assert_eq!(put.status(), 201);
        assert_eq!(header(&put, "location"), blob_path(blob));
        assert_eq!(header(&put, "docker-content-digest"), digest.to_string());
    }
    assert_eq!(
        registry
            .put_manifest(REPO, "v1", &image.manifest)
            .await
            .status(),
        201
    );

    let mut manifest = ask(Method::GET, &format!("/v2/{REPO}/manifests/v1"));
    for accept in MediaType::ALL {
        manifest = manifest.header("accept", accept.as_str());
    }
    let manifest = send(manifest).await;
    assert_eq!(
        header(&manifest, "content-type"),
        MediaType::OciManifest.as_str()
    );
    assert_eq!(manifest.text().await.unwrap(), image.manifest.to_string());
    for blob in image.blobs() {
        assert_identity(send(ask(Method::GET, &blob_path(blob))).await, blob).await;
    }

    let mount = format!(
        "/v2/other/blobs/uploads/?from={REPO}&mount={}",
        Digest::of(&image.config)
    );
    let mounted = send(ask(Method::POST, &mount).header("content-length", "0")).await;
    assert_eq!(mounted.status(), 201);
    let tags = send(ask(Method::GET, &format!("/v2/{REPO}/tags/list"))).await;
    assert_eq!(tags.json::<Value>().await.unwrap()["tags"][0], "v1");
}

#[tokio::test]
async fn containerd() {
    let registry = Registry::start().await;
    let image = Image::of(MediaType::DockerManifest);
    for blob in image.blobs() {
        assert_eq!(
            registry
                .head(&format!("{}?ns=docker.io", blob_path(blob)))
                .await
                .status(),
            404
        );
        let begun = registry
            .post(&format!("/v2/{REPO}/blobs/uploads/?ns=docker.io"))
            .await;
        let put = format!("{}?digest={}", header(&begun, "location"), Digest::of(blob));
        let put = send(registry.ask(Method::PUT, &put).body(blob.clone())).await;
        assert_eq!(put.status(), 201);
    }
    let tagged = format!("/v2/{REPO}/manifests/v1?ns=docker.io");
    assert_eq!(registry.head(&tagged).await.status(), 404);
    assert_eq!(
        registry
            .put_manifest(REPO, "v1", &image.manifest)
            .await
            .status(),
        201
    );

    let accept = "application/vnd.docker.distribution.manifest.v2+json, */*";
    let head = send(registry.ask(Method::HEAD, &tagged).header("accept", accept)).await;
    assert_eq!(head.status(), 200);
    assert_eq!(
        header(&head, "oci-namespace"),
        "",
        "it is no mirror of that"
    );
    assert_eq!(
        header(&head, "docker-content-digest"),
        image.digest().to_string()
    );
    assert_eq!(
        header(&head, "content-type"),
        MediaType::DockerManifest.as_str()
    );
    assert_eq!(
        header(&head, "content-length"),
        image.manifest.to_string().len().to_string()
    );
    let manifest = format!("/v2/{REPO}/manifests/{}?ns=docker.io", image.digest());
    let manifest = send(
        registry
            .ask(Method::GET, &manifest)
            .header("accept", accept),
    )
    .await;
    assert_eq!(manifest.text().await.unwrap(), image.manifest.to_string());
    for blob in image.blobs() {
        let path = format!("{}?ns=docker.io", blob_path(blob));
        let get = registry
            .ask(Method::GET, &path)
            .header("accept-encoding", "gzip");
        assert_identity(send(get).await, blob).await;
    }
    // After a body that was cut, on a new connection.
    let layer = &image.layers[0];
    let rest = registry.ask(Method::GET, &format!("{}?ns=docker.io", blob_path(layer)));
    let rest = send(rest.header("range", "bytes=200000-")).await;
    assert_eq!(rest.status(), 206);
    assert_eq!(header(&rest, "content-range"), "bytes 200000-299999/300000");
    assert_eq!(rest.bytes().await.unwrap(), layer.slice(200_000..));
    let odd = registry
        .head(&format!("{}?ns=a%0d%0ab", blob_path(layer)))
        .await;
    assert_eq!(
        (odd.status().as_u16(), header(&odd, "oci-namespace")),
        (200, String::new())
    );
}

#[tokio::test]
async fn dockerd() {
    let registry = Registry::start().await;
    let image = Image::of(MediaType::DockerManifest);
    let ask = |method: Method, at: &str| closing(registry.ask(method, at));
    for blob in image.blobs() {
        let begun = send(
            ask(Method::POST, &format!("/v2/{REPO}/blobs/uploads/")).header("content-length", "0"),
        )
        .await;
        // Neither Content-Type nor Content-Range nor a length.
        let patch = ask(Method::PATCH, &header(&begun, "location")).body(chunked(blob));
        let patched = send(patch).await;
        assert_eq!(patched.status(), 202);
        let put = format!(
            "{}?digest={}",
            header(&patched, "location"),
            Digest::of(blob)
        );
        let put = send(ask(Method::PUT, &put).header("content-length", "0")).await;
        assert_eq!(put.status(), 201);
        // It reads its own write at once.
        let head = send(ask(Method::HEAD, &blob_path(blob))).await;
        assert_eq!(head.status(), 200);
        assert_eq!(header(&head, "content-length"), blob.len().to_string());
        assert_eq!(
            header(&head, "docker-content-digest"),
            Digest::of(blob).to_string()
        );
    }
    assert_eq!(
        registry
            .put_manifest(REPO, "v1", &image.manifest)
            .await
            .status(),
        201
    );
    assert_eq!(
        registry
            .put_manifest(REPO, "v1", &image.manifest)
            .await
            .status(),
        201
    );
    let head = send(ask(Method::HEAD, &format!("/v2/{REPO}/manifests/v1"))).await;
    let digest = header(&head, "docker-content-digest");
    let get = send(ask(Method::GET, &format!("/v2/{REPO}/manifests/{digest}"))).await;
    assert_eq!(get.text().await.unwrap(), image.manifest.to_string());
}
