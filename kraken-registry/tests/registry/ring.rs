//! Several build-indexes that keep tags together: real stores, HTTP between them, some of them dead.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::serve::ListenerExt as _;
use futures::StreamExt as _;
use kraken_core::net::http::HttpClient;
use kraken_core::net::origin::OriginCluster;
use kraken_core::storage::OpendalBackend;
use kraken_proto::Digest;
use kraken_proto::tags::list::{Lists, Members};
use kraken_proto::tags::record::{Condition, Refusal, TagState, Version};
use kraken_proto::tags::register::{Ballot, Outbid};
use kraken_proto::tags::rejoin::{Beginning, Told};
use kraken_registry::name::TagName;
use kraken_registry::replicate::{OwnCluster, Replicator, Rules};
use kraken_registry::tags::backend::TagBackend;
use kraken_registry::tags::client::TagClient;
use kraken_registry::tags::members::{IndexMember, RingError};
use kraken_registry::tags::ring::TagRing;
use kraken_registry::tags::server::{self, TagPolicy};
use kraken_registry::tags::store::{Attempt, TagStore, TagStoreError};
use kraken_registry::{RepoName, TagError, TagService};
use reqwest::Method;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::common::client;

/// Build-indexes that can be killed and started again.
pub(crate) struct Cluster {
    dir: TempDir,
    members: Vec<IndexMember>,
    /// Those that are in the configuration of what starts from now on.
    pub(crate) listed: Vec<usize>,
    addrs: Vec<SocketAddr>,
    running: Vec<Option<(TagRing, Vec<JoinHandle<()>>)>>,
    /// A directory that is the backend of what starts from now on.
    pub(crate) backend: Option<PathBuf>,
    /// Connections to any of them.
    connections: Arc<AtomicUsize>,
}

impl Cluster {
    pub(crate) async fn new(count: usize) -> Self {
        let mut cluster = Self {
            dir: tempfile::tempdir().unwrap(),
            members: Vec::new(),
            listed: (0..count).collect(),
            addrs: Vec::new(),
            running: Vec::new(),
            backend: None,
            connections: Arc::default(),
        };
        for number in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            cluster.addrs.push(addr);
            cluster.running.push(None);
            cluster.members.push(IndexMember {
                name: format!("index-{number}"),
                url: format!("http://{addr}"),
            });
        }
        cluster
    }

    /// All of them, when they vote.
    pub(crate) async fn started(count: usize) -> Self {
        let mut cluster = Self::new(count).await;
        for at in 0..count {
            cluster.start(at).await;
        }
        for at in 0..count {
            cluster.ready(at).await;
        }
        cluster
    }

    fn file(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("{at}.redb"))
    }

    pub(crate) async fn start(&mut self, at: usize) {
        // What still runs of an earlier life has the file open.
        let store = loop {
            match TagStore::open(self.file(at)) {
                Ok(store) => break store,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let who = ("east", self.members[at].name.as_str());
        let listed = self.listed.iter().map(|it| self.members[*it].clone());
        let listed: Vec<_> = listed.collect();
        let mut ring = TagRing::new(store, who, &listed, 3, client()).unwrap();
        let mut tasks = Vec::new();
        if let Some(dir) = &self.backend {
            let storage = OpendalBackend::local_disk(dir).unwrap();
            let backend = TagBackend::new(storage, "east", dir.display().to_string());
            ring = ring.with_backend(backend.unwrap());
            let http = HttpClient::new(None).unwrap();
            let origins = OriginCluster::new([], http.clone(), 1);
            let own = OwnCluster {
                ring: ring.clone(),
                origins,
                replicas: 1,
                policy: TagPolicy::default(),
            };
            let writing = Replicator::new(own, Rules::default(), &http);
            tasks.push(tokio::spawn(async move { writing.run().await }));
        }
        let policy = TagPolicy::new(["release/.*|release/.*x", "app:v1|app:v10"]).unwrap();
        let app = server::unchecked_router(ring.clone(), policy);
        let listener = loop {
            match TcpListener::bind(self.addrs[at]).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let connections = self.connections.clone();
        let listener = listener.tap_io(move |_| {
            connections.fetch_add(1, Ordering::Relaxed);
        });
        tasks.push(tokio::spawn(async move {
            axum::serve(listener, app).await.unwrap();
        }));
        let taking_part = ring.clone();
        tasks.push(tokio::spawn(async move { taking_part.take_part().await }));
        self.running[at] = Some((ring, tasks));
    }

    /// Why one does not start with such a list.
    pub(crate) async fn refusal(&mut self, at: usize, listed: &[usize]) -> Option<RingError> {
        self.kill(at);
        let store = loop {
            match TagStore::open(self.file(at)) {
                Ok(store) => break store,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let listed = listed.iter().map(|it| self.members[*it].clone());
        let listed: Vec<_> = listed.collect();
        let name = format!("index-{at}");
        TagRing::new(store, ("east", &name), &listed, 3, client()).err()
    }

    pub(crate) async fn ready(&self, at: usize) {
        while !self.ring(at).is_ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// It answers nobody any more; what it has on disk stays.
    pub(crate) fn kill(&mut self, at: usize) {
        if let Some((_, tasks)) = self.running[at].take() {
            tasks.iter().for_each(JoinHandle::abort);
        }
    }

    pub(crate) fn wipe(&mut self, at: usize) {
        self.kill(at);
        std::fs::remove_file(self.file(at)).unwrap();
    }

    pub(crate) fn ring(&self, at: usize) -> &TagRing {
        &self.running[at].as_ref().unwrap().0
    }

    pub(crate) fn client(&self, at: usize) -> TagClient {
        TagClient::new(client(), [self.members[at].url.clone()])
    }
}

fn name(text: &str) -> TagName {
    text.parse().unwrap()
}

pub(crate) async fn put(ring: &TagRing, tag: &str, text: &str) -> Result<Version, TagError> {
    let digest = Digest::of(text.as_bytes());
    let state = ring.set(&name(tag), Some(digest), Condition::Any).await?;
    Ok(state.unwrap().now.version)
}

async fn get(ring: &TagRing, tag: &str) -> Option<Digest> {
    let state = ring.state(&name(tag)).await.unwrap();
    state.and_then(|state| state.now.digest)
}

fn is_unavailable<T: std::fmt::Debug>(result: Result<T, TagError>) -> bool {
    matches!(result, Err(TagError::Unavailable(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_share_connections_though_not_all_owners_are_waited_for() {
    let cluster = Cluster::started(3).await;
    put(cluster.ring(0), "a/b:v1", "one").await.unwrap();
    let before = cluster.connections.load(Ordering::Relaxed);
    for _ in 0..100 {
        assert!(get(cluster.ring(0), "a/b:v1").await.is_some());
    }
    let made = cluster.connections.load(Ordering::Relaxed) - before;
    assert!(made < 25, "{made} connections for 100 reads");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_seen_from_all_and_most_of_the_owners_suffice() {
    let mut cluster = Cluster::started(3).await;
    put(cluster.ring(0), "a/b:v1", "one").await.unwrap();
    for at in 0..3 {
        assert_eq!(
            get(cluster.ring(at), "a/b:v1").await,
            Some(Digest::of(b"one"))
        );
    }
    cluster.kill(2);
    assert_eq!(cluster.ring(0).why_not_serving().await, None);
    put(cluster.ring(1), "a/b:v1", "two").await.unwrap();
    put(cluster.ring(1), "c:v1", "three").await.unwrap();
    assert_eq!(
        get(cluster.ring(0), "a/b:v1").await,
        Some(Digest::of(b"two"))
    );
    let repo: RepoName = "a/b".parse().unwrap();
    assert_eq!(cluster.ring(0).list(&repo, 9, None).await.unwrap(), ["v1"]);
    let repositories = cluster.ring(0).repositories(9, None).await;
    assert_eq!(repositories.unwrap(), ["a/b", "c"]);
    // One alone refuses what it cannot make sure of.
    cluster.kill(1);
    let why = cluster.ring(0).why_not_serving().await.unwrap();
    assert!(
        why.contains("index-1: ") && why.contains("index-2: "),
        "{why}"
    );
    assert!(is_unavailable(
        put(cluster.ring(0), "a/b:v1", "three").await
    ));
    assert!(is_unavailable(cluster.ring(0).state(&name("a/b:v1")).await));
    assert!(is_unavailable(cluster.ring(0).repositories(9, None).await));
    // Those that missed something learn it, without anybody asking for it.
    cluster.start(1).await;
    cluster.start(2).await;
    cluster.ready(2).await;
    let learnt = async {
        loop {
            let store = TagClient::new(client(), [cluster.members[2].url.clone()]);
            if store.get(&repo, &"v1".parse().unwrap()).await.is_ok()
                && cluster.holds(2, "c:v1").await
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), learnt)
        .await
        .unwrap();
}

impl Cluster {
    /// What a build-index says of itself.
    pub(crate) async fn told(&self, at: usize) -> Told {
        let url = format!("{}/internal/tags/standing", self.members[at].url);
        let told = client().get(url).send().await.unwrap();
        told.json().await.unwrap()
    }

    /// Whether a build-index itself holds a state of the tag.
    pub(crate) async fn holds(&self, at: usize, tag: &str) -> bool {
        let url = format!("{}/internal/tags/look", self.members[at].url);
        let lists = self.told(at).await.lists.unwrap().asked();
        let body = serde_json::json!({ "name": tag, "lists": lists });
        let held = client().request(Method::POST, url).json(&body).send().await;
        let held: serde_json::Value = held.unwrap().json().await.unwrap();
        !held["state"].is_null()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_begins_when_all_are_there_and_a_lost_disk_is_filled_again() {
    let mut cluster = Cluster::new(3).await;
    cluster.start(0).await;
    cluster.start(1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        !cluster.ring(0).is_ready(),
        "the third may remember something"
    );
    assert!(is_unavailable(put(cluster.ring(0), "a:v1", "one").await));
    cluster.start(2).await;
    for at in 0..3 {
        cluster.ready(at).await;
    }
    // More than fit one page, many at a time.
    let puts = (0..1200).map(|number| {
        let ring = cluster.ring(number % 3).clone();
        async move { put(&ring, &format!("r{}:v{number}", number % 7), "x").await }
    });
    let puts = futures::stream::iter(puts).buffer_unordered(32);
    puts.for_each(async |done| assert!(done.is_ok(), "{done:?}"))
        .await;
    // Only the first two know of this one, and one of them loses its disk.
    cluster.kill(2);
    put(cluster.ring(0), "a:v1", "kept").await.unwrap();
    cluster.wipe(0);
    cluster.start(2).await;
    cluster.start(0).await;
    cluster.ready(0).await;
    cluster.kill(1);
    assert_eq!(
        get(cluster.ring(2), "a:v1").await,
        Some(Digest::of(b"kept"))
    );
    let repo: RepoName = "r3".parse().unwrap();
    let listed = cluster.ring(2).list(&repo, 5000, None).await.unwrap();
    assert_eq!(listed.len(), (0..1200).filter(|it| it % 7 == 3).count());
    for number in (0..1200).step_by(97) {
        let tag = format!("r{}:v{number}", number % 7);
        assert_eq!(
            get(cluster.ring(0), &tag).await,
            Some(Digest::of(b"x")),
            "{tag}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_want_a_new_tag_one_gets_it() {
    let cluster = Cluster::started(3).await;
    for round in 0..10 {
        let tag = name(&format!("race:v{round}"));
        let tries = (0..9).map(|number| {
            let (ring, tag) = (cluster.ring(number % 3).clone(), tag.clone());
            async move {
                let digest = Digest::of(&[u8::try_from(number).unwrap()]);
                let set = ring.set(&tag, Some(digest), Condition::Absent).await;
                (digest, set)
            }
        });
        let mut won = Vec::new();
        for (digest, set) in futures::future::join_all(tries).await {
            match set {
                Ok(_) => won.push(digest),
                Err(TagError::Conflict(Refusal::Exists)) => {}
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(won.len(), 1, "{won:?}");
        assert_eq!(get(cluster.ring(1), &tag.to_string()).await, Some(won[0]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_and_immutable_tags_hold_over_http() {
    let cluster = Cluster::started(3).await;
    let base = &cluster.members[1].url;
    let ask = async |method: Method, path: &str, header: Option<(&str, &str)>| {
        let mut request = client().request(method, format!("{base}{path}"));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let answer = request.send().await.unwrap();
        let etag = answer
            .headers()
            .get("etag")
            .map(|it| it.to_str().unwrap().to_owned());
        (answer.status().as_u16(), etag, answer.text().await.unwrap())
    };
    let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
    let path = |digest: Digest| format!("/tags/a%3Av1/digest/{digest}");
    let absent = Some(("if-none-match", "*"));
    let (status, etag, _) = ask(Method::PUT, &path(one), absent).await;
    assert_eq!(status, 200);
    let etag = etag.unwrap();
    let (status, _, body) = ask(Method::PUT, &path(two), absent).await;
    assert_eq!(
        (status, body.contains("TAG_CHANGED")),
        (412, true),
        "{body}"
    );
    let matches = Some(("if-match", etag.as_str()));
    assert_eq!(ask(Method::PUT, &path(two), matches).await.0, 200);
    assert_eq!(ask(Method::PUT, &path(one), matches).await.0, 412);
    assert_eq!(ask(Method::DELETE, "/tags/a%3Av1", matches).await.0, 412);
    for bad in [
        ("if-match", "3"),
        ("if-match", "*"),
        ("if-none-match", "\"3\""),
    ] {
        let (status, _, body) = ask(Method::PUT, &path(two), Some(bad)).await;
        assert_eq!(
            (status, body.contains("CONDITION_INVALID")),
            (400, true),
            "{body}"
        );
    }
    assert_eq!(ask(Method::DELETE, "/tags/a%3Av1", None).await.0, 200);
    assert_eq!(ask(Method::GET, "/tags/a%3Av1", None).await.0, 404);
    let (_, _, history) = ask(Method::GET, "/tags/a%3Av1/history", None).await;
    let history: serde_json::Value = serde_json::from_str(&history).unwrap();
    let digests: Vec<_> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["digest"])
        .collect();
    let (one_text, two_text) = (one.to_string(), two.to_string());
    assert_eq!(
        digests,
        [&serde_json::Value::Null, &two_text.into(), &one_text.into()]
    );
    assert_eq!(
        ask(Method::GET, "/tags/a%3Anone/history", None).await.0,
        404
    );
    // A release points to what it points to, also over the client of proxies.
    let (repo, tag) = ("release/app".parse().unwrap(), "v1".parse().unwrap());
    let tags = cluster.client(0);
    tags.put(&repo, &tag, one).await.unwrap();
    tags.put(&repo, &tag, one).await.unwrap();
    let refused = tags.put(&repo, &tag, two).await;
    assert_eq!(refused, Err(TagError::Conflict(Refusal::Immutable)));
    let path = |tag: &str, digest: Digest| format!("/tags/{tag}/digest/{digest}");
    let release = "release%2Fapp%3Av1";
    let etag = ask(Method::GET, &format!("/tags/{release}"), None)
        .await
        .1
        .unwrap();
    let matches = Some(("if-match", etag.as_str()));
    assert_eq!(ask(Method::PUT, &path(release, two), matches).await.0, 409);
    assert_eq!(ask(Method::PUT, &path("app%3Av10", one), None).await.0, 200);
    assert_eq!(ask(Method::PUT, &path("app%3Av10", two), None).await.0, 409);
    assert_eq!(
        ask(Method::DELETE, &format!("/tags/{release}"), None)
            .await
            .0,
        200
    );
    // A request that was held up since before it was set does not set it again.
    let late = Some(("kraken-tag-at", "0"));
    assert_eq!(ask(Method::PUT, &path(release, one), late).await.0, 412);
    assert_eq!(ask(Method::PUT, &path(release, two), None).await.0, 200);
}

/// The first build-index makes the change, and its answer does not come; then others change the tag.
#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_was_made_without_an_answer_does_not_undo_what_came_after_it() {
    let cluster = Cluster::started(3).await;
    let (repo, tag) = ("a".parse().unwrap(), "v1".parse().unwrap());
    let (mine, theirs) = (Digest::of(b"mine"), Digest::of(b"theirs"));
    put(cluster.ring(0), "a:v1", "old").await.unwrap();
    let other = cluster.ring(1).clone();
    let target = cluster.members[0].url.clone();
    // It hands requests on, and hangs up instead of answering a put.
    let app = axum::Router::new().fallback(move |request: axum::extract::Request| {
        let (other, target) = (other.clone(), target.clone());
        async move {
            let is_put = request.method() == Method::PUT;
            let url = format!("{target}{}", request.uri());
            let mut asked = client().request(request.method().clone(), url);
            if let Some(at) = request.headers().get("kraken-tag-at") {
                asked = asked.header("kraken-tag-at", at);
            }
            let answer = asked.send().await.unwrap();
            if is_put {
                put(&other, "a:v1", "theirs").await.unwrap();
                return http::Response::builder()
                    .status(502)
                    .body(String::new())
                    .unwrap();
            }
            let version = answer.headers()["kraken-tag-version"].clone();
            let body = answer.text().await.unwrap();
            let answer = http::Response::builder().header("kraken-tag-version", version);
            answer.body(body).unwrap()
        }
    });
    let broken = super::common::serve(app).await;
    let tags = TagClient::new(client(), [broken, cluster.members[2].url.clone()]);
    tags.put(&repo, &tag, mine).await.unwrap();
    assert_eq!(get(cluster.ring(0), "a:v1").await, Some(theirs));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_goes_with_its_last_tag_also_where_one_owner_missed_that() {
    let mut cluster = Cluster::started(3).await;
    put(cluster.ring(0), "gone:v1", "x").await.unwrap();
    put(cluster.ring(0), "stays:v1", "x").await.unwrap();
    let (repo, tag) = ("gone".parse().unwrap(), "v1".parse().unwrap());
    // All three know of it.
    while !cluster.holds(2, "gone:v1").await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.kill(2);
    assert_eq!(cluster.ring(0).delete(&repo, &tag).await, Ok(true));
    cluster.kill(1);
    cluster.start(2).await;
    cluster.ready(2).await;
    for at in [0, 2] {
        let listed = cluster.ring(at).repositories(9, None).await;
        assert_eq!(listed.unwrap(), ["stays"]);
    }
}

#[tokio::test]
async fn an_owner_takes_nothing_that_it_promised_before_it_lost_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = TagStore::open(dir.path().join("new.redb")).unwrap();
    let (tag, ballot) = (
        name("a:v1").into(),
        Ballot {
            round: 9,
            proposer: 1,
        },
    );
    let alone: Members = [("this".to_owned(), String::new())].into();
    let lists = Lists::first(alone);
    let asked = lists.asked();
    let founders = vec![store.standing().incarnation];
    let beginning = Beginning { founders, lists };
    store.begin(beginning, 1).await.unwrap();
    let ours = store.standing().incarnation;
    let attempt = |incarnation: u64, other: u64| Attempt {
        ballot,
        incarnation,
        promised: vec![("this".into(), incarnation), ("index-2".into(), other)],
        lists: asked.clone(),
    };
    let before = store.accept(&tag, attempt(ours ^ 1, 5), None).await;
    assert!(matches!(before, Err(TagStoreError::Forgot)), "{before:?}");
    assert_eq!(
        store.accept(&tag, attempt(ours, 5), None).await.unwrap(),
        Ok(())
    );
    // Nor what another promised before that one lost its own.
    store
        .hand_over(("index-2".into(), 6), "", 10)
        .await
        .unwrap();
    let forgotten = store.accept(&tag, attempt(ours, 5), None).await;
    assert!(
        matches!(forgotten, Err(TagStoreError::Forgot)),
        "{forgotten:?}"
    );
    let earlier = Ballot {
        round: 8,
        proposer: 2,
    };
    assert_eq!(
        store.prepare(&tag, earlier, asked.clone()).await.unwrap(),
        Err(Outbid(Ballot {
            round: 10,
            ..ballot
        }))
    );
}

/// One operation as its client saw it.
struct Seen {
    began: Instant,
    ended: Instant,
    state: Option<TagState>,
}

/// Clients that put and get the same few tags at some of the build-indexes, whatever happens.
pub(crate) struct Clients(tokio::task::JoinSet<BTreeMap<String, Vec<Seen>>>);

impl Clients {
    pub(crate) fn start(cluster: &Cluster, at: &[usize], until: Instant) -> Self {
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..6_usize {
            let base = cluster.members[at[number % at.len()]].url.clone();
            clients.spawn(async move {
                let mut seen = BTreeMap::<String, Vec<Seen>>::new();
                for turn in 0_usize.. {
                    if Instant::now() > until {
                        break;
                    }
                    let tag = format!("busy:v{}", turn % 3);
                    let began = Instant::now();
                    let url = format!("{base}/tags/busy%3Av{}", turn % 3);
                    let digest = Digest::of(format!("{number} {turn}").as_bytes());
                    let answer = if turn % 2 == 0 {
                        client().put(format!("{url}/digest/{digest}")).send().await
                    } else {
                        client().get(&url).send().await
                    };
                    // A client that gets no answer learns nothing.
                    let Ok(answer) = answer else { continue };
                    if answer.status() != 200 {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                    let version = answer.headers()["kraken-tag-version"].to_str().unwrap();
                    let version = Version::new(version.parse().unwrap());
                    let text = answer.text().await.unwrap();
                    let digest = if text.is_empty() {
                        Some(digest)
                    } else {
                        text.parse().ok()
                    };
                    let now = kraken_proto::tags::record::Record {
                        version,
                        cluster: "east".into(),
                        digest,
                    };
                    seen.entry(tag).or_default().push(Seen {
                        began,
                        ended: Instant::now(),
                        state: Some(TagState::first(now)),
                    });
                }
                seen
            });
        }
        Self(clients)
    }

    /// What one has seen, nobody has seen undone later. How many answers there were.
    pub(crate) async fn check(self) -> usize {
        let mut clients = self.0;
        let mut all = BTreeMap::<String, Vec<Seen>>::new();
        while let Some(seen) = clients.join_next().await {
            for (tag, seen) in seen.unwrap() {
                all.entry(tag).or_default().extend(seen);
            }
        }
        let mut checked = 0;
        for (tag, mut seen) in all {
            seen.sort_by_key(|it| it.ended);
            let record = |it: &Seen| {
                it.state
                    .as_ref()
                    .map(|it| (it.now.version, it.now.digest))
                    .unwrap()
            };
            let mut digests = BTreeMap::new();
            for (at, later) in seen.iter().enumerate() {
                let (version, digest) = record(later);
                assert_eq!(*digests.entry(version).or_insert(digest), digest, "{tag}");
                let before = seen[..at].iter().filter(|it| it.ended < later.began);
                let newest = before.map(|it| record(it).0).max();
                assert!(newest.is_none_or(|it| it <= version), "{tag} went back");
                checked += 1;
            }
        }
        checked
    }
}

/// What one has seen, nobody sees undone later, while build-indexes die, come back, and lose their disks.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_a_tag_go_back_while_owners_die() {
    let mut cluster = Cluster::started(3).await;
    let until = Instant::now() + Duration::from_secs(15);
    let clients = Clients::start(&cluster, &[0, 1, 2], until);
    let mut turn = 0;
    while Instant::now() < until {
        let at = turn % 3;
        if turn % 4 == 3 {
            cluster.wipe(at);
        } else {
            cluster.kill(at);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.start(at).await;
        cluster.ready(at).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        turn += 1;
    }
    let checked = clients.check().await;
    assert!(turn > 5, "{turn} faults");
    assert!(checked > 100, "{checked} answers");
}
