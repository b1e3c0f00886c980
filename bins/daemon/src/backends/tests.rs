use futures::StreamExt as _;
use kraken_core::Digest;
use kraken_core::storage::Backend as _;

use super::*;

fn backend(
    one: Option<&BackendConfig>,
    routes: &[RouteConfig],
    origins: usize,
) -> Result<BoxBackend, Problems> {
    Storage::new(one, routes, origins).map(|storage| storage.backend())
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

#[test]
fn every_kind_of_backend_can_be_written_down() {
    let routes: Vec<RouteConfig> = parse(
        "
- namespace: ^library/
  backend: {s3: {bucket: b, region: eu-west-1, secret_access_key: {env: KEY}, access_key_id: {file: /k}}}
  layout: docker-registry
  limits: {read: 1GB, write: 500MB, at_once: 64}
  timeout: 1m 30s
  must_ready: true
- {namespace: ^gcs/, backend: {gcs: {bucket: b, credential_file: /c.json}}}
- {namespace: ^azure/, backend: {azure: {container: c, endpoint: 'https://a.blob.core.windows.net'}}}
- {namespace: ^hdfs/, backend: {webhdfs: {namenodes: ['http://n1:9870', 'http://n2:9870'], root: /kraken}}}
- {namespace: ^http/, backend: {http: {url: 'https://files.test/{shard}/{hex}'}}}
- namespace: ^hub/
  backend: {registry: {url: 'https://registry-1.docker.io', credentials: {helper: ecr-login}}}
- namespace: ^moving/
  backend: {shadow: {active: {local_disk: /a}, shadow: {memory: {}}}}
- {namespace: '', backend: {noop: {}}}
",
    )
    .unwrap();
    assert_eq!(routes.len(), 8);
    assert_eq!(routes[0].layout, Some(Layout::DockerRegistry));
    assert_eq!(routes[0].timeout.0, Duration::from_secs(90));
    assert_eq!(routes[1].timeout, Timeout::default());
    // The first one's key is in no file here.
    let error = backend(None, &routes, 3).unwrap_err();
    assert!(error.to_string().contains("/k"), "{error}");
    let made = backend(None, &routes[1..], 3).unwrap();
    let writable = |name: &str| made.check_writable(&name.parse().unwrap()).is_ok();
    assert!(writable("gcs/a") && writable("moving/a") && writable("other"));
    assert!(!writable("http/a") && !writable("hub/a"));
}

#[tokio::test]
async fn a_storage_changes_and_what_stays_the_same_is_kept() {
    let of = |text: &str| parse::<Vec<RouteConfig>>(text).unwrap();
    let kept = "- {namespace: ^a/, backend: {memory: {}}}\n";
    let storage = Storage::new(None, &of(kept), 1).unwrap();
    let (backend, digest) = (storage.backend(), Digest::of(b"abc"));
    let bytes = || futures::stream::iter([Ok(axum::body::Bytes::from_static(b"abc"))]).boxed();
    let (a, b) = ("a/x".parse().unwrap(), "b/x".parse().unwrap());
    backend.write(&a, digest, 3, bytes()).await.unwrap();
    assert!(backend.check_writable(&b).is_err());
    let both = of(&format!(
        "- {{namespace: ^b/, backend: {{memory: {{}}}}}}\n{kept}"
    ));
    storage.replace(storage.changed(None, &both).unwrap());
    assert!(backend.check_writable(&b).is_ok());
    assert_eq!(backend.stat(&a, digest).await.unwrap(), Some(3));
    assert!(storage.changed(None, &[]).is_err());
}

#[test]
fn mistakes_are_named() {
    for (text, told) in [
        (
            "{namespace: '(', backend: {noop: {}}}",
            "regular expression",
        ),
        ("{namespace: a, backend: {noop: {}}, timeout: soon}", "30s"),
        (
            "{namespace: a, backend: {noop: {}}, timeout: 10ms}",
            "1s at least",
        ),
        ("{namespace: a, backend: {s4: {bucket: b}}}", "s3"),
        ("{namespace: a, backend: {s3: {buckets: b}}}", "bucket"),
        (
            "{namespace: a, backend: {noop: {}}, limits: {reads: 1}}",
            "read",
        ),
        (
            "{namespace: a, backend: {noop: {}}, layout: flat}",
            "identity",
        ),
        (
            "{namespace: a, backend: {noop: {}}, limits: {read: 0}}",
            "leave the key out",
        ),
    ] {
        let error = parse::<RouteConfig>(text).unwrap_err();
        assert!(error.contains(told), "{text}: {error}");
    }
    for (text, told) in [
        (
            "{namespace: a, backend: {noop: {}}, layout: sharded}",
            "noop",
        ),
        (
            "{namespace: a, backend: {http: {url: 'https://a/b'}}}",
            "{hex}",
        ),
        (
            "{namespace: a, backend: {http: {url: 'https://a/{hex}/{id}'}}}",
            "{id}",
        ),
        ("{namespace: a, backend: {http: {url: 'a/{hex}'}}}", "url"),
        (
            "{namespace: a, backend: {registry: {url: 'ftp://a'}}}",
            "https://",
        ),
        (
            "{namespace: a, backend: {webhdfs: {namenodes: [], root: /}}}",
            "at least one",
        ),
        (
            "{namespace: a, backend: {s3: {bucket: b, access_key_id: {text: k}}}}",
            "go together",
        ),
    ] {
        let config: RouteConfig = parse(text).unwrap();
        let error = backend(None, &[config], 1).unwrap_err().to_string();
        assert!(error.contains(told), "{text}: {error}");
    }
    let noop = BackendConfig::Noop {};
    let error = backend(None, &[], 1).unwrap_err().to_string();
    assert!(error.contains("no storage"), "{error}");
    let route = parse("{namespace: a, backend: {noop: {}}}").unwrap();
    let error = backend(Some(&noop), &[route], 1).unwrap_err().to_string();
    assert!(error.contains("exclude"), "{error}");
}

#[test]
fn secrets_are_not_printed() {
    let text =
        "{s3: {bucket: b, access_key_id: {text: hunter1}, secret_access_key: {text: hunter2}}}";
    let config: BackendConfig = parse(text).unwrap();
    assert!(!format!("{config:?}").contains("hunter"), "{config:?}");
    for wrong in [
        "{s3: {bucket: b, secret_access_key: {text: hunter2}, regoin: x}}",
        "{s3: {bucket: b, secret_access_key: hunter2}}",
        "{s3: {bucket: b, secret_access_key: {hunter2: x}}}",
        "{s3: {bucket: b, secret_access_key: {file: a, text: hunter2}}}",
    ] {
        let error = crate::config::parse::<BackendConfig>(wrong).unwrap_err();
        assert!(!error.contains("hunter"), "{error}");
    }
}
