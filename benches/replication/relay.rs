//! The way into a cluster from the others: TCP relays that count both ways, and that can be cut off.
//!
//! A build-index tells others the origins that it uses itself, so its own questions come through the
//! same relays. They are told apart by the process that holds the other end of the connection, and
//! are neither counted nor cut off.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::Outcome;

/// How it is with the way from other clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Open,
    /// Connections are closed, and new ones at once.
    Refused,
    /// Nothing gets through and nobody is told: what was sent comes when it is open again.
    Silent,
}

/// The processes of a cluster's build-indexes.
pub(crate) type Own = Arc<Mutex<Vec<u32>>>;

/// What all relays of a cluster have in common.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    way: watch::Sender<Way>,
    pub(crate) own: Own,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            way: watch::Sender::new(Way::Open),
            own: Own::default(),
        }
    }

    pub(crate) fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

/// One relay; it ends with the runtime.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) listens: SocketAddr,
    to: SocketAddr,
    gate: Gate,
    received: AtomicU64,
    given: AtomicU64,
}

/// What is read at once.
const CHUNK: usize = 64 << 10;

impl Relay {
    /// Opens the way to `to`.
    pub(crate) async fn start(to: SocketAddr, gate: Gate) -> Outcome<Arc<Self>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let relay = Arc::new(Self {
            listens: listener.local_addr()?,
            to,
            gate,
            received: AtomicU64::new(0),
            given: AtomicU64::new(0),
        });
        let accepting = relay.clone();
        tokio::spawn(async move {
            // Too many open files: those that have some end.
            while let Ok((from, peer)) = listener.accept().await {
                tokio::spawn(accepting.clone().pass(from, peer));
            }
        });
        Ok(relay)
    }

    /// Bytes that other clusters have sent, with TLS and HTTP around them.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes that other clusters were answered with, counted alike.
    pub(crate) fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    async fn pass(self: Arc<Self>, from: TcpStream, peer: SocketAddr) {
        let mut way = self.gate.way.subscribe();
        let is_own = self.is_own(peer);
        if !is_own {
            let passes = way.wait_for(|way| *way != Way::Silent).await;
            if passes.is_ok_and(|way| *way == Way::Refused) {
                return;
            }
        }
        let Ok(to) = TcpStream::connect(self.to).await else {
            return;
        };
        // Small requests are not to wait for one another.
        let _ = (from.set_nodelay(true), to.set_nodelay(true));
        let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
        let received = (!is_own).then_some(&self.received);
        let given = (!is_own).then_some(&self.given);
        let way_in = (!is_own).then(|| way.clone());
        let way_out = (!is_own).then(|| way.clone());
        let both = async {
            tokio::join!(
                copy(from_read, to_write, way_in, received),
                copy(to_read, from_write, way_out, given),
            )
        };
        tokio::select! {
            _ = both => {}
            _ = way.wait_for(|way| *way == Way::Refused), if !is_own => {}
        }
    }

    fn is_own(&self, peer: SocketAddr) -> bool {
        let own = self.gate.own.lock();
        let own = own.unwrap_or_else(PoisonError::into_inner).clone();
        let inode = inode(peer, self.listens);
        inode.is_some_and(|inode| own.iter().any(|id| holds(*id, inode)))
    }
}

/// Passes on what comes until it ends, and while the way is open.
async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut way: Option<watch::Receiver<Way>>,
    count: Option<&AtomicU64>,
) -> Outcome<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        if let Some(way) = &mut way {
            way.wait_for(|way| *way == Way::Open).await?;
        }
        if length == 0 {
            return Ok(to.shutdown().await?);
        }
        if let Some(count) = count {
            count.fetch_add(length as u64, Ordering::Relaxed);
        }
        to.write_all(&chunk[..length]).await?;
    }
}

/// The socket of this host between two addresses.
fn inode(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let lines = table.lines().map(|line| line.split_whitespace());
    let mut rows = lines.map(|words| words.collect::<Vec<_>>());
    let row = rows.find(|row| {
        let at = |column: usize| row.get(column).and_then(|text| address(text));
        at(1) == Some(local) && at(2) == Some(remote)
    })?;
    row.get(9)?.parse().ok()
}

/// An address as the kernel writes it: `0100007F:1F90` is 127.0.0.1:8080.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let ip = u32::from_str_radix(ip, 16).ok()?;
    let ip = Ipv4Addr::from(ip.to_ne_bytes());
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(SocketAddrV4::new(ip, port).into())
}

fn holds(process: u32, inode: u64) -> bool {
    let wanted = format!("socket:[{inode}]");
    let files = fs::read_dir(format!("/proc/{process}/fd"));
    let mut links = files.into_iter().flatten().flatten();
    links.any(|file| fs::read_link(file.path()).is_ok_and(|link| link == Path::new(&wanted)))
}
