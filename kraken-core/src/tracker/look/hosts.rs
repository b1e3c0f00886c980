//! Hosts, and where the bytes of their blobs came from.

use std::collections::BTreeMap;

use kraken_proto::tracker::report::{Source, Traffic};
use kraken_proto::tracker::reports::{BlobSeen, Reporter, Reports};
use kraken_proto::{Digest, PeerId, PeerRole};
use serde::Serialize;

use super::{Look, name_of, short, thousandths};

/// A host that reports.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct HostRow {
    /// The beginning of its identity.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Where it listens.
    pub addr: String,
    /// Where it stands.
    pub zone: Option<String>,
    /// Which version runs there.
    pub version: String,
    /// What it moves, in bytes per second.
    pub rate: Traffic,
    /// What it moved since its start.
    pub moved: Traffic,
}

/// Hosts that report.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct HostPage {
    /// Those that were asked for.
    pub hosts: Vec<HostRow>,
    /// How many match.
    pub matching: usize,
    /// How many there are.
    pub total: usize,
}

/// A host and what it moved of its blobs.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct HostDetail {
    /// The host.
    #[serde(flatten)]
    pub host: HostRow,
    /// The blobs that moved last, the fastest in front.
    pub blobs: Vec<BlobAtHost>,
}

/// A blob at a host.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct BlobAtHost {
    /// The blob.
    pub digest: Digest,
    /// What it belongs to.
    pub namespace: String,
    /// Its length in bytes.
    pub length: u64,
    /// How much of it is here, in thousandths.
    pub done: u16,
    /// What moves of it, in bytes per second.
    pub rate: Traffic,
    /// What moved of it.
    pub moved: Traffic,
    /// From whom it came.
    pub sources: Vec<SourceRow>,
}

/// Somebody who sent pieces.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SourceRow {
    /// The beginning of the identity.
    pub id: String,
    /// The name.
    pub name: String,
    /// Whether it is an origin.
    pub is_origin: bool,
    /// Bytes that came from there.
    pub bytes: u64,
    /// Bytes per second that come from there.
    pub rate: u64,
}

impl SourceRow {
    pub(super) fn new(
        (source, rate): (&Source, &u64),
        reports: &Reports,
        origins: &BTreeMap<PeerId, String>,
    ) -> Self {
        Self {
            id: short(&source.id),
            name: name_of(&source.id, reports, origins),
            is_origin: source.role == PeerRole::Origin,
            bytes: source.bytes,
            rate: *rate,
        }
    }
}

impl Look {
    /// The hosts whose name, address or identity holds `search`, from `offset` on and at most `limit`,
    /// the fastest in front.
    pub fn hosts(&self, search: &str, (offset, limit): (usize, usize)) -> HostPage {
        self.reports(|reports| {
            let mut hosts: Vec<_> = reports
                .hosts()
                .filter(|host| matches(host, search))
                .collect();
            let matching = hosts.len();
            hosts.sort_by_cached_key(|host| {
                let rate = host.rate.received().saturating_add(host.rate.sent);
                let rate = std::cmp::Reverse(rate.checked_ilog2());
                (rate, &host.report.name, host.report.peer.id)
            });
            let page = hosts.into_iter().skip(offset).take(limit);
            HostPage {
                hosts: page.map(row).collect(),
                matching,
                total: reports.hosts().len(),
            }
        })
    }

    /// The host whose identity begins so; `None` when none does.
    pub fn host(&self, id: &str) -> Option<HostDetail> {
        let origins = self.origins();
        self.reports(|reports| {
            let mut hosts = reports.hosts();
            let host = hosts.find(|host| host.report.peer.id.to_string().starts_with(id))?;
            let blob = |seen: &BlobSeen| BlobAtHost {
                digest: seen.report.digest,
                namespace: seen.report.namespace.to_string(),
                length: seen.report.length,
                done: thousandths(seen),
                rate: seen.rate,
                moved: seen.report.moved,
                sources: {
                    let sources = seen.report.sources.iter().zip(&seen.source_rates);
                    let row = |source| SourceRow::new(source, reports, &origins);
                    sources.map(row).collect()
                },
            };
            let mut blobs: Vec<_> = host.blobs.values().map(blob).collect();
            blobs.sort_by_key(|blob| (u64::MAX - blob.rate.received(), blob.digest));
            Some(HostDetail {
                host: row(host),
                blobs,
            })
        })
    }
}

fn matches(host: &Reporter, search: &str) -> bool {
    let peer = &host.report.peer;
    search.is_empty()
        || host.report.name.contains(search)
        || peer.addr.to_string().contains(search)
        || peer.id.to_string().starts_with(search)
        || peer
            .zone
            .as_ref()
            .is_some_and(|zone| zone.as_str() == search)
}

fn row(host: &Reporter) -> HostRow {
    let peer = &host.report.peer;
    let named = Some(&host.report.name).filter(|name| !name.is_empty());
    HostRow {
        id: short(&peer.id),
        name: named.cloned().unwrap_or_else(|| short(&peer.id)),
        addr: peer.addr.to_string(),
        zone: peer.zone.as_ref().map(ToString::to_string),
        version: host.report.version.clone(),
        rate: host.rate,
        moved: host.report.moved,
    }
}
