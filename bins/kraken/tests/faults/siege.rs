//! An agent that is attacked on every port, by strangers and by a member of its cluster, which floods its tracker with
//! announces as well: its runtime gets its blobs all the while, and neither grows.

use std::fs;
use std::future::ready;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, StatusCode};
use kraken_core::net::http::{HttpBody, HttpClient};
use kraken_core::net::{CertAuthority, Frame, PeerConn, Quic, Transport as _};
use kraken_core::proto::{
    AnnounceBlob, AnnounceRequest, AnnounceState, Bitfield, Message, PeerRole, PieceLength,
};
use kraken_core::{Digest, PeerId, PeerInfo};
use kraken_daemon::descriptors;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::common::{Lab, identity, pull, push, random, within};

/// Connections that say nothing or too little, half of them at each port.
const HALF_OPEN: usize = 10_000;
/// Messages of the hostile member.
const MESSAGES: u32 = 100_000;
/// Announces of a hostile member, one blob each that does not exist, and how many of them are on their way at a time.
const ANNOUNCES: usize = 100_000;
const AT_ONCE: usize = 64;
/// Connections that ask for a blob and do not read it.
const UNREAD: usize = 500;
/// How often the hostile member may fail to get in: the agent has to bear strangers at the same ports meanwhile.
const REFUSALS: u32 = 20;
/// What an agent may need more than in peace: what ten thousand sockets and the reading of
/// [`MESSAGES`] take, and far less than any length that was announced to it.
const CEILING: u64 = 256 << 20;
/// One gigabyte, as a length to announce.
const HUGE: u32 = 1 << 30;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_under_attack_serves_its_runtime_and_does_not_grow() {
    within(240, "a siege", async {
        let descriptors = descriptors::raise().unwrap_or(u64::MAX);
        let half_open = HALF_OPEN.min(usize::try_from(descriptors).unwrap_or(usize::MAX) / 2);
        if half_open < HALF_OPEN {
            println!("SKIPPED in part: {half_open} connections instead of {HALF_OPEN}, for want of file descriptors");
        }
        let lab = Lab::start(1, 2).await;
        let (proxy, agent) = (lab.host("proxy"), lab.host("agent-1"));
        let target = Target::of(&lab, "agent-1");
        let first = push(&proxy, &random(8 << 20, 1)).await;
        pull(&agent, first).await;
        let memory = || ["agent-1", "tracker"].map(|name| lab.memory(name));
        let before = memory();

        let over = CancellationToken::new();
        let mut attacks = JoinSet::new();
        let strangers = half_open_connections(&target, half_open).await;
        let unread = unread_answers(&target, first).await;
        attacks.spawn(garbage(target.clone(), over.clone()));
        attacks.spawn(huge_lengths(target.clone(), over.clone()));
        let flood = tokio::spawn(hostile_member(target.clone()));
        let announces = tokio::spawn(announces(lab.host("tracker"), target.clone()));
        for seed in 2..10 {
            let bytes = random(8 << 20, seed);
            let digest = push(&proxy, &bytes).await;
            assert_eq!(pull(&agent, digest).await, bytes.len() as u64);
            assert_eq!(pull(&agent, first).await, bytes.len() as u64);
        }
        let (sent, refused) = flood.await.unwrap();
        let (taken, rate) = announces.await.unwrap();
        println!("{taken} of {ANNOUNCES} announces were taken, of {rate:.0} per second");
        over.cancel();
        attacks.join_all().await;
        // A neighbour is served by it as well.
        pull(&lab.host("agent-2"), first).await;
        let after = memory();
        println!("agent and tracker: {:?} MiB before, {:?} MiB after {sent} messages", before.map(mib), after.map(mib));
        assert!(sent >= MESSAGES, "the member sent {sent} messages, and did not get in {refused} times");
        // It may announce as others do, and no more than that.
        assert!((1..ANNOUNCES / 2).contains(&taken), "{taken} of {ANNOUNCES} announces were taken");
        for (before, after) in before.into_iter().zip(after) {
            assert!(after < before + CEILING, "it grew from {before} to {after} bytes");
        }
        drop((strangers, unread));
    })
    .await;
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// Where an agent is attacked.
#[derive(Clone)]
struct Target {
    registry: SocketAddr,
    peers: SocketAddr,
    id: PeerId,
    authority: Arc<CertAuthority>,
}

impl Target {
    fn of(lab: &Lab, agent: &str) -> Self {
        let config = fs::read_to_string(lab.config(agent)).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let (cert, key) = lab.authority().to_pem();
        let authority = CertAuthority::from_pem(&cert, &key).unwrap();
        let addr = |key: &str| config[key].as_str().unwrap().parse().unwrap();
        Self {
            registry: addr("registry_listen"),
            peers: addr("peer_listen"),
            id: lab.peer_id(agent),
            authority: Arc::new(authority),
        }
    }

    /// A connection of a member that nobody has met yet; none when the agent does not let it in.
    async fn connect(&self) -> Option<(Quic, impl PeerConn + use<>)> {
        let quic = Quic::bind(any_port(), &identity(&self.authority, "agent")).unwrap();
        let peer = PeerInfo {
            id: self.id,
            addr: self.peers,
            role: PeerRole::Agent,
            zone: None,
        };
        let conn = quic.dial(&peer).await.ok()?;
        let role = PeerRole::Agent;
        let contact = None;
        let hello = Frame::control(Message::Hello { role, contact });
        conn.send(hello).await.ok()?;
        Some((quic, conn))
    }
}

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Connections at both ports that begin and do not go on; they stand while this is held.
async fn half_open_connections(target: &Target, count: usize) -> Vec<TcpStream> {
    let open = |number: usize| async move {
        let (addr, beginning): (_, &[u8]) = match number % 4 {
            0 => (target.registry, b""),
            1 => (target.registry, b"GET /v2/ HTTP/1.1\r\nHost: "),
            2 => (target.peers, b""),
            // The first bytes of a record of TLS, of which the rest does not come.
            _ => (target.peers, b"\x16\x03\x01\x02\x00\x01"),
        };
        let mut stream = TcpStream::connect(addr).await.ok()?;
        stream.write_all(beginning).await.ok()?;
        Some(stream)
    };
    let open = futures::stream::iter(0..count).map(open);
    let opened = open.buffer_unordered(64);
    opened.filter_map(ready).collect().await
}

/// Connections that ask for a blob which is there and read nothing of it; they stand while this is held.
async fn unread_answers(target: &Target, digest: Digest) -> Vec<TcpStream> {
    let request = format!("GET /v2/a/b/blobs/{digest} HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut open = Vec::new();
    for _ in 0..UNREAD {
        let mut stream = TcpStream::connect(target.registry).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        open.push(stream);
    }
    open
}

/// A member with a good certificate that announces as fast as it can; how many announces the tracker took, and how many
/// came per second.
async fn announces(tracker: String, target: Target) -> (usize, f64) {
    let identity = identity(&target.authority, "agent");
    let http = HttpClient::new(Some(&identity)).unwrap();
    let peer = PeerInfo {
        id: identity.peer_id(),
        addr: (Ipv4Addr::LOCALHOST, 9).into(),
        role: PeerRole::Agent,
        zone: None,
    };
    let began = Instant::now();
    let answers = futures::stream::iter(0..ANNOUNCES).map(|number| {
        let announce = announce(&peer, number);
        let request = Request::post(format!("https://{tracker}/announce"))
            .header("content-type", "application/json")
            .body(HttpBody::Bytes(
                serde_json::to_vec(&announce).unwrap().into(),
            ));
        http.send(request.unwrap())
    });
    let mut answers = answers.buffer_unordered(AT_ONCE);
    let (mut taken, mut refused) = (0, 0);
    while let Some(answer) = answers.next().await {
        match answer.unwrap().status() {
            StatusCode::OK => taken += 1,
            StatusCode::TOO_MANY_REQUESTS => refused += 1,
            other => panic!("an announce was answered with {other}"),
        }
    }
    assert_eq!(taken + refused, ANNOUNCES);
    (taken, ANNOUNCES as f64 / began.elapsed().as_secs_f64())
}

fn announce(peer: &PeerInfo, number: usize) -> AnnounceRequest {
    AnnounceRequest {
        peer: peer.clone(),
        blobs: vec![AnnounceBlob {
            namespace: "siege".parse().unwrap(),
            digest: Digest::of(&number.to_be_bytes()),
            state: AnnounceState::Seeding,
            links: 0,
            progress: None,
            needy: false,
        }],
    }
}

/// Random bytes to every port, until it is over.
async fn garbage(target: Target, over: CancellationToken) {
    let socket = UdpSocket::bind(any_port()).await.unwrap();
    let mut seed = 100;
    while !over.is_cancelled() {
        seed += 1;
        let bytes = random(1200, seed);
        // What is lost or refused was garbage.
        let _ = socket.send_to(&bytes, target.peers).await;
        for addr in [target.registry, target.peers] {
            let _ = say(addr, &bytes).await;
        }
    }
}

/// Says it, and reads until the other side ends the connection.
async fn say(addr: SocketAddr, bytes: &[u8]) -> std::io::Result<usize> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    stream.read_to_end(&mut Vec::new()).await
}

/// Requests whose bodies would be long, and which end before them.
async fn huge_lengths(target: Target, over: CancellationToken) {
    let heads = [
        format!(
            "POST /v2/a/b/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nContent-Length: {HUGE}\r\n\r\n"
        ),
        format!(
            "PUT /x/blobs/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{HUGE:x}\r\n"
        ),
        format!(
            "GET /v2/a/b/blobs/{} HTTP/1.1\r\nHost: a\r\nRange: bytes={HUGE}-\r\n\r\n",
            Digest::of(b"")
        ),
        format!("GET /v2/ HTTP/1.1\r\nHost: {}", "a".repeat(1 << 20)),
    ];
    while !over.is_cancelled() {
        for head in &heads {
            let _ = say(target.registry, head.as_bytes()).await;
        }
    }
}

/// A member with a good certificate that sends as many messages as the agent takes, with the largest
/// claims that messages can make; how many it sent, and how often it did not get in.
async fn hostile_member(target: Target) -> (u32, u32) {
    let (mut sent, mut refused) = (0, 0);
    // Who breaks the protocol is banned; another member goes on.
    while sent < MESSAGES && refused < REFUSALS {
        let Some((quic, conn)) = target.connect().await else {
            refused += 1;
            continue;
        };
        let lie = sent;
        for number in 0..MESSAGES / 4 {
            if conn.send(claim(number, lie)).await.is_err() {
                break;
            }
            sent += 1;
        }
        quic.close();
    }
    (sent, refused)
}

fn claim(number: u32, lie: u32) -> Frame {
    let digest = Digest::of(&number.to_be_bytes());
    let message = match number % 5 {
        0 => Message::Subscribe {
            digest,
            piece_length: PieceLength::MAX,
            have: Bitfield::full(PieceLength::MAX_PIECES),
            is_partial: number.is_multiple_of(2),
        },
        1 => Message::AskPeers { digest },
        2 => Message::AskMetaInfo { digest, offset: 0 },
        3 => Message::Have {
            digest,
            pieces: (0..1024).collect(),
        },
        // After a while, what nobody asked for.
        _ if number > 20_000 + lie => {
            let payload = Bytes::from_static(&[0; 64]);
            let message = Message::Piece {
                digest,
                piece: 0,
                len: HUGE,
            };
            return Frame {
                message,
                payload,
                first: false,
            };
        }
        _ => Message::Request {
            digest,
            piece: PieceLength::MAX_PIECES,
        },
    };
    Frame::control(message)
}
