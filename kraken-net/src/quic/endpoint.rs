//! The socket: dialling, accepting, and the bounds on strangers.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kraken_proto::{PeerId, PeerInfo};
use quinn::congestion::CubicConfig;
use quinn::{
    ClientConfig, ConnectError, Connecting, Connection, Endpoint, EndpointConfig, IdleTimeout,
    Incoming, MtuDiscoveryConfig, RecvStream, SendStream, ServerConfig, TransportConfig, VarInt,
};
use rustls_pki_types::CertificateDer;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::conn::{QuicConn, code, reason_of};
use super::frame::{self, FrameError, PREAMBLE};
use super::options::QuicOptions;
use super::socket::{self, GsoRuntime};
use super::tls;
use crate::buffers::Buffers;
use crate::identity::Identity;
use crate::stats::{Counters, TransportStats};
use crate::throttle::Throttle;
use crate::transport::{MAX_PIECES_IN_FLIGHT, NetError, Transport, canonical};

/// How long a handshake may take, both when we dial and when others do: three losses of the first
/// packet at QUIC's initial timeout of one second (RFC 9002, section 6.2.2).
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(8);
/// A connection on which nothing arrives for so long is lost. Four keep-alives fit in.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a silent connection is kept alive.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Bytes that a peer may send on one stream before we read: 8 MiB cover 10 Gbit/s at 6 ms.
const STREAM_WINDOW: u32 = 8 << 20;
/// Bytes that a peer may send on one connection before we read; also what a hostile peer can hold.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes that we keep for a peer until it acknowledges them. Pieces take less (`SEND_ROOM`), so that
/// messages and pieces that go first find room at any time.
const SEND_WINDOW: u64 = 64 << 20;
/// The largest datagrams that are taken from others at least: quinn's default, Ethernet's 1,500
/// bytes less the headers of IPv4 and UDP.
const LEAST_PAYLOAD: u16 = 1472;
/// Handshakes of others that may run at once. From half of it on, strangers must first show that
/// they receive at their address (RFC 9000, section 8.1.2).
const MAX_HANDSHAKES: usize = 256;
/// Finished connections that may wait for [`Transport::accept`].
const BACKLOG: usize = 128;

/// A QUIC endpoint: one UDP socket that dials and accepts. Clones share it; the last one dropped
/// closes it.
#[derive(Clone)]
pub struct Quic {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    client: ClientConfig,
    identity: Identity,
    local_id: PeerId,
    local_addr: SocketAddr,
    mtu_bound: u16,
    accepted: Mutex<mpsc::Receiver<QuicConn>>,
    shared: Shared,
}

/// What all connections of an endpoint have in common.
#[derive(Clone, Default)]
pub(super) struct Shared {
    pub(super) counters: Arc<Counters>,
    pub(super) throttle: Throttle,
    pub(super) buffers: Buffers,
}

impl Quic {
    /// Binds a UDP socket and starts to accept. An unspecified IPv6 address serves IPv4 as well.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`NetError::Bind`] when the socket cannot be had, [`NetError::NoRuntime`], or
    /// [`NetError::Local`], which says why the identity cannot be used.
    pub fn bind(addr: SocketAddr, identity: &Identity) -> Result<Self, NetError> {
        Self::bind_with(addr, identity, &QuicOptions::default())
    }

    /// As [`Quic::bind`], with other choices than the defaults.
    ///
    /// # Errors
    /// As of [`Quic::bind`].
    pub fn bind_with(
        addr: SocketAddr,
        identity: &Identity,
        options: &QuicOptions,
    ) -> Result<Self, NetError> {
        Self::bind_throttled(addr, identity, options, Throttle::new())
    }

    /// As [`Quic::bind_with`], with limits that others share.
    pub(crate) fn bind_throttled(
        addr: SocketAddr,
        identity: &Identity,
        options: &QuicOptions,
        throttle: Throttle,
    ) -> Result<Self, NetError> {
        NetError::unless_within_runtime()?;
        let local = |error: &dyn fmt::Display| NetError::Local(error.to_string());
        let client_tls = tls::client(identity).map_err(|error| local(&error))?;
        let server_tls = tls::server(identity).map_err(|error| local(&error))?;
        let mut server = ServerConfig::with_crypto(server_tls);
        // The dialer opens the control stream and nothing else; the acceptor opens none.
        server.transport_config(Arc::new(transport(1, options)));
        server.migration(false);
        let mut client = ClientConfig::new(client_tls);
        client.transport_config(Arc::new(transport(0, options)));

        let cannot = |source| NetError::Bind {
            protocol: "UDP",
            addr,
            source,
        };
        let shared = Shared {
            throttle,
            ..Shared::default()
        };
        let socket = socket::open(addr, options, shared.counters.clone()).map_err(cannot)?;
        let endpoint = Endpoint::new_with_abstract_socket(
            endpoint_config(options),
            Some(server),
            socket.clone(),
            Arc::new(GsoRuntime(socket)),
        )
        .map_err(cannot)?;
        let local_addr = endpoint.local_addr().map_err(cannot)?;
        let (backlog, accepted) = mpsc::channel(BACKLOG);
        let accepting = (identity.clone(), shared.clone());
        tokio::spawn(accept_all(endpoint.clone(), backlog, accepting));
        Ok(Self {
            inner: Arc::new(Inner {
                endpoint,
                client,
                identity: identity.clone(),
                local_id: identity.peer_id(),
                local_addr,
                mtu_bound: options.mtu_bound(),
                accepted: Mutex::new(accepted),
                shared,
            }),
        })
    }

    /// What has happened since it was bound.
    pub fn stats(&self) -> TransportStats {
        self.inner.shared.counters.snapshot()
    }

    /// Waits until every connection has ended, so that the other sides hear the reasons. Call it
    /// after [`Transport::close`] and before the process ends.
    pub async fn drained(&self) {
        self.inner.endpoint.wait_idle().await;
    }

    /// Who is on the other side, when that is a peer.
    pub(super) fn known(&self, conn: &Connection) -> Result<PeerId, String> {
        known(conn, &self.inner.identity, &chain_of(conn))
    }

    /// A handshake that has begun.
    pub(super) fn connecting(&self, addr: SocketAddr) -> Result<Connecting, ConnectError> {
        let Inner {
            endpoint, client, ..
        } = &*self.inner;
        // The name is required by TLS and checked by nobody: the key is.
        endpoint.connect_with(client.clone(), addr, "peer.invalid")
    }

    /// The largest datagram that is tried.
    pub(super) fn mtu_bound(&self) -> u16 {
        self.inner.mtu_bound
    }
}

impl Transport for Quic {
    type Conn = QuicConn;

    fn local_id(&self) -> PeerId {
        self.inner.local_id
    }

    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr
    }

    async fn dial(&self, peer: &PeerInfo) -> Result<QuicConn, NetError> {
        let conn = timeout(HANDSHAKE_TIMEOUT, self.inner.dial(peer))
            .await
            .unwrap_or_else(|_| {
                let silence = HANDSHAKE_TIMEOUT.as_secs();
                Err(dial_error(peer, format!("no answer within {silence} s")))
            })?;
        self.inner.shared.counters.dialed.add();
        Ok(conn)
    }

    async fn accept(&self) -> Result<QuicConn, NetError> {
        let next = self.inner.accepted.lock().await.recv().await;
        next.ok_or(NetError::Closed)
    }

    fn throttle(&self) -> &Throttle {
        &self.inner.shared.throttle
    }

    fn offload(&self) -> Option<bool> {
        Some(self.stats().offload)
    }

    fn close(&self) {
        self.inner.close();
    }
}

impl fmt::Debug for Quic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quic")
            .field("local_id", &self.inner.local_id)
            .field("local_addr", &self.inner.local_addr)
            .finish_non_exhaustive()
    }
}

impl Inner {
    async fn dial(&self, peer: &PeerInfo) -> Result<QuicConn, NetError> {
        let failed = |error: quinn::ConnectionError| {
            if matches!(error, quinn::ConnectionError::LocallyClosed) {
                NetError::Closed
            } else {
                dial_error(peer, reason_of(&error))
            }
        };
        // The name is required by TLS and checked by nobody: the key is.
        let conn = self
            .endpoint
            .connect_with(self.client.clone(), peer.addr, "peer.invalid")
            .map_err(|error| match error {
                ConnectError::EndpointStopping => NetError::Closed,
                other => dial_error(peer, other.to_string()),
            })?
            .await
            .map_err(failed)?;
        let conn = CloseOnDrop(Some(conn));
        let chain = chain_of(conn.get());
        let found = known(conn.get(), &self.identity, &chain);
        let found = found.map_err(|reason| dial_error(peer, reason))?;
        if found != peer.id {
            conn.get()
                .close(code::WRONG_PEER, b"another peer was expected here");
            return Err(NetError::WrongPeer {
                addr: peer.addr,
                expected: peer.id,
                found,
            });
        }
        let (mut send, mut recv) = conn.get().open_bi().await.map_err(failed)?;
        // The answer says that the other side has accepted our certificate.
        let greeted = greet(&mut send, &mut recv).await;
        greeted.map_err(|reason| match conn.get().close_reason() {
            Some(error) => failed(error),
            None => dial_error(peer, reason),
        })?;
        let shared = self.shared.clone();
        let conn = conn.keep();
        tokio::spawn(end_revoked(conn.clone(), self.identity.clone(), chain));
        Ok(QuicConn::start(conn, found, (send, recv), shared))
    }

    fn close(&self) {
        self.endpoint.close(code::SHUTDOWN, b"shutting down");
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Takes up every attempt at once; the handshakes run beside each other, so none blocks the rest.
async fn accept_all(
    endpoint: Endpoint,
    backlog: mpsc::Sender<QuicConn>,
    (identity, shared): (Identity, Shared),
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Some(incoming) = endpoint.accept().await {
        let crowded = handshakes.available_permits() < MAX_HANDSHAKES / 2;
        if crowded && incoming.may_retry() && !incoming.remote_address_validated() {
            let _ = incoming.retry();
            continue;
        }
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            shared.counters.refused.add();
            incoming.refuse();
            continue;
        };
        let accepting = (identity.clone(), shared.clone());
        tokio::spawn(accept_one(incoming, permit, backlog.clone(), accepting));
    }
}

async fn accept_one(
    incoming: Incoming,
    _permit: OwnedSemaphorePermit,
    backlog: mpsc::Sender<QuicConn>,
    (identity, shared): (Identity, Shared),
) {
    let remote = canonical(incoming.remote_address());
    let counters = shared.counters.clone();
    let outcome = timeout(HANDSHAKE_TIMEOUT, shake(incoming, identity, shared))
        .await
        .unwrap_or_else(|_| Err("it stalled".to_string()));
    match outcome {
        Ok(conn) => match backlog.try_send(conn) {
            Ok(()) => counters.accepted.add(),
            Err(mpsc::error::TrySendError::Full(conn)) => {
                counters.refused.add();
                conn.turn_away();
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {}
        },
        Err(reason) => {
            counters.handshake_failures.add();
            tracing::debug!(%remote, reason, "a handshake failed");
        }
    }
}

async fn shake(incoming: Incoming, identity: Identity, shared: Shared) -> Result<QuicConn, String> {
    let conn = incoming.accept().map_err(|error| reason_of(&error))?;
    let conn = CloseOnDrop(Some(conn.await.map_err(|error| reason_of(&error))?));
    let chain = chain_of(conn.get());
    let peer = known(conn.get(), &identity, &chain)?;
    let (mut send, mut recv) = conn
        .get()
        .accept_bi()
        .await
        .map_err(|error| reason_of(&error))?;
    greet(&mut send, &mut recv).await?;
    let conn = conn.keep();
    tokio::spawn(end_revoked(conn.clone(), identity, chain));
    Ok(QuicConn::start(conn, peer, (send, recv), shared))
}

/// Exchanges the empty frames that begin the control stream.
async fn greet(send: &mut SendStream, recv: &mut RecvStream) -> Result<(), String> {
    send.write_all(&PREAMBLE)
        .await
        .map_err(|error| error.to_string())?;
    frame::control(recv)
        .preamble()
        .await
        .map_err(|error| match error {
            FrameError::Protocol(what) => what,
            FrameError::Abandoned => "it reset the control stream".to_string(),
            FrameError::Lost => "the connection was lost".to_string(),
        })
}

/// What the other side has shown, which the handshake has verified.
fn chain_of(conn: &Connection) -> Vec<CertificateDer<'static>> {
    let chain = conn.peer_identity();
    let chain = chain.and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.map_or_else(Vec::new, |chain| *chain)
}

/// Who is on the other side. One that is no peer hears why.
fn known(
    conn: &Connection,
    identity: &Identity,
    chain: &[CertificateDer<'_>],
) -> Result<PeerId, String> {
    let peer = identity.peer(chain);
    peer.inspect_err(|reason| conn.close(code::WRONG_ROLE, reason.as_bytes()))
}

/// Closes a connection once the other side's certificate is revoked.
async fn end_revoked(conn: Connection, identity: Identity, chain: Vec<CertificateDer<'static>>) {
    tokio::select! {
        () = identity.until_revoked(chain) => {
            conn.close(code::REVOKED, b"the certificate has been revoked");
        }
        _ = conn.closed() => {}
    }
}

/// A connection in its handshake: one that is given up is closed, with a word to the other side.
struct CloseOnDrop(Option<Connection>);

impl CloseOnDrop {
    fn get(&self) -> &Connection {
        self.0.as_ref().expect("taken by keep only")
    }

    fn keep(mut self) -> Connection {
        self.0.take().expect("taken once")
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(conn) = &self.0 {
            conn.close(code::PROTOCOL, b"the handshake was not completed");
        }
    }
}

pub(super) fn dial_error(peer: &PeerInfo, reason: String) -> NetError {
    NetError::Dial {
        addr: peer.addr,
        reason,
    }
}

fn endpoint_config(options: &QuicOptions) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // Never below quinn's own: a host with small datagrams still takes a neighbour's larger ones.
    let most = options.mtu_bound().max(LEAST_PAYLOAD);
    config
        .max_udp_payload_size(most)
        .expect("at least 1200 bytes");
    config
}

fn transport(bidirectional: u32, options: &QuicOptions) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(options.mtu_bound());
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT).expect("seconds fit");
    let mut congestion = CubicConfig::default();
    congestion.initial_window(initial_window(options.mtu_bound()));
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(bidirectional))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_PIECES_IN_FLIGHT))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .mtu_discovery_config(Some(mtu))
        .congestion_controller_factory(Arc::new(congestion))
        .datagram_receive_buffer_size(None);
    config
}

/// Bytes that may be under way before the first acknowledgement: RFC 9002, section 7.2. A window
/// below one datagram would never let it go.
fn initial_window(mtu: u16) -> u64 {
    let mtu = u64::from(mtu);
    (10 * mtu).min(14720.max(2 * mtu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_window_holds_more_than_a_datagram_of_any_size() {
        assert_eq!(initial_window(1200), 12000);
        assert_eq!(initial_window(1452), 14520);
        assert_eq!(initial_window(8972), 17944);
        let sizes = QuicOptions::LEAST_MTU..=QuicOptions::MOST_MTU;
        assert!(
            sizes
                .clone()
                .all(|mtu| initial_window(mtu) >= 2 * u64::from(mtu))
        );
    }
}
