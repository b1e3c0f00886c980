//! The contract of transports and strangers at the door on real sockets; hostile peers in memory.

mod hostile;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Tcp;
use super::endpoint::{ALPN, client_config};
use super::record::Record;
use crate::contract::{Pair, Subject, bind, contract_tests, eventually, identity, pair};
use crate::stats::TransportStats;
use crate::transport::{NetError, PeerConn, Transport};
use crate::verifier::anonymous;
use crate::{CertAuthority, Identity};

impl Subject for Tcp {
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

contract_tests!(crate::Tcp);

/// A client that speaks TLS and keeps to no rule of ours.
async fn raw(
    config: rustls::ClientConfig,
    addr: SocketAddr,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("x.invalid").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

#[tokio::test]
async fn no_certificate_and_another_protocol_are_refused() {
    let ca = CertAuthority::create().unwrap();
    let (acceptor, info) = bind::<Tcp>(&identity(&ca));
    // In TLS 1.3 the client hears of the refusal only after its own handshake.
    let mut stranger = raw(anonymous(&ca, ALPN), info.addr).await.unwrap();
    assert!(stranger.read_u8().await.is_err());
    let foreign = identity(&ca).peer_client_config(b"h2").unwrap();
    assert!(raw(foreign, info.addr).await.is_err());
    let mut silent = client_config(&identity(&ca)).unwrap();
    silent.alpn_protocols.clear();
    let mut silent = raw(silent, info.addr).await.unwrap();
    assert!(silent.read_u8().await.is_err());
    let mut plain = TcpStream::connect(info.addr).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    eventually(|| acceptor.stats().handshake_failures == 4).await;

    let (dialer, _) = bind::<Tcp>(&identity(&ca));
    let (ours, theirs) = tokio::join!(dialer.dial(&info), acceptor.accept());
    assert!(ours.is_ok() && theirs.is_ok());
    assert_eq!(acceptor.stats().accepted, 1);
}

#[tokio::test]
async fn a_connection_begins_with_an_empty_record() {
    let ca = CertAuthority::create().unwrap();
    let (acceptor, info) = bind::<Tcp>(&identity(&ca));
    let config = client_config(&identity(&ca)).unwrap();
    let mut member = raw(config, info.addr).await.unwrap();
    let head = Record::Room { pieces: 1 }.encode();
    member.write_all(&head).await.unwrap();
    member.flush().await.unwrap();
    eventually(|| acceptor.stats().handshake_failures == 1).await;
}

#[tokio::test]
async fn a_handshake_that_stalls_blocks_nobody() {
    let ca = CertAuthority::create().unwrap();
    let (acceptor, info) = bind::<Tcp>(&identity(&ca));
    let silent = TcpStream::connect(info.addr).await.unwrap();
    // A member that never says its first word.
    let config = client_config(&identity(&ca)).unwrap();
    let member = raw(config, info.addr).await.unwrap();
    let (dialer, _) = bind::<Tcp>(&identity(&ca));
    let (ours, theirs) = tokio::join!(dialer.dial(&info), acceptor.accept());
    assert!(ours.is_ok() && theirs.is_ok());
    drop((silent, member));
}

#[tokio::test]
async fn nobody_there_is_an_error_that_may_pass() {
    let ca = CertAuthority::create().unwrap();
    let (dialer, _) = bind::<Tcp>(&identity(&ca));
    let (gone, info) = bind::<Tcp>(&identity(&ca));
    gone.close();
    drop(gone);
    tokio::task::yield_now().await;
    let error = loop {
        match dialer.dial(&info).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test]
async fn a_connection_that_is_dropped_says_so() {
    let Pair {
        ours,
        theirs,
        dialer,
        acceptor,
    } = pair::<Tcp>().await;
    drop(ours);
    let error = theirs.recv().await.unwrap_err();
    assert!(matches!(&error, NetError::Lost { reason, .. } if reason == "no longer needed"));
    drop(theirs);
    dialer.close();
    acceptor.close();
    dialer.drained().await;
    acceptor.drained().await;
}
