//! The last reports of all hosts, the rates between them, and what the cluster moved in the last hour.
//!
//! Bounds: [`MAX_HOSTS`] hosts, each with the blobs that moved last, at most as many as one report may
//! name. A host that missed three reports is forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

use super::history::History;
use super::report::{BlobReport, HostReport, ReportError, Traffic};
use crate::blob::digest::Digest;
use crate::peer::PeerId;
use crate::time::Timestamp;

/// The most hosts; one that is new is not kept beyond it.
pub const MAX_HOSTS: usize = 1 << 14;

/// What hosts reported. Feed it with [`Reports::take`]; all else reads.
#[derive(Debug, Default)]
pub struct Reports {
    hosts: BTreeMap<PeerId, Reporter>,
    history: History,
    taken: u64,
    swept: Timestamp,
}

/// A host, by its last report and the one before.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Reporter {
    /// What it said last; its blobs are in [`Reporter::blobs`].
    pub report: HostReport,
    /// Bytes per second between its last two reports.
    pub rate: Traffic,
    /// The blobs that moved last.
    pub blobs: BTreeMap<Digest, BlobSeen>,
    heard: Timestamp,
    until: Timestamp,
}

/// A blob at one host.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BlobSeen {
    /// What the host said of it last.
    pub report: BlobReport,
    /// Bytes per second between the host's last two reports.
    pub rate: Traffic,
    /// The same from each of the sources, in their order.
    pub source_rates: Vec<u64>,
    heard: Timestamp,
}

impl Reports {
    /// Takes a report in, and says when the host should report again: soon while somebody looks on, and
    /// the later the more hosts there are.
    ///
    /// # Errors
    /// It is refused, and nothing has changed.
    pub fn take(
        &mut self,
        now: Timestamp,
        report: HostReport,
        is_watched: bool,
    ) -> Result<Duration, ReportError> {
        report.check()?;
        self.expire(now);
        self.taken += 1;
        let next = self.interval(is_watched);
        let until = now + next * 3 + GRACE;
        let is_full = self.hosts.len() >= MAX_HOSTS;
        match self.hosts.get_mut(&report.peer.id) {
            Some(host) => {
                let moved = report.moved.since(host.report.moved);
                self.history.add(host.heard, now, moved);
                host.renew(now, report, moved);
                host.until = until;
            }
            None if is_full => {}
            None => {
                let host = Reporter::first(now, until, report);
                self.hosts.insert(host.report.peer.id, host);
            }
        }
        Ok(next)
    }

    /// How long hosts wait between two reports, as things are.
    pub fn interval(&self, is_watched: bool) -> Duration {
        let (least, per_second) = if is_watched {
            (WATCHED, 1000)
        } else {
            (UNWATCHED, 500)
        };
        let by_load = Duration::from_millis(self.hosts.len() as u64 * 1000 / per_second);
        least.max(by_load)
    }

    /// Forgets hosts that fell silent.
    pub fn expire(&mut self, now: Timestamp) {
        if now.since(self.swept) >= Duration::from_secs(1) {
            self.swept = now;
            self.hosts.retain(|_, host| host.until > now);
        }
    }

    /// All hosts, by their identities.
    pub fn hosts(&self) -> impl ExactSizeIterator<Item = &Reporter> {
        self.hosts.values()
    }

    /// One host.
    pub fn host(&self, id: &PeerId) -> Option<&Reporter> {
        self.hosts.get(id)
    }

    /// What the hosts together moved in the last hour.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// How many reports were taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }
}

impl Reporter {
    fn first(now: Timestamp, until: Timestamp, mut report: HostReport) -> Self {
        let blobs = std::mem::take(&mut report.blobs);
        let seen = |blob: BlobReport| (blob.digest, BlobSeen::still(now, blob));
        Self {
            report,
            rate: Traffic::default(),
            blobs: blobs.into_iter().map(seen).collect(),
            heard: now,
            until,
        }
    }

    fn renew(&mut self, now: Timestamp, mut report: HostReport, moved: Traffic) {
        let span = now.since(self.heard);
        let blobs = std::mem::take(&mut report.blobs);
        self.rate = per_second(moved, span);
        self.report = report;
        self.heard = now;
        // What is not named has not moved.
        for seen in self.blobs.values_mut() {
            seen.rate = Traffic::default();
            seen.source_rates.fill(0);
        }
        for blob in blobs {
            let before = self.blobs.remove(&blob.digest).map(|seen| seen.report);
            let seen = BlobSeen::moving(now, before.as_ref(), blob, span);
            self.blobs.insert(seen.report.digest, seen);
        }
        let sources = |it: &Self| -> usize {
            let blobs = it.blobs.values();
            blobs.map(|seen| seen.report.sources.len()).sum()
        };
        while self.blobs.len() > HostReport::MAX_BLOBS || sources(self) > HostReport::MAX_SOURCES {
            let oldest = self.blobs.iter().min_by_key(|(_, seen)| seen.heard);
            let Some(digest) = oldest.map(|(digest, _)| *digest) else {
                return;
            };
            self.blobs.remove(&digest);
        }
    }
}

impl BlobSeen {
    fn still(now: Timestamp, report: BlobReport) -> Self {
        Self {
            rate: Traffic::default(),
            source_rates: vec![0; report.sources.len()],
            report,
            heard: now,
        }
    }

    /// A host that did not name the blob before had moved nothing of it.
    fn moving(
        now: Timestamp,
        before: Option<&BlobReport>,
        report: BlobReport,
        span: Duration,
    ) -> Self {
        let moved = before.map(|it| it.moved).unwrap_or_default();
        let source_rate = |source: &super::report::Source| {
            let mut before = before.iter().flat_map(|it| &it.sources);
            let before = before.find(|it| it.id == source.id);
            let before = before.map_or(0, |it| it.bytes);
            let bytes = source.bytes.checked_sub(before).unwrap_or(source.bytes);
            rate(bytes, span)
        };
        Self {
            rate: per_second(report.moved.since(moved), span),
            source_rates: report.sources.iter().map(source_rate).collect(),
            report,
            heard: now,
        }
    }
}

fn per_second(moved: Traffic, span: Duration) -> Traffic {
    Traffic {
        from_origins: rate(moved.from_origins, span),
        from_agents: rate(moved.from_agents, span),
        sent: rate(moved.sent, span),
    }
}

/// Two reports that come together, as after a pause, are no flood.
fn rate(bytes: u64, span: Duration) -> u64 {
    let millis = span.as_millis().max(100);
    let rate = u128::from(bytes) * 1000 / millis;
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// The shortest time between two reports while somebody looks on.
const WATCHED: Duration = Duration::from_secs(1);
/// The same while nobody does.
const UNWATCHED: Duration = Duration::from_secs(5);
/// How much later than three intervals a host may be.
const GRACE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::PeerRole;
    use crate::tracker::report::Source;
    use crate::tracker::testing::{at, blob, peer};

    fn moved(from_agents: u64) -> Traffic {
        Traffic {
            from_origins: 0,
            from_agents,
            sent: 0,
        }
    }

    fn report(n: u32, bytes: u64, blobs: Vec<BlobReport>) -> HostReport {
        HostReport {
            peer: peer(n),
            name: format!("host-{n}"),
            version: "0.1.0".into(),
            moved: moved(bytes),
            blobs,
        }
    }

    fn of_blob(n: u32, bytes: u64, from: &[(u32, u64)]) -> BlobReport {
        let source = |&(n, bytes): &(u32, u64)| Source {
            id: peer(n).id,
            role: PeerRole::Agent,
            bytes,
        };
        BlobReport {
            namespace: Default::default(),
            digest: blob(n),
            length: 1 << 30,
            have: 1,
            of: 10,
            moved: moved(bytes),
            sources: from.iter().map(source).collect(),
        }
    }

    #[test]
    fn rates_are_between_two_reports() {
        let mut reports = Reports::default();
        let first = report(1, 1000, vec![of_blob(0, 1000, &[(2, 1000)])]);
        reports.take(at(0), first, true).unwrap();
        let host = reports.host(&peer(1).id).unwrap();
        assert_eq!(host.rate, Traffic::default(), "nobody knows since when");
        let blobs = vec![
            of_blob(0, 5000, &[(2, 4000), (3, 1000)]),
            of_blob(1, 600, &[(3, 600)]),
        ];
        reports
            .take(at(2000), report(1, 5600, blobs), true)
            .unwrap();
        let host = reports.host(&peer(1).id).unwrap();
        assert_eq!(host.rate, moved(2300));
        assert_eq!(host.blobs[&blob(0)].rate, moved(2000));
        assert_eq!(host.blobs[&blob(0)].source_rates, [1500, 500]);
        assert_eq!(host.blobs[&blob(1)].rate, moved(300));
        // The next one names one blob: the other stands still and is not forgotten.
        let blobs = vec![of_blob(1, 1600, &[(3, 1600)])];
        reports
            .take(at(3000), report(1, 6600, blobs), true)
            .unwrap();
        let host = reports.host(&peer(1).id).unwrap();
        assert_eq!(host.blobs[&blob(0)].rate, moved(0));
        assert_eq!(host.blobs[&blob(0)].source_rates, [0, 0]);
        assert_eq!(host.blobs[&blob(0)].report.moved, moved(5000));
        assert_eq!(host.blobs[&blob(1)].rate, moved(1000));
        // A restart: the counters begin anew.
        reports
            .take(at(4000), report(1, 500, vec![]), true)
            .unwrap();
        assert_eq!(reports.host(&peer(1).id).unwrap().rate, moved(500));
        let counted: u64 = reports
            .history()
            .points(at(5000))
            .map(|it| it.1.from_agents)
            .sum();
        assert_eq!(counted, 4600 + 1000 + 500);
    }

    #[test]
    fn a_silent_host_is_forgotten() {
        let mut reports = Reports::default();
        let next = reports.take(at(0), report(1, 0, vec![]), false).unwrap();
        let silent = at(0) + next * 3 + GRACE;
        reports
            .take(
                silent - Duration::from_millis(1),
                report(2, 0, vec![]),
                false,
            )
            .unwrap();
        assert_eq!(reports.hosts().len(), 2);
        reports.expire(silent + Duration::from_secs(1));
        assert_eq!(reports.hosts().len(), 1);
    }

    #[test]
    fn the_more_hosts_the_rarer_the_reports_and_soon_while_watched() {
        let mut reports = Reports::default();
        assert_eq!(reports.interval(true), Duration::from_secs(1));
        assert_eq!(reports.interval(false), Duration::from_secs(5));
        for n in 0..u32::try_from(MAX_HOSTS).unwrap() + 10 {
            reports.take(at(0), report(n, 0, vec![]), false).unwrap();
        }
        assert_eq!(reports.hosts().len(), MAX_HOSTS);
        assert_eq!(reports.interval(true), Duration::from_millis(16_384));
        assert_eq!(reports.interval(false), Duration::from_millis(32_768));
    }

    #[test]
    fn what_a_host_makes_us_remember_is_bounded() {
        let mut reports = Reports::default();
        let sources: Vec<_> = (0..8).map(|n| (n, 1)).collect();
        for round in 0..10_u32 {
            let blobs = (0..60)
                .map(|n| of_blob(round * 60 + n, 1, &sources))
                .collect();
            let now = at(u64::from(round) * 1000);
            reports.take(now, report(1, 0, blobs), true).unwrap();
            let host = reports.host(&peer(1).id).unwrap();
            assert!(host.blobs.len() <= HostReport::MAX_BLOBS);
            assert!(
                host.blobs.contains_key(&blob(round * 60)),
                "the newest stay"
            );
        }
        let wrong = report(1, 0, vec![of_blob(0, 1, &[]); 65]);
        assert!(reports.take(at(10_000), wrong, true).is_err());
    }
}
