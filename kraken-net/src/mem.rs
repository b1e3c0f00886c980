//! Peers in one process: the semantics of a [`Transport`] without sockets, for tests and
//! embedders' tests.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kraken_proto::{Message, PeerId, PeerInfo};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::throttle::Throttle;
use crate::transport::{Frame, MAX_PIECES_IN_FLIGHT, NetError, PeerConn, SEND_STALL, Transport};

/// Connections that wait for [`Transport::accept`], and frames that wait for [`PeerConn::recv`].
const QUEUE: usize = 64;

/// A network of [`MemTransport`]s that reach each other. Clones are the same network.
#[derive(Clone, Default)]
pub struct MemNetwork {
    inner: Arc<Mutex<Hosts>>,
}

#[derive(Default)]
struct Hosts {
    listeners: BTreeMap<SocketAddr, Listener>,
    tampers: BTreeMap<(PeerId, PeerId), Tamper>,
    /// Hosts get addresses in the order of their creation.
    last: u32,
}

struct Listener {
    host: Host,
    backlog: mpsc::Sender<MemConn>,
}

/// What happens to a frame on its way: it passes, changed or not, or is lost.
type Tamper = Arc<dyn Fn(Frame) -> Option<Frame> + Send + Sync>;

impl MemNetwork {
    /// A network without hosts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a host. Its address is made up: 10.0.0.1, 10.0.0.2 and so on.
    pub fn transport(&self, id: PeerId) -> MemTransport {
        let (backlog, accepted) = mpsc::channel(QUEUE);
        let mut hosts = self.hosts();
        hosts.last += 1;
        let first = u32::from(Ipv4Addr::new(10, 0, 0, 0));
        let addr = SocketAddr::from((Ipv4Addr::from(first + hosts.last), 7600));
        let host = Host {
            id,
            addr,
            closed: CancellationToken::new(),
            throttle: Throttle::new(),
        };
        let listener = Listener {
            host: host.clone(),
            backlog,
        };
        hosts.listeners.insert(addr, listener);
        MemTransport {
            inner: Arc::new(Inner {
                network: self.clone(),
                host,
                accepted: AsyncMutex::new(accepted),
            }),
        }
    }

    /// Lets `tamper` see every frame from one peer to another, from now on: it returns the frame
    /// as it shall arrive, or `None` to lose it. So a test plays a lying peer or a bad network.
    pub fn tamper(
        &self,
        from: PeerId,
        to: PeerId,
        tamper: impl Fn(Frame) -> Option<Frame> + Send + Sync + 'static,
    ) {
        self.hosts().tampers.insert((from, to), Arc::new(tamper));
    }

    /// Ends what [`MemNetwork::tamper`] began.
    pub fn mend(&self, from: PeerId, to: PeerId) {
        self.hosts().tampers.remove(&(from, to));
    }

    fn hosts(&self) -> MutexGuard<'_, Hosts> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemNetwork")
            .field("hosts", &self.hosts().listeners.len())
            .finish_non_exhaustive()
    }
}

/// One host of a [`MemNetwork`]. Clones are the same host; the last one dropped closes it.
#[derive(Clone, Debug)]
pub struct MemTransport {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    network: MemNetwork,
    host: Host,
    accepted: AsyncMutex<mpsc::Receiver<MemConn>>,
}

impl Transport for MemTransport {
    type Conn = MemConn;

    fn local_id(&self) -> PeerId {
        self.inner.host.id
    }

    fn local_addr(&self) -> SocketAddr {
        self.inner.host.addr
    }

    async fn dial(&self, peer: &PeerInfo) -> Result<MemConn, NetError> {
        if self.inner.host.closed.is_cancelled() {
            return Err(NetError::Closed);
        }
        let nobody = |reason: &str| NetError::Dial {
            addr: peer.addr,
            reason: reason.to_string(),
        };
        let (far, backlog) = {
            let hosts = self.inner.network.hosts();
            let listener = hosts.listeners.get(&peer.addr);
            let listener = listener.ok_or_else(|| nobody("nobody listens there"))?;
            (listener.host.clone(), listener.backlog.clone())
        };
        if far.id != peer.id {
            return Err(NetError::WrongPeer {
                addr: peer.addr,
                expected: peer.id,
                found: far.id,
            });
        }
        let near = self.inner.host.clone();
        let far_closed = far.closed.clone();
        let (ours, theirs) = pair(&self.inner.network, near, far);
        tokio::select! {
            biased;
            () = far_closed.cancelled() => Err(nobody("it has just closed")),
            queued = backlog.send(theirs) => {
                queued.map(|()| ours).map_err(|_| nobody("it has just closed"))
            }
        }
    }

    async fn accept(&self) -> Result<MemConn, NetError> {
        let mut accepted = self.inner.accepted.lock().await;
        tokio::select! {
            biased;
            () = self.inner.host.closed.cancelled() => Err(NetError::Closed),
            conn = accepted.recv() => conn.ok_or(NetError::Closed),
        }
    }

    fn throttle(&self) -> &Throttle {
        &self.inner.host.throttle
    }

    fn close(&self) {
        self.inner.close();
    }
}

impl Inner {
    fn close(&self) {
        self.host.closed.cancel();
        self.network.hosts().listeners.remove(&self.host.addr);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// One end of a connection in memory. Dropping it closes the connection.
pub struct MemConn {
    network: MemNetwork,
    near: Host,
    far: Host,
    link: Arc<Link>,
    outbox: mpsc::Sender<Delivery>,
    /// Pieces that may still be on their way to the other side.
    room: Arc<Semaphore>,
    inbox: AsyncMutex<mpsc::Receiver<Delivery>>,
}

#[derive(Clone, Debug)]
struct Host {
    id: PeerId,
    addr: SocketAddr,
    closed: CancellationToken,
    throttle: Throttle,
}

/// A frame, and for a piece the room that it takes.
type Delivery = (Frame, Option<OwnedSemaphorePermit>);

/// What both ends share.
#[derive(Default)]
struct Link {
    closed: CancellationToken,
    end: OnceLock<End>,
}

struct End {
    by: PeerId,
    reason: String,
    breach: bool,
}

impl PeerConn for MemConn {
    fn peer(&self) -> PeerId {
        self.far.id
    }

    fn remote_addr(&self) -> SocketAddr {
        self.far.addr
    }

    async fn send(&self, frame: Frame) -> Result<(), NetError> {
        frame.check()?;
        let way = (self.near.id, self.far.id);
        let tamper = self.network.hosts().tampers.get(&way).cloned();
        let arriving = match tamper {
            Some(tamper) => tamper(frame),
            None => Some(frame),
        };
        let Some(frame) = arriving else {
            return Ok(());
        };
        tokio::select! {
            biased;
            () = self.ended() => Err(self.error()),
            sent = self.hand_over(frame) => if sent { Ok(()) } else { Err(self.error()) },
        }
    }

    async fn recv(&self) -> Result<Frame, NetError> {
        let mut inbox = self.inbox.lock().await;
        let delivery = tokio::select! {
            biased;
            delivery = inbox.recv() => delivery,
            () = self.ended() => None,
        };
        let (frame, _room) = delivery.ok_or_else(|| self.error())?;
        if let Err(mismatch) = frame.check() {
            self.end(&mismatch.to_string(), true);
            return Err(self.error());
        }
        Ok(frame)
    }

    fn close(&self, reason: &str) {
        self.end(reason, false);
    }
}

impl MemConn {
    /// Puts a frame into the other side's inbox, a piece at the pace of both sides' limits.
    async fn hand_over(&self, frame: Frame) -> bool {
        let Message::Piece { digest, .. } = frame.message else {
            return self.outbox.send((frame, None)).await.is_ok();
        };
        let upload = self.near.throttle.upload().piece(digest, frame.first);
        let download = self.far.throttle.download().piece(digest, false);
        let mut rest = frame.payload.len();
        while rest > 0 {
            let chunk = rest.min(upload.chunk()).min(download.chunk());
            upload.pass(chunk).await;
            download.pass(chunk).await;
            rest -= chunk;
        }
        let delivered = async {
            let permit = self.room.clone().acquire_owned().await.ok();
            self.outbox.send((frame, permit)).await.is_ok()
        };
        let delivered = tokio::time::timeout(SEND_STALL, delivered).await;
        delivered.unwrap_or_else(|_| {
            self.end("silent", false);
            false
        })
    }

    fn end(&self, reason: &str, breach: bool) {
        let end = End {
            by: self.near.id,
            reason: reason.to_string(),
            breach,
        };
        // The first reason stays.
        let _ = self.link.end.set(end);
        self.link.closed.cancel();
    }

    async fn ended(&self) {
        tokio::select! {
            () = self.link.closed.cancelled() => {}
            () = self.near.closed.cancelled() => {}
            () = self.far.closed.cancelled() => {}
        }
    }

    fn error(&self) -> NetError {
        let peer = self.far.id;
        match self.link.end.get() {
            Some(end) if end.by == self.near.id && end.breach => NetError::Protocol {
                peer,
                what: end.reason.clone(),
            },
            Some(end) if end.by == self.near.id => NetError::Closed,
            Some(end) => NetError::Lost {
                peer,
                reason: end.reason.clone(),
            },
            None if self.near.closed.is_cancelled() => NetError::Closed,
            None => NetError::Lost {
                peer,
                reason: "shutting down".to_string(),
            },
        }
    }
}

impl Drop for MemConn {
    fn drop(&mut self) {
        self.end("no longer needed", false);
    }
}

impl fmt::Debug for MemConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemConn")
            .field("near", &self.near.id)
            .field("far", &self.far.id)
            .finish_non_exhaustive()
    }
}

/// The two ends of a new connection.
fn pair(network: &MemNetwork, near: Host, far: Host) -> (MemConn, MemConn) {
    let link = Arc::new(Link::default());
    let (to_far, from_near) = mpsc::channel(QUEUE);
    let (to_near, from_far) = mpsc::channel(QUEUE);
    let end = |near: &Host, far: &Host, outbox, inbox| MemConn {
        network: network.clone(),
        near: near.clone(),
        far: far.clone(),
        link: link.clone(),
        outbox,
        room: Arc::new(Semaphore::new(MAX_PIECES_IN_FLIGHT as usize)),
        inbox: AsyncMutex::new(inbox),
    };
    (
        end(&near, &far, to_far, from_far),
        end(&far, &near, to_near, from_near),
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kraken_proto::{Digest, PeerRole};

    use super::*;

    fn host(network: &MemNetwork, id: u8) -> (MemTransport, PeerInfo) {
        let transport = network.transport(PeerId::from_bytes([id; 32]));
        let info = PeerInfo {
            id: transport.local_id(),
            addr: transport.local_addr(),
            role: PeerRole::Agent,
            zone: None,
        };
        (transport, info)
    }

    fn piece(piece: u32, bytes: &'static [u8]) -> Frame {
        Frame {
            message: Message::Piece {
                digest: Digest::of(b"blob"),
                piece,
                len: u32::try_from(bytes.len()).unwrap(),
            },
            payload: Bytes::from_static(bytes),
            first: false,
        }
    }

    async fn connected(network: &MemNetwork) -> (MemTransport, MemTransport, MemConn, MemConn) {
        let ((one, _), (other, info)) = (host(network, 1), host(network, 2));
        let ours = one.dial(&info).await.unwrap();
        let theirs = other.accept().await.unwrap();
        (one, other, ours, theirs)
    }

    #[tokio::test]
    async fn frames_pass_and_close_reasons_arrive() {
        let (_one, _other, ours, theirs) = connected(&MemNetwork::new()).await;
        ours.send(piece(3, b"abc")).await.unwrap();
        assert_eq!(theirs.recv().await.unwrap(), piece(3, b"abc"));
        assert_eq!(theirs.peer(), PeerId::from_bytes([1; 32]));
        theirs.close("enough");
        let error = ours.recv().await.unwrap_err();
        assert!(matches!(error, NetError::Lost { reason, .. } if reason == "enough"));
        assert!(matches!(theirs.recv().await, Err(NetError::Closed)));
    }

    #[tokio::test]
    async fn the_wrong_peer_and_nobody_are_told_apart() {
        let network = MemNetwork::new();
        let ((one, info), (other, mut wrong)) = (host(&network, 1), host(&network, 2));
        wrong.id = info.id;
        let error = one.dial(&wrong).await.unwrap_err();
        assert!(matches!(error, NetError::WrongPeer { .. }), "{error}");
        other.close();
        let error = one.dial(&wrong).await.unwrap_err();
        assert!(matches!(error, NetError::Dial { .. }), "{error}");
        assert!(matches!(other.accept().await, Err(NetError::Closed)));
    }

    #[tokio::test]
    async fn a_host_that_closes_takes_its_connections_along() {
        let (one, _other, ours, theirs) = connected(&MemNetwork::new()).await;
        one.close();
        assert!(matches!(ours.recv().await, Err(NetError::Closed)));
        assert!(matches!(theirs.recv().await, Err(NetError::Lost { .. })));
    }

    #[tokio::test]
    async fn a_test_can_lie_and_lose() {
        let network = MemNetwork::new();
        let (one, other, ours, theirs) = connected(&network).await;
        network.tamper(one.local_id(), other.local_id(), |mut frame| {
            if let Message::Piece { piece: 0, .. } = frame.message {
                return None;
            }
            frame.payload = Bytes::from_static(b"lie");
            Some(frame)
        });
        ours.send(piece(0, b"abc")).await.unwrap();
        ours.send(piece(1, b"abc")).await.unwrap();
        assert_eq!(theirs.recv().await.unwrap(), piece(1, b"lie"));
        network.mend(one.local_id(), other.local_id());
        ours.send(piece(2, b"abc")).await.unwrap();
        assert_eq!(theirs.recv().await.unwrap(), piece(2, b"abc"));
        network.tamper(one.local_id(), other.local_id(), |mut frame| {
            frame.payload.truncate(1);
            Some(frame)
        });
        ours.send(piece(3, b"abc")).await.unwrap();
        let error = theirs.recv().await.unwrap_err();
        assert!(matches!(error, NetError::Protocol { .. }), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_in_flight_are_bounded() {
        let (_one, _other, ours, theirs) = connected(&MemNetwork::new()).await;
        for index in 0..MAX_PIECES_IN_FLIGHT {
            ours.send(piece(index, b"abc")).await.unwrap();
        }
        let one_more = ours.send(piece(99, b"abc"));
        tokio::pin!(one_more);
        let patience = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(patience, &mut one_more).await.is_err());
        theirs.recv().await.unwrap();
        one_more.await.unwrap();
    }
}
