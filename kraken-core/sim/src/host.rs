//! One host: its scheduler while it runs, and what outlives a crash.

use std::net::{Ipv6Addr, SocketAddr};

use kraken_proto::{Bitfield, BlobSpec, Digest, PeerId, PeerInfo, PeerRole, Scheduler, Timestamp};
use kraken_proto::{Namespace, Zone};

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
    /// Which blobs it wants.
    pub(crate) wants: Vec<bool>,
    /// How many of these it lacks.
    pub(crate) lacks: usize,
    /// When its disk is done with what it was given.
    pub(crate) disk_free: Timestamp,
    /// When it is woken next.
    pub(crate) timer: Option<Timestamp>,
    /// Until when it stands still.
    pub(crate) paused: Timestamp,
    /// When it started for the first time.
    pub(crate) started: Option<Timestamp>,
    pub(crate) completed: Option<Timestamp>,
    /// When it completed each blob.
    pub(crate) done: Vec<Option<Timestamp>>,
    /// When it last wrote a piece.
    pub(crate) last_piece: Timestamp,
    /// The longest time without a piece while it lacked some.
    pub(crate) longest_gap: std::time::Duration,
    /// Its pieces never verify.
    pub(crate) lies: bool,
    /// Its interface is a slow one.
    pub(crate) slow: bool,
    /// It crashed once.
    pub(crate) crashed: bool,
    /// It is down and does not even refuse connections.
    pub(crate) silent: bool,
    /// How far its reader is, per blob.
    pub(crate) read: Vec<u32>,
}

impl Host {
    /// A host before its start.
    pub(crate) fn new(
        number: usize,
        role: PeerRole,
        zone: Option<Zone>,
        stores: Vec<Bitfield>,
    ) -> Self {
        let name = Digest::of(format!("{role:?} {number}").as_bytes());
        let info = PeerInfo {
            id: PeerId::from_bytes(*name.as_bytes()),
            addr: SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 7600),
            role,
            zone,
        };
        let blobs = stores.len();
        Self {
            info,
            scheduler: None,
            epoch: 0,
            stores,
            wants: vec![false; blobs],
            lacks: 0,
            disk_free: Timestamp::ZERO,
            timer: None,
            paused: Timestamp::ZERO,
            started: None,
            completed: None,
            done: vec![None; blobs],
            last_piece: Timestamp::ZERO,
            longest_gap: std::time::Duration::ZERO,
            lies: false,
            slow: false,
            crashed: false,
            silent: false,
            read: vec![0; blobs],
        }
    }

    pub(crate) fn is_origin(&self) -> bool {
        self.info.role == PeerRole::Origin
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
        self.last_piece = now;
        self.read.fill(0);
    }

    /// Loses everything but the disk.
    pub(crate) fn crash(&mut self, silent: bool) {
        self.scheduler = None;
        self.timer = None;
        self.epoch += 1;
        self.silent = silent;
        self.crashed = true;
    }

    /// A piece was written.
    pub(crate) fn wrote(&mut self, now: Timestamp) {
        self.longest_gap = self.longest_gap.max(now.since(self.last_piece));
        self.last_piece = now;
    }
}

/// The blobs of a plan.
pub(crate) fn specs(plan: &Plan) -> Vec<BlobSpec> {
    let spec = |(number, blob): (usize, &crate::plan::Blob)| BlobSpec {
        namespace: Namespace::default(),
        digest: Digest::of(format!("blob {number}").as_bytes()),
        length: blob.length,
        piece_length: blob.piece_length,
    };
    plan.blobs.iter().enumerate().map(spec).collect()
}
