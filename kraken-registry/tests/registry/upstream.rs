//! Tags of other registries, which answer, do not, or want to be left alone.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use kraken_proto::{Digest, Namespace};
use kraken_registry::memory::MemoryBlobs;
use kraken_registry::pull::{self, PullState, StaleTags};
use kraken_registry::tags::client::TagClient;
use kraken_registry::tags::server::{self, TagPolicy};
use kraken_registry::tags::upstream::{Freshness, UpstreamRule};
use kraken_registry::{BlobBody, BlobSource, MediaType, ResolveError, SourceError};
use regex::Regex;
use reqwest::{Method, Response};
use tempfile::TempDir;

use super::common::{client, header, image, serve};
use super::tags::{ask, store};

/// What other registries say when they are asked.
#[derive(Debug, Clone)]
enum Says {
    Digest(Digest),
    Error(ResolveError),
    Nothing,
}

/// Blobs in memory, and registries that all say the same.
#[derive(Debug)]
struct Registries {
    blobs: MemoryBlobs,
    says: Mutex<Says>,
    asked: AtomicUsize,
}

impl BlobSource for Registries {
    async fn stat(&self, ns: &Namespace, digest: Digest) -> Result<Option<u64>, SourceError> {
        self.blobs.stat(ns, digest).await
    }

    async fn open(
        &self,
        ns: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<BlobBody, SourceError> {
        self.blobs.open(ns, digest, range).await
    }

    async fn resolve(&self, _: &Namespace, _: &str) -> Result<Option<Digest>, ResolveError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let says = self.says.lock().unwrap().clone();
        match says {
            Says::Digest(digest) => Ok(Some(digest)),
            Says::Error(error) => Err(error),
            Says::Nothing => std::future::pending().await,
        }
    }
}

/// A build-index before these registries, and a mirror before that.
struct Cluster {
    registries: Arc<Registries>,
    policy: TagPolicy,
    mirror: String,
    stale: StaleTags,
    _dir: TempDir,
}

impl Cluster {
    /// All tags point to one image.
    async fn start() -> Self {
        let blobs = MemoryBlobs::default();
        let manifest = image(MediaType::OciManifest, b"{}", &[]);
        let digest = blobs.insert(manifest.to_string());
        let registries = Arc::new(Registries {
            blobs: blobs.clone(),
            says: Mutex::new(Says::Digest(digest)),
            asked: AtomicUsize::new(0),
        });
        let (ring, dir) = store().await;
        let rule = UpstreamRule {
            repositories: Regex::new(r"\.(io|example)/").unwrap(),
            fresh: Freshness::Always,
        };
        let policy = TagPolicy::default().with_upstreams(vec![rule]);
        let index = serve(server::router(ring, policy.clone(), registries.clone())).await;
        let stale = StaleTags::default();
        let state = PullState::mirror(blobs, TagClient::new(client(), [index]))
            .access(kraken_registry::access::Access::everybody())
            .count_stale(stale.clone());
        Self {
            registries,
            policy,
            mirror: serve(pull::router(state)).await,
            stale,
            _dir: dir,
        }
    }

    fn say(&self, says: Says) {
        *self.registries.says.lock().unwrap() = says;
    }

    fn asked(&self) -> usize {
        self.registries.asked.swap(0, Ordering::SeqCst)
    }

    async fn pull(&self, image: &str) -> Response {
        let (repository, tag) = image.split_once(':').unwrap();
        let url = format!("{}/v2/{repository}/manifests/{tag}", self.mirror);
        ask(Method::GET, &url).await
    }

    /// Whether the image is told, and whether as one that may be out of date.
    async fn is_stale(&self, image: &str) -> bool {
        let pulled = self.pull(image).await;
        assert_eq!(pulled.status(), StatusCode::OK, "{image}");
        let stale = header(&pulled, "kraken-tag-stale");
        assert!(["", "true"].contains(&stale.as_str()), "{stale}");
        stale == "true"
    }

    fn stale(&self) -> u64 {
        self.stale.count()
    }
}

const IMAGES: [&str; 3] = [
    "docker.io/library/a:v1",
    "docker.io/library/a:v2",
    "docker.io/b:v1",
];
const OTHER: &str = "quay.example/c/d:v1";

async fn known() -> Cluster {
    let cluster = Cluster::start().await;
    for image in IMAGES.into_iter().chain([OTHER]) {
        assert!(!cluster.is_stale(image).await, "{image}");
    }
    assert_eq!(cluster.asked(), 4);
    assert_eq!(cluster.stale(), 0);
    cluster
}

#[tokio::test]
async fn a_registry_that_is_away_is_asked_once_for_all_its_tags() {
    for wait in [None, Some(Duration::from_secs(30))] {
        let cluster = known().await;
        let reason = "502".to_owned();
        cluster.say(Says::Error(ResolveError::Away { reason, wait }));
        for image in IMAGES {
            assert!(cluster.is_stale(image).await, "{image}");
        }
        assert_eq!(cluster.asked(), 1);
        // What is not known is not had, and the registry is spared.
        let unknown = cluster.pull("docker.io/library/a:v3").await;
        assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
        assert_eq!(cluster.asked(), 0);
        assert!(cluster.is_stale(OTHER).await);
        assert_eq!(cluster.asked(), 1, "another registry is asked for itself");
        assert_eq!(cluster.stale(), 4);
        // What the client has already may be out of date as well.
        let (repository, tag) = IMAGES[0].split_once(':').unwrap();
        let url = format!("{}/v2/{repository}/manifests/{tag}", cluster.mirror);
        let asked = client().get(&url).header("if-none-match", "*").send().await;
        let asked = asked.unwrap();
        assert_eq!(asked.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(header(&asked, "kraken-tag-stale"), "true");
    }
}

#[tokio::test]
async fn other_rules_count_from_the_moment_they_are_there() {
    let cluster = known().await;
    let before = cluster.policy.clone();
    let asked = TagPolicy::new(["docker.io/.*"]).unwrap();
    cluster.policy.replace(&asked);
    assert!(!cluster.is_stale(IMAGES[0]).await);
    assert_eq!(cluster.asked(), 0, "no rule is about it any more");
    // Clones share what holds.
    let always = UpstreamRule {
        repositories: Regex::new("^docker").unwrap(),
        fresh: Freshness::Always,
    };
    before.replace(&TagPolicy::default().with_upstreams(vec![always]));
    assert!(!cluster.is_stale(IMAGES[0]).await);
    assert_eq!(cluster.asked(), 1);
}

#[tokio::test]
async fn one_that_does_not_answer_is_waited_for_once() {
    let cluster = known().await;
    cluster.say(Says::Nothing);
    for image in IMAGES {
        assert!(cluster.is_stale(image).await, "{image}");
    }
    assert_eq!(cluster.asked(), 1);
}

#[tokio::test]
async fn one_that_refuses_a_tag_is_asked_about_others() {
    let cluster = known().await;
    cluster.say(Says::Error(ResolveError::Refused("401".into())));
    for image in [IMAGES[0], IMAGES[0], IMAGES[1]] {
        assert!(cluster.is_stale(image).await, "{image}");
    }
    assert_eq!(cluster.asked(), 2);
    let digest = cluster.pull(IMAGES[1]).await;
    let digest = header(&digest, "docker-content-digest").parse().unwrap();
    cluster.say(Says::Digest(digest));
    assert!(!cluster.is_stale(IMAGES[2]).await);
}
