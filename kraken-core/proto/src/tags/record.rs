//! What a tag points to, since when, and to what it pointed before.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::blob::digest::Digest;

/// When a tag was changed: a hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014).
///
/// 48 bits of milliseconds since 1970 and 16 bits that count changes within one of them. Of one tag,
/// a later change has a larger version, however wrong the clocks of those who change it are.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Version(u64);

const COUNTER_BITS: u32 = 16;
/// The part of them that counts from where a cluster begins.
const COUNTER: u16 = 0xf;

impl Version {
    /// Before every change.
    pub const ZERO: Self = Self(0);

    /// The number, as it is told to clients.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The version of this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The first version after this one that is not before `millis` since 1970, in a cluster of this name:
    /// two clusters that change a tag within the same millisecond hardly draw the same.
    #[must_use]
    pub fn next(self, millis: u64, cluster: &str) -> Self {
        let digest = Digest::of(cluster.as_bytes());
        let place = u16::from_be_bytes([digest.as_bytes()[0], digest.as_bytes()[1]]) & !COUNTER;
        let (after, now) = (
            self.0.saturating_add(1),
            millis << COUNTER_BITS | u64::from(place),
        );
        Self(after.max(now))
    }

    /// The milliseconds since 1970 that it names.
    pub const fn millis(self) -> u64 {
        self.0 >> COUNTER_BITS
    }
}

/// One state of a tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// When it was set.
    pub version: Version,
    /// In which cluster.
    pub cluster: String,
    /// What the tag points to; nothing once it has been removed.
    pub digest: Option<Digest>,
}

/// What an owner keeps of a tag: its state, and those before, the latest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagState {
    /// What the tag is now.
    pub now: Record,
    /// What it was before, at most [`TagState::HISTORY`] of these.
    pub before: VecDeque<Record>,
}

impl TagState {
    /// Earlier states that are kept.
    pub const HISTORY: usize = 10;

    /// A state without any before it.
    pub const fn first(now: Record) -> Self {
        let before = VecDeque::new();
        Self { now, before }
    }

    /// Whether it is within the bounds of what is made here, as a state from elsewhere must be.
    pub fn is_sound(&self) -> bool {
        let fits = |record: &Record| (1..=255).contains(&record.cluster.len());
        let is_bounded = self.before.len() <= Self::HISTORY && self.records().all(fits);
        is_bounded
            && self
                .records()
                .is_sorted_by(|later, earlier| later > earlier)
    }

    /// This state, all earlier ones behind it.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        std::iter::once(&self.now).chain(&self.before)
    }

    /// Whether the tag was removed after it was last changed in another state of it.
    fn was_removed_after(&self, state: Option<&Self>) -> bool {
        let since = state.map_or(Version::ZERO, |state| state.now.version);
        let mut removals = self.records().filter(|record| record.digest.is_none());
        removals.any(|record| record.version > since)
    }

    /// Whether what was made of the tag at a version would be found here: no record that old has gone.
    pub fn reaches(&self, version: Version) -> bool {
        let oldest = self.before.back().map(|record| record.version);
        self.before.len() < Self::HISTORY || oldest.is_some_and(|oldest| oldest <= version)
    }

    /// This state and that of the same tag in another cluster as one: all records by their versions, the last
    /// one first. Whichever of the two is asked, and however often, it comes to the same.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        let all = self.records().chain(other.records());
        let all: BTreeSet<_> = all.cloned().collect();
        let mut all = all.into_iter().rev();
        let now = all.next().unwrap_or_else(|| self.now.clone());
        let before = all.take(Self::HISTORY).collect();
        Self { now, before }
    }

    /// Names all records: two states with the same name are the same.
    pub fn id(&self) -> Digest {
        let mut text = String::new();
        for record in self.records() {
            let digest = record.digest.map(|digest| digest.hex()).unwrap_or_default();
            let (version, cluster) = (record.version.get(), &record.cluster);
            text.push_str(&format!("{version} {}:{cluster} {digest}\n", cluster.len()));
        }
        Digest::of(text.as_bytes())
    }

    /// The same with one more record in front.
    #[must_use]
    fn with(&self, now: Record) -> Self {
        let before = self.records().take(Self::HISTORY).cloned().collect();
        Self { now, before }
    }
}

/// What must hold of a tag for it to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    Any,
    /// It was last changed at this version.
    Version(Version),
    /// It was last changed, or removed, at this version, zero if never: whoever asks twice, because
    /// no answer came, then does not undo what others did in between.
    At(Version),
    /// It does not exist.
    Absent,
}

/// What is to become of a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is only looked at.
    Read,
    /// It is to be what another cluster has made of it, unless it was changed later here.
    Merge {
        /// What it is there.
        state: TagState,
        /// Whether the tag must never point to anything else than it does, unless it is removed.
        is_immutable: bool,
    },
    /// It is to point to `digest`, or to be removed without one.
    Set {
        /// What it is to point to.
        digest: Option<Digest>,
        /// What must hold.
        condition: Condition,
        /// Whether the tag must never point to anything else than it does, unless it is removed.
        is_immutable: bool,
        /// What earlier attempts at this change would have made of the tag: if it was one of these, the
        /// change has been made.
        attempted: Vec<Record>,
        /// The time, in milliseconds since 1970.
        millis: u64,
        /// The name of this cluster.
        cluster: String,
    },
}

/// Why a tag was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It changed in the meantime.
    #[error("the tag was changed at version {}", .0.get())]
    Changed(Version),
    /// It does not exist.
    #[error("the tag does not exist")]
    Unknown,
    /// It exists.
    #[error("the tag exists")]
    Exists,
    /// It was attempted, and has changed so often since that nobody knows whether that was made.
    #[error(
        "the tag has changed so often meanwhile that nobody knows whether it was ever set to this"
    )]
    Overtaken,
    /// It exists and must never point to anything else.
    #[error("the tag is immutable and points to something else")]
    Immutable,
}

impl Change {
    /// What the tag is afterwards; `None` when it was never set and stays so.
    ///
    /// # Errors
    /// [`Refusal`]: it stays as it is.
    pub fn apply(&self, state: Option<&TagState>) -> Result<Option<TagState>, Refusal> {
        match self {
            Self::Read => Ok(state.cloned()),
            Self::Merge {
                state: other,
                is_immutable,
            } => {
                let merged = state.map_or_else(|| other.clone(), |state| state.merged(other));
                let now = state.and_then(|state| state.now.digest);
                let next = merged.now.digest;
                let is_changed = now.is_some() && next.is_some() && now != next;
                if *is_immutable && is_changed && !other.was_removed_after(state) {
                    return Err(Refusal::Immutable);
                }
                Ok(Some(merged))
            }
            Self::Set {
                digest,
                condition,
                is_immutable,
                attempted,
                millis,
                cluster,
            } => {
                let mut records = state.iter().flat_map(|state| state.records());
                if records.any(|record| attempted.contains(record)) {
                    return Ok(state.cloned());
                }
                let first = attempted.iter().map(|record| record.version).min();
                if let (Some(state), Some(first)) = (state, first)
                    && !state.reaches(first)
                {
                    return Err(Refusal::Overtaken);
                }
                let now = state.and_then(|state| state.now.digest);
                if *is_immutable && digest.is_some() && now.is_some() && now != *digest {
                    return Err(Refusal::Immutable);
                }
                set(state, *digest, *condition, *millis, cluster)
            }
        }
    }

    /// A change that was attempted, and would have made this of the tag.
    pub fn attempted(&mut self, record: &Record) {
        if let Self::Set { attempted, .. } = self {
            attempted.push(record.clone());
        }
    }
}

fn set(
    state: Option<&TagState>,
    digest: Option<Digest>,
    condition: Condition,
    millis: u64,
    cluster: &str,
) -> Result<Option<TagState>, Refusal> {
    let now = state.and_then(|state| state.now.digest);
    if digest == now {
        // It is as it is wanted.
        return Ok(state.cloned());
    }
    let version = state.map_or(Version::ZERO, |state| state.now.version);
    match condition {
        Condition::Version(_) if now.is_none() => return Err(Refusal::Unknown),
        Condition::Version(wanted) if wanted != version => return Err(Refusal::Changed(version)),
        Condition::At(wanted) if wanted != version => return Err(Refusal::Changed(version)),
        Condition::Absent if now.is_some() => return Err(Refusal::Exists),
        _ => {}
    }
    let record = Record {
        version: version.next(millis, cluster),
        cluster: cluster.to_owned(),
        digest,
    };
    let next = state.map(|state| state.with(record.clone()));
    Ok(Some(next.unwrap_or_else(|| TagState::first(record))))
}
