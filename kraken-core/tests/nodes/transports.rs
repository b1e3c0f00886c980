//! Agents over real sockets, some of which dial over QUIC and some over TCP.

use kraken_core::net::{CertAuthority, Dual, Identity, PathChoice};
use kraken_core::storage::testkit::blob;
use kraken_core::storage::{MemStore, UploadStore as _};
use kraken_core::{Agent, Digest};
use tokio::io::AsyncReadExt as _;

use crate::common::Local;

fn bind(authority: &CertAuthority, choice: PathChoice) -> Dual {
    let (cert, key) = authority.issue("agent", &[]).unwrap();
    let identity = Identity::from_pem(&cert, &key, &authority.to_pem().0).unwrap();
    Dual::bind("127.0.0.1:0".parse().unwrap(), &identity, choice).unwrap()
}

fn agent(store: MemStore, transport: Dual, discovery: &Local) -> Agent {
    let builder = Agent::builder(store, transport).discovery(discovery.clone());
    builder.spawn().unwrap()
}

async fn read_all(agent: &Agent, digest: Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut reader = agent.open(digest).await.unwrap();
    reader.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dials_over_tcp_shares_a_swarm_with_those_who_dial_over_quic() {
    let authority = CertAuthority::create().unwrap();
    let (bytes, meta) = blob(5 << 20, 1);
    let (discovery, store) = (Local::new(), MemStore::new());
    let upload = store.upload_start().await.unwrap();
    let appended = store.upload_append(&upload, 0, bytes.clone().into());
    appended.await.unwrap();
    store.upload_commit(&upload, meta.digest()).await.unwrap();
    let digest = meta.digest();
    discovery.metas.lock().unwrap().insert(digest, meta);
    let sockets = bind(&authority, PathChoice::Quic);
    let seeder = agent(store, sockets.clone(), &discovery);
    assert_eq!(seeder.seed_all().await.unwrap(), 1);
    for (choice, paths) in [
        (PathChoice::Tcp, [0, 1]),
        (PathChoice::Quic, [1, 1]),
        (PathChoice::Auto, [2, 1]),
    ] {
        let transport = bind(&authority, choice);
        let leecher = agent(MemStore::new(), transport, &discovery);
        assert_eq!(read_all(&leecher, digest).await, bytes, "{choice:?}");
        let accepted = [sockets.stats().quic.accepted, sockets.stats().tcp.accepted];
        assert_eq!(accepted, paths, "{choice:?}");
        leecher.shutdown().await;
    }
    seeder.shutdown().await;
}
