//! The contract of transports, and the choice of paths.

use std::future::pending;
use std::io::ErrorKind;

use kraken_proto::PeerRole;
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::sleep;

use super::*;
use crate::CertAuthority;
use crate::contract::{Subject, contract_tests, eventually, identity, request};
use crate::stats::TransportStats;

impl Subject for Dual {
    fn any_port(identity: &Identity) -> Self {
        Self::bind("127.0.0.1:0".parse().unwrap(), identity, PathChoice::Tcp).unwrap()
    }

    fn stats(&self) -> TransportStats {
        self.stats().tcp
    }

    fn drained(&self) -> impl Future<Output = ()> + Send {
        self.drained()
    }
}

contract_tests!(crate::Dual);

fn bind(ca: &CertAuthority, choice: PathChoice) -> (Dual, PeerInfo) {
    let any = "127.0.0.1:0".parse().unwrap();
    let dual = Dual::bind(any, &identity(ca), choice).unwrap();
    let info = info(dual.local_id(), dual.local_addr());
    (dual, info)
}

fn info(id: PeerId, addr: SocketAddr) -> PeerInfo {
    PeerInfo {
        id,
        addr,
        role: PeerRole::Agent,
        zone: None,
    }
}

#[test]
fn outside_of_a_runtime_nothing_is_bound() {
    let (any, identity) = (
        "127.0.0.1:0".parse().unwrap(),
        identity(&CertAuthority::create().unwrap()),
    );
    let bound = [
        Quic::bind(any, &identity).err(),
        Tcp::bind(any, &identity).err(),
        Dual::bind(any, &identity, PathChoice::Auto).err(),
    ];
    for error in bound {
        assert!(matches!(error, Some(NetError::NoRuntime)), "{error:?}");
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_told_by_its_kind() {
    let ca = CertAuthority::create().unwrap();
    let (taken, info) = bind(&ca, PathChoice::Auto);
    let again = [
        Quic::bind(info.addr, &identity(&ca)).err(),
        Tcp::bind(info.addr, &identity(&ca)).err(),
    ];
    for error in again {
        let Some(NetError::Bind { addr, source, .. }) = error else {
            panic!("{error:?}");
        };
        assert_eq!((addr, source.kind()), (info.addr, ErrorKind::AddrInUse));
    }
    drop(taken);
}

async fn talks(ours: &DualConn, theirs: &DualConn) {
    ours.send(request(1)).await.unwrap();
    assert_eq!(theirs.recv().await.unwrap(), request(1));
    theirs.send(request(2)).await.unwrap();
    assert_eq!(ours.recv().await.unwrap(), request(2));
}

#[tokio::test]
async fn hosts_with_every_choice_reach_each_other() {
    let ca = CertAuthority::create().unwrap();
    let choices = [PathChoice::Quic, PathChoice::Tcp, PathChoice::Auto];
    for choice in choices {
        let (dialer, _) = bind(&ca, choice);
        for other in choices {
            let (acceptor, info) = bind(&ca, other);
            let (ours, theirs) = tokio::join!(dialer.dial(&info), acceptor.accept());
            let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
            let tcp = matches!(ours, DualConn::Tcp(_));
            assert_eq!(tcp, choice == PathChoice::Tcp);
            assert_eq!(ours.peer(), acceptor.local_id());
            assert_eq!(theirs.peer(), dialer.local_id());
            talks(&ours, &theirs).await;
            let accepted = acceptor.stats();
            let counts = (accepted.quic.accepted, accepted.tcp.accepted);
            assert_eq!(counts, if tcp { (0, 1) } else { (1, 0) });
        }
    }
}

#[tokio::test]
async fn where_udp_is_silent_tcp_is_taken_and_remembered() {
    let ca = CertAuthority::create().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    // A host at whose port UDP vanishes.
    let (tcp, _udp) = loop {
        let tcp = Tcp::bind(any, &identity(&ca)).unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr()).await {
            break (tcp, udp);
        }
    };
    let info = info(tcp.local_id(), tcp.local_addr());
    let (dialer, _) = bind(&ca, PathChoice::Auto);
    for dials in 1..=2 {
        let (ours, theirs) = tokio::join!(dialer.dial(&info), tcp.accept());
        let ours = ours.unwrap();
        assert!(matches!(ours, DualConn::Tcp(_)));
        talks(&ours, &DualConn::Tcp(theirs.unwrap())).await;
        assert!(dialer.memory.tcp_first(info.addr));
        assert_eq!(dialer.stats().tcp.dialed, dials);
    }
    // Nobody is there any more by either way: TCP is not insisted upon.
    let elsewhere = TcpListener::bind(any).await.unwrap();
    let gone = elsewhere.local_addr().unwrap();
    drop(elsewhere);
    dialer.memory.remember(gone);
    let nobody = PeerInfo { addr: gone, ..info };
    tokio::select! {
        dialed = dialer.dial(&nobody) => panic!("nobody is there: {dialed:?}"),
        () = eventually(|| !dialer.memory.tcp_first(gone)) => {}
    }
}

#[tokio::test]
async fn where_tcp_is_refused_quic_is_taken() {
    let ca = CertAuthority::create().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let quic = Quic::bind(any, &identity(&ca)).unwrap();
    let info = info(quic.local_id(), quic.local_addr());
    let (dialer, _) = bind(&ca, PathChoice::Auto);
    dialer.memory.remember(info.addr);
    let (ours, theirs) = tokio::join!(dialer.dial(&info), quic.accept());
    let ours = ours.unwrap();
    assert!(matches!(ours, DualConn::Quic(_)));
    talks(&ours, &DualConn::Quic(theirs.unwrap())).await;
    assert!(!dialer.memory.tcp_first(info.addr));
}

#[tokio::test]
async fn somebody_else_is_refused_by_every_choice() {
    let ca = CertAuthority::create().unwrap();
    let (_acceptor, mut other) = bind(&ca, PathChoice::Auto);
    for choice in [PathChoice::Quic, PathChoice::Tcp, PathChoice::Auto] {
        let (dialer, own) = bind(&ca, choice);
        other.id = own.id;
        let error = dialer.dial(&other).await.unwrap_err();
        assert!(matches!(error, NetError::WrongPeer { .. }), "{error}");
    }
}

#[tokio::test]
async fn limits_are_one_and_so_is_the_end() {
    let ca = CertAuthority::create().unwrap();
    let (dual, info) = bind(&ca, PathChoice::Auto);
    dual.throttle()
        .upload()
        .set_rate(std::num::NonZeroU64::new(7));
    let rate = dual.tcp.throttle().upload().rate();
    assert_eq!(rate, std::num::NonZeroU64::new(7));
    dual.throttle().upload().set_rate(None);
    assert_eq!(dual.quic.local_addr(), dual.tcp.local_addr());

    let dialers = [bind(&ca, PathChoice::Quic).0, bind(&ca, PathChoice::Tcp).0];
    for dialer in &dialers {
        let (ours, theirs) = tokio::join!(dialer.dial(&info), dual.accept());
        let (ours, _theirs) = (ours.unwrap(), theirs.unwrap());
        ours.close("enough");
    }
    dual.close();
    assert!(matches!(dual.accept().await, Err(NetError::Closed)));
    assert!(matches!(dual.dial(&info).await, Err(NetError::Closed)));
    dual.drained().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let ca = CertAuthority::create().unwrap();
    let (dual, info) = bind(&ca, PathChoice::Quic);
    let again = Dual::bind(info.addr, &identity(&ca), PathChoice::Quic);
    let error = again.unwrap_err().to_string();
    assert!(error.contains(&info.addr.to_string()), "{error}");
    drop(dual);
}

fn refused(reason: &str) -> NetError {
    NetError::Dial {
        addr: SocketAddr::from(([10, 0, 0, 1], 7600)),
        reason: reason.to_string(),
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_way_that_leads_there_is_taken() {
    let after = async |wait: Duration, result: Result<u8, NetError>| {
        sleep(wait).await;
        result
    };
    let (soon, late) = (HEAD_START / 2, HEAD_START * 3);
    // The second way begins when its own future is first polled.
    assert_eq!(race(after(soon, Ok(1)), pending()).await.unwrap(), 1);
    let raced = race(after(late, Ok(1)), after(soon, Ok(2))).await;
    assert_eq!(raced.unwrap(), 2);
    let raced = race(after(late, Ok(1)), after(late, Ok(2))).await;
    assert_eq!(raced.unwrap(), 1);
    let raced = race(after(soon, Err(refused("a"))), after(late, Ok(2))).await;
    assert_eq!(raced.unwrap(), 2);
    let raced = race(after(late, Ok(1)), after(soon, Err(refused("b")))).await;
    assert_eq!(raced.unwrap(), 1);
    let raced = race(pending(), after(soon, Ok(2))).await;
    assert_eq!(raced.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn when_both_ways_fail_both_are_named() {
    let raced = race::<()>(async { Err(refused("no answer")) }, async {
        Err(refused("refused"))
    });
    let error = raced.await.unwrap_err().to_string();
    assert!(
        error.contains("over QUIC: no answer; over TCP: refused"),
        "{error}"
    );
    let raced = race::<()>(async { Err(refused("no answer")) }, async {
        Err(NetError::Closed)
    });
    assert!(matches!(raced.await, Err(NetError::Closed)));
    let raced = race::<()>(async { Err(NetError::Closed) }, pending());
    assert!(matches!(raced.await, Err(NetError::Closed)));
}

#[tokio::test]
async fn a_look_at_a_peer_measures_the_path_and_opens_no_connection() {
    let ca = CertAuthority::create().unwrap();
    let (looking, _) = bind(&ca, PathChoice::Quic);
    let (peer, info) = bind(&ca, PathChoice::Quic);
    let found = looking.probe(&info).await;
    // The loopback carries whatever is tried.
    assert_eq!(found.quic.unwrap().mtu, QuicOptions::DEFAULT_MTU);
    found.tcp.unwrap();
    let stats = peer.stats();
    assert_eq!((stats.quic.accepted, stats.tcp.accepted), (0, 0));
    // A connection that stands is not disturbed.
    let (ours, theirs) = tokio::join!(looking.dial(&info), peer.accept());
    let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
    looking.probe(&info).await.quic.unwrap();
    talks(&ours, &theirs).await;

    let other = PeerInfo {
        id: looking.local_id(),
        ..info.clone()
    };
    let found = looking.probe(&other).await;
    assert!(matches!(found.quic, Err(NetError::WrongPeer { .. })));
    assert!(matches!(found.tcp, Err(NetError::WrongPeer { .. })));
    let foreign = CertAuthority::create().unwrap();
    let found = bind(&foreign, PathChoice::Quic).0.probe(&info).await;
    assert!(matches!(found.quic, Err(NetError::Dial { .. })));
    assert!(found.tcp.is_err());
}
