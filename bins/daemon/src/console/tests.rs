//! The console as a browser asks it, over a real socket.

use std::net::SocketAddr;
use std::time::Duration;

use http::Request;
use kraken_core::Tracker;
use kraken_core::net::announce::TrackerApi as _;
use kraken_core::net::http::{HttpBody, HttpClient, HttpResponse};
use kraken_core::origin::RingMember;
use kraken_core::proto::tracker::report::{BlobReport, HostReport, Source, Traffic};
use kraken_core::proto::{
    AnnounceBlob, AnnounceRequest, AnnounceState, Digest, Namespace, PeerId, PeerInfo, PeerRole,
    Progress,
};
use serde_json::Value;

use super::*;

/// A tracker with a console, and what to stop it with.
struct Lab {
    tracker: Tracker,
    server: HttpServer,
    http: HttpClient,
    shutdown: CancellationToken,
}

fn nobody() -> OriginCluster {
    let url = "http://127.0.0.1:1".parse().unwrap();
    let http = HttpClient::new(None).unwrap();
    OriginCluster::new([RingMember::new("origin-1", url)], http, 1)
}

fn lab() -> Lab {
    let (origins, http) = (nobody(), HttpClient::new(None).unwrap());
    let tracker = Tracker::builder(origins.clone())
        .takes_reports(true)
        .spawn();
    let shown = Shown {
        look: tracker.look().unwrap(),
        origins,
        http: http.clone(),
    };
    let shutdown = CancellationToken::new();
    let mut config = ConsoleConfig::new(any());
    config.proxies = vec!["http://127.0.0.1:1".into()];
    let server = start(config, shown, shutdown.clone()).unwrap();
    Lab {
        tracker,
        server,
        http,
        shutdown,
    }
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

impl Lab {
    async fn get(&self, path: &str, host: Option<&str>) -> HttpResponse {
        let url = format!("http://{}{path}", self.server.local_addr());
        let request = Request::get(url);
        let request = match host {
            Some(host) => request.header("host", host),
            None => request,
        };
        let request = request.body(HttpBody::Empty).unwrap();
        self.http.send(request).await.unwrap()
    }

    async fn json(&self, path: &str) -> Value {
        let answer = self.get(&format!("/console/api/{path}"), None).await;
        assert_eq!(answer.status(), 200, "{path}");
        answer.json(8 << 20).await.unwrap()
    }

    async fn status(&self, path: &str) -> u16 {
        let answer = self.get(&format!("/console/api/{path}"), None).await;
        answer.status().as_u16()
    }

    async fn announces(&self, n: u8, state: AnnounceState, have: u32) {
        let blob = AnnounceBlob {
            namespace: Namespace::default(),
            digest: blob(),
            state,
            links: 3,
            progress: Some(Progress { have, of: 10 }),
            needy: false,
        };
        let request = AnnounceRequest {
            peer: peer(n),
            blobs: vec![blob],
        };
        self.tracker.announce(request).await.unwrap();
    }

    async fn reports(&self, n: u8, have: u32, from: &[(u8, PeerRole, u64)]) {
        let sum = |role: PeerRole| -> u64 {
            let of = from.iter().filter(|it| it.1 == role);
            of.map(|it| it.2).sum()
        };
        let moved = Traffic {
            from_origins: sum(PeerRole::Origin),
            from_agents: sum(PeerRole::Agent),
            sent: 7,
        };
        let source = |&(n, role, bytes): &(u8, PeerRole, u64)| Source {
            id: peer(n).id,
            role,
            bytes,
        };
        let blob = BlobReport {
            namespace: "library/app".parse().unwrap(),
            digest: blob(),
            length: 10_000_000,
            have,
            of: 10,
            moved,
            sources: from.iter().map(source).collect(),
        };
        let report = HostReport {
            peer: peer(n),
            name: format!("host-{n}"),
            version: "9.8.7".into(),
            moved,
            blobs: vec![blob],
        };
        self.tracker.report(report).await.unwrap();
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.server.stopped().await.unwrap();
        self.tracker.shutdown().await;
    }
}

fn blob() -> Digest {
    Digest::of(b"a blob")
}

fn peer(n: u8) -> PeerInfo {
    PeerInfo {
        id: PeerId::from_bytes([n; 32]),
        addr: SocketAddr::from(([10, 0, 0, n], 7600)),
        role: PeerRole::Agent,
        zone: Some(format!("rack-{}", n % 2).parse().unwrap()),
    }
}

/// Two hosts: one has all of a blob, from an origin; the other has half, most of it from the first.
async fn two_hosts(lab: &Lab) {
    lab.announces(1, AnnounceState::Seeding, 10).await;
    lab.announces(2, AnnounceState::Leeching, 4).await;
    lab.reports(1, 10, &[(200, PeerRole::Origin, 10_000_000)])
        .await;
    lab.reports(2, 2, &[(1, PeerRole::Agent, 1_000_000)]).await;
    // Rates are between two reports.
    tokio::time::sleep(Duration::from_millis(120)).await;
    let sources = [
        (1, PeerRole::Agent, 4_000_000),
        (200, PeerRole::Origin, 1_000_000),
    ];
    lab.reports(2, 5, &sources).await;
}

#[tokio::test]
async fn a_blob_s_page_tells_who_has_what_and_where_the_bytes_came_from() {
    let lab = lab();
    two_hosts(&lab).await;
    let list = lab.json("swarms").await;
    assert_eq!((&list["total"], &list["matching"]), (&1.into(), &1.into()));
    let row = &list["swarms"][0];
    assert_eq!(row["digest"], blob().to_string());
    assert_eq!((&row["members"], &row["ready"]), (&2.into(), &1.into()));
    assert_eq!(
        (&row["namespace"], &row["length"]),
        (&"library/app".into(), &10_000_000.into())
    );
    assert_eq!(row["done"], 750);
    assert_eq!(row["moved"]["from_agents"], 4_000_000);
    assert_eq!(row["moved"]["from_origins"], 11_000_000);
    assert!(row["rate"].as_u64().unwrap() > 0 && row["seconds_left"].as_u64().unwrap() > 0);

    let hex = blob().hex();
    let found = lab
        .json(&format!("swarms?search=sha256:{}", &hex[..6]))
        .await;
    assert_eq!(found["matching"], 1);
    assert_eq!(lab.json("swarms?search=zz").await["matching"], 0);

    let path = format!("swarms/{}", blob());
    let members = lab.json(&format!("{path}/members?order=least")).await;
    let least = &members["members"][0];
    assert_eq!(
        (&least["name"], &least["done"]),
        (&"host-2".into(), &500.into())
    );
    assert_eq!(
        (&least["links"], &least["zone"]),
        (&3.into(), &"rack-0".into())
    );
    let source = &least["sources"][0];
    assert_eq!(
        (&source["name"], &source["bytes"]),
        (&"host-1".into(), &4_000_000.into())
    );
    assert!(source["rate"].as_u64().unwrap() > 0);
    assert_eq!(least["sources"][1]["is_origin"], true);
    let turned = lab
        .json(&format!("{path}/members?order=name&offset=1&limit=1"))
        .await;
    assert_eq!(turned["members"][0]["name"], "host-2");
    assert_eq!(
        (
            turned["members"].as_array().unwrap().len(),
            &turned["total"]
        ),
        (1, &2.into())
    );

    let graph = lab.json(&format!("{path}/graph")).await;
    assert_eq!(graph["names"][0], "host-1");
    assert_eq!(graph["done"], serde_json::json!([1000, 500, 1000]));
    assert_eq!(graph["origins"], serde_json::json!([0, 0, 1]));
    let edges: Vec<[u32; 3]> = serde_json::from_value(graph["edges"].clone()).unwrap();
    let ends: Vec<_> = edges.iter().map(|it| (it[0], it[1])).collect();
    assert_eq!(
        ends,
        [(0, 1), (2, 1), (2, 0)],
        "the fastest first, then what stands still"
    );
    assert!(edges[0][2] > edges[1][2] && edges[2][2] == 0);
    lab.stop().await;
}

#[tokio::test]
async fn hosts_traffic_rollouts_and_the_cluster_are_told() {
    let lab = lab();
    two_hosts(&lab).await;
    let hosts = lab.json("hosts").await;
    assert_eq!(
        (&hosts["total"], &hosts["hosts"][0]["name"]),
        (&2.into(), &"host-2".into())
    );
    assert_eq!(lab.json("hosts?search=host-1").await["matching"], 1);
    let id = hosts["hosts"][0]["id"].as_str().unwrap();
    let host = lab.json(&format!("hosts/{id}")).await;
    assert_eq!(
        (&host["version"], &host["addr"]),
        (&"9.8.7".into(), &"10.0.0.2:7600".into())
    );
    assert_eq!(host["blobs"][0]["done"], 500);
    assert_eq!(host["blobs"][0]["sources"][0]["name"], "host-1");

    let rollout = lab.json(&format!("rollout?of={}", blob())).await;
    let one = &rollout["rollouts"][0];
    assert_eq!(
        (&one["hosts"], &one["ready"], &one["done"]),
        (&2.into(), &1.into(), &750.into())
    );

    let cluster = lab.json("cluster").await;
    assert_eq!(
        (&cluster["reporting"], &cluster["announcing"]),
        (&2.into(), &2.into())
    );
    assert_eq!(cluster["versions"]["9.8.7"], 2);
    assert_eq!(cluster["zones"]["rack-1"], 1);
    assert!(cluster["rate"]["from_agents"].as_u64().unwrap() > 0);
    let nodes = cluster["nodes"].as_array().unwrap();
    let kinds: Vec<_> = nodes
        .iter()
        .map(|it| (it["kind"].as_str().unwrap(), it["state"].as_str().unwrap()))
        .collect();
    assert_eq!(kinds, [("origin", "down"), ("proxy", "down")]);
    assert_eq!(nodes[0]["share"], 1000);
    assert!(
        nodes[0]["why"]
            .as_str()
            .unwrap()
            .contains("does not answer")
    );
    assert_eq!(lab.json("throughput").await["step_seconds"], 5);
    lab.stop().await;
}

#[tokio::test]
async fn questions_have_bounds_and_errors_are_told() {
    let lab = lab();
    for (path, status) in [
        ("swarms?limit=201", 400),
        ("swarms?limits=3", 400),
        ("swarms/abc", 400),
        (&format!("swarms/{}", blob()), 404),
        ("hosts/xyz", 400),
        ("hosts/0123456789abcdef", 404),
        ("rollout?of=library/app:v1", 400),
        ("rollout", 400),
        ("nothing", 404),
    ] {
        assert_eq!(lab.status(path).await, status, "{path}");
    }
    let empty = lab.json(&format!("swarms/{}/graph", blob())).await;
    assert_eq!(empty["ids"], serde_json::json!([]));
    let posted = Request::post(format!(
        "http://{}/console/api/cluster",
        lab.server.local_addr()
    ));
    let posted = lab.http.send(posted.body(HttpBody::Empty).unwrap()).await;
    assert_eq!(posted.unwrap().status(), 405, "it only reads");
    lab.stop().await;
}

#[tokio::test]
async fn pages_of_other_sites_are_kept_out() {
    let lab = lab();
    let own = lab.server.local_addr().to_string();
    for host in [
        own.as_str(),
        "localhost:80",
        "LOCALHOST",
        "[::1]:1",
        "127.0.0.1",
    ] {
        assert_eq!(
            lab.get("/console/", Some(host)).await.status(),
            200,
            "{host}"
        );
    }
    for host in [
        "evil.test",
        "127.0.0.1.evil.test",
        "localhost.evil.test:7606",
        "10.0.0.1",
    ] {
        assert_eq!(
            lab.get("/console/", Some(host)).await.status(),
            403,
            "{host}"
        );
        let asked = lab.get("/console/api/cluster", Some(host)).await;
        assert_eq!(asked.status(), 403, "{host}");
    }
    let page = lab.get("/console/", None).await;
    let policy = page.header("content-security-policy").unwrap().to_string();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"));
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert_eq!(
        lab.get("/", None).await.header("location"),
        Some("/console/")
    );
    assert_eq!(lab.get("/console/other.js", None).await.status(), 404);
    lab.stop().await;
}

#[tokio::test]
async fn what_a_page_names_is_there() {
    let lab = lab();
    let text = async |name: &str| {
        let page = lab.get(&format!("/console/{name}"), None).await;
        assert_eq!(page.status(), 200, "{name}");
        String::from_utf8(page.bytes(1 << 20).await.unwrap().to_vec()).unwrap()
    };
    let html = text("").await;
    assert!(!html.contains("http:") && !html.contains("https:") && !html.contains(" style="));
    for name in ["style.css", "icon.svg", "main.js"] {
        assert!(html.contains(name));
        text(name).await;
    }
    let mut seen = vec!["main.js".to_string()];
    let mut next = 0;
    while let Some(name) = seen.get(next).cloned() {
        next += 1;
        for part in text(&name).await.split("from './").skip(1) {
            let module = part.split('\'').next().unwrap().to_string();
            if !seen.contains(&module) {
                seen.push(module);
            }
        }
    }
    assert!(seen.len() >= 9, "{seen:?}");
    lab.stop().await;
}

#[tokio::test]
async fn a_console_that_others_could_reach_is_refused() {
    let (origins, http) = (nobody(), HttpClient::new(None).unwrap());
    let tracker = Tracker::builder(origins.clone())
        .takes_reports(true)
        .spawn();
    let shown = Shown {
        look: tracker.look().unwrap(),
        origins,
        http,
    };
    let open = ConsoleConfig::new("0.0.0.0:0".parse().unwrap());
    let error = start(open, shown.clone(), CancellationToken::new()).unwrap_err();
    assert!(error.to_string().contains("ssh -L"), "{error}");
    let mut wrong = ConsoleConfig::new(any());
    wrong.trackers = vec!["tracker-1".into()];
    let error = start(wrong, shown, CancellationToken::new()).unwrap_err();
    assert!(error.to_string().contains("tracker-1"), "{error}");
    let without = Tracker::builder(nobody()).spawn();
    assert!(without.look().is_none());
}

#[test]
fn a_tracker_s_configuration_may_have_a_console() {
    let tracker = "
listen: 0.0.0.0:7601
origins: [{name: origin-1, url: 'https://origin-1:7602'}]
tls: {cert: a.crt, key: a.key, ca: ca.crt}
";
    let with = |line: &str| {
        let text = format!("{tracker}{line}\n");
        crate::config::parse::<crate::tracker::TrackerConfig>(&text)
    };
    assert!(with("").unwrap().console.is_none());
    let console = with("console: {listen: '127.0.0.1:7606', proxies: ['https://proxy-1:7602']}");
    assert_eq!(console.unwrap().console.unwrap().listen.port(), 7606);
    let error = with("console: {listen: '127.0.0.1:7606', proxy: x}").unwrap_err();
    assert!(error.contains("proxies"), "{error}");
    let error = with("console: 7606").unwrap_err();
    assert!(error.contains("console"), "{error}");
}
