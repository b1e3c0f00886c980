//! Agents that reach each other by a transport of their own: Unix sockets, for processes of one host.
//!
//! A frame is what `wire::codec` makes of a message, and after that of a piece its bytes. Who dials says
//! its identity first, and the other side answers with its own: between processes that trust each other;
//! across a network a transport has to prove it, as QUIC and TCP do with certificates.
//! `cargo run -p kraken-examples --example own_transport`
#![expect(clippy::print_stdout, reason = "an example that shows what it does")]

use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::{Bytes, BytesMut};
use kraken_core::net::throttle::Passage;
use kraken_core::net::{Frame, NetError, PeerConn, Throttle, Transport};
use kraken_core::proto::wire::codec;
use kraken_core::proto::{Message, PieceLength};
use kraken_core::storage::{MemStore, UploadStore as _, testkit};
use kraken_core::{Agent, PeerId, PeerInfo};
use kraken_examples::KnownPeer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Sockets in one directory. An address there is a port of loopback that nobody listens at.
struct Sockets {
    dir: PathBuf,
    id: PeerId,
    addr: SocketAddr,
    listener: UnixListener,
    throttle: Throttle,
    closed: CancellationToken,
}

fn socket(dir: &Path, addr: SocketAddr) -> PathBuf {
    dir.join(format!("{}.sock", addr.port()))
}

fn local(error: &io::Error) -> NetError {
    NetError::Local(error.to_string())
}

impl Sockets {
    fn bind(dir: &Path, id: PeerId) -> io::Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let addr = (Ipv4Addr::LOCALHOST, NEXT.fetch_add(1, Ordering::Relaxed)).into();
        Ok(Self {
            dir: dir.to_path_buf(),
            id,
            addr,
            listener: UnixListener::bind(socket(dir, addr))?,
            throttle: Throttle::new(),
            closed: CancellationToken::new(),
        })
    }

    /// Tells who this is, and hears who the other side is.
    async fn greet(&self, mut stream: UnixStream) -> io::Result<(UnixStream, PeerInfo)> {
        let mut greeting = self.id.as_bytes().to_vec();
        greeting.extend(self.addr.port().to_be_bytes());
        stream.write_all(&greeting).await?;
        let mut id = [0; 32];
        stream.read_exact(&mut id).await?;
        let port = stream.read_u16().await?;
        let peer = PeerInfo {
            id: PeerId::from_bytes(id),
            addr: (Ipv4Addr::LOCALHOST, port).into(),
            role: kraken_core::proto::PeerRole::Agent,
            zone: None,
        };
        Ok((stream, peer))
    }

    fn conn(&self, stream: UnixStream, peer: PeerInfo) -> Conn {
        let (read, write) = stream.into_split();
        Conn {
            peer,
            read: Mutex::new(read),
            write: Mutex::new(write),
            throttle: self.throttle.clone(),
            closed: self.closed.child_token(),
        }
    }
}

impl Transport for Sockets {
    type Conn = Conn;

    fn local_id(&self) -> PeerId {
        self.id
    }

    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    async fn dial(&self, peer: &PeerInfo) -> Result<Conn, NetError> {
        let failed = |error: io::Error| NetError::Dial {
            addr: peer.addr,
            reason: error.to_string(),
        };
        let path = socket(&self.dir, peer.addr);
        let stream = UnixStream::connect(path).await.map_err(failed)?;
        let (stream, found) = self.greet(stream).await.map_err(failed)?;
        if found.id != peer.id {
            return Err(NetError::WrongPeer {
                addr: peer.addr,
                expected: peer.id,
                found: found.id,
            });
        }
        Ok(self.conn(stream, found))
    }

    async fn accept(&self) -> Result<Conn, NetError> {
        loop {
            let accepted = self
                .closed
                .run_until_cancelled(self.listener.accept())
                .await;
            let (stream, _) = accepted
                .ok_or(NetError::Closed)?
                .map_err(|error| local(&error))?;
            // Who hangs up before it has said its name is nobody.
            if let Ok((stream, peer)) = self.greet(stream).await {
                return Ok(self.conn(stream, peer));
            }
        }
    }

    fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    fn close(&self) {
        self.closed.cancel();
    }
}

/// One connection. Pieces go between the messages: on one host they are fast.
struct Conn {
    peer: PeerInfo,
    read: Mutex<OwnedReadHalf>,
    write: Mutex<OwnedWriteHalf>,
    throttle: Throttle,
    closed: CancellationToken,
}

impl Conn {
    /// Does it while the connection stands.
    async fn run<T>(&self, work: impl Future<Output = io::Result<T>>) -> Result<T, NetError> {
        let done = self.closed.run_until_cancelled(work).await;
        done.ok_or(NetError::Closed)?.map_err(|error| {
            self.closed.cancel();
            NetError::Lost {
                peer: self.peer.id,
                reason: error.to_string(),
            }
        })
    }

    async fn receive(&self) -> io::Result<Frame> {
        let wrong = |error: codec::CodecError| io::Error::other(error.to_string());
        let mut read = self.read.lock().await;
        let mut prefix = [0; codec::PREFIX];
        read.read_exact(&mut prefix).await?;
        let mut body = vec![0; codec::body_len(prefix).map_err(wrong)?];
        read.read_exact(&mut body).await?;
        let message = codec::decode(&body).map_err(wrong)?;
        let mut frame = Frame::control(message);
        if let Message::Piece { digest, len, .. } = frame.message {
            let way = self.throttle.download().piece(digest, false);
            let mut bytes = BytesMut::zeroed((len as usize).min(PieceLength::MAX.bytes() as usize));
            for chunk in chunks(&way, bytes.len()) {
                read.read_exact(&mut bytes[chunk.clone()]).await?;
                way.pass(chunk.len()).await;
            }
            frame.payload = bytes.freeze();
        }
        Ok(frame)
    }
}

/// A piece of so many bytes in parts that pass a throttle one after the other.
fn chunks(way: &Passage, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
    let step = way.chunk();
    (0..len).step_by(step).map(move |at| at..len.min(at + step))
}

impl PeerConn for Conn {
    fn peer(&self) -> PeerId {
        self.peer.id
    }

    fn remote_addr(&self) -> SocketAddr {
        self.peer.addr
    }

    async fn send(&self, frame: Frame) -> Result<(), NetError> {
        let sent = async {
            let way = match frame.message {
                Message::Piece { digest, .. } => {
                    Some(self.throttle.upload().piece(digest, frame.first))
                }
                _ => None,
            };
            let mut write = self.write.lock().await;
            write.write_all(&codec::encode(&frame.message)).await?;
            for chunk in way.iter().flat_map(|way| chunks(way, frame.payload.len())) {
                if let Some(way) = &way {
                    way.pass(chunk.len()).await;
                }
                write.write_all(&frame.payload[chunk]).await?;
            }
            Ok(())
        };
        self.run(sent).await
    }

    async fn recv(&self) -> Result<Frame, NetError> {
        self.run(self.receive()).await
    }

    fn close(&self, _: &str) {
        self.closed.cancel();
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (bytes, meta) = testkit::blob(20_000_000, 1);
    let store = MemStore::new();
    let upload = store.upload_start().await?;
    store
        .upload_append(&upload, 0, Bytes::from(bytes.clone()))
        .await?;
    store.upload_commit(&upload, meta.digest()).await?;

    let sockets = Sockets::bind(dir.path(), PeerId::from_bytes([1; 32]))?;
    let seeder = Agent::builder(store, sockets)
        .discovery(KnownPeer {
            peer: None,
            meta: meta.clone(),
        })
        .spawn()?;
    seeder.seed_all().await?;

    let sockets = Sockets::bind(dir.path(), PeerId::from_bytes([2; 32]))?;
    let leecher = Agent::builder(MemStore::new(), sockets)
        .discovery(KnownPeer {
            peer: Some(seeder.local().clone()),
            meta: meta.clone(),
        })
        .spawn()?;
    let mut fetched = Vec::new();
    let mut blob = leecher.open(meta.digest()).await?;
    blob.read_to_end(&mut fetched).await?;
    assert_eq!(fetched, bytes);
    println!("{} bytes came through Unix sockets", fetched.len());

    leecher.shutdown().await;
    seeder.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_comes_to_its_end() {
        super::main().unwrap();
    }
}
