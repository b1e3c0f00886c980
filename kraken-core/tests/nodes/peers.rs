//! Peers kept over restarts: what an agent met in one life leads it into swarms in the next, when
//! no tracker answers.

use std::path::Path;
use std::time::Duration;

use kraken_core::net::{Discovery, DiscoveryError, MemNetwork};
use kraken_core::proto::{AnnounceReply, AnnounceRequest};
use kraken_core::storage::testkit::blob;
use kraken_core::storage::{MemStore, UploadStore as _};
use kraken_core::{Agent, Digest, MetaInfo, Namespace, PeerId, PeerInfo};

use crate::common::Known;

/// Trackers that always have the metainfo, which no peer gives, and hand out the seeder until they
/// are dead.
#[derive(Clone)]
struct Trackers {
    known: Known,
    are_dead: bool,
}

impl Discovery for Trackers {
    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceReply, DiscoveryError> {
        match self.are_dead {
            true => Err(DiscoveryError::Unavailable("dead".into())),
            false => self.known.announce(request).await,
        }
    }

    async fn metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, DiscoveryError> {
        self.known.metainfo(namespace, digest).await
    }
}

struct Lab {
    network: MemNetwork,
    seeder: Agent,
    alive: Trackers,
}

impl Lab {
    /// A seeder of two blobs.
    async fn new() -> Self {
        let (network, store) = (MemNetwork::new(), MemStore::new());
        let mut metas = Vec::new();
        for seed in 1..=2 {
            let (bytes, meta) = blob(3_000_000, seed);
            let upload = store.upload_start().await.unwrap();
            let appended = store.upload_append(&upload, 0, bytes.into()).await;
            appended.unwrap();
            store.upload_commit(&upload, meta.digest()).await.unwrap();
            metas.push(meta);
        }
        let transport = network.transport(PeerId::from_bytes([1; 32]));
        let mut known = Known {
            seeders: Vec::new(),
            metas,
        };
        let nobody = Trackers {
            known: known.clone(),
            are_dead: true,
        };
        let seeder = Agent::builder(store, transport).discovery(nobody);
        let seeder = seeder.spawn().unwrap();
        assert_eq!(seeder.seed_all().await.unwrap(), 2);
        known.seeders.push(seeder.local().clone());
        let alive = Trackers {
            known,
            are_dead: false,
        };
        Self {
            network,
            seeder,
            alive,
        }
    }

    /// One life of an agent, with an empty store.
    fn live(&self, trackers: Trackers, peers: &Path) -> Agent {
        let transport = self.network.transport(PeerId::from_bytes([2; 32]));
        Agent::builder(MemStore::new(), transport)
            .discovery(trackers)
            .peers_file(peers)
            .spawn()
            .unwrap()
    }

    fn dead(&self) -> Trackers {
        Trackers {
            are_dead: true,
            ..self.alive.clone()
        }
    }

    async fn fetch(&self, agent: &Agent, index: usize) {
        let (namespace, meta) = (Namespace::default(), &self.alive.known.metas[index]);
        let fetched = agent.fetch(&namespace, meta.digest());
        let fetched = tokio::time::timeout(Duration::from_secs(60), fetched).await;
        fetched.expect("within a minute").unwrap();
    }
}

fn saved(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_an_earlier_life_gives_a_blob_when_all_trackers_are_dead() {
    let (lab, dir) = (Lab::new().await, tempfile::tempdir().unwrap());
    let path = dir.path().join("peers.json");
    let first = lab.live(lab.alive.clone(), &path);
    lab.fetch(&first, 0).await;
    first.shutdown().await;
    let id = lab.seeder.local().id.to_string();
    assert!(saved(&path).contains(&id));

    let second = lab.live(lab.dead(), &path);
    lab.fetch(&second, 1).await;
    second.shutdown().await;
    assert!(saved(&path).contains(&id), "and it is known for the next");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_in_which_nobody_is_met_forgets_nobody() {
    let (lab, dir) = (Lab::new().await, tempfile::tempdir().unwrap());
    let path = dir.path().join("peers.json");
    let known = vec![lab.seeder.local().clone()];
    std::fs::write(&path, serde_json::to_vec(&known).unwrap()).unwrap();
    lab.live(lab.dead(), &path).shutdown().await;
    let kept: Vec<PeerInfo> = serde_json::from_str(&saved(&path)).unwrap();
    assert_eq!(kept, known);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_ignored_and_replaced() {
    let (lab, dir) = (Lab::new().await, tempfile::tempdir().unwrap());
    let path = dir.path().join("peers.json");
    std::fs::write(&path, "[{\"id\":\"no").unwrap();
    let agent = lab.live(lab.alive.clone(), &path);
    lab.fetch(&agent, 0).await;
    agent.shutdown().await;
    let kept: Vec<PeerInfo> = serde_json::from_str(&saved(&path)).unwrap();
    assert_eq!(kept, [lab.seeder.local().clone()]);
}

#[tokio::test(start_paused = true)]
async fn news_is_kept_while_the_agent_runs() {
    let (lab, dir) = (Lab::new().await, tempfile::tempdir().unwrap());
    let path = dir.path().join("peers.json");
    let agent = lab.live(lab.alive.clone(), &path);
    lab.fetch(&agent, 0).await;
    assert!(!path.exists(), "not at once");
    tokio::time::sleep(Duration::from_secs(60)).await;
    for _ in 0..1000 {
        if path.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let kept: Vec<PeerInfo> = serde_json::from_str(&saved(&path)).unwrap();
    assert_eq!(kept, [lab.seeder.local().clone()]);
    // It ends without a farewell.
    drop(agent);
    let next = lab.live(lab.dead(), &path);
    lab.fetch(&next, 1).await;
}
