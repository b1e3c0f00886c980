//! Requests that nobody in their right mind sends: none makes the registry panic or blame itself.

use axum::Router;
use axum::body::Body;
use http::{Method, Request};
use kraken_proto::Digest;
use kraken_registry::memory::{MemoryBlobs, MemoryTags};
use kraken_registry::pull::{self, PullState};
use kraken_registry::push::{self, PushState};
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt as _;

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A part of a path, mostly such as there are.
fn part() -> impl Strategy<Value = String> {
    let digest = Digest::of(b"{}").to_string();
    let known = prop::sample::select(vec![
        "a".to_owned(),
        "team".into(),
        "blobs".into(),
        "uploads".into(),
        "manifests".into(),
        "tags".into(),
        "list".into(),
        "referrers".into(),
        "_catalog".into(),
        "v1".into(),
        String::new(),
        "..".into(),
        "%2e%2e".into(),
        "%2F".into(),
        "%00".into(),
        "%".into(),
        "memory:0%2F1".into(),
        "~bWVtb3J5OjAvMQ".into(),
        digest.clone(),
        digest.replace(':', "%3A"),
        "sha256:00".into(),
        "sha512:00".into(),
        "x".repeat(300),
    ]);
    prop_oneof![8 => known, 1 => "[ -~]{0,20}"]
}

fn query() -> impl Strategy<Value = String> {
    let digest = Digest::of(b"{}");
    let known = prop::sample::select(vec![
        String::new(),
        format!("?digest={digest}"),
        "?digest=".into(),
        "?digest=sha256:zz".into(),
        format!("?mount={digest}&from=a"),
        format!("?mount={digest}&from=%00"),
        "?n=0".into(),
        "?n=18446744073709551616".into(),
        "?n=-1&last=%ff".into(),
        "?n=1&last=a".into(),
        format!("?artifactType=%20&last={}", digest.hex()),
        "?last=zz".into(),
        "?ns=docker.io".into(),
        "?ns=%0d%0a".into(),
        "?tag=a&tag=.b".into(),
        "?digest-algorithm=sha512".into(),
    ]);
    prop_oneof![8 => known, 1 => "\\?[a-z]{1,9}=[!-~]{0,12}"]
}

/// A header and what it says.
fn header() -> impl Strategy<Value = (&'static str, String)> {
    let names = prop::sample::select(vec![
        "range",
        "content-range",
        "if-none-match",
        "if-range",
        "content-type",
        "content-length",
        "authorization",
        "kraken-keep",
        "accept",
    ]);
    let values = prop_oneof![
        prop::sample::select(vec![
            "bytes=0-".to_owned(),
            "bytes=-0".into(),
            "bytes=5-2".into(),
            "bytes=0-1,3-4".into(),
            "bytes=18446744073709551615-".into(),
            "0-4".into(),
            "4-0".into(),
            "bytes 0-4/5".into(),
            "18446744073709551614-18446744073709551615".into(),
            "*".into(),
            IMAGE.into(),
            INDEX.into(),
            "Basic YTpi".into(),
            "Bearer x".into(),
            "true".into(),
            "5".into(),
        ]),
        "[ -~]{0,16}",
    ];
    (names, values)
}

/// A manifest, or what looks a little like one.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let descriptor = json!({"mediaType": "x", "digest": Digest::of(b"{}"), "size": 2});
    let fields = vec![
        ("schemaVersion", json!(2)),
        ("schemaVersion", json!(-1)),
        ("mediaType", json!(IMAGE)),
        ("mediaType", json!(INDEX)),
        ("mediaType", json!(7)),
        ("config", descriptor.clone()),
        ("config", json!([])),
        ("layers", json!([descriptor])),
        ("layers", json!([{"digest": "sha256:zz"}])),
        ("manifests", json!([descriptor])),
        ("manifests", json!("none")),
        ("subject", descriptor.clone()),
        ("subject", json!({"digest": 1})),
        ("artifactType", json!("")),
        ("annotations", json!([1])),
        ("annotations", json!({"a": 1})),
    ];
    let document = prop::collection::vec(prop::sample::select(fields), 0..7).prop_map(|fields| {
        let fields = fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        Value::Object(fields.collect()).to_string().into_bytes()
    });
    prop_oneof![
        4 => document,
        1 => Just(b"{}".to_vec()),
        1 => Just(vec![b'['; 100_000]),
        1 => prop::collection::vec(any::<u8>(), 0..64),
    ]
}

#[derive(Debug, Clone)]
struct Odd {
    method: Method,
    target: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn odd() -> impl Strategy<Value = Odd> {
    let methods = [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW",
    ];
    let methods = methods.map(|name| name.parse::<Method>().unwrap());
    let path = prop_oneof![
        // One that is an endpoint's but for its parts.
        3 => (part(), prop::sample::select(vec!["manifests", "blobs", "blobs/uploads", "referrers"]), part())
            .prop_map(|(repo, kind, last)| format!("/v2/{repo}/{kind}/{last}")),
        1 => prop::collection::vec(part(), 0..7).prop_map(|parts| format!("/v2/{}", parts.join("/"))),
    ];
    let headers = prop::collection::vec(header(), 0..4);
    (
        prop::sample::select(methods.to_vec()),
        path,
        query(),
        headers,
        body(),
    )
        .prop_map(|(method, path, query, headers, body)| Odd {
            method,
            target: format!("{path}{query}"),
            headers,
            body,
        })
}

fn registries() -> [Router; 2] {
    let (blobs, tags) = (MemoryBlobs::default(), MemoryTags::default());
    blobs.insert("{}");
    let pull = PullState::new(blobs.clone(), tags.clone());
    let upstream = "docker.io".parse().unwrap();
    let mirror = PullState::mirror(blobs.clone(), tags).upstreams([upstream]);
    [
        push::router(PushState::new(pull, blobs)),
        pull::router(mirror),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_request_makes_the_registry_panic_or_blame_itself(
        requests in prop::collection::vec(odd(), 1..24)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap();
        let registries = registries();
        for odd in requests {
            for registry in &registries {
                let mut request = Request::builder().method(odd.method.clone()).uri(&odd.target);
                for (name, value) in &odd.headers {
                    request = request.header(*name, value);
                }
                // What is no request at all comes to no handler.
                let Ok(request) = request.body(Body::from(odd.body.clone())) else {
                    continue;
                };
                let answer = runtime.block_on(registry.clone().oneshot(request)).unwrap();
                prop_assert!(!answer.status().is_server_error(), "{odd:?}: {}", answer.status());
            }
        }
    }
}
