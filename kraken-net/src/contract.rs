//! What every transport over a network does, whatever the network: real sockets on the loopback
//! and honest peers. Each transport runs these with [`contract_tests`].

mod certificates;

use std::future::Future;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kraken_proto::{Digest, Message, PeerInfo, PeerRole};

use crate::stats::TransportStats;
use crate::transport::{Frame, NetError, PeerConn, Transport};
use crate::{CertAuthority, Identity};

pub(crate) use certificates::*;

/// A transport that is tested.
pub(crate) trait Subject: Transport<Conn: std::fmt::Debug> + Sized {
    /// On a port of the loopback that is free.
    fn any_port(identity: &Identity) -> Self;
    fn stats(&self) -> TransportStats;
    fn drained(&self) -> impl Future<Output = ()> + Send;
}

/// The tests of this module for one transport.
macro_rules! contract_tests {
    ($subject:ty) => {
        $crate::contract::contract_tests! { $subject:
            frames_and_pieces_pass_both_ways
            big_pieces_travel_at_once_with_messages_between
            a_piece_that_goes_first_overtakes_those_under_way
            many_more_pieces_than_streams_arrive
            a_frame_that_does_not_fit_is_refused_here
            a_send_that_is_given_up_breaks_nothing
            the_reason_of_a_close_arrives
            a_close_among_pieces_arrives
            connections_that_nobody_takes_are_turned_away
            closing_the_endpoint_ends_everything
            somebody_else_at_the_address_is_refused
            another_authority_is_refused_on_both_sides
            a_limit_holds_pieces_up_and_not_messages
            wrong_certificates_lead_nowhere_on_both_sides
            who_is_revoked_is_cut_off_and_not_let_in_again
            a_certificate_that_is_renewed_serves_those_to_come
        }
    };
    ($subject:ty: $($test:ident)+) => {
        mod contract {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    Box::pin($crate::contract::$test::<$subject>()).await;
                }
            )+
        }
    };
}

pub(crate) use contract_tests;

pub(crate) fn identity(ca: &CertAuthority) -> Identity {
    let (cert, key) = ca.issue("agent", &[]).unwrap();
    Identity::from_pem(&cert, &key, &ca.to_pem().0).unwrap()
}

pub(crate) fn bind<T: Subject>(identity: &Identity) -> (T, PeerInfo) {
    let transport = T::any_port(identity);
    let info = PeerInfo {
        id: transport.local_id(),
        addr: transport.local_addr(),
        role: PeerRole::Agent,
        zone: None,
    };
    (transport, info)
}

pub(crate) struct Pair<T: Subject> {
    pub(crate) ours: T::Conn,
    pub(crate) theirs: T::Conn,
    pub(crate) dialer: T,
    pub(crate) acceptor: T,
}

pub(crate) async fn pair<T: Subject>() -> Pair<T> {
    let ca = CertAuthority::create().unwrap();
    let (dialer, _) = bind::<T>(&identity(&ca));
    let (acceptor, info) = bind::<T>(&identity(&ca));
    let (ours, theirs) = tokio::join!(dialer.dial(&info), acceptor.accept());
    Pair {
        ours: ours.unwrap(),
        theirs: theirs.unwrap(),
        dialer,
        acceptor,
    }
}

pub(crate) fn piece(index: u32, payload: Bytes) -> Frame {
    Frame {
        message: announced(index, payload.len()),
        payload,
        first: false,
    }
}

pub(crate) fn announced(piece: u32, len: usize) -> Message {
    Message::Piece {
        digest: Digest::of(b"blob"),
        piece,
        len: u32::try_from(len).unwrap(),
    }
}

pub(crate) fn request(piece: u32) -> Frame {
    Frame::control(Message::Request {
        digest: Digest::of(b"blob"),
        piece,
    })
}

/// Waits for what another task does soon.
pub(crate) async fn eventually(done: impl Fn() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) async fn frames_and_pieces_pass_both_ways<T: Subject>() {
    let Pair {
        ours,
        theirs,
        dialer,
        acceptor,
    } = pair::<T>().await;
    assert_eq!(ours.peer(), acceptor.local_id());
    assert_eq!(theirs.peer(), dialer.local_id());
    assert_eq!(ours.remote_addr(), acceptor.local_addr());
    assert!(theirs.remote_addr().ip().is_loopback());
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

pub(crate) async fn big_pieces_travel_at_once_with_messages_between<T: Subject>() {
    const PIECES: u32 = 6;
    let pair = pair::<T>().await;
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

pub(crate) async fn a_piece_that_goes_first_overtakes_those_under_way<T: Subject>() {
    const PIECES: u32 = 12;
    let pair = pair::<T>().await;
    let (ours, theirs) = (pair.ours, pair.theirs);
    let bytes = Bytes::from(vec![3; 2 << 20]);
    let frames = (0..PIECES).map(|index| Frame {
        first: index == PIECES - 1,
        ..piece(index, bytes.clone())
    });
    let sends = futures::future::join_all(frames.map(|frame| ours.send(frame)));
    let receives = async {
        let mut order = Vec::new();
        for _ in 0..PIECES {
            order.push(theirs.recv().await.unwrap().message);
        }
        order
    };
    let (sent, order) = tokio::join!(sends, receives);
    sent.into_iter().for_each(|sent| sent.unwrap());
    // It was begun last. Those before it may be through by then, if this thread was held up.
    let first = announced(PIECES - 1, bytes.len());
    let place = order.iter().position(|message| *message == first);
    assert!(place.unwrap() < PIECES as usize / 2, "{order:?}");
}

pub(crate) async fn many_more_pieces_than_streams_arrive<T: Subject>() {
    let pair = pair::<T>().await;
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

pub(crate) async fn a_frame_that_does_not_fit_is_refused_here<T: Subject>() {
    let pair = pair::<T>().await;
    let ours = pair.ours;
    let mut frame = piece(0, Bytes::from_static(b"four"));
    frame.message = announced(0, 5);
    let error = ours.send(frame).await.unwrap_err();
    assert!(matches!(error, NetError::Local(_)), "{error}");
}

pub(crate) async fn a_send_that_is_given_up_breaks_nothing<T: Subject>() {
    let pair = pair::<T>().await;
    let (ours, theirs) = (pair.ours, pair.theirs);
    // More than the windows take while nobody reads.
    let endless = (0..16).map(|index| ours.send(piece(index, Bytes::from(vec![1; 16 << 20]))));
    let given_up = futures::future::join_all(endless);
    let a_while = Duration::from_millis(50);
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

pub(crate) async fn the_reason_of_a_close_arrives<T: Subject>() {
    let pair = pair::<T>().await;
    let (ours, theirs) = (pair.ours, pair.theirs);
    ours.close("the disk is full");
    let error = theirs.recv().await.unwrap_err();
    assert!(matches!(&error, NetError::Lost { reason, .. } if reason == "the disk is full"));
    assert!(error.is_retryable());
    assert!(matches!(ours.recv().await, Err(NetError::Closed)));
    assert!(matches!(ours.send(request(0)).await, Err(NetError::Closed)));
    assert!(theirs.send(request(0)).await.is_err());
}

pub(crate) async fn a_close_among_pieces_arrives<T: Subject>() {
    let pair = pair::<T>().await;
    let (ours, theirs) = (Arc::new(pair.ours), pair.theirs);
    let big = Bytes::from(vec![5; 16 << 20]);
    let sends = (0..4).map(|index| {
        let (ours, frame) = (ours.clone(), piece(index, big.clone()));
        tokio::spawn(async move { ours.send(frame).await })
    });
    let sends: Vec<_> = sends.collect();
    theirs.recv().await.unwrap();
    theirs.close("that will do");
    let error = ours.recv().await.unwrap_err();
    assert!(
        matches!(&error, NetError::Lost { reason, .. } if reason == "that will do"),
        "{error}"
    );
    for sending in sends {
        // Some were through before; what matters is that none hangs.
        let _ = sending.await.unwrap();
    }
}

pub(crate) async fn connections_that_nobody_takes_are_turned_away<T: Subject>() {
    const BACKLOG: usize = 128;
    let ca = CertAuthority::create().unwrap();
    let (dialer, _) = bind::<T>(&identity(&ca));
    let (acceptor, info) = bind::<T>(&identity(&ca));
    let mut waiting = Vec::new();
    for dialed in 1..=BACKLOG {
        waiting.push(dialer.dial(&info).await.unwrap());
        // The acceptor may count a moment after the dialer has its answer.
        eventually(|| acceptor.stats().accepted == dialed as u64).await;
    }
    // The dialer may hear of it while it still shakes hands.
    let error = match dialer.dial(&info).await {
        Ok(one_more) => one_more.recv().await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.to_string().contains("too many"), "{error}");
    assert_eq!(acceptor.stats().refused, 1);
    acceptor.accept().await.unwrap();
    dialer.dial(&info).await.unwrap();
}

pub(crate) async fn closing_the_endpoint_ends_everything<T: Subject>() {
    let Pair {
        ours,
        theirs,
        dialer,
        acceptor,
    } = pair::<T>().await;
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

pub(crate) async fn somebody_else_at_the_address_is_refused<T: Subject>() {
    let ca = CertAuthority::create().unwrap();
    let ((dialer, own), (acceptor, mut info)) =
        (bind::<T>(&identity(&ca)), bind::<T>(&identity(&ca)));
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

pub(crate) async fn another_authority_is_refused_on_both_sides<T: Subject>() {
    let (one, other) = (
        CertAuthority::create().unwrap(),
        CertAuthority::create().unwrap(),
    );
    let ((dialer, _), (acceptor, info)) =
        (bind::<T>(&identity(&one)), bind::<T>(&identity(&other)));
    // The dialer refuses the acceptor.
    let error = dialer.dial(&info).await.unwrap_err();
    assert!(matches!(error, NetError::Dial { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    // A dialer that trusts the acceptor and is not trusted itself.
    let (cert, key) = one.issue("agent", &[]).unwrap();
    let both = format!("{}{}", one.to_pem().0, other.to_pem().0);
    let (spy, _) = bind::<T>(&Identity::from_pem(&cert, &key, &both).unwrap());
    let error = spy.dial(&info).await.unwrap_err();
    assert!(matches!(error, NetError::Dial { .. }), "{error}");
    eventually(|| acceptor.stats().handshake_failures == 2).await;
    assert_eq!(acceptor.stats().accepted, 0);
}

pub(crate) async fn a_limit_holds_pieces_up_and_not_messages<T: Subject>() {
    let pair = pair::<T>().await;
    let (ours, theirs) = (Arc::new(pair.ours), pair.theirs);
    let bytes = Bytes::from(vec![7; 1_000_000]);
    let (upload, download) = (pair.dialer.throttle(), pair.acceptor.throttle());
    tokio::spawn(upload.clone().run());
    tokio::spawn(download.clone().run());
    for gate in [upload.upload(), download.download()] {
        // Seventeen minutes for the piece: the message behind it is first.
        let before = gate.passed();
        gate.set_rate(NonZeroU64::new(1000));
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
