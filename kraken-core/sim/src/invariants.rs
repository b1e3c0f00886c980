//! What must hold whatever happens.

use std::collections::BTreeMap;
use std::time::Duration;

use kraken_proto::{BlobSpec, Timestamp};

use crate::host::Host;
use crate::net::{End, Net};
use crate::plan::Plan;

/// Watches a run and writes down what must not happen.
#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) violations: Vec<String>,
    pub(crate) bans: Vec<(usize, usize)>,
    /// Agents that lie or do not come back, in order.
    pub(crate) gone: Vec<usize>,
    /// Until when a host has banned another.
    banned: BTreeMap<(u32, u32), Timestamp>,
    /// Per host and blob.
    tallies: Vec<Tally>,
    blobs: usize,
}

#[derive(Debug, Clone, Default)]
struct Tally {
    stored: u64,
    told: u64,
    done: u32,
}

/// More would only repeat the first.
const MOST: usize = 50;

impl Checks {
    pub(crate) fn new(hosts: usize, blobs: usize) -> Self {
        Self {
            violations: Vec::new(),
            bans: Vec::new(),
            gone: Vec::new(),
            banned: BTreeMap::new(),
            tallies: vec![Tally::default(); hosts * blobs],
            blobs,
        }
    }

    pub(crate) fn is_gone(&self, host: u32) -> bool {
        self.gone.binary_search(&(host as usize)).is_ok()
    }

    pub(crate) fn hold(&mut self, now: Timestamp, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.violations.len() < MOST {
            self.violations.push(format!("{now:?}: {}", what()));
        }
    }

    fn tally(&mut self, host: u32, blob: u32) -> &mut Tally {
        &mut self.tallies[host as usize * self.blobs + blob as usize]
    }

    /// A host wrote a piece; `new` when it was not there.
    pub(crate) fn stored(
        &mut self,
        now: Timestamp,
        host: u32,
        blob: u32,
        piece: u32,
        bytes: u64,
        new: bool,
    ) {
        self.tally(host, blob).stored += bytes;
        self.hold(now, new, || {
            format!("{host} stored piece {piece} of {blob} twice")
        });
    }

    /// A host said that it has a piece.
    pub(crate) fn told(&mut self, host: u32, blob: u32, bytes: u64) {
        self.tally(host, blob).told += bytes;
    }

    /// A host said that it has the whole blob; `full` when that is so.
    pub(crate) fn done(&mut self, now: Timestamp, host: u32, blob: u32, full: bool) {
        let tally = self.tally(host, blob);
        tally.done += 1;
        let first = tally.done == 1;
        self.hold(now, first, || format!("{host} is done with {blob} twice"));
        self.hold(now, full, || {
            format!("{host} is done with {blob} without all pieces")
        });
    }

    /// A host banned another, for `span`.
    pub(crate) fn ban(&mut self, now: Timestamp, host: u32, peer: u32, liar: bool, span: Duration) {
        self.bans.push((host as usize, peer as usize));
        self.banned.insert((host, peer), now + span);
        self.hold(now, liar, || {
            format!("{host} banned {peer}, which is honest")
        });
    }

    /// A host takes a piece from another.
    pub(crate) fn takes(&mut self, now: Timestamp, host: u32, from: u32) {
        if self.banned.is_empty() {
            return;
        }
        let until = self.banned.get(&(host, from));
        let banned = until.is_some_and(|until| *until > now);
        self.hold(now, !banned, || {
            format!("{host} took a piece from {from}, which it banned")
        });
    }

    /// What must hold when everything is quiet.
    pub(crate) fn at_the_end(
        &mut self,
        now: Timestamp,
        plan: &Plan,
        hosts: &[Host],
        net: &Net,
        specs: &[BlobSpec],
    ) {
        for (number, host) in (0..).zip(hosts).filter(|(_, host)| !host.is_origin()) {
            for (blob, spec) in (0..).zip(specs) {
                let store = &host.stores[blob as usize];
                let sum: u64 = store.iter().map(|piece| spec.piece_size(piece)).sum();
                let tally = std::mem::take(self.tally(number, blob));
                let right = tally.stored == sum && tally.told == sum;
                self.hold(now, right, || {
                    format!("{number} has {sum} bytes of {blob}: {tally:?}")
                });
                let done = tally.done == u32::from(store.is_full());
                self.hold(now, done, || {
                    format!("{number} is done with {blob} {} times", tally.done)
                });
            }
        }
        self.bounded(now, plan, net);
    }

    /// One connection per pair, and no more of them than allowed.
    fn bounded(&mut self, now: Timestamp, plan: &Plan, net: &Net) {
        let mut pairs = BTreeMap::new();
        let mut degrees = BTreeMap::new();
        for (_, conn) in net.all() {
            for side in [0, 1]
                .into_iter()
                .filter(|side| conn.ends[*side] == End::Open)
            {
                let pair = (conn.hosts[side], conn.hosts[1 - side]);
                *pairs.entry(pair).or_insert(0) += 1;
                *degrees.entry(conn.hosts[side]).or_insert(0) += 1;
            }
        }
        for (pair, count) in pairs {
            self.hold(now, count == 1, || {
                format!("{count} connections from {pair:?}")
            });
        }
        for (host, degree) in degrees {
            let config = if (host as usize) < plan.agents {
                &plan.agent
            } else {
                &plan.origin
            };
            let within = degree <= config.max_conns;
            self.hold(now, within, || format!("{host} has {degree} connections"));
        }
    }
}
