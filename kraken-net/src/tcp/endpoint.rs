//! The socket: dialling, accepting, and the bounds on strangers.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kraken_proto::{PeerId, PeerInfo};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::conn::TcpConn;
use super::reader;
use super::record::{HEAD, MAX_REASON, Record};
use crate::gate::{Gate, Pass};
use crate::identity::{Identity, IdentityError};
use crate::stats::{Counters, TransportStats};
use crate::throttle::Throttle;
use crate::transport::{NetError, Transport, canonical};

/// The protocol's name and version in the handshake. A change that an old peer cannot read takes
/// the next number.
pub(super) const ALPN: &[u8] = b"kraken-tcp/1";

/// How long a handshake may take, both when we dial and when others do: three losses of the first
/// packet at TCP's initial timeout of one second (RFC 6298, section 2).
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(8);
/// A connection on which nothing arrives for so long is lost. Four keep-alives fit in.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a silent connection is kept alive.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long a look at a peer may take: two losses of the first packet.
const PROBE: Duration = Duration::from_secs(4);
/// Handshakes of others that may run at once; one more ends the oldest of the address that has the most.
const MAX_HANDSHAKES: usize = 256;
/// Finished connections that may wait for [`Transport::accept`].
const BACKLOG: usize = 128;
/// Connections that may wait in the kernel for a handshake.
const LISTEN: i32 = 1024;
/// How long to wait after the kernel could not hand out a connection: it lacks memory or
/// descriptors, and asking on would keep a core busy.
const BREATHER: Duration = Duration::from_millis(100);
/// Bytes that may lie in the kernel unsent. Messages cannot overtake them, so that they are few;
/// how much may be on its way the kernel finds out itself, as long as nobody sets buffer sizes.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 256 << 10;

/// A TCP endpoint: one listening socket, and a connection of its own per peer. Clones share it;
/// the last one dropped closes it.
#[derive(Clone)]
pub struct Tcp {
    inner: Arc<Inner>,
}

struct Inner {
    client: TlsConnector,
    identity: Identity,
    local_id: PeerId,
    local_addr: SocketAddr,
    accepted: Mutex<mpsc::Receiver<TcpConn>>,
    shared: Shared,
}

/// What all connections of an endpoint have in common.
#[derive(Clone, Default)]
pub(super) struct Shared {
    pub(super) counters: Arc<Counters>,
    pub(super) throttle: Throttle,
    pub(super) closed: CancellationToken,
    /// Those that read and write.
    pub(super) tasks: TaskTracker,
}

impl Tcp {
    /// Binds a TCP socket and starts to accept. An unspecified IPv6 address serves IPv4 as well.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`NetError::Bind`] when the socket cannot be had, [`NetError::NoRuntime`], or
    /// [`NetError::Local`], which says why the identity cannot be used.
    pub fn bind(addr: SocketAddr, identity: &Identity) -> Result<Self, NetError> {
        Self::bind_with(addr, identity, Throttle::new())
    }

    /// As [`Tcp::bind`], with limits that others share.
    pub(crate) fn bind_with(
        addr: SocketAddr,
        identity: &Identity,
        throttle: Throttle,
    ) -> Result<Self, NetError> {
        NetError::unless_within_runtime()?;
        let local = |error: IdentityError| NetError::Local(error.to_string());
        let server = server_config(identity).map_err(local)?;
        let client = client_config(identity).map_err(local)?;
        let cannot = |source| NetError::Bind {
            protocol: "TCP",
            addr,
            source,
        };
        let listener = listen(addr).map_err(cannot)?;
        let local_addr = listener.local_addr().map_err(cannot)?;
        let shared = Shared {
            throttle,
            ..Shared::default()
        };
        let (backlog, accepted) = mpsc::channel(BACKLOG);
        let server = (TlsAcceptor::from(Arc::new(server)), identity.clone());
        tokio::spawn(accept_all(listener, server, backlog, shared.clone()));
        Ok(Self {
            inner: Arc::new(Inner {
                client: TlsConnector::from(Arc::new(client)),
                identity: identity.clone(),
                local_id: identity.peer_id(),
                local_addr,
                accepted: Mutex::new(accepted),
                shared,
            }),
        })
    }

    /// What has happened since it was bound.
    pub fn stats(&self) -> TransportStats {
        self.inner.shared.counters.snapshot()
    }

    /// Shakes hands with a peer without opening a connection for pieces, and says what that took.
    ///
    /// # Errors
    /// Nobody answers within some seconds, or somebody else than `peer.id` does.
    pub async fn probe(&self, peer: &PeerInfo) -> Result<Duration, NetError> {
        let begun = tokio::time::Instant::now();
        let looked = async {
            let (mut stream, _) = self.inner.shake_hands(peer).await?;
            // It speaks first, and says there whether it has accepted our certificate.
            let heard = hear(&mut stream).await;
            heard.map_err(|reason| dial_error(peer, reason))
        };
        let silence = |_| dial_error(peer, format!("no answer within {} s", PROBE.as_secs()));
        timeout(PROBE, looked).await.map_err(silence)??;
        Ok(begun.elapsed())
    }

    /// Waits until every connection has ended, so that the other sides hear the reasons. Call it
    /// after [`Transport::close`] and before the process ends.
    pub async fn drained(&self) {
        self.inner.shared.tasks.close();
        self.inner.shared.tasks.wait().await;
    }
}

impl Transport for Tcp {
    type Conn = TcpConn;

    fn local_id(&self) -> PeerId {
        self.inner.local_id
    }

    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr
    }

    async fn dial(&self, peer: &PeerInfo) -> Result<TcpConn, NetError> {
        let silence = || {
            let silence = HANDSHAKE_TIMEOUT.as_secs();
            dial_error(peer, format!("no answer within {silence} s"))
        };
        let shared = &self.inner.shared;
        let conn = tokio::select! {
            biased;
            () = shared.closed.cancelled() => return Err(NetError::Closed),
            dialed = timeout(HANDSHAKE_TIMEOUT, self.inner.dial(peer)) => {
                dialed.map_err(|_| silence())??
            }
        };
        shared.counters.dialed.add();
        Ok(conn)
    }

    async fn accept(&self) -> Result<TcpConn, NetError> {
        let next = self.inner.accepted.lock().await.recv().await;
        next.ok_or(NetError::Closed)
    }

    fn throttle(&self) -> &Throttle {
        &self.inner.shared.throttle
    }

    fn close(&self) {
        self.inner.shared.closed.cancel();
    }
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tcp")
            .field("local_id", &self.inner.local_id)
            .field("local_addr", &self.inner.local_addr)
            .finish_non_exhaustive()
    }
}

/// What the other side has shown.
type Chain = Vec<CertificateDer<'static>>;

impl Inner {
    async fn dial(&self, peer: &PeerInfo) -> Result<TcpConn, NetError> {
        let (stream, chain) = self.shake_hands(peer).await?;
        // The answer says that the other side has accepted our certificate.
        let stream = greet(stream).await;
        let stream = stream.map_err(|reason| dial_error(peer, reason))?;
        let (shared, addr) = (self.shared.clone(), canonical(peer.addr));
        let conn = TcpConn::start(stream, peer.id, addr, shared);
        conn.end_when(self.identity.clone(), chain);
        Ok(conn)
    }

    async fn shake_hands(
        &self,
        peer: &PeerInfo,
    ) -> Result<(TlsStream<TcpStream>, Chain), NetError> {
        let failed = |error: io::Error| dial_error(peer, error.to_string());
        let stream = TcpStream::connect(peer.addr).await.map_err(failed)?;
        tune(&stream).map_err(failed)?;
        // The name is required by TLS and checked by nobody: the key is.
        let name = ServerName::try_from("peer.invalid").expect("a valid name");
        let mut stream = self.client.connect(name, stream).await.map_err(failed)?;
        let chain = chain_of(stream.get_ref().1);
        let found = known(&mut stream, &self.identity, &chain).await;
        let found = found.map_err(|reason| dial_error(peer, reason))?;
        if found != peer.id {
            return Err(NetError::WrongPeer {
                addr: peer.addr,
                expected: peer.id,
                found,
            });
        }
        Ok((stream, chain))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}

/// Takes up every attempt at once; the handshakes run beside each other, so none blocks the rest.
async fn accept_all(
    listener: TcpListener,
    server: (TlsAcceptor, Identity),
    backlog: mpsc::Sender<TcpConn>,
    shared: Shared,
) {
    let handshakes = Gate::new(MAX_HANDSHAKES);
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.closed.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                sleep(BREATHER).await;
                continue;
            }
        };
        let remote = canonical(remote);
        let pass = handshakes.enter(remote.ip());
        let shake = shake(server.clone(), stream, remote, shared.clone());
        tokio::spawn(accept_one(shake, pass, backlog.clone(), shared.clone()));
    }
}

async fn accept_one(
    shake: impl Future<Output = Result<TcpConn, String>>,
    pass: Pass,
    backlog: mpsc::Sender<TcpConn>,
    shared: Shared,
) {
    let outcome = tokio::select! {
        biased;
        () = shared.closed.cancelled() => return,
        outcome = timeout(HANDSHAKE_TIMEOUT, pass.hold(shake)) => outcome,
    };
    let Ok(outcome) = outcome else {
        return failed(&shared, "it stalled");
    };
    let Some(outcome) = outcome else {
        shared.counters.refused.add();
        return;
    };
    match outcome {
        Ok(conn) => match backlog.try_send(conn) {
            Ok(()) => shared.counters.accepted.add(),
            Err(mpsc::error::TrySendError::Full(conn)) => {
                shared.counters.refused.add();
                conn.turn_away();
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {}
        },
        Err(reason) => failed(&shared, &reason),
    }
}

fn failed(shared: &Shared, reason: &str) {
    shared.counters.handshake_failures.add();
    tracing::debug!(reason, "a handshake failed");
}

async fn shake(
    (server, identity): (TlsAcceptor, Identity),
    stream: TcpStream,
    remote: SocketAddr,
    shared: Shared,
) -> Result<TcpConn, String> {
    let failed = |error: io::Error| format!("with {remote}: {error}");
    tune(&stream).map_err(failed)?;
    let mut stream = server.accept(stream).await.map_err(failed)?;
    let chain = chain_of(stream.get_ref().1);
    let peer = known(&mut stream, &identity, &chain).await?;
    let stream = greet(stream).await?;
    let conn = TcpConn::start(stream, peer, remote, shared);
    conn.end_when(identity, chain);
    Ok(conn)
}

/// Exchanges the empty records that begin a connection.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Result<S, String> {
    let said = async {
        stream.write_all(&Record::Empty.encode()).await?;
        stream.flush().await
    };
    said.await.map_err(|error: io::Error| error.to_string())?;
    hear(&mut stream).await?;
    Ok(stream)
}

/// Hears the empty record with which the other side begins a connection, or why it does not.
async fn hear<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(), String> {
    let mut head = [0; HEAD];
    let read = stream.read_exact(&mut head).await;
    read.map_err(|error| error.to_string())?;
    match Record::decode(head)? {
        Record::Empty => Ok(()),
        Record::Close { len } => {
            let mut reason = vec![0; len];
            let read = stream.read_exact(&mut reason).await;
            read.map_err(|error| error.to_string())?;
            Err(reader::readable(&reason))
        }
        _ => Err("a connection begins with an empty record".to_string()),
    }
}

/// What the other side has shown, which the handshake has verified; nothing when it does not speak this
/// protocol.
fn chain_of<D>(tls: &rustls::ConnectionCommon<D>) -> Vec<CertificateDer<'static>> {
    // Over TCP, TLS lets a client pass that names no protocol at all.
    if tls.alpn_protocol() != Some(ALPN) {
        return Vec::new();
    }
    tls.peer_certificates().unwrap_or_default().to_vec()
}

/// Who is on the other side. One that is no peer hears why.
async fn known<S: AsyncWrite + Unpin>(
    stream: &mut S,
    identity: &Identity,
    chain: &[CertificateDer<'_>],
) -> Result<PeerId, String> {
    if chain.is_empty() {
        return Err("it speaks another protocol".to_string());
    }
    let reason = match identity.peer(chain) {
        Ok(peer) => return Ok(peer),
        Err(reason) => reason,
    };
    let told = &reason.as_bytes()[..reason.floor_char_boundary(MAX_REASON)];
    let farewell = async {
        let head = Record::Close { len: told.len() }.encode();
        stream.write_all(&head).await?;
        stream.write_all(told).await?;
        stream.shutdown().await
    };
    // It is refused whether it hears that or not.
    let _ = farewell.await;
    Err(reason)
}

fn server_config(identity: &Identity) -> Result<ServerConfig, IdentityError> {
    identity.server_config(&[ALPN])
}

pub(super) fn client_config(identity: &Identity) -> Result<ClientConfig, IdentityError> {
    let mut config = identity.peer_client_config(ALPN)?;
    config.enable_sni = false;
    Ok(config)
}

fn dial_error(peer: &PeerInfo, reason: String) -> NetError {
    NetError::Dial {
        addr: peer.addr,
        reason,
    }
}

/// What we say goes out at once, and what waits does so here, where it can be overtaken.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT)?;
    Ok(())
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Connections of an earlier life that have not faded yet do not keep the port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(LISTEN)?;
    TcpListener::from_std(socket.into())
}
