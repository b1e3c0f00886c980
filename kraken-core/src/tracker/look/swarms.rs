//! Swarms, their members, and how far a rollout is.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use kraken_proto::tracker::report::Traffic;
use kraken_proto::tracker::reports::Reports;
use kraken_proto::tracker::view::SwarmView;
use kraken_proto::{Digest, PeerInfo};
use serde::{Deserialize, Serialize};

use super::hosts::SourceRow;
use super::{Look, lock, name_of, of_blob, short, thousandths};

/// A swarm as a whole.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SwarmRow {
    /// The blob.
    pub digest: Digest,
    /// What it belongs to, when a host has reported it.
    pub namespace: Option<String>,
    /// Its length in bytes, when that is known.
    pub length: Option<u64>,
    /// How many hosts take part.
    pub members: u32,
    /// How many of them have all of it.
    pub ready: u32,
    /// How much of it they have on average, in thousandths.
    pub done: u16,
    /// What they receive, in bytes per second.
    pub rate: u64,
    /// What those that report moved of it.
    pub moved: Traffic,
    /// How long the rest takes at the present rate; `None` when nothing moves or nothing is known.
    pub seconds_left: Option<u64>,
}

/// Swarms, those that move in front.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SwarmList {
    /// The first of those that match.
    pub swarms: Vec<SwarmRow>,
    /// How many match.
    pub matching: usize,
    /// How many there are.
    pub total: usize,
}

/// How far several blobs are together, such as the layers of an image.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Rollout {
    /// Hosts that take part in the swarm of any of the blobs.
    pub hosts: usize,
    /// Hosts that have all of all blobs.
    pub ready: usize,
    /// How much of all bytes they have on average, in thousandths.
    pub done: u16,
    /// What they receive, in bytes per second.
    pub rate: u64,
    /// How long the rest takes at the present rate.
    pub seconds_left: Option<u64>,
    /// The blobs, in the order that was asked for; `None` when no swarm is known.
    pub blobs: Vec<Option<SwarmRow>>,
}

/// In which order members come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Order {
    /// Those that have least in front.
    #[default]
    Least,
    /// Those that have most in front.
    Most,
    /// The fastest in front.
    Rate,
    /// By name.
    Name,
}

/// Members of a swarm.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct MemberPage {
    /// Those that were asked for.
    pub members: Vec<MemberRow>,
    /// How many there are.
    pub total: usize,
}

/// A member of a swarm.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct MemberRow {
    /// The beginning of its identity.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Where it listens.
    pub addr: String,
    /// Where it stands.
    pub zone: Option<String>,
    /// How much of the blob it has, in thousandths.
    pub done: u16,
    /// How many peers it is connected to for this blob.
    pub links: u32,
    /// What it receives and sends of this blob, in bytes per second.
    pub rate: Traffic,
    /// What it moved of it since its start.
    pub moved: Traffic,
    /// From whom most of it came.
    pub sources: Vec<SourceRow>,
}

/// The most sources of one member in a row.
const ROW_SOURCES: usize = 4;

/// What hosts reported of a blob, together.
#[derive(Debug, Clone, Default)]
struct Reported {
    namespace: String,
    length: u64,
    rate: u64,
    moved: Traffic,
    hosts: u32,
    ready: u32,
    thousandths: u64,
}

/// A member, as it announced or, where nobody announces the blob to this tracker, as it reported.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) info: PeerInfo,
    pub(super) done: u16,
    pub(super) links: u32,
}

impl Look {
    /// The swarms whose digest begins with `prefix`, at most `limit` of them: those in front in which
    /// most bytes move, then those with most hosts that lack something, then the largest.
    pub fn swarms(&self, prefix: &str, limit: usize) -> SwarmList {
        let views: Vec<_> = lock(&self.inner.machine).swarms().collect();
        let mut reported = self.reports(all_reported);
        let announced = views.into_iter().map(|view| {
            let reported = reported.remove(&view.digest);
            (view.digest, Some(view), reported)
        });
        let mut rows: Vec<_> = announced.collect();
        let others = reported.into_iter();
        rows.extend(others.map(|(digest, reported)| (digest, None, Some(reported))));
        let total = rows.len();
        rows.retain(|(digest, ..)| digest.hex().starts_with(prefix));
        let matching = rows.len();
        let weight = |(digest, view, reported): &(Digest, Option<SwarmView>, Option<Reported>)| {
            // By orders of magnitude: rows that change places all the time cannot be read.
            let rate = reported.as_ref().and_then(|it| it.rate.checked_ilog2());
            let view = view.map_or((0, 0), |it| (it.members - it.ready, it.members));
            (Reverse((rate, view)), *digest)
        };
        rows.sort_by_cached_key(weight);
        rows.truncate(limit);
        let row = |(digest, view, reported)| self.row(digest, view, reported);
        SwarmList {
            swarms: rows.into_iter().map(row).collect(),
            matching,
            total,
        }
    }

    /// One swarm; `None` when nobody takes part.
    pub fn swarm(&self, digest: Digest) -> Option<SwarmRow> {
        let view = lock(&self.inner.machine).swarm(&digest);
        let reported = self.reports(|reports| reported(reports, &digest));
        if view.is_none() && reported.is_none() {
            return None;
        }
        Some(self.row(digest, view, reported))
    }

    /// Members of a swarm from `offset` on, at most `limit`.
    pub fn members(
        &self,
        digest: Digest,
        order: Order,
        (offset, limit): (usize, usize),
    ) -> MemberPage {
        let members = self.members_of(&digest);
        let origins = self.origins();
        self.reports(|reports| {
            let mut rows: Vec<_> = members
                .into_iter()
                .map(|it| {
                    let host = reports.host(&it.info.id);
                    let seen = host.and_then(|host| host.blobs.get(&digest));
                    let name = name_of(&it.info.id, reports, &origins);
                    (it, name, seen)
                })
                .collect();
            let total = rows.len();
            rows.sort_by_cached_key(|(it, name, seen)| {
                let rate = seen.map_or(0, |seen| seen.rate.received());
                let key = match order {
                    Order::Least => u64::from(it.done),
                    Order::Most => 1000 - u64::from(it.done.min(1000)),
                    Order::Rate => u64::MAX - rate,
                    Order::Name => 0,
                };
                (key, name.clone(), it.info.id)
            });
            let page = rows.into_iter().skip(offset).take(limit);
            let members = page.map(|(it, name, seen)| {
                let sources = seen.map(|seen| {
                    let source = |source| SourceRow::new(source, reports, &origins);
                    seen.report
                        .sources
                        .iter()
                        .zip(&seen.source_rates)
                        .map(source)
                        .take(ROW_SOURCES)
                        .collect()
                });
                MemberRow {
                    id: short(&it.info.id),
                    name,
                    addr: it.info.addr.to_string(),
                    zone: it.info.zone.as_ref().map(ToString::to_string),
                    done: it.done,
                    links: it.links,
                    rate: seen.map(|seen| seen.rate).unwrap_or_default(),
                    moved: seen.map(|seen| seen.report.moved).unwrap_or_default(),
                    sources: sources.unwrap_or_default(),
                }
            });
            MemberPage {
                members: members.collect(),
                total,
            }
        })
    }

    /// How far several blobs are together, each with its length.
    pub fn rollout(&self, blobs: &[(Digest, u64)]) -> Rollout {
        let whole: u64 = blobs.iter().map(|(_, length)| length).sum();
        let mut hosts = BTreeMap::<_, (usize, u128)>::new();
        for (digest, length) in blobs {
            for member in self.members_of(digest) {
                let (ready, bytes) = hosts.entry(member.info.id).or_default();
                *ready += usize::from(member.done == 1000);
                *bytes += u128::from(*length) * u128::from(member.done) / 1000;
            }
        }
        let rows: Vec<_> = blobs
            .iter()
            .map(|(digest, _)| self.swarm(*digest))
            .collect();
        let rate: u64 = rows.iter().flatten().map(|row| row.rate).sum();
        let all = u128::from(whole) * hosts.len() as u128;
        let there = hosts
            .values()
            .map(|(_, bytes)| bytes)
            .sum::<u128>()
            .min(all);
        Rollout {
            hosts: hosts.len(),
            ready: hosts
                .values()
                .filter(|(ready, _)| *ready == blobs.len())
                .count(),
            done: u16::try_from((there * 1000).checked_div(all).unwrap_or(0)).unwrap_or(1000),
            rate,
            seconds_left: seconds(all - there, rate),
            blobs: rows,
        }
    }

    /// The members that announce a blob here; where none does, the hosts that reported it.
    pub(super) fn members_of(&self, digest: &Digest) -> Vec<Member> {
        let mut members: Vec<_> = lock(&self.inner.machine)
            .members(digest)
            .map(|view| Member {
                info: view.info.clone(),
                done: view.done,
                links: view.links,
            })
            .collect();
        self.reports(|reports| {
            if members.is_empty() {
                let reporting = of_blob(reports, digest).map(|(host, seen)| Member {
                    info: host.report.peer.clone(),
                    done: thousandths(seen),
                    links: 0,
                });
                members.extend(reporting);
            }
            for member in &mut members {
                let host = reports.host(&member.info.id);
                let seen = host.and_then(|host| host.blobs.get(digest));
                // An announce is seconds old, and so is a report: what is more is newer.
                member.done = member.done.max(seen.map_or(0, thousandths));
            }
        });
        members.sort_unstable_by_key(|member| member.info.id);
        members
    }

    fn row(&self, digest: Digest, view: Option<SwarmView>, reported: Option<Reported>) -> SwarmRow {
        let is_reported = reported.is_some();
        let reported = reported.unwrap_or_default();
        let (members, ready, sum) = match view {
            Some(view) => (view.members, view.ready, view.thousandths),
            None => (reported.hosts, reported.ready, reported.thousandths),
        };
        // Reports are fresher than announces while a blob moves; a host reports what moves only.
        let mean = |sum: u64, of: u32| sum.checked_div(of.into()).unwrap_or(0);
        let mut done = mean(sum, members);
        if reported.hosts >= members {
            done = done.max(mean(reported.thousandths, reported.hosts));
        }
        let length = match reported.length {
            0 => self.inner.metainfo.length(&digest),
            length => Some(length),
        };
        let missing = 1000_u64.saturating_sub(done);
        let rest =
            length.map(|it| u128::from(it) * u128::from(members) * u128::from(missing) / 1000);
        SwarmRow {
            digest,
            namespace: is_reported.then_some(reported.namespace),
            length,
            members,
            ready,
            done: u16::try_from(done.min(1000)).unwrap_or(1000),
            rate: reported.rate,
            moved: reported.moved,
            seconds_left: rest.and_then(|rest| seconds(rest, reported.rate)),
        }
    }
}

/// How long so many bytes take.
fn seconds(bytes: u128, rate: u64) -> Option<u64> {
    let seconds = bytes.div_ceil(u128::from(rate.max(1)));
    (bytes == 0 || rate > 0).then(|| u64::try_from(seconds).unwrap_or(u64::MAX))
}

impl Reported {
    fn add(&mut self, seen: &kraken_proto::tracker::reports::BlobSeen) {
        let done = thousandths(seen);
        self.hosts += 1;
        self.ready += u32::from(done == 1000);
        self.thousandths += u64::from(done);
        self.rate = self.rate.saturating_add(seen.rate.received());
        self.moved = self.moved + seen.report.moved;
        if self.hosts == 1 {
            self.length = seen.report.length;
            self.namespace = seen.report.namespace.to_string();
        }
    }
}

fn all_reported(reports: &Reports) -> BTreeMap<Digest, Reported> {
    let mut all = BTreeMap::<Digest, Reported>::new();
    for host in reports.hosts() {
        for (digest, seen) in &host.blobs {
            all.entry(*digest).or_default().add(seen);
        }
    }
    all
}

fn reported(reports: &Reports, digest: &Digest) -> Option<Reported> {
    let mut together = Reported::default();
    of_blob(reports, digest).for_each(|(_, seen)| together.add(seen));
    (together.hosts > 0).then_some(together)
}
