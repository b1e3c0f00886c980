//! A peer with a good certificate and wrong bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kraken::cluster::{Cluster, ClusterOptions};
use kraken_core::net::announce::TrackerClient;
use kraken_core::net::http::HttpClient;
use kraken_core::net::{Discovery as _, Frame, NetError, PeerConn, Quic, Transport as _};
use kraken_core::proto::{
    AnnounceBlob, AnnounceRequest, AnnounceState, Bitfield, Message, PeerRole,
};
use kraken_core::storage::PieceStore as _;
use kraken_core::{Config, Digest, MetaInfo, Namespace, PeerInfo};

use crate::common::{authority_in, identity, open_store, pull, push, random, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_lies_is_banned_and_none_of_its_bytes_is_kept() {
    within(80, "a rogue peer", async {
        let dir = tempfile::tempdir().unwrap();
        let options = ClusterOptions {
            agents: 3,
            origins: 2,
            dir: dir.path().to_path_buf(),
            base_port: None,
        };
        let cluster = Cluster::start(&options).await.unwrap();
        let bytes = random(48 << 20, 3);
        let digest = push(&cluster.proxy.addr.to_string(), &bytes).await;

        let identity = identity(&authority_in(dir.path()), "agent");
        let http = HttpClient::new(Some(&identity)).unwrap();
        let tracker = format!("https://{}", cluster.tracker.addr);
        let tracker = TrackerClient::new([tracker], http).unwrap();
        let meta = tracker.metainfo(&namespace(), digest).await.unwrap();
        let quic = Quic::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap();
        tracker.announce(seeding(&quic, digest)).await.unwrap();
        let asked = Arc::new(AtomicU64::new(0));
        let rogue = tokio::spawn(accept(quic.clone(), meta, asked.clone()));

        let pulls = cluster.agents.iter().map(|agent| {
            let registry = agent.registry.to_string();
            async move { pull(&registry, digest).await }
        });
        for length in futures::future::join_all(pulls).await {
            assert_eq!(length, bytes.len() as u64);
        }
        let asked = asked.load(Ordering::SeqCst);
        let pipeline = Config::lan().pipeline_agent as u64;
        let counts = cluster.agents.iter().map(|agent| {
            let metrics = agent.agent.metrics();
            (metrics.pieces_rejected(), metrics.peers_banned())
        });
        let counts: Vec<_> = counts.collect();
        println!("asked {asked} times; rejected and banned per agent: {counts:?}");
        assert!(asked >= 1, "nobody asked the rogue");
        for (rejected, banned) in &counts {
            assert!(*rejected <= pipeline, "{counts:?}");
            assert!(*rejected == 0 || *banned >= 1, "{counts:?}");
        }
        assert!(counts.iter().any(|(_, banned)| *banned >= 1), "{counts:?}");

        quic.close();
        rogue.await.unwrap();
        cluster.stop().await;
        for number in 1..=options.agents {
            let store = open_store(&dir.path().join(format!("agent-{number}"))).await;
            assert_eq!(store.list().await.unwrap(), [digest]);
            let length = u32::try_from(bytes.len()).unwrap();
            let stored = store.read(digest, 0, length).await.unwrap();
            assert!(stored == bytes, "agent-{number} keeps wrong bytes");
        }
    })
    .await;
}

fn namespace() -> Namespace {
    crate::common::REPOSITORY.parse().unwrap()
}

fn seeding(quic: &Quic, digest: Digest) -> AnnounceRequest {
    AnnounceRequest {
        peer: PeerInfo {
            id: quic.local_id(),
            addr: quic.local_addr(),
            role: PeerRole::Agent,
            zone: None,
        },
        blobs: vec![AnnounceBlob {
            namespace: namespace(),
            digest,
            state: AnnounceState::Seeding,
            links: 0,
            progress: None,
            needy: false,
        }],
    }
}

async fn accept(quic: Quic, meta: MetaInfo, asked: Arc<AtomicU64>) {
    while let Ok(conn) = quic.accept().await {
        tokio::spawn(lie(conn, meta.clone(), asked.clone()));
    }
}

/// Says that it has everything, and sends bytes of the right length and no other merit.
async fn lie(conn: impl PeerConn, meta: MetaInfo, asked: Arc<AtomicU64>) -> Result<(), NetError> {
    let role = PeerRole::Agent;
    conn.send(Frame::control(Message::Hello {
        role,
        contact: None,
    }))
    .await?;
    loop {
        match conn.recv().await?.message {
            Message::Subscribe { digest, .. } if digest == meta.digest() => {
                let subscribe = Message::Subscribe {
                    digest,
                    piece_length: meta.piece_length(),
                    have: Bitfield::full(meta.piece_count()),
                    is_partial: false,
                };
                conn.send(Frame::control(subscribe)).await?;
            }
            Message::Request { digest, piece } => {
                asked.fetch_add(1, Ordering::SeqCst);
                let len = meta.piece_size(piece);
                let frame = Frame {
                    message: Message::Piece { digest, piece, len },
                    payload: Bytes::from(vec![0x66; len as usize]),
                    first: false,
                };
                conn.send(frame).await?;
            }
            _ => {}
        }
    }
}
