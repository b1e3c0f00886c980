//! One trace from the pull at an agent to the backend, as a collector of OpenTelemetry gets it from the
//! processes of a cluster.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use bytes::Bytes;
use http::{Request, StatusCode};
use kraken::client::Registry;
use kraken_core::net::http::{HttpBody, HttpClient};
use kraken_core::storage::{Backend as _, OpendalBackend};
use kraken_core::{Digest, Namespace};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as Any};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::common::{Lab, REPOSITORY, free_addr, pull, push, random, until, within};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What a client says of itself; no process is to believe that its trace is collected.
const STRANGER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const STRANGERS_TRACE: [u8; 16] = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes();

/// A span, and the process that it is of.
#[derive(Debug, Clone)]
struct Told {
    service: String,
    span: Span,
}

impl Told {
    fn text(&self, key: &str) -> String {
        text(&self.span.attributes, key)
    }

    fn number(&self, key: &str) -> Option<i64> {
        match value(&self.span.attributes, key)? {
            Any::IntValue(number) => Some(*number),
            other => panic!("{key}: {other:?}"),
        }
    }
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Any> {
    let found = attributes.iter().find(|it| it.key == key)?;
    found.value.as_ref()?.value.as_ref()
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Some(Any::StringValue(text)) => text.clone(),
        None => String::new(),
        Some(other) => panic!("{key}: {other:?}"),
    }
}

/// Takes what processes send, and keeps it.
#[derive(Debug, Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Told>>>,
    bodies: Arc<Mutex<Vec<Bytes>>>,
}

impl Collector {
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new()
            .route("/v1/traces", post(take))
            .with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (collector, url)
    }

    fn spans(&self) -> Vec<Told> {
        self.spans.lock().unwrap().clone()
    }

    /// The span of this name that is a child of another one, once it has come.
    async fn child(&self, parent: &Told, (service, name): (&str, &str)) -> Told {
        let what = format!("{name} of {service} under {}", parent.span.name);
        let found = until(&what, async || {
            let spans = self.spans().into_iter();
            let mut fits = spans.filter(|it| {
                it.span.parent_span_id == parent.span.span_id
                    && it.service == service
                    && it.span.name == name
            });
            fits.next()
        })
        .await;
        assert_eq!(found.span.trace_id, parent.span.trace_id, "{found:?}");
        found
    }

    /// The span with which a trace began at a process, once it has come.
    async fn root(&self, service: &str, name: &str, reference: &str) -> Told {
        let what = format!("{name} of {service} for {reference}");
        until(&what, async || {
            let spans = self.spans().into_iter();
            let mut fits = spans.filter(|it| {
                it.span.parent_span_id.is_empty()
                    && it.service == service
                    && it.span.name == name
                    && it.text("kraken.reference") == reference
            });
            fits.next()
        })
        .await
    }
}

async fn take(State(collector): State<Collector>, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(body.clone()).unwrap();
    collector.bodies.lock().unwrap().push(body);
    let mut spans = collector.spans.lock().unwrap();
    for of_process in request.resource_spans {
        let resource = of_process.resource.unwrap_or_default();
        let service = text(&resource.attributes, "service.name");
        let all = of_process.scope_spans.into_iter().flat_map(|it| it.spans);
        spans.extend(all.map(|span| Told {
            service: service.clone(),
            span,
        }));
    }
    StatusCode::OK
}

/// A stranger's request with a login and a query that nobody else is to see.
async fn get(host: &str, path: &str) -> Bytes {
    let url = format!("http://{host}{path}?token=hunter2");
    let request = Request::get(url)
        .header("traceparent", STRANGER)
        .header("authorization", "Basic aHVudGVyMjpodW50ZXIy")
        .body(HttpBody::Empty)
        .unwrap();
    let answer = HttpClient::new(None).unwrap().send(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    answer.bytes(64 << 20).await.unwrap()
}

/// Puts a layer into the backend alone, pushes an image of it, and gives the layer's and the image's digest.
async fn push_image(lab: &Lab, layer: &Bytes) -> (Digest, Digest) {
    let disk = OpendalBackend::local_disk(lab.path("backend")).unwrap();
    let namespace: Namespace = REPOSITORY.parse().unwrap();
    let digest = Digest::of(layer);
    let body = layer.clone();
    let chunks = futures::stream::iter([Ok(body)]);
    let written = disk.write(&namespace, digest, layer.len() as u64, Box::pin(chunks));
    written.await.unwrap();
    let config = Bytes::from_static(b"{}");
    let config_digest = push(&lab.host("proxy"), &config).await;
    let blob = |kind: &str, digest: Digest, size: usize| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest.to_string(), "size": size});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": blob("config.v1+json", config_digest, config.len()),
        "layers": [blob("layer.v1.tar", digest, layer.len())],
    });
    let manifest = Bytes::from(manifest.to_string());
    let registry = Registry::new(&lab.host("proxy")).unwrap();
    let pushed = registry.push_manifest(REPOSITORY, "v1", MANIFEST, manifest.clone());
    pushed.await.unwrap();
    (digest, Digest::of(&manifest))
}

fn traced(url: &str) -> impl Fn(&str, &mut Value) {
    let tracing = json!({"endpoint": url, "sample": "100%"});
    move |_, config| config["tracing"] = tracing.clone()
}

/// The pull of a tag: agent, build-index.
async fn check_manifest(collector: &Collector, manifest: Digest) {
    let pull = collector.root("kraken-agent", "GET manifests", "v1").await;
    assert_eq!(pull.text("kraken.repository"), REPOSITORY);
    assert_eq!(pull.text("kraken.digest"), manifest.to_string());
    assert_eq!(pull.number("http.response.status_code"), Some(200));
    assert_ne!(pull.span.trace_id, STRANGERS_TRACE);
    let [link] = &pull.span.links[..] else {
        panic!("the stranger's trace is linked: {pull:?}")
    };
    assert_eq!(link.trace_id, STRANGERS_TRACE);
    let lookup = collector.child(&pull, ("kraken-agent", "tag lookup")).await;
    let answer = collector.child(&lookup, ("kraken-build-index", "GET tags"));
    let answer = answer.await;
    assert_eq!(answer.number("http.response.status_code"), Some(200));
}

/// The pull of a blob that only the backend has: agent, tracker, origin, backend.
async fn check_blob(collector: &Collector, layer: Digest, length: i64) {
    let (agent, tracker, origin) = ("kraken-agent", "kraken-tracker", "kraken-origin");
    let name = layer.to_string();
    let pull = collector.root(agent, "GET blobs", &name).await;
    let asked = collector.child(&pull, (agent, "metainfo")).await;
    let at_tracker = collector.child(&asked, (tracker, "GET metainfo")).await;
    let asked = (tracker, "metainfo from an origin");
    let asked = collector.child(&at_tracker, asked).await;
    let at_origin = collector.child(&asked, (origin, "GET metainfo")).await;
    let coming = collector.child(&at_origin, (origin, "take in")).await;
    let read = collector.child(&coming, (origin, "backend read")).await;
    assert_eq!(read.number("kraken.bytes"), Some(length));
    assert_eq!(read.text("kraken.digest"), name);
    let download = collector.child(&pull, (agent, "download")).await;
    assert_eq!(download.number("kraken.bytes.from_origins"), Some(length));
    assert_eq!(download.number("kraken.bytes.from_agents"), Some(0));
    let announce = collector.child(&download, (agent, "announce")).await;
    collector.child(&announce, (tracker, "POST announce")).await;
}

/// The push of a manifest: proxy, origin, and later the backend.
async fn check_push(collector: &Collector, manifest: Digest) {
    let push = collector.root("kraken-proxy", "PUT manifests", "v1").await;
    let spans = async || {
        let of_push = |it: &Told| it.span.trace_id == push.span.trace_id;
        let named = |it: &Told| {
            it.span.name == "write-back" && it.text("kraken.digest") == manifest.to_string()
        };
        let written = |it: &Told| it.text("kraken.outcome") == "written";
        let spans = collector.spans().into_iter().filter(of_push);
        spans.filter(named).find(written)
    };
    let write_back = until("the write-back is told", spans).await;
    let parent = write_back.span.parent_span_id;
    let parent = until("what it was queued by is told", async || {
        let mut spans = collector.spans().into_iter();
        spans.find(|it| it.span.span_id == parent)
    });
    assert_eq!(parent.await.service, "kraken-origin");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_one_trace_from_the_agent_to_the_backend() {
    within(120, "the trace", async {
        let (collector, url) = Collector::start().await;
        let lab = Lab::start_with(2, 1, traced(&url)).await;
        let layer = random(3 << 20, 4);
        let (digest, manifest) = push_image(&lab, &layer).await;
        let agent = lab.host("agent-1");
        get(&agent, &format!("/v2/{REPOSITORY}/manifests/v1")).await;
        let bytes = get(&agent, &format!("/v2/{REPOSITORY}/blobs/{digest}")).await;
        assert!(bytes == layer);

        check_manifest(&collector, manifest).await;
        check_blob(&collector, digest, 3 << 20).await;
        check_push(&collector, manifest).await;
        let bodies = collector.bodies.lock().unwrap();
        for secret in [&b"hunter2"[..], b"aHVudGVyMjpodW50ZXIy", b"uthorization"] {
            let has = |body: &Bytes| body.windows(secret.len()).any(|it| it == secret);
            assert!(!bodies.iter().any(has), "a secret is in a span");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_of_requests_that_no_configuration_wants_traced() {
    within(120, "the pulls", async {
        let (collector, url) = Collector::start().await;
        let lab = Lab::start_with(1, 2, |role, config| {
            let is_first = config["store"].to_string().contains("agent-1");
            match role {
                "agent" if is_first => {}
                "agent" => config["tracing"] = json!({"endpoint": url, "sample": 0}),
                _ => traced(&url)(role, config),
            }
        })
        .await;
        let layer = random(1 << 20, 4);
        let (digest, _) = push_image(&lab, &layer).await;
        let blob = format!("/v2/{REPOSITORY}/blobs/{digest}");
        for agent in ["agent-1", "agent-2"] {
            let agent = lab.host(agent);
            get(&agent, &format!("/v2/{REPOSITORY}/manifests/v1")).await;
            assert!(get(&agent, &blob).await == layer);
        }
        assert!(get(&lab.host("proxy"), &blob).await == layer);

        // What the origin had to tell of the pulls before has come with this, or earlier.
        let name = digest.to_string();
        let last = collector.root("kraken-proxy", "GET blobs", &name).await;
        collector.child(&last, ("kraken-origin", "GET blobs")).await;
        let spans = collector.spans();
        let of_proxy =
            |it: &&Told| it.service == "kraken-proxy" && it.span.parent_span_id.is_empty();
        let begun: Vec<_> = spans
            .iter()
            .filter(of_proxy)
            .map(|it| &it.span.trace_id)
            .collect();
        for told in &spans {
            assert!(begun.contains(&&told.span.trace_id), "{told:?}");
            assert_ne!(told.span.trace_id, STRANGERS_TRACE);
        }
        for agent in ["agent-1", "agent-2"] {
            for result in ["sent", "dropped", "failed"] {
                let name = format!("kraken_trace_spans_total{{result=\"{result}\"}}");
                assert_eq!(lab.counter(agent, &name).await, Some(0), "{agent} {result}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_do_not_wait_for_a_collector_that_is_away_or_silent() {
    within(120, "the pulls", async {
        let away = format!("http://{}", free_addr());
        // Connections are accepted by the kernel, and nobody reads them.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let silent_url = format!("http://{}", silent.local_addr().unwrap());
        let lab = Lab::start_with(1, 1, |role, config| match role {
            "origin" => traced(&silent_url)(role, config),
            _ => traced(&away)(role, config),
        })
        .await;
        for seed in 0..5 {
            let bytes = random(1 << 20, seed);
            let digest = push(&lab.host("proxy"), &bytes).await;
            assert_eq!(pull(&lab.host("agent-1"), digest).await, 1 << 20);
        }
        until("what the collector does not take is counted", async || {
            let name = "kraken_trace_spans_total{result=\"failed\"}";
            (lab.counter("agent-1", name).await? > 0).then_some(())
        })
        .await;
    })
    .await;
}

/// A first port such that those which `kraken dev` takes for one agent and one origin are free, below all
/// that other tests look for.
fn free_base() -> u16 {
    let is_free = |port: u16| {
        let addr = ("127.0.0.1", port);
        std::net::TcpListener::bind(addr).is_ok() && std::net::UdpSocket::bind(addr).is_ok()
    };
    let offsets = [0, 1, 2, 6, 10, 11, 300, 301];
    let bases = (8000..9600).step_by(20);
    let mut fit = bases.filter(|base| offsets.iter().all(|offset| is_free(base + offset)));
    fit.next().expect("ports between 8000 and 9901 are free")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_to_try_tells_all_as_one_service() {
    within(120, "the trace", async {
        let (collector, url) = Collector::start().await;
        let dir = tempfile::tempdir().unwrap();
        let base = free_base();
        let _dev = tokio::process::Command::new(env!("CARGO_BIN_EXE_kraken"))
            .args(["dev", "--agents", "1", "--origins", "1", "--traces", &url])
            .args(["--base-port", &base.to_string(), "--dir"])
            .arg(dir.path())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let host = |offset: u16| format!("127.0.0.1:{}", base + offset);
        let (proxy, agent) = (host(2), host(10));
        until("it is up", async || {
            let answer = reqwest::get(format!("http://{agent}/readiness")).await;
            answer.ok().filter(|it| it.status().is_success())
        })
        .await;
        let digest = push(&proxy, &random(1 << 20, 4)).await;
        assert_eq!(pull(&agent, digest).await, 1 << 20);
        let name = digest.to_string();
        let of = |span| ("kraken-dev", span);
        let download = until("the download is told", async || {
            let mut spans = collector.spans().into_iter();
            spans.find(|it| it.span.name == "download" && it.text("kraken.digest") == name)
        })
        .await;
        assert_eq!(download.service, "kraken-dev");
        let announce = collector.child(&download, of("announce")).await;
        collector.child(&announce, of("POST announce")).await;
    })
    .await;
}
