//! A cluster in one process, and a deploy daemon that is an agent of it.
//!
//! An origin with a directory as its storage and a tracker stand for the cluster; elsewhere these are
//! processes of their own. The daemon embeds an agent: it follows a file that names the release of its
//! host, fetches that blob from the swarm, and puts it in place when every byte has been verified, by a
//! rename, so that nobody ever sees half a release. `cargo run -p kraken-examples --example deploy_daemon`
#![expect(clippy::print_stdout, reason = "an example that shows what it does")]

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kraken_core::net::announce::{self, TrackerClient};
use kraken_core::net::http::{HttpClient, serve};
use kraken_core::net::origin::{OriginCluster, router};
use kraken_core::net::{CertAuthority, Identity, Quic};
use kraken_core::origin::RingMember;
use kraken_core::storage::{DurableQueue, FsStore, OpendalBackend};
use kraken_core::{Agent, Digest, Namespace, Origin, Tracker};
use tokio_util::sync::CancellationToken;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let namespace: Namespace = "releases".parse()?;
    let cluster = Cluster::start(dir.path()).await?;
    let daemon = DeployDaemon::start(dir.path(), &cluster).await?;

    for version in 1..=2 {
        let release = vec![version; 3 << 20];
        let digest = Digest::of(&release);
        let length = release.len();
        cluster
            .origins
            .put(&namespace, digest, release.into())
            .await?;
        tokio::fs::write(&daemon.wanted, digest.to_string()).await?;
        let installed = daemon.next_release(&namespace).await?;
        assert_eq!(installed, digest);
        assert_eq!(
            tokio::fs::metadata(&daemon.current).await?.len(),
            length as u64
        );
        println!("release {version} is in place: {digest}");
    }

    daemon.agent.shutdown().await;
    cluster.stop().await;
    Ok(())
}

/// An origin and a tracker.
struct Cluster {
    authority: CertAuthority,
    tracker: SocketAddr,
    origins: OriginCluster,
    services: (Origin, Tracker),
    shutdown: CancellationToken,
}

fn any_port() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A certificate of the cluster for a process on this host.
fn identity(authority: &CertAuthority, role: &str) -> Outcome<Identity> {
    let (cert, key) = authority.issue(role, &["127.0.0.1".to_string()])?;
    Ok(Identity::from_pem(&cert, &key, &authority.to_pem().0)?)
}

impl Cluster {
    async fn start(dir: &Path) -> Outcome<Self> {
        let authority = CertAuthority::create()?;
        let shutdown = CancellationToken::new();

        let proof = identity(&authority, "origin")?;
        let store = FsStore::open(dir.join("origin")).await?;
        let queue = DurableQueue::open(dir.join("origin.redb"))?;
        let storage = OpendalBackend::local_disk(dir.join("storage"))?;
        let quic = Quic::bind(any_port(), &proof)?;
        let origin = Origin::builder("origin-1", store, quic, storage, queue).spawn()?;
        let routes = router(Arc::new(origin.clone()));
        let server = serve(any_port(), routes, Some(&proof), shutdown.clone())?;
        let url = format!("https://{}", server.local_addr()).parse()?;
        let ring = vec![RingMember::new("origin-1", url)];

        let proof = identity(&authority, "tracker")?;
        let http = HttpClient::new(Some(&proof))?;
        let tracker = Tracker::builder(OriginCluster::new(ring.clone(), http, 1)).spawn();
        let routes = announce::router(Arc::new(tracker.clone()));
        let server = serve(any_port(), routes, Some(&proof), shutdown.clone())?;

        let http = HttpClient::new(Some(&identity(&authority, "proxy")?))?;
        Ok(Self {
            authority,
            tracker: server.local_addr(),
            origins: OriginCluster::new(ring, http, 1),
            services: (origin, tracker),
            shutdown,
        })
    }

    async fn stop(self) {
        self.shutdown.cancel();
        let (origin, tracker) = self.services;
        tracker.shutdown().await;
        origin.shutdown().await;
    }
}

/// Brings the release that a file names to where it is run.
struct DeployDaemon {
    agent: Agent,
    /// Holds the digest of the release that this host is to run.
    wanted: PathBuf,
    /// The release that it runs.
    current: PathBuf,
}

impl DeployDaemon {
    async fn start(dir: &Path, cluster: &Cluster) -> Outcome<Self> {
        let proof = identity(&cluster.authority, "agent")?;
        let tracker = format!("https://{}", cluster.tracker);
        let trackers = TrackerClient::new([tracker], HttpClient::new(Some(&proof))?)?;
        let store = FsStore::open(dir.join("agent")).await?;
        let agent = Agent::builder(store, Quic::bind(any_port(), &proof)?);
        Ok(Self {
            agent: agent.discovery(trackers).spawn()?,
            wanted: dir.join("wanted"),
            current: dir.join("current"),
        })
    }

    /// Waits until another release is wanted than the one in place, and installs it.
    async fn next_release(&self, namespace: &Namespace) -> Outcome<Digest> {
        let installed = match tokio::fs::read(&self.current).await {
            Ok(bytes) => Some(Digest::of(&bytes)),
            Err(_) => None,
        };
        loop {
            let wanted = tokio::fs::read_to_string(&self.wanted).await?;
            let wanted: Digest = wanted.trim().parse()?;
            if installed != Some(wanted) {
                self.install(namespace, wanted).await?;
                return Ok(wanted);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn install(&self, namespace: &Namespace, digest: Digest) -> Outcome<()> {
        let beside = self.current.with_extension("new");
        let mut file = tokio::fs::File::create(&beside).await?;
        let mut blob = self.agent.open_in(namespace, digest).await?;
        // Every piece is verified before it is read; an error here leaves the release as it was.
        tokio::io::copy(&mut blob, &mut file).await?;
        file.sync_all().await?;
        tokio::fs::rename(&beside, &self.current).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_comes_to_its_end() {
        super::main().unwrap();
    }
}
