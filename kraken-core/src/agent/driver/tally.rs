//! Which bytes of a blob came from whom, for reports to trackers.
//!
//! Bounds: [`MAX_BLOBS`] blobs, those that moved last, with [`MAX_SOURCES`] sources each; what comes from
//! further ones counts in the sums only.

use std::collections::{BTreeMap, HashMap, HashSet};

use kraken_proto::tracker::report::{BlobReport, HostReport, Source, Traffic};
use kraken_proto::{Digest, Event, Namespace, PeerId, PeerRole};

/// The most blobs.
const MAX_BLOBS: usize = 1024;
/// The most sources of one blob.
const MAX_SOURCES: usize = 64;
/// The most sources of one blob in a report: with 64 blobs no more than a report may have.
const TOLD_SOURCES: usize = HostReport::MAX_SOURCES / HostReport::MAX_BLOBS;
/// The same when few blobs move, as most of the time.
const TOLD_OF_FEW: usize = 48;

/// What moved since the start of the process.
#[derive(Debug, Default)]
pub(super) struct Tally {
    blobs: HashMap<Digest, Counted>,
    /// Blobs that moved since they were last told of.
    news: HashSet<Digest>,
    /// Those that were in the last report.
    told: Vec<Digest>,
    moves: u64,
}

#[derive(Debug, Default)]
struct Counted {
    moved: Traffic,
    sources: BTreeMap<PeerId, (PeerRole, u64)>,
    /// When it moved last, counted in moves.
    last: u64,
}

/// What a driver knows of a blob besides.
pub(super) struct Known {
    pub(super) namespace: Namespace,
    pub(super) length: u64,
    pub(super) have: u32,
    pub(super) of: u32,
}

impl Tally {
    pub(super) fn event(&mut self, event: &Event) {
        match *event {
            Event::PieceDone {
                digest,
                bytes,
                from,
                role,
                ..
            } => {
                let counted = self.moves(digest);
                match role {
                    PeerRole::Origin => counted.moved.from_origins += bytes,
                    PeerRole::Agent => counted.moved.from_agents += bytes,
                }
                let room = counted.sources.len() < MAX_SOURCES;
                if room || counted.sources.contains_key(&from) {
                    counted.sources.entry(from).or_insert((role, 0)).1 += bytes;
                }
            }
            Event::PieceSent { digest, bytes, .. } => self.moves(digest).moved.sent += bytes,
            _ => {}
        }
    }

    pub(super) fn forget(&mut self, digest: &Digest) {
        self.blobs.remove(digest);
        self.news.remove(digest);
    }

    /// The last report did not arrive: the next one tells the same.
    pub(super) fn tell_again(&mut self) {
        let there = |digest: &Digest| self.blobs.contains_key(digest);
        let again: Vec<_> = self.told.drain(..).filter(there).collect();
        self.news.extend(again);
    }

    /// What moved since the last report; the rest of it the next time, when it is too much.
    pub(super) fn report(&mut self, known: impl Fn(&Digest) -> Option<Known>) -> Vec<BlobReport> {
        let mut digests: Vec<_> = self.news.iter().copied().collect();
        digests.sort_unstable();
        digests.truncate(HostReport::MAX_BLOBS);
        let few = digests.len() * TOLD_OF_FEW <= HostReport::MAX_SOURCES;
        let most = if few { TOLD_OF_FEW } else { TOLD_SOURCES };
        let mut reports = Vec::new();
        for digest in &digests {
            self.news.remove(digest);
            let counted = self.blobs.get(digest);
            if let (Some(counted), Some(known)) = (counted, known(digest)) {
                reports.push(counted.report(*digest, known, most));
            }
        }
        self.told = digests;
        reports
    }

    fn moves(&mut self, digest: Digest) -> &mut Counted {
        if self.blobs.len() >= MAX_BLOBS && !self.blobs.contains_key(&digest) {
            let oldest = self.blobs.iter().min_by_key(|(_, counted)| counted.last);
            if let Some(oldest) = oldest.map(|(digest, _)| *digest) {
                self.forget(&oldest);
            }
        }
        self.moves += 1;
        self.news.insert(digest);
        let counted = self.blobs.entry(digest).or_default();
        counted.last = self.moves;
        counted
    }
}

impl Counted {
    fn report(&self, digest: Digest, known: Known, most: usize) -> BlobReport {
        let source = |(id, (role, bytes)): (&PeerId, &(PeerRole, u64))| Source {
            id: *id,
            role: *role,
            bytes: *bytes,
        };
        let mut sources: Vec<_> = self.sources.iter().map(source).collect();
        sources.sort_by_key(|source| std::cmp::Reverse(source.bytes));
        sources.truncate(most);
        BlobReport {
            namespace: known.namespace,
            digest,
            length: known.length,
            have: known.have,
            of: known.of,
            moved: self.moved,
            sources,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(n: u32) -> Digest {
        Digest::of(&n.to_be_bytes())
    }

    fn done(n: u32, from: u8, bytes: u64) -> Event {
        Event::PieceDone {
            is_ahead: false,
            digest: blob(n),
            piece: 0,
            bytes,
            from: PeerId::from_bytes([from; 32]),
            role: if from == 0 {
                PeerRole::Origin
            } else {
                PeerRole::Agent
            },
        }
    }

    fn known(_: &Digest) -> Option<Known> {
        Some(Known {
            namespace: Namespace::default(),
            length: 100,
            have: 1,
            of: 4,
        })
    }

    #[test]
    fn what_moved_is_told_once_and_again_when_it_got_lost() {
        let mut tally = Tally::default();
        for event in [done(1, 0, 10), done(1, 1, 30), done(1, 1, 5)] {
            tally.event(&event);
        }
        let sent = Event::PieceSent {
            digest: blob(1),
            piece: 0,
            bytes: 7,
            to: PeerId::from_bytes([3; 32]),
        };
        tally.event(&sent);
        let told = tally.report(known);
        let moved = told[0].moved;
        assert_eq!(
            (moved.from_origins, moved.from_agents, moved.sent),
            (10, 35, 7)
        );
        let sources = told[0].sources.iter().map(|it| (it.role, it.bytes));
        let sources: Vec<_> = sources.collect();
        assert_eq!(sources, [(PeerRole::Agent, 35), (PeerRole::Origin, 10)]);
        assert!(tally.report(known).is_empty());
        tally.event(&done(2, 1, 1));
        assert_eq!(tally.report(known).len(), 1);
        tally.tell_again();
        assert_eq!(tally.report(known)[0].digest, blob(2));
        tally.tell_again();
        tally.forget(&blob(2));
        assert!(tally.report(known).is_empty());
    }

    #[test]
    fn a_report_and_the_memory_are_bounded_and_nothing_is_left_out_for_good() {
        let mut tally = Tally::default();
        for n in 0..2000 {
            for from in 0..=99 {
                tally.event(&done(n, from, 1));
            }
        }
        assert_eq!(
            (tally.blobs.len(), tally.news.len()),
            (MAX_BLOBS, MAX_BLOBS)
        );
        let mut told = HashSet::new();
        loop {
            let blobs = tally.report(known);
            let sources: usize = blobs.iter().map(|blob| blob.sources.len()).sum();
            assert!(blobs.len() <= HostReport::MAX_BLOBS && sources <= HostReport::MAX_SOURCES);
            assert!(blobs.iter().all(|blob| blob.moved.received() == 100));
            if blobs.is_empty() {
                break;
            }
            told.extend(blobs.into_iter().map(|blob| blob.digest));
        }
        assert_eq!(told.len(), MAX_BLOBS);
        assert!(told.contains(&blob(1999)) && !told.contains(&blob(0)));
    }
}
