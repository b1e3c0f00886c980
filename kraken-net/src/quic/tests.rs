//! The contract of transports, and hostile peers, on real sockets on the loopback.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kraken_proto::wire::codec;
use kraken_proto::{PeerInfo, PeerRole};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use tokio::net::UdpSocket;

use super::frame::PREAMBLE;
use super::{Quic, QuicConn, QuicOptions, tls};
use crate::contract::{Pair, Subject, announced, bind, contract_tests, identity, pair, request};
use crate::stats::TransportStats;
use crate::transport::{Frame, NetError, PeerConn, Transport};
use crate::verifier::anonymous;
use crate::{CertAuthority, Identity};

impl Subject for Quic {
    fn any_port(identity: &Identity) -> Self {
        Self::bind("127.0.0.1:0".parse().unwrap(), identity).unwrap()
    }

    fn stats(&self) -> TransportStats {
        self.stats()
    }

    fn drained(&self) -> impl Future<Output = ()> + Send {
        self.drained()
    }
}

contract_tests!(crate::Quic);

/// A connection between two sockets with these choices.
async fn pair_with(options: &QuicOptions) -> (Quic, Quic, QuicConn, QuicConn) {
    let ca = CertAuthority::create().unwrap();
    let (ours, theirs) = (identity(&ca), identity(&ca));
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let dialer = Quic::bind_with(any, &ours, options).unwrap();
    let acceptor = Quic::bind_with(any, &theirs, options).unwrap();
    let info = PeerInfo {
        id: acceptor.local_id(),
        addr: acceptor.local_addr(),
        role: PeerRole::Agent,
        zone: None,
    };
    let (out, into) = tokio::join!(dialer.dial(&info), acceptor.accept());
    let (out, into) = (out.unwrap(), into.unwrap());
    (dialer, acceptor, out, into)
}

/// Sends pieces one by one, each after the one before has come, and then all at once.
async fn exchange(ours: &QuicConn, theirs: &QuicConn, pieces: u32, len: usize) {
    let piece = |index: u32| Frame {
        message: announced(index, len),
        payload: Bytes::from(vec![index as u8; len]),
        first: false,
    };
    for index in 0..pieces {
        ours.send(piece(index)).await.unwrap();
        assert_eq!(theirs.recv().await.unwrap(), piece(index));
    }
    let sent = futures::future::join_all((0..pieces).map(|index| ours.send(piece(index))));
    let came = async {
        for _ in 0..pieces {
            theirs.recv().await.unwrap();
        }
    };
    tokio::join!(sent, came);
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_any_size_get_through() {
    for mtu in [1200, 6550, 6551, 7000, 8972, 9000] {
        let options = QuicOptions::default().mtu(mtu);
        let (dialer, _acceptor, ours, theirs) = pair_with(&options).await;
        let exchanged = exchange(&ours, &theirs, 6, 2 << 20);
        let exchanged = tokio::time::timeout(Duration::from_secs(20), exchanged).await;
        assert!(exchanged.is_ok(), "stalled at {mtu}: {:?}", dialer.stats());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_datagrams_go_out_in_one_call_and_none_stays_behind() {
    let options = QuicOptions::default().mtu(1452);
    let (dialer, acceptor, ours, theirs) = pair_with(&options).await;
    // Lengths at which a batch is just full or just begun when there is nothing more to send.
    for len in [1, 1400, 14_000, 14_200, 28_600, 57_000, 100_000] {
        let exchanged = exchange(&ours, &theirs, 8, len);
        let exchanged = tokio::time::timeout(Duration::from_secs(20), exchanged).await;
        assert!(exchanged.is_ok(), "stalled with {len}");
    }
    let before = dialer.stats();
    exchange(&ours, &theirs, 8, 4 << 20).await;
    let after = dialer.stats();
    assert!(before.offload && acceptor.stats().offload && dialer.offload() == Some(true));
    let (datagrams, sends) = (
        after.datagrams - before.datagrams,
        after.sends - before.sends,
    );
    assert!(datagrams >= 8 * 2 * 2880, "{datagrams}");
    // quinn alone would have at most 10.
    assert!(datagrams > 12 * sends, "{datagrams} in {sends}");
}

/// A client that speaks QUIC and keeps to no rule of ours.
struct Raw {
    endpoint: Endpoint,
    conn: Connection,
}

async fn raw(config: ClientConfig, addr: SocketAddr) -> Result<Raw, quinn::ConnectionError> {
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let conn = endpoint.connect_with(config, addr, "x.invalid").unwrap();
    Ok(Raw {
        conn: conn.await?,
        endpoint,
    })
}

impl Raw {
    async fn member(ca: &CertAuthority, addr: SocketAddr) -> (Self, SendStream, RecvStream) {
        let config = ClientConfig::new(tls::client(&identity(ca)).unwrap());
        let raw = raw(config, addr).await.unwrap();
        let (mut send, mut recv) = raw.conn.open_bi().await.unwrap();
        send.write_all(&PREAMBLE).await.unwrap();
        recv.read_exact(&mut [0; PREAMBLE.len()]).await.unwrap();
        (raw, send, recv)
    }
}

fn quinn_client(config: rustls::ClientConfig) -> ClientConfig {
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

#[tokio::test]
async fn no_certificate_and_another_protocol_are_refused() {
    let ca = CertAuthority::create().unwrap();
    let (acceptor, info) = bind::<Quic>(&identity(&ca));
    let anonymous = anonymous(&ca, tls::ALPN);
    // In TLS 1.3 the client hears of the refusal only after its own handshake.
    let reason = match raw(quinn_client(anonymous), info.addr).await {
        Ok(raw) => raw.conn.closed().await,
        Err(error) => error,
    };
    assert!(reason.to_string().contains("aborted by peer"), "{reason}");

    let foreign = identity(&ca).peer_client_config(b"h3").unwrap();
    let error = raw(quinn_client(foreign), info.addr).await.err().unwrap();
    assert!(error.to_string().contains("handshake failed"), "{error}");

    let (dialer, _) = bind::<Quic>(&identity(&ca));
    let (ours, theirs) = tokio::join!(dialer.dial(&info), acceptor.accept());
    assert!(ours.is_ok() && theirs.is_ok());
    assert_eq!(acceptor.stats().accepted, 1);
    assert_eq!(acceptor.stats().handshake_failures, 2);
}

#[tokio::test]
async fn noise_on_the_port_disturbs_nobody() {
    let Pair {
        ours,
        theirs,
        dialer,
        acceptor,
    } = pair::<Quic>().await;
    let noise = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for index in 0..500_usize {
        let datagram: Vec<u8> = (0..index * 3).map(|i| (i * 31 + index) as u8).collect();
        let to = [acceptor.local_addr(), dialer.local_addr()][index % 2];
        noise.send_to(&datagram, to).await.unwrap();
        // A long header of version 1 in front of nonsense.
        let mut initial = vec![0xc3, 0, 0, 0, 1, 8];
        initial.resize(1200, index as u8);
        noise.send_to(&initial, to).await.unwrap();
    }
    ours.send(request(1)).await.unwrap();
    assert_eq!(theirs.recv().await.unwrap(), request(1));
}

#[tokio::test]
async fn a_handshake_that_stalls_blocks_nobody() {
    let ca = CertAuthority::create().unwrap();
    let (acceptor, info) = bind::<Quic>(&identity(&ca));
    // A member that never opens its control stream.
    let config = ClientConfig::new(tls::client(&identity(&ca)).unwrap());
    let silent = raw(config, info.addr).await.unwrap();
    let (dialer, _) = bind::<Quic>(&identity(&ca));
    let (ours, theirs) = tokio::join!(dialer.dial(&info), acceptor.accept());
    assert!(ours.is_ok() && theirs.is_ok());
    drop(silent);
}

/// Runs a hostile act on a fresh connection, and returns what the honest side made of it and the
/// reason that the hostile side saw.
async fn breach<F>(act: F) -> (String, String)
where
    F: AsyncFnOnce(&Connection, &mut SendStream),
{
    let ca = CertAuthority::create().unwrap();
    let (acceptor, info) = bind::<Quic>(&identity(&ca));
    let ((raw, mut send, _recv), theirs) =
        tokio::join!(Raw::member(&ca, info.addr), acceptor.accept());
    let theirs = theirs.unwrap();
    act(&raw.conn, &mut send).await;
    let what = match theirs.recv().await.unwrap_err() {
        NetError::Protocol { peer, what } => {
            assert_eq!(peer, theirs.peer());
            what
        }
        other => panic!("a breach, not {other}"),
    };
    let seen = super::conn::reason_of(&raw.conn.closed().await);
    assert_eq!(acceptor.stats().protocol_errors, 1);
    raw.endpoint.close(0_u32.into(), b"");
    (what, seen)
}

async fn piece_stream(conn: &Connection, bytes: &[u8]) {
    let mut stream = conn.open_uni().await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.finish().unwrap();
}

#[tokio::test]
async fn an_oversize_frame_closes_the_connection() {
    let (what, seen) = breach(async |_, control: &mut SendStream| {
        control.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    })
    .await;
    assert!(what.contains("longer than 16384"), "{what}");
    assert_eq!(what, seen);
}

#[tokio::test]
async fn a_piece_that_ends_early_closes_the_connection() {
    let (what, seen) = breach(async |conn: &Connection, _| {
        let mut bytes = codec::encode(&announced(0, 16 << 20));
        bytes.extend_from_slice(&[7; 10]);
        piece_stream(conn, &bytes).await;
    })
    .await;
    assert_eq!(what, "a piece of 16777216 bytes ended after 10");
    assert_eq!(what, seen);
}

#[tokio::test]
async fn other_breaches_close_the_connection() {
    let (what, _) = breach(async |conn: &Connection, _| {
        let mut bytes = codec::encode(&announced(0, 4));
        bytes.extend_from_slice(b"five!");
        piece_stream(conn, &bytes).await;
    })
    .await;
    assert_eq!(what, "a piece of 4 bytes goes on");

    let (what, _) = breach(async |conn: &Connection, _| {
        piece_stream(conn, &codec::encode(&request(0).message)).await;
    })
    .await;
    assert!(what.contains("only pieces"), "{what}");

    let (what, _) = breach(async |_, control: &mut SendStream| {
        let frame = codec::encode(&announced(0, 4));
        control.write_all(&frame).await.unwrap();
    })
    .await;
    assert_eq!(what, "a piece on the control stream");

    let (what, _) = breach(async |_, control: &mut SendStream| {
        control.write_all(&[0, 0, 0, 2, 0xff, 0xff]).await.unwrap();
    })
    .await;
    assert!(what.contains("cannot be parsed"), "{what}");

    let (what, _) = breach(async |_, control: &mut SendStream| control.finish().unwrap()).await;
    assert!(what.contains("ended"), "{what}");
}

#[tokio::test]
async fn a_reset_piece_is_no_breach() {
    let ca = CertAuthority::create().unwrap();
    let (acceptor, info) = bind::<Quic>(&identity(&ca));
    let ((raw, mut control, _recv), theirs) =
        tokio::join!(Raw::member(&ca, info.addr), acceptor.accept());
    let theirs = theirs.unwrap();
    let mut stream = raw.conn.open_uni().await.unwrap();
    let header = codec::encode(&announced(0, 100));
    stream.write_all(&header).await.unwrap();
    stream.reset(5_u32.into()).unwrap();
    let frame = codec::encode(&request(9).message);
    control.write_all(&frame).await.unwrap();
    assert_eq!(theirs.recv().await.unwrap(), request(9));
    assert_eq!(acceptor.stats().protocol_errors, 0);
}
