//! One host: its scheduler while it runs, and what outlives a crash.

use std::net::{Ipv6Addr, SocketAddr};

use kraken_proto::{Bitfield, BlobSpec, Digest, PeerId, PeerInfo, PeerRole, Scheduler, Timestamp};
use kraken_proto::{Namespace, PieceLength};

use crate::plan::Plan;

/// One host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) info: PeerInfo,
    /// None before the start and after a crash.
    pub(crate) scheduler: Option<Scheduler>,
    /// Which life it is in: what was meant for an earlier one is dropped.
    pub(crate) epoch: u32,
    /// What is on its disk, per blob.
    pub(crate) stores: Vec<Bitfield>,
    /// When its disk is done with what it was given.
    pub(crate) disk_free: Timestamp,
    /// When it is woken next.
    pub(crate) timer: Option<Timestamp>,
    /// When it started for the first time.
    pub(crate) started: Option<Timestamp>,
    pub(crate) completed: Option<Timestamp>,
    /// Its pieces never verify.
    pub(crate) lies: bool,
    /// It is down and does not even refuse connections.
    pub(crate) silent: bool,
    /// How far its reader is, per blob.
    pub(crate) read: Vec<u32>,
}

impl Host {
    /// A host before its start.
    pub(crate) fn new(number: usize, role: PeerRole, stores: Vec<Bitfield>) -> Self {
        let name = Digest::of(format!("{role:?} {number}").as_bytes());
        let info = PeerInfo {
            id: PeerId::from_bytes(*name.as_bytes()),
            addr: SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 7600),
            role,
        };
        Self {
            info,
            scheduler: None,
            epoch: 0,
            read: vec![0; stores.len()],
            stores,
            disk_free: Timestamp::ZERO,
            timer: None,
            started: None,
            completed: None,
            lies: false,
            silent: false,
        }
    }

    pub(crate) fn is_origin(&self) -> bool {
        self.info.role == PeerRole::Origin
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.stores.iter().all(Bitfield::is_full)
    }

    /// Starts, or starts again with what is on the disk.
    pub(crate) fn start(&mut self, now: Timestamp, plan: &Plan, seed: u64) {
        let config = if self.is_origin() {
            &plan.origin
        } else {
            &plan.agent
        };
        self.scheduler = Some(Scheduler::new(now, self.info.clone(), config.clone(), seed));
        self.started.get_or_insert(now);
        self.silent = false;
        self.disk_free = now;
        self.read.fill(0);
    }

    /// Loses everything but the disk.
    pub(crate) fn crash(&mut self, silent: bool) {
        self.scheduler = None;
        self.timer = None;
        self.epoch += 1;
        self.silent = silent;
    }
}

/// The blobs of a plan.
pub(crate) fn specs(plan: &Plan) -> Vec<BlobSpec> {
    let spec = |(number, length): (usize, &u64)| BlobSpec {
        namespace: Namespace::default(),
        digest: Digest::of(format!("blob {number}").as_bytes()),
        length: *length,
        piece_length: PieceLength::for_blob(*length),
    };
    plan.blobs.iter().enumerate().map(spec).collect()
}
