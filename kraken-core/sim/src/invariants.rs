//! What must hold whatever happens.

use std::collections::BTreeMap;
use std::time::Duration;

use kraken_proto::{BlobSpec, Timestamp};

use crate::host::Host;
use crate::net::{End, Net};

/// Watches a run and writes down what must not happen.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) violations: Vec<String>,
    pub(crate) bans: Vec<(usize, usize)>,
    /// Until when a host has banned another.
    banned: BTreeMap<(usize, usize), Timestamp>,
    /// Per host and blob.
    tallies: BTreeMap<(usize, usize), Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    stored: u64,
    told: u64,
    done: u32,
}

/// More would only repeat the first.
const MOST: usize = 50;

impl Checks {
    pub(crate) fn hold(&mut self, now: Timestamp, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.violations.len() < MOST {
            self.violations.push(format!("{now:?}: {}", what()));
        }
    }

    /// A host wrote a piece; `new` when it was not there.
    pub(crate) fn stored(
        &mut self,
        now: Timestamp,
        at: (usize, usize),
        piece: u32,
        bytes: u64,
        new: bool,
    ) {
        self.tallies.entry(at).or_default().stored += bytes;
        self.hold(now, new, || format!("{at:?} stored piece {piece} twice"));
    }

    /// A host said that it has a piece.
    pub(crate) fn told(&mut self, at: (usize, usize), bytes: u64) {
        self.tallies.entry(at).or_default().told += bytes;
    }

    /// A host said that it has the whole blob; `full` when that is so.
    pub(crate) fn done(&mut self, now: Timestamp, at: (usize, usize), full: bool) {
        let tally = self.tallies.entry(at).or_default();
        tally.done += 1;
        let first = tally.done == 1;
        self.hold(now, first, || format!("{at:?} is done twice"));
        self.hold(now, full, || format!("{at:?} is done without all pieces"));
    }

    /// A host banned another, for `span`.
    pub(crate) fn ban(
        &mut self,
        now: Timestamp,
        host: usize,
        peer: &Host,
        number: usize,
        span: Duration,
    ) {
        self.bans.push((host, number));
        self.banned.insert((host, number), now + span);
        self.hold(now, peer.lies, || {
            format!("{host} banned {number}, which is honest")
        });
    }

    /// A host takes a piece from another.
    pub(crate) fn takes(&mut self, now: Timestamp, host: usize, from: usize) {
        let banned = self
            .banned
            .get(&(host, from))
            .is_some_and(|until| *until > now);
        self.hold(now, !banned, || {
            format!("{host} took a piece from {from}, which it banned")
        });
    }

    /// What must hold when everything is quiet.
    pub(crate) fn at_the_end(
        &mut self,
        now: Timestamp,
        hosts: &[Host],
        net: &Net,
        specs: &[BlobSpec],
    ) {
        for (number, host) in hosts
            .iter()
            .enumerate()
            .filter(|(_, host)| !host.is_origin())
        {
            for (blob, spec) in specs.iter().enumerate() {
                let tally = self.tallies.remove(&(number, blob)).unwrap_or_default();
                let store = &host.stores[blob];
                let sum: u64 = store.iter().map(|piece| spec.piece_size(piece)).sum();
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
        let mut pairs = BTreeMap::new();
        for conn in net.conns.values() {
            for (side, end) in conn
                .ends
                .iter()
                .enumerate()
                .filter(|(_, end)| **end == End::Open)
            {
                let pair = (conn.hosts[side], conn.hosts[1 - side]);
                let count = pairs.entry(pair).or_insert(0);
                *count += 1;
                let single = *count == 1;
                self.hold(now, single, || {
                    format!("two connections from {pair:?}, {end:?}")
                });
            }
        }
    }
}
