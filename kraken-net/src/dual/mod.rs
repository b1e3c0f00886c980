//! Peers over QUIC and TCP: both on the same port number, and each peer is dialled by the way that
//! leads to it.
//!
//! Every host accepts both, so that hosts with different choices reach each other. Limits and
//! identity are one.

mod paths;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kraken_proto::{PeerId, PeerInfo, Timestamp};
use tokio::time::{Instant, timeout};

use crate::identity::Identity;
use crate::quic::{Quic, QuicConn, QuicOptions, QuicPath, QuicStats};
use crate::tcp::{Tcp, TcpConn, TcpStats};
use crate::throttle::Throttle;
use crate::transport::{Frame, NetError, PeerConn, Transport};
use paths::Paths;

/// How long QUIC alone is tried, before TCP is tried beside it: enough for a handshake across the
/// world.
pub const HEAD_START: Duration = Duration::from_secs(1);

/// Ports that are tried when any will do: one that is free for UDP is rarely taken for TCP.
const ATTEMPTS: usize = 16;

/// How peers are dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PathChoice {
    /// Over QUIC: pieces hold each other up least when packets are lost.
    #[default]
    Quic,
    /// Over TCP: costs about half the processor time on networks with packets of 1500 bytes, and
    /// passes where UDP does not.
    Tcp,
    /// Over QUIC; a peer that has not answered after [`HEAD_START`] over whichever answers first.
    /// Where that is TCP, it is dialled first for the next ten minutes.
    Auto,
}

/// A UDP and a TCP socket on one port. Clones share them; the last one dropped closes them.
#[derive(Clone)]
pub struct Dual {
    quic: Quic,
    tcp: Tcp,
    choice: PathChoice,
    memory: Arc<Memory>,
}

/// What was learnt of paths.
struct Memory {
    started: Instant,
    paths: Mutex<Paths>,
}

/// A connection by one of both ways. Dropping it closes it.
#[derive(Debug)]
#[non_exhaustive]
pub enum DualConn {
    /// Over UDP.
    Quic(QuicConn),
    /// Over TCP.
    Tcp(TcpConn),
}

/// Counts since both sockets were bound, by path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DualStats {
    /// Over QUIC.
    pub quic: QuicStats,
    /// Over TCP.
    pub tcp: TcpStats,
}

/// What a look at both ways to a peer found.
#[derive(Debug)]
pub struct PathProbe {
    /// Over UDP.
    pub quic: Result<QuicPath, NetError>,
    /// Over TCP: what the handshake took.
    pub tcp: Result<Duration, NetError>,
}

impl Dual {
    /// Binds a UDP and a TCP socket and starts to accept on both; port 0 is any that is free for
    /// both. An unspecified IPv6 address serves IPv4 as well. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`NetError::Bind`] when a socket cannot be had, [`NetError::NoRuntime`], or
    /// [`NetError::Local`], which says why the identity cannot be used.
    pub fn bind(
        addr: SocketAddr,
        identity: &Identity,
        choice: PathChoice,
    ) -> Result<Self, NetError> {
        Self::bind_with(addr, identity, choice, &QuicOptions::default())
    }

    /// As [`Dual::bind`], with other choices for QUIC than the defaults.
    ///
    /// # Errors
    /// As of [`Dual::bind`].
    pub fn bind_with(
        addr: SocketAddr,
        identity: &Identity,
        choice: PathChoice,
        options: &QuicOptions,
    ) -> Result<Self, NetError> {
        let throttle = Throttle::new();
        let (quic, tcp) = bind_both(addr, identity, options, &throttle)?;
        Ok(Self {
            quic,
            tcp,
            choice,
            memory: Arc::new(Memory {
                started: Instant::now(),
                paths: Mutex::default(),
            }),
        })
    }

    /// What has happened since it was bound.
    pub fn stats(&self) -> DualStats {
        DualStats {
            quic: self.quic.stats(),
            tcp: self.tcp.stats(),
        }
    }

    /// Looks at both ways to a peer, whatever [`PathChoice`] says, without opening a connection for
    /// pieces; done within some seconds.
    pub async fn probe(&self, peer: &PeerInfo) -> PathProbe {
        let (quic, tcp) = tokio::join!(self.quic.probe(peer), self.tcp.probe(peer));
        PathProbe { quic, tcp }
    }

    /// Waits until every connection has ended, so that the other sides hear the reasons. Call it
    /// after [`Transport::close`] and before the process ends.
    pub async fn drained(&self) {
        tokio::join!(self.quic.drained(), self.tcp.drained());
    }

    async fn dial_quic(&self, peer: &PeerInfo) -> Result<DualConn, NetError> {
        self.quic.dial(peer).await.map(DualConn::Quic)
    }

    async fn dial_tcp(&self, peer: &PeerInfo) -> Result<DualConn, NetError> {
        self.tcp.dial(peer).await.map(DualConn::Tcp)
    }

    async fn dial_either(&self, peer: &PeerInfo) -> Result<DualConn, NetError> {
        if self.memory.tcp_first(peer.addr) {
            match self.dial_tcp(peer).await {
                Err(error) if error.is_retryable() => self.memory.paths().forget(peer.addr),
                dialed => return dialed,
            }
        }
        let dialed = race(self.dial_quic(peer), self.dial_tcp(peer)).await;
        if let Ok(DualConn::Tcp(_)) = dialed {
            tracing::debug!(peer = ?peer.id, addr = %peer.addr, "TCP reaches a peer that QUIC does not");
            self.memory.remember(peer.addr);
        }
        dialed
    }
}

impl Transport for Dual {
    type Conn = DualConn;

    fn local_id(&self) -> PeerId {
        self.quic.local_id()
    }

    fn local_addr(&self) -> SocketAddr {
        self.quic.local_addr()
    }

    async fn dial(&self, peer: &PeerInfo) -> Result<DualConn, NetError> {
        match self.choice {
            PathChoice::Quic => self.dial_quic(peer).await,
            PathChoice::Tcp => self.dial_tcp(peer).await,
            PathChoice::Auto => Box::pin(self.dial_either(peer)).await,
        }
    }

    async fn accept(&self) -> Result<DualConn, NetError> {
        tokio::select! {
            conn = self.quic.accept() => conn.map(DualConn::Quic),
            conn = self.tcp.accept() => conn.map(DualConn::Tcp),
        }
    }

    fn throttle(&self) -> &Throttle {
        self.quic.throttle()
    }

    fn offload(&self) -> Option<bool> {
        self.quic.offload()
    }

    fn close(&self) {
        self.quic.close();
        self.tcp.close();
    }
}

impl fmt::Debug for Dual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dual")
            .field("local_id", &self.local_id())
            .field("local_addr", &self.local_addr())
            .field("choice", &self.choice)
            .finish_non_exhaustive()
    }
}

impl PeerConn for DualConn {
    fn peer(&self) -> PeerId {
        match self {
            Self::Quic(conn) => conn.peer(),
            Self::Tcp(conn) => conn.peer(),
        }
    }

    fn remote_addr(&self) -> SocketAddr {
        match self {
            Self::Quic(conn) => conn.remote_addr(),
            Self::Tcp(conn) => conn.remote_addr(),
        }
    }

    async fn send(&self, frame: Frame) -> Result<(), NetError> {
        match self {
            Self::Quic(conn) => conn.send(frame).await,
            Self::Tcp(conn) => conn.send(frame).await,
        }
    }

    async fn ready(&self, bytes: usize) -> Result<(), NetError> {
        match self {
            Self::Quic(conn) => conn.ready(bytes).await,
            Self::Tcp(conn) => conn.ready(bytes).await,
        }
    }

    async fn recv(&self) -> Result<Frame, NetError> {
        match self {
            Self::Quic(conn) => conn.recv().await,
            Self::Tcp(conn) => conn.recv().await,
        }
    }

    fn close(&self, reason: &str) {
        match self {
            Self::Quic(conn) => conn.close(reason),
            Self::Tcp(conn) => conn.close(reason),
        }
    }
}

impl Memory {
    fn tcp_first(&self, peer: SocketAddr) -> bool {
        let now = self.now();
        self.paths().tcp_first(peer, now)
    }

    fn remember(&self, peer: SocketAddr) {
        let now = self.now();
        self.paths().remember(peer, now);
    }

    fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.started.elapsed()
    }

    fn paths(&self) -> MutexGuard<'_, Paths> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Binds QUIC and then TCP on the port that it got.
fn bind_both(
    addr: SocketAddr,
    identity: &Identity,
    options: &QuicOptions,
    throttle: &Throttle,
) -> Result<(Quic, Tcp), NetError> {
    let mut attempts = if addr.port() == 0 { ATTEMPTS } else { 1 };
    loop {
        let quic = Quic::bind_throttled(addr, identity, options, throttle.clone())?;
        match Tcp::bind_with(quic.local_addr(), identity, throttle.clone()) {
            Ok(tcp) => return Ok((quic, tcp)),
            Err(error) if attempts == 1 => return Err(error),
            Err(_) => attempts -= 1,
        }
    }
}

/// Lets the preferred way try alone for [`HEAD_START`], and then both: the first that leads there
/// is taken. When the preferred one fails before, the other begins at once.
async fn race<T>(
    preferred: impl Future<Output = Result<T, NetError>>,
    other: impl Future<Output = Result<T, NetError>>,
) -> Result<T, NetError> {
    let (mut preferred, mut other) = (pin!(preferred), pin!(other));
    match timeout(HEAD_START, &mut preferred).await {
        Ok(Err(error)) if error.is_retryable() => {
            return other.await.map_err(|second| both(error, second));
        }
        Ok(dialed) => return dialed,
        Err(_) => {}
    }
    tokio::select! {
        biased;
        dialed = &mut preferred => match dialed {
            Err(error) if error.is_retryable() => other.await.map_err(|second| both(error, second)),
            dialed => dialed,
        },
        dialed = &mut other => match dialed {
            Err(second) if second.is_retryable() => {
                preferred.await.map_err(|error| both(error, second))
            }
            dialed => dialed,
        },
    }
}

/// Both ways have failed. What is no mere failure to connect says more than what is.
fn both(preferred: NetError, other: NetError) -> NetError {
    match (preferred, other) {
        (NetError::Dial { addr, reason }, NetError::Dial { reason: other, .. }) => NetError::Dial {
            addr,
            reason: format!("over QUIC: {reason}; over TCP: {other}"),
        },
        (NetError::Dial { .. }, other) => other,
        (preferred, _) => preferred,
    }
}

#[cfg(test)]
mod tests;
