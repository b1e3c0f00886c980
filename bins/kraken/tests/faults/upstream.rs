//! Agents that mirror another registry: it gives each blob once, and may die then.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::future::join_all;
use http::{Method, StatusCode};
use kraken_core::Digest;
use kraken_core::net::CertAuthority;
use kraken_core::net::http::HttpBody;
use kraken_registry::access::{Access, AccessRule, May, TokenConfig};
use kraken_registry::memory::{MemoryBlobs, MemoryTags};
use kraken_registry::pull::{self, PullState};
use kraken_registry::tags::TagService as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::common::{Lab, ask, get_mirrored, kraken, pull_mirrored, random, until, within};

/// How the other registry is called, and where an image of it is.
const HOST: &str = "registry.example.com:5000";
const IMAGE: &str = "library/app";
/// Basic authentication of `reader` with `secret`.
const LOGIN: &str = "Basic cmVhZGVyOnNlY3JldA==";

/// The name and the hash of the password of that login, as `htpasswd -B` writes them.
const USER: &str = "reader:$2y$05$Pc2HHPPimLGq7QZhKLrN1O6OkNR1Kr.3uri6SsjeEUMk9BdEhh0RO";

/// The other registry: it wants a password or a token, and counts what it gives.
#[derive(Clone, Default)]
struct Upstream {
    /// Where the files of its token server are, if it has one.
    tokens: Option<PathBuf>,
    blobs: MemoryBlobs,
    tags: MemoryTags,
    given: Arc<Mutex<BTreeMap<String, usize>>>,
    away: Arc<Mutex<Option<StatusCode>>>,
    /// How long it wants to be left alone when it is away, in seconds.
    wait: Arc<Mutex<Option<u64>>>,
    /// Requests that it did not answer.
    refused: Arc<AtomicUsize>,
}

impl Upstream {
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let access = match &self.tokens {
            None => Access::this_host(),
            Some(dir) => token_access(dir, &url),
        };
        let state = PullState::new(self.blobs.clone(), self.tags.clone());
        let registry = pull::router(state.access(access));
        let upstream = self.clone();
        let gate = move |request: Request, next: Next| {
            let upstream = upstream.clone();
            async move { gate(request, next, upstream).await }
        };
        let app: Router = registry.layer(from_fn(gate));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        url
    }

    /// How often it gave what is at each path that `wanted` likes.
    fn given(&self, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, usize> {
        let mut given = self.given.lock().unwrap().clone();
        given.retain(|path, _| wanted(path));
        given
    }

    /// An image of these layers under a tag; its manifest.
    async fn tag(&self, tag: &str, layers: &[Bytes]) -> Digest {
        let describe = |bytes: &[u8]| json!({"mediaType": "application/x.layer", "digest": Digest::of(bytes), "size": bytes.len()});
        self.blobs.insert("{}");
        let described: Vec<_> = layers.iter().map(|layer| describe(layer)).collect();
        for layer in layers {
            self.blobs.insert(layer.clone());
        }
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type, "config": describe(b"{}"), "layers": described,
        });
        let digest = self.blobs.insert(manifest.to_string());
        let (repo, tag) = (IMAGE.parse().unwrap(), tag.parse().unwrap());
        self.tags.put(&repo, &tag, digest).await.unwrap();
        digest
    }
}

/// Lets `reader` read, by a token of its own server.
fn token_access(dir: &Path, url: &str) -> Access {
    std::fs::write(dir.join("users"), USER).unwrap();
    let (_, key) = CertAuthority::create().unwrap().to_pem();
    std::fs::write(dir.join("key"), key).unwrap();
    let rule = AccessRule {
        repositories: "^library/".parse().unwrap(),
        users: Some(["reader".to_owned()].into()),
        may: [May::Pull].into(),
    };
    let config = TokenConfig {
        realm: format!("{url}/v2/token"),
        service: "upstream".into(),
        keys: vec![dir.join("key")],
        lifetime: Duration::from_secs(300),
        refresh: None,
    };
    let access = Access::new(vec![rule], Some(dir.join("users"))).unwrap();
    access.tokens(config).unwrap()
}

async fn gate(request: Request, next: Next, upstream: Upstream) -> Response {
    let away = *upstream.away.lock().unwrap();
    if let Some(status) = away {
        upstream.refused.fetch_add(1, Ordering::SeqCst);
        let wait = *upstream.wait.lock().unwrap();
        let wait = wait.map(|seconds| [("retry-after", seconds.to_string())]);
        return match wait {
            Some(wait) => (status, wait).into_response(),
            None => status.into_response(),
        };
    }
    let login = request.headers().get("authorization");
    if upstream.tokens.is_none() && login.is_none_or(|login| login != LOGIN) {
        let wanted = [("www-authenticate", "Basic realm=\"upstream\"")];
        return (StatusCode::UNAUTHORIZED, wanted).into_response();
    }
    let path = request.uri().path().to_owned();
    let is_get = request.method() == Method::GET;
    let response = next.run(request).await;
    if is_get && response.status().is_success() {
        *upstream.given.lock().unwrap().entry(path).or_default() += 1;
    }
    response
}

/// Asks an agent as containerd does.
async fn get(agent: &str, what: &str) -> (StatusCode, Bytes) {
    get_mirrored(agent, (HOST, IMAGE), what).await
}

/// Pulls an image and gives its manifest's digest.
async fn pull(agent: &str, tag: &str) -> Digest {
    pull_mirrored(agent, (HOST, IMAGE), tag).await
}

/// Configures a process of a cluster that mirrors the registry at a URL.
fn mirror(url: &str, role: &str, config: &mut Value) {
    let kept = "registry.example.com_5000";
    match role {
        "origin" => {
            let login = json!({"username": "reader", "password": {"text": "secret"}});
            let registry = json!({
                "url": url, "prefix": format!("{kept}/"), "credentials": {"password": login},
            });
            let rest = config["backend"].take();
            config["backends"] = json!([
                {"namespace": format!("^{kept}/"), "backend": {"registry": registry}, "timeout": "5s"},
                {"namespace": "", "backend": rest},
            ]);
            config.as_object_mut().unwrap().remove("backend");
        }
        "build-index" => {
            config["upstream_tags"] = json!([{"repositories": format!("^{kept}/")}]);
        }
        "agent" => config["upstreams"] = json!([HOST]),
        _ => {}
    }
}

/// A cluster that mirrors the registry, and its agents.
async fn mirroring(url: &str) -> (Lab, Vec<String>) {
    const AGENTS: usize = 20;
    let lab = Lab::start_with(2, AGENTS, |role, config| mirror(url, role, config)).await;
    let agents: Vec<_> = (1..=AGENTS)
        .map(|it| lab.host(&format!("agent-{it}")))
        .collect();
    (lab, agents)
}

/// Twenty agents pull at once, and each blob is asked for once.
async fn all_at_once(upstream: &Upstream, agents: &[String], image: Digest) {
    let pulled = join_all(agents.iter().map(|agent| pull(agent, "v1"))).await;
    assert!(pulled.iter().all(|it| *it == image));
    let given = upstream.given(|path| path.contains("sha256:"));
    assert_eq!(
        given.len(),
        4,
        "two layers, a configuration, a manifest: {given:?}"
    );
    assert!(given.values().all(|times| *times == 1), "{given:?}");
}

async fn mirrors() {
    let upstream = Upstream::default();
    let layers = [random(6 << 20, 1), random(300_000, 2)];
    let first = upstream.tag("v1", &layers).await;
    let url = upstream.start().await;
    let (lab, agents) = mirroring(&url).await;
    all_at_once(&upstream, &agents, first).await;
    // The tag moves, and the next pull sees it.
    let second = upstream.tag("v1", &layers[..1]).await;
    assert_eq!(pull(&agents[0], "v1").await, second);
    for status in [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::SERVICE_UNAVAILABLE,
    ] {
        *upstream.away.lock().unwrap() = Some(status);
        assert_eq!(
            pull(&agents[1], "v1").await,
            second,
            "what is known is served"
        );
        let url = format!("http://{}/v2/{IMAGE}/manifests/v1?ns={HOST}", agents[1]);
        let told = ask(Method::HEAD, &url, HttpBody::Empty).await;
        assert_eq!(told.header("kraken-tag-stale"), Some("true"));
        // The runtime goes to the registry itself for what is not.
        let (status, _) = get(&agents[1], "manifests/v2").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    let stale = lab.counter("agent-2", "kraken_stale_tags_total").await;
    assert_eq!(stale, Some(4));
    assert_eq!(
        lab.counter("proxy", "kraken_stale_tags_total").await,
        Some(0)
    );
    *upstream.away.lock().unwrap() = None;
    preheated(&lab, &upstream, &agents[3..]).await;
    let (status, _) = get(&agents[2], "manifests/v3").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) = get(&agents[2], &format!("referrers/{first}")).await;
    assert_eq!(
        status,
        StatusCode::NOT_FOUND,
        "the registry itself knows them"
    );
    // A host that is no upstream of these agents' names nothing of theirs.
    let url = format!(
        "http://{}/v2/{IMAGE}/manifests/v1?ns=other.example.com",
        agents[3]
    );
    let other = ask(Method::GET, &url, HttpBody::Empty).await;
    assert_eq!(other.status(), StatusCode::NOT_FOUND);
}

/// What the origins were told to fetch is there when the other registry is away.
async fn preheated(lab: &Lab, upstream: &Upstream, agents: &[String]) {
    let layer = random(2 << 20, 9);
    let image = upstream.tag("later", std::slice::from_ref(&layer)).await;
    let name = format!("registry.example.com_5000/{IMAGE}:later");
    let proxy = lab.host("proxy");
    // The registry is left alone for a while after it was away.
    let said = until("the registry is asked again", async || {
        let said = kraken(&["preheat", &name, "--proxy", &proxy]).await;
        said.status.success().then_some(said)
    })
    .await;
    assert!(said.stdout.contains("3 blobs"), "{said:?}");
    let path = format!("/v2/{IMAGE}/blobs/{}", Digest::of(&layer));
    until("the origins have fetched it", async || {
        upstream
            .given
            .lock()
            .unwrap()
            .contains_key(&path)
            .then_some(())
    })
    .await;
    *upstream.away.lock().unwrap() = Some(StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(pull(&agents[0], "later").await, image);
    // And onto hosts, of which one does not exist.
    let hosts = format!("{},{},127.0.0.1:1", agents[1], agents[2]);
    let ask = |wait: &'static str, at_most: &'static str| {
        let arguments = [
            "preheat",
            &name,
            "--proxy",
            &proxy,
            "--hosts",
            &hosts,
            "--wait",
            wait,
            "--json",
            "--at-most",
            at_most,
        ];
        let arguments: Vec<_> = arguments.into_iter().map(str::to_owned).collect();
        async move {
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            kraken(&arguments).await
        }
    };
    let most = ask("60", "1GB/s").await;
    let progress: Value = serde_json::from_str(&most.stdout).unwrap_or_default();
    assert!(most.status.success() && progress["ready"] == 2, "{most:?}");
    // What is there takes no time: otherwise this would take weeks.
    let all = ask("100", "1B/s").await;
    let progress: Value = serde_json::from_str(&all.stdout).unwrap_or_default();
    assert!(
        !all.status.success() && progress["ready"] == 2 && progress["failed"] == 1,
        "{all:?}"
    );
    let digest = format!("registry.example.com_5000/{IMAGE}@{image}");
    let by_digest = kraken(&["preheat", &digest, "--proxy", &proxy]).await;
    assert!(by_digest.stdout.contains("3 blobs"), "{by_digest:?}");
    let unknown = kraken(&["preheat", "library/nothing:v1", "--proxy", &proxy]).await;
    assert!(
        !unknown.status.success() && unknown.stderr.contains("does not exist"),
        "{unknown:?}"
    );
    *upstream.away.lock().unwrap() = None;
}

/// Only one request of all origins reaches a registry that wants to be left alone, whatever is pulled.
async fn left_alone() {
    let upstream = Upstream::default();
    let layer = random(1000, 3);
    let tags: Vec<_> = (0..8).map(|it| format!("v{it}")).collect();
    for tag in &tags {
        upstream.tag(tag, std::slice::from_ref(&layer)).await;
    }
    let url = upstream.start().await;
    let lab = Lab::start_with(3, 1, |role, config| mirror(&url, role, config)).await;
    let agent = lab.host("agent-1");
    for tag in &tags {
        pull(&agent, tag).await;
    }
    *upstream.wait.lock().unwrap() = Some(600);
    *upstream.away.lock().unwrap() = Some(StatusCode::TOO_MANY_REQUESTS);
    for tag in &tags {
        pull(&agent, tag).await;
    }
    assert_eq!(upstream.refused.load(Ordering::SeqCst), 1);
    let stale = lab.counter("agent-1", "kraken_stale_tags_total").await;
    assert_eq!(stale, Some(tags.len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_limits_its_clients_is_left_alone() {
    within(100, "the pulls past a registry", left_alone()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_agents_mirror_a_registry_that_gives_each_blob_once() {
    within(150, "the pulls of twenty agents", mirrors()).await;
}

/// The same with a token server: its tokens are asked for by the origins, and agents need none.
async fn mirrors_by_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Upstream {
        tokens: Some(dir.path().to_path_buf()),
        ..Upstream::default()
    };
    let layers = [random(6 << 20, 1), random(300_000, 2)];
    let image = upstream.tag("v1", &layers).await;
    let url = upstream.start().await;
    let (_lab, agents) = mirroring(&url).await;
    all_at_once(&upstream, &agents, image).await;
    let tokens = upstream.given(|path| path == "/v2/token");
    let count: usize = tokens.values().sum();
    assert!((1..=4).contains(&count), "{count} tokens for two origins");
    *upstream.away.lock().unwrap() = Some(StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        pull(&agents[0], "v1").await,
        image,
        "what is known is served"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_tokens_is_mirrored_as_well() {
    within(150, "the pulls by tokens", mirrors_by_tokens()).await;
}
