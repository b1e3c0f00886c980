//! How far images are on their way, as operators are told.

use std::collections::{BTreeMap, BTreeSet};

use kraken_proto::tags::record::Version;
use serde::{Deserialize, Serialize};

use super::gate::Gate;
use super::source::{List, Supply};
use super::way::Way;
use super::{Inner, Line, Replicator, SendError};
use crate::link::RegisterName;
use crate::name::RepoName;
use crate::tags::TagError;
use crate::tags::pending::unix_ms;

/// Registers that were refused and that are told of.
const TOLD: usize = 100;

/// How far the way to another cluster is, as one build-index knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RemoteStatus {
    /// The other cluster's name.
    pub name: String,
    /// Which way it goes.
    #[serde(default)]
    pub direction: Direction,
    /// Registers that it may lack, or that this one may lack. Each owner of a tag counts it.
    pub waiting: u64,
    /// Those that are being sent by this build-index.
    pub under_way: usize,
    /// How long the first of them has waited.
    pub oldest_seconds: u64,
    /// Nothing is sent until somebody says so.
    pub is_paused: bool,
    /// Nothing is sent at this hour.
    #[serde(default)]
    pub is_closed: bool,
    /// What it did not take, and why; at most a hundred.
    pub refused: Vec<RefusedRegister>,
    /// Blobs and bytes that this build-index has sent since its start.
    pub sent_blobs: u64,
    /// See `sent_blobs`.
    pub sent_bytes: u64,
    /// Why something was not sent the last time that this happened; nothing once that was sent after all.
    pub last_error: Option<String>,
}

/// Which way images go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Direction {
    /// This cluster sends them there.
    #[default]
    Sent,
    /// That cluster fetches them here.
    FetchedThere,
    /// This cluster fetches them there.
    FetchedHere,
}

impl Direction {
    /// As it is written in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::FetchedThere => "fetched_there",
            Self::FetchedHere => "fetched_here",
        }
    }
}

/// What another cluster did not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RefusedRegister {
    /// The tag or link.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Whether another cluster has a tag as it is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TagStatus {
    /// The other cluster's name.
    pub remote: String,
    /// Whether a rule sends the tag there.
    pub is_wanted: bool,
    /// The version here, and there; 0 of a tag that was never set.
    pub here: String,
    /// See `here`, or what the tag points to at another registry; absent when nobody answers there, or a
    /// registry has no such tag.
    pub there: Option<String>,
    /// Whether it has what is here, or something later.
    pub is_there: bool,
}

/// What operators are told.
#[derive(Default)]
pub(super) struct Told {
    pub(super) refused: BTreeMap<String, String>,
    pub(super) last_error: Option<String>,
}

impl Told {
    /// Notes how an attempt ended.
    pub(super) fn tell(&mut self, name: &str, failure: Option<&SendError>) {
        match failure {
            None => {
                self.refused.remove(name);
                let prefix = format!("{name}: ");
                self.last_error.take_if(|error| error.starts_with(&prefix));
            }
            Some(SendError::Refused(reason)) => {
                if self.refused.len() < TOLD {
                    self.refused.insert(name.to_owned(), reason.clone());
                }
            }
            Some(SendError::Held) => {}
            Some(error) => self.last_error = Some(format!("{name}: {error}")),
        }
    }

    /// The names in a repository that were refused.
    pub(super) fn refused_in(&self, repo: &RepoName) -> BTreeSet<String> {
        let begin = format!("{repo}:");
        let names = self.refused.range(begin.clone()..).map(|(name, _)| name);
        let names = names.take_while(|name| name.starts_with(&begin));
        names.cloned().collect()
    }

    fn refused(&self) -> Vec<RefusedRegister> {
        let refused = self.refused.iter().map(|(name, reason)| RefusedRegister {
            name: name.clone(),
            reason: reason.clone(),
        });
        refused.collect()
    }
}

/// What waits: how much, how much of it is under way, and since when the first, in milliseconds since 1970.
type Waits = (u64, usize, Option<u64>);

impl Gate {
    fn status(
        &self,
        name: &str,
        direction: Direction,
        (waiting, under_way, since): Waits,
    ) -> RemoteStatus {
        let (sent_blobs, sent_bytes) = self.passed();
        let told = self.told();
        RemoteStatus {
            name: name.to_owned(),
            direction,
            waiting,
            under_way,
            oldest_seconds: seconds_since(since),
            is_paused: self.is_paused(),
            is_closed: self.is_closed(),
            refused: told.refused(),
            sent_blobs,
            sent_bytes,
            last_error: told.last_error.clone(),
        }
    }
}

impl Line {
    async fn status(&self, name: &str, inner: &Inner) -> Result<RemoteStatus, TagError> {
        let (waiting, since) = inner.ring.here().count_pending(name).await?;
        let direction = match self.way {
            Way::Fetched(_) => Direction::FetchedThere,
            _ => Direction::Sent,
        };
        let waits = (waiting, self.outbox().under_way(), since);
        Ok(self.gate.status(name, direction, waits))
    }
}

impl Supply {
    fn status(&self) -> RemoteStatus {
        let (waiting, under_way, since) = match self {
            Self::Cluster(source) => {
                let lists = source.lists.iter();
                let waiting: usize = lists.clone().map(|it| it.outbox().len()).sum();
                let under_way = lists.clone().map(|it| it.outbox().under_way()).sum();
                (waiting, under_way, lists.filter_map(List::oldest).min())
            }
            Self::Registry(mirror) => {
                let outbox = mirror.outbox();
                (outbox.len(), outbox.under_way(), None)
            }
        };
        let waits = (waiting as u64, under_way, since);
        self.gate()
            .status(self.name(), Direction::FetchedHere, waits)
    }
}

fn seconds_since(unix_ms_then: Option<u64>) -> u64 {
    unix_ms_then.map_or(0, |then| unix_ms().saturating_sub(then) / 1000)
}

impl Replicator {
    /// How far the way to each other cluster is, and from each.
    ///
    /// # Errors
    /// The list on the disk cannot be read.
    pub async fn status(&self) -> Result<Vec<RemoteStatus>, TagError> {
        let inner = self.inner();
        let mut all = Vec::new();
        for (name, line) in &inner.remotes {
            all.push(line.status(name, &inner).await?);
        }
        all.extend(inner.sources.values().map(Supply::status));
        // Right after a change it may not be known yet by those that go by it.
        let paused = inner.ring.here().paused().await?;
        for status in &mut all {
            status.is_paused = paused.contains(&status.name);
        }
        Ok(all)
    }

    /// Whether other clusters have a tag as it is here.
    ///
    /// # Errors
    /// Nobody knows what it is here.
    pub async fn tag_status(&self, name: &RegisterName) -> Result<Vec<TagStatus>, TagError> {
        let inner = self.inner();
        let state = inner.ring.register(name).await?;
        let digest = state.as_ref().and_then(|state| state.now.digest);
        let here = state.map_or(Version::ZERO, |state| state.now.version);
        let mut all = Vec::new();
        for wanted in &inner.wanted {
            let Some(line) = inner.remotes.get(&wanted.remote) else {
                continue;
            };
            let is_wanted = wanted.wants(name);
            // What no rule sends there is not named there.
            let (there, is_there) = match (&line.way, name) {
                (Way::Backend(_), _) => continue,
                (Way::Cluster(remote), _) if is_wanted => {
                    let looked = remote.look(vec![name.to_string()]).await.ok();
                    let there = looked.and_then(|looked| Some(looked.first()?.version));
                    let is_there = there.is_some_and(|there| there >= here);
                    (there.map(|there| there.get().to_string()), is_there)
                }
                (Way::Fetched(remote), _) if is_wanted => {
                    let name = name.to_string();
                    let waits = inner.ring.here().is_pending(remote, &name).await?;
                    (None, !waits)
                }
                (Way::Registry(registry), RegisterName::Tag(tag)) if is_wanted => {
                    let there = registry.tag(tag).await.ok();
                    let is_there = there == Some(digest);
                    (there.flatten().map(|it| it.to_string()), is_there)
                }
                _ => (None, false),
            };
            all.push(TagStatus {
                remote: wanted.remote.clone(),
                is_wanted,
                here: here.get().to_string(),
                there,
                is_there,
            });
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_told_of_until_it_passes_or_is_gone() {
        let mut told = Told::default();
        let refused = SendError::Refused("it is unfit".into());
        for name in ["team/app:1", "team/app:2", "team/apple:1"] {
            told.tell(name, Some(&refused));
        }
        let repo = "team/app".parse().unwrap();
        let in_it = told.refused_in(&repo);
        assert!(in_it.iter().eq(["team/app:1", "team/app:2"]));
        told.tell("team/app:1", None);
        assert!(told.refused_in(&repo).iter().eq(["team/app:2"]));
    }
}
