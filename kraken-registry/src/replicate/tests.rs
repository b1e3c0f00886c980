//! What goes on while remotes are paused and replaced.

use kraken_core::net::http::HttpClient;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::*;
use crate::tags::store::TagStore;

/// A rule for a cluster called west.
fn west(build_index: &str) -> RemoteRule {
    RemoteRule {
        name: "west".into(),
        kind: RemoteKind::Cluster(vec![build_index.to_owned()]),
        tags: vec!["^team/".parse().unwrap()],
        platforms: Vec::new(),
        plan: Plan::default(),
    }
}

fn to(west: RemoteRule) -> Rules {
    Rules {
        remotes: vec![west],
        sources: Vec::new(),
    }
}

/// A build-index that sends to `west`, and how it does so.
fn sending(west: RemoteRule) -> (Replicator, HttpClient, TempDir) {
    // The second test of a process finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = HttpClient::new(None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = TagStore::open(dir.path().join("tags.redb")).unwrap();
    let ring = TagRing::new(store, ("east", "index-0"), &[], 1, http.raw()).unwrap();
    let origins = OriginCluster::new([], http.clone(), 1);
    let own = OwnCluster {
        ring,
        origins,
        replicas: 1,
        policy: TagPolicy::default(),
    };
    let replicator = Replicator::new(own, to(west), &http);
    (replicator, http, dir)
}

impl Replicator {
    fn traffic(&self) -> Arc<traffic::Traffic> {
        let line = self.inner().remotes["west"].clone();
        line.way.traffic().unwrap().clone()
    }
}

#[tokio::test]
async fn nothing_goes_before_it_is_known_what_is_paused() {
    let (replicator, ..) = sending(west("http://127.0.0.1:9"));
    assert_eq!(replicator.traffic().check(), Err(SendError::Held));
    assert!(replicator.set_paused("west", true).await.unwrap());
    let inner = replicator.inner();
    inner.begin(&replicator.pausing).await.unwrap();
    assert_eq!(replicator.traffic().check(), Err(SendError::Held));
    assert!(replicator.set_paused("west", false).await.unwrap());
    inner.begin(&replicator.pausing).await.unwrap();
    assert_eq!(replicator.traffic().check(), Ok(()));
}

#[tokio::test]
async fn a_pause_that_comes_while_remotes_are_replaced_holds() {
    let (replicator, http, _dir) = sending(west("http://127.0.0.1:9"));
    let turn = replicator.pausing.clone().lock_owned().await;
    let pausing = replicator.clone();
    let pausing = tokio::spawn(async move { pausing.set_paused("west", true).await });
    // It waits for its turn.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    replicator.replace(to(west("http://127.0.0.1:9")), &http);
    // What was read before is out of date now.
    replicator.inner().pause(&BTreeSet::new());
    drop(turn);
    assert!(pausing.await.unwrap().unwrap());
    assert_eq!(replicator.traffic().check(), Err(SendError::Held));
    assert!(replicator.status().await.unwrap()[0].is_paused);
}

#[tokio::test]
async fn what_is_on_its_way_ends_when_remotes_are_replaced() {
    // It answers nothing.
    let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", there.local_addr().unwrap());
    let (replicator, http, _dir) = sending(west(&url));
    replicator.set_paused("west", false).await.unwrap();
    let (before, digest) = (replicator.inner(), Digest::of(b"blob"));
    let ns = kraken_proto::Namespace::default();
    let (blobs, sent) = (before.blobs.clone(), ns.clone());
    let carried = tokio::spawn(async move { blobs.carry("west", &sent, digest).await });
    let asked = there.accept().await.unwrap();
    replicator.replace(to(west(&url)), &http);
    assert_eq!(carried.await.unwrap(), blobs::Carried::Held);
    // Nor does anything begin, whatever the earlier rules would allow now.
    before.pause(&BTreeSet::new());
    let carried = before.blobs.carry("west", &ns, digest).await;
    assert_eq!(carried, blobs::Carried::Held);
    drop(asked);
}
