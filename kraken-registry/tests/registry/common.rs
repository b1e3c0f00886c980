use axum::Router;
use bytes::Bytes;
use kraken_proto::Digest;
use kraken_registry::MediaType;
use kraken_registry::memory::{MemoryBlobs, MemoryTags};
use kraken_registry::pull::{self, PullState};
use kraken_registry::push::{self, PushState};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A registry that takes pushes, on loopback.
pub(crate) struct Registry {
    pub(crate) base: String,
    pub(crate) blobs: MemoryBlobs,
    pub(crate) tags: MemoryTags,
    pub(crate) http: Client,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let (blobs, tags) = (MemoryBlobs::default(), MemoryTags::default());
        let pull = PullState::new(blobs.clone(), tags.clone());
        let app = push::router(PushState::new(pull, blobs.clone()));
        Self::over(app, blobs, tags).await
    }

    /// An agent's side of it: a read-only mirror.
    pub(crate) async fn mirror() -> Self {
        let (blobs, tags) = (MemoryBlobs::default(), MemoryTags::default());
        let app = pull::router(PullState::mirror(blobs.clone(), tags.clone()));
        Self::over(app, blobs, tags).await
    }

    async fn over(app: Router, blobs: MemoryBlobs, tags: MemoryTags) -> Self {
        Self {
            base: serve(app).await,
            blobs,
            tags,
            http: client(),
        }
    }

    /// A request; `at` is a path, or a URL as it came in a `Location`.
    pub(crate) fn ask(&self, method: Method, at: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{at}", self.base))
    }

    pub(crate) async fn get(&self, at: &str) -> Response {
        self.ask(Method::GET, at).send().await.unwrap()
    }

    pub(crate) async fn head(&self, at: &str) -> Response {
        self.ask(Method::HEAD, at).send().await.unwrap()
    }

    pub(crate) async fn post(&self, at: &str) -> Response {
        let request = self.ask(Method::POST, at).header("content-length", "0");
        request.send().await.unwrap()
    }

    /// Begins an upload and returns its location.
    pub(crate) async fn begin(&self, repo: &str) -> String {
        let response = self.post(&format!("/v2/{repo}/blobs/uploads/")).await;
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        assert_eq!(header(&response, "range"), "0-0");
        assert!(!header(&response, "docker-upload-uuid").is_empty());
        header(&response, "location")
    }

    /// One chunk as the specification wants it.
    pub(crate) async fn chunk(&self, at: &str, start: usize, body: &'static str) -> Response {
        let range = format!("{start}-{}", start + body.len() - 1);
        let request = self.ask(Method::PATCH, at).header("content-range", range);
        request.body(body).send().await.unwrap()
    }

    pub(crate) async fn put_manifest(
        &self,
        repo: &str,
        reference: &str,
        manifest: &Value,
    ) -> Response {
        let media_type = manifest["mediaType"].as_str().unwrap_or("").to_string();
        let request = self
            .ask(Method::PUT, &format!("/v2/{repo}/manifests/{reference}"))
            .header("content-type", media_type)
            .body(manifest.to_string());
        request.send().await.unwrap()
    }
}

/// Serves on a free port of loopback until the test's runtime ends; the base URL.
pub(crate) async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    base
}

pub(crate) fn client() -> Client {
    // The second test of a process finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().unwrap()
}

pub(crate) fn header(response: &Response, name: &str) -> String {
    let value = response.headers().get(name);
    value.map_or_else(String::new, |value| value.to_str().unwrap().to_string())
}

/// Checks that the answer is an OCI error with this status and code, and returns its message.
pub(crate) async fn error(response: Response, status: u16, code: &str) -> String {
    assert_eq!(response.status().as_u16(), status);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["errors"][0]["code"], code, "{body}");
    body["errors"][0]["message"].as_str().unwrap().to_string()
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() })
}

/// A manifest of these layers; nothing of it is in any registry yet.
pub(crate) fn image(kind: MediaType, config: &[u8], layers: &[Bytes]) -> Value {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| descriptor("layer", layer))
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": kind.as_str(),
        "config": descriptor("config", config),
        "layers": layers,
    })
}

pub(crate) fn digest_of(manifest: &Value) -> Digest {
    Digest::of(manifest.to_string().as_bytes())
}
