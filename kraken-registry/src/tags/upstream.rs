//! Tags of other registries' images: asked there as often as their rule says, and kept like own tags, so
//! that they outlive the other registry's outages.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kraken_proto::Digest;
use kraken_proto::tags::record::{Condition, Version};
use moka::future::Cache;
use regex::Regex;
use tokio::time::{Instant, timeout};

use super::TagError;
use super::policy::TagPolicy;
use super::quiet::Quiet;
use super::ring::TagRing;
use crate::name::TagName;
use crate::source::{BlobSource, ResolveError};

/// How long the other registry may take while an earlier answer is known.
const PATIENCE: Duration = Duration::from_secs(4);
/// The same while none is: whoever asks has another registry to go to.
const PATIENCE_FIRST: Duration = Duration::from_secs(10);
/// How long a tag is left alone about which it did not tell.
const LEFT_ALONE: Duration = Duration::from_secs(10);
/// Tags whose last question is remembered.
const REMEMBERED: u64 = 100_000;

/// How old an answer about a tag may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// The other registry is asked each time.
    Always,
    /// It is asked when the last answer is so old.
    Within(Duration),
    /// It is asked once.
    Pinned,
}

/// Whose images come from another registry, and how fresh their tags are.
#[derive(Debug, Clone)]
pub struct UpstreamRule {
    /// What the repository looks like; it may match anywhere in it.
    pub repositories: Regex,
    /// How old an answer may be.
    pub fresh: Freshness,
}

/// The tags of other registries. The first rule that matches counts.
#[derive(Debug)]
pub(super) struct Upstreams {
    policy: TagPolicy,
    asked: Cache<String, Arc<Asked>>,
    quiet: Quiet,
}

/// What was asked about one tag, by whoever's turn it was.
#[derive(Debug, Default)]
struct Asked {
    turn: tokio::sync::Mutex<()>,
    last: Mutex<Last>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Last {
    /// When the question was asked that was answered last.
    answered: Option<Instant>,
    /// When it refused to tell, after that.
    failed: Option<Instant>,
}

impl Upstreams {
    pub(super) fn new(policy: TagPolicy) -> Self {
        Self {
            policy,
            asked: Cache::new(REMEMBERED),
            quiet: Quiet::default(),
        }
    }

    /// Makes sure that what is kept of the tag is as fresh as its rule says, if it has one. Says whether it
    /// could not, and an older answer has to do.
    ///
    /// # Errors
    /// The other registry does not answer, and nothing is known of the tag.
    pub(super) async fn refresh<B: BlobSource>(
        &self,
        tags: &TagRing,
        blobs: &B,
        name: &TagName,
    ) -> Result<bool, TagError> {
        let Some(rule) = self.policy.upstream(name) else {
            return Ok(false);
        };
        let arrived = Instant::now();
        let asked = async { Arc::default() };
        let asked = self.asked.get_with(name.to_string(), asked).await;
        let _turn = asked.turn.lock().await;
        let last = asked.last();
        let state = tags.state(name).await?;
        let version = state
            .as_ref()
            .map_or(Version::ZERO, |state| state.now.version);
        let known = state.and_then(|state| state.now.digest);
        let is_fresh = match (rule.fresh, last.answered) {
            (Freshness::Pinned, _) if known.is_some() => true,
            // Somebody has asked after this question came.
            (_, Some(answered)) if answered >= arrived => true,
            (Freshness::Within(age), Some(answered)) => answered.elapsed() < age,
            _ => false,
        };
        if is_fresh {
            return Ok(false);
        }
        let is_refused = last.failed.is_some_and(|at| at.elapsed() < LEFT_ALONE);
        if is_refused || self.quiet.holds(name.repo()) {
            let reason = "the registry that it comes from did not answer a moment ago";
            let unknown = || TagError::Unavailable(reason.into());
            return known.map(|_| true).ok_or_else(unknown);
        }
        let began = Instant::now();
        let patience = if known.is_some() {
            PATIENCE
        } else {
            PATIENCE_FIRST
        };
        let ns = name.repo().namespace();
        let resolved = timeout(patience, blobs.resolve(&ns, name.tag().as_str())).await;
        let reason = match resolved {
            Ok(Ok(found)) => {
                keep(tags, name, (known, version), found).await?;
                asked.note(Last {
                    answered: Some(began),
                    failed: None,
                });
                return Ok(false);
            }
            Ok(Err(ResolveError::Refused(reason))) => {
                asked.note(Last {
                    failed: Some(Instant::now()),
                    ..last
                });
                reason
            }
            Ok(Err(ResolveError::Away { reason, wait })) => {
                self.quiet.begin(name.repo(), wait);
                reason
            }
            Err(_) => {
                self.quiet.begin(name.repo(), None);
                format!("no answer within {} s", patience.as_secs())
            }
        };
        tracing::warn!(tag = %name, reason, "the registry that a tag comes from does not tell");
        match known {
            Some(_) => Ok(true),
            None => Err(TagError::Unavailable(reason)),
        }
    }
}

/// Keeps what was found, unless another build-index has found something since.
async fn keep(
    tags: &TagRing,
    name: &TagName,
    (known, version): (Option<Digest>, Version),
    found: Option<Digest>,
) -> Result<(), TagError> {
    if known == found {
        return Ok(());
    }
    match tags.set(name, found, Condition::At(version)).await {
        Err(TagError::Conflict(_)) => Ok(()),
        done => {
            tracing::info!(tag = %name, digest = ?found, "a tag changed in the registry that it comes from");
            done.map(drop)
        }
    }
}

impl Asked {
    fn last(&self) -> Last {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, last: Last) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }
}
