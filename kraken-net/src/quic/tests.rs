//! Real sockets on the loopback, honest peers and hostile ones.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use kraken_proto::wire::codec;
use kraken_proto::{Digest, Message, PeerInfo, PeerRole};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use tokio::net::UdpSocket;

use super::frame::PREAMBLE;
use super::{Quic, QuicConn, tls};
use crate::identity::provider;
use crate::transport::{Frame, NetError, PeerConn, Transport};
use crate::{CertAuthority, Identity};

fn identity(ca: &CertAuthority) -> Identity {
    let (cert, key) = ca.issue("agent", &[]).unwrap();
    Identity::from_pem(&cert, &key, &ca.to_pem().0).unwrap()
}

fn bind(identity: &Identity) -> (Quic, PeerInfo) {
    let quic = Quic::bind("127.0.0.1:0".parse().unwrap(), identity).unwrap();
    let info = PeerInfo {
        id: quic.local_id(),
        addr: quic.local_addr(),
        role: PeerRole::Agent,
        zone: None,
    };
    (quic, info)
}

struct Pair {
    ours: QuicConn,
    theirs: QuicConn,
    dialer: Quic,
    acceptor: Quic,
}

async fn pair() -> Pair {
    let ca = CertAuthority::create().unwrap();
    let ((dialer, _), (acceptor, info)) = (bind(&identity(&ca)), bind(&identity(&ca)));
    let (ours, theirs) = tokio::join!(dialer.dial(&info), acceptor.accept());
    Pair {
        ours: ours.unwrap(),
        theirs: theirs.unwrap(),
        dialer,
        acceptor,
    }
}

fn piece(index: u32, payload: Bytes) -> Frame {
    Frame {
        message: announced(index, payload.len()),
        payload,
        first: false,
    }
}

fn announced(piece: u32, len: usize) -> Message {
    Message::Piece {
        digest: Digest::of(b"blob"),
        piece,
        len: u32::try_from(len).unwrap(),
    }
}

fn request(piece: u32) -> Frame {
    Frame::control(Message::Request {
        digest: Digest::of(b"blob"),
        piece,
    })
}

#[tokio::test]
async fn frames_and_pieces_pass_both_ways() {
    let Pair {
        ours,
        theirs,
        dialer,
        acceptor,
    } = pair().await;
    assert_eq!(ours.peer(), acceptor.local_id());
    assert_eq!(theirs.peer(), dialer.local_id());
    assert_eq!(theirs.remote_addr(), dialer.local_addr());
    // The acceptor speaks first: the control stream is open for it, too.
    for index in 0..100 {
        theirs.send(request(index)).await.unwrap();
        assert_eq!(ours.recv().await.unwrap(), request(index));
    }
    for index in 0..100 {
        ours.send(request(index)).await.unwrap();
    }
    for index in 0..100 {
        assert_eq!(theirs.recv().await.unwrap(), request(index));
    }
    let bytes = Bytes::from_static(b"some bytes");
    ours.send(piece(1, bytes.clone())).await.unwrap();
    assert_eq!(theirs.recv().await.unwrap(), piece(1, bytes.clone()));
    theirs.send(piece(2, bytes.clone())).await.unwrap();
    assert_eq!(ours.recv().await.unwrap(), piece(2, bytes));
    assert_eq!((dialer.stats().dialed, acceptor.stats().accepted), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_pieces_travel_at_once_with_messages_between() {
    const PIECES: u32 = 6;
    let pair = pair().await;
    let (ours, theirs) = (pair.ours, pair.theirs);
    let big = |index: u32| Bytes::from(vec![u8::try_from(index).unwrap(); 16 << 20]);
    let sends = async {
        let pieces = (0..PIECES).map(|index| ours.send(piece(index, big(index))));
        let (sent, _) = tokio::join!(futures::future::join_all(pieces), ours.send(request(7)));
        sent.into_iter().for_each(|sent| sent.unwrap());
    };
    let receives = async {
        let mut pieces = Vec::new();
        let mut messages = 0;
        for _ in 0..=PIECES {
            let frame = theirs.recv().await.unwrap();
            match frame.message {
                Message::Piece { piece, .. } => {
                    assert_eq!(frame.payload, big(piece));
                    pieces.push(piece);
                }
                _ => messages += 1,
            }
        }
        pieces.sort_unstable();
        assert_eq!(pieces, (0..PIECES).collect::<Vec<_>>());
        assert_eq!(messages, 1);
    };
    tokio::join!(sends, receives);
}

#[tokio::test]
async fn a_piece_that_goes_first_overtakes_those_under_way() {
    const PIECES: u32 = 6;
    let pair = pair().await;
    let (ours, theirs) = (pair.ours, pair.theirs);
    let bytes = Bytes::from(vec![3; 8 << 20]);
    let frames = (0..PIECES).map(|index| Frame {
        first: index == PIECES - 1,
        ..piece(index, bytes.clone())
    });
    let sends = futures::future::join_all(frames.map(|frame| ours.send(frame)));
    let receives = async {
        let frame = theirs.recv().await.unwrap();
        assert_eq!(frame.message, announced(PIECES - 1, bytes.len()));
        for _ in 1..PIECES {
            theirs.recv().await.unwrap();
        }
    };
    let (sent, ()) = tokio::join!(sends, receives);
    sent.into_iter().for_each(|sent| sent.unwrap());
}

#[tokio::test]
async fn many_more_pieces_than_streams_arrive() {
    let pair = pair().await;
    let (ours, theirs) = (pair.ours, pair.theirs);
    let ours = Arc::new(ours);
    for index in 0..200 {
        let ours = ours.clone();
        tokio::spawn(async move { ours.send(piece(index, Bytes::from(vec![7; 9000]))).await });
    }
    let mut seen = [false; 200];
    for _ in 0..200 {
        let Message::Piece { piece, .. } = theirs.recv().await.unwrap().message else {
            panic!("only pieces were sent");
        };
        assert!(!std::mem::replace(&mut seen[piece as usize], true));
    }
}

#[tokio::test]
async fn a_frame_that_does_not_fit_is_refused_here() {
    let pair = pair().await;
    let ours = pair.ours;
    let mut frame = piece(0, Bytes::from_static(b"four"));
    frame.message = announced(0, 5);
    let error = ours.send(frame).await.unwrap_err();
    assert!(matches!(error, NetError::Local(_)), "{error}");
}

#[tokio::test]
async fn a_send_that_is_given_up_breaks_nothing() {
    let pair = pair().await;
    let (ours, theirs) = (pair.ours, pair.theirs);
    // More than the windows take while nobody reads.
    let endless = (0..16).map(|index| ours.send(piece(index, Bytes::from(vec![1; 16 << 20]))));
    let given_up = futures::future::join_all(endless);
    let a_while = std::time::Duration::from_millis(50);
    assert!(tokio::time::timeout(a_while, given_up).await.is_err());
    ours.send(request(1)).await.unwrap();
    loop {
        let frame = theirs.recv().await.unwrap();
        if frame == request(1) {
            break;
        }
        assert_eq!(frame.payload.len(), 16 << 20);
    }
}

#[tokio::test]
async fn the_reason_of_a_close_arrives() {
    let pair = pair().await;
    let (ours, theirs) = (pair.ours, pair.theirs);
    ours.close("the disk is full");
    let error = theirs.recv().await.unwrap_err();
    assert!(matches!(&error, NetError::Lost { reason, .. } if reason == "the disk is full"));
    assert!(error.is_retryable());
    assert!(matches!(ours.recv().await, Err(NetError::Closed)));
    assert!(matches!(ours.send(request(0)).await, Err(NetError::Closed)));
    assert!(theirs.send(request(0)).await.is_err());
}

#[tokio::test]
async fn closing_the_endpoint_ends_everything() {
    let Pair {
        ours,
        theirs,
        dialer,
        acceptor,
    } = pair().await;
    let peer = PeerInfo {
        id: acceptor.local_id(),
        addr: acceptor.local_addr(),
        role: PeerRole::Origin,
        zone: None,
    };
    dialer.close();
    assert!(matches!(dialer.accept().await, Err(NetError::Closed)));
    assert!(matches!(dialer.dial(&peer).await, Err(NetError::Closed)));
    assert!(matches!(ours.recv().await, Err(NetError::Closed)));
    let error = theirs.recv().await.unwrap_err();
    assert!(matches!(&error, NetError::Lost { reason, .. } if reason == "shutting down"));
    dialer.drained().await;
}

#[tokio::test]
async fn somebody_else_at_the_address_is_refused() {
    let ca = CertAuthority::create().unwrap();
    let ((dialer, own), (acceptor, mut info)) = (bind(&identity(&ca)), bind(&identity(&ca)));
    let found = info.id;
    info.id = own.id;
    let error = dialer.dial(&info).await.unwrap_err();
    assert!(
        matches!(error, NetError::WrongPeer { expected, found: it, .. } if expected == own.id && it == found),
        "{error}"
    );
    assert!(!error.is_retryable());
    // The acceptor is none the worse for it.
    info.id = found;
    let (ours, theirs) = tokio::join!(dialer.dial(&info), acceptor.accept());
    assert!(ours.is_ok() && theirs.is_ok());
}

#[tokio::test]
async fn another_authority_is_refused_on_both_sides() {
    let (one, other) = (
        CertAuthority::create().unwrap(),
        CertAuthority::create().unwrap(),
    );
    let ((dialer, _), (acceptor, info)) = (bind(&identity(&one)), bind(&identity(&other)));
    // The dialer refuses the acceptor.
    let error = dialer.dial(&info).await.unwrap_err();
    assert!(matches!(error, NetError::Dial { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    // A dialer that trusts the acceptor and is not trusted itself.
    let (cert, key) = one.issue("agent", &[]).unwrap();
    let both = format!("{}{}", one.to_pem().0, other.to_pem().0);
    let (spy, _) = bind(&Identity::from_pem(&cert, &key, &both).unwrap());
    let error = spy.dial(&info).await.unwrap_err();
    assert!(matches!(error, NetError::Dial { .. }), "{error}");
    assert_eq!(acceptor.stats().accepted, 0);
    assert_eq!(acceptor.stats().handshake_failures, 2);
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
    let (acceptor, info) = bind(&identity(&ca));
    let mut roots = rustls::RootCertStore::empty();
    let ca_pem = ca.to_pem().0;
    let der = rustls_pki_types::pem::PemObject::from_pem_slice(ca_pem.as_bytes()).unwrap();
    roots.add(der).unwrap();
    let verifier = Arc::new(tls::AnyNameVerifier::new(Arc::new(roots), provider()));
    let mut anonymous = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    anonymous.alpn_protocols = vec![tls::ALPN.to_vec()];
    // In TLS 1.3 the client hears of the refusal only after its own handshake.
    let reason = match raw(quinn_client(anonymous), info.addr).await {
        Ok(raw) => raw.conn.closed().await,
        Err(error) => error,
    };
    assert!(reason.to_string().contains("aborted by peer"), "{reason}");

    let foreign = identity(&ca).peer_client_config(b"h3").unwrap();
    let error = raw(quinn_client(foreign), info.addr).await.err().unwrap();
    assert!(error.to_string().contains("handshake failed"), "{error}");

    let (dialer, _) = bind(&identity(&ca));
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
    } = pair().await;
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
    let (acceptor, info) = bind(&identity(&ca));
    // A member that never opens its control stream.
    let config = ClientConfig::new(tls::client(&identity(&ca)).unwrap());
    let silent = raw(config, info.addr).await.unwrap();
    let (dialer, _) = bind(&identity(&ca));
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
    let (acceptor, info) = bind(&identity(&ca));
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
    let (acceptor, info) = bind(&identity(&ca));
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

#[tokio::test]
async fn a_limit_holds_pieces_up_and_not_messages() {
    let pair = pair().await;
    let (ours, theirs) = (Arc::new(pair.ours), pair.theirs);
    let bytes = Bytes::from(vec![7; 1_000_000]);
    let (upload, download) = (pair.dialer.throttle(), pair.acceptor.throttle());
    tokio::spawn(upload.clone().run());
    tokio::spawn(download.clone().run());
    for gate in [upload.upload(), download.download()] {
        // Seventeen minutes for the piece: the message behind it is first.
        let before = gate.passed();
        gate.set_rate(std::num::NonZeroU64::new(1000));
        let sending = (ours.clone(), piece(1, bytes.clone()));
        let sending = tokio::spawn(async move { sending.0.send(sending.1).await });
        ours.send(request(7)).await.unwrap();
        assert_eq!(theirs.recv().await.unwrap(), request(7));
        let passed = gate.passed() - before;
        assert!(passed < 100_000, "{passed}");
        gate.set_rate(None);
        assert_eq!(theirs.recv().await.unwrap(), piece(1, bytes.clone()));
        sending.await.unwrap().unwrap();
    }
    assert_eq!(upload.upload().passed(), 2_000_000);
    assert_eq!(download.download().passed(), 2_000_000);
}
