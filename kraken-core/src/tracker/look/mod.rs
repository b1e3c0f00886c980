//! What people see who look on at a tracker: swarms, hosts, traffic.
//!
//! Two sources meet here. Announces say who takes part in which swarm and how far each is; they come at
//! once when a host has all of a blob. Reports say what moves between whom; they come every few seconds,
//! see [`kraken_proto::tracker::reports`]. Nothing here changes what a tracker hands out.

mod graph;
mod hosts;
mod swarms;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kraken_net::http::ApiError;
use kraken_proto::tracker::report::{HostReport, ReportReply, Traffic};
use kraken_proto::tracker::reports::{BlobSeen, Reporter, Reports};
use kraken_proto::{Digest, PeerId, PeerInfo, Timestamp};
use serde::Serialize;

pub use self::graph::{Edge, Graph};
pub use self::hosts::{BlobAtHost, HostDetail, HostPage, HostRow, SourceRow};
pub use self::swarms::{MemberPage, MemberRow, Order, Rollout, SwarmList, SwarmRow};
use super::service::{Inner, lock};

/// For how long after a look hosts are asked to report often.
const LOOKS: Duration = Duration::from_secs(10);

/// What hosts report, and whether somebody looks.
#[derive(Default)]
pub(super) struct Audience {
    reports: Mutex<Reports>,
    /// When somebody looked last, in nanoseconds of the tracker's clock; zero for never.
    looked: AtomicU64,
}

impl Audience {
    pub(super) fn take(&self, now: Timestamp, report: HostReport) -> Result<ReportReply, ApiError> {
        let taken = lock(&self.reports).take(now, report, self.is_watched(now));
        let next = taken.map_err(|error| ApiError::BadRequest(error.to_string()))?;
        Ok(ReportReply {
            next_ms: u64::try_from(next.as_millis()).unwrap_or(u64::MAX),
        })
    }

    fn is_watched(&self, now: Timestamp) -> bool {
        let looked = self.looked.load(Ordering::Relaxed);
        looked > 0 && now.since(Timestamp::from_nanos(looked)) < LOOKS
    }
}

/// A look at a tracker. Cheap to clone; each question counts as looking, so that hosts report often.
#[derive(Clone)]
pub struct Look {
    inner: Arc<Inner>,
}

/// What a tracker knows as a whole.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Overview {
    /// Blobs that hosts share.
    pub swarms: usize,
    /// Hosts that announce.
    pub announcing: usize,
    /// Hosts that report.
    pub reporting: usize,
    /// Announces that were answered.
    pub announces: u64,
    /// Reports that were taken.
    pub reports: u64,
    /// How long hosts wait between two reports now, in milliseconds.
    pub interval_ms: u64,
    /// For how long the tracker runs, in seconds.
    pub up_seconds: u64,
    /// What the hosts move, in bytes per second.
    pub rate: Traffic,
    /// How many hosts run which version.
    pub versions: BTreeMap<String, usize>,
    /// How many hosts report from which zone; those without one under an empty name.
    pub zones: BTreeMap<String, usize>,
}

/// What the hosts together moved in the last hour.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Throughput {
    /// The length of a step, in seconds.
    pub step_seconds: u64,
    /// The steps that have ended: when each began, in seconds before now, and what moved, in bytes.
    pub steps: Vec<(u64, Traffic)>,
}

impl Look {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// What the tracker knows as a whole.
    pub fn overview(&self) -> Overview {
        let stats = lock(&self.inner.machine).stats();
        let now = self.inner.clock.now();
        self.reports(|reports| {
            let (mut versions, mut zones) = (BTreeMap::new(), BTreeMap::new());
            let mut rate = Traffic::default();
            for host in reports.hosts() {
                count(&mut versions, &host.report.version);
                let zone = host.report.peer.zone.as_ref();
                count(&mut zones, zone.map_or("", |zone| zone.as_str()));
                rate = rate + host.rate;
            }
            Overview {
                swarms: stats.swarms,
                announcing: stats.hosts,
                reporting: reports.hosts().len(),
                announces: stats.announces,
                reports: reports.taken(),
                interval_ms: u64::try_from(reports.interval(true).as_millis()).unwrap_or(u64::MAX),
                up_seconds: now.since(Timestamp::ZERO).as_secs(),
                rate,
                versions,
                zones,
            }
        })
    }

    /// What the hosts together moved in the last hour. The last steps fill up while hosts report.
    pub fn throughput(&self) -> Throughput {
        let now = self.inner.clock.now();
        self.reports(|reports| {
            let steps = reports.history().points(now);
            let ago = |(began, moved): (Timestamp, Traffic)| (now.since(began).as_secs(), moved);
            Throughput {
                step_seconds: kraken_proto::tracker::history::STEP.as_secs(),
                steps: steps.map(ago).collect(),
            }
        })
    }

    /// The origins that answer, by their identities.
    fn origins(&self) -> BTreeMap<PeerId, String> {
        let seeders = lock(&self.inner.seeders);
        let by_id = seeders.iter().map(|(name, peer)| (peer.id, name.clone()));
        by_id.collect()
    }

    /// The origins that answer: their names, and who they are as peers.
    pub fn live_origins(&self) -> BTreeMap<String, PeerInfo> {
        lock(&self.inner.seeders).clone()
    }

    /// Reads what hosts reported, those left out that fell silent.
    fn reports<T>(&self, read: impl FnOnce(&Reports) -> T) -> T {
        let audience = self.inner.audience.as_ref();
        let audience = audience.expect("who looks on has an audience");
        let now = self.inner.clock.now();
        audience
            .looked
            .store(now.as_nanos().max(1), Ordering::Relaxed);
        let mut reports = lock(&audience.reports);
        reports.expire(now);
        read(&reports)
    }
}

impl std::fmt::Debug for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Look").finish_non_exhaustive()
    }
}

/// The hosts that reported a blob.
fn of_blob<'a>(
    reports: &'a Reports,
    digest: &'a Digest,
) -> impl Iterator<Item = (&'a Reporter, &'a BlobSeen)> {
    let hosts = reports.hosts();
    hosts.filter_map(|host| Some((host, host.blobs.get(digest)?)))
}

/// How much of a blob a host reported, in thousandths.
fn thousandths(seen: &BlobSeen) -> u16 {
    let (have, of) = (u64::from(seen.report.have), u64::from(seen.report.of));
    let share = (have * 1000).checked_div(of).unwrap_or(0);
    u16::try_from(share.min(1000)).unwrap_or(1000)
}

/// A peer's identity, short enough to show: its first 8 bytes.
fn short(id: &PeerId) -> String {
    let mut text = id.to_string();
    text.truncate(16);
    text
}

/// What to call a peer: what an origin is named in the ring, what an agent reports, or its identity.
fn name_of(id: &PeerId, reports: &Reports, origins: &BTreeMap<PeerId, String>) -> String {
    let reported = || reports.host(id).map(|host| host.report.name.clone());
    let name = origins.get(id).cloned().or_else(reported);
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| short(id))
}

fn count(counts: &mut BTreeMap<String, usize>, name: &str) {
    *counts.entry(name.to_string()).or_default() += 1;
}
