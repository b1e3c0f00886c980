//! The metrics that processes tell are those of docs/metrics.md, and alerts and dashboards use no others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use http::Request;
use kraken::cluster::{Cluster, ClusterOptions};
use kraken_core::net::Identity;
use kraken_core::net::http::{HttpBody, HttpClient, HttpResponse};
use kraken_daemon::process::Service as _;
use kraken_daemon::{build_index, config};
use regex::Regex;

use crate::openmetrics::{self, CONTENT_TYPE};
use crate::{files, pages, read};

async fn ask(http: &HttpClient, url: String) -> HttpResponse {
    let request = Request::get(url).body(HttpBody::Empty).unwrap();
    http.send(request).await.unwrap()
}

/// What a process tells, read strictly.
async fn told(http: &HttpClient, base: &str) -> BTreeMap<String, String> {
    // Before the first answer there are none to be told.
    ask(http, format!("{base}/health")).await;
    let answer = ask(http, format!("{base}/metrics")).await;
    assert_eq!(answer.header("content-type"), Some(CONTENT_TYPE), "{base}");
    let bytes = answer.bytes(1 << 20).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let asked = "kraken_http_requests_total{method=\"GET\",route=\"health\",status=\"200\"}";
    assert!(text.contains(asked), "{base}: {text}");
    assert!(
        text.contains("kraken_build_info{version="),
        "{base}: {text}"
    );
    openmetrics::read(&text).unwrap_or_else(|error| panic!("{base}: {error}\n{text}"))
}

/// A build-index that keeps tags in a backend too, beside the cluster in `dir`.
async fn index_with_backend(cluster: &Cluster, dir: &Path) -> build_index::BuildIndexService {
    let tls = dir.join("tls");
    let tls = tls.display();
    let text = format!(
        "listen: 127.0.0.1:0\nstore: {0}/index\ntags_backend: {{backend: {{local_disk: {0}/tags}}}}\n\
         origins: [{{name: origin-1, url: 'https://{1}'}}]\nreplicas: 1\n\
         tls: {{cert: {tls}/build-index-1.crt, key: {tls}/build-index-1.key, ca: {tls}/ca.crt}}\n",
        dir.display(),
        cluster.origins[0].addr,
    );
    fs::create_dir(dir.join("tags")).unwrap();
    let path = dir.join("index.yaml");
    fs::write(&path, text).unwrap();
    build_index::start(config::load(&path).unwrap())
        .await
        .unwrap()
}

/// The names of what all processes tell, with their types.
async fn live() -> BTreeMap<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let options = ClusterOptions {
        agents: 1,
        origins: 1,
        dir: dir.path().to_path_buf(),
        base_port: None,
    };
    let cluster = Cluster::start(&options).await.unwrap();
    let index = index_with_backend(&cluster, dir.path()).await;
    let file = |name: &str| dir.path().join("tls").join(name);
    let identity = Identity::from_files(file("origin-1.crt"), file("origin-1.key"), file("ca.crt"));
    let secure = HttpClient::new(Some(&identity.unwrap())).unwrap();
    let plain = HttpClient::new(None).unwrap();
    let mut names = BTreeMap::new();
    for addr in [cluster.agents[0].registry, cluster.proxy.addr] {
        names.extend(told(&plain, &format!("http://{addr}")).await);
    }
    for addr in [
        cluster.origins[0].addr,
        cluster.tracker.addr,
        cluster.build_index.addr,
        index.addr,
    ] {
        names.extend(told(&secure, &format!("https://{addr}")).await);
    }
    index.stop().await;
    cluster.stop().await;
    names
}

/// The metrics that a text names: not the crates, which begin alike.
fn named(text: &str) -> BTreeSet<String> {
    let name = Regex::new(r"\bkraken_[a-z_]*[a-z]").unwrap();
    let crates = [
        "core", "proto", "net", "storage", "registry", "daemon", "sim", "benches",
    ];
    let names = name.find_iter(text).map(|it| it.as_str().to_string());
    names
        .filter(|it| !crates.iter().any(|name| *it == format!("kraken_{name}")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_documented_and_what_is_documented_is_told() {
    let live = live().await;
    assert!(live.len() > 25, "{live:?}");
    let row = Regex::new(r"(?m)^\| `(kraken_[a-z_]+)` \| (\w+) \|").unwrap();
    let page = read("docs/metrics.md");
    let rows = row.captures_iter(&page);
    let documented: BTreeMap<_, _> = rows
        .map(|it| (it[1].to_string(), it[2].to_string()))
        .collect();
    assert_eq!(
        live, documented,
        "left: told by processes; right: docs/metrics.md"
    );
}

#[test]
fn alerts_dashboards_and_pages_name_metrics_that_exist() {
    let documented = named(&read("docs/metrics.md"));
    let mut texts = files("deploy/prometheus", &["yaml"]);
    texts.extend(files("deploy/grafana", &["json"]));
    let used: BTreeSet<_> = texts.iter().flat_map(|(_, text)| named(text)).collect();
    assert!(used.len() > 20, "{used:?}");
    texts.extend(pages());
    for (path, text) in texts {
        for name in named(&text) {
            let parts = ["_bucket", "_sum", "_count"];
            let base = parts
                .iter()
                .find_map(|it| name.strip_suffix(it))
                .unwrap_or(&name);
            let exists = documented.contains(base) || documented.contains(&format!("{base}_total"));
            assert!(exists, "{}: there is no {name}", path.display());
        }
    }
}
