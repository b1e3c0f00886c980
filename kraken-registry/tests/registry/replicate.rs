//! Clusters of one origin and one build-index each, which send images to each other.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kraken_core::net::MemNetwork;
use kraken_core::net::http::{ApiError, HttpClient};
use kraken_core::net::origin::{OriginCluster, router};
use kraken_core::origin::RingMember;
use kraken_core::storage::{BoxBackend, DurableQueue, MemStore, OpendalBackend};
use kraken_core::{Digest, Origin, PeerId};
use kraken_proto::tags::hours::{Hours, Plan};
use kraken_proto::tags::record::Condition;
use kraken_registry::name::TagName;
use kraken_registry::replicate::{self, OwnCluster, RemoteKind, RemoteRule, Replicator, Rules};
use kraken_registry::tags::ring::TagRing;
use kraken_registry::tags::server::{self, TagPolicy};
use kraken_registry::tags::store::TagStore;
use kraken_registry::{Link, Linked, MediaType, RepoName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::common::{descriptor, digest_of, image, serve};

/// A cluster.
struct Side {
    name: &'static str,
    url: String,
    ring: TagRing,
    origins: OriginCluster,
    replicator: Replicator,
    http: HttpClient,
    _origin: Origin,
    _dir: TempDir,
}

impl Side {
    async fn start(name: &'static str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (dir, http) = (tempfile::tempdir().unwrap(), HttpClient::new(None).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        let members = vec![RingMember::new("origin-0", at.parse().unwrap())];
        let origin = Origin::builder(
            "origin-0",
            MemStore::new(),
            MemNetwork::new().transport(PeerId::from_bytes([1; 32])),
            BoxBackend::new(OpendalBackend::memory()),
            DurableQueue::open(dir.path().join("queue.redb")).unwrap(),
        );
        let origin = origin
            .ring(members.clone(), http.clone())
            .replicas(1)
            .asked_file(dir.path().join("asked"))
            .spawn()
            .unwrap();
        let routes = router(Arc::new(origin.clone()));
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        let origins = OriginCluster::new(members, http.clone(), 1);
        let ring = ring(&dir, name, &http).await;
        let policy = TagPolicy::default();
        let own = OwnCluster {
            ring: ring.clone(),
            origins: origins.clone(),
            replicas: 1,
            policy: policy.clone(),
        };
        let replicator = Replicator::new(own, Rules::default(), &http);
        let app = server::router(ring.clone(), policy, origins.clone());
        let url = serve(app.merge(replicate::server::router(replicator.clone()))).await;
        let sending = replicator.clone();
        tokio::spawn(async move { sending.run().await });
        Self {
            name,
            url,
            ring,
            origins,
            replicator,
            http,
            _origin: origin,
            _dir: dir,
        }
    }

    /// Sends what begins with `team/` to another one from now on, of these platforms.
    fn send_to(&self, there: &Self, platforms: &[&str]) {
        let platforms = platforms.iter().map(|it| it.parse().unwrap());
        self.send_by(RemoteRule {
            platforms: platforms.collect(),
            ..rule(there, "^team/")
        });
    }

    /// Sends by this rule from now on, and by no other.
    fn send_by(&self, rule: RemoteRule) {
        let rules = Rules {
            remotes: vec![rule],
            sources: Vec::new(),
        };
        self.replicator.replace(rules, &self.http);
    }

    async fn put(&self, bytes: impl Into<bytes::Bytes>) -> Digest {
        let bytes = bytes.into();
        let (ns, digest) = (repo().namespace(), Digest::of(&bytes));
        self.origins.put(&ns, digest, bytes).await.unwrap();
        digest
    }

    /// An image that nothing links to.
    async fn put_image(&self, name: &str) -> Value {
        let layer = bytes::Bytes::from(format!("layer {name}"));
        self.put("{}").await;
        self.put(layer.clone()).await;
        let manifest = image(MediaType::OciManifest, b"{}", &[layer]);
        self.put(manifest.to_string()).await;
        manifest
    }

    /// An index of an image for amd64 and one for arm64, to which nothing links; it and these.
    async fn put_index(&self, name: &str, subject: Option<&Value>) -> (Digest, [Digest; 2]) {
        let mut entries = Vec::new();
        for arch in ["amd64", "arm64"] {
            let manifest = self.put_image(&format!("{name} {arch}")).await;
            let mut entry = described(&manifest);
            entry["platform"] = json!({"os": "linux", "architecture": arch});
            entries.push(entry);
        }
        let children = [0, 1].map(|at| entries[at]["digest"].as_str().unwrap().parse().unwrap());
        let kind = MediaType::OciIndex.as_str();
        let mut index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries});
        if let Some(subject) = subject {
            index["subject"] = described(subject);
        }
        (self.put(index.to_string()).await, children)
    }

    async fn set(&self, tag: &str, digest: Digest) {
        let tag: TagName = tag.parse().unwrap();
        let set = self.ring.set(&tag, Some(digest), Condition::Any).await;
        set.unwrap();
    }

    async fn hold(&self, link: Link, is_held: bool) {
        let asked = (is_held, Condition::Any);
        self.ring.set_link(&repo(), link, asked).await.unwrap();
    }

    async fn linked(&self, link: Link) -> Linked {
        self.ring.link(&repo(), link).await.unwrap().0
    }

    async fn has(&self, digest: Digest) -> bool {
        self.origins.stat(&repo().namespace(), digest).await.is_ok()
    }

    async fn tag(&self, tag: &str) -> Option<Digest> {
        let state = self.ring.state(&tag.parse().unwrap()).await.unwrap();
        state.and_then(|state| state.now.digest)
    }

    async fn until_tag(&self, tag: &str, digest: Digest) {
        let what = format!("{tag} is {digest} in {}", self.name);
        until(&what, async || self.tag(tag).await == Some(digest)).await;
    }

    async fn until_nothing_waits(&self) {
        until("nothing waits", async || {
            let status = self.replicator.status().await.unwrap();
            status.iter().all(|it| it.waiting == 0)
        })
        .await;
    }
}

async fn ring(dir: &TempDir, name: &str, http: &HttpClient) -> TagRing {
    let store = TagStore::open(dir.path().join("tags.redb")).unwrap();
    let ring = TagRing::new(store, (name, "index-0"), &[], 1, http.raw()).unwrap();
    let taking_part = ring.clone();
    tokio::spawn(async move { taking_part.take_part().await });
    until("it votes", async || ring.is_ready()).await;
    ring
}

fn rule(there: &Side, tags: &str) -> RemoteRule {
    RemoteRule {
        name: there.name.to_owned(),
        kind: RemoteKind::Cluster(vec![there.url.clone()]),
        tags: vec![tags.parse().unwrap()],
        platforms: Vec::new(),
        plan: Plan::default(),
    }
}

fn repo() -> RepoName {
    "team/app".parse().unwrap()
}

fn described(manifest: &Value) -> Value {
    let kind = manifest["mediaType"].as_str().unwrap();
    descriptor(kind, manifest.to_string().as_bytes())
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waited).await;
    waited.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Whatever happens from now on is later than all before.
async fn later() {
    let began = SystemTime::now();
    let passed = async || {
        began
            .elapsed()
            .is_ok_and(|it| it > Duration::from_millis(2))
    };
    until("some time passes", passed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_whose_children_were_removed_comes_back_with_them() {
    let (east, west) = (Side::start("east").await, Side::start("west").await);
    let (index, children) = east.put_index("v1", None).await;
    for side in [&east, &west] {
        for link in children.map(Link::Manifest) {
            side.hold(link, true).await;
            side.hold(link, false).await;
        }
    }
    later().await;
    // By the build-index itself,
    let url = format!("{}/tags/team%2Fapp%3Av1/digest/{index}", east.url);
    let set = super::common::client().put(url).send().await.unwrap();
    assert_eq!(set.status(), 200);
    for link in children.map(Link::Manifest) {
        assert_eq!(east.linked(link).await, Linked::Held);
    }
    // and in another cluster, where one is removed again later.
    east.send_to(&west, &[]);
    west.until_tag("team/app:v1", index).await;
    east.until_nothing_waits().await;
    for link in children.map(Link::Manifest) {
        assert_eq!(west.linked(link).await, Linked::Held);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_was_removed_after_the_tag_was_set_stays_removed() {
    let (east, west) = (Side::start("east").await, Side::start("west").await);
    let (index, children) = east.put_index("v1", None).await;
    let [early, late] = children.map(Link::Manifest);
    east.hold(early, true).await;
    east.hold(early, false).await;
    later().await;
    east.set("team/app:v1", index).await;
    later().await;
    east.hold(late, true).await;
    east.hold(late, false).await;
    east.send_to(&west, &[]);
    west.until_tag("team/app:v1", index).await;
    until("the first is back", async || {
        west.linked(early).await == Linked::Held
    })
    .await;
    assert_eq!(west.linked(late).await, Linked::Removed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_and_is_wanted_no_more_is_not_sent() {
    let (east, west) = (Side::start("east").await, Side::start("west").await);
    let image = east.put_image("v1").await;
    let closed = Plan {
        hours: Hours::new(vec![other_hours()]),
        limit: None,
        limit_outside: None,
    };
    let waiting = RemoteRule {
        plan: closed,
        ..rule(&west, "^team/")
    };
    east.send_by(waiting);
    east.set("team/app:v1", digest_of(&image)).await;
    east.set("team/app:v2", digest_of(&image)).await;
    until("both wait", async || {
        let status = east.replicator.status().await.unwrap();
        status[0].waiting == 2
    })
    .await;
    east.send_by(rule(&west, ":v2$"));
    west.until_tag("team/app:v2", digest_of(&image)).await;
    east.until_nothing_waits().await;
    assert_eq!(west.tag("team/app:v1").await, None);
}

/// A window of a minute, twelve hours from now.
fn other_hours() -> kraken_proto::tags::hours::Window {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let then = now.unwrap().as_secs() / 60 + 12 * 60;
    let time = |minute: u64| format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
    format!("{}-{}", time(then), time(then + 1))
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_is_another_one_under_its_name_gets_what_was_there_before() {
    let east = Side::start("east").await;
    let (west, other) = (Side::start("west").await, Side::start("west").await);
    let image = east.put_image("v1").await;
    east.send_to(&west, &[]);
    east.set("team/app:v1", digest_of(&image)).await;
    west.until_tag("team/app:v1", digest_of(&image)).await;
    east.until_nothing_waits().await;
    east.send_to(&other, &[]);
    other.until_tag("team/app:v1", digest_of(&image)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_platform_goes_also_of_an_image_without_links() {
    let (east, west) = (Side::start("east").await, Side::start("west").await);
    let (index, [amd64, arm64]) = east.put_index("v1", None).await;
    east.send_to(&west, &["linux/amd64"]);
    east.set("team/app:v1", index).await;
    west.until_tag("team/app:v1", index).await;
    east.until_nothing_waits().await;
    assert!(west.has(amd64).await && !west.has(arm64).await);
    assert_eq!(west.linked(Link::Sparse(index)).await, Linked::Held);
    east.send_to(&west, &["linux/amd64", "linux/arm64"]);
    until("the other is there", async || west.has(arm64).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_about_an_image_goes_on_without_what_was_left_out_of_it() {
    let east = Side::start("east").await;
    let (west, south) = (Side::start("west").await, Side::start("south").await);
    let image = east.put_image("v1").await;
    let (about, [amd64, arm64]) = east.put_index("about", Some(&image)).await;
    let referrer = Link::Referrer {
        subject: digest_of(&image),
        manifest: about,
    };
    east.hold(referrer, true).await;
    west.send_to(&south, &[]);
    east.send_to(&west, &["linux/amd64"]);
    east.set("team/app:v1", digest_of(&image)).await;
    south.until_tag("team/app:v1", digest_of(&image)).await;
    west.until_nothing_waits().await;
    for side in [&west, &south] {
        assert_eq!(side.linked(referrer).await, Linked::Held);
        assert_eq!(side.linked(Link::Sparse(about)).await, Linked::Held);
        assert!(side.has(amd64).await && !side.has(arm64).await);
    }
}

/// What has begun to come somewhere can be read while it comes, and may break off: it is not there yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_broke_off_there_is_sent_before_its_tag_is_set() {
    let (east, west) = (Side::start("east").await, Side::start("west").await);
    let layer = bytes::Bytes::from(vec![7; 9 << 20]);
    east.put("{}").await;
    let digest = east.put(layer.clone()).await;
    let image = image(MediaType::OciManifest, b"{}", std::slice::from_ref(&layer));
    east.put(image.to_string()).await;
    let (ns, length) = (repo().namespace(), layer.len() as u64);
    let begun = west.origins.upload_start_known(&ns, digest, length);
    let (origin, id) = begun.await.unwrap();
    let part = layer.slice(..5 << 20);
    let part = futures::stream::iter([Ok(part)]);
    let appended = west.origins.upload_append(&origin, &id, 0, Box::pin(part));
    assert_eq!(appended.await.unwrap(), 5 << 20);
    assert_eq!(west.origins.stat(&ns, digest).await, Ok(length));
    let whole = west.origins.stat_whole(&ns, digest).await;
    assert_eq!(whole, Err(ApiError::NotFound));
    east.send_to(&west, &[]);
    east.set("team/app:v1", digest_of(&image)).await;
    west.until_tag("team/app:v1", digest_of(&image)).await;
    assert_eq!(west.origins.stat_whole(&ns, digest).await, Ok(length));
    east.until_nothing_waits().await;
}
